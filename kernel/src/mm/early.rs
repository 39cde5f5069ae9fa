//! Memory before the allocators: what there is, what is reserved, and the few runs that boot itself takes.
//!
//! The device tree may be untidy. Banks may overlap, touch, come in any order and end in the middle
//! of a page; so may reserved ranges. [`MemoryMap::new`] turns that into two sorted lists: *memory*, every whole page
//! of RAM that the linear map can show, and *free*, the part of it that is not in use.
//!
//! Boot takes its page tables and arrays from *free* with [`MemoryMap::take`]; what is left becomes page blocks when
//! [`FrameAllocator::new`](super::frame::FrameAllocator::new) empties the map, so nothing can be taken twice. The
//! rule: the map never hands out a byte that is not in *free*, and never gives one back.
//!
//! Runs are taken from the ragged ends first, because a 2 MiB page block that lost one frame to boot can never be
//! handed out whole again.

use granule_arch::addr::{PAGE, PhysAddr, PhysRange};
use heapless::Vec;
use thiserror::Error;

use super::OutOfMemory;
use super::layout::LINEAR_SIZE;
use super::page_block::BLOCK_SIZE;

/// The most banks of memory, after those that touch are joined.
pub const MAX_BANKS: usize = 32;
/// The most pieces that reserved ranges and early takes may cut memory into.
pub const MAX_RANGES: usize = 128;

/// The memory that the device tree describes cannot be managed. Boot stops with this message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MemoryMapError {
    /// No whole page is left of the banks once the reserved ranges are taken away.
    #[error("no usable memory: every bank is empty, reserved or above the linear map")]
    NoMemory,
    /// There are more separate banks than [`MAX_BANKS`].
    #[error("more than {MAX_BANKS} separate banks of memory")]
    TooManyBanks,
    /// The reserved ranges cut memory into more pieces than [`MAX_RANGES`].
    #[error("reserved ranges cut memory into more than {MAX_RANGES} pieces")]
    TooManyRanges,
}

/// Which physical memory exists and which of it is still free.
///
/// Both lists are sorted, page-aligned, without overlaps or empty ranges, below [`LINEAR_SIZE`]; no two ranges of
/// `memory` touch; `free` is part of `memory`.
#[derive(Debug)]
pub struct MemoryMap {
    memory: Vec<PhysRange, MAX_BANKS>,
    free: Vec<PhysRange, MAX_RANGES>,
}

impl MemoryMap {
    /// Makes the map from the banks and everything in them that must stay untouched: reserved memory, the kernel's
    /// image, the device tree, the initrd.
    ///
    /// Neither list need be sorted, aligned or free of overlaps, and reserved ranges need not lie in a bank. A page
    /// counts as memory if banks cover all of it, and as reserved if a reserved range covers any of it.
    ///
    /// # Errors
    /// [`MemoryMapError`]: nothing usable is left, or a list is too long for its array.
    #[inline(never)]
    pub fn new(
        banks: impl IntoIterator<Item = PhysRange>,
        reserved: impl IntoIterator<Item = PhysRange>,
    ) -> Result<Self, MemoryMapError> {
        // Filled in place: the lists are 2.5 KiB, of a boot stack of 16.
        let mut map = Self { memory: Vec::new(), free: Vec::new() };
        for bank in banks {
            join(&mut map.memory, bank)?;
        }
        // Only now is rounding right: a page may be covered by two banks that meet inside it.
        for bank in map.memory.iter_mut() {
            *bank = whole_pages(*bank);
        }
        map.memory.retain(|bank| !bank.is_empty());

        map.free.extend(map.memory.iter().copied());
        for range in reserved {
            remove(&mut map.free, any_pages(range))?;
        }
        if map.free.is_empty() { Err(MemoryMapError::NoMemory) } else { Ok(map) }
    }

    /// All memory, free or not, in ascending order: what the linear map shows.
    pub fn memory(&self) -> &[PhysRange] {
        &self.memory
    }

    /// The ranges that are not taken, in ascending order.
    pub fn free(&self) -> &[PhysRange] {
        &self.free
    }

    /// Leaves nothing to take: all that was free belongs to the frame allocator now.
    pub(super) fn exhaust(&mut self) {
        self.free.clear();
    }

