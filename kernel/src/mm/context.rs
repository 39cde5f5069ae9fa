//! The tables of EL0 that a thread runs under: all that the scheduler needs of a space.

#![allow(unsafe_code, reason = "a reference to an object whose type is not known here")]

use core::fmt;
use core::ptr::{NonNull, fn_addr_eq};

use granule_arch::addr::PhysAddr;

use super::asid::AsidSlot;

/// Drops a reference, of which this is the owner.
pub type Release = unsafe fn(NonNull<()>);

/// A reference to a space, for a thread. Dropping it drops the reference.
pub struct Context {
    root: PhysAddr,
    asid: NonNull<AsidSlot>,
    owner: NonNull<()>,
    release: Release,
}

// SAFETY: gives shared access alone, and `new` asks that the reference may be dropped anywhere.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The space with these tables and this ASID.
    ///
    /// # Safety
    /// `asid` and the table at `root` are there until `release` is called with `owner`, which may be done once, on any
    /// CPU.
    pub unsafe fn new(root: PhysAddr, asid: NonNull<AsidSlot>, owner: NonNull<()>, release: Release) -> Self {
        Self { root, asid, owner, release }
    }

    /// The root table, for TTBR0_EL1.
    #[inline(always)]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// Its ASID.
    #[inline(always)]
    pub const fn asid(&self) -> &AsidSlot {
        // SAFETY: it is there while this is, as `new` was promised.
        unsafe { self.asid.as_ref() }
    }

    /// The owner, if `release` is the function that drops its reference.
    pub fn owner_of(&self, release: Release) -> Option<NonNull<()>> {
        fn_addr_eq(self.release, release).then_some(self.owner)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the one call, as `new` was promised.
        unsafe { (self.release)(self.owner) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.root)
    }
}
