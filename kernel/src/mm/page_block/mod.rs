//! Page blocks: physical memory in pieces of 2 MiB, whole or cut into frames.
//!
//! ```text
//!              take_blocks(order)                       take_runs
//!   Free  ─────────────────────────►  Head, Tail…        Free ──► Cut   one bit per frame, set = free
//!  (buddy) ◄─────────────────────────    │              (buddy) ◄── ▲   when the last frame comes back
//!                                        └── cut_taken (one block) ─┘
//! ```
//!
//! `buddy_system_allocator` knows the free blocks and joins neighbours up to 1 GiB; it works with block *numbers* and
//! never touches the memory. A block in use as frames is cut by the bitmap in its [`PageBlock`]. Cut blocks with a free
//! frame are in a list, linked through the records themselves, so taking and putting back are O(1) in the size of
//! memory, and neither ever allocates (the buddy's sets live in a [`NodeArena`]).
//!
//! # Each CPU has cut blocks of its own
//! A block is cut by a CPU, for frames of one [`Mobility`], and that is its home until it is whole again. A CPU takes
//! frames from its own blocks, and cuts the next one where they are used up; only where no block is free it takes
//! frames of others. So CPUs contend once in [`BLOCK_FRAMES`] frames, and the records and cached contents of one CPU's
//! frames share no line with another's. A home keeps one block that became whole by a free of its own CPU.
//!
//! ```text
//!     lock of a home            its list, and bitmap, count and links of its blocks
//!     lock of the buddy         the sets, and what is kept of blocks that are not cut; taken under the former, or alone
//! ```
//! The home of a cut block changes only while all its frames are free, so the holder of one finds it without a lock.
//!
//! A block of which some frames are not ours (the edge of a bank, reserved, taken by boot) is cut from the start, with
//! only its free frames in the bitmap. It can never be whole, so it never goes to the buddy; and the list has it in
//! front, because a frame taken from it breaks nothing.
//!
//! Frames that can be migrated are kept apart from others, so that one page of the kernel does not keep 2 MiB from
//! becoming whole again (`mm::space::compact`). Where no block is free, the frames of any serve.
//!
//! # The count of frames that stay free is exact
//! A caller names how many frames stay free. While `MAX_CPUS` blocks (32 MiB) are free beyond that, a CPU takes frames
//! under its own lock alone, for each look at the count of free blocks at most its share of so many: a block's, or more
//! where there are fewer CPUs. Else CPUs take frames one at a time (`scarcity.rs`).
//!
//! The rule: a frame is free in exactly one place: inside a free block, as a bit of a cut block, or in a magazine
//! above.
//!
//! `kernel/loom` compiles this folder on loom's atomics and locks.

mod arena;
mod buddy;
mod cut;
mod isolate;
mod scarcity;
mod spans;

use core::mem::{ManuallyDrop, size_of};
use core::ops::Range;
use core::ptr;
use core::slice;

#[cfg(test)]
pub(in crate::mm) use arena::tests::host_allocations;
pub use arena::{CurrentArena, NodeArena};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Geometry, Granule4K};
use scarcity::Scarcity;
pub use spans::Spans;

use super::early::MemoryMap;
use super::frame::FrameRecords;
use crate::alloc::collections::BTreeSet;
use crate::smp::{Cpu, CpuId, MAX_CPUS};
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
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

/// The use of a page block.
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

/// The state of a cut block: this, and the number of its home.
const CUT: u8 = 16;
const _: () = assert!(BlockState::Tail as u8 + 1 < CUT && CUT as usize + HOMES <= 256);

/// Whether what a frame is for can go on in another frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mobility {
    /// The kernel's own, and tables.
    Unmovable = 0,
    /// Pages of programs.
    Movable = 1,
}

/// Frames of a contiguous group of pages.
pub const GROUP: usize = 1 << Granule4K::GROUP_BITS[LAST_LEVEL as usize];
const _: () = assert!(64 % GROUP == 0);
/// Blocks in which a group is looked for.
const LOOKED_AT: usize = 4;

