//! The guarded heap: every planted bug is found while interrupts and other CPUs allocate and free, and nothing else is.
//!
//! Probes make the wrong accesses of most tests: their faults come back as values. The others end the kernel; the
//! runner's tests (tests-qemu/host/tests/outside/guarded_heap.rs) read their reports.

#![allow(unsafe_code, reason = "accesses that must fault, and objects that are freed by hand")]

use core::alloc::Layout;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use alloc::alloc::{alloc, dealloc};
use granule::chip::timer;
use granule::mm::heap::guarded::guarded_heap;
use granule::mm::kernel::KernelSpace;
use granule::smp::{self, Cpu, CpuSet, this_cpu};
use granule::trap::probe;
use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::bits;
use granule_arch::esr::FaultStatus;
use granule_arch::mte::{MATCH_ALL, Tag};
use granule_arch::wait;
use granule_pgtable::PageRange;

use crate::harness::{Test, draws, patience, target_test};
use crate::work;

/// Guarded objects with which bugs were planted.
static PLANTED: AtomicU32 = AtomicU32::new(0);
/// Those of them that were not found, and what went wrong with objects that have none.
static WRONG: AtomicU32 = AtomicU32::new(0);
/// Handlers that allocated and freed.
static HANDLED: AtomicU32 = AtomicU32::new(0);
/// The load ends.
static ENOUGH: AtomicBool = AtomicBool::new(false);

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 8).expect("a layout")
}

fn object(bytes: usize) -> VirtAddr {
    // SAFETY: the layout has a size.
    VirtAddr(black_box(unsafe { alloc(layout(bytes)) }).expose_provenance() as u64)
}

fn free(object: VirtAddr, bytes: usize) {
    // SAFETY: from `object` with this size; what is wrong with that is reported.
    unsafe { dealloc(black_box(object.as_ptr()), layout(bytes)) };
}

fn is_guarded(object: VirtAddr) -> bool {
    guarded_heap().contains(object.as_ptr())
}

/// A guarded object, by a gate that is opened by hand: another CPU may take what it lets through.
fn guarded_object(bytes: usize) -> Option<VirtAddr> {
    let patience = patience();
    while guarded_heap().open_gate() && !patience.has_passed() {
        let object = object(bytes);
        if is_guarded(object) {
            return Some(object);
        }
        free(object, bytes);
    }
    None
}

/// Whether an access is to an invalid page.
fn is_found(address: VirtAddr) -> bool {
    let abort = probe::read::<u8>(address).err().and_then(|fault| fault.syndrome.abort());
    abort.is_some_and(|abort| abort.status == FaultStatus::Translation)
}

/// Frees a guarded object, and returns whether accesses to it are found from then on.
fn free_is_found(object: VirtAddr, bytes: usize) -> bool {
    let before = guarded_heap().stats();
    free(object, bytes);
    let found = is_found(object) && is_found(object + (bytes as u64 - 1));
    // Its page is valid again when the free objects before it in the list were sampled, which a CPU that the host does not
    // run until then cannot tell from a miss. Half of them, since some are on their way between list, gate and users.
    let free_before = u64::from(before.objects - before.in_use);
    found || guarded_heap().stats().sampled - before.sampled >= free_before / 2
}

/// An object from its allocation to its free. If it is guarded, the bugs are planted.
fn one_life(bytes: usize, pattern: u8) {
    let object = object(bytes);
    let mut right = object.0 != 0;
    // SAFETY: the object is this function's; only its own bytes are accessed.
    unsafe {
        object.as_ptr::<u8>().write_bytes(pattern, bytes);
        right &= core::slice::from_raw_parts(object.as_ptr::<u8>(), bytes).iter().all(|byte| *byte == pattern);
    }
    if is_guarded(object) {
        let page = object.align_down(PAGE);
        right &= is_found(page - 1) && is_found(page + PAGE);
        right &= object == page || page + PAGE - object < bytes as u64 + 8;
        right &= object == object.canonical() && Tag::of(object) == MATCH_ALL;
        right &= free_is_found(object, bytes);
        PLANTED.fetch_add(1, Ordering::Relaxed);
    } else {
        free(object, bytes);
    }
    WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
}

fn from_the_timer(cpu: &Cpu) {
    one_life(48, 0x33);
    HANDLED.fetch_add(1, Ordering::Relaxed);
    timer::set_deadline(cpu, Duration::from_micros(300), from_the_timer);
}

