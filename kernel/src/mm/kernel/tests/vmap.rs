//! Areas that do not own their frames: how given frames are mapped, what may change of them and of registers, and that
//! the linear map shows the frames as before.

#![allow(unsafe_code, reason = "frames that no test accesses, none of an area from vmalloc")]

use std::string::ToString;
use std::vec::Vec;

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::host::Operation;
use granule_pgtable::{Change, Error, Lazy, Leaves, PageRange};

use super::super::KernelSpace;
use super::super::alias::{ReadOnly, ReadWrite};
use super::super::area::AreaKind;
use super::super::policy::{Policy, SplitMode};
use super::super::record::record;
use super::super::set_memory::{SetMemoryError, Validity};
use super::super::split::SplitCounts;
use super::super::vmalloc::VmallocError;
use super::PAGE;
use super::contracts::{CALLS, Call, everything, starve};
use super::large::leaves;
use super::split::linear_by;
use crate::mm::frame::FrameAllocator;
use crate::mm::layout;
use crate::mm::layout::STACK_SIZE;
use crate::smp::Cpu;

const GROUP: u64 = 16;
const BLOCK: u64 = 512;
/// Memory that the linear map of these spaces shows: 17 blocks.
const SHOWN: u64 = 17 * BLOCK * PAGE;

fn mapping(split: SplitMode) -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    let area_leaves = if split == SplitMode::Refuse { Leaves::Pages } else { Leaves::Largest };
    linear_by(Policy { split, area_leaves, ..Policy::UNDECIDED })
}

fn vmap(space: &KernelSpace, cpu: &Cpu, frames: &[PhysAddr]) -> Result<VirtAddr, VmallocError> {
    // SAFETY: the frames are memory that the tests do not use, and of no area.
    unsafe { space.vmap(cpu, frames) }
}

/// `pages` frames that follow one another, from frame `first` on.
fn run(first: u64, pages: u64) -> Vec<PhysAddr> {
    (first..first + pages).map(|frame| PhysAddr(frame * PAGE)).collect()
}

/// Every descriptor of the linear map.
fn linear_map(space: &KernelSpace) -> Vec<(VirtAddr, u64, Descriptor)> {
    let (mut all, range) = (Vec::new(), PageRange::new(layout::LINEAR_BASE, SHOWN).unwrap());
    space.tables().dump(range, |extent| all.push((extent.start, extent.size, extent.attributes)));
    all
}

#[test]
fn given_frames_have_the_largest_leaves_that_their_runs_allow() {
    let twice = |run: Vec<PhysAddr>| [run.clone(), run].concat();
    let one_and = |run: Vec<PhysAddr>| [self::run(3, 1), run].concat();
    for (given, expected) in [
        (run(7, 1), &[(1, 1)][..]),
        (twice(run(7, 1)), &[(1, 2)]),
        (run(16, 40), &[(GROUP, 2), (1, 8)]),
        // The second copy of a ring is aligned like the first where the ring is a multiple of a leaf.
        (twice(run(16, 48)), &[(GROUP, 6)]),
        (twice(run(16, 40)), &[(GROUP, 2), (1, 48)]),
        (twice(run(BLOCK, BLOCK)), &[(BLOCK, 2)]),
        // Aligned alike, though neither is aligned.
        (one_and(run(BLOCK + 1, 2 * BLOCK - 1)), &[(1, 16), (GROUP, 31), (BLOCK, 1)]),
        (run(20, 2 * GROUP).into_iter().rev().collect(), &[(1, 2 * GROUP)]),
    ] {
        let (space, frames, cpu) = mapping(SplitMode::Lock);
        let (before, linear) = (everything(space, frames), linear_map(space));
        let start = vmap(space, &cpu, &given).unwrap();
        let pages = given.len() as u64;
        assert_eq!(leaves(space, start, pages), expected, "{pages} pages, the first of them {}", given[0]);
        for (page, &frame) in (0..).zip(&given) {
            let found = space.tables().translate(start + page * PAGE).unwrap();
            let leaf = found.descriptor;
            assert!(found.physical == frame && found.valid && leaf.is_writable() && !leaf.is_executable(), "{page}");
            assert_eq!(leaf.0 & (bits::VM_MAP | bits::VM_ALLOC), bits::VM_MAP);
        }
        assert_eq!([start - PAGE, start + pages * PAGE].map(|guard| space.tables().translate(guard)), [None, None]);
        assert_eq!(space.vunmap(&cpu, start), Ok(pages));
        assert_eq!((everything(space, frames), linear_map(space)), (before, linear));
    }
}

