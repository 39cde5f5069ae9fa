//! Blocks: 2 MiB of anonymous or [shared] memory by one entry of the level above the last, where a program asks for
//! them (`MADV_HUGEPAGE`).
//!
//! The first access of a range that a block can translate, all of it in one area, brings a block of zeros; where there
//! is no page block, a page. A private area of an object has no blocks. A change of a whole block changes its
//! entry: `mprotect`, `munmap`, `fork`, copy on write. A change of a part splits it first, into a table with the same
//! pages, and changes those.
//!
//! # Lock
//! The lock of the table that the entry is in. An entry is empty only when no TLB has a block of it: a fault links a
//! table there without the lock.
//!
//! # Deposited tables
//! A block is split where nothing may fail: by a fault, or a call that has changed something already. So each block has
//! a table deposited when it is mapped (Linux: `pgtable_trans_huge_deposit`). Those of one table's blocks are linked
//! through the records of their frames, with the head in that of the table.
//!
//! # Frames
//! How they are held is the affair of their [folio](super::folio).
//!
//! [shared]: super::shmem

#![allow(unsafe_code, reason = "tables that are deposited, in no tree yet")]

mod collapse;
mod fault;
mod migrate;
mod remap;
mod shared;

use core::slice;
use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_arch::patched_branch;
use granule_pgtable::{Invalidation, Mmu, PageRange, Stores, Table, Tables, Visited};

use super::access::Access;
use super::address_space::Space;
use super::cells::BlockCell;
use super::code::{is_checked, is_visible, needs_frame};
use super::entry::{attributes, replace, uffd_wp_marker};
use super::folio::FolioTags;
use super::gather::Gather;
use super::group::fill_groups;
use super::look::LockedEntry;
use super::protect::{Allowed, may_be_written};
use super::spaces::Spaces;
use super::table_lock::TableGuard;
use super::used::ALL_USED;
use super::userfault::Mark;
use super::userfault::protect::Marking;
use super::zap::ZapFlags;
use crate::mm::frame::Frame;
use crate::mm::kernel::Machine;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::tlb::user::{Leaf, TlbBatch};
use crate::platform::features::branch;
use crate::sched::relax;
use crate::smp::{Cpu, this_cpu};

/// Whether an entry above the last level is a block, valid or not.
pub(super) fn is_block(entry: Descriptor) -> bool {
    !entry.is_table() && entry.is_present()
}

/// Whether an entry above the last level is the [marker](Space::zap_block) of a block that was zapped.
pub(super) fn is_marker(entry: Descriptor) -> bool {
    entry == uffd_wp_marker()
}

/// The pages of a block that are in `range`, where a walk has met it at `address`.
pub(super) fn pages_of_block(range: PageRange, address: VirtAddr) -> usize {
    let last = VirtAddr(address.0 | (BLOCK_SIZE - 1)).min(range.last());
    ((last - address) / PAGE) as usize + 1
}

/// The answer of a visitor where the entry is no block any more.
fn visited(entry: Descriptor) -> Visited {
    if entry.is_table() { Visited::Again } else { Visited::Done }
}

/// The entry of the block that begins with the frame of `page`, with its attributes.
fn block_of(page: Descriptor) -> Descriptor {
    Descriptor(page.0 & !bits::TABLE)
}

/// The entry of the first page of `block`, with its attributes.
pub(super) fn page_of(block: Descriptor) -> Descriptor {
    Descriptor(block.0 | bits::TABLE)
}

/// The block of `entry` while it is split or replaced: not valid, and neither empty nor a table.
fn broken(entry: Descriptor) -> Descriptor {
    Descriptor(entry.0 & !bits::VALID)
}

/// Whether a block's entry waits for tag storage.
fn is_waiting(entry: Descriptor) -> bool {
    is_block(entry) && entry.is_fault_on_access()
}

