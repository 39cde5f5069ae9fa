//! The console's output: what a caller cannot wait for is sent by the port's interrupt, and lines of several CPUs do
//! not mix.

use core::sync::atomic::{AtomicUsize, Ordering};

use granule::chip::console;
use granule::smp::{self, Cpu, CpuId, CpuSet};
use granule_arch::wait;

use crate::harness::{Test, patience, target_test};

/// Lines that one call prints, of 64 bytes.
const LINES: usize = 24;

/// Bytes that were printed and not sent at the end of a call.
static UNSENT: AtomicUsize = AtomicUsize::new(0);

/// Prints with interrupts masked, as a handler does.
fn print_masked(cpu: &Cpu, call: usize) {
    for line in 0..LINES {
        granule::println!("masked output of CPU {}, call {call:4}, line {line:4} {:-<22}", cpu.id.0, "");
    }
    UNSENT.fetch_max(console::unsent(), Ordering::Relaxed);
}

/// Whether the port gets everything in a second, without further prints.
fn is_sent() -> bool {
    let patience = patience();
    while console::unsent() > 0 && !patience.has_passed() {
        wait::relax();
    }
    console::unsent() == 0
}

target_test!(output_with_interrupts_masked_is_sent_by_the_ports_interrupt);
fn output_with_interrupts_masked_is_sent_by_the_ports_interrupt(t: &mut Test) {
    // CPU 0 takes the port's interrupt: nothing is sent until it unmasks them.
    for call in 0..10 {
        smp::call(CpuSet::of(CpuId(0)), print_masked, call);
        t.check("everything is sent", is_sent());
    }
    t.check("a caller with interrupts masked leaves output to the interrupt", UNSENT.load(Ordering::Relaxed) > 0);
}

target_test!(output_of_cpus_at_once_is_sent, needs("smp"));
fn output_of_cpus_at_once_is_sent(t: &mut Test) {
    for call in 0..5 {
        smp::call(smp::online(), print_masked, call);
        granule::println!("output with interrupts on, call {call}");
    }
    t.check("everything is sent", is_sent());
}
