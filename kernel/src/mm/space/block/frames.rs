//! How a block's frames are held: all by the record of the first, or each by its own.

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr};

use super::BlockTags;
use crate::mm::frame::Frame;
use crate::mm::page_block::{BLOCK_FRAMES, BlockState};
use crate::mm::space::spaces::Spaces;
use crate::mm::space::table_lock::TableGuard;
use crate::mm::tag_storage::Unreserved;
use crate::sched::relax;
use crate::smp::Cpu;
use crate::sync::rank;

/// Pages that are copied without a scheduling point.
const COPIED: usize = 64;

impl Spaces {
    /// The lock of a block's frames.
    pub(in crate::mm::space) fn lock_block(&self, block: PhysAddr) -> TableGuard<'_, { rank::TABLE_BESIDE }> {
        TableGuard::lock(self.record(block))
    }

    /// Whether only block entries have the frames, which are allocated as one. Their lock is held.
    #[inline(never)]
    pub(in crate::mm::space) fn is_one(&self, block: PhysAddr) -> bool {
        self.frames.frame(block).is_some_and(|(state, _)| state == BlockState::Head)
    }

    /// The records of the frames of a block that is held and was split.
    pub(super) fn records_of(&self, block: PhysAddr) -> impl Iterator<Item = (PhysAddr, &'static Frame)> {
        let records = self.records();
        let frames = (0..BLOCK_FRAMES as u64).map(move |index| block + index * PAGE);
        frames.map(move |frame| (frame, records.of(frame)))
    }

    /// Adds a holder of a block. The caller is one.
    #[inline(never)]
    pub(super) fn share_block(&self, block: PhysAddr) {
        let _locked = self.lock_block(block);
        if self.is_one(block) {
            self.record(block).share();
        } else {
            self.records_of(block).for_each(|(_, record)| record.share());
        }
    }

    /// Drops a block entry's hold, or a copier's; frames that nothing holds any more are free. Returns how many.
    #[cold]
    #[inline(never)]
    pub(in crate::mm::space) fn drop_block(&self, cpu: &Cpu, block: PhysAddr) -> usize {
        let is_last = {
            let _locked = self.lock_block(block);
            self.is_one(block).then(|| self.record(block).put())
        };
        match is_last {
            Some(true) => {
                self.frames.free_splittable(cpu, block);
                BLOCK_FRAMES
            }
            Some(false) => 0,
            None => {
                // A split block stays split while its frames are held.
                let mut freeing = self.frames.freeing(cpu);
                let freed = self.records_of(block).filter(|(_, record)| record.put());
                freed.map(|(frame, _)| freeing.add(frame)).count()
            }
        }
    }

    /// Whether the caller's entry alone holds the block. No fork is possible concurrently, so it stays true.
    #[inline(never)]
    pub(super) fn has_block_to_itself(&self, block: PhysAddr) -> bool {
        let _locked = self.lock_block(block);
        if self.is_one(block) {
            self.record(block).references() == 1
        } else {
            self.records_of(block).all(|(_, record)| record.references() == 1)
        }
    }

    /// Holders of a block that is one; 0 where it was split.
    pub(in crate::mm::space) fn holders_of(&self, block: PhysAddr) -> u32 {
        let _locked = self.lock_block(block);
        if self.is_one(block) { self.record(block).references() } else { 0 }
    }

    /// Deposits `table`, which is in no tree, for a block in the table that has this record and is locked.
    pub(super) fn deposit(&self, record: &Frame, table: PhysAddr) {
        self.record(table).owner.store(record.owner.load(Ordering::Relaxed), Ordering::Relaxed);
        record.owner.store(table.0, Ordering::Relaxed);
    }

    /// Takes one of the tables that were deposited for the blocks of the table that has this record, and has lost a
    /// block. It is locked, or in no tree any more.
    pub(in crate::mm::space) fn take_deposit(&self, record: &Frame) -> PhysAddr {
        let table = PhysAddr(record.owner.load(Ordering::Relaxed));
        debug_assert!(table.0 != 0, "a block without a table");
        record.owner.store(self.record(table).owner.load(Ordering::Relaxed), Ordering::Relaxed);
        table
    }

    /// Copies what `from` holds to `to`, a new page block, with scheduling points.
    ///
    /// # Errors
    /// [`Unreserved`]: it has tags, and storage for those of the copy cannot be reserved at once. Nothing was copied.
    pub(super) fn copy_block_contents(&self, from: PhysAddr, to: PhysAddr) -> Result<(), Unreserved> {
        let tags = self.tags_of_block(from);
        if tags != BlockTags::None {
            self.reserve_block_now(to)?;
        }
        for index in 0..BLOCK_FRAMES {
            let offset = index as u64 * PAGE;
            self.copy_contents(from + offset, to + offset);
            match tags {
                BlockTags::None => {}
                BlockTags::All => self.copy_tags_of(from + offset, to + offset),
                BlockTags::Some if self.record(from + offset).has_tags() => {
                    self.copy_tags_of(from + offset, to + offset);
                }
                BlockTags::Some => self.zero_tags_of(to + offset),
            }
            if index % COPIED == COPIED - 1 {
                relax();
            }
        }
        if tags != BlockTags::None {
            self.record(to).note_tags();
        }
        Ok(())
    }

    /// Which frames of a block have tags. More of them may get some concurrently, where entries that others have are
    /// changed.
    #[inline]
    pub(super) fn tags_of_block(&self, block: PhysAddr) -> BlockTags {
        let _locked = self.lock_block(block);
        if self.is_one(block) {
            return if self.record(block).has_tags() { BlockTags::All } else { BlockTags::None };
        }
        match self.records_of(block).filter(|(_, record)| record.has_tags()).count() {
            0 => BlockTags::None,
            BLOCK_FRAMES => BlockTags::All,
            _ => BlockTags::Some,
        }
    }

    /// Splits the frames of a block, if that was not done yet.
    pub(super) fn split_block(&self, cpu: &Cpu, block: PhysAddr) {
        loop {
            let locked = self.lock_block(block);
            if !self.is_one(block) {
                return;
            }
            // The CPU that writes the first tags takes no lock, and notes them in the first record.
            if !self.record(block).is_being_tagged() {
                return self.frames.split_block(cpu, block);
            }
            drop(locked);
            self.record(block).wait_for_tags();
        }
    }
}