/// Homes of cut blocks: for each CPU one of frames of each mobility.
const HOMES: usize = 2 * MAX_CPUS;

/// The number of the home of what `cpu` cuts for `mobility`.
#[inline(always)]
fn home_number(cpu: CpuId, mobility: Mobility) -> usize {
    mobility as usize * MAX_CPUS + cpu.0 as usize % MAX_CPUS
}

/// The end of a list.
const NONE: u32 = u32::MAX;
/// 64-bit words in a bitmap.
const WORDS: usize = BLOCK_FRAMES / 64;

/// The record of one page block besides its [`BlockState`]. All zero is right for a block that was never used.
///
/// In a cache line or two of its own: its neighbour may be another CPU's.
#[repr(align(64))]
struct PageBlock {
    /// Cut: bit f of word f / 64 is set while frame f is free.
    bitmap: [u64; WORDS],
    /// Cut: number of set bits.
    free: u16,
    /// Head: log2 of the blocks in the run.
    order: u8,
    /// The block's `Frame` records have been zeroed.
    records_valid: bool,
    /// Cut: see [`PageBlocks::isolate`].
    is_isolated: bool,
    /// Cut: this block's number.
    number: u32,
    /// Cut with a free frame: neighbours in the list, by index.
    next: u32,
    previous: u32,
}

const _: () = assert!(size_of::<PageBlock>() == 128);
// A block number fits in `PageBlock::number`, an index in the links with NONE to spare.
const _: () = assert!(super::layout::LINEAR_SIZE / BLOCK_SIZE < NONE as u64);

/// All page blocks.
pub struct PageBlocks {
    spans: Spans,
    /// One per block, readable without a lock: see [`Self::state`]. [`CUT`] and the home of a block that is cut.
    states: &'static [AtomicU8],
    /// One per block: see [`Self::set_origin`].
    origins: &'static [AtomicU64],
    records: FrameRecords,
    /// By [`home_number`].
    cut: &'static [CutBlocks; HOMES],
    buddy: IrqLock<Buddy, { rank::BUDDY }>,
    /// Blocks in the buddy's sets. Written under its lock.
    free_blocks: AtomicUsize,
    scarcity: Scarcity,
    /// See [`Self::set_cpus`].
    share: AtomicUsize,
    /// See [`Totals::frames`].
    frames: usize,
}

/// The blocks that are free.
struct Buddy {
    blocks: Blocks,
    arena: NodeArena,
    /// Never dropped: its nodes are the arena's cells, which no global allocator would know outside a section.
    sets: ManuallyDrop<buddy_system_allocator::FrameAllocator<BUDDY_ORDERS>>,
    /// One block beside the sets, so that those who take and give single blocks do not split and join larger ones each
    /// time. A call that takes a larger run adds it to the sets.
    single: Option<BlockNumber>,
}

/// The blocks that a CPU has cut for one mobility.
#[repr(align(64))]
struct CutBlocks {
    list: IrqLock<List, { rank::PAGE_BLOCK }>,
    /// Free frames of these blocks, and how many blocks they are. Written under the lock.
    free: AtomicUsize,
    count: AtomicUsize,
}

/// Cut blocks with a free frame.
struct List {
    blocks: Blocks,
    first: u32,
    last: u32,
    /// The one that is whole, if there is one.
    whole: u32,
}

/// The blocks, by their indices: for the lists, each the blocks of which it is the home, and for the buddy, those that
/// are not cut.
struct Blocks(*mut PageBlock, usize);

// SAFETY: a block is reached by the list or the buddy that has it, under its lock.
#[allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]
unsafe impl Send for Blocks {}

impl Blocks {
    /// The block of an index of the spans or of a link in the list. It is the caller's: see above.
    #[inline(always)]
    #[allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]
    fn at(&mut self, index: usize) -> &mut PageBlock {
        assert!(index < self.1);
        // SAFETY: inside the array, and the caller has the list or the buddy that the block belongs to to itself.
        unsafe { &mut *self.0.add(index) }
    }
}

