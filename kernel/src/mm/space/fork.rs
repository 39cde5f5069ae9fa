//! `fork`: a second space with the same pages, read-only in both until one of them writes.
//!
//! First everything that can fail is done: copies of the areas, and a table for each of the parent's that has private
//! pages. Then the entries are copied, which cannot fail. The parent's areas are locked for writing: no fault is served
//! between the change that makes a page read-only and its invalidation on every CPU.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{CellsOrBlock, Mmu, PageRange, Stores, Visited};

use super::address_space::{Made, Space, SpaceRef};
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::cells::{EntryCell, TableCells};
use super::entry::{EntryState, inherited, replace, rest_of_stale, state, unwritable};
use super::error::SpaceError;
use super::range::{USER_END, USER_START, pages};
use super::spaces::HeldRecords;
use super::used::{for_each_used, note_all_used};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::sched::relax;
use crate::smp::Cpu;

/// Areas that are visited without a scheduling point.
const AREAS: usize = 64;
/// Areas that are copied without one.
const COPIES: usize = 16;
/// Runs of private areas that are not looked for twice: most programs have no more.
const RUNS: usize = 8;

impl Space {
    /// A second space with the same areas, pages and heap: shared pages are shared, private ones are copied at the first
    /// write. Sleeps until the events of it are read; no lock is held then.
    ///
    /// # Errors
    /// [`SpaceError::NoMemory`]; nothing stays allocated.
    pub fn fork(&self, cpu: &Cpu) -> Result<SpaceRef, SpaceError> {
        let (child, heap) = {
            // Locked over both, so that the heap's end matches the areas.
            let heap = self.heap().read();
            (self.copy_to_child(cpu)?, *heap)
        };
        *child.heap().write() = heap;
        child.set_trampoline(self.trampoline());
        child.inherit(self, Made::ByFork);
        if self.has_userfaultfds() {
            self.announce_fork(&child);
        }
        Ok(child)
    }

    /// The part of a fork with the areas locked.
    #[inline(always)]
    fn copy_to_child(&self, cpu: &Cpu) -> Result<SpaceRef, SpaceError> {
        let child = self.common.create_in(cpu, self.family)?;
        let areas = self.write_areas_at_rest();
        let memory = self.memory();
        // As on Linux. Areas that were joined may be larger together than all memory.
        let is_copied_beyond =
            |area: &Area| !area.flags().has_any(AreaFlags::NOT_IN_CHILDREN) && area.is_data_beyond(memory);
        if areas.total > memory && areas.walk(pages(USER_START, USER_END)).any(is_copied_beyond) {
            return Err(SpaceError::NoMemory);
        }
        let mut runs = PrivateRuns::NONE;
        let (mut before_last, mut left) = (heapless::Vec::<PageRange, RUNS>::new(), COPIES);
        let mut are_all = true;
        child.write_all_areas().copy_all(&areas, cpu, &child, &self.common.areas, |area| {
            left -= 1;
            if left == 0 {
                relax();
                left = COPIES;
            }
            let Some(run) = runs.add(area) else { return Ok(()) };
            are_all &= before_last.push(run).is_ok();
            self.prepare_tables(cpu, &child, run)
        })?;
        if self.is_advised() {
            self.advise_child(cpu, &areas, &child)?;
        }
        let Some((range, last)) = runs.end() else { return Ok(child) };
        self.prepare_tables(cpu, &child, last)?;
        let _change = self.notifiers.start(Range::new(Event::ProtectionPage, range.start(), range.end()));
        let mut protected = false;
        let mut copy = |run| {
            let mut walk = self.page_tables().walk_cells(run);
            while let Some(found) = walk.next_cells(|at| {
                relax();
                protected |= self.copy_block_entry(&child, at);
                Visited::Done
            }) {
                protected |= self.copy_entries(&child, &found);
                relax();
            }
        };
        if are_all {
            before_last.into_iter().for_each(&mut copy);
        } else {
            PrivateRuns::for_each_before_last(&areas, &mut copy);
        }
        copy(last);
        if protected {
            // Most of the space: one operation, instead of one for each page.
            self.tlb().flush_space(self.mmu());
        }
        if self.has_userfaultfds() {
            child.unprotect_copies(&areas);
        }
        Ok(child)
    }

