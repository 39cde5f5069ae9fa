//! Pages of files that are given back where memory is short.
//!
//! A page of a file of the initrd holds what the initrd holds, as nothing may write to it: its frame can be freed at
//! any time, and the next access has another one. Such pages are unmapped by their object, not by a space: a kernel
//! thread does it, which has none, and so does a program that finds no memory.
//!
//! ```text
//!     choose    a few pages of the next file, of which none was used since the last pass and none is locked
//!     take      out of the object: a fault that has found them before sees that they are not current
//!     unmap     in each space that maps them: the entry becomes a marker; invalidate, without waiting
//!     flush     wait, once for all
//!     free
//! ```
//!
//! Its locks are [`RECLAIM`](crate::sync::rank::RECLAIM) and [`RECLAIM_FILES`](crate::sync::rank::RECLAIM_FILES).
//!
//! Programs make pages [old](Space::age) too, of any kind, to see which are used afterwards.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{CellsOrBlock, Mmu, PageRange, Stores};

use super::address_space::Space;
use super::area::Area;
use super::cells::TableCells;
use super::entry::{EntryState, state};
use super::gather::StaleRange;
use super::range::{USER_END, USER_START, pages};
use super::shmem::{Hand, next_identity};
use super::spaces::Spaces;
use super::user::with_running_tlb;
use crate::lab;
use crate::mm::kernel::Machine;
use crate::mm::tlb::user::TlbBatch;
use crate::sched::relax;
use crate::smp::Cpu;

/// Pages that are invalidated together.
const TOGETHER: u64 = 32;

/// The treatment of pages that were used since the last pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Used {
    /// They become old: the next pass takes those that are not used until then.
    Age,
    /// They stay as they are.
    Keep,
}

/// The areas whose pages become old (Linux: `enum clear_refs_types`). None is of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aged {
    /// All.
    All,
    /// Those of anonymous memory.
    Anonymous,
    /// Those of objects, with their private pages.
    OfObjects,
}

/// Tables and blocks whose pages become old under one hold of the areas' lock.
const AT_ONCE: usize = 128;

impl Spaces {
    /// One pass over the pages of all files, which ends early where programs have room for `room` more or `is_killed`
    /// returns true: frees those that are not locked and were not used since they became old; returns how many. Between
    /// two passes that [age](Used::Age) pages there is time to use them. Sleeps: no lock is held, no fault is served.
    /// `cpu` is the CPU that this runs on.
    #[cold]
    #[inline(never)]
    pub fn reclaim(&self, cpu: &Cpu, room: usize, used: Used, is_killed: &dyn Fn() -> bool) -> usize {
        let mut hand = self.hand.write();
        // Objects that are created during the pass are for the next one.
        let (start, end) = (*hand, Hand { object: next_identity(), page: 0 });
        let (mut freed, mut has_wrapped) = (0, false);
        while !self.frames.has_room_for(room) && !is_killed() {
            let files = self.files.read();
            let found = files.from(&hand).filter(|object| object.identity() < end.object);
            if found.is_none() && !has_wrapped {
                (*hand, has_wrapped) = (Hand::START, true);
                continue;
            }
            let Some(object) = found else { break };
            if object.identity() != hand.object {
                *hand = Hand { object: object.identity(), page: 0 };
            }
            if has_wrapped && *hand >= start {
                break;
            }
            // A file that was written keeps its pages.
            match if object.can_be_had_again() { object.next_filled(hand.page) } else { None } {
                None => *hand = Hand { object: hand.object + 1, page: 0 },
                Some(page) => {
                    let first = page / TOGETHER * TOGETHER;
                    hand.page = first + TOGETHER;
                    let some = object.reclaim(cpu, first..hand.page, used);
                    if some != 0 {
                        // The frames in this CPU's magazine are not there for programs on other CPUs.
                        self.frames.drain_cpu(cpu);
                    }
                    freed += some;
                }
            }
            drop(files);
            relax();
        }
        freed
    }
}

impl Space {
    /// Whether one of the pages of `range` that are an object's was used since it became old; with [`Used::Age`] they
    /// become old, and `batch` invalidates them, so that the next use is seen.
    pub(super) fn was_used(&self, batch: &mut TlbBatch<'_, Machine>, range: PageRange, used: Used) -> bool {
        let mut was_used = false;
        self.change_in_batch(batch, range, |entry| {
            let is_used = entry.is_valid() && entry.is_young() && self.is_of_object(entry);
            was_used |= is_used;
            (is_used && used == Used::Age).then(|| entry.old())
        });
        was_used
    }

