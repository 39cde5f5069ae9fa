//! Page blocks: physical memory in pieces of 2 MiB, whole or cut into frames.
//!
//! ```text
//!              take_blocks(order)                       take_frames
//!   Free  ─────────────────────────►  Head, Tail…        Free ──► Cut   one bit per frame, set = free
//!  (buddy) ◄─────────────────────────                   (buddy) ◄──     when the last frame comes back
//! ```
//!
//! `buddy_system_allocator` knows the free blocks and joins neighbours up to 1 GiB; it works with block *numbers* and
//! never touches the memory. A block in use as frames is cut by the bitmap in its [`PageBlock`]. Cut blocks with a free
//! frame are in a list, linked through the records themselves, so taking and putting back are O(1) in the size of
//! memory, and neither ever allocates (the buddy's sets live in a [`NodeArena`]).
//!
//! A block of which some frames are not ours (the edge of a bank, reserved, taken by boot) is cut from the start, with
//! only its free frames in the bitmap. It can never be whole, so it never goes to the buddy; and the list has it in
//! front, because a frame taken from it breaks nothing.
//!
//! The rule: a frame is free in exactly one place: inside a free block, as a bit of a cut block, or in a magazine
//! above.

mod arena;
mod spans;
use alloc::collections::BTreeSet;
use core::mem::{ManuallyDrop, size_of};
use core::ops::Range;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicU8, Ordering};

#[cfg(test)]
pub(in crate::mm) use arena::tests::host_allocations;
pub use arena::{CurrentArena, NodeArena};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
pub use spans::Spans;

use super::early::MemoryMap;
use super::frame::FrameRecords;
use crate::smp::Cpu;
use crate::sync::{IrqGuard, IrqLock, rank};

/// Bytes in a page block: what one level-2 block descriptor maps.
pub const BLOCK_SIZE: u64 = 2 << 20;
/// Frames in a page block.
pub const BLOCK_FRAMES: usize = BLOCK_SIZE as usize / PAGE_SIZE;
/// Sizes of run that the buddy keeps apart: 2 MiB to 1 GiB, the largest leaf.
pub(super) const BUDDY_ORDERS: usize = 10;
/// The largest order that [`PageBlocks::take_blocks`] can serve: 2⁹ blocks, 1 GiB.
pub const MAX_ORDER: u32 = BUDDY_ORDERS as u32 - 1;

/// A physical address in units of [`BLOCK_SIZE`].
pub type BlockNumber = usize;

/// What a page block is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BlockState {
    /// No frame of it was ever given to the allocator.
    Absent = 0,
    /// Whole, and in the buddy's sets.
    Free = 1,
    /// Cut into frames by its bitmap.
    Cut = 2,
    /// The first block of a run that was taken whole.
    Head = 3,
    /// A later block of such a run.
    Tail = 4,
}

/// The end of a list.
const NONE: u32 = u32::MAX;
/// 64-bit words in a bitmap.
const WORDS: usize = BLOCK_FRAMES / 64;

/// What is known about one page block besides its [`BlockState`]. All zero is right for a block that was never used.
struct PageBlock {
    /// Cut: bit f of word f / 64 is set while frame f is free.
    bitmap: [u64; WORDS],
    /// Cut: number of set bits.
    free: u16,
    /// Head: log2 of the blocks in the run.
    order: u8,
    /// The block's `Frame` records have been zeroed.
    records_valid: bool,
    /// Cut: this block's number.
    number: u32,
    /// Cut with a free frame: neighbours in the list, by index.
    next: u32,
    previous: u32,
}

const _: () = assert!(size_of::<PageBlock>() == 80 && size_of::<PageBlock>().is_multiple_of(16));
// A block number fits in `PageBlock::number`, an index in the links with NONE to spare.
const _: () = assert!(super::layout::LINEAR_SIZE / BLOCK_SIZE < NONE as u64);

/// All page blocks.
pub struct PageBlocks {
    spans: Spans,
    /// One per block, readable without the lock: see [`Self::state`].
    states: &'static [AtomicU8],
    records: FrameRecords,
    lists: IrqLock<Lists, { rank::PAGE_BLOCK }>,
}

/// What the lock protects.
struct Lists {
    arena: NodeArena,
    /// Never dropped: its nodes are the arena's cells, which no global allocator would know outside a section.
    buddy: ManuallyDrop<buddy_system_allocator::FrameAllocator<BUDDY_ORDERS>>,
    blocks: Blocks,
    /// First and last cut block with a free frame.
    first: u32,
    last: u32,
    totals: Totals,
}

