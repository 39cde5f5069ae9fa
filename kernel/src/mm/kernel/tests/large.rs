//! Areas of blocks and contiguous groups: which leaves they have, what a change of a part does, and where their memory
//! goes.

use std::vec::Vec;

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::bits;
use granule_pgtable::{Collapses, Error, Leaves, PageRange};

use super::super::KernelSpace;
use super::super::collapse::CollapseError;
use super::super::policy::{Policy, SplitMode};
use super::super::set_memory::{SetMemoryError, Validity};
use super::super::vmalloc::VmallocError;
use super::contracts::{everything, starve};
use super::{PAGE, space};
use crate::mm::frame::FrameAllocator;
use crate::mm::page_block::BLOCK_SIZE;
use crate::smp::Cpu;

const GROUP: u64 = 16;
const BLOCK: u64 = 512;

/// A space whose areas have the largest leaves, which are split by `mode`.
fn large(mib: u64, split: SplitMode) -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    let (space, frames, cpu) = space(mib);
    let area_leaves = if split == SplitMode::Refuse { Leaves::Pages } else { Leaves::Largest };
    space.set_policy(Policy { split, area_leaves, ..Policy::UNDECIDED });
    (space, frames, cpu)
}

/// The leaves of `pages` pages from `start` on: how many pages each translates, and how many of them follow.
pub(super) fn leaves(space: &KernelSpace, start: VirtAddr, pages: u64) -> Vec<(u64, u64)> {
    let (mut leaves, mut at) = (Vec::<(u64, u64)>::new(), start);
    while at < start + pages * PAGE {
        let size = space.tables().translate(at).unwrap().leaf_size / PAGE;
        match leaves.last_mut() {
            Some((last, count)) if *last == size => *count += 1,
            _ => leaves.push((size, 1)),
        }
        at = at + size * PAGE;
    }
    leaves
}

#[test]
fn areas_have_the_largest_leaves_that_fit() {
    let (space, frames, cpu) = large(32, SplitMode::Lock);
    let before = everything(space, frames);
    for (pages, expected) in [
        (1, &[(1, 1)][..]),
        (15, &[(1, 15)]),
        (16, &[(GROUP, 1)]),
        (40, &[(GROUP, 2), (1, 8)]),
        (200, &[(GROUP, 12), (1, 8)]),
        (512, &[(BLOCK, 1)]),
        (1030, &[(BLOCK, 2), (1, 6)]),
        (1048, &[(BLOCK, 2), (GROUP, 1), (1, 8)]),
    ] {
        let start = space.vmalloc(&cpu, pages).unwrap().into_start();
        assert_eq!(leaves(space, start, pages), expected, "{pages} pages");
        assert_eq!(everything(space, frames).frames, before.frames + pages as usize);
        assert_eq!([start - PAGE, start + pages * PAGE].map(|guard| space.tables().translate(guard)), [None, None]);
        assert_eq!(space.vfree_at(&cpu, start), Ok(pages));
        assert_eq!(everything(space, frames), before, "{pages} pages");
    }
}

#[test]
fn huge_areas_are_whole_blocks_whatever_is_done_to_leaves() {
    for split in [SplitMode::Lock, SplitMode::Lockless, SplitMode::StopMachine, SplitMode::Refuse] {
        let (space, frames, cpu) = large(16, split);
        let before = everything(space, frames);
        for (pages, blocks) in [(1, 1), (512, 1), (513, 2)] {
            let area = space.vmalloc_huge(&cpu, pages).unwrap();
            assert_eq!(area.pages(), blocks * BLOCK);
            assert_eq!(leaves(space, area.start(), area.pages()), [(BLOCK, blocks)]);
            space.vfree(&cpu, area);
            assert_eq!(everything(space, frames), before);
        }
        assert_eq!(space.vmalloc_huge(&cpu, 0).unwrap_err(), VmallocError::NoPages);
        assert_eq!(
            space.vmalloc_huge(&cpu, u64::MAX).unwrap_err(),
            VmallocError::NoAddresses { pages: u64::MAX },
            "more than can be rounded up"
        );
        assert_eq!(everything(space, frames), before);
    }
}

