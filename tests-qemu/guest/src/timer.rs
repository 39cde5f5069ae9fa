//! Time: it goes forward on every CPU alike, and deadlines arrive once, not early, on the CPU that set them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer;
use granule::smp::{self, Cpu, CpuSet, this_cpu};
use granule_arch::{interrupts, wait};

use crate::harness::{Test, delay, patience, target_test};

const SOON: Duration = Duration::from_millis(5);

static FIRED: AtomicU32 = AtomicU32::new(0);
/// The CPU that it fired on.
static ON: AtomicU32 = AtomicU32::new(u32::MAX);

fn fire(cpu: &Cpu) {
    ON.store(cpu.id.0, Ordering::Relaxed);
    FIRED.fetch_add(1, Ordering::Release);
}

/// Waits up to a second for the deadline to fire.
fn wait_for_it() {
    let patience = patience();
    while FIRED.load(Ordering::Acquire) == 0 && !patience.has_passed() {
        wait::relax();
    }
}

target_test!(a_deadline_arrives_once_and_not_early);
fn a_deadline_arrives_once_and_not_early(t: &mut Test) {
    FIRED.store(0, Ordering::Relaxed);
    let start = timer::uptime();
    timer::set_deadline(this_cpu(), SOON, fire);
    wait_for_it();
    t.check("not early", timer::uptime() - start >= SOON);
    delay(2 * SOON);
    t.equal("once", FIRED.load(Ordering::Relaxed), 1);
    t.equal("here", ON.load(Ordering::Relaxed), this_cpu().id.0);
}

target_test!(a_deadline_that_has_passed_arrives_at_once);
fn a_deadline_that_has_passed_arrives_at_once(t: &mut Test) {
    FIRED.store(0, Ordering::Relaxed);
    timer::set_deadline(this_cpu(), Duration::ZERO, fire);
    wait_for_it();
    t.equal("fired", FIRED.load(Ordering::Relaxed), 1);
}

target_test!(a_deadline_waits_while_interrupts_are_masked);
fn a_deadline_waits_while_interrupts_are_masked(t: &mut Test) {
    FIRED.store(0, Ordering::Relaxed);
    let masked = interrupts::mask();
    timer::set_deadline(this_cpu(), Duration::ZERO, fire);
    delay(SOON);
    t.equal("while masked", FIRED.load(Ordering::Relaxed), 0);
    // A pending interrupt ends WFI even so: this returns.
    wait::wfi();
    interrupts::restore(masked);
    wait_for_it();
    t.equal("after", FIRED.load(Ordering::Relaxed), 1);
}

target_test!(each_cpu_has_a_deadline_of_its_own, needs("smp"));
fn each_cpu_has_a_deadline_of_its_own(t: &mut Test) {
    for id in smp::online().iter() {
        FIRED.store(0, Ordering::Relaxed);
        smp::call(CpuSet::of(id), |cpu, _| timer::set_deadline(cpu, SOON, fire), 0);
        wait_for_it();
        t.equal("fired", FIRED.load(Ordering::Relaxed), 1);
        t.equal("there", ON.load(Ordering::Relaxed), id.0);
    }
}

target_test!(time_goes_forward_across_cpus, needs("smp"));
fn time_goes_forward_across_cpus(t: &mut Test) {
    static THERE: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = || timer::uptime().as_nanos() as u64;
    let mut backwards = 0;
    for round in 0..200 {
        let target = smp::online().iter().nth(round % smp::online().len());
        let before = nanoseconds();
        smp::call(
            target.map_or(CpuSet::EMPTY, CpuSet::of),
            |_, _| THERE.store(timer::uptime().as_nanos() as u64, Ordering::Relaxed),
            0,
        );
        let there = THERE.load(Ordering::Relaxed);
        backwards += u32::from(there < before || nanoseconds() < there);
    }
    t.equal("times that it went backwards", backwards, 0);
}