/// The blocks, by their indices.
struct Blocks(&'static mut [PageBlock]);

impl Blocks {
    /// The block of an index of the spans or of a link in the list.
    #[inline(always)]
    fn at(&mut self, index: usize) -> &mut PageBlock {
        &mut self.0[index]
    }
}

/// How much is free, and how much there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Frames ever given to the allocator, whatever they are used for now.
    pub frames: usize,
    /// Free frames, in free blocks and cut ones. Frames in magazines are not among them.
    pub free_frames: usize,
    /// Free whole blocks.
    pub free_blocks: usize,
    /// Cut blocks that have a free frame or will have one: those that cannot become whole included.
    pub cut_blocks: usize,
}

impl PageBlocks {
    /// Bytes of the array, the states and the arena for the memory of `map`; a multiple of [`PAGE_SIZE`].
    pub fn required_bytes(map: &MemoryMap) -> usize {
        Self::arena_offset(Spans::new(map).blocks(), NodeArena::required_bytes).next_multiple_of(PAGE_SIZE)
    }

    /// Where the arena begins among the arrays for `blocks` blocks, plus `more` of it.
    fn arena_offset(blocks: usize, more: fn(usize) -> usize) -> usize {
        (blocks * (size_of::<PageBlock>() + 1)).next_multiple_of(16) + more(blocks)
    }

    /// Takes all the free memory of `map`. `cpu` is the CPU that this runs on.
    ///
    /// # Safety
    /// - The [`Self::required_bytes`] at `storage`, 16-byte aligned, and the records of all blocks ([`FrameRecords`])
    ///   are mapped, writable and exclusive, for ever. They need not be zero.
    /// - The memory in `map.free()` is unused.
    #[allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]
    pub unsafe fn new(cpu: &Cpu, map: &MemoryMap, storage: VirtAddr, records: FrameRecords) -> Self {
        let spans = Spans::new(map);
        let count = spans.blocks();
        let arena_offset = Self::arena_offset(count, |_| 0);
        // SAFETY: the storage is ours and at least this long; zero is a valid value of both arrays (`BlockState::Absent`).
        let (blocks, states) = unsafe {
            ptr::write_bytes(storage.as_ptr::<u8>(), 0, arena_offset);
            let states = storage + (count * size_of::<PageBlock>()) as u64;
            (
                slice::from_raw_parts_mut(storage.as_ptr(), count),
                slice::from_raw_parts(states.as_ptr::<AtomicU8>().cast_const(), count),
            )
        };
        // SAFETY: the arena's part of the storage follows the arrays.
        let arena = unsafe { NodeArena::new(storage + arena_offset as u64, NodeArena::required_bytes(count)) };
        check_node_size(cpu, &arena);
        let lists = Lists {
            arena,
            buddy: ManuallyDrop::new(buddy_system_allocator::FrameAllocator::new()),
            blocks: Blocks(blocks),
            first: NONE,
            last: NONE,
            totals: Totals::default(),
        };
        let this = Self { spans, states, records, lists: IrqLock::new(lists) };
        for range in map.free() {
            this.add(cpu, range.start().frame_number()..range.end().frame_number());
        }
        this
    }

    /// Gives `frames`, all of them inside one span, to the allocator.
    fn add(&self, cpu: &Cpu, frames: Range<usize>) {
        let mut lists = self.lists.lock();
        lists.totals.frames += frames.len();
        lists.totals.free_frames += frames.len();
        let mut frame = frames.start;
        while frame < frames.end {
            let block = frame / BLOCK_FRAMES;
            let whole_end = frames.end / BLOCK_FRAMES;
            if frame.is_multiple_of(BLOCK_FRAMES) && block < whole_end {
                self.set_states(block..whole_end, BlockState::Free);
                lists.totals.free_blocks += whole_end - block;
                lists.with_buddy(cpu, |buddy| buddy.add_frame(block, whole_end));
                frame = whole_end * BLOCK_FRAMES;
            } else {
                let end = frames.end.min((block + 1) * BLOCK_FRAMES);
                let first_bit = frame % BLOCK_FRAMES;
                self.add_piece(&mut lists, block, first_bit..first_bit + (end - frame));
                frame = end;
            }
        }
    }

