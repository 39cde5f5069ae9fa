//! Tags of the kernel's heap, and the checks of the kernel's own accesses.
//!
//! Probes make the wrong accesses of most tests: their faults come back as values. The others end the kernel; the
//! runner's tests (tests-qemu/host/tests/outside/heap_tags.rs) read their reports.

#![allow(unsafe_code, reason = "accesses that must fault, and objects that are freed by hand")]

use core::alloc::Layout;
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use alloc::alloc::{alloc, alloc_zeroed, dealloc, realloc};
use granule::chip::timer::Deadline;
use granule::mm::heap::kernel_heap;
use granule::sched;
use granule::smp::{self, Cpu, this_cpu};
use granule::trap::probe::{self, ProbeFault};
use granule_arch::addr::VirtAddr;
use granule_arch::esr::FaultStatus;
use granule_arch::features::Mte;
use granule_arch::interrupts;
use granule_arch::mte::{self, MATCH_ALL, Tag};
use granule_arch::tag_check::{Registers, TagCheck};

use crate::harness::{Test, target_test};
use crate::work;

/// Wrong results of the CPUs.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 16).expect("a layout")
}

/// An object of the heap, freed by [`free`].
fn object(bytes: usize) -> VirtAddr {
    // SAFETY: the layout has a size.
    VirtAddr(black_box(unsafe { alloc(layout(bytes)) }).expose_provenance() as u64)
}

fn free(object: VirtAddr, bytes: usize) {
    // SAFETY: from `object` with this size; what is wrong with that is reported.
    unsafe { dealloc(black_box(object.as_ptr()), layout(bytes)) };
}

fn is_tag_fault<T>(result: &Result<T, ProbeFault>) -> bool {
    let abort = result.as_ref().err().and_then(|fault| fault.syndrome.abort());
    abort.is_some_and(|abort| abort.status == FaultStatus::TagCheck)
}

/// Whether reads and writes at `address` fault by their tag.
fn is_caught(address: VirtAddr) -> bool {
    // SAFETY: nothing is written, or the test is about to fail.
    let write = unsafe { probe::write(address, 0xff_u8) };
    is_tag_fault(&probe::read::<u8>(address)) && is_tag_fault(&write)
}

/// Whether accesses at `address`, just outside of an object, fault: by their tag where the heap has memory there.
fn is_guarded(address: VirtAddr) -> bool {
    probe::read::<u8>(address.canonical()).is_err() || is_caught(address)
}

/// Whether memory has tags, and the kernel's accesses are checked synchronously. All else would prove nothing.
fn is_real(t: &mut Test) -> bool {
    let features = granule::kernel().features();
    let real = t.check("ID_AA64PFR1_EL1.MTE", features.cpus.mte() >= Mte::Tags)
        && t.equal("checks", features.kernel_tag_check, TagCheck::Synchronous);
    let object = object(16);
    // SAFETY: mapped.
    let memory = unsafe { mte::load_tag(object) };
    let has_tag = t.equal("the memory's tag", memory, Tag::of(object)) && t.check("a tag", memory != MATCH_ALL);
    free(object, 16);
    real && has_tag
}

target_test!(every_cpu_checks_threads_and_handlers, needs("mte"));
fn every_cpu_checks_threads_and_handlers(t: &mut Test) {
    fn look(_: &Cpu, object: usize) {
        let tco: u64;
        // SAFETY: reads PSTATE.TCO, which is there with MTE.
        unsafe { core::arch::asm!("mrs {0}, s3_3_c4_c2_7", out(reg) tco, options(nomem, nostack, preserves_flags)) };
        let object = VirtAddr(object as u64);
        let right = tco == 0 && is_caught(object + 64) && probe::read::<u64>(object) == Ok(7);
        WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
    }
    if !is_real(t) {
        return;
    }
    WRONG.store(0, Ordering::Relaxed);
    let shared = object(64);
    // SAFETY: the test's object.
    unsafe { shared.as_ptr::<u64>().write(7) };
    smp::call(smp::online(), look, shared.0 as usize);
    t.equal("handlers that are not checked", WRONG.load(Ordering::Relaxed), 0);
    let others = smp::online().without(this_cpu().id);
    for id in others.iter() {
        t.ok("started", work::run_on(id, look, shared.0 as usize));
    }
    look(this_cpu(), shared.0 as usize);
    work::wait_for(others);
    t.equal("threads that are not checked", WRONG.load(Ordering::Relaxed), 0);
    free(shared, 64);
}

