//! One region of tag storage: which block has the tags of a frame, and which of its frames are lent.

use core::num::NonZeroUsize;
use core::ops::Range;

use granule_arch::addr::{PAGE_SIZE, PhysAddr};

use super::{BlockUse, FRAMES_PER_FRAME};
use crate::mm::page_block::BLOCK_FRAMES;
use crate::platform::TagStorageRegion;
use crate::sync::{IrqLock, rank};

/// A region, all in frame numbers.
pub struct Region {
    storage: Range<usize>,
    tagged: Range<usize>,
    block_frames: NonZeroUsize,
    /// Frames whose tags a block has.
    served: NonZeroUsize,
    /// The part of the storage that is lent: whole page blocks.
    lendable: Range<usize>,
    blocks: &'static [BlockUse],
    unused: IrqLock<Unused, { rank::TAG_STORAGE }>,
}

/// The frames that are not lent, of blocks that are not reserved.
struct Unused {
    /// A bit for each frame of what is lendable.
    words: &'static mut [u64],
    /// No word below has one.
    first: usize,
}

impl Region {
    /// `None` where there is no memory for its tables.
    pub(super) fn new(region: &TagStorageRegion) -> Option<Self> {
        let frames = |range: granule_arch::addr::PhysRange| range.start().frame_number()..range.end().frame_number();
        let (storage, tagged) = (frames(region.storage), frames(region.tagged));
        let block_frames = NonZeroUsize::new((region.block_bytes / PAGE_SIZE as u64) as usize)?;
        let served = block_frames.checked_mul(NonZeroUsize::new(FRAMES_PER_FRAME)?)?;
        let lendable = storage.start.next_multiple_of(BLOCK_FRAMES)..storage.end / BLOCK_FRAMES * BLOCK_FRAMES;
        let lendable = if lendable.start < lendable.end { lendable } else { storage.start..storage.start };
        let blocks = zeroed::<BlockUse>(storage.len() / block_frames)?;
        let words = zeroed::<u64>(lendable.len() / u64::BITS as usize)?;
        words.fill(u64::MAX);
        Some(Self {
            storage,
            tagged,
            block_frames,
            served,
            lendable,
            blocks,
            unused: IrqLock::new(Unused { words, first: 0 }),
        })
    }

    /// Where its storage is.
    pub const fn storage(&self) -> &Range<usize> {
        &self.storage
    }

    /// The frames whose tags it has, a part of which it may be.
    pub const fn tagged(&self) -> &Range<usize> {
        &self.tagged
    }

    /// Frames in a block.
    pub const fn block_frames(&self) -> usize {
        self.block_frames.get()
    }

    /// Those that may be lent.
    pub(super) fn lendable_frames(&self) -> Range<usize> {
        self.lendable.clone()
    }

    /// Whether it has the tags of a frame.
    #[inline(always)]
    pub fn covers(&self, frame: usize) -> bool {
        frame.wrapping_sub(self.tagged.start) < self.tagged.len()
    }

    /// Whether a frame is part of its storage.
    pub fn has(&self, frame: usize) -> bool {
        self.storage.contains(&frame)
    }

    /// Whether a frame is part of what is lent.
    #[inline(always)]
    pub fn is_lendable(&self, frame: usize) -> bool {
        frame.wrapping_sub(self.lendable.start) < self.lendable.len()
    }

    /// The use of a block.
    pub fn block(&self, block: usize) -> &BlockUse {
        &self.blocks[block]
    }

    /// All blocks.
    pub fn blocks(&self) -> &[BlockUse] {
        self.blocks
    }

    /// The blocks that have the tags of `frames`, which it covers, and how many of them each.
    pub fn blocks_of(&self, frames: Range<usize>) -> impl Iterator<Item = (usize, u32)> + use<> {
        let served = self.served;
        let (first, end) = (frames.start - self.tagged.start, frames.end - self.tagged.start);
        (first / served..(end + (served.get() - 1)) / served).map(move |block| {
            let users = end.min((block + 1) * served.get()) - first.max(block * served.get());
            (block, users as u32)
        })
    }

    /// The block that has the tags of a frame, which it covers.
    #[inline(always)]
    pub(super) fn block_of(&self, frame: usize) -> usize {
        (frame - self.tagged.start) / self.served
    }

    /// The frames of a block.
    pub fn frames_of(&self, block: usize) -> Range<usize> {
        let start = self.storage.start + block * self.block_frames.get();
        start..start + self.block_frames.get()
    }