/// How much is free, and how much there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Frames ever given to the allocator, whatever they are used for now.
    pub frames: usize,
    /// Free frames, in free blocks and cut ones. Frames in magazines are not among them.
    pub free_frames: usize,
    /// Free blocks in the buddy's sets.
    pub free_blocks: usize,
    /// Cut blocks that have a free frame or will have one: those that cannot become whole included, and a whole one
    /// that its CPU keeps.
    pub cut_blocks: usize,
}

impl PageBlocks {
    /// Bytes of the arrays and the arena for the memory of `map`; a multiple of [`PAGE_SIZE`].
    pub fn required_bytes(map: &MemoryMap) -> usize {
        Self::arena_offset(Spans::new(map).blocks(), NodeArena::required_bytes).next_multiple_of(PAGE_SIZE)
    }

    /// Where the arena begins among the arrays for `blocks` blocks, plus `more` of it.
    fn arena_offset(blocks: usize, more: fn(usize) -> usize) -> usize {
        let of_each = size_of::<PageBlock>() + size_of::<AtomicU64>() + size_of::<AtomicU8>();
        size_of::<[CutBlocks; HOMES]>() + (blocks * of_each).next_multiple_of(16) + more(blocks)
    }

    /// Takes all the free memory of `map`. `cpu` is the CPU that this runs on.
    ///
    /// # Safety
    /// - The [`Self::required_bytes`] at `storage`, page aligned, and the records of all blocks ([`FrameRecords`]) are
    ///   mapped, writable and exclusive, for ever. They need not be zero.
    /// - The memory in `map.free()` is unused.
    #[allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]
    pub unsafe fn new(cpu: &Cpu, map: &MemoryMap, storage: VirtAddr, records: FrameRecords) -> Self {
        let spans = Spans::new(map);
        let count = spans.blocks();
        let arena_offset = Self::arena_offset(count, |_| 0);
        let blocks = (storage + size_of::<[CutBlocks; HOMES]>() as u64).as_ptr::<PageBlock>();
        // SAFETY: the storage is ours and at least this long, aligned for all of it; zero is a valid value of the
        // blocks, and each of the lists and atomics is written (`BlockState::Absent`, no origin).
        let (cut, origins, states) = unsafe {
            ptr::write_bytes(blocks, 0, count);
            let cut = storage.as_ptr::<CutBlocks>();
            for home in 0..HOMES {
                let blocks = Blocks(blocks, count);
                let list = List { blocks, first: NONE, last: NONE, whole: NONE };
                let (free, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
                cut.add(home).write(CutBlocks { list: IrqLock::new(list), free, count });
            }
            let origins = blocks.add(count).cast::<AtomicU64>();
            let states = origins.add(count).cast::<AtomicU8>();
            for index in 0..count {
                origins.add(index).write(AtomicU64::new(0));
                states.add(index).write(AtomicU8::new(0));
            }
            let cut = &*cut.cast::<[CutBlocks; HOMES]>();
            (cut, slice::from_raw_parts(origins, count), slice::from_raw_parts(states, count))
        };
        // SAFETY: the arena's part of the storage follows the arrays.
        let arena = unsafe { NodeArena::new(storage + arena_offset as u64, NodeArena::required_bytes(count)) };
        check_node_size(cpu, &arena);
        let sets = ManuallyDrop::new(buddy_system_allocator::FrameAllocator::new());
        let buddy = IrqLock::new(Buddy { blocks: Blocks(blocks, count), arena, sets, single: None });
        let (free_blocks, scarcity, share) = (AtomicUsize::new(0), Scarcity::new(), AtomicUsize::new(1));
        let mut this = Self { spans, states, origins, records, cut, buddy, free_blocks, scarcity, share, frames: 0 };
        for range in map.free() {
            this.add(cpu, range.start().frame_number()..range.end().frame_number());
        }
        this
    }

    /// Gives `frames`, all of them inside one span, to the allocator. Pieces are this CPU's.
    fn add(&mut self, cpu: &Cpu, frames: Range<usize>) {
        self.frames += frames.len();
        let mut frame = frames.start;
        while frame < frames.end {
            let block = frame / BLOCK_FRAMES;
            let whole_end = frames.end / BLOCK_FRAMES;
            if frame.is_multiple_of(BLOCK_FRAMES) && block < whole_end {
                self.set_states(block..whole_end, BlockState::Free as u8);
                self.buddy.lock().add(cpu, block..whole_end, &self.free_blocks);
                frame = whole_end * BLOCK_FRAMES;
            } else {
                let end = frames.end.min((block + 1) * BLOCK_FRAMES);
                let first_bit = frame % BLOCK_FRAMES;
                self.add_piece(cpu, block, first_bit..first_bit + (end - frame));
                frame = end;
            }
        }
    }

    /// Gives some frames of a block that can never be whole to the allocator.
    fn add_piece(&self, cpu: &Cpu, number: BlockNumber, bits: Range<usize>) {
        let Some(index) = self.spans.index(number) else { return };
        let cut = self.own(cpu, Mobility::Unmovable);
        let mut list = cut.list.lock();
        if self.load_state(index) != BlockState::Cut {
            self.prepare_records(list.blocks.at(index), number);
            list.blocks.at(index).number = number as u32;
            change(&cut.count, 1);
            list.link_first(index);
            self.set_states(number..number + 1, cut_by(cpu.id, Mobility::Unmovable));
        }
        change(&cut.free, bits.len() as isize);
        let block = list.blocks.at(index);
        block.free += bits.len() as u16;
        for (word, first_bit) in block.bitmap.iter_mut().zip((0..).step_by(64)) {
            let from = bits.start.clamp(first_bit, first_bit + 64) - first_bit;
            let to = bits.end.clamp(first_bit, first_bit + 64) - first_bit;
            *word |= mask_below(to) & !mask_below(from);
        }
    }

    /// Takes up to `frames.len()` frames, writes their numbers to the front of `frames`, and returns how many it got:
    /// see [`Self::take_runs`].
    pub fn take_frames(&self, cpu: &Cpu, mobility: Mobility, frames: &mut [usize], left_free: usize) -> usize {
        let most = frames.len();
        let mut places = frames.iter_mut();
        self.take_runs(cpu, mobility, most, left_free, |run| {
            run.zip(&mut places).for_each(|(frame, place)| *place = frame)
        })
    }

    /// Takes up to `most` frames in runs of neighbours, calls `each` with every run, and returns how many frames those
    /// are: fewer than asked for only where no more are free beyond `left_free`, a number of frames that stay. Their
    /// records are "free" until the caller changes that.
    ///
    /// `each` is called under a lock. `cpu` is the CPU that this runs on.
    pub fn take_runs(
        &self,
        cpu: &Cpu,
        mobility: Mobility,
        most: usize,
        left_free: usize,
        mut each: impl FnMut(Range<usize>),
    ) -> usize {
        let own = self.own(cpu, mobility);
        let mut taken = 0;
        while taken < most {
            let Some(mut list) = self.scarcity.open(&own.list, || self.has_plenty(left_free)) else { break };
            let some = self.take_own(cpu, mobility, &mut list, (most - taken).min(BLOCK_FRAMES), &mut each);
            if some == 0 {
                break;
            }
            taken += some;
        }
        while taken < most {
            let some = self.alone(left_free, || {
                let free = self.totals().free_frames.saturating_sub(left_free);
                self.take_anywhere(cpu, mobility, (most - taken).min(BLOCK_FRAMES).min(free), &mut each)
            });
            if some == 0 {
                break;
            }
            taken += some;
        }
        taken
    }

    /// Takes [`GROUP`] frames that are neighbours, the first of them at a multiple of that, out of the first blocks
    /// that this CPU has cut for frames of that `mobility`; `None` where those have no such run, or fewer than `left_free`
    /// frames would stay free. Returns the first; the records are "free" until the caller changes that.
    pub fn take_group(&self, cpu: &Cpu, mobility: Mobility, left_free: usize) -> Option<usize> {
        let own = self.own(cpu, mobility);
        let take = |list: &mut List| {
            if list.first == NONE {
                self.cut_a_block(cpu, mobility, own, list);
            }
            own.take_group(list)
        };
        if let Some(mut list) = self.scarcity.open(&own.list, || self.has_plenty(left_free)) {
            let found = take(&mut list);
            // Movable frames can make room for groups later; the rest stays where it is.
            if found.is_none() && mobility == Mobility::Unmovable && self.cut_a_block(cpu, mobility, own, &mut list) {
                return own.take_group(&mut list);
            }
            return found;
        }
        self.alone(left_free, || {
            let has_room = self.totals().free_frames >= left_free.saturating_add(GROUP);
            if has_room { take(&mut own.list.lock()) } else { None }
        })
    }

    /// There will be no more than `cpus` CPUs, 1 to [`MAX_CPUS`]: each may take so many blocks between two looks that
    /// what all take stays the same.
    pub fn set_cpus(&self, cpus: usize) {
        self.share.store(MAX_CPUS / cpus.max(1), Ordering::Relaxed);
    }

    /// Whether each CPU may take its share, and `left_free` stay.
    fn has_plenty(&self, left_free: usize) -> bool {
        self.has_blocks_for(left_free.saturating_add(MAX_CPUS * BLOCK_FRAMES))
    }

    /// Whether free blocks alone have as many frames: a look that costs less than [`Self::totals`].
    #[inline(always)]
    pub fn has_blocks_for(&self, frames: usize) -> bool {
        self.free_blocks.load(Ordering::Relaxed) * BLOCK_FRAMES >= frames
    }

    /// Runs `work` while no other CPU takes frames.
    fn alone<R>(&self, left_free: usize, work: impl FnOnce() -> R) -> R {
        let pass = || self.cut.iter().for_each(|cut| drop(cut.list.lock()));
        self.scarcity.alone(pass, work, || self.has_plenty(left_free))
    }

    /// Takes up to `most` frames out of this CPU's blocks, whose list this is, and cuts more of them; how many it got.
    #[inline]
    fn take_own(
        &self,
        cpu: &Cpu,
        mobility: Mobility,
        list: &mut List,
        most: usize,
        each: &mut impl FnMut(Range<usize>),
    ) -> usize {
        let own = self.own(cpu, mobility);
        let mut taken = 0;
        while taken < most && (list.first != NONE || self.cut_a_block(cpu, mobility, own, list)) {
            taken += own.take_runs(list, most - taken, each);
        }
        taken
    }

    /// As [`Self::take_own`], and where no block is free out of other CPUs' blocks. No other CPU takes any at the time.
    fn take_anywhere(&self, cpu: &Cpu, mobility: Mobility, most: usize, each: &mut impl FnMut(Range<usize>)) -> usize {
        let own = self.own(cpu, mobility);
        let mut taken = self.take_own(cpu, mobility, &mut own.list.lock(), most, each);
        // Those for the same mobility first.
        let (unmovable, movable) = self.cut.split_at(MAX_CPUS);
        let (same, rest) = if mobility == Mobility::Movable { (movable, unmovable) } else { (unmovable, movable) };
        for other in same.iter().chain(rest).filter(|other| !ptr::eq(*other, own)) {
            if taken == most {
                return taken;
            }
            let mut list = other.list.lock();
            while taken < most && list.first != NONE {
                taken += other.take_runs(&mut list, most - taken, each);
            }
        }
        // A block that became whole concurrently has left its list for the buddy, and stays there.
        taken + self.take_own(cpu, mobility, &mut own.list.lock(), most - taken, each)
    }

    /// Takes a block from the buddy and cuts it, for this CPU; it is the first of its list, in front of those whose frames
    /// did not serve. Whether there was one.
    fn cut_a_block(&self, cpu: &Cpu, mobility: Mobility, own: &CutBlocks, list: &mut List) -> bool {
        let mut buddy = self.buddy.lock();
        let Some(number) = buddy.take(cpu, 0, &self.free_blocks) else { return false };
        change(&own.free, BLOCK_FRAMES as isize);
        drop(buddy);
        // The buddy knows no blocks but those of the spans.
        let Some(index) = self.spans.index(number) else { return false };
        // In no other list, and not in the buddy's sets.
        let block = list.blocks.at(index);
        self.prepare_records(block, number);
        block.bitmap = [u64::MAX; WORDS];
        block.free = BLOCK_FRAMES as u16;
        block.number = number as u32;
        change(&own.count, 1);
        list.link_first(index);
        self.set_states(number..number + 1, cut_by(cpu.id, mobility));
        true
    }

    /// Takes runs of frames back, by words of the bitmaps. Each frame came from [`Self::take_frames`] or
    /// [`Self::take_runs`], and its record is "free" again.
    pub fn put_runs(&self, cpu: &Cpu, runs: impl IntoIterator<Item = Range<usize>>) {
        /// Words for which a lock is held, and interrupts masked. A block that becomes whole takes as long as many.
        const AT_ONCE: usize = 32;
        let mut held: Option<(&CutBlocks, IrqGuard<'_, List, { rank::PAGE_BLOCK }>)> = None;
        let mut words = 0;
        for Range { mut start, end } in runs {
            while start < end {
                let word = start / 64;
                let next = end.min((word + 1) * 64);
                let bits = mask_below(next - start) << (start % 64);
                start = next;
                let number = word / WORDS;
                let Some(index) = self.spans.index(number) else { continue };
                let Some(home) = self.home(index) else { continue };
                if words >= AT_ONCE || held.as_ref().is_none_or(|(cut, _)| !ptr::eq(*cut, home)) {
                    drop(held.take());
                    words = 0;
                }
                let (_, list) = held.get_or_insert_with(|| (home, home.list.lock()));
                words += 1;
                if home.put(list, index, word % WORDS, bits) {
                    words = AT_ONCE;
                    if list.whole == NONE && self.is_own(cpu, home) {
                        list.whole = index as u32;
                    } else {
                        self.join(cpu, home, list, index);
                    }
                }
            }
        }
    }

    /// Gives `index`, a block of that list that is whole and linked, back to the buddy.
    fn join(&self, cpu: &Cpu, home: &CutBlocks, list: &mut List, index: usize) {
        let number = list.blocks.at(index).number as usize;
        list.unlink(index);
        let mut buddy = self.buddy.lock();
        change(&home.count, -1);
        change(&home.free, -(BLOCK_FRAMES as isize));
        self.set_states(number..number + 1, BlockState::Free as u8);
        buddy.put(cpu, number, 1, &self.free_blocks);
    }

    /// Gives the whole blocks that `of` has kept back to the buddy. `cpu` is the CPU that this runs on.
    pub fn give_back(&self, cpu: &Cpu, of: CpuId) {
        for mobility in [Mobility::Unmovable, Mobility::Movable] {
            let home = &self.cut[home_number(of, mobility)];
            let mut list = home.list.lock();
            let whole = core::mem::replace(&mut list.whole, NONE);
            if whole != NONE {
                self.join(cpu, home, &mut list, whole as usize);
            }
        }
    }

    /// Takes 2^`order` contiguous blocks, aligned to their size; `None` where there is no such run, fewer than
    /// `left_free` frames would stay free, or `order` is above [`MAX_ORDER`]. The record of the first frame is valid
    /// and "free" until the caller changes that.
    pub fn take_blocks(&self, cpu: &Cpu, order: u32, left_free: usize) -> Option<BlockNumber> {
        if order > MAX_ORDER {
            return None;
        }
        if 1 << order <= self.share.load(Ordering::Relaxed) {
            // No more than this CPU's share between two looks.
            let own = &self.own(cpu, Mobility::Movable).list;
            if let Some(_own) = self.scarcity.open(own, || self.has_plenty(left_free)) {
                return self.take_free(cpu, order);
            }
        }
        self.alone(left_free, || {
            if self.totals().free_frames < left_free.saturating_add(BLOCK_FRAMES << order) {
                return None;
            }
            self.take_free(cpu, order)
        })
    }

    /// Takes a run of 2^`order` free blocks.
    fn take_free(&self, cpu: &Cpu, order: u32) -> Option<BlockNumber> {
        let mut buddy = self.buddy.lock();
        let number = buddy.take(cpu, order, &self.free_blocks)?;
        let index = self.spans.index(number)?;
        let block = buddy.blocks.at(index);
        self.prepare_records(block, number);
        block.order = order as u8;
        self.set_states(number + 1..number + (1 << order), BlockState::Tail as u8);
        self.set_states(number..number + 1, BlockState::Head as u8);
        Some(number)
    }

    /// Cuts a block that was taken whole, by itself: its frames are those of the caller, who puts each back by itself.
    /// They are movable.
    pub fn cut_taken(&self, cpu: &Cpu, number: BlockNumber) {
        let own = self.own(cpu, Mobility::Movable);
        let Some(index) = self.spans.index(number) else { return };
        let mut list = own.list.lock();
        debug_assert_eq!(self.load_state(index), BlockState::Head);
        // The caller's: in no list, and not in the buddy's sets.
        let block = list.blocks.at(index);
        debug_assert_eq!(block.order, 0);
        block.bitmap = [0; WORDS];
        block.free = 0;
        block.number = number as u32;
        change(&own.count, 1);
        self.set_states(number..number + 1, cut_by(cpu.id, Mobility::Movable));
    }

    /// How many blocks there are, by index.
    pub fn blocks(&self) -> usize {
        self.states.len()
    }

    /// log2 of the blocks in the run that begins at block `first`; `None` where none does.
    pub fn order(&self, first: BlockNumber) -> Option<u32> {
        let mut buddy = self.buddy.lock();
        let index = self.spans.index(first)?;
        (self.load_state(index) == BlockState::Head).then(|| u32::from(buddy.blocks.at(index).order))
    }

    /// Takes a run back: `first` and `order` as [`Self::take_blocks`] had them, and the first frame's record is "free"
    /// again.
    pub fn put_blocks(&self, cpu: &Cpu, first: BlockNumber, order: u32) {
        let mut buddy = self.buddy.lock();
        debug_assert_eq!(self.state(first * BLOCK_FRAMES), BlockState::Head);
        // So that the compiler sees it: larger runs have no set.
        let count = 1 << order.min(MAX_ORDER);
        self.set_states(first..first + count, BlockState::Free as u8);
        buddy.put(cpu, first, count, &self.free_blocks);
    }

    /// The use of the block that holds `frame`, without a lock. The answer stays true while the caller owns a
    /// frame of the block; for anyone else it may be old.
    #[inline]
    pub fn state(&self, frame: usize) -> BlockState {
        self.spans.index(frame / BLOCK_FRAMES).map_or(BlockState::Absent, |index| self.load_state(index))
    }

    /// The mobility for which the block that holds `frame` was cut; `None` where it is not cut. As [`Self::state`].
    #[inline(always)]
    pub fn mobility(&self, frame: usize) -> Option<Mobility> {
        let index = self.spans.index(frame / BLOCK_FRAMES)?;
        // Acquire: as in `load_state`.
        let home = self.states.get(index)?.load(Ordering::Acquire).checked_sub(CUT)?;
        Some(if usize::from(home) < MAX_CPUS { Mobility::Unmovable } else { Mobility::Movable })
    }

    /// Where `cpu` has what it cuts for `mobility`.
    #[inline(always)]
    fn own(&self, cpu: &Cpu, mobility: Mobility) -> &CutBlocks {
        &self.cut[home_number(cpu.id, mobility)]
    }

    /// Whether it is this CPU's.
    fn is_own(&self, cpu: &Cpu, home: &CutBlocks) -> bool {
        [Mobility::Unmovable, Mobility::Movable].iter().any(|&mobility| ptr::eq(home, self.own(cpu, mobility)))
    }

    /// Calls `each` with the frames that are free here, in runs: those in magazines are not. For once at boot, while no
    /// other CPU runs; it looks at every block.
    pub fn for_each_free(&self, mut each: impl FnMut(Range<usize>)) {
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
                let Some(index) = self.spans.index(number) else { continue };
                if self.load_state(index) == BlockState::Free {
                    add(start..start + BLOCK_FRAMES);
                } else if let Some(home) = self.home(index) {
                    let bitmap = home.list.lock().blocks.at(index).bitmap;
                    let bit = |bit: usize| bitmap[bit / 64] >> (bit % 64) & 1 != 0;
                    (0..BLOCK_FRAMES)
                        .filter(|&frame| bit(frame))
                        .for_each(|frame| add(start + frame..start + frame + 1));
                }
            }
        }
        if !run.is_empty() {
            each(run);
        }
    }