/// Where a CPU frees a block of which another part changes.
#[test]
fn a_part_of_a_block_changes_alone_and_the_whole_block_comes_back() {
    for split in [SplitMode::Lock, SplitMode::Lockless, SplitMode::StopMachine] {
        let (space, frames, cpu) = large(16, split);
        let before = everything(space, frames);
        let area = space.vmalloc_huge(&cpu, 2 * BLOCK).unwrap();
        let page = |page: u64| area.start() + page * PAGE;
        // Whole leaves stay.
        space.set_memory_ro(page(0), 2 * BLOCK).unwrap();
        space.set_memory_rw(page(BLOCK), BLOCK).unwrap();
        assert_eq!(leaves(space, page(0), 2 * BLOCK), [(BLOCK, 2)]);
        assert_eq!(space.split_counts().of_areas, 0);
        // Nothing to change in a part of one.
        space.set_memory_ro(page(5), 3).unwrap();
        assert_eq!(space.split_counts().of_areas, 0);

        space.set_memory_rox(page(5), 3).unwrap();
        assert_eq!(space.split_counts().of_areas, 1);
        assert_eq!(leaves(space, page(0), 2 * BLOCK), [(1, 16), (GROUP, 31), (BLOCK, 1)]);
        // A page that is in no group any more, and one in a group that the next call dissolves.
        space.set_memory_x(page(9), 1).unwrap();
        space.set_memory_valid(page(40), 1, Validity::Invalid).unwrap();
        assert_eq!(leaves(space, page(0), BLOCK), [(1, 16), (GROUP, 1), (1, 16), (GROUP, 29)]);
        for index in 0..2 * BLOCK {
            let found = space.tables().translate(page(index)).unwrap();
            let expected = (index >= BLOCK, [5, 6, 7, 9].contains(&index), index != 40);
            let leaf = found.descriptor;
            assert_eq!((leaf.may_be_written(), leaf.0 & bits::PXN == 0, found.valid), expected, "page {index}");
        }
        assert_eq!(space.vfree_at(&cpu, page(0)), Ok(2 * BLOCK));
        assert_eq!(everything(space, frames), before);
        // The blocks are whole again.
        space.vfree(&cpu, space.vmalloc_huge(&cpu, 2 * BLOCK).unwrap());
        assert_eq!((frames.stats().refused, everything(space, frames)), (0, before));
    }
}

#[test]
fn where_leaves_are_not_split_areas_are_pages_and_a_part_of_a_huge_one_is_refused() {
    let (space, frames, cpu) = large(16, SplitMode::Refuse);
    let pages = space.vmalloc(&cpu, BLOCK + 40).unwrap();
    assert_eq!(leaves(space, pages.start(), pages.pages()), [(1, BLOCK + 40)]);
    space.set_memory_ro(pages.start() + 3 * PAGE, 1).unwrap();
    let start = space.vmalloc_huge(&cpu, 2 * BLOCK).unwrap().into_start();
    let before = everything(space, frames);
    let calls = [KernelSpace::set_memory_ro, KernelSpace::set_memory_rox];
    for (count, call) in calls.into_iter().enumerate() {
        for (at, pages, leaf) in [(0, 1, 0), (1, 511, 0), (BLOCK, 20, BLOCK), (1, 2 * BLOCK - 1, 0)] {
            let refusal = SetMemoryError::Partial { leaf: start + leaf * PAGE, size: BLOCK_SIZE };
            assert_eq!(call(space, start + at * PAGE, pages), Err(refusal));
        }
        assert_eq!(everything(space, frames), before);
        assert_eq!(space.split_counts().refused, 4 * (count as u64 + 1));
    }
    space.set_memory_ro(start + BLOCK * PAGE, BLOCK).unwrap();
    assert_eq!(leaves(space, start, 2 * BLOCK), [(BLOCK, 2)]);
}

/// Takes every other frame, so that neither a block nor a group is free; gives back what was taken.
fn fragmented(frames: &FrameAllocator, cpu: &Cpu) -> Vec<PhysAddr> {
    let taken = starve(frames, cpu, 0);
    let (kept, others): (Vec<_>, Vec<_>) = taken.into_iter().partition(|frame| frame.frame_number() % 2 == 0);
    others.into_iter().for_each(|frame| frames.free(cpu, frame));
    kept
}

#[test]
fn memory_in_pieces_makes_an_area_all_the_same() {
    let (space, frames, cpu) = large(16, SplitMode::Lock);
    let kept = fragmented(frames, &cpu);
    let before = everything(space, frames);
    let area = space.vmalloc(&cpu, BLOCK + 20).unwrap();
    assert_eq!(leaves(space, area.start(), area.pages()), [(1, BLOCK + 20)]);
    space.vfree(&cpu, area);
    assert_eq!(everything(space, frames), before);
    kept.into_iter().for_each(|frame| frames.free(&cpu, frame));
}

