//! The suite `scale`: what operations of all CPUs cost each other, in cache lines that QEMU's plugin
//! `tests-qemu/plugin/lines.c` counts between markers.
//!
//! Kernel calls are made here, by a kernel thread on each CPU, in turn: each call comes after one of every other CPU, on
//! memory that is its caller's alone. Only splits ([`splits`]) are of leaves that callers share, and all at once as
//! well. Calls and faults of programs are made by `user/src/bin/scale.rs`.

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
use granule::mm::kernel::set_memory::Validity;
use granule::smp::{self, CpuId, MAX_CPUS, this_cpu};
use granule::{kernel, sched};
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::wait;
use granule_protocol::ScaleWindow as Window;
use linkme::distributed_slice;

use crate::linear::{BLOCK_PAGES, Blocks, GROUP_PAGES};

/// The stream of the first CPU's device, on a bus that no machine has.
const STREAMS: u32 = 0xfe00;
/// Memory that every machine has, of which only the address matters.
const SOMEWHERE: PhysAddr = PhysAddr(0x4000_0000);
/// The initrd's program.
const PROGRAM: &str = "scale";

/// The values of the argument, each with the function that runs for it.
const PARTS: [(&str, fn()); 5] = [
    ("kernel", || on_all_cpus(calls, 0)),
    ("program", || program(&[])),
    ("loose", || program(&["loose"])),
    ("split", || splits(Pace::InTurn)),
    ("loose-split", || splits(Pace::AtOnce)),
];

#[distributed_slice(PARAMETERS)]
static SCALE: Parameter = Parameter {
    name: "bench.scale",
    help: "mark operations of all CPUs: kernel, program, split; loose, loose-split: the last two with all CPUs at once",
    check: part,
};

fn part(value: &str) -> Result<(), Refused> {
    let found = PARTS.iter().any(|(name, _)| *name == value);
    found.then_some(()).ok_or_else(|| Refused::because("kernel, program, loose, split, loose-split"))
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

/// The number of operations so far: modulo the CPUs, the CPU whose turn it is.
static TURN: Own<AtomicU32> = Own(AtomicU32::new(0));
/// How often a CPU has come to a place where all meet.
static MET: Own<AtomicU32> = Own(AtomicU32::new(0));

/// Runs `worker` with that argument on each CPU, all of which [`meet`] at its end.
fn on_all_cpus(worker: extern "C" fn(usize), argument: usize) {
    for cpu in smp::online().without(this_cpu().id).iter().filter_map(smp::cpu) {
        sched::spawn_kernel(cpu, "scale", worker, argument).expect("memory for a thread");
    }
    worker(argument);
}

/// Waits for all other CPUs.
fn meet() {
    let cpus = smp::online().len() as u32;
    let all = (MET.0.fetch_add(1, Ordering::AcqRel) / cpus + 1) * cpus;
    while MET.0.load(Ordering::Acquire) < all {
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

/// Reports events of a window's operations.
fn report(window: Window, events: u64) {
    // SAFETY: does nothing.
    unsafe { core::arch::asm!("hint #98", in("x0") window as u64, in("x1") events, options(nostack)) };
}

/// The calls of a CPU that come in turn.
extern "C" fn calls(_: usize) {
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
    meet();
}

/// At least a block for each round.
const SPLIT_BLOCKS: u32 = (Window::WARM + Window::ROUNDS).next_power_of_two();
// A group that has a page of each CPU, a group of each CPU's own, and one more that all have.
const _: () = assert!(MAX_CPUS as u64 <= GROUP_PAGES && (MAX_CPUS as u64 + 2) * GROUP_PAGES <= BLOCK_PAGES);

/// When neighbours make their changes.
#[derive(Clone, Copy)]
enum Pace {
    InTurn,
    AtOnce,
}

/// Neighbours change pages of their own in blocks that none has changed before.
fn splits(pace: Pace) {
    extern "C" fn in_turn(first: usize) {
        split(VirtAddr(first as u64), Pace::InTurn);
    }
    extern "C" fn at_once(first: usize) {
        split(VirtAddr(first as u64), Pace::AtOnce);
    }
    let worker = match pace {
        Pace::InTurn => in_turn,
        Pace::AtOnce => at_once,
    };
    let blocks = Blocks::untouched(SPLIT_BLOCKS.ilog2()).without_groups();
    on_all_cpus(worker, blocks.page(0).0 as usize);
    blocks.give_back();
}

/// A CPU's part of it, in blocks from `first` on.
fn split(first: VirtAddr, pace: Pace) {
    let me = u64::from(this_cpu().id.0);
    for warm in rounds() {
        check(warm);
    }
    let page = |block: u32, group, page| first + (u64::from(block) * BLOCK_PAGES + group * GROUP_PAGES + page) * PAGE;
    first_changes(Window::SplitBlock, pace, |block| page(block, 0, me));
    first_changes(Window::SplitGroup, pace, |block| page(block, 1 + me, 0));
    first_changes(Window::SplitOneGroup, pace, |block| page(block, 1 + MAX_CPUS as u64, me));
}

/// In each round makes a page of a block invalid, as each other CPU does with one of its own. The boot CPU reports the
/// events of all.
fn first_changes(window: Window, pace: Pace, page: impl Fn(u32) -> VirtAddr) {
    let space = &kernel().space;
    let events = || {
        let counts = space.split_counts();
        counts.contended + counts.retries
    };
    let mut before = None;
    for (round, warm) in (0..).zip(rounds()) {
        if round == Window::WARM {
            meet();
            before = (this_cpu().id == CpuId(0)).then(events);
            meet();
        }
        let (window, page) = (if warm { Window::WarmUp } else { window }, page(round));
        let change = || marked(window, || space.set_memory_valid(page, 1, Validity::Invalid));
        let changed = match pace {
            Pace::InTurn => in_turn(change),
            Pace::AtOnce => {
                meet();
                change()
            }
        };
        changed.expect("memory of the bench's own");
    }
    meet();
    if let Some(before) = before {
        report(window, events() - before);
    }
    meet();
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
