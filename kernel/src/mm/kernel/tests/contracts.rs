//! The effects and the errors of each call. After an error nothing has changed, and that is looked at: every leaf,
//! every frame, every area.

use std::string::ToString;
use std::vec::Vec;

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Error, PageRange};

use super::super::area::AreaKind;
use super::super::policy::SplitMode;
use super::super::set_memory::{SetMemoryError, Validity};
use super::super::vmalloc::VmallocError;
use super::split::linear;
use super::{KernelSpace, PAGE, space};
use crate::mm::frame::FrameAllocator;
use crate::mm::layout::STACK_SIZE;
use crate::mm::layout::{HEAP_BASE, VMALLOC_END, VMALLOC_START};
use crate::mm::{OutOfMemory, layout};
use crate::smp::{Cpu, CpuId};

/// Everything that a call could have changed: leaves by address, areas, and frames in use beside those that the space
/// keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Everything {
    leaves: Vec<(VirtAddr, Descriptor)>,
    areas: Vec<(VirtAddr, u64, AreaKind)>,
    pub(super) frames: usize,
}

pub(super) fn everything(space: &KernelSpace, frames: &FrameAllocator) -> Everything {
    let mut leaves = Vec::new();
    let upper_half = PageRange::new(layout::LINEAR_BASE, layout::LINEAR_BASE.0.wrapping_neg()).unwrap();
    space.tables().dump(upper_half, |extent| {
        for page in (0..extent.size).step_by(PAGE as usize) {
            let address = extent.start + page;
            leaves.push((address, space.tables().translate(address).unwrap().descriptor));
        }
    });
    let mut areas = Vec::new();
    space.for_each_area(|area| areas.push((area.start(), area.pages(), area.kind())));
    Everything { leaves, areas, frames: frames.stats().used - space.kept_frames() }
}

#[test]
fn an_area_is_mapped_by_pages_of_its_own_between_holes() {
    let (space, frames, cpu) = space(8);
    let empty = everything(space, frames);
    let areas = [1, 3, 600].map(|pages| space.vmalloc(&cpu, pages).unwrap());
    let mapped = everything(space, frames);
    assert_eq!(mapped.leaves.len(), 604);
    assert_eq!(mapped.frames, empty.frames + 604);
    let mut physical: Vec<_> = mapped.leaves.iter().map(|(_, leaf)| leaf.address()).collect();
    physical.sort_unstable();
    physical.dedup();
    assert_eq!(physical.len(), 604);
    for (address, leaf) in &mapped.leaves {
        assert!(leaf.is_valid() && leaf.is_writable() && !leaf.is_executable() && !leaf.is_contiguous(), "{address}");
    }
    for area in &areas {
        for outside in [area.start() - PAGE, area.start() + area.pages() * PAGE] {
            assert_eq!(space.tables().translate(outside), None);
        }
    }
    for area in areas {
        space.vfree(&cpu, area);
    }
    assert_eq!(everything(space, frames), empty);
}

#[test]
fn a_stack_has_one_page_below_that_is_not_mapped() {
    let (space, _, cpu) = space(4);
    // As near below a stack as an area can end.
    let between = 2 * STACK_SIZE / PAGE - 2;
    let _below = space.vmalloc(&cpu, between).unwrap();
    let top = space.alloc_stack(&cpu).unwrap();
    for below in (PAGE..=STACK_SIZE + 2 * PAGE).step_by(PAGE as usize) {
        let mapped = space.tables().translate(top - below).is_some();
        assert_eq!(mapped, below != STACK_SIZE + PAGE, "{below:#x} below the top");
    }
}

#[test]
fn registers_are_mapped_where_they_begin_in_their_page() {
    let (space, frames, cpu) = space(4);
    let used = everything(space, frames).frames;
    let registers = PhysRange::new(PhysAddr(0x900_0f00), PhysAddr(0x900_1100)).unwrap();
    let address = space.map_device(&cpu, registers).unwrap();
    assert_eq!(space.tables().translate(address).unwrap().physical, registers.start());
    assert_eq!(space.tables().translate(address + 0x100).unwrap().physical, PhysAddr(0x900_1000));
    assert_eq!(space.tables().translate(address + 0x1100), None);
    assert_eq!(everything(space, frames).frames, used);
}