/// Lives on this CPU until `is_enough`: how long that takes is up to the host, and the test's limit counts CPU time.
fn lives(cpu: &Cpu, seed: usize, is_enough: impl Fn() -> bool) {
    let mut draw = draws(seed as u64);
    while !is_enough() {
        one_life(1 + draw(600) as usize, cpu.id.0 as u8 + 1);
    }
}

/// Lives on the other CPUs and in this one's timer interrupt, until [`end_load`].
fn start_load(t: &mut Test, seed: usize) -> CpuSet {
    for count in [&PLANTED, &WRONG, &HANDLED] {
        count.store(0, Ordering::Relaxed);
    }
    ENOUGH.store(false, Ordering::Relaxed);
    timer::set_deadline(this_cpu(), Duration::from_micros(50), from_the_timer);
    let others = smp::online().without(this_cpu().id);
    for id in others.iter() {
        let work = |cpu: &Cpu, seed| lives(cpu, seed, || ENOUGH.load(Ordering::Relaxed));
        t.ok("started", work::run_on(id, work, seed ^ id.0 as usize));
    }
    others
}

/// Ends the load, in which all was to be right.
fn end_load(t: &mut Test, others: CpuSet) {
    ENOUGH.store(true, Ordering::Relaxed);
    work::wait_for(others);
    // Of this CPU alone, so the last one has set no other when this is done.
    timer::set_deadline(this_cpu(), Duration::ZERO, |_| {});
    let patience = patience();
    while timer::has_deadline(this_cpu()) && !patience.has_passed() {
        wait::relax();
    }
    t.equal("bugs that were missed, and objects that were not right", WRONG.load(Ordering::Relaxed), 0);
}

target_test!(every_planted_bug_is_found_under_interrupt_load_and_nothing_else, needs("kfence"), limit(60));
fn every_planted_bug_is_found_under_interrupt_load_and_nothing_else(t: &mut Test) {
    const BUGS: u32 = 150;
    let (seed, before) = (t.random() as usize, guarded_heap().stats());
    let others = start_load(t, seed);
    let handlers_took_part = || HANDLED.load(Ordering::Relaxed) > 10;
    lives(this_cpu(), seed, || PLANTED.load(Ordering::Relaxed) >= BUGS && handlers_took_part());
    end_load(t, others);
    let planted = PLANTED.load(Ordering::Relaxed);
    t.check("objects with bugs", planted >= BUGS);
    t.check("handlers took part", handlers_took_part());
    let after = guarded_heap().stats();
    t.check("sampled", after.sampled - before.sampled >= u64::from(planted));
    t.equal("in use", after.in_use, before.in_use);
    granule::println!("{planted} guarded objects, {} handlers", HANDLED.load(Ordering::Relaxed));
}

target_test!(where_all_objects_are_in_use_the_heap_serves, needs("kfence"));
fn where_all_objects_are_in_use_the_heap_serves(t: &mut Test) {
    let mut held = heapless::Vec::<VirtAddr, 64>::new();
    let (mut stats, patience) = (guarded_heap().stats(), patience());
    // One that another CPU has for a moment, in its hands or on the way to the gate, is free again after it.
    while stats.in_use < stats.objects && !patience.has_passed() {
        if guarded_object(32).is_some_and(|object| held.push(object).is_err()) {
            break;
        }
        stats = guarded_heap().stats();
    }
    t.equal("in use", stats.in_use, stats.objects);
    t.check("the gate stays closed", !guarded_heap().open_gate());
    t.check("that is counted", guarded_heap().stats().none_free > stats.none_free);
    let further = object(32);
    t.check("further objects", further.0 != 0 && !is_guarded(further));
    free(further, 32);
    held.iter().for_each(|object| free(*object, 32));
    t.check(
        "guarded ones again",
        guarded_object(32).is_some_and(|object| {
            free(object, 32);
            true
        }),
    );
}

