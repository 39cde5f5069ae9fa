//! Which page blocks exist: runs of block numbers, laid end to end in the arrays that have one element per block.
//!
//! Physical memory has holes of terabytes; the arrays must not. Banks, widened to whole blocks and joined where they
//! touch, are the *spans*; a block's *index* is its place when all spans are put in a row.

use granule_arch::addr::PhysRange;
use heapless::Vec;

use super::{BLOCK_FRAMES, BLOCK_SIZE, BlockNumber};
use crate::mm::early::{MAX_BANKS, MemoryMap};

/// A run of consecutive page blocks that hold memory, at least in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    /// Number of the first block.
    first: BlockNumber,
    /// How many blocks, at least 1.
    count: usize,
    /// Index of the first block.
    index: usize,
}

/// All spans in ascending order, at least one block apart.
#[derive(Clone, Debug)]
pub struct Spans(Vec<Span, MAX_BANKS>);

impl Spans {
    /// The spans of all memory in `map`, free or not.
    pub fn new(map: &MemoryMap) -> Self {
        let mut spans: Vec<Span, MAX_BANKS> = Vec::new();
        for bank in map.memory() {
            let (first, end) = block_numbers(*bank);
            match spans.last_mut() {
                Some(last) if first <= last.first + last.count => last.count = end - last.first,
                _ => {
                    let index = spans.last().map_or(0, |last| last.index + last.count);
                    // There are no more spans than banks, and no more banks than places.
                    let pushed = spans.push(Span { first, count: end - first, index });
                    debug_assert!(pushed.is_ok());
                }
            }
        }
        Self(spans)
    }

    /// How many blocks there are in all.
    pub fn blocks(&self) -> usize {
        self.0.last().map_or(0, |last| last.index + last.count)
    }

    /// The index of block `number`; `None` where there is no memory.
    #[inline]
    pub fn index(&self, number: BlockNumber) -> Option<usize> {
        self.0
            .iter()
            .find(|span| number.wrapping_sub(span.first) < span.count)
            .map(|span| span.index + (number - span.first))
    }

    /// The spans in ascending order, each as the number of its first frame and how many frames it has.
    pub fn into_frames(self) -> impl Iterator<Item = (usize, usize)> {
        self.0.into_iter().map(|span| (span.first * BLOCK_FRAMES, span.count * BLOCK_FRAMES))
    }
}

/// Number of the first block that `range` touches, and of the first after those.
fn block_numbers(range: PhysRange) -> (BlockNumber, BlockNumber) {
    ((range.start().0 / BLOCK_SIZE) as usize, range.end().0.div_ceil(BLOCK_SIZE) as usize)
}

#[cfg(test)]
mod tests {
    use granule_arch::addr::PhysAddr;

    use super::*;

    #[test]
    fn banks_that_share_or_touch_a_block_are_one_span() {
        let mib = |from: u64, to: u64| PhysRange::new(PhysAddr(from << 20), PhysAddr(to << 20)).unwrap();
        let map = MemoryMap::new([mib(3, 4), mib(5, 7), mib(9, 16), mib(1024, 1025)], []).unwrap();
        let spans = Spans::new(&map);
        assert_eq!(spans.clone().into_frames().collect::<std::vec::Vec<_>>(), [(512, 7 * 512), (512 * 512, 512)]);
        assert_eq!(spans.blocks(), 8);
        assert_eq!(spans.index(0), None);
        assert_eq!(spans.index(1), Some(0));
        assert_eq!(spans.index(7), Some(6));
        assert_eq!(spans.index(8), None);
        assert_eq!(spans.index(512), Some(7));
        assert_eq!(spans.index(513), None);
    }
}
