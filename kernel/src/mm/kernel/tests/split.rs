//! Changes in the linear map whose ranges cut leaves: which lock is taken, whose memory, and who is refused.

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::{Change, Lazy, PageRange, Shape};

use super::super::KernelSpace;
use super::super::owners::RangeOwnerCheck;
use super::super::policy::{Policy, SplitMode};
use super::super::set_memory::{SetMemoryError, Validity};
use super::super::split::SplitCounts;
use super::contracts::starve;
use super::{PAGE, space};
use crate::mm::frame::FrameAllocator;
use crate::mm::layout;
use crate::smp::{Cpu, this_cpu};
use crate::sync::{IrqLock, rank};

const GROUP: u64 = 16 * PAGE;
const BLOCK: u64 = 2 << 20;
const GROUP_OF_BLOCKS: u64 = 16 * BLOCK;

/// A space whose linear map shows a group of blocks and one more, and whose leaves are split by `mode`.
pub(super) fn linear(mode: SplitMode) -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    linear_by(Policy { split: mode, ..Policy::UNDECIDED })
}

/// As [`linear`], with a policy.
pub(super) fn linear_by(policy: Policy) -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    let (space, frames, cpu) = space(4);
    space.set_policy(policy);
    let range = PageRange::new(layout::LINEAR_BASE, GROUP_OF_BLOCKS + BLOCK).unwrap();
    let (lazy, data) = (Lazy::new(&space.mmu), Attributes::kernel_data(MemoryType::NormalTagged));
    let mut source = space.table_source(&cpu);
    space.tables().get().map(&lazy, range, PhysAddr(0), data, Shape::LARGEST_DATA, &mut source).unwrap();
    (space, frames, cpu)
}

/// The leaves as they are, from the lowest address on: size, number, valid or not.
fn leaves(space: &KernelSpace) -> Vec<(u64, u64, bool)> {
    let mut leaves = Vec::new();
    let range = PageRange::new(layout::LINEAR_BASE, GROUP_OF_BLOCKS + BLOCK).unwrap();
    space.tables().dump(range, |extent| {
        leaves.push((extent.leaf_size, extent.size / extent.leaf_size, extent.attributes.is_valid()));
    });
    leaves
}

fn invalid(space: &KernelSpace, at: u64, pages: u64) -> Result<(), SetMemoryError> {
    space.set_memory_valid(layout::LINEAR_BASE + at, pages, Validity::Invalid)
}

#[test]
fn a_lock_is_taken_for_a_split_and_for_nothing_else() {
    for (mode, locked, stops) in [(SplitMode::Lock, 1, 0), (SplitMode::Lockless, 0, 0), (SplitMode::StopMachine, 0, 1)]
    {
        let (space, _, _) = linear(mode);
        // Whole leaves.
        invalid(space, GROUP_OF_BLOCKS, BLOCK / PAGE).unwrap();
        invalid(space, 0, (GROUP_OF_BLOCKS + BLOCK) / PAGE).unwrap();
        space.set_memory_valid(layout::LINEAR_BASE, (GROUP_OF_BLOCKS + BLOCK) / PAGE, Validity::Valid).unwrap();
        // Nothing to change in a part of one.
        space.set_memory_valid(layout::LINEAR_BASE + PAGE, 3, Validity::Valid).unwrap();
        assert_eq!(space.split_counts(), SplitCounts::default());

        invalid(space, GROUP_OF_BLOCKS, 1).unwrap();
        let none = SplitCounts::default();
        let first = SplitCounts { locked, stops, blocks: [0, 0, 1, 0], groups: [0, 0, 0, 1], ..none };
        assert_eq!(space.split_counts(), first);
        // The next pages of the group are split off already, and the next group has only to be dissolved.
        invalid(space, GROUP_OF_BLOCKS + PAGE, 15).unwrap();
        assert_eq!(space.split_counts(), first);
        invalid(space, GROUP_OF_BLOCKS + GROUP + PAGE, 2).unwrap();
        let second = SplitCounts { locked: 2 * locked, stops: 2 * stops, groups: [0, 0, 0, 2], ..first };
        assert_eq!(space.split_counts(), second);
        assert_eq!(
            leaves(space),
            [
                (BLOCK * 16, 1, true),
                (PAGE, 16, false),
                (PAGE, 1, true),
                (PAGE, 2, false),
                (PAGE, 13, true),
                (GROUP, 30, true)
            ]
        );
        invalid(space, 5 * BLOCK, 1).unwrap();
        let (locked, stops) = (3 * locked, 3 * stops);
        let third = SplitCounts { locked, stops, blocks: [0, 0, 2, 0], groups: [0, 0, 1, 3], ..none };
        assert_eq!(space.split_counts(), third);
    }
}

