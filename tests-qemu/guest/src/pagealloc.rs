//! `debug_pagealloc=on`: the linear map shows the frames that are in use, and no others.
//!
//! The control for each access that faults because its frame is free: the same access before and after succeeds.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::timer;
use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::mmu::{LinearView, Metal};
use granule::mm::layout;
use granule::mm::page_block::BLOCK_SIZE;
use granule::smp::{self, Cpu, this_cpu};
use granule::trap::probe;
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_arch::esr::FaultStatus;
use granule_arch::wait;
use granule_pgtable::{Change, Lazy, PageRange, WholeLeaves};

use crate::harness::{Test, between_passes, patience, target_test};

/// Frames that are taken together: more than a magazine holds.
const FRAMES: usize = 350;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// Whether this CPU reads what is at an address, finds nothing there, or meets another fault.
fn found(address: VirtAddr) -> Option<bool> {
    match probe::read::<u64>(address) {
        Ok(_) => Some(true),
        Err(fault) => {
            let status = fault.syndrome.abort().map(|abort| abort.status);
            (status == Some(FaultStatus::Translation)).then_some(false)
        }
    }
}

/// How many CPUs can read what is at an address.
fn readers(address: VirtAddr) -> u32 {
    static READERS: AtomicU32 = AtomicU32::new(0);
    READERS.store(0, Ordering::Relaxed);
    let read = |_: &Cpu, address: usize| {
        READERS.fetch_add(u32::from(found(VirtAddr(address as u64)) == Some(true)), Ordering::Relaxed);
    };
    smp::call(smp::online(), read, address.0 as usize);
    READERS.load(Ordering::Relaxed)
}

target_test!(every_free_frame_is_hidden_and_no_other, needs("pagealloc"));
fn every_free_frame_is_hidden_and_no_other(t: &mut Test) {
    let kernel = granule::kernel();
    let [hidden, in_use, free] = between_passes(|| {
        let (mut hidden, mut in_use) = (0, 0);
        for bank in &kernel.platform.memory {
            let range = PageRange::new(layout::linear(bank.start()), bank.size()).expect("memory is in the linear map");
            space().tables().dump(range, |extent| {
                if extent.attributes.0 & bits::VALID != 0 {
                    return;
                }
                hidden += (extent.size / PAGE) as usize;
                let frames = (extent.physical.0..extent.physical.0 + extent.size).step_by(PAGE_SIZE).map(PhysAddr);
                let is_used = |frame| kernel.frames.frame(frame).is_some_and(|(_, record)| record.references() != 0);
                in_use += frames.filter(|&frame| is_used(frame)).count();
            });
        }
        [hidden, in_use, kernel.frames.stats().free]
    });
    t.equal("hidden and in use", in_use, 0);
    t.equal("hidden", hidden, free);
}

target_test!(a_freed_frame_faults_on_every_cpu_as_soon_as_it_is_free, needs("pagealloc"));
fn a_freed_frame_faults_on_every_cpu_as_soon_as_it_is_free(t: &mut Test) {
    let (frames, cpu) = (granule::kernel().frames, this_cpu());
    let all = smp::online().iter().count() as u32;
    for _ in 0..20 {
        let Some(frame) = t.ok("a frame", frames.alloc(cpu)) else { return };
        let address = layout::linear(frame);
        t.equal("all read it", readers(address), all);
        frames.free(cpu, frame);
        t.equal("this CPU finds nothing", found(address), Some(false));
        t.equal("nor does any other", readers(address), 0);
    }
    let Some(frame) = t.ok("the same frame again", frames.alloc(cpu)) else { return };
    t.equal("and can be read", readers(layout::linear(frame)), all);
    frames.free(cpu, frame);
}

