//! Locked memory: pages that are brought and then stay (`mlock`). There is no limit: every program may lock.

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;

use super::access::Access;
use super::address_space::{LOCKED_AREAS, REGISTERS, SEALED_AREAS, Space, USERFAULTFDS};
use super::advise::too_little_memory;
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::error::SpaceError;
use super::gather::StaleRange;
use super::populate::first_access;
use super::range::{USER_END, USER_START, clamped_range, pages, user_range};
use crate::sched::relax;
use crate::smp::Cpu;

/// Whether pages are locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locking {
    /// No (`munlock`).
    None,
    /// Yes, and they are brought at once.
    Now,
    /// Yes, once they are there (`MLOCK_ONFAULT`).
    OnFault,
}

impl Locking {
    /// The flags of an area that is locked so.
    pub(super) const fn flags(self) -> AreaFlags {
        match self {
            Self::None => AreaFlags::NONE,
            Self::Now => AreaFlags::LOCKED,
            Self::OnFault => AreaFlags::LOCKING,
        }
    }

    /// The flags of `area` when it is locked so.
    fn of(self, area: &Area) -> AreaFlags {
        if area.is_of_device() || area.is_droppable() {
            return area.flags();
        }
        area.flags().without(AreaFlags::LOCKING).with(self.flags())
    }
}

impl Area {
    /// How it is locked.
    pub(super) fn locking(&self) -> Locking {
        match (self.flags().has_any(AreaFlags::LOCKED), self.flags().has_any(AreaFlags::LOCKED_ON_FAULT)) {
            (false, _) => Locking::None,
            (true, false) => Locking::Now,
            (true, true) => Locking::OnFault,
        }
    }
}

/// The areas that are passed over where a page cannot be brought.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    Registers,
    All,
}

impl Passed {
    /// Where `area` ends, if it is one of them.
    fn end_of(self, area: &Area) -> Option<VirtAddr> {
        (self == Self::All || area.is_of_device()).then(|| area.end())
    }
}

/// Whether its pages are its own when they are written, and locked at once.
fn is_own_and_locked(area: &Area) -> bool {
    area.locking() == Locking::Now && !area.is_shared()
}

impl Space {
    /// Locks the pages of the `bytes` bytes from `start` on, or unlocks them, up to the first that is not mapped; those that
    /// are locked [now](Locking::Now) are brought.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range), [`SpaceError::NoMemory`] (a part is not
    /// mapped, too many areas, no memory, or a page that cannot be brought), [`SpaceError::Interrupted`] (by `is_killed`).
    pub fn mlock(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        locking: Locking,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        self.note_locking(locking);
        let change = |areas: &mut Areas| {
            let until = areas.covered_until(range);
            if until == range.start() {
                return Err(SpaceError::NoMemory.into());
            }
            let covered = pages(range.start(), until);
            let changed = self.change_flags(cpu, areas, covered, |area| Ok(locking.of(area)));
            changed.map(|_| until).map_err(too_little_memory)
        };
        let (areas, until) = self.change_areas(self.write_areas(range), change)?;
        drop(areas);
        if until < range.end() || !in_space {
            return Err(SpaceError::NoMemory);
        }
        if locking == Locking::Now { self.bring(cpu, range, Passed::Registers, is_killed) } else { Ok(()) }
    }

    /// Brings the pages of `range`, each as by the access that takes a page of its area's own. Pages that another
    /// thread has unmapped since are passed over, as by Linux's `__mm_populate`, and so is an area that is `passed`
    /// over from the page on that cannot be brought.
    pub(super) fn bring(
        &self,
        cpu: &Cpu,
        range: PageRange,
        passed: Passed,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), SpaceError> {
        let mut next = range.start();
        while let Some(part) = self.first_from(next).filter(|part| part.start() < range.end()) {
            let part = pages(part.start(), part.end().min(range.end()));
            next = match self.populate_as(cpu, part, &first_access, is_killed) {
                Ok(()) => part.end(),
                Err((_, SpaceError::Interrupted)) => return Err(SpaceError::Interrupted),
                Err((page, _)) => match self.with_area(page, |area| passed.end_of(area)) {
                    None => page,
                    Some(end) => end.ok_or(SpaceError::NoMemory)?,
                },
            };
            relax();
        }
        Ok(())
    }

    /// Locks or unlocks all areas (`mlockall` with `MCL_CURRENT`, `munlockall`). Failing to bring a page is no error.
    pub fn mlock_all(&self, cpu: &Cpu, locking: Locking, is_killed: &dyn Fn() -> bool) {
        self.note_locking(locking);
        let all = pages(USER_START, USER_END);
        let change = |areas: &mut Areas| self.change_flags(cpu, areas, all, |area| Ok(locking.of(area)));
        // Whole areas are not cut, so nothing is refused.
        drop(self.change_areas(self.write_all_areas(), change));
        if locking == Locking::Now {
            // An error is that the program ends.
            let _ = self.bring(cpu, all, Passed::All, is_killed);
        }
    }