target_test!(the_pool_is_pages_and_no_collapse_changes_that, needs("kfence"));
fn the_pool_is_pages_and_no_collapse_changes_that(t: &mut Test) {
    fn larger_leaves(pool: PageRange) -> usize {
        let leaf = |address| space().tables().translate(address);
        let pages = (0..pool.pages() as u64).map(|page| leaf(pool.start() + page * PAGE));
        pages
            .filter(|leaf| leaf.is_none_or(|leaf| leaf.level != 3 || leaf.descriptor.0 & bits::CONTIGUOUS != 0))
            .count()
    }
    let Some(object) = t.ok("an object", guarded_object(64).ok_or(())) else { return };
    let guards = (0..2 * PAGE * (u64::from(guarded_heap().stats().objects) + 1)).step_by(PAGE_SIZE);
    let first = guards.map(|offset| VirtAddr(object.align_down(PAGE).0 - offset)).take_while(|page| is_guarded(*page));
    let Some(start) = first.last() else { return };
    let pool = PageRange::from_pages(start, 2 * (usize::from(guarded_heap().stats().objects) + 1)).expect("a range");
    t.check("the whole pool", !is_guarded(start - 1) && !is_guarded(pool.last() + 1) && is_guarded(pool.last()));
    t.equal("leaves that are larger", larger_leaves(pool), 0);
    let splits = space().split_counts();
    let seed = t.random() as usize;
    let others = start_load(t, seed);
    let mut collapses = 0;
    while collapses < 3 || PLANTED.load(Ordering::Relaxed) < 30 {
        // Refused where no leaf is ever split; then none was larger either.
        let _ = space().collapse(this_cpu(), pool);
        collapses += 1;
        t.equal("leaves that are larger", larger_leaves(pool), 0);
        t.check("an object", guarded_object(64).is_some_and(|object| free_is_found(object, 64)));
    }
    end_load(t, others);
    t.check("objects meanwhile", PLANTED.load(Ordering::Relaxed) >= 30);
    free(object, 64);
    t.equal("nothing was split", space().split_counts().blocks, splits.blocks);
    t.equal("nor groups", space().split_counts().groups, splits.groups);
}

#[inline(never)]
fn allocates_for_the_report(bytes: usize) -> VirtAddr {
    black_box(guarded_object(black_box(bytes)).unwrap_or(VirtAddr(0)))
}

#[inline(never)]
fn frees_for_the_report(object: VirtAddr, bytes: usize) {
    free(black_box(object), black_box(bytes));
    black_box(());
}

fn write(address: VirtAddr) {
    // SAFETY: not sound at all; that is the test.
    unsafe { address.as_ptr::<u8>().write_volatile(1) };
}

target_test!(writes_after_a_free_in_a_handler, selftest());
fn writes_after_a_free_in_a_handler(t: &mut Test) {
    let object = allocates_for_the_report(100);
    frees_for_the_report(object, 100);
    smp::call(smp::online().without(this_cpu().id), |_, object| write(VirtAddr(object as u64)), object.0 as usize + 3);
    t.check("it comes back", true);
}

target_test!(writes_to_a_freed_object_in_the_gate, selftest());
fn writes_to_a_freed_object_in_the_gate(t: &mut Test) {
    let object = allocates_for_the_report(100);
    frees_for_the_report(object, 100);
    // There is no other object.
    t.check("it is in the gate", guarded_heap().open_gate());
    write(object + 3);
    allocates_for_the_report(50);
    t.check("it comes back", true);
}

target_test!(reads_in_front_of_an_object, selftest());
fn reads_in_front_of_an_object(t: &mut Test) {
    // Every second sample is at the start of its page; some of them are other CPUs'.
    let at_start = (0..20).map(|_| allocates_for_the_report(100)).find(|object| object.is_aligned(PAGE));
    let Some(object) = t.ok("an object", at_start.ok_or(())) else { return };
    // SAFETY: not sound at all; the page faults.
    black_box(unsafe { (object - 2).as_ptr::<u8>().read_volatile() });
    t.check("it comes back", true);
}

target_test!(frees_an_object_twice, selftest());
fn frees_an_object_twice(t: &mut Test) {
    let object = allocates_for_the_report(100);
    frees_for_the_report(object, 100);
    frees_for_the_report(object, 100);
    t.check("it comes back", true);
}

target_test!(writes_beside_an_object_in_its_page, selftest());
fn writes_beside_an_object_in_its_page(t: &mut Test) {
    let object = allocates_for_the_report(99);
    // In front of what is at the end of its page, after what is at the start.
    write(if object.is_aligned(PAGE) { object + 99 } else { object - 1 });
    frees_for_the_report(object, 99);
    t.check("it comes back", true);
}