    /// How much is free now: exact where no other CPU takes or gives back any. A block that moves between a list and
    /// the buddy is counted once.
    pub fn totals(&self) -> Totals {
        let sum = |count: fn(&CutBlocks) -> &AtomicUsize| {
            self.cut.iter().map(|cut| count(cut).load(Ordering::Relaxed)).sum::<usize>()
        };
        // Under this lock a block moves from one count to the other.
        let _buddy = self.buddy.lock();
        let free_blocks = self.free_blocks.load(Ordering::Relaxed);
        Totals {
            frames: self.frames,
            free_frames: free_blocks * BLOCK_FRAMES + sum(|cut| &cut.free),
            free_blocks,
            cut_blocks: sum(|cut| &cut.count),
        }
    }

    /// Zeroes the records of a block when it is first used; afterwards its last owners leave them zero. Doing it for
    /// all memory at boot would cost more than the rest of the boot.
    #[allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]
    fn prepare_records(&self, block: &mut PageBlock, number: BlockNumber) {
        if !block.records_valid {
            // SAFETY: the records of a block of the spans are mapped and ours (see `new`), and are not read before the
            // block's state is Cut or Head, which comes after.
            unsafe { self.records.zero(number * BLOCK_FRAMES, BLOCK_FRAMES) };
            block.records_valid = true;
        }
    }