#[test]
fn where_nothing_is_split_a_part_is_refused_and_nothing_changes() {
    let (space, frames, _) = linear(SplitMode::Refuse);
    let before = (leaves(space), frames.stats());
    let partial = |at: u64, size| SetMemoryError::Partial { leaf: layout::LINEAR_BASE + at, size };
    for (at, pages, refusal) in [
        (PAGE, 1, partial(0, GROUP_OF_BLOCKS)),
        (BLOCK, BLOCK / PAGE, partial(0, GROUP_OF_BLOCKS)),
        (GROUP_OF_BLOCKS, 511, partial(GROUP_OF_BLOCKS, BLOCK)),
        (0, GROUP_OF_BLOCKS / PAGE + 1, partial(GROUP_OF_BLOCKS, BLOCK)),
    ] {
        assert_eq!(invalid(space, at, pages), Err(refusal));
        let lazy = Lazy::new(&space.mmu);
        let range = PageRange::from_pages(layout::LINEAR_BASE + at, pages as usize).unwrap();
        assert_eq!(space.update_linear(&lazy, range, Change::INVALID), Err(refusal));
        assert_eq!((leaves(space), frames.stats()), before);
    }
    assert_eq!(space.split_counts().refused, 8);
    invalid(space, GROUP_OF_BLOCKS, BLOCK / PAGE).unwrap();
    assert_eq!(space.split_counts(), SplitCounts { refused: 8, ..SplitCounts::default() });
}

#[test]
fn where_the_others_cannot_be_parked_a_part_is_refused_and_nothing_changes() {
    let (space, frames, _) = linear(SplitMode::StopMachine);
    let before = (leaves(space), frames.stats());
    let refusal = SetMemoryError::CannotStop { leaf: layout::LINEAR_BASE + GROUP_OF_BLOCKS, size: BLOCK };
    let refused = |times| {
        assert_eq!(invalid(space, GROUP_OF_BLOCKS, 1), Err(refusal));
        assert_eq!((leaves(space), frames.stats()), before);
        assert_eq!(space.split_counts(), SplitCounts { refused: times, ..SplitCounts::default() });
    };
    // In a handler, where what is whole changes all the same.
    this_cpu().trap().handler(|| {
        refused(1);
        invalid(space, GROUP_OF_BLOCKS, BLOCK / PAGE).unwrap();
        space.set_memory_valid(layout::LINEAR_BASE + GROUP_OF_BLOCKS, BLOCK / PAGE, Validity::Valid).unwrap();
    });
    // Inside a walk, which the others would wait for.
    let walk = space.tables();
    refused(2);
    drop(walk);
    let lock = IrqLock::<(), { rank::RANDOM }>::new(());
    let guard = lock.lock();
    let under_a_lock = invalid(space, GROUP_OF_BLOCKS, 1);
    drop(guard);
    assert_eq!(under_a_lock, Err(refusal));
    invalid(space, GROUP_OF_BLOCKS, 1).unwrap();
    assert_eq!(space.split_counts().stops, 1);
}

/// Each end takes a table, and there are no more.
#[test]
fn with_others_parked_a_split_at_two_ends_takes_what_it_needs() {
    let (space, frames, cpu) = linear(SplitMode::StopMachine);
    let before = (leaves(space), frames.stats().free, space.kept_frames());
    let change = || invalid(space, 5 * BLOCK + PAGE, BLOCK / PAGE);
    let kept = starve(frames, &cpu, 1);
    assert_eq!(change(), Err(SetMemoryError::OutOfTables { needed: 1, available: 0 }));
    assert_eq!(leaves(space).iter().map(|(size, count, _)| size * count).sum::<u64>(), GROUP_OF_BLOCKS + BLOCK);
    assert!(leaves(space).iter().all(|&(.., valid)| valid), "no page has changed");
    kept.into_iter().for_each(|frame| frames.free(&cpu, frame));
    change().unwrap();
    assert_eq!((space.split_counts().blocks, space.kept_frames()), ([0, 0, 2, 0], before.2 + 2));
    assert_eq!(frames.stats().free, before.1 - 2);
    assert_eq!(space.split_counts().stops, 2);
}