    /// Takes `pages` contiguous frames at a multiple of `align` bytes, a power of two of at least a page. Their
    /// contents are whatever the previous stage left.
    ///
    /// # Errors
    /// [`OutOfMemory`]: no free range holds such a run, or cutting it out would need one range more than
    /// [`MAX_RANGES`]. Nothing was taken.
    pub fn take(&mut self, pages: usize, align: u64) -> Result<PhysAddr, OutOfMemory> {
        let anywhere = PhysRange::from_size(PhysAddr(0), LINEAR_SIZE).ok_or(OutOfMemory)?;
        self.take_within(anywhere, pages, align)
    }

    /// [`Self::take`], of what lies in `within`: for a boot that has mapped no more than that yet.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_within(&mut self, within: PhysRange, pages: usize, align: u64) -> Result<PhysAddr, OutOfMemory> {
        debug_assert!(align.is_power_of_two() && align >= PAGE);
        let size = (pages as u64).checked_mul(PAGE).filter(|size| *size > 0).ok_or(OutOfMemory)?;
        // The smallest range that fits, so that the largest stays whole for page blocks.
        let start = self
            .free
            .iter()
            .filter_map(|range| PhysRange::new(range.start().max(within.start()), range.end().min(within.end())))
            .filter_map(|range| Some((range.size(), place(range, size, align)?)))
            .min_by_key(|(range_size, _)| *range_size)
            .map(|(_, start)| start)
            .ok_or(OutOfMemory)?;
        let run = PhysRange::from_size(start, size).ok_or(OutOfMemory)?;
        remove(&mut self.free, run).map_err(|_| OutOfMemory)?;
        Ok(start)
    }
}

/// Where in `range` a run of `size` bytes at a multiple of `align` should lie: inside the broken block at the bottom if
/// there is one and it fits, else as far up as it can.
fn place(range: PhysRange, size: u64, align: u64) -> Option<PhysAddr> {
    let bottom = range.start().align_up(align)?;
    let first_whole_block = range.start().align_up(BLOCK_SIZE)?;
    if bottom.checked_add(size)? <= first_whole_block.min(range.end()) {
        return Some(bottom);
    }
    let top = PhysAddr(range.end().0.checked_sub(size)?).align_down(align);
    (top >= range.start()).then_some(top)
}

/// Adds `new` to the sorted list, as one range with all that it overlaps or touches.
fn join(list: &mut Vec<PhysRange, MAX_BANKS>, new: PhysRange) -> Result<(), MemoryMapError> {
    if new.is_empty() {
        return Ok(());
    }
    let (mut start, mut end) = (new.start(), new.end());
    list.retain(|old| {
        let apart = old.end() < start || end < old.start();
        if !apart {
            start = start.min(old.start());
            end = end.max(old.end());
        }
        apart
    });
    let position = list.partition_point(|old| old.end() < start);
    let joined = PhysRange::new(start, end).unwrap_or(new);
    list.insert(position, joined).map_err(|_| MemoryMapError::TooManyBanks)
}

/// Takes `hole` out of every range of the sorted list. On an error nothing has changed.
fn remove(list: &mut Vec<PhysRange, MAX_RANGES>, hole: PhysRange) -> Result<(), MemoryMapError> {
    if hole.is_empty() {
        return Ok(());
    }
    // A hole strictly inside one range makes two of it; this is the only case that needs room.
    let is_full = list.is_full();
    let around = |range: &PhysRange| range.start() < hole.start() && hole.end() < range.end();
    if let Some((index, range)) = list.iter_mut().enumerate().find(|(_, range)| around(range)) {
        let (Some(below), Some(above)) =
            (PhysRange::new(range.start(), hole.start()), PhysRange::new(hole.end(), range.end()))
        else {
            return Ok(());
        };
        if is_full {
            return Err(MemoryMapError::TooManyRanges);
        }
        *range = below;
        return list.insert(index + 1, above).map_err(|_| MemoryMapError::TooManyRanges);
    }
    for range in list.iter_mut().filter(|range| range.overlaps(hole)) {
        let kept = if range.start() < hole.start() {
            PhysRange::new(range.start(), hole.start())
        } else {
            PhysRange::new(hole.end().min(range.end()), range.end())
        };
        *range = kept.unwrap_or(*range);
    }
    list.retain(|range| !range.is_empty());
    Ok(())
}