#[test]
fn what_cannot_be_had_of_a_large_area_leaves_nothing_behind() {
    let (mut failures, pages) = (0, 3 * BLOCK + 50);
    for left in 0.. {
        let (space, frames, cpu) = large(16, SplitMode::Lock);
        let before = everything(space, frames);
        // Frames one by one, in a block that is never whole, and three blocks.
        let blocks: Vec<_> = (0..3).map(|_| frames.alloc_blocks(&cpu, 0).unwrap()).collect();
        let taken = starve(frames, &cpu, left);
        blocks.into_iter().for_each(|block| frames.free_blocks(&cpu, block, 0));
        let starved = everything(space, frames);
        let allocated = space.vmalloc(&cpu, pages);
        if let Err(error) = &allocated {
            let is_shortage =
                matches!(error, VmallocError::OutOfMemory(_) | VmallocError::Tables(Error::OutOfTables { .. }));
            assert!(is_shortage, "with {left} frames: {error}");
            assert_eq!(everything(space, frames), starved, "with {left} frames");
            failures += 1;
        }
        let is_done = allocated.is_ok();
        allocated.into_iter().for_each(|area| space.vfree(&cpu, area));
        taken.into_iter().for_each(|frame| frames.free(&cpu, frame));
        assert_eq!(everything(space, frames), before);
        if is_done {
            break;
        }
    }
    assert!(failures > 50, "{failures}");
}

/// An area that is gone has left a table, which may be freed, or else is filled.
#[test]
fn a_table_in_the_way_of_a_block_is_freed() {
    let (space, _, cpu) = large(16, SplitMode::Lock);
    let [first, small] = [BLOCK, 3].map(|pages| space.vmalloc(&cpu, pages).unwrap());
    assert_eq!(leaves(space, first.start(), BLOCK), [(BLOCK, 1)]);
    space.set_memory_ro(first.start() + PAGE, 1).unwrap();
    let start = first.into_start();
    space.vfree_at(&cpu, start).unwrap();
    space.vfree(&cpu, small);
    let again = space.vmalloc(&cpu, BLOCK).unwrap();
    assert_eq!(again.start(), start);
    assert_eq!(leaves(space, start, BLOCK), [(BLOCK, 1)]);
    // A table that stays, because nothing may be reclaimed now.
    space.vfree(&cpu, again);
    let page = space.vmalloc(&cpu, 1).unwrap();
    assert!(page.start() < start);
    space.vfree(&cpu, page);
}

#[test]
fn registers_have_the_largest_leaves_that_their_alignment_allows() {
    let (space, _, cpu) = large(16, SplitMode::Refuse);
    for (first, pages, expected) in [
        (0x900_0000, 1, &[(1, 1)][..]),
        (0x900_1000, 40, &[(1, 40)]),
        (0x901_0000, 40, &[(GROUP, 2), (1, 8)]),
        (0x1000_0000, 512, &[(BLOCK, 1)]),
        (0x3f00_0000, 4096 + 3, &[(BLOCK, 8), (1, 3)]),
        (0x40_1000_0000, 65_536, &[(16 * BLOCK, 8)]),
        (0x80_0000_0000, 262_144, &[(512 * BLOCK, 1)]),
    ] {
        let registers = PhysRange::from_size(PhysAddr(first), pages * PAGE).unwrap();
        let start = space.map_device(&cpu, registers).unwrap();
        assert_eq!(leaves(space, start, pages), expected, "{pages} pages at {first:#x}");
        for page in [0, pages / 2, pages - 1] {
            let found = space.tables().translate(start + page * PAGE).unwrap();
            assert_eq!(found.physical, PhysAddr(first + page * PAGE));
            assert!(found.descriptor.0 & bits::VM_ALLOC == 0 && !found.descriptor.is_executable());
            assert_eq!(
                space.set_memory_x(start + page * PAGE, 1),
                Err(SetMemoryError::NeverExecutable(start + page * PAGE))
            );
        }
    }
    // Within a page, and over an edge.
    let inside = PhysRange::from_size(PhysAddr(0x900_0ff8), 16).unwrap();
    let start = space.map_device(&cpu, inside).unwrap();
    assert_eq!((start.0 & (PAGE - 1), leaves(space, start - 0xff8, 2)), (0xff8, [(1, 2)].to_vec()));
}