#[test]
fn given_frames_are_pages_where_areas_are() {
    let (space, _, cpu) = mapping(SplitMode::Refuse);
    let start = vmap(space, &cpu, &run(BLOCK, BLOCK)).unwrap();
    assert_eq!(leaves(space, start, BLOCK), [(1, BLOCK)]);
}

#[test]
fn what_is_no_memory_that_may_be_written_is_not_mapped() {
    let (space, frames, cpu) = mapping(SplitMode::Lock);
    let page = |frame: u64| layout::linear(PhysAddr(frame * PAGE));
    space.set_memory_valid(page(40), 1, Validity::Invalid).unwrap();
    let lazy = Lazy::new(&space.mmu);
    let read_only = PageRange::from_pages(page(41), 1).unwrap();
    let _ = space.update_linear(&lazy, read_only, Change::READ_ONLY).unwrap();
    let before = everything(space, frames);
    for wrong in [
        PhysAddr(39 * PAGE + 8),
        PhysAddr(40 * PAGE),
        PhysAddr(41 * PAGE),
        PhysAddr(SHOWN),
        PhysAddr(layout::LINEAR_SIZE),
        PhysAddr(u64::MAX - PAGE + 1),
        PhysAddr(u64::MAX),
    ] {
        for given in [[run(39, 1), [wrong].to_vec()].concat(), [[wrong].to_vec(), run(42, 3)].concat()] {
            assert_eq!(vmap(space, &cpu, &given), Err(VmallocError::NotMemory(wrong)));
            assert_eq!(everything(space, frames), before);
        }
    }
    assert_eq!(vmap(space, &cpu, &[]), Err(VmallocError::NoPages));
    assert_eq!(everything(space, frames), before);
}

/// Each frame is a run of its own, so that a table is missing when most of them are mapped.
#[test]
fn what_cannot_be_mapped_half_way_leaves_nothing_behind() {
    let given: Vec<_> = (0..600).map(|page| PhysAddr(2 * page * PAGE)).collect();
    for left in 0.. {
        let (space, frames, cpu) = mapping(SplitMode::Lock);
        let taken = starve(frames, &cpu, left);
        let (before, linear) = (everything(space, frames), linear_map(space));
        let mapped = vmap(space, &cpu, &given);
        assert_eq!(linear_map(space), linear);
        match mapped {
            Ok(start) => {
                // A slab of records and four tables.
                assert_eq!(left, 5);
                assert_eq!(space.vunmap(&cpu, start), Ok(600));
                space.reclaim(&cpu);
                assert_eq!(everything(space, frames), before);
                break;
            }
            Err(VmallocError::OutOfMemory(_) | VmallocError::Tables(Error::OutOfTables { .. })) => {
                assert_eq!(everything(space, frames), before, "with {left} frames");
            }
            Err(other) => panic!("with {left} frames: {other}"),
        }
        taken.into_iter().for_each(|frame| frames.free(&cpu, frame));
        assert_eq!(vmap(space, &cpu, &given).and_then(|start| space.vunmap(&cpu, start)), Ok(600));
    }
}

/// Both kinds of area that do not own their frames, of a block: given frames and registers.
fn both_kinds(space: &KernelSpace, cpu: &Cpu) -> [VirtAddr; 2] {
    let registers = PhysRange::from_size(PhysAddr(0x900_0000_u64.next_multiple_of(BLOCK * PAGE)), BLOCK * PAGE);
    [vmap(space, cpu, &run(BLOCK, BLOCK)).unwrap(), space.map_device(cpu, registers.unwrap()).unwrap()]
}