    /// Gives some frames of a block that can never be whole to the allocator.
    fn add_piece(&self, lists: &mut Lists, number: BlockNumber, bits: Range<usize>) {
        let Some(index) = self.spans.index(number) else { return };
        if self.load_state(index) != BlockState::Cut {
            self.prepare_records(lists, index, number);
            lists.blocks.at(index).number = number as u32;
            lists.totals.cut_blocks += 1;
            lists.link_first(index);
            self.set_states(number..number + 1, BlockState::Cut);
        }
        let block = lists.blocks.at(index);
        block.free += bits.len() as u16;
        for (word, first_bit) in block.bitmap.iter_mut().zip((0..).step_by(64)) {
            let from = bits.start.clamp(first_bit, first_bit + 64) - first_bit;
            let to = bits.end.clamp(first_bit, first_bit + 64) - first_bit;
            *word |= mask_below(to) & !mask_below(from);
        }
    }

    /// Takes up to `frames.len()` frames, writes their numbers to the front of `frames`, and returns how many it got:
    /// fewer than asked for only where no more are free beyond `left_free`, a number of frames that stay. Their records
    /// are "free" until the caller changes that.
    pub fn take_frames(&self, cpu: &Cpu, frames: &mut [usize], left_free: usize) -> usize {
        let most = frames.len();
        let mut places = frames.iter_mut();
        self.take_runs(cpu, most, left_free, |run| run.zip(&mut places).for_each(|(frame, place)| *place = frame))
    }

    /// Takes a block from the buddy and cuts it. Whether there was one.
    fn cut_a_block(&self, cpu: &Cpu, lists: &mut IrqGuard<'_, Lists, { rank::PAGE_BLOCK }>) -> bool {
        let Some(number) = lists.with_buddy(cpu, |buddy| buddy.alloc(1)) else { return false };
        // The buddy knows no blocks but those of the spans.
        let Some(index) = self.spans.index(number) else { return false };
        self.prepare_records(lists, index, number);
        lists.totals.free_blocks -= 1;
        lists.totals.cut_blocks += 1;
        let block = lists.blocks.at(index);
        block.bitmap = [u64::MAX; WORDS];
        block.free = BLOCK_FRAMES as u16;
        block.number = number as u32;
        lists.link_last(index);
        self.set_states(number..number + 1, BlockState::Cut);
        true
    }

    /// Takes up to `most` frames in runs of neighbours, calls `each` with every run, and returns how many frames those
    /// are: fewer than asked for only where no more are free beyond `left_free`, a number of frames that stay. Their
    /// records are "free" until the caller changes that.
    ///
    /// `each` is called under the lock.
    pub fn take_runs(&self, cpu: &Cpu, most: usize, left_free: usize, mut each: impl FnMut(Range<usize>)) -> usize {
        let mut lists = self.lists.lock();
        let most = most.min(lists.totals.free_frames.saturating_sub(left_free));
        let mut taken = 0;
        while taken < most {
            if lists.first == NONE && !self.cut_a_block(cpu, &mut lists) {
                break;
            }
            let index = lists.first as usize;
            taken += lists.blocks.at(index).take_runs(most - taken, &mut each);
            if lists.blocks.at(index).free == 0 {
                lists.unlink(index);
            }
        }
        lists.totals.free_frames -= taken;
        taken
    }

    /// Takes runs of frames back, by words of the bitmaps. Each frame came from [`Self::take_frames`] or
    /// [`Self::take_runs`], and its record is "free" again.
    pub fn put_runs(&self, cpu: &Cpu, runs: impl IntoIterator<Item = Range<usize>>) {
        /// Words for which the lock is held, and interrupts masked. A block that becomes whole takes as long as many.
        const AT_ONCE: usize = 32;
        let (mut lists, mut words) = (self.lists.lock(), 0);
        for Range { mut start, end } in runs {
            while start < end {
                if words == AT_ONCE {
                    drop(lists);
                    (lists, words) = (self.lists.lock(), 0);
                }
                words += 1;
                let word = start / 64;
                let next = end.min((word + 1) * 64);
                if self.put_word(cpu, &mut lists, word, mask_below(next - start) << (start % 64)) {
                    words = AT_ONCE;
                }
                start = next;
            }
        }
    }

