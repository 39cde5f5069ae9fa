//! CPUs: all of them run, calls reach their targets, and calls that cross do not wait for each other.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::smp::{self, Cpu, CpuId, CpuSet, MAX_CPUS, this_cpu};
use granule_arch::{interrupts, wait};

use crate::harness::{Test, target_test};
use crate::work;

/// Calls that each CPU has run, by its number.
static HITS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// Calls that arrived with something other than what they should.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn hit(cpu: &Cpu, _: usize) {
    HITS[cpu.id.0 as usize].fetch_add(1, Ordering::Relaxed);
}

/// How often each CPU was hit since the last time, for those that were.
fn take_hits() -> heapless::Vec<(CpuId, u32), MAX_CPUS> {
    let hits = (0..).map(CpuId).zip(&HITS).map(|(id, hits)| (id, hits.swap(0, Ordering::Relaxed)));
    hits.filter(|&(_, hits)| hits != 0).collect()
}

target_test!(every_cpu_of_the_tree_is_online);
fn every_cpu_of_the_tree_is_online(t: &mut Test) {
    t.equal("CPUs", smp::online().len(), granule::kernel().platform.cpus.len());
    let mut last = None;
    smp::for_each(|cpu| {
        t.check("in the order of their numbers", last < Some(cpu.id.0));
        last = Some(cpu.id.0);
    });
}

target_test!(each_cpu_has_its_own_id);
fn each_cpu_has_its_own_id(t: &mut Test) {
    fn look(cpu: &Cpu, _: usize) {
        let wrong = this_cpu().id != cpu.id || interrupts::state().irqs_enabled();
        WRONG.fetch_add(u32::from(wrong), Ordering::Relaxed);
        hit(cpu, 0);
    }
    WRONG.store(0, Ordering::Relaxed);
    take_hits();
    smp::call(smp::online(), look, 0);
    t.equal("its own number, and interrupts masked", WRONG.load(Ordering::Relaxed), 0);
    t.equal("CPUs", take_hits().len(), smp::online().len());
}

target_test!(a_call_runs_once_on_each_target_and_nowhere_else);
fn a_call_runs_once_on_each_target_and_nowhere_else(t: &mut Test) {
    take_hits();
    let all = smp::online();
    for bits in 0..=all.bits() {
        let targets = CpuSet::from_bits(bits & all.bits());
        smp::call(targets, hit, 0);
        let expected: heapless::Vec<(CpuId, u32), MAX_CPUS> = targets.iter().map(|id| (id, 1)).collect();
        t.equal("hits", take_hits(), expected);
    }
}

target_test!(what_was_stored_before_a_call_is_seen_in_it_and_the_other_way_round, needs("smp"));
fn what_was_stored_before_a_call_is_seen_in_it_and_the_other_way_round(t: &mut Test) {
    const ROUNDS: usize = 1000;
    static THERE: AtomicUsize = AtomicUsize::new(0);
    static BACK: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
    fn answer(cpu: &Cpu, argument: usize) {
        let stale = THERE.load(Ordering::Relaxed) != argument;
        WRONG.fetch_add(u32::from(stale), Ordering::Relaxed);
        BACK[cpu.id.0 as usize].store(argument, Ordering::Relaxed);
    }
    WRONG.store(0, Ordering::Relaxed);
    let mut stale = 0;
    for round in 1..=ROUNDS {
        THERE.store(round, Ordering::Relaxed);
        smp::call(smp::online(), answer, round);
        stale += smp::online().iter().filter(|id| BACK[id.0 as usize].load(Ordering::Relaxed) != round).count();
    }
    t.equal("on the way there", WRONG.load(Ordering::Relaxed), 0);
    t.equal("on the way back", stale, 0);
}

target_test!(cpus_that_all_call_each_other_all_get_through, needs("smp"), limit(30));
fn cpus_that_all_call_each_other_all_get_through(t: &mut Test) {
    const ROUNDS: u32 = 200;
    fn call_all(_: &Cpu, _: usize) {
        for _ in 0..ROUNDS {
            smp::call(smp::online(), hit, 0);
        }
    }
    take_hits();
    let others = smp::online().without(this_cpu().id);
    for id in others.iter() {
        t.equal("work", work::run_on(id, call_all, 0), Ok(()));
    }
    call_all(this_cpu(), 0);
    work::wait_for(others);
    let cpus = smp::online().len() as u32;
    t.check("every call arrived", take_hits().iter().all(|&(_, hits)| hits == ROUNDS * cpus));
}

target_test!(a_kernel_thread_runs_outside_of_interrupts_and_its_cpu_serves_calls, needs("smp"));
fn a_kernel_thread_runs_outside_of_interrupts_and_its_cpu_serves_calls(t: &mut Test) {
    static GO: AtomicU32 = AtomicU32::new(0);
    fn work(cpu: &Cpu, _: usize) {
        let inside = !interrupts::state().irqs_enabled() || cpu.trap().is_in_handler();
        WRONG.fetch_add(u32::from(inside), Ordering::Relaxed);
        while GO.load(Ordering::Acquire) == 0 {
            wait::relax();
        }
    }
    let Some(target) = smp::online().without(this_cpu().id).iter().next() else { return };
    WRONG.store(0, Ordering::Relaxed);
    GO.store(0, Ordering::Relaxed);
    t.equal("idle", work::run_on(target, work, 0), Ok(()));
    // The thread does not keep its CPU from serving calls.
    take_hits();
    smp::call(CpuSet::of(target), hit, 0);
    t.equal("called meanwhile", take_hits().len(), 1);
    GO.store(1, Ordering::Release);
    work::wait_for(CpuSet::of(target));
    t.equal("outside of interrupts", WRONG.load(Ordering::Relaxed), 0);
}

target_test!(a_call_waits_until_the_target_lets_interrupts_in, needs("smp"));
fn a_call_waits_until_the_target_lets_interrupts_in(t: &mut Test) {
    static MASKED: AtomicU32 = AtomicU32::new(0);
    static SEEN: AtomicU64 = AtomicU64::new(0);
    fn masked(cpu: &Cpu, _: usize) {
        let state = interrupts::mask();
        MASKED.store(1, Ordering::Release);
        let patience = Deadline::after(Duration::from_millis(20));
        while !patience.has_passed() {
            wait::relax();
        }
        SEEN.store(cpu.calls_served(), Ordering::Relaxed);
        interrupts::restore(state);
    }
    let Some(target) = smp::online().without(this_cpu().id).iter().find_map(smp::cpu) else { return };
    MASKED.store(0, Ordering::Relaxed);
    t.equal("work", work::run_on(target.id, masked, 0), Ok(()));
    while MASKED.load(Ordering::Acquire) == 0 {
        wait::relax();
    }
    let before = target.calls_served();
    smp::call(CpuSet::of(target.id), hit, 0);
    work::wait_for(CpuSet::of(target.id));
    t.equal("served while masked", SEEN.load(Ordering::Relaxed), before);
    t.equal("served after", target.calls_served(), before + 1);
    take_hits();
}
