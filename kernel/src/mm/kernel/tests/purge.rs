//! Areas whose invalidation is left for later: what stays taken until then, what makes it happen, and in which order.

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_pgtable::host::Operation;
use granule_pgtable::{Leaves, PageRange};

use super::super::KernelSpace;
use super::super::area::AreaKind;
use super::super::policy::{Policy, SplitMode};
use super::super::record::{at_each, record};
use super::super::set_memory::{SetMemoryError, Validity};
use super::super::vmalloc::VmallocError;
use super::contracts::{everything, starve};
use super::large::leaves;
use super::{PAGE, space};
use crate::mm::frame::FrameAllocator;
use crate::mm::layout::{HEAP_BASE, VMALLOC_END, VMALLOC_START};
use crate::platform::features::branch;
use crate::smp::{Cpu, CpuId};

const LAZY: &[u16] = &[branch::LAZY_UNMAP];
/// Pages that may wait in these tests.
const LIMIT: u64 = 40;

/// A space in which freed areas wait, of `leaves`.
fn lazy(mib: u64, lazy_pages: u64, area_leaves: Leaves) -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    let (space, frames, cpu) = space(mib);
    space.set_policy(Policy { split: SplitMode::Lock, area_leaves, lazy_pages, ..Policy::UNDECIDED });
    (space, frames, cpu)
}

fn is_write(operation: &Operation) -> bool {
    matches!(operation, Operation::Write { .. })
}

#[test]
fn what_is_freed_stays_taken_until_it_is_invalidated() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let before = everything(space, frames);
        let start = space.vmalloc(&cpu, 10).unwrap().into_start();
        // No barrier and no invalidation, and nothing in a write but what makes the leaf unreachable.
        let stream = record(|| assert_eq!(space.vfree_at(&cpu, start), Ok(10)));
        assert_eq!(stream.len(), 10);
        for operation in stream {
            let Operation::Write { old, new, .. } = operation else { panic!("{operation:?}") };
            assert!(old.is_valid() && !new.is_valid() && !new.is_vacant() && new.address() == old.address());
        }
        assert_eq!((everything(space, frames).frames, space.unmapped_pages()), (before.frames + 10, 10));
        // No one's, by any call.
        let other = space.vmalloc(&cpu, 10).unwrap();
        assert!(other.start() > start + 10 * PAGE);
        assert_eq!(space.vfree_at(&cpu, start), Err(VmallocError::NotAnArea(start)));
        for pages in [0, 1, 10] {
            assert_eq!(space.set_memory_ro(start, pages), Err(SetMemoryError::Hole(start)));
            assert_eq!(space.set_memory_nx(start, pages), Err(SetMemoryError::Hole(start)));
            assert_eq!(space.set_memory_valid(start, pages, Validity::Valid), Err(SetMemoryError::Hole(start)));
        }
        space.vfree(&cpu, other);
        assert_eq!((space.purges(), space.purge(&cpu), space.purges()), (0, 20, 1));
        assert_eq!((space.purge(&cpu), space.purges(), space.unmapped_pages()), (0, 1, 0));
        assert_eq!((everything(space, frames), frames.stats().refused), (before, 0));
        assert_eq!(space.vmalloc(&cpu, 10).unwrap().into_start(), start);
    });
}

#[test]
fn one_invalidation_comes_before_the_first_frame_is_free() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let areas = [3, 5, 1].map(|pages| space.vmalloc(&cpu, pages).unwrap());
        let start = areas[0].start();
        // Neither the first nor the last area is freed last.
        let [first, second, third] = areas;
        [second, third, first].into_iter().for_each(|area| space.vfree(&cpu, area));
        let used = frames.stats().used;
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let noted = seen.clone();
        // No lock of areas is held at an operation.
        let areas = move || space.areas.try_lock(start).map(|areas| areas.iter().count());
        let note = move |_: &Operation| noted.borrow_mut().push((frames.stats().used, areas()));
        let stream = at_each(note, || assert_eq!(space.purge(&cpu), 9));
        // Other CPUs may have freed some: DSB ISH and not ISHST.
        assert_eq!(stream[0], Operation::DsbIsh);
        let end = stream.iter().position(|operation| *operation == Operation::Isb).unwrap();
        assert_eq!(stream[end - 1], Operation::DsbIsh);
        let tlbis = &stream[1..end - 1];
        let of = |page: u64| {
            use granule_arch::tlbi::{AddressOperand, Instruction};
            Operation::Tlbi(Instruction::Vaale1is(AddressOperand::new(start + page * PAGE, None)))
        };
        // From the first area to the last, the two guard pages between them included.
        assert_eq!(tlbis, (0..11).map(of).collect::<Vec<_>>());
        let seen = seen.borrow();
        let is_early = |&now: &(usize, Option<usize>)| now != (used, Some(3));
        assert!(
            !seen[..=end].iter().any(is_early),
            "frames or addresses were freed before the invalidation was complete"
        );
        let writes: Vec<_> = stream[end + 1..].iter().filter(|operation| is_write(operation)).collect();
        assert_eq!(writes.len(), 9);
        assert!(writes.iter().all(|write| matches!(write, Operation::Write { new, .. } if new.0 == 0)));
        assert_eq!(frames.stats().used, used - 9);
    });
}