    /// Takes back the frames whose `bits` are set of the 64 from frame `word` × 64 on; whether their block is whole now.
    fn put_word(
        &self,
        cpu: &Cpu,
        lists: &mut IrqGuard<'_, Lists, { rank::PAGE_BLOCK }>,
        word: usize,
        bits: u64,
    ) -> bool {
        let number = word / WORDS;
        let Some(index) = self.spans.index(number) else { return false };
        let block = lists.blocks.at(index);
        let cell = &mut block.bitmap[word % WORDS];
        debug_assert!(*cell & bits == 0, "frames {bits:#x} of word {word:#x} are free already");
        *cell |= bits;
        let had_none = block.free == 0;
        block.free += bits.count_ones() as u16;
        let whole = block.free as usize == BLOCK_FRAMES;
        lists.totals.free_frames += bits.count_ones() as usize;
        if had_none {
            // At the end of the list: the blocks in front are used up first, and this one may become whole.
            lists.link_last(index);
        }
        if whole {
            lists.unlink(index);
            self.set_states(number..number + 1, BlockState::Free);
            lists.totals.cut_blocks -= 1;
            lists.totals.free_blocks += 1;
            lists.with_buddy(cpu, |buddy| buddy.dealloc(number, 1));
        }
        whole
    }

    /// Takes 2^`order` contiguous blocks, aligned to their size; `None` where there is no such run, fewer than
    /// `left_free` frames would stay free, or `order` is above [`MAX_ORDER`]. The record of the first frame is valid
    /// and "free" until the caller changes that.
    pub fn take_blocks(&self, cpu: &Cpu, order: u32, left_free: usize) -> Option<BlockNumber> {
        if order > MAX_ORDER {
            return None;
        }
        let mut lists = self.lists.lock();
        if lists.totals.free_frames < left_free.saturating_add(BLOCK_FRAMES << order) {
            return None;
        }
        let number = lists.with_buddy(cpu, |buddy| buddy.alloc(1 << order))?;
        let index = self.spans.index(number)?;
        self.prepare_records(&mut lists, index, number);
        lists.blocks.at(index).order = order as u8;
        lists.totals.free_blocks -= 1 << order;
        lists.totals.free_frames -= BLOCK_FRAMES << order;
        self.set_states(number + 1..number + (1 << order), BlockState::Tail);
        self.set_states(number..number + 1, BlockState::Head);
        Some(number)
    }

    /// log2 of the blocks in the run that begins at block `first`; `None` where none does.
    pub fn order(&self, first: BlockNumber) -> Option<u32> {
        let mut lists = self.lists.lock();
        let index = self.spans.index(first)?;
        (self.load_state(index) == BlockState::Head).then(|| u32::from(lists.blocks.at(index).order))
    }

    /// Takes a run back: `first` and `order` as [`Self::take_blocks`] had them, and the first frame's record is "free"
    /// again.
    pub fn put_blocks(&self, cpu: &Cpu, first: BlockNumber, order: u32) {
        let mut lists = self.lists.lock();
        debug_assert_eq!(self.state(first * BLOCK_FRAMES), BlockState::Head);
        self.set_states(first..first + (1 << order), BlockState::Free);
        lists.totals.free_blocks += 1 << order;
        lists.totals.free_frames += BLOCK_FRAMES << order;
        lists.with_buddy(cpu, |buddy| buddy.dealloc(first, 1 << order));
    }

    /// What the block that holds `frame` is used for, without the lock. The answer stays true while the caller owns a
    /// frame of the block; for anyone else it may be old.
    #[inline]
    pub fn state(&self, frame: usize) -> BlockState {
        self.spans.index(frame / BLOCK_FRAMES).map_or(BlockState::Absent, |index| self.load_state(index))
    }

    /// Calls `each`, under the lock, with the frames that are free here, in runs: those in magazines are not. For once
    /// at boot; it looks at every block.
    pub fn for_each_free(&self, mut each: impl FnMut(Range<usize>)) {
        let mut lists = self.lists.lock();
        let mut run = 0..0;
        let mut add = |frames: Range<usize>| {
            if frames.start == run.end {
                run.end = frames.end;
            } else {
                let found = core::mem::replace(&mut run, frames);
                if !found.is_empty() {
                    each(found);
                }
            }
        };
        for (first, count) in self.spans.clone().into_frames() {
            for number in first / BLOCK_FRAMES..(first + count) / BLOCK_FRAMES {
                let start = number * BLOCK_FRAMES;
                match self.spans.index(number).map(|index| (index, self.load_state(index))) {
                    Some((_, BlockState::Free)) => add(start..start + BLOCK_FRAMES),
                    Some((index, BlockState::Cut)) => {
                        let bitmap = lists.blocks.at(index).bitmap;
                        let bit = |bit: usize| bitmap[bit / 64] >> (bit % 64) & 1 != 0;
                        (0..BLOCK_FRAMES)
                            .filter(|&frame| bit(frame))
                            .for_each(|frame| add(start + frame..start + frame + 1));
                    }
                    _ => {}
                }
            }
        }
        if !run.is_empty() {
            each(run);
        }
    }