    /// Takes the pages of droppable areas away, of which none is locked; returns how many. The next access has zeros.
    /// Sleeps: areas and pages change concurrently. `cpu` is the CPU that this runs on.
    pub fn drop_pages(&self, cpu: &Cpu) -> usize {
        let mut dropped = 0;
        // Most of the space is not mapped.
        let _ = self.for_each_part(USER_START, USER_END - USER_START, |areas, area, part| {
            let there = if area.is_droppable() { self.own_pages(area) } else { 0 };
            if there != 0 {
                self.discard_part(cpu, areas, part);
                dropped += there;
            }
            Ok(part.end())
        });
        dropped
    }

    /// Makes all pages of some areas old, and invalidates them, until `is_killed` or the space has ended: the next use of
    /// each makes it young. Sleeps: areas and pages change concurrently, as it locks them for a bounded number of tables at
    /// once.
    pub fn age(&self, aged: Aged, is_killed: impl Fn() -> bool) {
        let is_meant = |area: &Area| match aged {
            _ if area.is_of_device() => false,
            Aged::All => true,
            Aged::Anonymous => area.object().is_none(),
            Aged::OfObjects => area.object().is_some(),
        };
        let mut next = Some(VirtAddr(0));
        while let Some(from) = next.filter(|_| !is_killed() && !self.notifiers().is_released()) {
            next = self.with_next_area(from, |area| {
                if is_meant(area) { self.age_part(pages(from.max(area.start()), area.end())) } else { area.end() }
            });
            relax();
        }
    }

    /// Makes the pages of the first tables and blocks of `range`, which is of one area, old; returns where it continues.
    /// The areas are locked.
    fn age_part(&self, range: PageRange) -> VirtAddr {
        let mut batch = TlbBatch::new(&self.common.mmu, with_running_tlb);
        let mut walk = self.page_tables().walk_cells(range);
        for _ in 0..AT_ONCE {
            match walk.next() {
                None => break,
                Some(CellsOrBlock::Cells(found)) => {
                    self.change_cells_in_batch(&mut batch, &found, |entry| entry.is_young().then(|| entry.old()));
                }
                Some(CellsOrBlock::Block(at)) => walk.go_on(at, self.age_block(&mut batch, at)),
            }
            relax();
        }
        walk.continues_at().unwrap_or(range.end())
    }

    /// Takes the pages of `range` that are an object's out of their entries, which hold the marker then, and has
    /// `batch` invalidate them. The object, or what has taken them from it, has another reference to each.
    pub(super) fn unmap_in_batch(&self, batch: &mut TlbBatch<'_, Machine>, range: PageRange) {
        self.change_in_batch(batch, range, |entry| {
            if !self.is_of_object(entry) {
                return None;
            }
            // The write-protect marker is kept, after the invalidation too.
            let is_kept = entry.is_uffd_wp() && !lab::is_on!(NO_MARKER_ON_RECLAIM);
            Some(Descriptor::from(if is_kept { Markers::STALE.and(Markers::UFFD_WP) } else { Markers::STALE }))
        });
    }

    /// As [`Self::change_cells_in_batch`], for `range`, which has no blocks: as no file of the initrd has.
    fn change_in_batch(
        &self,
        batch: &mut TlbBatch<'_, Machine>,
        range: PageRange,
        mut change: impl FnMut(Descriptor) -> Option<Descriptor>,
    ) {
        self.page_tables().walk_cells(range).for_each(|found| self.change_cells_in_batch(batch, &found, &mut change));
    }

    /// Stores what `change` returns for the entries of pages that are there, and has `batch` invalidate what changes. An
    /// entry that becomes a marker drops its reference.
    fn change_cells_in_batch(
        &self,
        batch: &mut TlbBatch<'_, Machine>,
        found: &TableCells<'_>,
        mut change: impl FnMut(Descriptor) -> Option<Descriptor>,
    ) {
        let mmu = self.mmu();
        let _locked = self.lock_table(found.table);
        self.unfold_ends(found);
        let mut stale = StaleRange::NONE;
        for (index, cell) in found.cells.iter().enumerate() {
            let mut entry = mmu.load(cell);
            if !matches!(state(entry), EntryState::Page | EntryState::Inaccessible) {
                continue;
            }
            while let Some(new) = change(entry) {
                // The hardware may set a flag concurrently.
                if let Err(now) = mmu.compare_exchange(cell, entry, new) {
                    entry = now;
                    continue;
                }
                stale.note(found.address(index), found.address(index + 1));
                if !new.is_present() {
                    let was_last = self.common.record(entry.address()).put();
                    debug_assert!(!was_last, "the object's reference is left");
                }
                break;
            }
        }
        if let Some(stale) = stale.invalidation(None) {
            batch.add(self.tlb(), &stale);
        }
    }
}
