//! Accesses, and which of them a protection permits.

use granule_arch::descriptor::Protection;
use granule_arch::patched_branch;

use crate::platform::features::branch;

/// The kind of an access. Its number is a set of protections; an area that permits the access has one of them: see
/// [`allows`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Access {
    /// A load.
    Read = Protection::READ.and(Protection::WRITE).bits(),
    /// A store, or an atomic.
    Write = Protection::WRITE.bits(),
    /// A fetch.
    Execute = Protection::EXECUTE.bits(),
}

impl Access {
    /// The protection that an area must have where the kernel makes the access by the page, as Linux's
    /// `get_user_pages` does, and not by the address: [`allows`] answers as CPUs do, which load what may only be
    /// written.
    pub(super) const fn needed(self) -> Protection {
        match self {
            Self::Read => Protection::READ,
            Self::Write => Protection::WRITE,
            Self::Execute => Protection::EXECUTE,
        }
    }
}

/// Whether an area with `protection` permits `access`. A writable page is readable, and so is an executable one where
/// the CPUs have no execute-only pages.
#[inline(always)]
pub(super) fn allows(protection: Protection, access: Access) -> bool {
    protection.bits() & access as u8 != 0 || is_load_of_code(protection, access)
}

#[cold]
fn is_load_of_code(protection: Protection, access: Access) -> bool {
    access == Access::Read && !protection.is_none() && !patched_branch!(branch::EXECUTE_ONLY)
}
