//! `mprotect`: what may be done with pages, changed for whole areas and in every entry.
//!
//! Where pages become writable, those that nobody else has are writable at once: the next store takes no fault. Shared
//! ones, and the page of zeros, stay read-only until a fault copies them.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Protection};
use granule_arch::tlbi::LevelHint;
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Cells, Mmu, PageRange, Tables};

use super::area::{Area, Spares};
use super::calls::user_range;
use super::entry::{attributes, replace};
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
        if !areas.covers(range) {
            return Err(Errno::ENOMEM);
        }
        let mut spares = Spares::take(&self.common.areas, areas.cuts(range))?;
        areas.isolate(range, &mut spares);
        let _told = self.notifiers.start(Range::new(Event::ProtectionVma, range.start(), range.end()));
        let mut stale = None;
        for area in areas.touching(range) {
            if area.protection() != protection
                && let Some(changed) = self.protect_pages(area, protection)
            {
                stale = Some(stale.map_or(changed, |stale: PageRange| stale.hull(changed)));
            }
        }
        if let Some(stale) = stale {
            self.tlb().flush_range(self.mmu(), stale, Tables::Kept, LevelHint::new(LAST_LEVEL));
        }
        areas.protect(range, protection);
        areas.merge(range, drop);
        Ok(())
    }

    /// Changes the entries of `area`; returns from the first to the last that was valid and changed.
    fn protect_pages(&self, area: &Area, protection: Protection) -> Option<PageRange> {
        let mut stale: Option<PageRange> = None;
        self.page_tables().for_each_cells(area.range(), |found| {
            let _locked = self.lock_table(found.table);
            if let Some(changed) = self.protect_cells(&found, protection, area.is_shared()) {
                stale = Some(stale.map_or(changed, |stale| stale.hull(changed)));
            }
        });
        stale
    }

    /// The same for entries of one table, whose lock is held.
    fn protect_cells(&self, found: &Cells<'_, Machine>, protection: Protection, is_shared: bool) -> Option<PageRange> {
        let mmu = self.mmu();
        let read_only = attributes(protection.without(Protection::WRITE));
        let writable = protection.contains(Protection::WRITE);
        let (mut first, mut end) = (usize::MAX, 0);
        for (index, cell) in found.cells.iter().enumerate() {
            let old = mmu.load(cell);
            if !old.is_present() {
                continue;
            }
            let own = writable && (is_shared || self.has_to_itself(old));
            let change = |entry: Descriptor| {
                let entry = entry.modified(read_only);
                if own { entry.writable() } else { entry }
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

    /// Whether nobody else has the frame of `entry`. The areas are locked for writing: nobody can get it meanwhile.
    #[inline(always)]
    fn has_to_itself(&self, entry: Descriptor) -> bool {
        !entry.is_special() && self.common.record(entry.address()).references() == 1
    }
}
