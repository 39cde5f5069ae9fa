//! Interrupts: they stay pending while they are masked, arrive once, and have one owner.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::interrupt::{self, InterruptError};
use granule::platform::{Interrupt, Trigger};
use granule::smp::{self, Cpu, this_cpu};
use granule_arch::interrupts;

use crate::harness::{Test, delay, patience, target_test};

/// An interrupt that CPUs can send and the kernel has no use for.
const OWN: Interrupt = Interrupt { intid: 15, trigger: Trigger::Edge };

static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// The interrupt arrived with others let in, or not counted as an interrupt.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn arrive(cpu: &Cpu) {
    let inside = cpu.trap().depth() == 1 && !interrupts::state().irqs_enabled();
    WRONG.fetch_add(u32::from(!inside), Ordering::Relaxed);
    ARRIVED.fetch_add(1, Ordering::Relaxed);
}

/// Waits until the interrupt has arrived `count` times; false where it does not in a second.
fn arrives(count: u32) -> bool {
    let patience = patience();
    while ARRIVED.load(Ordering::Relaxed) != count && !patience.has_passed() {
        granule_arch::wait::relax();
    }
    ARRIVED.load(Ordering::Relaxed) == count
}

target_test!(a_masked_interrupt_stays_pending_and_arrives_once);
fn a_masked_interrupt_stays_pending_and_arrives_once(t: &mut Test) {
    // It stays registered: interrupts are for the life of the kernel.
    t.equal("registered", interrupt::register(OWN, this_cpu(), arrive), Ok(()));
    t.equal("it has an owner", interrupt::register(OWN, this_cpu(), arrive), Err(InterruptError::InUse(15)));
    let lost = interrupt::lost();

    let masked = interrupts::mask();
    // Pending is one bit: the second adds nothing.
    t.equal("sent", interrupt::send(this_cpu(), OWN.intid), Ok(()));
    t.equal("sent", interrupt::send(this_cpu(), OWN.intid), Ok(()));
    delay(Duration::from_millis(2));
    t.equal("while masked", ARRIVED.load(Ordering::Relaxed), 0);
    interrupts::restore(masked);
    t.check("it arrives", arrives(1));
    delay(Duration::from_millis(2));
    t.equal("once", ARRIVED.load(Ordering::Relaxed), 1);

    for count in 2..100 {
        t.equal("sent", interrupt::send(this_cpu(), OWN.intid), Ok(()));
        t.check("it arrives again", arrives(count));
    }
    t.equal("as an interrupt", WRONG.load(Ordering::Relaxed), 0);
    t.equal("none was lost", interrupt::lost(), lost);
}

target_test!(numbers_beyond_the_controller_are_refused);
fn numbers_beyond_the_controller_are_refused(t: &mut Test) {
    for intid in [1020, 1023, 8192, u32::MAX] {
        let beyond = Interrupt { intid, trigger: Trigger::Level };
        t.equal(
            "refused",
            interrupt::register(beyond, this_cpu(), arrive),
            Err(InterruptError::NoSuchInterrupt(intid)),
        );
    }
}

target_test!(every_cpu_gets_what_is_sent_to_it, needs("smp"));
fn every_cpu_gets_what_is_sent_to_it(t: &mut Test) {
    for id in smp::online().without(this_cpu().id).iter() {
        let Some(cpu) = smp::cpu(id) else { continue };
        let before = cpu.ipis.load(Ordering::Relaxed);
        smp::call(smp::CpuSet::of(id), |_, _| (), 0);
        t.check("its own count went up", cpu.ipis.load(Ordering::Relaxed) > before);
    }
}
