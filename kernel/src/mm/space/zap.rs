//! Unmapping pages: `munmap`, `madvise(MADV_DONTNEED)`, truncated objects, and the end of the space.
//!
//! Contents are discarded: the pages are anonymous, or an object holds its own frames, which are memory alone and never
//! clean. So a change by the hardware to an entry that is being cleared does not matter.
//!
//! # Markers
//! A page that userfaultfd write-protects stays protected where it comes again from its object: the entry, in whatever
//! form it is protected, becomes a marker (Linux: `pte_install_uffd_wp_if_needed`). The area decides that and not the
//! page: a private copy in an area of a file leaves a marker too, a page of anonymous memory none, which would be zeros
//! when it comes again. The marker is stored under the table's lock in place of the entry, and is in the same state as
//! an empty entry would be: no fault maps a page over it before the invalidation of what was there is complete.
//!
//! | | guard | poison | write-protection |
//! |---|---|---|---|
//! | [`UNMAP`](ZapFlags::UNMAP) | goes | goes | goes |
//! | [`DISCARD`](ZapFlags::DISCARD): also a truncation | stays | goes | stays, or is left, in areas of objects; goes elsewhere |
//! | [`TAKE`](ZapFlags::TAKE): a hole, a migration | stays | stays | stays, or is left; a private copy stays with its own |
//!
//! So a marker outlives what a truncation or a hole takes away: the next store to the page, which reads as zeros then, is
//! a message. Without it a pager that tracks stores misses all that is written there afterwards, and a snapshot has what
//! was stored after its moment. (The series that brought markers to Linux drops them there; Linux 7.2.13 keeps them.)

#![allow(unsafe_code, reason = "unlinks and dismantles tables of the space")]

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{Dismantled, Mmu, PageRange, PageTables, Stores};

use super::address_space::Space;
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::cells::TableCells;
use super::entry::{EntryState, PLAIN_PAGE, is_page, state, uffd_wp_marker};
use super::gather::Gather;
use super::range::pages;
use super::shmem::OF_OBJECT;
use super::spaces::Spaces;
use super::table_lock::TableGuard;
use crate::lab;
use crate::mm::kernel::Machine;
use crate::sched::{self, relax};
use crate::smp::{Cpu, this_cpu};

/// Tables that are freed without a scheduling point, with their frames: in memory that was full the frames are
/// scattered, and each takes 140 instructions to free.
const TABLES: usize = 2;
/// The most frames that a fork allocates besides the space: records, a kernel stack and its tables.
const OTHERS: usize = 16;

/// The entries that a zap takes beside those of an object's pages (Linux: `zap_details`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ZapFlags {
    /// Private pages: copies, and anonymous memory.
    even_cows: bool,
    /// Guards, and markers of userfaultfd's write-protection: the mapping truly goes (Linux: `ZAP_FLAG_DROP_MARKER`).
    drop_markers: bool,
}

impl ZapFlags {
    /// The addresses are mapped no more.
    pub(super) const UNMAP: Self = Self { even_cows: true, drop_markers: true };
    /// The contents go, and the area stays as it is: `MADV_DONTNEED`, or the object ends before.
    pub(super) const DISCARD: Self = Self { even_cows: true, drop_markers: false };
    /// The object's pages go, to another frame or for good.
    pub(super) const TAKE: Self = Self { even_cows: false, drop_markers: false };

    /// Whether an entry with these markers, which are not userfaultfd's, is emptied. A page whose contents are lost has new
    /// ones where contents go.
    const fn drop(self, markers: Markers) -> bool {
        if markers.contains(Markers::GUARD) { self.drop_markers } else { self.even_cows }
    }
}

impl Gather<'_> {
    /// The entry that a zap leaves in place of `entry`, that of `page` or of the block that begins there: a marker if
    /// it is write-protected in any form, or empty. In one zap pages come in ascending order, and all with the same
    /// flags.
    #[inline(always)]
    pub(super) fn left_of(&mut self, page: VirtAddr, entry: Descriptor, flags: ZapFlags) -> Descriptor {
        if entry.is_uffd_wp_in_any_form() { self.left_of_protected(page, flags) } else { Descriptor::EMPTY }
    }

    /// As [`Self::left_of`], for an entry that is write-protected.
    #[inline(always)]
    fn left_of_protected(&mut self, page: VirtAddr, flags: ZapFlags) -> Descriptor {
        if page >= self.left_until {
            self.look_for_markers(page, flags);
        }
        self.left
    }

    #[cold]
    #[inline(never)]
    fn look_for_markers(&mut self, page: VirtAddr, flags: ZapFlags) {
        let area = self.areas().and_then(|areas| areas.find(page));
        // Guards and poison keep the mark of an area that is registered no more.
        let has_pager = |area: &Area| area.object().is_some() && area.flags().has_any(AreaFlags::UFFD_WP);
        let is_of_object = self.areas().is_none() || area.is_some_and(has_pager);
        let has_markers = is_of_object || lab::is_on!(MARKER_ON_ANON);
        let is_kept = has_markers && !flags.drop_markers && !lab::is_on!(DROP_MARKER_ALWAYS);
        self.left_until = area.map_or(VirtAddr(u64::MAX), Area::end);
        self.left = if is_kept { uffd_wp_marker() } else { Descriptor::EMPTY };
    }
}