#[test]
fn more_than_may_wait_does_not() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let before = everything(space, frames);
        let free = |pages| {
            let start = space.vmalloc(&cpu, pages).unwrap().into_start();
            assert_eq!(space.vfree_at(&cpu, start), Ok(pages));
            space.unmapped_pages()
        };
        // One that is larger than all that may wait is freed at once, and the others go on waiting.
        assert_eq!([20, 41, 20, 41].map(free), [20, 20, 40, 40]);
        assert_eq!((free(1), space.purges()), (0, 1));
        assert_eq!((free(40), space.purges()), (40, 1));
        assert_eq!(space.purge(&cpu), 40);
        space.reclaim(&cpu);
        assert_eq!(everything(space, frames), before);
    });
}

#[test]
fn what_is_read_only_or_executable_does_not_wait() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let before = everything(space, frames);
        for change in [KernelSpace::set_memory_ro, KernelSpace::set_memory_rox] {
            for page in [0, 4] {
                let area = space.vmalloc(&cpu, 5).unwrap();
                change(space, area.start() + page * PAGE, 1).unwrap();
                space.vfree(&cpu, area);
                assert_eq!((space.unmapped_pages(), everything(space, frames)), (0, before.clone()));
            }
        }
        // Invalid pages, some or all, and those that were read-only for a time.
        for (page, pages) in [(0, 5), (2, 1), (4, 1)] {
            let area = space.vmalloc(&cpu, 5).unwrap();
            space.set_memory_ro(area.start(), 5).unwrap();
            space.set_memory_rw(area.start(), 5).unwrap();
            space.set_memory_valid(area.start() + page * PAGE, pages, Validity::Invalid).unwrap();
            let start = area.start();
            space.vfree(&cpu, area);
            assert_eq!(space.unmapped_pages(), 5);
            assert_eq!(space.set_memory_valid(start, 5, Validity::Valid), Err(SetMemoryError::Hole(start)));
            assert_eq!((space.purge(&cpu), everything(space, frames)), (5, before.clone()));
        }
    });
}

#[test]
fn areas_of_blocks_groups_and_split_blocks_wait_too() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(16, 2048, Leaves::Largest);
        let before = everything(space, frames);
        let areas = [600, 40, 16, 1].map(|pages| space.vmalloc(&cpu, pages).unwrap());
        // A block in pages, all writable again.
        let page = areas[0].start() + 7 * PAGE;
        space.set_memory_ro(page, 1).unwrap();
        space.set_memory_rw(page, 1).unwrap();
        let whole = space.vmalloc_huge(&cpu, 512).unwrap();
        areas.into_iter().chain([whole]).for_each(|area| space.vfree(&cpu, area));
        assert_eq!(space.unmapped_pages(), 600 + 40 + 16 + 1 + 512);
        // Alike, so they are collapsed first; nothing is lost by that.
        let window = PageRange::new(VMALLOC_START, VMALLOC_END - VMALLOC_START).unwrap();
        space.collapse(&cpu, window).unwrap();
        assert!(space.reclaim(&cpu) >= 600 + 40 + 16 + 1 + 512);
        space.reclaim(&cpu);
        assert_eq!((everything(space, frames), frames.stats().refused), (before, 0));
    });
}

#[test]
fn tables_that_a_purged_area_leaves_empty_are_freed() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(16, 2048, Leaves::Pages);
        let area = space.vmalloc(&cpu, 1536).unwrap();
        space.vfree(&cpu, area);
        let tables = space.kept_frames();
        assert_eq!((space.purge(&cpu), space.kept_frames() < tables), (1536, true));
        assert_eq!(frames.stats().refused, 0);
    });
}