target_test!(an_access_beyond_an_object_is_caught, needs("mte"));
fn an_access_beyond_an_object_is_caught(t: &mut Test) {
    if !is_real(t) {
        return;
    }
    for bytes in [1, 16, 17, 64, 1000, 5000] {
        let objects = [(); 3].map(|()| object(bytes));
        for start in objects {
            let granules = (bytes as u64).next_multiple_of(mte::GRANULE);
            t.check("overflow", [0, 8, 16, 47].iter().all(|beyond| is_guarded(start + granules + *beyond)));
            t.check("underflow", [1, 16, 17].iter().all(|before| is_guarded(start - *before)));
            t.ok("the last byte", probe::read::<u8>(start + (bytes as u64 - 1)));
        }
        let [first, second, _] = objects;
        // Of two that are no neighbours the tags may be the same.
        let other = first.with_tag(Tag::of(second));
        t.check("another object's tag", other == first || is_caught(other));
        objects.into_iter().for_each(|object| free(object, bytes));
    }
}

target_test!(an_access_after_a_free_is_caught, needs("mte"));
fn an_access_after_a_free_is_caught(t: &mut Test) {
    if !is_real(t) {
        return;
    }
    for bytes in [16, 256, 1000] {
        let old = object(bytes);
        free(old, bytes);
        t.check("freed", is_caught(old) && is_caught(old + (bytes as u64 - 1)));
        let new = object(bytes);
        t.equal("the same memory", new.canonical(), old.canonical());
        t.check("used again", is_caught(old) && probe::read::<u8>(new).is_ok());
        free(new, bytes);
    }
}

target_test!(untagged_pointers_match_any_memory, needs("mte"));
fn untagged_pointers_match_any_memory(t: &mut Test) {
    if !is_real(t) {
        return;
    }
    let object = object(64);
    let untagged = object.canonical();
    t.equal("its tag", Tag::of(untagged), MATCH_ALL);
    // SAFETY: in the object, which is the test's.
    t.ok("a write", unsafe { probe::write(untagged, 5_u64) });
    t.equal("by the pointer", probe::read::<u64>(object).ok(), Some(5));
    t.ok("the record behind it", probe::read::<u64>(untagged + 64));
    free(object, 64);
}

target_test!(memory_that_is_zeroed_or_moved_has_tags, needs("mte"));
fn memory_that_is_zeroed_or_moved_has_tags(t: &mut Test) {
    if !is_real(t) {
        return;
    }
    for bytes in [64, 5000] {
        // SAFETY: the layouts have sizes, and are those of the objects.
        unsafe {
            let zeroed = black_box(alloc_zeroed(layout(bytes)));
            t.check("zeroes", core::slice::from_raw_parts(zeroed, bytes).iter().all(|byte| *byte == 0));
            zeroed.write_bytes(0x5a, bytes);
            let moved = black_box(realloc(zeroed, layout(bytes), 3 * bytes));
            t.check("contents", core::slice::from_raw_parts(moved, bytes).iter().all(|byte| *byte == 0x5a));
            let (old, new) = (VirtAddr(zeroed.expose_provenance() as u64), VirtAddr(moved.expose_provenance() as u64));
            t.check("the old memory", is_caught(old));
            t.check(
                "beyond the new",
                is_guarded(new + (3 * bytes as u64).next_multiple_of(mte::GRANULE)) && probe::read::<u8>(new).is_ok(),
            );
            dealloc(moved, layout(3 * bytes));
        }
    }
}