#[test]
fn the_linear_map_is_split_to_pages() {
    let (space, frames, _) = linear(SplitMode::StopMachine);
    assert!(!space.can_split_linear_to_pages() || frames.stats().free > 4);
    let memory = PhysRange::from_size(PhysAddr(0), GROUP_OF_BLOCKS + BLOCK).unwrap();
    let before = space.kept_frames();
    space.split_linear_to_pages([memory].into_iter()).unwrap();
    assert_eq!(leaves(space), [(PAGE, (GROUP_OF_BLOCKS + BLOCK) / PAGE, true)]);
    assert_eq!((space.kept_frames() - before, space.split_counts().stops), (17, 17));
    // Any page changes, from anywhere.
    this_cpu().trap().handler(|| invalid(space, BLOCK - PAGE, 3).unwrap());
    assert_eq!(space.split_counts().refused, 0);
}

#[test]
fn holes_in_the_linear_map_are_named_and_no_pages_are_no_error() {
    let (space, _, _) = linear(SplitMode::Lock);
    let beyond = GROUP_OF_BLOCKS + BLOCK;
    let hole = SetMemoryError::Hole(layout::LINEAR_BASE + beyond);
    assert_eq!(invalid(space, beyond, 1), Err(hole));
    assert_eq!(invalid(space, beyond - BLOCK, BLOCK / PAGE + 1), Err(hole));
    assert!(matches!(invalid(space, 0, u64::MAX), Err(SetMemoryError::Range(_))));
    assert_eq!(invalid(space, PAGE, 0), Ok(()));
    // Other permissions are not asked for there.
    let refused = Err(SetMemoryError::OutsideWindow(layout::LINEAR_BASE));
    assert_eq!(space.set_memory_ro(layout::LINEAR_BASE, 1), refused);
    assert_eq!(space.split_counts(), SplitCounts::default());
}

#[test]
fn a_handler_has_the_reserve_of_its_cpu_and_no_more() {
    let (space, frames, cpu) = linear(SplitMode::Lock);
    frames.drain_cpu(&cpu);
    let refusal = SetMemoryError::OutOfTables { needed: 1, available: 0 };
    this_cpu().trap().handler(|| {
        let before = leaves(space);
        assert_eq!(invalid(space, GROUP_OF_BLOCKS, 1), Err(refusal));
        assert_eq!(leaves(space), before);
    });
    assert!(frames.stats().free_blocks > 0 || frames.stats().free > 0);
    // One frame in reserve is a table.
    let frame = frames.alloc(&cpu).unwrap();
    frames.drain_cpu(&cpu);
    frames.free(&cpu, frame);
    this_cpu().trap().handler(|| {
        invalid(space, GROUP_OF_BLOCKS, 1).unwrap();
        assert_eq!(invalid(space, BLOCK, 1), Err(refusal));
        // A split of a group takes no table, so it needs no memory.
        invalid(space, GROUP_OF_BLOCKS + 5 * GROUP, 1).unwrap();
    });
    invalid(space, BLOCK, 1).unwrap();
}

#[test]
fn without_a_frame_for_a_table_nothing_changes() {
    let (space, frames, cpu) = linear(SplitMode::Lockless);
    let taken = starve(frames, &cpu, 1);
    let before = leaves(space);
    let both_ends = (BLOCK + PAGE, 2 * BLOCK / PAGE);
    let refusal = SetMemoryError::OutOfTables { needed: 2, available: 1 };
    assert_eq!(invalid(space, both_ends.0, both_ends.1), Err(refusal));
    assert_eq!(leaves(space), before);
    assert_eq!(space.split_counts(), SplitCounts::default());
    taken.into_iter().for_each(|frame| frames.free(&cpu, frame));
    invalid(space, both_ends.0, both_ends.1).unwrap();
}

fn pages(at: u64, count: usize) -> PageRange {
    PageRange::from_pages(VirtAddr(layout::LINEAR_BASE.0 + at), count).unwrap()
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "one of them is not its exclusive owner")]
fn two_owners_of_one_page_are_found() {
    let (space, _, _) = linear(SplitMode::Lock);
    // The change that the handler interrupts with the second one.
    let _owner = RangeOwnerCheck::new(pages(GROUP, 4));
    let _ = invalid(space, GROUP + 3 * PAGE, 2);
}

#[test]
fn owners_of_neighbouring_pages_are_not() {
    let (space, _, _) = linear(SplitMode::Lock);
    let _owner = RangeOwnerCheck::new(pages(GROUP, 4));
    invalid(space, GROUP + 4 * PAGE, 1).unwrap();
    invalid(space, GROUP - PAGE, 1).unwrap();
    // One that has ended is none.
    drop(RangeOwnerCheck::new(pages(0, 1)));
    invalid(space, 0, 1).unwrap();
}
