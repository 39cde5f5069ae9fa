//! `fork`: a second space with the same pages, which both may only read until one of them writes.
//!
//! First everything that can run out is taken: the child's areas, and a table for each of the parent's that has private
//! pages. Then the entries are copied, which cannot fail. The parent's lock is held alone: no fault comes between a
//! page becoming read-only and the invalidation that makes every CPU see it.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Mmu, PageRange};

use super::area::Area;
use super::entry::{EntryState, replace, state, unwritable};
use super::gather::pages;
use super::used::{for_each_used, note_all_used};
use super::{EntryCell, Space, SpaceError, SpaceRef, TableCells, USER_END};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::sched::relax;
use crate::smp::Cpu;

impl Space {
    /// A second space with the same areas and pages: shared ones are shared, private ones are copied at the first
    /// write.
    ///
    /// # Errors
    /// [`SpaceError::NoMemory`]; nothing stays taken.
    pub fn fork(&self, cpu: &Cpu) -> Result<SpaceRef, SpaceError> {
        let child = self.common.create(cpu)?;
        let areas = self.areas.write();
        let memory = self.memory();
        // As on Linux: areas that were made one by merging may be larger together than all memory.
        if areas.total() > memory && areas.iter().any(|area| area.is_data_beyond(memory)) {
            return Err(SpaceError::NoMemory);
        }
        let mut runs = PrivateRuns::NONE;
        child.areas.write().copy_all(&areas, &self.common.areas, |area| {
            relax();
            runs.add(area).map_or(Ok(()), |run| self.prepare_tables(cpu, &child, run))
        })?;
        let Some((range, last)) = runs.end() else { return Ok(child) };
        self.prepare_tables(cpu, &child, last)?;
        let _change = self.notifiers.start(Range::new(Event::ProtectionPage, range.start(), range.end()));
        let mut protected = false;
        let mut copy = |run| {
            self.page_tables().for_each_cells(run, |found| {
                protected |= self.copy_entries(&child, &found);
                relax();
            });
        };
        let mut runs = PrivateRuns::NONE;
        areas.iter().filter_map(|area| runs.add(area)).for_each(&mut copy);
        copy(last);
        if protected {
            // Most of the space: one operation, and not one for each page.
            self.tlb().flush_space(self.mmu());
        }
        Ok(child)
    }

    /// Links a table in `child` for each of this space's for `range`: it is there because it was used.
    fn prepare_tables(&self, cpu: &Cpu, child: &Space, range: PageRange) -> Result<(), OutOfMemory> {
        let mut result = Ok(());
        self.page_tables().for_each_cells(range, |found| {
            if result.is_ok() && child.page_tables().cell(found.start).is_none() {
                result = child.ensure_table(cpu, found.start);
                relax();
            }
        });
        result
    }

    /// Copies the entries of `found` to the same place in `child`; whether one of this space's that was writable is not
    /// any more.
    fn copy_entries(&self, child: &Space, found: &TableCells<'_>) -> bool {
        let mut protected = false;
        let locked = self.lock_table(found.table);
        let used = locked.used(self.mmu(), found);
        let copies = child.page_tables().cells(found.start, found.cells.len()).expect("a table that was linked before");
        // No other thread has the child's tables yet: they need no lock.
        note_all_used(self.common.record(copies.table), used);
        for_each_used(found, used, |places| {
            for (cell, copy) in found.cells[places.clone()].iter().zip(&copies.cells[places]) {
                protected |= self.copy_entry(cell, copy);
            }
        });
        protected
    }

    /// Copies the entry in `cell`; whether it was writable and is not any more.
    #[inline(always)]
    fn copy_entry(&self, cell: &EntryCell, copy: &EntryCell) -> bool {
        let mmu = self.mmu();
        let mut entry = mmu.load(cell);
        match state(entry) {
            EntryState::Page | EntryState::Inaccessible => {}
            EntryState::Empty => return false,
            // What is remembered of a page that is not there holds no frame.
            EntryState::Marker(_) | EntryState::Migration(_) | EntryState::Damaged => {
                let unwritable = unwritable(entry, false);
                if unwritable != entry {
                    mmu.store(cell, unwritable);
                }
                mmu.store(copy, unwritable);
                return false;
            }
        }
        let protected = entry.may_be_written();
        if protected {
            entry = replace(mmu, cell, entry, Descriptor::write_protected).write_protected();
        }
        if !entry.is_special() {
            self.common.record(entry.address()).share();
        }
        mmu.store(copy, entry.old());
        protected
    }
}

/// The areas whose pages a child gets copies of, neighbours together: they have tables in common. The pages of others
/// it finds in their objects.
struct PrivateRuns {
    /// Where the first one starts; the end of all addresses before there is one.
    first: VirtAddr,
    /// The one that the next area may go on.
    last: Option<(VirtAddr, VirtAddr)>,
}

impl PrivateRuns {
    /// No area has been added.
    const NONE: Self = Self { first: USER_END, last: None };

    /// Adds the next area by address; returns the run before it, if it begins another one.
    #[inline]
    fn add(&mut self, area: &Area) -> Option<PageRange> {
        if area.is_shared() {
            return None;
        }
        let (start, ended) = match self.last {
            Some((start, end)) if end == area.start() => (start, None),
            last => (area.start(), last),
        };
        self.first = self.first.min(start);
        self.last = Some((start, area.end()));
        ended.map(|(start, end)| pages(start, end))
    }

    /// From the first one's start to the last one's end, and the last one; `None` where there is none.
    fn end(self) -> Option<(PageRange, PageRange)> {
        self.last.map(|(start, end)| (pages(self.first, end), pages(start, end)))
    }
}