impl Space {
    /// Clears the entries of `range`. The frames go to `gather`.
    pub(super) fn zap(&self, gather: &mut Gather<'_>, range: PageRange, flags: ZapFlags) {
        // Another zap may have been of other flags, and of higher addresses.
        gather.left_until = VirtAddr(0);
        let mut walk = self.page_tables().walk_cells(range);
        // Blocks also of a hole: an object's areas that are private have none, so none is a copy.
        while let Some(found) = walk.next_cells(|at| self.zap_block(gather, range, at, flags)) {
            if found.start > range.start() {
                // Between two tables; neither lock is held.
                gather.rest();
            }
            let locked = self.lock_table(found.table);
            self.zap_cells(gather, &locked, &found, flags);
        }
    }

    /// Clears the entries of `found`, whose table is `_locked`. Where faults are possible, the invalidation is complete
    /// on return.
    #[inline(always)]
    pub(super) fn zap_cells(
        &self,
        gather: &mut Gather<'_>,
        _locked: &TableGuard<'_>,
        found: &TableCells<'_>,
        flags: ZapFlags,
    ) {
        let mmu = self.mmu();
        // Fast path: these pages are unmapped whatever they are, and leave no marker.
        let (mask, plain) = (if flags.even_cows { PLAIN_PAGE.0 } else { 0 }, PLAIN_PAGE.1);
        self.unfold_ends(found);
        // From the first to the last valid entry that was cleared and is not noted yet.
        let (mut first, mut end) = (0, 0);
        for (index, cell) in found.cells.iter().enumerate() {
            let old = mmu.load(cell);
            let left = match old {
                page if page.0 & mask == plain => Descriptor::EMPTY,
                page if is_page(page) => {
                    if !flags.even_cows && !self.is_of_object(page) {
                        continue;
                    }
                    if flags.even_cows || page.is_uffd_wp() {
                        gather.left_of_protected(found.address(index), flags)
                    } else {
                        Descriptor::EMPTY
                    }
                }
                Descriptor::EMPTY => continue,
                _ => {
                    if first < end {
                        gather.stale(found.address(first), found.address(end));
                        end = 0;
                    }
                    self.zap_other(gather, found, index, flags);
                    continue;
                }
            };
            if end == 0 {
                first = index;
            }
            end = index + 1;
            mmu.store(cell, left);
            if !old.is_special() {
                gather.add(old.address(), || {
                    let emptied = (first < end).then(|| (found.address(first), found.address(end)));
                    end = 0;
                    emptied
                });
            }
        }
        if first < end {
            gather.stale(found.address(first), found.address(end));
        }
        gather.before_unlock();
    }

    /// Zaps one entry that is not valid. Entries that were cleared before it are noted; the table's lock is held.
    #[inline(never)]
    fn zap_other(&self, gather: &mut Gather<'_>, found: &TableCells<'_>, index: usize, flags: ZapFlags) {
        let (mmu, page) = (self.mmu(), found.address(index));
        let Some(cell) = found.cells.get(index) else { return };
        let old = mmu.load(cell);
        let left = gather.left_of(page, old, flags);
        let (may_be_cached, has_frame) = match state(old) {
            EntryState::Empty => return,
            EntryState::Page | EntryState::Inaccessible if !flags.even_cows && !self.is_of_object(old) => return,
            EntryState::Page => (true, true),
            EntryState::Inaccessible => (gather.may_be_stale(), true),
            EntryState::Stale => (true, false),
            EntryState::Marker(Markers::UFFD_WP) if left == old => return,
            EntryState::Marker(markers) if markers != Markers::UFFD_WP && !flags.drop(markers) => return,
            // Only private pages leave a migration entry.
            EntryState::Migration if !flags.even_cows => return,
            // An entry that is not present holds no frame.
            EntryState::Marker(_) | EntryState::Migration | EntryState::Damaged => (false, false),
        };
        mmu.store(cell, left);
        if may_be_cached {
            gather.stale(page, VirtAddr(page.0 + PAGE));
        }
        if has_frame && !old.is_special() {
            gather.add(old.address(), || None);
        }
    }

