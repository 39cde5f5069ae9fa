//! `mprotect`: what may be done with pages, changed for whole areas and in every entry.
//!
//! Where pages become writable, those that nobody else has are writable at once: the next store takes no fault. Shared
//! ones, and the page of zeros, stay read-only until a fault copies them.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_arch::tlbi::LevelHint;
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Cells, Mmu, PageRange, Tables};

use super::area::{Areas, Spares};
use super::calls::user_range;
use super::entry::{attributes, is_settled, replace};
use super::gather::pages;
use super::{Machine, PAGE, Space};
use crate::errno::Errno;
use crate::mm::notifier::{Event, Range};

impl Space {
    /// Gives the pages of the `bytes` bytes from `start` on another protection.
    ///
    /// # Errors
    /// `EINVAL` (an address that is no page's), `ENOMEM` (a part is not mapped, or there is no memory to cut areas).
    /// Nothing was changed.
    pub fn mprotect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), Errno> {
        if !start.is_aligned(PAGE) {
            return Err(Errno::EINVAL);
        }
        if bytes == 0 {
            return Ok(());
        }
        let range = user_range(start, bytes).ok_or(Errno::ENOMEM)?;
        let mut areas = self.areas.write();
        let Some(held) = areas.holding(range) else { return self.protect_several(&mut areas, range, protection) };
        if held.protection() == protection {
            return Ok(());
        }
        let cuts = usize::from(held.start() < range.start()) + usize::from(range.end() < held.end());
        let mut spares = Spares::take(&self.common.areas, &areas, cuts)?;
        {
            let _told = self.notifiers.start(Range::new(Event::ProtectionVma, range.start(), range.end()));
            let stale = self.protect_pages(range, protection, held.is_shared());
            self.flush(stale);
        }
        let area = areas.protect_held(held, range, protection, &mut spares);
        areas.merge_held(area, drop);
        Ok(())
    }

    /// The same where the range is not in one area.
    fn protect_several(&self, areas: &mut Areas, range: PageRange, protection: Protection) -> Result<(), Errno> {
        if !areas.covers(range) {
            return Err(Errno::ENOMEM);
        }
        let mut spares = Spares::take(&self.common.areas, areas, areas.cuts(range))?;
        areas.isolate(range, &mut spares);
        {
            let _told = self.notifiers.start(Range::new(Event::ProtectionVma, range.start(), range.end()));
            let mut stale = None;
            for area in areas.touching(range).filter(|area| area.protection() != protection) {
                stale = hull(stale, self.protect_pages(area.range(), protection, area.is_shared()));
            }
            self.flush(stale);
        }
        areas.protect(range, protection);
        areas.merge(range, drop);
        Ok(())
    }

    /// Invalidates entries that were valid and changed.
    fn flush(&self, stale: Option<PageRange>) {
        if let Some(stale) = stale {
            self.tlb().flush_range(self.mmu(), stale, Tables::Kept, LevelHint::new(LAST_LEVEL));
        }
    }

    /// Changes the entries of `range`; returns from the first to the last that was valid and changed.
    #[inline]
    fn protect_pages(&self, range: PageRange, protection: Protection, is_shared: bool) -> Option<PageRange> {
        let mut stale: Option<PageRange> = None;
        self.page_tables().for_each_cells(range, |found| {
            let _locked = self.lock_table(found.table);
            stale = hull(stale, self.protect_cells(&found, protection, is_shared));
        });
        stale
    }

    /// The same for entries of one table, whose lock is held.
    fn protect_cells(&self, found: &Cells<'_, Machine>, protection: Protection, is_shared: bool) -> Option<PageRange> {
        let mmu = self.mmu();
        let read_only = attributes(protection.without(Protection::WRITE));
        let writable = protection.contains(Protection::WRITE);
        let survey = mmu.survey(found.cells);
        if survey.any == Descriptor::EMPTY.0 {
            return None;
        }
        // Nearly always they are alike, in all but their addresses.
        if let Some(from) = survey.common(!bits::ADDRESS).map(Descriptor).filter(|&from| is_alike(from)) {
            let to = from.modified(read_only);
            let changed = if !writable || is_shared {
                let to = if writable { may_be_written(to) } else { to };
                self.flip(found, from, to)
            } else {
                self.flip_own(found, from, [to, may_be_written(to)])
            };
            let whole = || pages(found.start, found.address(found.cells.len()));
            return (changed && from.is_valid()).then(whole);
        }
        let (mut first, mut end) = (usize::MAX, 0);
        for (index, cell) in found.cells.iter().enumerate() {
            let old = mmu.load(cell);
            if !old.is_present() {
                continue;
            }
            let own = writable && (is_shared || self.has_to_itself(old));
            let change = |entry: Descriptor| {
                let entry = entry.modified(read_only);
                if own { may_be_written(entry) } else { entry }
            };
            if change(old) == old {
                continue;
            }
            if change(old).is_user_executable() {
                self.make_code_visible(old);
            }
            replace(mmu, cell, old, change);
            if old.is_valid() {
                first = first.min(index);
                end = index + 1;
            }
        }
        (first < end).then(|| pages(found.address(first), found.address(end)))
    }

    /// Changes entries that are alike from one thing to another; whether that is a change.
    fn flip(&self, found: &Cells<'_, Machine>, from: Descriptor, to: Descriptor) -> bool {
        if to.is_user_executable() && !from.is_user_executable() {
            found.cells.iter().for_each(|cell| self.make_code_visible(self.mmu().load(cell)));
        }
        if from != to {
            self.mmu().update_run(found.cells, from.0 ^ to.0);
        }
        from != to
    }

    /// The same for entries that become one thing where the frame is shared, and another where it is not.
    fn flip_own(&self, found: &Cells<'_, Machine>, from: Descriptor, to: [Descriptor; 2]) -> bool {
        let mmu = self.mmu();
        if to[0].is_user_executable() && !from.is_user_executable() {
            found.cells.iter().for_each(|cell| self.make_code_visible(mmu.load(cell)));
        }
        let flips = to.map(|to| from.0 ^ to.0);
        for cell in found.cells {
            let entry = mmu.load(cell);
            let own = self.common.record(entry.address()).references() == 1;
            mmu.store(cell, Descriptor(entry.0 ^ flips[usize::from(own)]));
        }
        true
    }

    /// Whether nobody else has the frame of `entry`. The areas are locked for writing: nobody can get it meanwhile.
    #[inline(always)]
    fn has_to_itself(&self, entry: Descriptor) -> bool {
        !entry.is_special() && self.common.record(entry.address()).references() == 1
    }
}

/// Whether entries with these bits may be changed together: pages that the hardware leaves alone, with frames that are
/// counted.
const fn is_alike(entry: Descriptor) -> bool {
    entry.is_present() && is_settled(entry) && !entry.is_special()
}

/// The same page, which may be written, unless userfaultfd watches it: then the first store is a fault.
#[inline(always)]
const fn may_be_written(entry: Descriptor) -> Descriptor {
    if entry.is_uffd_wp() { entry } else { entry.writable() }
}

/// The smallest range that holds both.
#[inline(always)]
fn hull(one: Option<PageRange>, other: Option<PageRange>) -> Option<PageRange> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.hull(other)),
        (one, other) => one.or(other),
    }
}
