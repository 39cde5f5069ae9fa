//! Pages that a pager moves (`UFFDIO_MOVE`): their frames go to other addresses of the space, and no byte is copied.
//!
//! Both areas are of private anonymous memory, and alike, so an entry means the same in both. They are locked for
//! reading: faults go on, and other threads use the pages. A run of pages moves with the tables of both places locked:
//!
//! ```text
//!   a thread                                     the pager
//!                                                  lock both tables
//!     stores by what its TLB has                   make the entries of the run inaccessible
//!                                                  invalidate them, in CPUs and in devices
//!     faults at the source, waits for the lock     move each to its new place, where it is valid
//!                                                  unlock
//!     finds the source empty
//! ```
//! So no store by an old translation comes after an access at the new place, and under the locks a page is in one place.
//!
//! A page moves only if the space has it to itself, as for a store without a copy ([`cow`](super::super::cow)). Groups
//! and blocks move as pages. At its new place a page has the attributes of a written page there, without
//! userfaultfd's mark; the page of zeros stays one.

use core::sync::atomic::{Ordering, fence};

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{Mmu, PageRange, Stores};

use super::super::address_space::Space;
use super::super::area::tree::Areas;
use super::super::area::{Area, AreaFlags};
use super::super::cells::{EntryCell, TableCells};
use super::super::entry::{EntryState, attributes, read_only_attributes, replace, state};
use super::super::gather::StaleRange;
use super::super::parts::Divisible as _;
use super::super::range::pages;
use super::super::used::{bits_of, note_all_used};
use super::{FillError, UserfaultError, Userfaultfd, range_of_call};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::{self, ReadGuard, relax};
use crate::smp::Cpu;

/// The treatment of pages that are not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holes {
    /// The call ends.
    Refused,
    /// Nothing is moved for them (`UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES`).
    Skipped,
}

/// Pages that are to move.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Where they go.
    pub to: VirtAddr,
    /// Where they are.
    pub from: VirtAddr,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are not there.
    pub holes: Holes,
}

/// The reason for a page to stay.
enum Unmoved {
    Error(FillError),
    /// It is on its way to another frame: it is tried again then.
    OnItsWay,
}

impl From<FillError> for Unmoved {
    fn from(error: FillError) -> Self {
        Self::Error(error)
    }
}

impl From<OutOfMemory> for Unmoved {
    fn from(error: OutOfMemory) -> Self {
        Self::Error(error.into())
    }
}

impl Userfaultfd {
    /// Whether it serves the faults of `space`.
    pub fn is_of(&self, space: &Space) -> bool {
        self.space.is_of(space)
    }

    /// Moves pages of `own`, the space of this and of the caller, in order; returns how many bytes have moved, holes
    /// included, and the reason why not all. Wakes nothing. `cpu` is the CPU that this runs on. Sleeps.
    #[cold]
    #[inline(never)]
    pub fn transfer(&self, cpu: &Cpu, own: &Space, transfer: &Transfer) -> (u64, Result<(), FillError>) {
        let mut done = 0;
        let result = self.transfer_pages(cpu, own, transfer, &mut done);
        (done, result)
    }

    fn transfer_pages(&self, cpu: &Cpu, own: &Space, transfer: &Transfer, done: &mut u64) -> Result<(), FillError> {
        debug_assert!(self.is_of(own), "pages of another space");
        let range = |start| range_of_call(start, transfer.bytes).ok_or(UserfaultError::Invalid);
        let (to, from) = (range(transfer.to)?, range(transfer.from)?);
        let mut has_waited = false;
        while *done < transfer.bytes {
            if (*done != 0 || has_waited) && sched::is_killed() {
                return Err(FillError::Interrupted);
            }
            let [to, from] = [to, from].map(|range| pages(range.start() + *done, range.end()));
            let moved = {
                let areas = own.read_areas_of_both(to.start(), from.start());
                let area = self.check_areas(&areas, to, from)?;
                own.move_run(cpu, area, to, from, transfer.holes)
            };
            match moved {
                Ok(bytes) => *done += bytes,
                Err(Unmoved::Error(error)) => return Err(error),
                Err(Unmoved::OnItsWay) => {
                    own.common.wait_for_migration();
                    has_waited = true;
                }
            }
            relax();
        }
        Ok(())
    }

    /// The area of `to`, if it takes the pages of `from`. The order of the errors is Linux's.
    fn check_areas<'a>(&self, areas: &'a Areas, to: PageRange, from: PageRange) -> Result<&'a Area, UserfaultError> {
        let find = |range: PageRange| areas.find(range.start()).ok_or(UserfaultError::NotRegistered);
        let (target, source) = (find(to)?, find(from)?);
        self.check_unchanging()?;
        let is_own =
            target.flags().has_any(AreaFlags::REGISTERED) && Some(target.flags().userfaultfd()) == self.number();
        let are_whole = to.end() <= target.end() && from.end() <= source.end();
        let are_anonymous = target.object().is_none() && source.object().is_none();
        let is_locked = |area: &Area| area.flags().has_any(AreaFlags::LOCKED);
        let are_alike = target.protection() == source.protection() && is_locked(target) == is_locked(source);
        let may_move = is_own && are_whole && are_anonymous && are_alike;
        if may_move && target.protection().contains(Protection::WRITE) {
            Ok(target)
        } else {
            Err(UserfaultError::Invalid)
        }
    }
}