    /// Populates pages of locked areas or of [`Populate::Now`](super::Populate::Now), where that is a step of its own:
    /// after an `mremap` that has made an area longer, and after a shortage of memory. Waits for a pager where that
    /// serves them. Nothing is populated that cannot fit. `is_killed` is as for [`Self::mmap_within`].
    pub fn populate_again(&self, cpu: &Cpu, start: VirtAddr, bytes: u64, is_killed: &dyn Fn() -> bool) {
        let fits = |range: &PageRange| range.pages() <= self.common.frames.total();
        if let Some(range) = user_range(start, bytes).filter(fits) {
            // As above.
            let _ = self.bring(cpu, range, Passed::All, is_killed);
        }
    }

    /// The pages of the first area from `start` on, as far as they are in one part.
    fn first_from(&self, start: VirtAddr) -> Option<PageRange> {
        let mut found = None;
        if start < USER_END {
            self.areas.for_each(pages(start, USER_END), &mut |areas, piece| {
                found = areas.first_touching(piece).map(|area| area.part_in(piece));
                found.is_none()
            });
        }
        found
    }

    /// Of the `bytes` bytes from `start` on, from the first to the last, the pages of locked areas that are private and may
    /// not be written: a call that permits stores [brings](Self::bring_written) them.
    #[inline(always)]
    pub fn locked_without_writes(&self, start: VirtAddr, bytes: u64) -> Option<PageRange> {
        if self.may_be_locked() { self.find_locked_without_writes(start, bytes) } else { None }
    }

    #[cold]
    #[inline(never)]
    fn find_locked_without_writes(&self, start: VirtAddr, bytes: u64) -> Option<PageRange> {
        let (range, mut found) = (user_range(start, bytes)?, StaleRange::NONE);
        self.areas.for_each(range, &mut |areas, piece| {
            let is_one = |area: &&Area| is_own_and_locked(area) && !area.protection().contains(Protection::WRITE);
            areas.walk(piece).filter(is_one).map(|area| area.part_in(piece)).for_each(|part| {
                found.note(part.start(), part.end());
            });
            true
        });
        found.range()
    }

    /// Brings the pages of `range` that may be written now, of locked private areas, each as by a store. A page that
    /// cannot be brought is no error.
    #[cold]
    pub fn bring_written(&self, cpu: &Cpu, range: PageRange, is_killed: &dyn Fn() -> bool) {
        let mut next = range.start();
        while next < range.end() && !is_killed() {
            let found = self.with_area(next, |area| {
                let part = area.part_in(pages(next, range.end()));
                (part.end(), is_own_and_locked(area) && area.protection().contains(Protection::WRITE))
            });
            let (until, is_brought) = found.unwrap_or((next + PAGE, false));
            let all = pages(next, until);
            next = match is_brought.then(|| self.populate_as(cpu, all, &|_| Access::Write, is_killed)) {
                Some(Err((page, _))) => page + PAGE,
                None | Some(Ok(())) => until,
            };
            relax();
        }
    }

    /// How areas that come are locked (`mlockall` with `MCL_FUTURE`).
    pub fn set_future_locking(&self, locking: Locking) {
        self.future_locking.store(locking as u8, Ordering::Relaxed);
    }

    /// How an area that comes is locked, if its request asks for that, or else.
    pub fn locking_of_new(&self, is_asked: bool) -> Locking {
        const ON_FAULT: u8 = Locking::OnFault as u8;
        match self.future_locking.load(Ordering::Relaxed) {
            ON_FAULT => Locking::OnFault,
            future if is_asked || future != Locking::None as u8 => Locking::Now,
            _ => Locking::None,
        }
    }

    /// Whether there may be locked pages.
    #[inline(always)]
    pub(super) fn may_be_locked(&self) -> bool {
        self.hints.load(Ordering::Relaxed) & LOCKED_AREAS != 0
    }

    /// Whether there may be pages that a discard must leave.
    #[inline(always)]
    pub(super) fn keeps_pages(&self) -> bool {
        self.hints.load(Ordering::Relaxed) & (LOCKED_AREAS | REGISTERS | SEALED_AREAS) != 0
    }

    /// Whether there may be pages that a discard must leave, or a pager that gets an event of it.
    #[inline(always)]
    pub(super) fn minds_discards(&self) -> bool {
        self.hints.load(Ordering::Relaxed) & (LOCKED_AREAS | REGISTERS | SEALED_AREAS | USERFAULTFDS) != 0
    }

    /// Called before the first of its areas is locked.
    #[cold]
    pub(super) fn note_locking(&self, locking: Locking) {
        if locking != Locking::None {
            self.hints.fetch_or(LOCKED_AREAS, Ordering::Relaxed);
        }
    }
}