    /// Links a table in `child` for each of this space's for `range`: they are in use.
    #[inline(always)]
    fn prepare_tables(&self, cpu: &Cpu, child: &Space, range: PageRange) -> Result<(), OutOfMemory> {
        let mut walk = self.page_tables().walk_cells(range);
        while let Some(met) = walk.next() {
            let start = match met {
                CellsOrBlock::Cells(found) => found.start,
                CellsOrBlock::Block(at) => match self.split_part(range, at) {
                    // The table is deposited for the block's copy.
                    Visited::Done => at,
                    Visited::Again => {
                        // The child was perhaps advised before.
                        child.note_groups();
                        walk.go_on(at, Visited::Again);
                        continue;
                    }
                },
            };
            child.ensure_table(cpu, start)?;
            relax();
        }
        Ok(())
    }

    /// Copies the entries of `found` to the same place in `child`; returns whether a writable one of this space became
    /// read-only.
    fn copy_entries(&self, child: &Space, found: &TableCells<'_>) -> bool {
        let mut protected = false;
        let locked = self.lock_table(found.table);
        let used = locked.used(self.mmu(), found);
        let copies = child.page_tables().cells(found.start, found.cells.len()).expect("a table that was linked before");
        let records = self.common.records();
        // No lock: no thread runs in the child yet, and a migration, which comes to the parent first, waits for its
        // areas.
        note_all_used(self.common.record(copies.table), used);
        for_each_used(found, used, |places| {
            for (cell, copy) in found.cells[places.clone()].iter().zip(&copies.cells[places]) {
                self.copy_entry(cell, copy, records, &mut protected);
            }
        });
        protected
    }

    /// Copies the entry in `cell`, whose frame has one of the `records`; sets `protected` if it was writable and became
    /// read-only. Not the result: most entries of a program are read-only already, and need not be counted.
    ///
    /// `kernel/loom` has its own in `src/mm/table.rs`, since one that both compile costs a fork five instructions.
    #[inline(always)]
    fn copy_entry(&self, cell: &EntryCell, copy: &EntryCell, records: HeldRecords, protected: &mut bool) {
        let mmu = self.mmu();
        let mut entry = mmu.load(cell);
        match state(entry) {
            EntryState::Page | EntryState::Inaccessible => {}
            EntryState::Empty => return,
            // No TLB has what the child never had.
            EntryState::Stale => {
                mmu.store(copy, inherited(rest_of_stale(entry)));
                return;
            }
            // An entry that is not present holds no frame.
            EntryState::Marker(_) | EntryState::Migration | EntryState::Damaged => {
                let unwritable = unwritable(entry, false);
                if unwritable != entry {
                    mmu.store(cell, unwritable);
                }
                mmu.store(copy, inherited(unwritable));
                return;
            }
        }
        if entry.may_be_written() {
            *protected = true;
            entry = replace(mmu, cell, entry, Descriptor::write_protected).write_protected();
        }
        if !entry.is_special() {
            records.of(entry.address()).share();
        }
        mmu.store(copy, entry.old());
    }
}

/// The private areas, whose pages a child gets copies of; neighbours together, since they have tables in common. Shared
/// pages are found in their objects.
///
/// A walk by a reverse map may empty entries concurrently: the child's area is in it before the first entry is copied,
/// and after the one that it is a copy of. So the walk meets what it has not met there.
struct PrivateRuns {
    /// The start of the first run; the end of all addresses before there is one.
    first: VirtAddr,
    /// The run that the next area may extend.
    last: Option<(VirtAddr, VirtAddr)>,
}

/// Areas whose pages a child gets no copies of.
const NOT_COPIED: AreaFlags = AreaFlags::SHARED.with(AreaFlags::NOT_IN_CHILDREN).with(AreaFlags::ZEROS_IN_CHILDREN);

impl PrivateRuns {
    /// No areas.
    const NONE: Self = Self { first: USER_END, last: None };

    /// Adds the next area by address; returns the run before it, if the area begins another one.
    #[inline]
    fn add(&mut self, area: &Area) -> Option<PageRange> {
        if area.flags().has_any(NOT_COPIED) {
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

    /// Calls `each` with every run of `areas` but the last.
    #[cold]
    #[inline(never)]
    fn for_each_before_last(areas: &Areas, each: &mut dyn FnMut(PageRange)) {
        let (mut runs, mut left) = (Self::NONE, AREAS);
        for area in areas.iter() {
            if let Some(run) = runs.add(area) {
                each(run);
            }
            left -= 1;
            if left == 0 {
                relax();
                left = AREAS;
            }
        }
    }

    /// From the start of the first run to the end of the last, and the last run; `None` where there is none.
    fn end(self) -> Option<(PageRange, PageRange)> {
        self.last.map(|(start, end)| (pages(self.first, end), pages(start, end)))
    }
}
