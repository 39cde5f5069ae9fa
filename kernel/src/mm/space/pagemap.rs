//! The state of each page of a space, as a word that Linux's `/proc/PID/pagemap` defines (`fs/proc/task_mmu.c`,
//! `pte_to_pagemap_entry`).
//!
//! It looks, and brings nothing: areas are locked for reading, so no table is unlinked, and each entry is looked at under
//! its table's lock, so its frame is held.

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers, MigrationAccess, NonPresent};
use granule_pgtable::{CellsOrBlock, CellsWalk, PageRange};

use super::address_space::Space;
use super::area::tree::Areas;
use super::block::{is_block, page_of, pages_of_block};
use super::entry::{EntryState, rest_of_stale, state};
use super::look::{Glimpse, LockedEntry};
use super::range::USER_END;
use super::shmem::OF_OBJECT;
use crate::lab;
use crate::mm::kernel::Machine;
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::relax;

/// A page is there.
pub const PRESENT: u64 = 1 << 63;
/// Something else than a page is remembered: a marker, or a frame on its way.
pub const SWAPPED: u64 = 1 << 62;
/// The page is of a file or of shared memory.
pub const OF_FILE: u64 = 1 << 61;
/// A guard page.
pub const GUARD: u64 = 1 << 58;
/// Write-protected by userfaultfd.
pub const UFFD_WP: u64 = 1 << 57;
/// The page is mapped once.
pub const EXCLUSIVE: u64 = 1 << 56;

/// The low bits of a word that is [`SWAPPED`]: Linux's swap type, and above it the offset.
const TYPE_BITS: u32 = 5;
const TYPE_MIGRATION_READ: u64 = 25;
const TYPE_MIGRATION_READ_EXCLUSIVE: u64 = 26;
const TYPE_MIGRATION_WRITE: u64 = 27;
const TYPE_MARKER: u64 = 31;

/// Entries that are looked at under one hold of a table's lock.
const AT_ONCE: usize = 64;

/// An entry of a range, whose table is locked.
#[derive(Clone, Copy)]
pub(super) struct Seen<'l> {
    /// The first page in the range that it translates, and how many there are.
    pub(super) at: VirtAddr,
    pub(super) pages: usize,
    /// The form that a page has, also where it is a block's.
    pub(super) entry: LockedEntry<'l>,
    pub(super) is_block: bool,
}

impl Seen<'_> {
    /// The entry.
    pub(super) fn descriptor(&self) -> Descriptor {
        self.entry.descriptor()
    }

    /// The frame of the first page, where that is there.
    pub(super) fn frame(&self) -> PhysAddr {
        self.descriptor().address() + if self.is_block { self.at.0 % BLOCK_SIZE } else { 0 }
    }
}

impl Space {
    /// Stores the words of the pages from `start` on, a multiple of the page size, one for each word of `shown`. Where
    /// nothing is mapped, and above what programs may map, a word is 0.
    #[inline(never)]
    pub fn pagemap(&self, start: VirtAddr, shown: &mut [u64]) {
        shown.fill(0);
        let end = start.0.saturating_add((shown.len() as u64).saturating_mul(PAGE)).min(USER_END.0);
        let Some(range) = PageRange::lower(start, VirtAddr(end)) else { return };
        self.areas.for_each(range, &mut |areas, part| {
            let first = ((part.start() - start) / PAGE) as usize;
            if let Some(shown) = shown.get_mut(first..) {
                self.show_part(areas, part, shown);
            }
            true
        });
    }

    /// Stores the words of a range in one part of the areas.
    fn show_part(&self, areas: &Areas, part: PageRange, shown: &mut [u64]) {
        self.look_at_each(part, |seen| {
            let places = shown.iter_mut().skip(((seen.at - part.start()) / PAGE) as usize).take(seen.pages);
            let (first, step) = (self.shown(areas, seen), u64::from(seen.descriptor().is_present()));
            places.zip(0..).for_each(|(place, index)| *place = first + index * step);
        });
    }

