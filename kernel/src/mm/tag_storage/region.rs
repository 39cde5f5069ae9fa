//! One region of tag storage: which block has the tags of a frame, and which of its frames are lent.

use core::num::NonZeroUsize;
use core::ops::Range;

use granule_arch::addr::{PAGE, PhysAddr};

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
    /// A bit for each frame of which data caches may have written lines: it was lent, or used before the boot, and its
    /// block not reserved since.
    cached: &'static mut [u64],
}

impl Region {
    /// `None` where there is no memory for its tables.
    pub(super) fn new(region: &TagStorageRegion) -> Option<Self> {
        let frames = |range: granule_arch::addr::PhysRange| range.start().frame_number()..range.end().frame_number();
        let (storage, tagged) = (frames(region.storage), frames(region.tagged));
        let block_frames = NonZeroUsize::new((region.block_bytes / PAGE) as usize)?;
        let served = block_frames.checked_mul(NonZeroUsize::new(FRAMES_PER_FRAME)?)?;
        let lendable = storage.start.next_multiple_of(BLOCK_FRAMES)..storage.end / BLOCK_FRAMES * BLOCK_FRAMES;
        let lendable = if lendable.start < lendable.end { lendable } else { storage.start..storage.start };
        let blocks = zeroed::<BlockUse>(storage.len() / block_frames)?;
        let words = zeroed::<u64>(lendable.len() / u64::BITS as usize)?;
        words.fill(u64::MAX);
        let cached = zeroed::<u64>(words.len())?;
        cached.fill(u64::MAX);
        Some(Self {
            storage,
            tagged,
            block_frames,
            served,
            lendable,
            blocks,
            unused: IrqLock::new(Unused { words, first: 0, cached }),
        })
    }

    /// Where its storage is.
    pub const fn storage(&self) -> &Range<usize> {
        &self.storage
    }

    /// The numbers of the frames whose tags it has. The storage may lie among them.
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

    /// The use of a block, by its number from 0 on.
    ///
    /// # Panics
    /// Where there is no such block.
    pub fn block(&self, block: usize) -> &BlockUse {
        &self.blocks[block]
    }

    /// All blocks.
    pub fn blocks(&self) -> &[BlockUse] {
        self.blocks
    }

    /// The blocks that have the tags of `frames`, frame numbers that it covers: the number of each, and how many of them
    /// it has.
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

    /// The frames of a block that may be lent: the words that have their bits, and these.
    fn bits_of(&self, block: usize) -> impl Iterator<Item = (usize, u64)> + use<> {
        const BITS: usize = u64::BITS as usize;
        let frames = self.frames_of(block);
        let index = |frame: usize| frame.min(self.lendable.end).saturating_sub(self.lendable.start);
        let (start, end) = (index(frames.start), index(frames.end));
        (start / BITS..end.div_ceil(BITS)).map(move |word| {
            let (from, to) = (start.max(word * BITS) - word * BITS, end.min((word + 1) * BITS) - word * BITS);
            (word, (u64::MAX >> (BITS - (to - from))) << from)
        })
    }

    fn bit(&self, frame: usize) -> (usize, u64) {
        let index = frame - self.lendable.start;
        (index / u64::BITS as usize, 1 << (index % u64::BITS as usize))
    }

    /// Takes the frames of a claimed block, if none is lent: then it returns whether data caches may have written lines of
    /// them, which the caller invalidates.
    pub(super) fn take_unused(&self, block: usize) -> Option<bool> {
        let mut unused = self.unused.lock();
        if !self.bits_of(block).all(|(word, bits)| unused.words[word] & bits == bits) {
            return None;
        }
        // A frame that is never lent was perhaps used before the boot, and is not noted.
        let frames = self.frames_of(block);
        let mut is_cached = !(self.is_lendable(frames.start) && self.is_lendable(frames.end - 1));
        self.bits_of(block).for_each(|(word, bits)| {
            is_cached |= unused.cached[word] & bits != 0;
            unused.words[word] &= !bits;
            unused.cached[word] &= !bits;
        });
        Some(is_cached)
    }