target_test!(frames_come_and_go_by_the_list_and_by_blocks, needs("pagealloc"));
fn frames_come_and_go_by_the_list_and_by_blocks(t: &mut Test) {
    let (frames, cpu) = (granule::kernel().frames, this_cpu());
    let mut kept = heapless::Vec::<PhysAddr, FRAMES>::new();
    let Some(mut list) = t.ok("a list", frames.alloc_list(cpu, FRAMES + 50)) else { return };
    let mut wrong = 0;
    while !kept.is_full()
        && let Some(frame) = list.pop()
    {
        wrong += u32::from(found(layout::linear(frame)) != Some(true));
        let _ = kept.push(frame);
    }
    frames.free_list(cpu, list);
    let (first, last) = (kept[0], kept[kept.len() - 1]);
    let mut freeing = frames.freeing(cpu);
    kept.iter().for_each(|&frame| freeing.add(frame));
    drop(freeing);
    wrong += u32::from(found(layout::linear(first)) != Some(false));
    wrong += u32::from(found(layout::linear(last)) != Some(false));
    t.equal("frames of the list that were as they must not be", wrong, 0);

    let Some(block) = t.ok("a block", frames.alloc_blocks(cpu, 1)) else { return };
    let ends = [block, block + (2 * BLOCK_SIZE - PAGE)].map(layout::linear);
    t.equal("both ends are there", ends.map(found), [Some(true); 2]);
    frames.free_blocks(cpu, block, 1);
    t.equal("and gone", ends.map(found), [Some(false); 2]);
}

target_test!(a_frame_can_be_taken_and_used_inside_a_lazy_section, needs("pagealloc"));
fn a_frame_can_be_taken_and_used_inside_a_lazy_section(t: &mut Test) {
    let (frames, cpu) = (granule::kernel().frames, this_cpu());
    let Some(area) = t.ok("vmalloc", space().vmalloc(cpu, 2)) else { return };
    let range = PageRange::from_pages(area.start(), 2).expect("an area is a range");
    let mmu = Metal(LinearView {});
    let lazy = Lazy::new(&mmu);
    let owed = space().tables().get().update(&lazy, range, Change::INVALID, WholeLeaves);
    let Some(frame) = t.ok("a frame", frames.alloc_zeroed(cpu)) else { return };
    t.equal("it can be used", found(layout::linear(frame)), Some(true));
    frames.free(cpu, frame);
    t.equal("and is gone", found(layout::linear(frame)), Some(false));
    if let Some(flush) = t.ok("the section goes on", owed) {
        lazy.invalidate(&granule::mm::tlb::KernelTlb, [flush]);
    }
    t.equal("and has done its work", found(area.start()), Some(false));
    t.ok("undone", space().set_memory_valid(area.start(), 2, granule::mm::kernel::set_memory::Validity::Valid));
    space().vfree(cpu, area);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);

fn use_a_frame(cpu: &Cpu) {
    let frames = granule::kernel().frames;
    let right = frames.alloc(cpu).is_ok_and(|frame| {
        let while_in_use = found(layout::linear(frame));
        frames.free(cpu, frame);
        (while_in_use, found(layout::linear(frame))) == (Some(true), Some(false))
    });
    WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

target_test!(interrupts_take_and_free_frames_in_the_middle_of_it, needs("pagealloc"), limit(30));
fn interrupts_take_and_free_frames_in_the_middle_of_it(t: &mut Test) {
    const ROUNDS: u32 = 200;
    let (frames, cpu) = (granule::kernel().frames, this_cpu());
    let (before, mut wrong) = (HANDLED.load(Ordering::Relaxed), 0);
    WRONG.store(0, Ordering::Relaxed);
    for _ in 0..ROUNDS {
        let handled = HANDLED.load(Ordering::Relaxed);
        timer::set_deadline(cpu, Duration::from_micros(t.random() % 50), use_a_frame);
        let patience = patience();
        while HANDLED.load(Ordering::Relaxed) == handled && !patience.has_passed() {
            wrong += u32::from(!frames.alloc(cpu).is_ok_and(|frame| {
                let in_use = found(layout::linear(frame)) == Some(true);
                frames.free(cpu, frame);
                in_use
            }));
            wait::relax();
        }
    }
    t.equal("interrupts", HANDLED.load(Ordering::Relaxed) - before, ROUNDS);
    t.equal("what went wrong in handlers", WRONG.load(Ordering::Relaxed), 0);
    t.equal("what went wrong around them", wrong, 0);
}