/// It would be a second mapping, writable, of what may be code.
#[test]
fn memory_is_not_mapped_as_registers() {
    const END: u64 = 17 * (2 << 20);
    let (space, frames, cpu) = linear(SplitMode::Lock);
    let before = everything(space, frames);
    for (first, bytes) in [(0, PAGE), (END - 1, 1), (END - PAGE, 2 * PAGE), (5 * PAGE + 4, 8), (0, 1 << 40)] {
        let registers = PhysRange::from_size(PhysAddr(first), bytes).unwrap();
        let refused = Err(VmallocError::NotRegisters(PhysAddr(first).align_down(PAGE)));
        assert_eq!(space.map_device(&cpu, registers), refused);
    }
    assert_eq!(everything(space, frames), before);
    // Hidden frames are memory as well.
    space.set_memory_valid(layout::LINEAR_BASE + (END - PAGE), 1, Validity::Invalid).unwrap();
    let last = PhysRange::from_size(PhysAddr(END - PAGE), PAGE).unwrap();
    assert!(space.map_device(&cpu, last).is_err());
    for first in [END, layout::LINEAR_SIZE - PAGE, layout::LINEAR_SIZE] {
        space.map_device(&cpu, PhysRange::from_size(PhysAddr(first), 2 * PAGE).unwrap()).unwrap();
    }
}

#[test]
fn what_vfree_refuses_stays() {
    let (space, frames, cpu) = space(4);
    let area = space.vmalloc(&cpu, 3).unwrap().into_start();
    let stack = space.alloc_stack(&cpu).unwrap() - STACK_SIZE;
    let freed = space.vmalloc(&cpu, 1).unwrap().into_start();
    assert_eq!(space.vfree_at(&cpu, freed), Ok(1));
    let before = everything(space, frames);
    for (address, refusal) in [
        (area + PAGE, VmallocError::NotAnArea(area + PAGE)),
        (area + 3 * PAGE, VmallocError::NotAnArea(area + 3 * PAGE)),
        (area + 8, VmallocError::NotAnArea(area + 8)),
        (freed, VmallocError::NotAnArea(freed)),
        (VirtAddr(0), VmallocError::NotAnArea(VirtAddr(0))),
        (stack, VmallocError::WrongKind(stack, AreaKind::Stack)),
    ] {
        assert_eq!(space.vfree_at(&cpu, address), Err(refusal));
        assert_eq!(everything(space, frames), before, "{refusal}");
    }
}

#[test]
fn what_vmalloc_cannot_have_leaves_nothing_behind() {
    let (space, frames, cpu) = space(4);
    drop(space.vmalloc(&cpu, 1).unwrap());
    let before = everything(space, frames);
    let window = (VMALLOC_END - VMALLOC_START) / PAGE;
    for (pages, refusals) in [
        (0, &[VmallocError::NoPages][..]),
        (2000, &[VmallocError::OutOfMemory(OutOfMemory)]),
        (window - 2, &[VmallocError::OutOfMemory(OutOfMemory), VmallocError::NoAddresses { pages: window - 2 }]),
        (u64::MAX, &[VmallocError::OutOfMemory(OutOfMemory), VmallocError::NoAddresses { pages: u64::MAX }]),
    ] {
        let refusal = space.vmalloc(&cpu, pages).unwrap_err();
        assert!(refusals.contains(&refusal), "{pages} pages: {refusal}");
        assert_eq!(everything(space, frames), before, "{pages} pages");
    }
}

#[test]
fn each_cpu_has_addresses_of_its_own_and_each_may_free_them() {
    let (space, frames, cpu) = space(4);
    let other = Cpu::new(CpuId(3));
    let before = everything(space, frames);
    let [first, second] = [&cpu, &other].map(|cpu| space.vmalloc(cpu, 3).unwrap());
    assert_eq!(first.start(), VMALLOC_START + PAGE);
    assert!(second.start() > first.start() + (1 << 40), "no table of the last level is shared: {}", second.start());
    assert_eq!(space.vfree_at(&other, second.start() + PAGE), Err(VmallocError::NotAnArea(second.start() + PAGE)));
    space.vfree(&other, first);
    space.vfree(&cpu, second);
    assert_eq!(everything(space, frames), before);
}

pub(super) type Call = fn(&KernelSpace, VirtAddr, u64) -> Result<(), SetMemoryError>;