#[test]
fn a_purge_waits_for_another_that_has_begun() {
    host::with(LAZY, || {
        let (space, _, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let start = space.vmalloc(&cpu, 10).unwrap().into_start();
        assert_eq!(space.vfree_at(&cpu, start), Ok(10));
        let unmapped = space.areas.begin_purge(start).unwrap();
        assert!(space.areas.begin_purge(start).is_none());
        let has_returned = Arc::new(AtomicBool::new(false));
        let seen = has_returned.clone();
        let other = std::thread::spawn(move || {
            assert_eq!(space.purge(&Cpu::new(CpuId(1))), 0);
            seen.store(true, Ordering::Release);
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!has_returned.load(Ordering::Acquire), "pages of an area that was freed before may still be in TLBs");
        space.areas.end_purge(start);
        other.join().unwrap();
        drop(unmapped);
    });
}

#[test]
fn where_frames_run_out_those_that_wait_are_had() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(4, LIMIT, Leaves::Pages);
        let area = space.vmalloc(&cpu, 30).unwrap();
        space.vfree(&cpu, area);
        assert_eq!(space.unmapped_pages(), 30);
        let taken = starve(frames, &cpu, 0);
        let area = space.vmalloc(&cpu, 29).unwrap();
        assert_eq!((area.pages(), space.unmapped_pages()), (29, 0));
        assert!(matches!(space.vmalloc(&cpu, 30), Err(VmallocError::OutOfMemory(_))));
        taken.into_iter().for_each(|frame| frames.free(&cpu, frame));
    });
}

#[test]
fn where_records_run_out_those_that_wait_are_had() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(4, LIMIT, Leaves::Pages);
        space.vfree(&cpu, space.vmalloc(&cpu, 30).unwrap());
        let _taken = starve(frames, &cpu, 0);
        while space.areas.take(&cpu, AreaKind::Device, 1, PAGE).is_ok() {}
        assert!(space.vmalloc(&cpu, 1).is_ok());
    });
}

/// Tables of splits, and the heap, are had where no area can be purged.
#[test]
fn where_frames_are_few_nothing_waits() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(16, 2048, Leaves::Largest);
        let huge = space.vmalloc_huge(&cpu, 512).unwrap();
        let [first, second] = [40, 40].map(|pages| space.vmalloc(&cpu, pages).unwrap());
        space.map_heap(&cpu, HEAP_BASE, 1).unwrap();
        let taken = starve(frames, &cpu, 0);
        space.vfree(&cpu, first);
        assert_eq!((space.unmapped_pages(), frames.stats().free), (0, 40));
        assert_eq!(space.set_memory_ro(huge.start() + 7 * PAGE, 1), Ok(()));
        assert_eq!(space.map_heap(&cpu, HEAP_BASE + PAGE, 16), Ok(()));
        // As many as may wait stay free besides.
        let mut taken = taken.into_iter();
        let have = frames.stats().free;
        taken.by_ref().take(2047 - have).for_each(|frame| frames.free(&cpu, frame));
        frames.drain_cpu(&cpu);
        space.vfree(&cpu, second);
        assert_eq!((space.unmapped_pages(), frames.stats().free), (0, 2047 + 40));
        let area = space.vmalloc(&cpu, 1).unwrap();
        frames.drain_cpu(&cpu);
        space.vfree(&cpu, area);
        assert_eq!(space.unmapped_pages(), 1);
    });
}

#[test]
fn a_block_that_waits_is_had_before_pages_are() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(16, 1024, Leaves::Largest);
        let huge = space.vmalloc_huge(&cpu, 512).unwrap();
        // All else is free, and nowhere in one piece.
        let taken = starve(frames, &cpu, 0);
        taken.iter().step_by(2).for_each(|&frame| frames.free(&cpu, frame));
        frames.drain_cpu(&cpu);
        space.vfree(&cpu, huge);
        assert_eq!(space.unmapped_pages(), 512);
        let huge = space.vmalloc_huge(&cpu, 512).unwrap();
        assert_eq!((leaves(space, huge.start(), 512), space.unmapped_pages()), ([(512, 1)].to_vec(), 0));
    });
}

/// Another CPU purges, and has not freed anything yet, while `call` is made on this one.
fn while_another_purges(space: &'static KernelSpace, pages: usize, call: impl FnOnce()) {
    let (begun, other_begun) = (Arc::new(AtomicBool::new(false)), Cpu::new(CpuId(1)));
    let seen = begun.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Time for the other thread to come to where it waits; whether it does changes nothing.
            let first = move |_: &_| {
                if !begun.swap(true, Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            };
            at_each(first, || assert_eq!(space.purge(&other_begun), pages));
        });
        while !seen.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        call();
    });
}

