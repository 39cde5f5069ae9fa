//! CPUs that take turns: what machine `icount` is for, shown by a race that is lost every time.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule::smp::{self, Cpu, CpuSet, this_cpu};
use granule_arch::wait;

use crate::harness::{Test, target_test};
use crate::work;

/// Races.
const ROUNDS: usize = 100;

/// The word that both CPUs change: one bit each, by a load and a store.
static WORD: AtomicU64 = AtomicU64::new(0);
/// The round in which the other CPU may make its change, and the last in which it has.
static ROUND: AtomicUsize = AtomicUsize::new(0);
static CHANGED: AtomicUsize = AtomicUsize::new(0);

/// Sets bit 1 once in each round, as soon as it may.
fn change_in_each_round(_: &Cpu, _: usize) {
    for round in 1..=ROUNDS {
        while ROUND.load(Ordering::Acquire) != round {
            wait::relax();
        }
        WORD.store(WORD.load(Ordering::Relaxed) | 2, Ordering::Relaxed);
        CHANGED.store(round, Ordering::Release);
    }
}

// The control of every switch of the lab that has a YIELD in a window of a load and a store.
target_test!(a_yield_between_a_load_and_a_store_loses_the_other_cpus_change_each_time, machines("icount"));
fn a_yield_between_a_load_and_a_store_loses_the_other_cpus_change_each_time(t: &mut Test) {
    ROUND.store(0, Ordering::Relaxed);
    let Some(other) = smp::online().without(this_cpu().id).iter().next() else { return };
    t.equal("started", work::run_on(other, change_in_each_round, 0), Ok(()));
    let mut lost = 0;
    for round in 1..=ROUNDS {
        WORD.store(0, Ordering::Relaxed);
        let read = WORD.load(Ordering::Relaxed);
        ROUND.store(round, Ordering::Release);
        wait::relax();
        WORD.store(read | 1, Ordering::Relaxed);
        while CHANGED.load(Ordering::Acquire) != round {
            wait::relax();
        }
        lost += usize::from(WORD.load(Ordering::Relaxed) == 1);
    }
    work::wait_for(CpuSet::of(other));
    t.equal("changes that were lost", lost, ROUNDS);
}
