//! Contiguous groups: 64 KiB by 16 entries that a TLB may hold as one (Arm ARM D8.7.1; Linux: contpte).
//!
//! The present entries of a group, valid or not, have the contiguous bit, follow one another in a naturally aligned 64
//! KiB of addresses and of frames, and permit the same. The hardware sets an access flag, or makes writable-clean
//! dirty, in any one of them: so both are of the group, and what judges or copies them takes those of all 16. The
//! frames are 16 frames, each with its own record.
//!
//! ```text
//!     arises      a block is split                    the first access where a block is wanted and cannot be
//!                 16 pages become alike (`mprotect`)
//!     as a whole  zap, mprotect, fork, access flag, dirt, a store to what nothing shares
//!     unfolded    everything that concerns fewer than the 16: those become pages first
//! ```
//! The lock is that of the table. Under it what changes one entry that is one of a group calls [`Space::unfold`] first,
//! and what changes several entries of a table calls [`Space::unfold_ends`]: then all of a group is among them, or
//! none. A fork, which excludes everything else, unfolds what its areas cut before it begins.
//!
//! # The bit of a live entry
//! A TLB that has a group beside pages of it may raise a conflict abort (D8.17.1), so all 16 are made invalid before
//! the bit changes, and the invalidation is completed: also in the secondary TLBs. A CPU that faults then waits for the
//! lock, a device faults and is submitted again. Where size changes are trusted, by the CPUs and by each SMMU that is
//! bound, the bit changes in place. Permissions change in place always, as those of a page do: until the invalidation
//! that follows, a walk finds what some of the 16 permit, before or after.

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_arch::patched_branch;
use granule_arch::tlbi::LevelHint;
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Invalidation, Mmu, PageRange, Stores, Tables};

use super::access::Access;
use super::address_space::{GROUPS, Space};
use super::area::Area;
use super::area::tree::Areas;
use super::cells::{EntryCell, TableCells};
use super::entry::{EntryState, first_entry, replace, set_access_flags, state};
use super::outcome::{AllowedFault, FaultOutcome, OfBlock};
use super::protect::may_be_written;
use super::range::pages;
use crate::lab;
use crate::mm::kernel::Machine;
use crate::mm::page_block::GROUP;
use crate::mm::tlb::user::Leaf;
use crate::platform::features::branch;
use crate::sched::{note_shortage, relax};
use crate::smp::Cpu;

/// Pages of a group.
pub(super) const GROUP_PAGES: usize = GROUP;
/// Bytes that a group translates.
pub(super) const GROUP_SIZE: u64 = GROUP_PAGES as u64 * PAGE;

/// The flags that the hardware sets, or software for it.
const FLAGS: u64 = bits::AF | bits::RDONLY | bits::DIRTY;

/// The flags of several entries together. RDONLY counts inverted: clear permits more.
#[derive(Clone, Copy)]
pub(super) struct Flags(u64);

impl Flags {
    const NONE: Self = Self(0);

    /// With those of `entry`.
    fn and(self, entry: Descriptor) -> Self {
        Self(self.0 | (entry.0 ^ bits::RDONLY) & FLAGS)
    }

    /// `entry` with these besides its own.
    #[inline(always)]
    pub(super) fn added(self, entry: Descriptor) -> Descriptor {
        Descriptor(((entry.0 ^ bits::RDONLY) | self.0) ^ bits::RDONLY)
    }
}

/// Whether `entry` is one of a group.
#[inline(always)]
const fn is_of_group(entry: Descriptor) -> bool {
    entry.is_contiguous() && entry.is_present()
}

/// The bits that the entries of a group have in common.
fn in_common(entry: Descriptor) -> u64 {
    let flags = if entry.may_be_written() { FLAGS } else { FLAGS & !bits::RDONLY };
    entry.0 & !(flags | bits::ADDRESS)
}

/// The entries of the page or the group that begins with `entry`, the one at `index` of `found`; `None` where a group
/// begins before it. All of a group is in `found`.
#[inline(always)]
pub(super) fn leaf_at<'t>(found: &TableCells<'t>, index: usize, entry: Descriptor) -> Option<&'t [EntryCell]> {
    let count = match entry.is_contiguous() {
        false => 1,
        true if found.address(index).is_aligned(GROUP_SIZE) => GROUP_PAGES,
        true => return None,
    };
    found.cells.get(index..index + count)
}