/// The bytes of a run that begins with `to` and `from`: those of one table each, of which none is of both places.
fn run_bytes(to: PageRange, from: PageRange) -> u64 {
    let in_table = |range: PageRange| (range.end() - range.start()).min(BLOCK_SIZE - range.start().0 % BLOCK_SIZE);
    let bytes = in_table(to).min(in_table(from));
    match to.start().0.abs_diff(from.start().0) {
        0 => bytes,
        distance => bytes.min(distance),
    }
}

impl Space {
    /// The areas that have `page` and `other`, for reading.
    fn read_areas_of_both(&self, page: VirtAddr, other: VirtAddr) -> ReadGuard<'_, Areas> {
        let areas = self.areas.read(page);
        if areas.owns(other) {
            return areas;
        }
        // One of two parts: both are joined, since no thread waits for a part below one that it has.
        drop(areas);
        self.read_all_areas()
    }

    /// Moves the first pages of `from` to `to`, which is of `area`; returns how many bytes have moved. The areas are
    /// locked for reading.
    fn move_run(&self, cpu: &Cpu, area: &Area, to: PageRange, from: PageRange, holes: Holes) -> Result<u64, Unmoved> {
        let bytes = run_bytes(to, from);
        let [to, from] = [to, from].map(|range| pages(range.start(), range.start() + bytes));
        // Before a look at the target, as on Linux.
        // A table, a block or its marker, or a block that is invalid while it changes.
        let has_table = self.block_at(from.start()).is_some_and(|at| self.mmu().load(at.cell) != Descriptor::EMPTY);
        if holes == Holes::Refused && !has_table {
            return Err(FillError::Hole.into());
        }
        let target = self.ensure_cells(cpu, to)?.ok_or(FillError::Exists)?;
        let source = loop {
            match self.ensure_cells(cpu, from)? {
                Some(found) => break found,
                None => _ = self.split_block_at(from.start()),
            }
        };
        let _change = self.notifiers.start(Range::new(Event::Clear, from.start(), from.end()));
        // By address: two calls may move pages to and fro.
        let (low, high) = (source.table.min(target.table), source.table.max(target.table));
        let _locked = self.lock_table(low);
        let _beside = (low != high).then(|| self.lock_table_beside(high));
        match self.take_run(&source, &target, holes) {
            (0, Err(unmoved)) => Err(unmoved),
            // Why the run has ended is found again.
            (count, _) => {
                self.put_run(area, &source, &target, count);
                Ok(count as u64 * PAGE)
            }
        }
    }

    /// Makes the first entries of `source` inaccessible that may move to `target`, and completes the invalidation;
    /// returns how many may, and the reason for the next one to stay. Both tables are locked.
    fn take_run(&self, source: &TableCells<'_>, target: &TableCells<'_>, holes: Holes) -> (usize, Result<(), Unmoved>) {
        let (mut stale, mut count, mut result) = (StaleRange::NONE, 0, Ok(()));
        for (index, (cell, place)) in source.cells.iter().zip(target.cells).enumerate() {
            result = match self.entry_at_rest(place, target.address(index)) {
                Descriptor::EMPTY => self.take(cell, source.address(index), holes, &mut stale),
                _ => Err(FillError::Exists.into()),
            };
            if result.is_err() {
                break;
            }
            count = index + 1;
        }
        self.flush_marked(stale);
        (count, result)
    }

    /// Makes the entry of `page` inaccessible, if it may move, and notes in `stale` what TLBs may have of it. Its table
    /// is locked.
    fn take(&self, cell: &EntryCell, page: VirtAddr, holes: Holes, stale: &mut StaleRange) -> Result<(), Unmoved> {
        let mmu = self.mmu();
        let mut entry = self.entry_at_rest(cell, page);
        if entry.is_present() && entry.is_contiguous() {
            self.unfold(page);
            entry = mmu.load(cell);
        }
        match state(entry) {
            EntryState::Empty if holes == Holes::Skipped => return Ok(()),
            EntryState::Empty => return Err(FillError::Hole.into()),
            EntryState::Page | EntryState::Inaccessible => {}
            EntryState::Migration => return Err(Unmoved::OnItsWay),
            EntryState::Stale | EntryState::Marker(_) | EntryState::Damaged => return Err(FillError::Fault.into()),
        }
        let is_shared = || !entry.is_special() && self.common.record(entry.address()).references() != 1;
        if is_shared() {
            // A migration of a block holds it.
            if self.is_migrating() {
                return Err(Unmoved::OnItsWay);
            }
            // Acquire: a migration that has ended since has given its references back.
            fence(Ordering::Acquire);
            if is_shared() {
                return Err(FillError::Shared.into());
            }
        }
        if entry.is_valid() {
            replace(mmu, cell, entry, Descriptor::inaccessible);
            stale.note(page, page + PAGE);
        }
        Ok(())
    }

    /// Moves the first `count` entries of `source`, which no TLB has, to `target`, in `area`. Both tables are locked.
    fn put_run(&self, area: &Area, source: &TableCells<'_>, target: &TableCells<'_>, count: usize) {
        let (mmu, records) = (self.mmu(), self.common.records());
        let [written, read] = [attributes, read_only_attributes].map(|of| of(area.protection()));
        note_all_used(self.common.record(target.table), bits_of(target));
        for (index, (cell, place)) in source.cells.iter().zip(target.cells).take(count).enumerate() {
            let entry = mmu.load(cell);
            if entry == Descriptor::EMPTY {
                continue;
            }
            mmu.store(cell, Descriptor::EMPTY);
            if !entry.is_special() {
                self.note_origin_in(records.of(entry.address()), target.address(index));
            }
            let attributes = if entry.is_special() { read } else { written };
            mmu.store(place, self.prepared(entry.without_uffd_wp().modified(attributes).young()));
        }
    }
}