    /// Calls `look` with each entry of `range`, in order, under the lock of its table, which is released now and then.
    #[inline(always)]
    pub(super) fn look_at_each(&self, range: PageRange, mut look: impl FnMut(Seen<'_>)) {
        let mut walk = self.page_tables().walk_cells(range);
        while self.look_at_next(&mut walk, range, &mut look) {}
    }

    /// As [`Self::look_at_each`], with the entries of the next table, or with the next block, of a walk of `range`; returns
    /// whether there was one.
    #[inline(always)]
    pub(super) fn look_at_next(
        &self,
        walk: &mut CellsWalk<'_, Machine>,
        range: PageRange,
        mut look: impl FnMut(Seen<'_>),
    ) -> bool {
        match walk.next() {
            None => return false,
            Some(CellsOrBlock::Block(at)) => {
                let visited = self.look_at_block(at, |seen| {
                    let entry = seen.formed(|entry| if is_block(entry) { page_of(entry) } else { entry });
                    look(Seen { at, pages: pages_of_block(range, at), entry, is_block: true });
                });
                walk.go_on(at, visited);
            }
            Some(CellsOrBlock::Cells(found)) => {
                for first in (0..found.cells.len()).step_by(AT_ONCE) {
                    let locked = (!lab::is_on!(ANSWER_AT_GLIMPSE)).then(|| self.lock_table(found.table));
                    for (index, cell) in found.cells.iter().enumerate().skip(first).take(AT_ONCE) {
                        let entry = match &locked {
                            Some(locked) => Some(locked.entry(self.mmu(), cell)),
                            None => Glimpse::at(self.mmu(), cell).believed(),
                        };
                        let Some(entry) = entry else { continue };
                        look(Seen { at: found.address(index), pages: 1, entry, is_block: false });
                    }
                }
            }
        }
        relax();
        true
    }

    /// Whether the frame of a page that is there is an object's, and how many hold it. Of a block's, it is where `is_objects`
    /// says so of its area.
    pub(super) fn holders(&self, seen: Seen<'_>, is_objects: impl FnOnce() -> bool) -> (bool, u32) {
        if seen.is_block {
            return (is_objects(), self.common.block(seen.descriptor().address()).holders());
        }
        let record = self.common.record(seen.descriptor().address());
        (record.flags.load(Ordering::Relaxed) & OF_OBJECT != 0, record.references())
    }

    /// The word of the first page of an entry.
    fn shown(&self, areas: &Areas, seen: Seen<'_>) -> u64 {
        let entry = seen.descriptor();
        match state(entry) {
            EntryState::Page | EntryState::Inaccessible => {
                let leaf = flags_of_leaf(entry) | seen.frame().frame_number() as u64;
                if entry.is_special() {
                    return leaf;
                }
                let is_objects = || areas.find(seen.at).is_some_and(|area| area.object().is_some());
                let (of_object, holders) = self.holders(seen, is_objects);
                leaf | flags_of_frame(of_object, holders)
            }
            EntryState::Marker(_) | EntryState::Migration => shown_non_present(entry.non_present()),
            EntryState::Stale => shown_non_present(rest_of_stale(entry).non_present()),
            EntryState::Empty | EntryState::Damaged => 0,
        }
    }
}

/// The flags that are in a leaf itself.
const fn flags_of_leaf(entry: Descriptor) -> u64 {
    PRESENT | if entry.is_uffd_wp() { UFFD_WP } else { 0 }
}

/// The flags by the count of its frame: an object holds each of its frames once.
const fn flags_of_frame(of_object: bool, holders: u32) -> u64 {
    let exclusive = if holders == 1 + of_object as u32 { EXCLUSIVE } else { 0 };
    exclusive | if of_object { OF_FILE } else { 0 }
}

fn shown_non_present(entry: NonPresent) -> u64 {
    match entry {
        NonPresent::Marker(markers) => {
            let bit = |marker: Markers, bit: u64| if markers.contains(marker) { bit } else { 0 };
            // Linux's own numbers of markers. It has the mark of a guard, or of poison, beside them.
            let set = match bit(Markers::POISONED, 2) | bit(Markers::GUARD, 4) {
                0 => bit(Markers::UFFD_WP, 1),
                others => others,
            };
            let flags = bit(Markers::UFFD_WP, UFFD_WP) | bit(Markers::GUARD, GUARD);
            SWAPPED | flags | set << TYPE_BITS | TYPE_MARKER
        }
        NonPresent::Migration(migration) => {
            let number = match migration.access {
                MigrationAccess::Read => TYPE_MIGRATION_READ,
                MigrationAccess::ReadExclusive => TYPE_MIGRATION_READ_EXCLUSIVE,
                MigrationAccess::Write => TYPE_MIGRATION_WRITE,
            };
            let flags = if migration.uffd_wp { UFFD_WP } else { 0 };
            SWAPPED | flags | (migration.from.frame_number() as u64) << TYPE_BITS | number
        }
        NonPresent::Empty | NonPresent::Unknown => 0,
    }
}

#[cfg(test)]
mod tests {
    use granule_arch::addr::PhysAddr;
    use granule_arch::descriptor::{Markers, Migration, MigrationAccess, NonPresent};

    use super::{EXCLUSIVE, GUARD, OF_FILE, SWAPPED, UFFD_WP, flags_of_frame, shown_non_present};

    #[test]
    fn what_is_not_there_is_shown_by_linuxs_types() {
        let shown = |markers| shown_non_present(NonPresent::Marker(markers));
        assert_eq!(shown(Markers::UFFD_WP), SWAPPED | UFFD_WP | 1 << 5 | 31);
        assert_eq!(shown(Markers::POISONED), SWAPPED | 2 << 5 | 31);
        assert_eq!(shown(Markers::GUARD), SWAPPED | GUARD | 4 << 5 | 31);
        assert_eq!(shown(Markers::GUARD.and(Markers::UFFD_WP)), SWAPPED | UFFD_WP | GUARD | 4 << 5 | 31);
        let migration = Migration {
            from: PhysAddr(0x4000_3000),
            access: MigrationAccess::Write,
            young: true,
            dirty: false,
            uffd_wp: true,
        };
        assert_eq!(shown_non_present(NonPresent::Migration(migration)), SWAPPED | UFFD_WP | 0x4_0003 << 5 | 27);
        assert_eq!(shown_non_present(NonPresent::Empty), 0);
    }

    #[test]
    fn a_frame_is_exclusive_with_one_mapping_beside_its_object() {
        assert_eq!([1, 2].map(|holders| flags_of_frame(false, holders)), [EXCLUSIVE, 0]);
        assert_eq!([1, 2, 3].map(|holders| flags_of_frame(true, holders)), [OF_FILE, OF_FILE | EXCLUSIVE, OF_FILE]);
    }
}