/// The entry of a page of a block, to be filled into a table with those of the others: groups but for those that an end
/// of `range` cuts.
pub(super) fn fill_groups(mmu: &Machine, table: &[EntryCell], first: Descriptor, start: VirtAddr, range: PageRange) {
    mmu.fill(table, first.contiguous(), PAGE);
    for end in [range.start().0, range.last().0 + 1] {
        let cut = end.checked_sub(start.0).map_or(0, |offset| offset / PAGE) as usize;
        if !cut.is_multiple_of(GROUP_PAGES)
            && let Some(group) = table.chunks(GROUP_PAGES).nth(cut / GROUP_PAGES)
        {
            group.iter().for_each(|cell| mmu.store(cell, Descriptor(mmu.load(cell).0 & !bits::CONTIGUOUS)));
        }
    }
}

impl Space {
    /// The 16 entries that a group of `page` has, where its table is.
    fn group_cells(&self, page: VirtAddr) -> Option<TableCells<'_>> {
        self.page_tables().cells(page.align_down(GROUP_SIZE), GROUP_PAGES)
    }

    /// The flags that `cells` have together.
    #[inline(always)]
    pub(super) fn flags(&self, cells: &[EntryCell]) -> Flags {
        cells.iter().fold(Flags::NONE, |flags, cell| flags.and(self.mmu().load(cell)))
    }

    /// Whether none of the frames is shared. The table's lock is held, and no fork is possible.
    fn has_group_to_itself(&self, group: &TableCells<'_>) -> bool {
        let is_own = |first: Descriptor| self.common.folio(first.address(), GROUP_PAGES).is_sole();
        group.cells.first().is_some_and(|cell| is_own(self.mmu().load(cell)))
    }

    /// Makes pages of the group of `page`. The table's lock is held.
    #[cold]
    #[inline(never)]
    pub(super) fn unfold(&self, page: VirtAddr) {
        if let Some(group) = self.group_cells(page) {
            self.set_contiguous(&group, 0);
        }
    }

    /// Whether there may be groups, where the lock of a table is held, in that table.
    #[inline(always)]
    fn may_have_groups(&self) -> bool {
        self.hints.load(Ordering::Relaxed) & GROUPS != 0
    }

    /// Called before an entry of a group is stored, or a table with some is linked: what finds them finds this.
    pub(super) fn note_groups(&self) {
        if !self.may_have_groups() {
            self.hints.fetch_or(GROUPS, Ordering::Relaxed);
        }
    }

    /// Makes pages of the groups that `found` has only a part of: at its first entry and its last. The table's lock is
    /// held.
    #[inline(always)]
    pub(super) fn unfold_ends(&self, found: &TableCells<'_>) {
        if self.may_have_groups() {
            self.unfold_cut(*found);
        }
    }

    #[cold]
    #[inline(never)]
    fn unfold_cut(&self, found: TableCells<'_>) {
        for index in [0, found.cells.len().saturating_sub(1)] {
            if let Some(cell) = found.cells.get(index) {
                self.unfold_unless_in(&found, found.address(index), cell);
            }
        }
    }

    /// Makes pages of the groups that areas end in: a fork may take one of two such areas. All areas are locked for
    /// writing.
    #[cold]
    pub(super) fn unfold_at_borders(&self, areas: &Areas) {
        for at in areas.iter().flat_map(|area| [area.start(), area.end()]) {
            if !at.is_aligned(GROUP_SIZE)
                && let Some(found) = self.page_tables().cells(at, 1)
            {
                let _locked = self.lock_table(found.table);
                self.unfold_cut(found);
            }
            relax();
        }
    }

    /// Makes pages of the group of `page`, whose entry is in `cell`, unless there is none or all of it is in `found`.
    fn unfold_unless_in(&self, found: &TableCells<'_>, page: VirtAddr, cell: &EntryCell) {
        let start = page.align_down(GROUP_SIZE);
        let is_whole = found.start <= start && start + GROUP_SIZE <= found.address(found.cells.len());
        if !is_whole && is_of_group(self.mmu().load(cell)) {
            self.unfold(start);
        }
    }

    /// As [`Self::unfold_unless_in`], where the entry of `page`, one of `found`, moves with the others to `to`: a group
    /// that is moved in part, or is not aligned there, becomes pages. Returns the entry.
    #[cold]
    #[inline(never)]
    pub(super) fn unfold_moved(
        &self,
        found: TableCells<'_>,
        page: VirtAddr,
        cell: &EntryCell,
        to: VirtAddr,
    ) -> Descriptor {
        let is_aligned = (to.0 ^ found.start.0).is_multiple_of(GROUP_SIZE);
        let kept = TableCells { cells: if is_aligned { found.cells } else { &[] }, ..found };
        self.unfold_unless_in(&kept, page, cell);
        self.mmu().load(cell)
    }

    /// Gives the entries of `group` the contiguous bit, or takes it away, and each of them the flags of all.
    #[inline(never)]
    fn set_contiguous(&self, group: &TableCells<'_>, bit: u64) {
        let mmu = self.mmu();
        let sized = |entry: Descriptor| Descriptor(entry.0 & !bits::CONTIGUOUS | bit);
        let is_valid = group.cells.first().is_some_and(|cell| mmu.load(cell).is_valid());
        if is_valid && !patched_branch!(branch::SIZE_CHANGE) {
            let mut flags = Flags::NONE;
            for cell in group.cells {
                flags = flags.and(replace(mmu, cell, mmu.load(cell), Descriptor::inaccessible));
            }
            self.flush_group(group.start);
            for cell in group.cells {
                mmu.store(cell, sized(flags.added(mmu.load(cell).accessible())));
            }
            return;
        }
        // With what software has set: the invalidation takes the old entries from devices.
        let flags = self.flags(group.cells);
        for cell in group.cells {
            replace(mmu, cell, mmu.load(cell), |entry| sized(flags.added(entry)));
        }
        if is_valid {
            self.flush_group(group.start);
            // By what a TLB had of the group, the hardware may have set flags of one page in the entry of another.
            let flags = self.flags(group.cells);
            for cell in group.cells {
                let entry = mmu.load(cell);
                set_access_flags(mmu, cell, entry, flags.added(entry));
            }
        }
    }

    /// Completes the invalidation of the pages of the group at `start`, each of which a TLB may have by itself.
    fn flush_group(&self, start: VirtAddr) {
        let range = pages(start, start + GROUP_SIZE);
        let level = LevelHint::new(LAST_LEVEL);
        self.tlb().flush_freed(self.mmu(), &Invalidation { range, tables: Tables::Kept, level });
    }

    /// Makes groups of the pages of `found`, with those around them, that translate alike to frames that follow one
    /// another: some may be of another area. The table's lock is held, and faults are excluded.
    #[cold]
    #[inline(never)]
    pub(super) fn fold(&self, found: TableCells<'_>) {
        let mut start = found.start.align_down(GROUP_SIZE);
        while start < found.address(found.cells.len()) {
            if let Some(group) = self.group_cells(start).filter(|group| self.is_uniform(group)) {
                self.note_groups();
                self.set_contiguous(&group, bits::CONTIGUOUS);
            }
            start = start + GROUP_SIZE;
        }
    }

    /// Whether the entries may become a group.
    fn is_uniform(&self, group: &TableCells<'_>) -> bool {
        let mmu = self.mmu();
        let first = mmu.load(&group.cells[0]);
        let may_begin = state(first) == EntryState::Page
            && !first.is_contiguous()
            && !first.is_special()
            && first.address().is_aligned(GROUP_SIZE);
        may_begin
            && group.cells.iter().enumerate().all(|(index, cell)| {
                let entry = mmu.load(cell);
                in_common(entry) == in_common(first)
                    && entry.address() == first.address() + index as u64 * PAGE
                    // A group is an object's as a whole, or not at all.
                    && self.is_of_object(entry) == self.is_of_object(first)
            })
    }

    /// Serves the first access of `page`, which `area` permits, by a group of zeros; returns `false` where none is
    /// wanted or can be, and a page serves. If another CPU was faster, the retry decides.
    #[cold]
    #[inline(never)]
    pub(super) fn map_group(&self, cpu: &Cpu, area: &Area, page: VirtAddr) -> bool {
        let (frames, mmu) = (self.common.frames, self.mmu());
        let start = page.align_down(GROUP_SIZE);
        let is_wanted = self.wants_blocks(area) && area.object().is_none();
        if !is_wanted || start < area.start() || area.end() < start + GROUP_SIZE {
            return false;
        }
        let is_empty = |group: &TableCells<'_>| group.cells.iter().all(|cell| mmu.load(cell) == Descriptor::EMPTY);
        if self.group_cells(start).is_some_and(|group| !is_empty(&group)) {
            return false;
        }
        let Ok(first) = frames.alloc_movable_group(cpu) else { return false };
        let each = || (0..GROUP_PAGES as u64).map(|index| (first + index * PAGE, start + index * PAGE));
        let linked = self.ensure_table(cpu, start).ok().and_then(|()| self.group_cells(start));
        let Some(group) = linked else {
            each().for_each(|(frame, _)| frames.free(cpu, frame));
            // There are frames now, and a page may serve.
            note_shortage(cpu, 0);
            return false;
        };
        let mut waits = false;
        for (frame, page) in each() {
            waits |= self.zero_new(frames, frame, area.protection());
            self.note_origin(frame, page);
        }
        let new = first_entry(first, area.protection()).contiguous();
        // As a whole, as for `mprotect`.
        let new = if waits { new.fault_on_access() } else { new };
        self.note_groups();
        // The zeros before their entries.
        mmu.dmb_ishst();
        let locked = self.lock_table(group.table);
        if is_empty(&group) {
            locked.note_used(start);
            locked.note_used(start + (GROUP_SIZE - PAGE));
            mmu.fill(group.cells, new, PAGE);
            return true;
        }
        drop(locked);
        each().for_each(|(frame, _)| self.common.drop_frame(cpu, frame));
        true
    }
}