target_test!(each_mode_checks_as_it_should, needs("mte"));
fn each_mode_checks_as_it_should(t: &mut Test) {
    if !is_real(t) {
        return;
    }
    let object = object(64);
    let beyond = object + 64;
    // SAFETY: all CPUs have tags.
    let registers = unsafe { Registers::new() };
    let asymmetric = granule::kernel().features().cpus.mte() == Mte::Asymmetric;
    let modes = [
        (TagCheck::Synchronous, (true, false), (true, false)),
        (TagCheck::Asynchronous, (false, true), (false, true)),
        (TagCheck::Asymmetric, (true, false), (false, true)),
    ];
    for (mode, read_expected, write_expected) in
        modes.into_iter().filter(|(mode, ..)| asymmetric || *mode != TagCheck::Asymmetric)
    {
        // Until the flag is taken nothing else may look at it.
        let masked = interrupts::mask();
        registers.set_el1(mode);
        registers.resume();
        let _ = registers.take_recorded_of_el1();
        let read = (is_tag_fault(&probe::read::<u8>(beyond)), registers.take_recorded_of_el1());
        // SAFETY: what is in the record, were it written.
        let write = unsafe { probe::read::<u32>(object.canonical() + 64).map(|mark| probe::write(beyond, mark)) };
        let write = (write.is_ok_and(|write| is_tag_fault(&write)), registers.take_recorded_of_el1());
        let again = registers.take_recorded_of_el1();
        registers.set_el1(TagCheck::Synchronous);
        registers.resume();
        interrupts::restore(masked);
        t.equal("a read faults, or is noted", read, read_expected);
        t.equal("a write faults, or is noted", write, write_expected);
        t.check("noted once", !again);
    }
    free(object, 64);
}

target_test!(a_suspended_check_lasts_until_the_next, needs("mte"));
fn a_suspended_check_lasts_until_the_next(t: &mut Test) {
    if !is_real(t) {
        return;
    }
    let object = object(64);
    // SAFETY: all CPUs have tags.
    let registers = unsafe { Registers::new() };
    let masked = interrupts::mask();
    registers.suspend();
    let read = probe::read::<u8>(object + 64);
    registers.set_el1(TagCheck::Synchronous);
    registers.resume();
    interrupts::restore(masked);
    t.ok("unchecked", read);
    t.check("checked", is_caught(object + 64));
    free(object, 64);
}

target_test!(all_cpus_allocate_and_free_at_once, needs("mte"), limit(30));
fn all_cpus_allocate_and_free_at_once(t: &mut Test) {
    const ROUNDS: usize = 160;
    const HELD: usize = 12;
    fn work(cpu: &Cpu, seed: usize) {
        let mut random = seed as u64 | 1;
        let mut held = [(VirtAddr(0), 0_usize); HELD];
        for round in 0..ROUNDS {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (old, old_bytes) = held[round % HELD];
            if old_bytes != 0 {
                let pattern = (cpu.id.0 as usize + round - HELD) as u8;
                // SAFETY: an object of this CPU's.
                let bytes = unsafe { core::slice::from_raw_parts(old.as_ptr::<u8>(), old_bytes) };
                let right = bytes.iter().all(|byte| *byte == pattern) && is_guarded(old - 1);
                WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
                free(old, old_bytes);
            }
            let bytes = 1 + (random >> 33) as usize % if random >> 63 == 0 { 300 } else { 3000 };
            let new = object(bytes);
            // SAFETY: the object was just allocated.
            unsafe { new.as_ptr::<u8>().write_bytes((cpu.id.0 as usize + round) as u8, bytes) };
            held[round % HELD] = (new, bytes);
        }
        held.into_iter().for_each(|(object, bytes)| free(object, bytes));
    }
    if !is_real(t) {
        return;
    }
    WRONG.store(0, Ordering::Relaxed);
    let seed = t.random() as usize;
    let others = smp::online().without(this_cpu().id);
    for id in others.iter() {
        t.ok("started", work::run_on(id, work, seed ^ id.0 as usize));
    }
    work(this_cpu(), seed);
    work::wait_for(others);
    t.equal("objects that another has written, or that are not guarded", WRONG.load(Ordering::Relaxed), 0);
    let stats = kernel_heap().stats();
    t.check("objects have tags", stats.tagged > 0 && stats.tagged <= stats.allocations);
}