pub(super) const CALLS: [(&str, Call); 7] = [
    ("ro", KernelSpace::set_memory_ro),
    ("rw", KernelSpace::set_memory_rw),
    ("x", KernelSpace::set_memory_x),
    ("nx", KernelSpace::set_memory_nx),
    ("rox", KernelSpace::set_memory_rox),
    ("valid", |space, start, pages| space.set_memory_valid(start, pages, Validity::Valid)),
    ("invalid", |space, start, pages| space.set_memory_valid(start, pages, Validity::Invalid)),
];

#[test]
fn what_no_permission_can_be_asked_of_is_refused_by_every_call() {
    let (space, frames, cpu) = space(4);
    let start = space.vmalloc(&cpu, 3).unwrap().into_start();
    // So that no call has another reason to refuse.
    space.set_memory_ro(start, 3).unwrap();
    let guard = start + 3 * PAGE;
    let stack = space.alloc_stack(&cpu).unwrap() - STACK_SIZE;
    space.map_heap(&cpu, HEAP_BASE, 1).unwrap();
    let before = everything(space, frames);
    let outside = SetMemoryError::OutsideWindow;
    for (address, pages, refusal) in [
        (start, 4, SetMemoryError::GuardPage { guard, area: start }),
        (start + PAGE, 600, SetMemoryError::GuardPage { guard, area: start }),
        (guard, 1, SetMemoryError::GuardPage { guard, area: start }),
        (guard, 0, SetMemoryError::GuardPage { guard, area: start }),
        (VMALLOC_START, 1, SetMemoryError::Hole(VMALLOC_START)),
        (VMALLOC_START, 0, SetMemoryError::Hole(VMALLOC_START)),
        (stack, 1, SetMemoryError::NotVmalloc(stack)),
        (stack, 0, SetMemoryError::NotVmalloc(stack)),
        (HEAP_BASE, 1, outside(HEAP_BASE)),
        (layout::LINEAR_BASE + layout::LINEAR_SIZE, 1, outside(layout::LINEAR_BASE + layout::LINEAR_SIZE)),
        (VirtAddr(0x1000), 0, outside(VirtAddr(0x1000))),
        (VMALLOC_END - PAGE, 2, outside(VMALLOC_END)),
        (VMALLOC_END, 0, outside(VMALLOC_END)),
        (start + 8, 1, SetMemoryError::Range(Error::Unaligned(start.0 + 8))),
        (start + 8, 0, SetMemoryError::Range(Error::Unaligned(start.0 + 8))),
    ] {
        for (name, call) in CALLS {
            assert_eq!(call(space, address, pages), Err(refusal), "{name} {address} {pages}");
        }
    }
    for pages in [u64::MAX / PAGE, u64::MAX / PAGE + 1, u64::MAX] {
        for (name, call) in CALLS {
            let refusal = call(space, start, pages).unwrap_err();
            assert!(matches!(refusal, SetMemoryError::Range(Error::Wraps { .. })), "{name} {pages}: {refusal}");
        }
    }
    // One that is all right but for its last page, in another table.
    let long = space.vmalloc(&cpu, 550).unwrap().into_start();
    space.set_memory_ro(long, 550).unwrap();
    let with_long = everything(space, frames);
    for (name, call) in CALLS {
        let guard = long + 550 * PAGE;
        let refusal = SetMemoryError::GuardPage { guard, area: long };
        assert_eq!(call(space, long, 551), Err(refusal), "{name}");
    }
    assert_eq!(everything(space, frames), with_long);
    assert_eq!(space.vfree_at(&cpu, long), Ok(550));
    assert_eq!(everything(space, frames), before);
}