/// The whole pages inside `range` that the linear map can show; empty where there are none.
fn whole_pages(range: PhysRange) -> PhysRange {
    let empty = PhysRange::new(range.start(), range.start()).unwrap_or(range);
    let end = range.end().min(PhysAddr(LINEAR_SIZE)).align_down(PAGE);
    range.start().align_up(PAGE).and_then(|start| PhysRange::new(start, end)).unwrap_or(empty)
}

/// The pages that `range` touches.
fn any_pages(range: PhysRange) -> PhysRange {
    if range.is_empty() {
        return range;
    }
    let start = range.start().align_down(PAGE);
    // Past the last page there is nothing that could be memory: ending there loses nothing.
    let end = range.end().align_up(PAGE).unwrap_or(PhysAddr(u64::MAX).align_down(PAGE));
    PhysRange::new(start, end).unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec as StdVec;

    use granule_arch::addr::PAGE_SIZE;
    use proptest::prelude::*;

    use super::*;

    /// The naive model works in quarters of a page, so that it sees every unaligned end.
    const QUARTER: u64 = PAGE / 4;
    const QUARTERS: u64 = 4096;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    fn ranges(most: usize) -> impl Strategy<Value = StdVec<PhysRange>> {
        prop::collection::vec((0..QUARTERS, 0..600_u64), 0..most).prop_map(|list| {
            list.into_iter()
                .map(|(start, size)| range(start * QUARTER, (start + size).min(QUARTERS) * QUARTER))
                .collect()
        })
    }

    /// For each page: whether banks cover all four quarters and no reserved range covers any.
    fn oracle(banks: &[PhysRange], reserved: &[PhysRange]) -> (StdVec<bool>, StdVec<bool>) {
        let covered = |list: &[PhysRange], quarter: u64| {
            list.iter().any(|r| r.contains(PhysAddr(quarter * QUARTER)) && !r.is_empty())
        };
        let pages = 0..QUARTERS / 4;
        let memory: StdVec<bool> = pages.clone().map(|page| (0..4).all(|q| covered(banks, page * 4 + q))).collect();
        let free =
            pages.map(|page| memory[page as usize] && !(0..4).any(|q| covered(reserved, page * 4 + q))).collect();
        (memory, free)
    }

    fn pages_of(list: &[PhysRange]) -> StdVec<bool> {
        (0..QUARTERS / 4).map(|page| list.iter().any(|r| r.contains(PhysAddr(page * PAGE)))).collect()
    }

    #[track_caller]
    fn assert_tidy(list: &[PhysRange]) {
        assert!(list.iter().all(|r| !r.is_empty()));
        assert!(list.iter().all(|r| r.start().is_aligned(4096) && r.end().is_aligned(4096)));
        assert!(list.windows(2).all(|pair| pair[0].end() <= pair[1].start()));
    }

    proptest! {
        #[test]
        fn map_agrees_with_a_bitmap(banks in ranges(8), reserved in ranges(20)) {
            let (memory, free) = oracle(&banks, &reserved);
            match MemoryMap::new(banks, reserved) {
                Ok(map) => {
                    assert_tidy(map.memory());
                    assert_tidy(map.free());
                    prop_assert_eq!(pages_of(map.memory()), memory);
                    prop_assert_eq!(pages_of(map.free()), free);
                }
                Err(error) => {
                    prop_assert_eq!(error, MemoryMapError::NoMemory);
                    prop_assert!(free.iter().all(|page| !page));
                }
            }
        }

        #[test]
        fn takes_are_free_aligned_and_taken_once(
            banks in ranges(6),
            reserved in ranges(10),
            wishes in prop::collection::vec((0_usize..40, 12_u32..22), 1..60),
        ) {
            let (_, mut free) = oracle(&banks, &reserved);
            let Ok(mut map) = MemoryMap::new(banks, reserved) else { return Ok(()) };
            for (pages, shift) in wishes {
                let before = map.free().len();
                match map.take(pages, 1 << shift) {
                    Ok(start) => {
                        prop_assert!(start.is_aligned(1 << shift));
                        for page in &mut free[start.frame_number()..start.frame_number() + pages] {
                            prop_assert!(*page, "a page of the run at {start} was not free");
                            *page = false;
                        }
                    }
                    Err(OutOfMemory) => {
                        let step = (1_usize << shift) / PAGE_SIZE;
                        let fits = pages > 0
                            && (0..free.len()).step_by(step).any(|first| {
                                first + pages <= free.len() && free[first..first + pages].iter().all(|f| *f)
                            });
                        prop_assert!(!fits || before == MAX_RANGES, "{pages} pages would have fitted");
                    }
                }
                assert_tidy(map.free());
                prop_assert_eq!(&pages_of(map.free()), &free);
            }
        }
    }

    #[test]
    fn page_that_two_banks_share_is_memory() {
        let map = MemoryMap::new([range(0x1800, 0x4000), range(0, 0x1800)], []).unwrap();
        assert_eq!(map.memory(), [range(0, 0x4000)]);
    }

    #[test]
    fn memory_above_the_linear_map_is_left_alone() {
        let map = MemoryMap::new([range(LINEAR_SIZE - 0x2000, u64::MAX)], [range(u64::MAX - 1, u64::MAX)]).unwrap();
        assert_eq!(map.memory(), [range(LINEAR_SIZE - 0x2000, LINEAR_SIZE)]);
    }

    #[test]
    fn too_many_pieces_are_an_error() {
        let bank = |n: u64| range(n * 0x10_0000, n * 0x10_0000 + 0x1000);
        assert_eq!(MemoryMap::new((0..33).map(bank), []).unwrap_err(), MemoryMapError::TooManyBanks);
        assert!(MemoryMap::new((0..32).map(bank), []).is_ok());
        let hole = |n: u64| range(n * 0x4000 + 0x1000, n * 0x4000 + 0x2000);
        let bank = range(0, 0x1000_0000);
        assert_eq!(MemoryMap::new([bank], (0..128).map(hole)).unwrap_err(), MemoryMapError::TooManyRanges);
        assert!(MemoryMap::new([bank], (0..127).map(hole)).is_ok());
    }

    #[test]
    fn take_that_would_overflow_the_list_changes_nothing() {
        let hole = |n: u64| range(n * 0x4000 + 0x1000, n * 0x4000 + 0x2000);
        let mut map = MemoryMap::new([range(0, 0x40_1000)], (0..127).map(hole)).unwrap();
        // A 2 MiB run leaves a piece on each side of it, and there is room for no more pieces.
        assert_eq!(map.take(16, 0x20_0000), Err(OutOfMemory));
        assert_eq!(map.free().len(), MAX_RANGES);
        assert!(map.take(1, 0x1000).is_ok());
    }

    #[test]
    fn no_run_has_no_frames_or_more_than_there_are() {
        let mut map = MemoryMap::new([range(0, 0x40_0000)], []).unwrap();
        assert_eq!([0, 0x401, usize::MAX].map(|pages| map.take(pages, 0x1000)), [Err(OutOfMemory); 3]);
        assert_eq!(map.take(0x400, 0x1000), Ok(PhysAddr(0)));
    }

    #[test]
    fn take_within_stays_there_though_there_is_more_elsewhere() {
        let mut map = MemoryMap::new([range(0, 0x40_0000), range(0x100_0000, 0x800_0000)], []).unwrap();
        let within = range(0x10_0000, 0x10_3000);
        let mut taken = [(); 3].map(|()| map.take_within(within, 1, 0x1000).unwrap().0);
        taken.sort_unstable();
        assert_eq!(taken, [0x10_0000, 0x10_1000, 0x10_2000]);
        assert_eq!(map.take_within(within, 1, 0x1000), Err(OutOfMemory));
        assert_eq!(map.take_within(range(0x80_0000, 0x90_0000), 1, 0x1000), Err(OutOfMemory));
    }

    #[test]
    fn takes_use_the_broken_block_first() {
        let mut map = MemoryMap::new([range(0x4000_0000, 0x4800_0000)], [range(0x4000_0000, 0x4032_1000)]).unwrap();
        assert_eq!(map.take(1, 0x1000), Ok(PhysAddr(0x4032_1000)));
        assert_eq!(map.take(2, 0x1000), Ok(PhysAddr(0x4032_2000)));
        assert_eq!(map.take(512, 0x20_0000), Ok(PhysAddr(0x47e0_0000)));
    }
}