    /// Gives the frames of a claimed block back, which `take_unused` has taken; `is_cached`: and which were written since.
    pub(super) fn put_unused(&self, block: usize, is_cached: bool) {
        let mut unused = self.unused.lock();
        self.bits_of(block).for_each(|(word, bits)| {
            unused.put(word, bits);
            unused.cached[word] |= if is_cached { bits } else { 0 };
        });
    }

    /// A frame that is not lent, of a block that is lendable.
    pub(super) fn lend(&self) -> Option<usize> {
        let mut unused = self.unused.lock();
        let Unused { words, first, cached } = &mut *unused;
        for (index, (word, cached)) in words.iter_mut().zip(cached.iter_mut()).enumerate().skip(*first) {
            let mut bits = *word;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                let frame = self.lendable.start + index * u64::BITS as usize + bit as usize;
                let block = (frame - self.storage.start) / self.block_frames;
                if self.blocks.get(block).is_some_and(BlockUse::is_lendable) {
                    *word &= !(1 << bit);
                    *cached |= 1 << bit;
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
        let count = |(_, bits): (usize, u64)| bits.count_ones();
        let reserved: u32 =
            (0..self.blocks.len()).filter(reserved).flat_map(|block| self.bits_of(block)).map(count).sum();
        let unused: u32 = self.unused.lock().words.iter().map(|word| word.count_ones()).sum();
        self.lendable.len().saturating_sub((reserved + unused) as usize)
    }
}

impl Unused {
    fn put(&mut self, word: usize, bits: u64) {
        self.words[word] |= bits;
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
        let (lowest, highest) = (lowest.frame_number(), highest.frame_number());
        self.0.first().is_some_and(|region| region.tagged.start <= lowest && highest < region.tagged.end)
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

#[cfg(test)]
mod tests {
    use granule_arch::addr::{PAGE, PhysAddr, PhysRange};
    use proptest::prelude::*;

    use super::{Region, TagStorageRegion};
    use crate::mm::page_block::BLOCK_FRAMES;

    /// The storage begins and ends inside a page block.
    const STORAGE: (usize, usize) = (BLOCK_FRAMES + 192, 4 * BLOCK_FRAMES);

    fn region(block_frames: usize) -> Region {
        let range = |frame: usize, frames: usize| {
            PhysRange::new(PhysAddr(frame as u64 * PAGE), PhysAddr((frame + frames) as u64 * PAGE)).unwrap()
        };
        let frames = STORAGE.1 / block_frames * block_frames;
        let storage = TagStorageRegion {
            storage: range(STORAGE.0, frames),
            block_bytes: block_frames as u64 * PAGE,
            tagged: range(0, 32 * frames),
        };
        Region::new(&storage).unwrap()
    }

    #[test]
    fn a_block_is_invalidated_if_it_was_lent_since() {
        let region = region(1);
        let frame = region.lendable_frames().start;
        let block = frame - region.storage().start;
        assert_eq!(region.take_unused(block), Some(true), "used before the boot");
        region.put_unused(block, false);
        assert_eq!(region.take_unused(block), Some(false));
        region.put_unused(block, true);
        assert_eq!(region.take_unused(block), Some(true), "written while it was reserved");
        region.put_unused(block, false);
        assert_eq!(region.lend(), Some(frame));
        assert_eq!(region.take_unused(block), None);
        region.take_back(frame);
        assert_eq!(region.take_unused(block), Some(true), "lent");
        region.put_unused(block, false);
        // The next one was not touched.
        assert_eq!(region.take_unused(block + 1), Some(true));
        assert_eq!(
            (region.take_unused(0), region.take_unused(0)),
            (Some(true), Some(true)),
            "never lent, and not noted"
        );
    }

    proptest! {
        #[test]
        fn the_bits_of_a_block_are_those_of_its_frames(block_frames in 1_usize..200, block in 0_usize..1000) {
            let region = region(block_frames);
            let block = block % region.blocks().len();
            let mut of_frames = std::collections::BTreeMap::<usize, u64>::new();
            for (word, bit) in region.frames_of(block).filter(|&frame| region.is_lendable(frame)).map(|frame| region.bit(frame)) {
                *of_frames.entry(word).or_default() |= bit;
            }
            prop_assert_eq!(region.bits_of(block).collect::<Vec<_>>(), of_frames.into_iter().collect::<Vec<_>>());
        }
    }
}