    /// The frames of a block that may be lent, as bits.
    fn bits_of(&self, block: usize) -> impl Iterator<Item = (usize, u64)> + use<'_> {
        let lendable = self.frames_of(block).filter(|&frame| self.is_lendable(frame));
        lendable.map(|frame| self.bit(frame))
    }

    fn bit(&self, frame: usize) -> (usize, u64) {
        let index = frame - self.lendable.start;
        (index / u64::BITS as usize, 1 << (index % u64::BITS as usize))
    }

    /// Takes the frames of a claimed block, if none is lent; whether none was.
    pub(super) fn take_unused(&self, block: usize) -> bool {
        let mut unused = self.unused.lock();
        let are_unused = self.bits_of(block).all(|(word, bit)| unused.words[word] & bit != 0);
        if are_unused {
            self.bits_of(block).for_each(|(word, bit)| unused.words[word] &= !bit);
        }
        are_unused
    }

    /// Gives the frames of a claimed block back, which `take_unused` has taken.
    pub(super) fn put_unused(&self, block: usize) {
        let mut unused = self.unused.lock();
        self.bits_of(block).for_each(|(word, bit)| unused.put(word, bit));
    }

    /// A frame that is not lent, of a block that is lendable.
    pub(super) fn lend(&self) -> Option<usize> {
        let mut unused = self.unused.lock();
        let Unused { words, first } = &mut *unused;
        for (index, word) in words.iter_mut().enumerate().skip(*first) {
            let mut bits = *word;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                let frame = self.lendable.start + index * u64::BITS as usize + bit as usize;
                let block = (frame - self.storage.start) / self.block_frames;
                if self.blocks.get(block).is_some_and(BlockUse::is_lendable) {
                    *word &= !(1 << bit);
                    return Some(frame);
                }
                // It is being claimed.
                bits &= bits - 1;
            }
            if *word == 0 && *first == index {
                *first = index + 1;
            }
        }
        None
    }

    /// Takes a frame back that was lent.
    pub(super) fn take_back(&self, frame: usize) {
        let (word, bit) = self.bit(frame);
        self.unused.lock().put(word, bit);
    }

    /// Whether a frame of a claimed block is lent.
    pub(super) fn is_lent(&self, frame: PhysAddr) -> bool {
        let frame = frame.frame_number();
        self.is_lendable(frame) && {
            let (word, bit) = self.bit(frame);
            self.unused.lock().words[word] & bit == 0
        }
    }

    /// Frames that are lent now: of blocks that are not reserved.
    pub(super) fn lent(&self) -> usize {
        let reserved = |block: &usize| self.blocks[*block].users().is_some();
        let reserved: usize = (0..self.blocks.len()).filter(reserved).map(|block| self.bits_of(block).count()).sum();
        let unused: u32 = self.unused.lock().words.iter().map(|word| word.count_ones()).sum();
        self.lendable.len().saturating_sub(reserved + unused as usize)
    }
}

impl Unused {
    fn put(&mut self, word: usize, bit: u64) {
        self.words[word] |= bit;
        self.first = self.first.min(word);
    }
}

/// The frames that need tag storage.
#[derive(Clone, Copy)]
pub struct Coverage<'a>(&'a [Region]);

impl<'a> Coverage<'a> {
    pub(super) const fn new(regions: &'a [Region]) -> Self {
        Self(regions)
    }

    /// Whether the first region has the tags of all frames from `lowest` to `highest`.
    #[inline(always)]
    pub fn has_all(&self, lowest: PhysAddr, highest: PhysAddr) -> bool {
        let covers_both =
            |region: &Region| region.covers(lowest.frame_number()) && region.covers(highest.frame_number());
        self.0.first().is_some_and(covers_both)
    }

    /// Whether `frame` does. Tag storage does too, and never has any.
    #[inline(always)]
    pub fn has(&self, frame: PhysAddr) -> bool {
        let frame = frame.frame_number();
        self.0.iter().any(|region| region.covers(frame) || region.has(frame))
    }
}

/// So many zeros from the heap, for ever.
fn zeroed<T: Default>(count: usize) -> Option<&'static mut [T]> {
    let mut vector = alloc::vec::Vec::new();
    vector.try_reserve_exact(count).ok()?;
    vector.resize_with(count, T::default);
    Some(vector.leak())
}
