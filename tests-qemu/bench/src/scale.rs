//! The suite `scale`: what operations of all CPUs cost each other, in cache lines that QEMU's plugin
//! `tests-qemu/plugin/lines.c` counts between markers.
//!
//! Kernel calls are made here, by a kernel thread on each CPU, in turn: each call comes after one of every other CPU, on
//! memory that is its caller's alone. Calls and faults of programs are made by `user/src/bin/scale.rs`.

#![allow(unsafe_code, reason = "markers, and functions of the kernel whose contracts the bench keeps")]

extern crate alloc;

use alloc::format;
use core::sync::atomic::{AtomicU32, Ordering};

use granule::bootargs::{self, PARAMETERS, Parameter, Refused};
use granule::chip::power;
use granule::iommu::{Direction, iommu};
use granule::linux::process;
use granule::linux::process::stack::Words;
use granule::linux::process::status::ProcessEnd;
use granule::smp::{self, CpuId, MAX_CPUS, this_cpu};
use granule::{kernel, sched};
use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use granule_arch::wait;
use granule_protocol::ScaleWindow as Window;
use linkme::distributed_slice;

/// The stream of the first CPU's device, on a bus that no machine has.
const STREAMS: u32 = 0xfe00;
/// Memory that every machine has, of which only the address matters.
const SOMEWHERE: PhysAddr = PhysAddr(0x4000_0000);
/// The initrd's program.
const PROGRAM: &str = "scale";

/// What the argument may be, and what is run for it.
const PARTS: [(&str, fn()); 3] =
    [("kernel", kernel_calls), ("program", || program(&[])), ("loose", || program(&["loose"]))];

#[distributed_slice(PARAMETERS)]
static SCALE: Parameter = Parameter {
    name: "bench.scale",
    help: "mark operations of all CPUs: kernel, a program, or a program with all CPUs at once (loose)",
    check: part,
};

fn part(value: &str) -> Result<(), Refused> {
    let found = PARTS.iter().any(|(name, _)| *name == value);
    found.then_some(()).ok_or_else(|| Refused::because("kernel, program, loose"))
}

/// Runs the part that the boot argument `bench.scale` names, and ends the machine; returns if there is none.
pub(crate) fn run_if_asked() {
    let Some(asked) = bootargs::get("bench.scale") else { return };
    let Some((_, run)) = PARTS.iter().find(|(name, _)| *name == asked) else { return };
    run();
    power::off(power::Status::Success)
}

/// Runs the initrd's program with a thread on each CPU.
fn program(more: &[&str]) {
    let cpus = format!("{}", smp::online().len());
    let mut words = Words::new();
    let line = [PROGRAM, &cpus].into_iter().chain(more.iter().copied());
    line.map(str::as_bytes).try_for_each(|word| words.argument(word)).expect("room for three words");
    let end = process::start(PROGRAM, words).map(process::wait);
    assert!(matches!(end, Ok(Some(ProcessEnd::Exited(0)))), "{PROGRAM}: {end:?}");
}

/// In a line of its own, and in none that is fetched with another one.
#[repr(align(128))]
struct Own<T>(T);

/// Whose turn it is, modulo the CPUs.
static TURN: Own<AtomicU32> = Own(AtomicU32::new(0));
/// CPUs that are done.
static DONE: Own<AtomicU32> = Own(AtomicU32::new(0));

/// Makes the calls on all CPUs.
fn kernel_calls() {
    extern "C" fn worker(_: usize) {
        calls();
        DONE.0.fetch_add(1, Ordering::Release);
    }
    let cpus = smp::online();
    for cpu in cpus.without(this_cpu().id).iter().filter_map(smp::cpu) {
        sched::spawn_kernel(cpu, "scale", worker, 0).expect("memory for a thread");
    }
    worker(0);
    while DONE.0.load(Ordering::Acquire) as usize != cpus.len() {
        wait::relax();
    }
}

