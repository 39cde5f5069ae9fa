//! Functions that are run on other CPUs, and CPUs that are parked, by the kernel's own source: all get through, and see what
//! the others have stored.

use granule_loom::remote::{Cpu, call, come_online, cpu, may_park_others, park_others, run_on, take_interrupts};
use granule_loom::smp::{CpuId, CpuSet, MAX_CPUS};
use granule_loom::sync::atomic::{AtomicU32, Ordering};
use granule_loom::{Omitted, Watched, omit};

use crate::{assert_caught, threads};

/// An access that loom watches and finds without an order.
const RACE: &str = "Causality violation";

/// Shared by the CPUs.
#[derive(Default)]
struct Shared {
    /// Written by a CPU that calls others, or parks them, and read by these.
    data: Watched<u64>,
    /// Written by each CPU for itself.
    answers: [Watched<u64>; MAX_CPUS],
    /// CPUs that park no others any more. It orders nothing.
    done: AtomicU32,
}

loom::lazy_static! {
    static ref SHARED: Shared = Shared::default();
}

/// Runs on a CPU, which leaves a step out.
type Program = (fn(&'static Cpu), Omitted);

/// Runs `programs`, each on the CPU of its number. The first `online` of these are online from the beginning.
fn run<const N: usize>(online: u32, programs: [Program; N]) {
    threads(move || {
        (0..online).for_each(|id| {
            run_on(id);
            come_online();
        });
        let start = move |id: usize| {
            let (this, (program, omitted)) = (run_on(id as u32), programs[id]);
            omit(omitted);
            program(this);
            omit(Omitted::Nothing);
        };
        let others: Vec<_> = (1..N).map(|id| loom::thread::spawn(move || start(id))).collect();
        start(0);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// A call's function: answers with what the caller has stored.
fn answer(this: &Cpu, argument: usize) {
    this.id.of(&SHARED.answers).write(SHARED.data.read() + argument as u64);
}

/// Calls CPU 1.
fn calls(_: &'static Cpu) {
    SHARED.data.write(5);
    call(CpuSet::of(CpuId(1)), answer, 2);
    assert_eq!(SHARED.answers[1].read(), 7);
    SHARED.data.write(6);
}

fn call_of_one(caller: Omitted, target: Omitted) {
    run(2, [(calls, caller), (takes_a_call, target)]);
}

/// Takes interrupts until it has served a call.
fn takes_a_call(this: &'static Cpu) {
    takes_interrupts(|| this.calls_served() != 0);
}

fn takes_interrupts(until: impl Fn() -> bool) {
    while !until() {
        take_interrupts();
        loom::thread::yield_now();
    }
}

#[test]
fn a_call_sees_what_its_caller_stored_and_is_seen() {
    call_of_one(Omitted::Nothing, Omitted::Nothing);
}

#[test]
fn a_call_without_an_order_is_caught() {
    assert_caught("before it is there", || call_of_one(Omitted::Order, Omitted::Nothing));
    assert_caught(RACE, || call_of_one(Omitted::Acquire, Omitted::Nothing));
    assert_caught("before it is there", || call_of_one(Omitted::Nothing, Omitted::Order));
}

/// Counts on the CPU that runs it.
fn count(this: &Cpu, argument: usize) {
    let own = this.id.of(&SHARED.answers);
    own.write(own.read() + argument as u64);
}

/// Calls all others.
fn calls_all(this: &'static Cpu) {
    call(granule_loom::remote::online().without(this.id), count, 1 << (8 * this.id.0));
}

#[test]
fn cpus_that_call_each_other_all_get_through() {
    let counts = |this: &'static Cpu| {
        calls_all(this);
        takes_a_call(this);
        assert_eq!(this.id.of(&SHARED.answers).read(), 1 << (8 * (1 - this.id.0)));
    };
    run(2, [(counts, Omitted::Nothing); 2]);
}

/// Parks all others and changes what they read in their walks.
fn parks(this: &'static Cpu) {
    let others = park_others();
    SHARED.data.write(1);
    let other = cpu(CpuId(1 - this.id.0)).expect("one of two");
    assert!(!other.walk().is_open(), "a CPU is parked inside a walk");
    drop(others);
    SHARED.done.fetch_add(1, Ordering::Relaxed);
}

/// Reads it in a walk, and is interrupted there or after it.
fn walks(this: &'static Cpu) {
    this.walk().during(|| {
        take_interrupts();
        SHARED.data.read();
    });
    take_interrupts();
    this.walk().during(|| _ = SHARED.data.read());
    are_parked(1);
}

/// Takes interrupts until so many CPUs have parked the others.
fn are_parked(parkers: u32) {
    takes_interrupts(|| SHARED.done.load(Ordering::Relaxed) == parkers);
}

fn parked(parker: Omitted, walker: Omitted) {
    run(2, [(parks, parker), (walks, walker)]);
}

#[test]
fn what_is_parked_is_in_no_walk_and_sees_what_was_stored() {
    parked(Omitted::Nothing, Omitted::Nothing);
}

#[test]
fn a_cpu_that_has_no_patience_parks_them_as_well() {
    parked(Omitted::Patience, Omitted::Nothing);
}

#[test]
fn parking_without_an_order_is_caught() {
    for step in [Omitted::Order, Omitted::Release, Omitted::Acquire] {
        assert_caught(RACE, || parked(step, Omitted::Nothing));
        assert_caught(RACE, || parked(Omitted::Nothing, step));
    }
}

#[test]
fn a_cpu_that_is_parked_inside_a_walk_is_caught() {
    assert_caught("a CPU is parked inside a walk", || parked(Omitted::Nothing, Omitted::WalkWord));
}

#[test]
fn a_cpu_inside_a_walk_parks_no_others() {
    let asks = |this: &'static Cpu| {
        assert!(may_park_others(this));
        this.walk().during(|| assert!(!may_park_others(this)));
    };
    run(1, [(asks, Omitted::Nothing)]);
}

#[test]
fn cpus_that_park_each_other_all_get_through() {
    let parks = |this: &'static Cpu| {
        parks(this);
        are_parked(2);
    };
    run(2, [(parks, Omitted::Nothing); 2]);
}

/// It is brought up while another CPU parks those that are online.
fn comes_online(this: &'static Cpu) {
    come_online();
    walks(this);
}

fn joined(omitted: Omitted) {
    run(1, [(parks, omitted), (comes_online, omitted)]);
}

#[test]
fn a_cpu_that_comes_online_is_parked_too() {
    joined(Omitted::Nothing);
}

#[test]
fn a_cpu_that_comes_online_without_full_barriers_is_caught() {
    assert_caught(RACE, || joined(Omitted::Fences));
}