    /// How much is free now.
    pub fn totals(&self) -> Totals {
        self.lists.lock().totals
    }

    /// Zeroes the records of a block when it is first used; afterwards its last owners leave them zero. Doing it for
    /// all memory at boot would cost more than the rest of the boot.
    #[allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]
    fn prepare_records(&self, lists: &mut Lists, index: usize, number: BlockNumber) {
        if !lists.blocks.at(index).records_valid {
            // SAFETY: the records of a block of the spans are mapped and ours (see `new`), and are not read before the
            // block's state is Cut or Head, which comes after.
            unsafe { self.records.zero(number * BLOCK_FRAMES, BLOCK_FRAMES) };
            lists.blocks.at(index).records_valid = true;
        }
    }

    fn load_state(&self, index: usize) -> BlockState {
        // Acquire: a reader of Cut or Head sees the zeroed records.
        match self.states[index].load(Ordering::Acquire) {
            1 => BlockState::Free,
            2 => BlockState::Cut,
            3 => BlockState::Head,
            4 => BlockState::Tail,
            _ => BlockState::Absent,
        }
    }

    /// Sets the state of consecutive blocks of one span. With the lock held.
    fn set_states(&self, numbers: Range<BlockNumber>, state: BlockState) {
        if let Some(first) = self.spans.index(numbers.start) {
            for cell in &self.states[first..first + numbers.len()] {
                cell.store(state as u8, Ordering::Release);
            }
        }
    }
}

impl Lists {
    /// Runs `work` on the buddy with its sets' nodes served from the arena.
    fn with_buddy<R>(
        &mut self,
        cpu: &Cpu,
        work: impl FnOnce(&mut buddy_system_allocator::FrameAllocator<BUDDY_ORDERS>) -> R,
    ) -> R {
        let _section = self.arena.enter(cpu);
        work(&mut self.buddy)
    }

    fn link_first(&mut self, index: usize) {
        let old = core::mem::replace(&mut self.first, index as u32);
        self.blocks.at(index).next = old;
        self.blocks.at(index).previous = NONE;
        match old {
            NONE => self.last = index as u32,
            old => self.blocks.at(old as usize).previous = index as u32,
        }
    }

    fn link_last(&mut self, index: usize) {
        let old = core::mem::replace(&mut self.last, index as u32);
        self.blocks.at(index).next = NONE;
        self.blocks.at(index).previous = old;
        match old {
            NONE => self.first = index as u32,
            old => self.blocks.at(old as usize).next = index as u32,
        }
    }

    fn unlink(&mut self, index: usize) {
        let PageBlock { next, previous, .. } = *self.blocks.at(index);
        match previous {
            NONE => self.first = next,
            previous => self.blocks.at(previous as usize).next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.blocks.at(next as usize).previous = previous,
        }
    }
}

impl PageBlock {
    /// Moves up to `most` free frames out of the bitmap, run by run; returns how many.
    fn take_runs(&mut self, most: usize, each: &mut impl FnMut(Range<usize>)) -> usize {
        let mut taken = 0;
        for (word, first) in self.bitmap.iter_mut().zip((self.number as usize * BLOCK_FRAMES..).step_by(64)) {
            while *word != 0 && taken < most {
                let low = word.trailing_zeros() as usize;
                let count = ((*word >> low).trailing_ones() as usize).min(most - taken);
                *word &= !(mask_below(count) << low);
                taken += count;
                each(first + low..first + low + count);
            }
        }
        self.free -= taken as u16;
        taken
    }
}

/// The lowest `bits` bits, 0 to 64.
const fn mask_below(bits: usize) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// Builds a set of two levels, so that a standard library whose nodes have outgrown the arena's cells stops the boot
/// here and not some free in the field.
fn check_node_size(cpu: &Cpu, arena: &NodeArena) {
    let _section = arena.enter(cpu);
    let mut set = BTreeSet::new();
    set.extend(0_usize..12);
}
