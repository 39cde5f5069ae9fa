//! Free frames: the kernel's own page blocks, over a few blocks of memory that nothing accesses.

#![allow(unsafe_code, reason = "the books of page blocks in the host's memory")]

use std::alloc::{Layout, alloc, dealloc};

use granule_arch::addr::{PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};

use super::early::MemoryMap;
use super::frame::FrameRecords;
use super::page_block::{BLOCK_FRAMES, BLOCK_SIZE, Mobility, PageBlocks};
use crate::smp::{self, CpuId};

/// The first block.
const FIRST: usize = 1;

/// Page blocks.
pub struct FreeFrames {
    blocks: PageBlocks,
    storage: *mut u8,
    layout: Layout,
}

// SAFETY: the storage is that of the blocks, which each CPU may use.
unsafe impl Send for FreeFrames {}
// SAFETY: as above.
unsafe impl Sync for FreeFrames {}

fn cpu(number: u32) -> &'static smp::Cpu {
    smp::cpu(CpuId(number)).expect("such a CPU")
}

impl FreeFrames {
    /// So many blocks, all free.
    ///
    /// # Panics
    /// There is no memory.
    pub fn new(blocks: usize) -> Self {
        let memory = PhysRange::from_size(PhysAddr(FIRST as u64 * BLOCK_SIZE), blocks as u64 * BLOCK_SIZE);
        let map = MemoryMap::new(memory, []).expect("memory");
        let layout = Layout::from_size_align(PageBlocks::required_bytes(&map), PAGE_SIZE).expect("whole pages");
        // SAFETY: not empty.
        let storage = unsafe { alloc(layout) };
        let start = VirtAddr(storage.expose_provenance() as u64);
        // SAFETY: as large as they ask for, and theirs until they are dropped.
        let blocks = unsafe { PageBlocks::new(cpu(0), &map, start, FrameRecords) };
        Self { blocks, storage, layout }
    }

    /// Takes up to `most` frames on CPU `number`, and leaves `left` free; the first of them.
    pub fn take(&self, number: u32, most: usize, left: usize) -> Option<usize> {
        let mut first = None;
        self.blocks.take_runs(cpu(number), Mobility::Movable, most, left, |run| _ = first.get_or_insert(run.start));
        first
    }

    /// Gives `count` frames from `first` on back, on CPU `number`.
    pub fn put(&self, number: u32, first: usize, count: usize) {
        self.blocks.put_runs(cpu(number), core::iter::once(first..first + count));
    }

    /// CPU `number` gives the block that it keeps whole to all.
    pub fn give_back(&self, number: u32) {
        self.blocks.give_back(cpu(number), CpuId(number));
    }

    /// Frames that are free.
    pub fn free(&self) -> usize {
        self.blocks.totals().free_frames
    }

    /// Blocks that are free.
    pub fn free_blocks(&self) -> usize {
        self.blocks.totals().free_blocks
    }

    /// Isolates the block of `frame` on CPU `number`; whether it did.
    pub fn isolate(&self, number: u32, frame: usize) -> bool {
        self.blocks.isolate(cpu(number), frame / BLOCK_FRAMES - FIRST, BLOCK_FRAMES / 4, 0).is_some()
    }

    /// Ends that; whether the block is whole.
    pub fn end_isolation(&self, number: u32, frame: usize) -> bool {
        self.blocks.end_isolation(cpu(number), frame / BLOCK_FRAMES - FIRST)
    }
}

impl Drop for FreeFrames {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, and not used any more.
        unsafe { dealloc(self.storage, self.layout) };
    }
}