/// More than its magazine holds, for what is in there is that CPU's.
#[test]
fn frames_that_another_cpu_is_about_to_free_are_had() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(4, 300, Leaves::Pages);
        space.vfree(&cpu, space.vmalloc(&cpu, 300).unwrap());
        assert_eq!(space.unmapped_pages(), 300);
        let _taken = starve(frames, &cpu, 0);
        while_another_purges(space, 300, || assert!(space.vmalloc(&cpu, 200).is_ok()));
    });
}

#[test]
fn addresses_that_another_cpu_is_about_to_free_are_had() {
    host::with(LAZY, || {
        let (space, _, cpu) = lazy(4, LIMIT, Leaves::Pages);
        let start = space.vmalloc(&cpu, 3).unwrap().into_start();
        fill_window(space, &cpu);
        assert_eq!(space.vfree_at(&cpu, start), Ok(3));
        while_another_purges(space, 3, || {
            assert_eq!(space.vmalloc(&cpu, 3).map(|area| area.into_start()), Ok(start));
        });
    });
}

/// The holder of the part's list frees it; this `vfree` leaves its own area to the next one.
#[test]
fn vfree_waits_for_no_other_cpus_purge() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let [first, second, third] = [LIMIT, LIMIT, 1].map(|pages| space.vmalloc(&cpu, pages).unwrap());
        let third = Cell::new(Some(third));
        space.vfree(&cpu, first);
        let other = Cpu::new(CpuId(1));
        let seen = Rc::new(Cell::new(0));
        let (inner, second) = (seen.clone(), Cell::new(Some(second)));
        let meanwhile = move |_: &_| {
            if let Some(area) = second.take() {
                space.vfree(&Cpu::new(CpuId(0)), area);
                third.take().into_iter().for_each(|area| space.vfree(&Cpu::new(CpuId(0)), area));
                inner.set(space.unmapped_pages());
            }
        };
        at_each(meanwhile, || assert_eq!(space.purge(&other), LIMIT as usize));
        assert_eq!((seen.get(), space.unmapped_pages()), (LIMIT + 1, LIMIT + 1));
        assert_eq!((space.purge(&cpu), space.purges(), frames.stats().refused), (LIMIT as usize + 1, 2, 0));
    });
}

/// Takes all addresses that are free, the largest pieces first.
fn fill_window(space: &KernelSpace, cpu: &Cpu) {
    for shift in (0..31).rev() {
        while space.areas.take(cpu, AreaKind::Device, 1 << shift, PAGE).is_ok() {}
    }
}

#[test]
fn where_addresses_run_out_those_that_wait_are_had() {
    host::with(LAZY, || {
        let (space, _, cpu) = lazy(4, LIMIT, Leaves::Pages);
        let start = space.vmalloc(&cpu, 3).unwrap().into_start();
        fill_window(space, &cpu);
        assert_eq!(space.vmalloc(&cpu, 1).err(), Some(VmallocError::NoAddresses { pages: 1 }));
        assert_eq!(space.vfree_at(&cpu, start), Ok(3));
        assert_eq!(space.vmalloc(&cpu, 3).map(|area| area.into_start()), Ok(start));
    });
}

#[test]
fn each_part_of_the_window_waits_by_itself() {
    host::with(LAZY, || {
        let (space, frames, cpu) = lazy(8, LIMIT, Leaves::Pages);
        let before = everything(space, frames);
        let others = [1, 2].map(|number| Cpu::new(CpuId(number)));
        let areas: Vec<VirtAddr> =
            others.iter().map(|other| space.vmalloc(other, LIMIT).unwrap().into_start()).collect();
        for &start in &areas {
            assert_eq!(space.vfree_at(&cpu, start), Ok(LIMIT));
        }
        assert_eq!((space.unmapped_pages(), space.purges()), (2 * LIMIT, 0));
        let one = space.vmalloc(&others[0], 1).unwrap();
        space.vfree(&cpu, one);
        assert_eq!((space.unmapped_pages(), space.purges()), (LIMIT, 1));
        assert_eq!(space.purge(&cpu), LIMIT as usize);
        others.iter().chain([&cpu]).for_each(|cpu| frames.drain_cpu(cpu));
        while space.reclaim(&cpu) != 0 {}
        assert_eq!(everything(space, frames), before);
    });
}