    /// Whether the page of `entry` is an object's, and no private copy. The table's lock is held.
    pub(super) fn is_of_object(&self, entry: Descriptor) -> bool {
        // Relaxed: set before the frame was the object's, and as long as the entry holds the frame.
        !entry.is_special() && self.common.record(entry.address()).flags.load(Ordering::Relaxed) & OF_OBJECT != 0
    }

    /// Frees the tables that translated `range`, which no area has and no area needs; returns how many. The areas are
    /// locked for writing.
    pub(super) fn free_tables(&self, gather: &mut Gather<'_>, areas: &Areas, range: PageRange) -> usize {
        let (below, above) = self.around(areas, range);
        let mut freed = 0;
        let unlinked = |table| {
            freed += 1;
            gather.add_table(table, range);
            if freed % TABLES == 0 {
                relax();
            }
        };
        // SAFETY: exclusive access to a part of the areas includes the tables that translate none but its addresses,
        // which are those of the hole: no other part's calls and faults use them, and cells in them are held only under
        // this part's lock. The gather frees a table when walk caches are invalidated for its range.
        unsafe { self.page_tables().unlink_tables(range, pages(below, above), unlinked) };
        self.table_frames.fetch_sub(freed, Ordering::Relaxed);
        freed
    }

    /// Frees the tables that translated addresses on both sides of a border between two parts, which are one part now.
    /// No part could free them alone.
    #[inline]
    pub(super) fn free_border(&self, areas: &mut Areas, border: VirtAddr) {
        let page = pages(border - PAGE, border);
        let mut gather = Gather::without_faults(self, this_cpu(), areas);
        self.free_tables(&mut gather, areas, page);
    }

    /// Empties the space, for good. No thread runs in it any more; its subscribers get the release event.
    pub fn release(&self, cpu: &Cpu) {
        // No page is on its way in the space then, and none will be.
        self.common.families.leave(self);
        let mut areas = self.write_all_areas();
        self.unmap_registers(cpu, &mut areas);
        self.notifiers.release();
        self.userfaultfds.clear();
        // From here on no walk by a reverse map comes to the tables.
        areas.leave_reverse_maps();
        // SAFETY: the areas are locked for writing, so no cell is held, and nothing else walks the tables: no thread
        // runs in the space, and the notifiers have returned. The flush invalidates everything of the space.
        let (tables, freed) =
            unsafe { self.common.dismantle(cpu, self.page_tables(), || self.tlb().flush_space(self.mmu())) };
        self.table_frames.fetch_sub(tables, Ordering::Relaxed);
        self.reserved.store(0, Ordering::Relaxed);
        let records = areas.count * size_of::<Area>();
        areas.clear(|area| {
            drop(area);
            // Areas are many, and one may be the last user of an object with many frames.
            relax();
        });
        // After a fork or an exec that failed for want of memory, this was its space, and the memory that is free now
        // is what it had allocated. With no more than that it would fail again, for ever.
        sched::enlarge_shortage(cpu, freed + tables + records.div_ceil(PAGE_SIZE) + OTHERS);
    }
}

impl Spaces {
    /// Frees the tables below a root, and drops the references of entries to frames; returns how many tables and frames
    /// were freed.
    ///
    /// # Safety
    /// As for [`PageTables::dismantle`].
    pub(super) unsafe fn dismantle(
        &self,
        cpu: &Cpu,
        tables: PageTables<'_, Machine>,
        invalidate: impl FnOnce(),
    ) -> (usize, usize) {
        let (mut freed_tables, mut freed) = (0, 0);
        // Each into the magazine of its own.
        let (mut freeing, mut freeing_tables) = (self.frames.freeing(cpu), self.frames.freeing(cpu));
        let out = |out| match out {
            Dismantled::Table(table) => {
                freed_tables += 1;
                freeing_tables.add(table);
                if freed_tables % TABLES == 0 {
                    freeing.flush();
                    freeing_tables.flush();
                    relax();
                }
            }
            // VALID is clear by now: a leaf is recognised by NG alone. A block may have left a marker, which has a
            // deposited table too.
            Dismantled::Block(entry, table) => {
                if entry.is_present() {
                    freed += self.block(entry.address()).put_block(cpu);
                }
                freeing_tables.add(self.take_deposit(self.record(table)));
                freed_tables += 1;
                relax();
            }
            Dismantled::Entry(entry) => {
                let counted = entry.is_present() && !entry.is_special();
                if counted && self.record(entry.address()).put() {
                    freed += 1;
                    freeing.add(entry.address());
                }
            }
        };
        // SAFETY: the caller keeps the contract.
        unsafe { tables.dismantle(invalidate, out) };
        (freed_tables, freed)
    }
}