impl AllowedFault<'_> {
    /// Serves a fault on `entry`, which is in the cell and one of a group: as that of a page, for all of them. A store
    /// to what others use makes pages of them first: the retry copies one. The table's lock is held.
    #[cold]
    #[inline(never)]
    pub(super) fn of_group(self, entry: Descriptor) -> FaultOutcome {
        let (space, mmu) = (self.space, self.space.mmu());
        let Some(group) = space.group_cells(self.page) else { return FaultOutcome::Served };
        let is_write = self.access == Access::Write;
        let is_upgrade = is_write && !entry.may_be_written();
        // Pages beside the area may have been folded with it, as it may not be written, and are not to become
        // writable.
        let is_own = || {
            let is_inside = self.area.start() <= group.start && group.start + GROUP_SIZE <= self.area.end();
            is_inside && (self.area.is_shared() || space.has_group_to_itself(&group))
        };
        if entry.is_fault_on_access() && self.make_group_accessible(&group) {
            return FaultOutcome::Served;
        }
        if !entry.is_valid() || is_upgrade && !is_own() {
            space.unfold(self.page);
            return FaultOutcome::Served;
        }
        let is_trusted = lab::is_on!(TRUST_HW_DIRTY) && entry.is_dirty();
        let wanted = |entry: Descriptor| match entry.young() {
            entry if is_upgrade => entry.writable().dirty(),
            entry if is_write && !is_trusted => entry.dirty(),
            entry => entry,
        };
        // Also those that have it: a walker without updates of its own may read any of them.
        let mut is_changed = false;
        for cell in group.cells {
            let entry = mmu.load(cell);
            is_changed |= set_access_flags(mmu, cell, entry, wanted(entry));
        }
        let leaf = Leaf::page_of_group(self.page, group.start, GROUP_SIZE);
        space.widened(is_changed, leaf, FaultOutcome::OfBlock(OfBlock::UpgradedGroup))
    }

    /// Makes the entries of `group`, which wait, valid, if tag storage for all of them is at hand; returns whether it is.
    /// Otherwise they are pages, and wait one by one. The table's lock is held.
    #[cold]
    #[inline(never)]
    fn make_group_accessible(&self, group: &TableCells<'_>) -> bool {
        let (space, mmu) = (self.space, self.space.mmu());
        let is_inside = self.area.start() <= group.start && group.start + GROUP_SIZE <= self.area.end();
        let has_tags = self.area.protection().contains(Protection::TAGGED);
        let frames = || group.cells.iter().map(|cell| mmu.load(cell).address());
        if !is_inside || !has_tags || !frames().all(|frame| space.common.page(frame).reserve_now().is_ok()) {
            return false;
        }
        let is_own = self.area.is_shared() || space.has_group_to_itself(group);
        let is_writable = is_own && self.area.protection().contains(Protection::WRITE);
        let attributes = self.area.attributes(self.area.protection().read_only());
        for cell in group.cells {
            let entry = mmu.load(cell).modified(attributes).young();
            let entry = if is_writable { may_be_written(entry) } else { entry };
            let entry = if is_writable && self.access == Access::Write { entry.dirty() } else { entry };
            mmu.store(cell, space.prepared(entry));
        }
        true
    }
}
