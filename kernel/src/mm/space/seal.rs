//! Sealed areas (`mseal`): what is mapped there, and with which protection, stays until the program ends.
//!
//! | call | of a sealed area |
//! |---|---|
//! | `munmap`, `brk` down, a mapping over it | refused, with nothing unmapped |
//! | `mremap` of it, or over it | refused; areas below have moved, and a target of its own is free by then, as on Linux |
//! | `mprotect`, to what it has already too | refused; the areas below have changed |
//! | advice that loses contents | refused where a store could not lose them: [`Area::check_discard`] |
//! | all else: locks, `userfaultfd`, other advice, growth of a stack, fork | as of any other; a child's is sealed too |
//!
//! An unmapping is refused where its events are collected, before it changes anything: both are rare, and one hint
//! ([`Space::minds_unmapping`]) says that there may be either.

use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;

use super::address_space::{SEALED_AREAS, Space, USERFAULTFDS};
use super::advise::too_little_memory;
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::error::SpaceError;
use super::range::clamped_range;
use crate::smp::Cpu;

impl Space {
    /// Seals the `bytes` bytes from `start` on. Nothing takes a seal away.
    ///
    /// Sleeps: not from interrupts. Source: Linux, Documentation/userspace-api/mseal.rst.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range), [`SpaceError::NoMemory`] (a part is not
    /// mapped; nothing was changed. Or too many areas, or no memory for records: those below are sealed).
    pub fn mseal(&self, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        if !in_space {
            return Err(SpaceError::NoMemory);
        }
        self.change_areas(self.write_areas(range), |areas| {
            if !areas.covers(range) {
                return Err(SpaceError::NoMemory.into());
            }
            // Before the first seal: a call that one refuses reads it under the lock of the areas, after this.
            self.hints.fetch_or(SEALED_AREAS, Ordering::Relaxed);
            let sealed = |area: &Area| Ok(area.flags().with(AreaFlags::SEALED));
            self.change_flags(cpu, areas, range, sealed).map_err(too_little_memory)
        })
        .map(drop)
    }

    /// Whether an unmapping may be refused by a seal, or be an event for a pager.
    #[inline(always)]
    pub(super) fn minds_unmapping(&self) -> bool {
        self.hints.load(Ordering::Relaxed) & (SEALED_AREAS | USERFAULTFDS) != 0
    }
}

impl Area {
    /// Whether its mapping and its protection stay.
    #[inline(always)]
    pub(super) fn is_sealed(&self) -> bool {
        self.flags().has_any(AreaFlags::SEALED)
    }

    /// Whether advice may lose its contents: those of a sealed area only where the program could store others, or they
    /// are a file's (Linux's `can_madvise_modify`).
    ///
    /// # Errors
    /// [`SpaceError::NotPermitted`].
    pub(super) fn check_discard(&self) -> Result<(), SpaceError> {
        let is_kept = self.is_sealed() && self.object().is_none() && !self.protection().contains(Protection::WRITE);
        if is_kept { Err(SpaceError::NotPermitted) } else { Ok(()) }
    }
}

/// Fails where `areas` have a sealed one in `range`.
///
/// # Errors
/// [`SpaceError::NotPermitted`].
pub(super) fn check_unmapping(areas: &Areas, range: PageRange) -> Result<(), SpaceError> {
    let is_sealed = areas.walk(range).any(Area::is_sealed);
    if is_sealed { Err(SpaceError::NotPermitted) } else { Ok(()) }
}