impl Space {
    /// The block's entry for `address`, where a walk has met one: its table stays while the areas are locked.
    #[inline(never)]
    pub(super) fn block_at(&self, address: VirtAddr) -> Option<BlockCell<'_>> {
        self.page_tables().block_cell(address)
    }

    /// Splits the block at `address` where only a part of it is in `range`.
    #[cold]
    #[inline(never)]
    pub(super) fn split_part(&self, range: PageRange, address: VirtAddr) -> Visited {
        match self.block_at(address) {
            Some(found) if !found.is_in(range) => self.split_block(&found, range),
            _ => Visited::Done,
        }
    }

    /// Puts a table with the same pages in the place of the block at `address`, if there is one.
    #[cold]
    #[inline(never)]
    pub(super) fn split_block_at(&self, address: VirtAddr) -> Visited {
        self.block_at(address).map_or(Visited::Done, |found| self.split_block(&found, found.range()))
    }

    /// As [`Self::split_block_at`], for the marker of a block alone.
    #[cold]
    pub(super) fn split_block_marker(&self, address: VirtAddr) -> Visited {
        let found = self.block_at(address).filter(|found| is_marker(self.mmu().load(found.cell)));
        found.map_or(Visited::Done, |found| self.split_block(&found, found.range()))
    }

    /// Puts a table with the same pages in the place of the block in `found`, in groups but for those that `range`
    /// cuts.
    #[inline(never)]
    fn split_block(&self, found: &BlockCell<'_>, range: PageRange) -> Visited {
        let mmu = self.mmu();
        let locked = self.lock_table(found.table);
        let mut entry = mmu.load(found.cell);
        if is_marker(entry) {
            return self.split_marker(found, &locked);
        }
        if !is_block(entry) {
            return visited(entry);
        }
        self.common.block(entry.address()).divide(this_cpu());
        let table = self.common.take_deposit(locked.frame());
        // A TLB that has the block beside pages of it may raise a conflict abort, unless all CPUs promise otherwise,
        // and then each SMMU that is bound does too. So the entry is made invalid first.
        let is_live = patched_branch!(branch::SIZE_CHANGE);
        let (was_valid, mut in_cell) = (entry.is_valid(), entry);
        if was_valid && !is_live {
            entry = replace(mmu, found.cell, entry, broken);
            in_cell = broken(entry);
            self.flush_block(found.start);
        }
        self.common.record(table).owner.store(ALL_USED, Ordering::Relaxed);
        self.note_groups();
        // While TLBs may have the block, no page of the table changes: its invalidation would be at the page's level.
        let _pages = (was_valid && is_live).then(|| self.lock_table_beside(table));
        loop {
            // SAFETY: it was allocated as a table of the space, is in no tree, and was taken out of the deposit.
            let pages = mmu.table(unsafe { Table::spare(table) });
            fill_groups(mmu, pages, page_of(entry), found.start, range);
            // The pages before the table that has them.
            mmu.dmb_ishst();
            match mmu.compare_exchange(found.cell, in_cell, Descriptor::user_table(table)) {
                Ok(()) => break,
                // The hardware has set a flag.
                Err(now) => (entry, in_cell) = (now, now),
            }
        }
        if was_valid && is_live {
            self.flush_block(found.start);
        }
        Visited::Again
    }

    /// Puts the table that was deposited for a block in the place of the marker that it has left in `found`, whose table
    /// is locked: a marker for each page.
    #[cold]
    #[inline(never)]
    fn split_marker(&self, found: &BlockCell<'_>, locked: &TableGuard<'_>) -> Visited {
        let mmu = self.mmu();
        let table = self.common.take_deposit(locked.frame());
        self.common.record(table).owner.store(ALL_USED, Ordering::Relaxed);
        // SAFETY: as in `split_block`.
        mmu.fill(mmu.table(unsafe { Table::spare(table) }), uffd_wp_marker(), 0);
        // The markers before the table that has them.
        mmu.dmb_ishst();
        mmu.store(found.cell, Descriptor::user_table(table));
        Visited::Again
    }

    /// Replaces the entry in `found`, read as `entry`, by `change` of it, and completes the invalidation; returns what
    /// it was last. The table is locked.
    fn replace_block_entry(
        &self,
        found: &BlockCell<'_>,
        entry: Descriptor,
        change: fn(Descriptor) -> Descriptor,
    ) -> Descriptor {
        let entry = replace(self.mmu(), found.cell, entry, change);
        if entry.is_valid() {
            self.flush_block(found.start);
        }
        entry
    }

    /// Completes the invalidation of the block at `start`, whose entry is not valid or a table's by now.
    #[inline(never)]
    pub(super) fn flush_block(&self, start: VirtAddr) {
        self.tlb().flush_replaced(self.mmu(), Leaf::block(start));
    }

    /// Clears the block at `address`. Its frames go to `gather`. One of which only a part is in `range` is split.
    ///
    /// A write-protected block becomes a marker where `flags` keep markers, and keeps its deposited table: what needs a
    /// marker for each page puts that table there, and nothing is allocated.
    #[cold]
    #[inline(never)]
    pub(super) fn zap_block(
        &self,
        gather: &mut Gather<'_>,
        range: PageRange,
        address: VirtAddr,
        flags: ZapFlags,
    ) -> Visited {
        let mmu = self.mmu();
        let Some(found) = self.block_at(address) else { return Visited::Done };
        if !found.is_in(range) {
            if gather.may_be_stale() {
                // Invalid by now, it may be in a TLB as a block: an invalidation of a page need not reach that.
                gather.stale_block(found.start);
            }
            return self.split_block(&found, range);
        }
        // Not for a part: a discard of few pages must not sleep.
        gather.rest();
        let (entry, table) = {
            let locked = self.lock_table(found.table);
            let entry = mmu.load(found.cell);
            let left = gather.left_of(found.start, entry, flags);
            if is_marker(entry) {
                if left == Descriptor::EMPTY {
                    self.drop_marker(gather.cpu(), &found, locked);
                }
                return Visited::Done;
            }
            if !is_block(entry) {
                return visited(entry);
            }
            if entry.is_valid() || gather.may_be_stale() {
                if gather.excludes_faults() {
                    gather.stale_block(found.start);
                } else {
                    replace(mmu, found.cell, entry, broken);
                    self.flush_block(found.start);
                }
            }
            mmu.store(found.cell, left);
            let table = (left == Descriptor::EMPTY).then(|| self.common.take_deposit(locked.frame()));
            (entry, table)
        };
        gather.add_block(entry.address());
        if let Some(table) = table {
            self.free_deposit(gather.cpu(), table);
        }
        Visited::Done
    }

    /// Empties the entry in `found`, a block's marker, whose table is `locked`.
    fn drop_marker(&self, cpu: &Cpu, found: &BlockCell<'_>, locked: TableGuard<'_>) {
        self.mmu().store(found.cell, Descriptor::EMPTY);
        let table = self.common.take_deposit(locked.frame());
        drop(locked);
        self.free_deposit(cpu, table);
    }

    /// Sets userfaultfd's mark of the block at `address`, or clears it, where all of it is in `range`; splits it where it
    /// is not. Its marker goes.
    #[cold]
    #[inline(never)]
    pub(super) fn mark_block(&self, cpu: &Cpu, range: PageRange, address: VirtAddr, marking: Marking<'_>) -> Visited {
        let mmu = self.mmu();
        let Some(found) = self.block_at(address) else { return Visited::Done };
        if !found.is_in(range) {
            self.split_block(&found, range);
            return Visited::Again;
        }
        let locked = self.lock_table(found.table);
        let entry = mmu.load(found.cell);
        if is_marker(entry) {
            if marking.mark == Mark::Clear {
                self.drop_marker(cpu, &found, locked);
            }
            return Visited::Done;
        }
        if !is_block(entry) {
            // Also where a zap was faster: then each page gets its marker.
            return Visited::Again;
        }
        if self.mark_leaf(slice::from_ref(found.cell), entry, BLOCK_FRAMES, marking) {
            self.flush_block(found.start);
        }
        Visited::Done
    }

    /// Changes the protection of the block at `address`, or splits it where only a part of it is in `range`. The caller
    /// invalidates it where a TLB may have what it was, which is returned too.
    #[cold]
    #[inline(never)]
    pub(super) fn protect_block(&self, range: PageRange, address: VirtAddr, allowed: Allowed) -> (Visited, bool) {
        relax();
        let mmu = self.mmu();
        let Some(found) = self.block_at(address) else { return (Visited::Done, false) };
        if !found.is_in(range) {
            return (self.split_block(&found, range), false);
        }
        let locked = self.lock_table(found.table);
        let entry = mmu.load(found.cell);
        if !is_block(entry) {
            return (visited(entry), false);
        }
        let Some(is_stale) = self.protect_leaf(slice::from_ref(found.cell), entry, BLOCK_FRAMES, allowed) else {
            drop(locked);
            return (self.split_block(&found, range), false);
        };
        (Visited::Done, is_stale)
    }

    /// Copies the block at `address` to the same place in `child`, where a table without entries is linked; returns
    /// whether it was writable and became read-only.
    #[cold]
    #[inline(never)]
    pub(super) fn copy_block_entry(&self, child: &Space, address: VirtAddr) -> bool {
        let mmu = self.mmu();
        let Some(found) = self.block_at(address) else { return false };
        let _locked = self.lock_table(found.table);
        let mut entry = mmu.load(found.cell);
        let Some(copy) = child.block_at(found.start) else { return false };
        let was_writable = entry.may_be_written();
        if was_writable {
            entry = replace(mmu, found.cell, entry, Descriptor::write_protected).write_protected();
        }
        self.common.block(entry.address()).share();
        // No thread uses the child's tables yet.
        self.common.deposit(self.common.record(copy.table), mmu.load(copy.cell).address());
        mmu.store(copy.cell, entry.old());
        was_writable
    }

    /// The block entry for `page`, if there is one. It may be another one by now.
    pub(super) fn block_entry(&self, page: VirtAddr) -> Option<Descriptor> {
        self.block_at(page).map(|found| self.mmu().load(found.cell)).filter(|&entry| is_block(entry))
    }

    /// Whether a block is there for `page`, or its marker. It may be gone by now.
    pub(super) fn is_block_or_marker(&self, page: VirtAddr) -> bool {
        let entry = self.block_at(page).map(|found| self.mmu().load(found.cell));
        entry.is_some_and(|entry| is_block(entry) || is_marker(entry))
    }

    /// Takes userfaultfd's mark from the block at `address`, of a space in which no thread runs yet.
    pub(super) fn unprotect_block(&self, address: VirtAddr) {
        if let Some(found) = self.block_at(address) {
            let entry = self.mmu().load(found.cell);
            self.mmu().store(found.cell, entry.without_uffd_wp());
        }
    }

    /// Has `look` see the entry of the block, or of its marker, that a walk has met at `page`; or has the walk go on
    /// there, where a table is by now.
    #[cold]
    #[inline(never)]
    pub(super) fn look_at_block(&self, page: VirtAddr, look: impl FnOnce(LockedEntry<'_>)) -> Visited {
        let Some(found) = self.block_at(page) else { return Visited::Done };
        let locked = self.lock_table(found.table);
        let seen = locked.entry(self.mmu(), found.cell);
        if seen.descriptor().is_table() {
            return Visited::Again;
        }
        look(seen);
        Visited::Done
    }

    /// Makes the block that a walk has met at `page` old, and has `batch` invalidate it; or has the walk go on there, where
    /// a table is by now.
    #[cold]
    #[inline(never)]
    pub(super) fn age_block(&self, batch: &mut TlbBatch<'_, Machine>, page: VirtAddr) -> Visited {
        let Some(found) = self.block_at(page) else { return Visited::Done };
        let _locked = self.lock_table(found.table);
        let entry = self.mmu().load(found.cell);
        if is_block(entry) && entry.is_young() {
            replace(self.mmu(), found.cell, entry, Descriptor::old);
            batch.add(self.tlb(), &Invalidation { range: found.range(), tables: Tables::Kept, level: None });
        }
        visited(entry)
    }

    /// The linear address of `page`, if a block that permits `access` translates it, and the lock under which it stays
    /// so.
    #[cold]
    #[inline(never)]
    pub(super) fn page_of_block(&self, page: VirtAddr, access: Access) -> Option<(TableGuard<'_>, VirtAddr)> {
        let found = self.block_at(page)?;
        let locked = self.lock_table(found.table);
        let entry = self.mmu().load(found.cell);
        let is_there = is_block(entry) && Self::permits_entry(entry, access);
        is_there.then(|| (locked, self.common.frames.linear().address(entry.address()) + (page - found.start)))
    }

    /// The entry to store for `new`, a block, as [`Self::prepared`] returns it for a page. A block without tags gets none
    /// here, because that takes too long under a lock. One that needs storage for them waits for an access; `None` for
    /// another: it is split, and its pages get theirs one by one.
    #[inline(always)]
    #[must_use]
    fn prepared_block(&self, new: Descriptor) -> Option<Descriptor> {
        if needs_frame(new) { self.prepare_block(new) } else { Some(new) }
    }

    /// As [`Self::prepared_block`], for a page, a group's page or a block, of a folio of `frames` frames.
    #[inline(always)]
    pub(super) fn prepared_leaf(&self, new: Descriptor, frames: usize) -> Option<Descriptor> {
        if frames == BLOCK_FRAMES { self.prepared_block(new) } else { Some(self.prepared(new)) }
    }

    #[cold]
    #[inline(never)]
    fn prepare_block(&self, new: Descriptor) -> Option<Descriptor> {
        let block = new.address();
        if new.is_user_executable() {
            self.make_block_visible(block);
        }
        let folio = self.common.block(block);
        if !is_checked(new) || folio.tags() == FolioTags::All {
            return Some(new);
        }
        let waits = folio.lacks_tag_storage() && {
            let _locked = folio.lock();
            folio.is_one()
        };
        waits.then(|| new.fault_on_access())
    }

    /// Serves a fault of the block that has `page`, whose entry waits for tag storage. Where that cannot be reserved
    /// for all of it, its pages wait one by one. The retry decides. Sleeps; no lock is held.
    #[inline(never)]
    fn block_on_access(&self, cpu: &Cpu, page: VirtAddr) {
        if self.is_migrating() {
            // Perhaps it: what migrates it holds it.
            return self.common.wait_for_migration();
        }
        let (common, mmu) = (self.common, self.mmu());
        let Some(storage) = common.frames.tag_storage() else { return };
        let waiting = |found: &BlockCell<'_>| Some(mmu.load(found.cell)).filter(|&entry| is_waiting(entry));
        let entry = {
            let _areas = self.areas.read(page);
            let Some(found) = self.block_at(page) else { return };
            let _locked = self.lock_table(found.table);
            let Some(entry) = waiting(&found) else { return };
            // Pinned until the entry is compared again, as a page is.
            common.block(entry.address()).share();
            entry
        };
        let block = entry.address();
        let folio = common.block(block);
        // Where it was divided concurrently, its frames have a record each.
        let note = || {
            let _locked = folio.lock();
            folio.is_one() && folio.record().note_tag_storage()
        };
        if folio.record().has_tag_storage() || storage.reserve_block(common, cpu, block, &note).is_ok() {
            common.tag_block(block);
        }
        {
            let areas = self.areas.read(page);
            if let (Some(area), Some(found)) = (areas.find(page), self.block_at(page)) {
                let locked = self.lock_table(found.table);
                if waiting(&found) == Some(entry) {
                    let protection = area.protection();
                    if !protection.contains(Protection::TAGGED) {
                        crate::log::warn!("the block at {} waits for tag storage in an area without tags", found.start);
                    }
                    let valid = entry.modified(attributes(protection.read_only())).young();
                    // This fault's hold is one of them.
                    let own = protection.contains(Protection::WRITE) && (area.is_shared() || folio.holders() == 2);
                    let valid = if own { may_be_written(valid) } else { valid };
                    match self.prepared_block(valid).filter(|new| new.is_valid()) {
                        Some(valid) => {
                            mmu.store(found.cell, valid);
                            storage.note_served(None);
                        }
                        None => {
                            drop(locked);
                            self.split_block(&found, found.range());
                        }
                    }
                }
            }
        }
        folio.put_block(cpu);
    }

    /// Makes the contents of a block visible to fetches. Once it is divided the record of its first frame says that of the
    /// first page alone, so a block that is one is judged under its lock.
    fn make_block_visible(&self, block: PhysAddr) {
        let folio = self.common.block(block);
        let is_visible_as_one = {
            let _locked = folio.lock();
            folio.is_one().then(|| is_visible(folio.record()))
        };
        match is_visible_as_one {
            Some(true) => {}
            Some(false) => self.maintain(block, BLOCK_SIZE),
            None => {
                let hidden = folio.records().filter(|(_, record)| !is_visible(record));
                hidden.for_each(|(frame, _)| self.maintain(frame, PAGE));
            }
        }
    }

    /// Frees a table that was deposited.
    fn free_deposit(&self, cpu: &Cpu, table: PhysAddr) {
        self.table_frames.fetch_sub(1, Ordering::Relaxed);
        self.common.frames.free(cpu, table);
    }
}

impl Spaces {
    /// Deposits `table`, which is in no tree, for a block in the table that has this record and is locked.
    fn deposit(&self, record: &Frame, table: PhysAddr) {
        self.record(table).owner.store(record.owner.load(Ordering::Relaxed), Ordering::Relaxed);
        record.owner.store(table.0, Ordering::Relaxed);
    }

    /// Takes one of the tables that were deposited for the blocks of the table that has this record, and has lost a
    /// block. It is locked, or in no tree any more.
    pub(super) fn take_deposit(&self, record: &Frame) -> PhysAddr {
        let table = PhysAddr(record.owner.load(Ordering::Relaxed));
        debug_assert!(table.0 != 0, "a block without a table");
        record.owner.store(self.record(table).owner.load(Ordering::Relaxed), Ordering::Relaxed);
        table
    }
}