#[inline(never)]
fn allocates_for_the_report(bytes: usize) -> VirtAddr {
    black_box(object(black_box(bytes)))
}

#[inline(never)]
fn frees_for_the_report(object: VirtAddr, bytes: usize) {
    free(black_box(object), black_box(bytes));
    black_box(());
}

fn write(address: VirtAddr) {
    // SAFETY: not sound at all; the check fails.
    unsafe { address.as_ptr::<u8>().write_volatile(1) };
}

target_test!(writes_after_a_free, selftest(), needs("mte"));
fn writes_after_a_free(t: &mut Test) {
    let object = allocates_for_the_report(100);
    frees_for_the_report(object, 100);
    write(object + 3);
    t.check("an asynchronous check does not stop it", true);
    // The thread is switched, at the latest now.
    sched::sleep_until(Deadline::after(Duration::from_millis(5)));
}

target_test!(writes_behind_an_object, selftest(), needs("mte"));
fn writes_behind_an_object(t: &mut Test) {
    let object = allocates_for_the_report(100);
    write(object + 115);
    t.check("it comes back", true);
}

target_test!(reads_in_front_of_an_object, selftest(), needs("mte"));
fn reads_in_front_of_an_object(t: &mut Test) {
    // Nothing is mapped in front of the heap's first object.
    let _in_front = allocates_for_the_report(100);
    let object = allocates_for_the_report(100);
    // SAFETY: not sound at all; the check fails.
    unsafe { black_box((object - 2).as_ptr::<u8>().read_volatile()) };
    t.check("it comes back", true);
}

target_test!(frees_an_object_twice, selftest(), needs("mte"));
fn frees_an_object_twice(t: &mut Test) {
    let object = allocates_for_the_report(100);
    frees_for_the_report(object, 100);
    frees_for_the_report(object, 100);
    t.check("it comes back", true);
}

target_test!(frees_what_went_back, selftest());
fn frees_what_went_back(t: &mut Test) {
    const BYTES: usize = 64 << 12;
    let object = allocates_for_the_report(BYTES);
    frees_for_the_report(object, BYTES);
    kernel_heap().trim(0);
    t.check("it is unmapped", probe::read::<u8>(object.canonical() + BYTES as u64 / 2).is_err());
    frees_for_the_report(object + BYTES as u64 / 2, 100);
    t.check("it comes back", true);
}

target_test!(frees_with_another_size, selftest(), needs("mte"));
fn frees_with_another_size(t: &mut Test) {
    frees_for_the_report(allocates_for_the_report(100), 64);
    t.check("it comes back", true);
}

target_test!(frees_from_the_middle, selftest(), needs("mte"));
fn frees_from_the_middle(t: &mut Test) {
    frees_for_the_report(allocates_for_the_report(100) + 16, 100);
    t.check("it comes back", true);
}

target_test!(frees_without_the_tag, selftest(), needs("mte"));
fn frees_without_the_tag(t: &mut Test) {
    frees_for_the_report(allocates_for_the_report(100).canonical(), 100);
    t.check("it comes back", true);
}

target_test!(writes_after_a_free_in_a_handler, selftest(), needs("mte smp"));
fn writes_after_a_free_in_a_handler(t: &mut Test) {
    let object = allocates_for_the_report(100);
    frees_for_the_report(object, 100);
    let others = smp::online().without(this_cpu().id);
    smp::call(others, |_, object| write(VirtAddr(object as u64)), object.0 as usize);
    t.check("it comes back", true);
}