#[test]
fn what_was_split_for_a_page_is_collapsed_and_is_freed_as_it_was() {
    for split in [SplitMode::Lock, SplitMode::Lockless, SplitMode::StopMachine] {
        let (space, frames, cpu) = large(16, split);
        let before = everything(space, frames);
        let area = space.vmalloc_huge(&cpu, 2 * BLOCK).unwrap();
        let all = PageRange::from_pages(area.start(), 2 * BLOCK as usize).unwrap();
        let taken = everything(space, frames).frames;
        let page = area.start() + 5 * PAGE;
        space.set_memory_ro(page, 1).unwrap();
        assert_eq!(space.collapse(&cpu, all), Ok(Collapses::NONE), "there is nothing larger");
        space.set_memory_rw(page, 1).unwrap();
        let done = space.collapse(&cpu, all).unwrap();
        assert_eq!((done.blocks, done.cancelled), ([0, 0, 1, 0], 0));
        assert_eq!(leaves(space, area.start(), 2 * BLOCK), [(BLOCK, 2)]);
        assert_eq!((everything(space, frames).frames, space.collapse_counts().0), (taken, done));
        // Again, and freed in pages.
        space.set_memory_ro(page, 1).unwrap();
        space.vfree(&cpu, area);
        space.reclaim(&cpu);
        assert_eq!((frames.stats().refused, everything(space, frames)), (0, before));
    }
}

#[test]
fn pages_that_lie_in_one_piece_become_groups() {
    let (space, frames, cpu) = large(16, SplitMode::Lock);
    let before = everything(space, frames);
    let area = space.vmalloc(&cpu, 2 * GROUP).unwrap();
    for page in [0, GROUP] {
        space.set_memory_ro(area.start() + page * PAGE, 1).unwrap();
    }
    assert_eq!(leaves(space, area.start(), 2 * GROUP), [(1, 2 * GROUP)]);
    space.set_memory_ro(area.start(), 2 * GROUP).unwrap();
    let range = PageRange::from_pages(area.start(), 2 * GROUP as usize).unwrap();
    assert_eq!(space.collapse(&cpu, range).map(|done| done.groups), Ok([0, 0, 0, 1]));
    assert_eq!(leaves(space, area.start(), 2 * GROUP), [(GROUP, 2)]);
    space.set_memory_rw(area.start() + PAGE, 1).unwrap();
    assert_eq!(leaves(space, area.start(), 2 * GROUP), [(1, GROUP), (GROUP, 1)]);
    space.vfree(&cpu, area);
    space.reclaim(&cpu);
    assert_eq!((frames.stats().refused, everything(space, frames)), (0, before));
}

#[test]
fn what_is_not_collapsed_is_refused() {
    let (space, _, cpu) = large(16, SplitMode::Refuse);
    let area = space.vmalloc(&cpu, GROUP).unwrap();
    let range = PageRange::from_pages(area.start(), 1).unwrap();
    assert_eq!(space.collapse(&cpu, range), Err(CollapseError::NeverSplit));
    let behind = PageRange::from_pages(crate::mm::layout::VMALLOC_END, 1).unwrap();
    assert_eq!(space.collapse(&cpu, behind), Err(CollapseError::Elsewhere(behind)));
    let linear = PageRange::from_pages(crate::mm::layout::linear(PhysAddr(0)), 1).unwrap();
    let policy =
        Policy { split: SplitMode::Lock, area_leaves: Leaves::Pages, debug_pagealloc: true, ..Policy::UNDECIDED };
    let (space, _, cpu) = super::space(8);
    space.set_policy(policy);
    assert_eq!(space.collapse(&cpu, range), Err(CollapseError::AreasOfPages));
    assert_eq!(space.collapse(&cpu, linear), Err(CollapseError::LinearOfPages));
    let (split, area_leaves) = (SplitMode::StopMachine, Leaves::Largest);
    let (space, _, cpu) = super::space(8);
    space.set_policy(Policy { split, area_leaves, alias: true, ..Policy::UNDECIDED });
    assert_eq!(space.collapse(&cpu, linear), Err(CollapseError::LinearOfPages));
    assert_eq!(space.collapse(&cpu, range), Ok(Collapses::NONE));
}