    fn load_state(&self, index: usize) -> BlockState {
        // Acquire: a reader of Cut or Head sees the zeroed records.
        let state = self.states[index].load(Ordering::Acquire);
        let plain = [BlockState::Absent, BlockState::Free, BlockState::Head, BlockState::Tail];
        plain.into_iter().find(|&plain| plain as u8 == state).unwrap_or(BlockState::Cut)
    }

    /// The blocks that `index` is among, if it is cut.
    #[inline(always)]
    fn home(&self, index: usize) -> Option<&CutBlocks> {
        self.cut.get(usize::from(self.states.get(index)?.load(Ordering::Acquire).checked_sub(CUT)?))
    }

    /// Sets the state of consecutive blocks of one span, under the lock of the list or the buddy that has them; at
    /// boot, under none.
    fn set_states(&self, numbers: Range<BlockNumber>, state: u8) {
        if let Some(first) = self.spans.index(numbers.start) {
            for cell in &self.states[first..first + numbers.len()] {
                cell.store(state, Ordering::Release);
            }
        }
    }
}

/// The state of a block that `cpu` has cut for `mobility`.
fn cut_by(cpu: CpuId, mobility: Mobility) -> u8 {
    CUT + home_number(cpu, mobility) as u8
}

/// Changes a count, with the lock held under which it is written.
fn change(count: &AtomicUsize, by: isize) {
    count.store(count.load(Ordering::Relaxed).wrapping_add_signed(by), Ordering::Relaxed);
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