/// The calls as they are where the alias goes along with a vmalloc area.
fn calls_with_alias() -> [(&'static str, Call); 7] {
    CALLS.map(|(name, call)| {
        let call: Call = match name {
            "ro" => KernelSpace::set_memory_and_alias::<ReadOnly>,
            "rw" => KernelSpace::set_memory_and_alias::<ReadWrite>,
            _ => call,
        };
        (name, call)
    })
}

#[test]
fn whole_leaves_change_in_all_but_execution_and_the_alias_never_does() {
    for split in [SplitMode::Lock, SplitMode::Lockless, SplitMode::StopMachine, SplitMode::Refuse] {
        let (space, frames, cpu) = mapping(split);
        let linear = linear_map(space);
        for (start, calls) in
            both_kinds(space, &cpu).into_iter().flat_map(|start| [(start, CALLS), (start, calls_with_alias())])
        {
            let (fresh, whole) = (everything(space, frames), leaves(space, start, BLOCK));
            for (name, call) in calls {
                let is_code = matches!(name, "x" | "rox");
                let expected = if is_code { Err(SetMemoryError::NeverExecutable(start)) } else { Ok(()) };
                assert_eq!(call(space, start + 3 * PAGE, 0), Ok(()), "{name}");
                assert_eq!(everything(space, frames), fresh);
                assert_eq!(call(space, start, BLOCK), expected, "{name} {split}");
                for page in [0, 9, BLOCK - 1] {
                    let found = space.tables().translate(start + page * PAGE).unwrap();
                    let leaf = (found.valid, found.descriptor.is_writable(), found.descriptor.is_executable());
                    assert_eq!(leaf, (name != "invalid", name != "ro", false), "{name}");
                }
                let guard = SetMemoryError::GuardPage { guard: start + BLOCK * PAGE, area: start };
                let refused = call(space, start + PAGE, BLOCK);
                assert_eq!(refused, Err(if is_code { SetMemoryError::NeverExecutable(start + PAGE) } else { guard }));
                assert_eq!(leaves(space, start, BLOCK), whole);
                space.set_memory_rw(start, BLOCK).unwrap();
                space.set_memory_valid(start, BLOCK, Validity::Valid).unwrap();
                assert_eq!(everything(space, frames), fresh);
            }
            // Read-only, so that writing is no reason to refuse.
            space.set_memory_ro(start, BLOCK).unwrap();
            assert_eq!(space.set_memory_x(start + PAGE, 3), Err(SetMemoryError::NeverExecutable(start + PAGE)));
            assert_eq!(space.set_memory_rox(start, 3), Err(SetMemoryError::NeverExecutable(start)));
            space.set_memory_rw(start, BLOCK).unwrap();
            assert_eq!((everything(space, frames), space.split_counts()), (fresh, SplitCounts::default()));
        }
        assert_eq!(linear_map(space), linear, "{split}");
    }
}

#[test]
fn a_part_of_a_leaf_is_split_or_refused_once_and_then_nothing_changes() {
    for split in [SplitMode::Lock, SplitMode::Lockless, SplitMode::StopMachine, SplitMode::Refuse] {
        let (space, frames, cpu) = mapping(split);
        let linear = linear_map(space);
        for (start, calls) in both_kinds(space, &cpu).into_iter().zip([CALLS, calls_with_alias()]) {
            let is_block = leaves(space, start, BLOCK) == [(BLOCK, 1)];
            for (name, call) in calls.into_iter().filter(|(name, _)| ["ro", "nx", "invalid"].contains(name)) {
                let (fresh, before) = (everything(space, frames), space.split_counts());
                let changed = call(space, start + 5 * PAGE, 3);
                let refused = space.split_counts().refused - before.refused;
                if name == "nx" || split == SplitMode::Refuse && is_block {
                    let partial = Err(SetMemoryError::Partial { leaf: start, size: BLOCK * PAGE });
                    // It is so already, which takes no split.
                    let (expected, count) = if name == "nx" { (Ok(()), 0) } else { (partial, 1) };
                    assert_eq!(
                        (changed, refused, everything(space, frames)),
                        (expected, count, fresh),
                        "{name} {split}"
                    );
                    continue;
                }
                assert_eq!((changed, refused), (Ok(()), 0), "{name} {split}");
                for page in 0..BLOCK {
                    let (found, is_part) =
                        (space.tables().translate(start + page * PAGE).unwrap(), (5..8).contains(&page));
                    let is_changed = if name == "ro" { !found.descriptor.is_writable() } else { !found.valid };
                    assert_eq!(is_changed, is_part, "{name} {split}: page {page}");
                    assert!(!found.descriptor.is_executable());
                }
                space.set_memory_valid(start, BLOCK, Validity::Valid).unwrap();
            }
        }
        assert_eq!(linear_map(space), linear, "{split}");
    }
}

#[test]
fn the_permissions_of_a_stack_are_fixed() {
    let (space, frames, cpu) = mapping(SplitMode::Lock);
    let stack = space.alloc_stack(&cpu).unwrap() - STACK_SIZE;
    let before = everything(space, frames);
    for (name, call) in CALLS.into_iter().chain(calls_with_alias()) {
        for pages in [0, 1] {
            assert_eq!(call(space, stack, pages), Err(SetMemoryError::NotVmalloc(stack)), "{name}");
        }
    }
    assert_eq!(everything(space, frames), before);
}

#[test]
fn each_kind_of_area_has_one_call_that_unmaps_it() {
    let (space, frames, cpu) = mapping(SplitMode::Lock);
    let [mapped, device] = both_kinds(space, &cpu);
    let own = space.vmalloc(&cpu, 3).unwrap().into_start();
    let before = everything(space, frames);
    for (result, refusal) in [
        (space.vfree_at(&cpu, mapped), VmallocError::WrongKind(mapped, AreaKind::Mapped)),
        (space.vfree_at(&cpu, device), VmallocError::WrongKind(device, AreaKind::Device)),
        (space.vunmap(&cpu, device), VmallocError::WrongKind(device, AreaKind::Device)),
        (space.vunmap(&cpu, own), VmallocError::WrongKind(own, AreaKind::Vmalloc)),
        (space.vunmap(&cpu, mapped + PAGE), VmallocError::NotAnArea(mapped + PAGE)),
        (space.vunmap(&cpu, VirtAddr(0)), VmallocError::NotAnArea(VirtAddr(0))),
    ] {
        assert_eq!(result, Err(refusal));
    }
    assert_eq!(everything(space, frames), before);
    assert!(
        VmallocError::WrongKind(own, AreaKind::Vmalloc)
            .to_string()
            .ends_with("(Vmalloc), which this call does not unmap")
    );
    assert_eq!((space.vunmap(&cpu, mapped), space.vfree_at(&cpu, own)), (Ok(BLOCK), Ok(3)));
    assert_eq!(space.vunmap(&cpu, mapped), Err(VmallocError::NotAnArea(mapped)));
    assert_eq!(space.tables().translate(mapped), None);
}

/// As many frames are in use after it, the linear map is as before, and the last TLBI is completed.
#[test]
fn vunmap_frees_no_frame_and_is_complete_when_it_returns() {
    let (space, frames, cpu) = mapping(SplitMode::Lock);
    let start = vmap(space, &cpu, &run(7, 3)).unwrap();
    space.set_memory_ro(start, 3).unwrap();
    let (used, linear) = (frames.stats().used, linear_map(space));
    let stream = host::with(&[], || record(|| _ = space.vunmap(&cpu, start).unwrap()));
    assert_eq!((frames.stats().used, frames.stats().refused), (used, 0));
    assert_eq!(linear_map(space), linear);
    let place = |is: fn(&Operation) -> bool| stream.iter().rposition(is);
    let (tlbi, complete) = (
        place(|operation| matches!(operation, Operation::Tlbi(_))),
        place(|operation| *operation == Operation::DsbIsh),
    );
    assert!(tlbi.is_some() && tlbi < complete, "{stream:?}");
}
