//! Calls between threads that stand for CPUs.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::call::{CallFunction, is_done, post, serve};
use super::{Cpu, CpuId, CpuSet, CpuTable};

const COUNT: u32 = 4;
const ROUNDS: usize = 500;

fn table() -> (CpuTable, Vec<&'static Cpu>) {
    let table = CpuTable::new();
    let cpus: Vec<&'static Cpu> =
        (0..COUNT).map(|id| &*Vec::leak(vec![Cpu::new(CpuId(id))])).map(|cpu| &cpu[0]).collect();
    cpus.iter().for_each(|cpu| table.insert(cpu));
    (table, cpus)
}

/// Threads as CPUs that all call all others at the same time, and serve while they wait.
#[test]
fn cpus_that_call_each_other_all_get_through() {
    static SUM: AtomicUsize = AtomicUsize::new(0);
    let add: CallFunction = |_, argument| {
        SUM.fetch_add(argument, Ordering::Relaxed);
    };
    let (table, cpus) = table();
    let all = CpuSet::from_bits((1 << COUNT) - 1);
    let (start, end) = (Barrier::new(COUNT as usize), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for &cpu in &cpus {
            let (table, start, end) = (&table, &start, &end);
            scope.spawn(move || {
                start.wait();
                for _ in 0..ROUNDS {
                    post(cpu, table, all.without(cpu.id), add, 1 + cpu.id.0 as usize, |_| {});
                    while !is_done(cpu) {
                        serve(cpu, table);
                        std::thread::yield_now();
                    }
                }
                end.fetch_add(1, Ordering::Relaxed);
                while end.load(Ordering::Relaxed) < COUNT as usize {
                    serve(cpu, table);
                    std::thread::yield_now();
                }
            });
        }
    });
    let arguments: usize = (1..=COUNT as usize).sum();
    assert_eq!(SUM.load(Ordering::Relaxed), arguments * ROUNDS * (COUNT as usize - 1));
    assert!(cpus.iter().all(|cpu| cpu.calls_served() == ((COUNT as usize - 1) * ROUNDS) as u64));
}

#[test]
fn a_call_of_nobody_is_done_at_once() {
    let (table, cpus) = table();
    post(cpus[0], &table, CpuSet::EMPTY, |_, _| unreachable!(), 0, |_| unreachable!());
    assert!(is_done(cpus[0]));
}

#[test]
fn only_the_targets_run_it() {
    let (table, cpus) = table();
    let targets = CpuSet::of(CpuId(1)).with(CpuId(3));
    post(cpus[0], &table, targets, |cpu, _| assert!(matches!(cpu.id.0, 1 | 3)), 0, |_| {});
    assert!(!is_done(cpus[0]));
    cpus.iter().for_each(|cpu| serve(cpu, &table));
    assert!(is_done(cpus[0]));
    assert_eq!(cpus[2].calls_served(), 0);
}