#[test]
fn nothing_becomes_writable_and_executable() {
    let (space, frames, cpu) = space(8);
    let start = space.vmalloc(&cpu, 550).unwrap().into_start();
    let last = start + 549 * PAGE;
    let refusal = SetMemoryError::WritableAndExecutable;
    let fresh = everything(space, frames);
    assert_eq!(space.set_memory_x(start, 550), Err(refusal(start)));
    assert_eq!(everything(space, frames), fresh);

    space.set_memory_ro(start, 549).unwrap();
    let but_one = everything(space, frames);
    assert_eq!(space.set_memory_x(start, 550), Err(refusal(last)));
    assert_eq!(everything(space, frames), but_one);

    space.set_memory_x(start, 549).unwrap();
    // Not while it is invalid either: making it valid later is not checked again.
    space.set_memory_valid(start, 550, Validity::Invalid).unwrap();
    let code = everything(space, frames);
    assert_eq!(space.set_memory_rw(start, 550), Err(refusal(start)));
    assert_eq!(space.set_memory_x(last, 1), Err(refusal(last)));
    assert_eq!(everything(space, frames), code);
    space.set_memory_valid(start, 550, Validity::Valid).unwrap();
    space.set_memory_rox(last, 1).unwrap();
    space.set_memory_nx(start, 550).unwrap();
    space.set_memory_rw(start, 550).unwrap();
    assert_eq!(everything(space, frames), fresh);
}

#[test]
fn refusals_say_what_and_where() {
    let page = VirtAddr(0xffff_8001_0000_1000);
    for (refusal, words) in [
        (SetMemoryError::Hole(page), "nothing is mapped at 0xffff800100001000"),
        (SetMemoryError::WritableAndExecutable(page), "0xffff800100001000 would be writable and executable"),
        (SetMemoryError::NotVmalloc(page), "the page at 0xffff800100001000 is not from vmalloc"),
        (SetMemoryError::NeverExecutable(page), "the frame at 0xffff800100001000 is not the area's own and never"),
        (SetMemoryError::GuardPage { guard: page, area: VMALLOC_START }, "the area at 0xffff800100000000"),
    ] {
        assert!(refusal.to_string().contains(words), "{refusal}");
    }
}

/// Leaves only `left` frames free; returns the others.
pub(super) fn starve(frames: &FrameAllocator, cpu: &Cpu, left: usize) -> Vec<PhysAddr> {
    let mut taken: Vec<_> = core::iter::from_fn(|| frames.alloc(cpu).ok()).collect();
    taken.drain(..left).for_each(|frame| frames.free(cpu, frame));
    taken
}

/// Runs `call` with 0, 1, 2, … frames free until it works; returns how many it took. Each failure leaves nothing
/// allocated.
fn frames_needed(call: impl Fn(&'static KernelSpace, &Cpu) -> Result<(), VmallocError>) -> usize {
    for left in 0.. {
        let (space, frames, cpu) = space(4);
        let taken = starve(frames, &cpu, left);
        let before = everything(space, frames);
        match call(space, &cpu) {
            Ok(()) => return left,
            Err(VmallocError::OutOfMemory(_) | VmallocError::Tables(Error::OutOfTables { .. })) => {
                assert_eq!(everything(space, frames), before, "with {left} frames");
            }
            Err(other) => panic!("with {left} frames: {other}"),
        }
        // With that memory back, the call succeeds: nothing else was wrong.
        taken.into_iter().for_each(|frame| frames.free(&cpu, frame));
        call(space, &cpu).unwrap();
    }
    unreachable!("some number of frames is enough");
}

#[test]
fn running_out_of_memory_at_any_allocation_leaves_nothing_behind() {
    // A slab of records, three tables, and the pages.
    assert_eq!(frames_needed(|space, cpu| space.vmalloc(cpu, 1).map(drop)), 5);
    assert_eq!(frames_needed(|space, cpu| space.vmalloc(cpu, 20).map(drop)), 24);
    assert_eq!(frames_needed(|space, cpu| space.alloc_stack(cpu).map(drop)), 4 + (STACK_SIZE / PAGE) as usize);
    let registers = PhysRange::from_size(PhysAddr(0x900_0000), PAGE).unwrap();
    assert_eq!(frames_needed(|space, cpu| space.map_device(cpu, registers).map(drop)), 4);
    assert_eq!(frames_needed(|space, cpu| Ok(space.map_heap(cpu, HEAP_BASE, 3)?)), 6);
}

#[test]
fn permissions_change_where_there_is_no_memory_at_all() {
    let (space, frames, cpu) = space(4);
    let start = space.vmalloc(&cpu, 3).unwrap().into_start();
    let _taken = starve(frames, &cpu, 0);
    for call in ["ro", "x", "nx", "rw", "rox", "invalid", "valid"] {
        let (_, call) = CALLS.iter().find(|(name, _)| *name == call).unwrap();
        assert_eq!(call(space, start, 3), Ok(()));
    }
}
