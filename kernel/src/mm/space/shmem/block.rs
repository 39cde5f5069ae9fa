//! 2 MiB of an object in one page block: what a shared area can map by one entry ([`block`](super::super::block)).
//!
//! The object's tree stays one of pages, each with a frame of its own: a page block is split as soon as it is
//! allocated. So what takes pages away, reads or writes them knows nothing of blocks. Whether 512 pages are still one,
//! a fault finds by a look at their entries.

#![allow(unsafe_code, reason = "user frames by their linear addresses")]

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::Mmu;

use super::Object;
use super::pages::{Found, FoundBlock};
use crate::mm::OutOfMemory;
use crate::mm::kernel::Machine;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::cells::EntryCell;
use crate::smp::Cpu;

/// The frames of the pages of a block.
pub(in super::super) enum BlockPages<'a> {
    /// Frames that an entry can map as a block.
    Block(FoundBlock<'a, Machine>),
    /// No frames.
    None,
    /// Frames that are on their way to other ones, all of them perhaps.
    Migrating,
    /// Frames of several page blocks, or not all have one; or there is no block for them.
    Others,
}

impl Object {
    /// The frames of the pages of the block that begins with page `first`.
    pub(in super::super) fn look_for_block(&self, first: u64) -> BlockPages<'_> {
        let may_be = first.is_multiple_of(BLOCK_FRAMES as u64) && self.reaches_over(first);
        if !may_be || self.is_registers() || self.share.is_limited() || self.can_be_had_again() {
            return BlockPages::Others;
        }
        let (mmu, start) = (&self.common.mmu, VirtAddr(first * PAGE));
        // Those of a block are on their way in order: the first or the last is.
        let is_migrating = |cells: &[EntryCell]| {
            let ends = [cells.first(), cells.last()].into_iter().flatten();
            ends.filter_map(|cell| Found::look(mmu, cell)).any(|found| found.is_migrating(mmu))
        };
        match self.tables().cells(start, BLOCK_FRAMES) {
            None => BlockPages::None,
            Some(found) if mmu.survey(found.cells).any == Descriptor::EMPTY.0 => BlockPages::None,
            Some(found) if is_migrating(found.cells) => BlockPages::Migrating,
            Some(found) => FoundBlock::look(mmu, found.cells).map_or(BlockPages::Others, BlockPages::Block),
        }
    }

    /// Whether it ends after the block that begins with page `first`, or in its last page.
    fn reaches_over(&self, first: u64) -> bool {
        self.has_inside(first + BLOCK_FRAMES as u64 - 1)
    }

    /// Gives the pages of the block that begins with page `first`, which had no frames, those of a page block; returns
    /// what they have then, where that is one page block, and what `prepare` made when nothing else could fail any
    /// more.
    ///
    /// # Errors
    /// [`OutOfMemory`], or that of `prepare`; nothing was changed.
    pub(in super::super) fn add_block<T>(
        &self,
        cpu: &Cpu,
        first: u64,
        prepare: impl FnOnce() -> Result<T, OutOfMemory>,
    ) -> Result<(Option<FoundBlock<'_, Machine>>, T), OutOfMemory> {
        let (frames, mmu) = (self.common.frames, &self.common.mmu);
        let block = frames.alloc_splittable(cpu)?;
        // It is not limited.
        let linked = self.ensure_cell(cpu, first, prepare).map_err(|_| OutOfMemory);
        let ((table, _), prepared) = linked.inspect_err(|_| frames.free_splittable(cpu, block))?;
        // SAFETY: the linear map has the block, writable, and it has no other user.
        unsafe { frames.linear().address(block).as_ptr::<u8>().write_bytes(0, BLOCK_SIZE as usize) };
        // The frames are of no program's own pages.
        frames.set_origin(block, 0);
        frames.split_block(cpu, block);
        let cells = self.tables().cells(VirtAddr(first * PAGE), BLOCK_FRAMES).map_or(&[][..], |found| found.cells);
        for (index, cell) in (0..).zip(cells) {
            let frame = block + index * PAGE;
            self.note_frame(frame, first + index);
            // Where another CPU was faster, the frame is freed.
            self.publish(cpu, table, cell, first + index, frame);
        }
        Ok((FoundBlock::look(mmu, cells), prepared))
    }

    /// Whether the object has still what was found at page `first`: see [`FoundBlock::is_current`].
    pub(in super::super) fn has_block(&self, found: &FoundBlock<'_, Machine>, first: u64) -> bool {
        found.is_current(&self.common.mmu, || self.reaches_over(first))
    }
}