/// Does something when the token is here, and passes it on.
fn in_turn<R>(operation: impl FnOnce() -> R) -> R {
    let (CpuId(me), cpus) = (this_cpu().id, smp::online().len() as u32);
    let mut now = TURN.0.load(Ordering::Acquire);
    while now % cpus != me {
        wait::relax();
        now = TURN.0.load(Ordering::Acquire);
    }
    let result = operation();
    TURN.0.store(now + 1, Ordering::Release);
    result
}

/// Does it between the markers.
#[inline(always)]
fn marked<R>(window: Window, operation: impl FnOnce() -> R) -> R {
    // SAFETY: does nothing. No `nomem`, so the compiler moves no access across it.
    unsafe { core::arch::asm!("hint #96", options(nostack)) };
    let result = operation();
    // SAFETY: as above.
    unsafe { core::arch::asm!("hint #97", in("x0") window as u64, options(nostack)) };
    result
}

/// What this CPU does.
fn calls() {
    let (cpu, space) = (this_cpu(), &kernel().space);
    let pages = Window::PAGES;
    for warm in rounds() {
        check(warm);
    }
    let area = in_turn(|| space.vmalloc(cpu, pages)).expect("memory for the area");
    for warm in rounds() {
        let window = if warm { Window::WarmUp } else { Window::SetMemory };
        in_turn(|| marked(window, || space.set_memory_ro(area.start(), pages))).expect("an area");
        in_turn(|| marked(window, || space.set_memory_rw(area.start(), pages))).expect("an area");
    }
    in_turn(|| space.vfree(cpu, area));
    for warm in rounds() {
        let [take, give] = if warm { [Window::WarmUp; 2] } else { [Window::Vmalloc, Window::Vfree] };
        let area = in_turn(|| marked(take, || space.vmalloc(cpu, pages))).expect("memory for the area");
        in_turn(|| marked(give, || space.vfree(cpu, area)));
    }
    let attach = || iommu().expect("an SMMU").attach(cpu, STREAMS + cpu.id.0);
    let device = in_turn(attach).expect("a stream without a device");
    for warm in rounds() {
        let window = if warm { Window::WarmUp } else { Window::SmmuInvalidate };
        let address = in_turn(|| device.map(cpu, SOMEWHERE, PAGE_SIZE, Direction::Both)).expect("addresses");
        in_turn(|| marked(window, || device.unmap(cpu, address, PAGE_SIZE)));
    }
    in_turn(|| drop(device));
}

/// For each round, whether it is to warm up.
fn rounds() -> impl Iterator<Item = bool> {
    (0..Window::WARM + Window::ROUNDS).map(|round| round < Window::WARM)
}

/// Accesses of which is known what they move.
fn check(warm: bool) {
    static COMMON: [Own<[AtomicU32; MAX_CPUS]>; 4] = [const { Own([const { AtomicU32::new(0) }; MAX_CPUS]) }; 4];
    static OWN: [Own<AtomicU32>; MAX_CPUS] = [const { Own(AtomicU32::new(0)) }; MAX_CPUS];
    let [atomic, neighbour, changed, shared] = &COMMON;
    let id = this_cpu().id;
    let (Own(own), own_word) = (id.of(&OWN), id.of(&neighbour.0));
    let change = |word: &AtomicU32| word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    let check = |window, access: &dyn Fn()| in_turn(|| marked(if warm { Window::WarmUp } else { window }, access));
    check(Window::CheckExclusive, &|| _ = atomic.0[0].fetch_add(1, Ordering::Relaxed));
    check(Window::CheckNeighbour, &|| own_word.store(1, Ordering::Relaxed));
    check(Window::CheckLoadAndStore, &|| change(&changed.0[0]));
    check(Window::CheckOwn, &|| change(own));
    check(Window::CheckShared, &|| _ = shared.0[0].load(Ordering::Relaxed));
}
