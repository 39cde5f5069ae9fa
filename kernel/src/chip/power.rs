//! Turning the machine off, and resetting it: by PSCI, else by what the device tree has, in the order of
//! [`PowerRegisters`], each of which has a second for it. Where nothing does it, a message says so and the CPU stops.
//!
//! PSCI cannot report whether the work succeeded: QEMU always exits with status 0. With the boot argument `semihosting`
//! the machine ends through QEMU's semihosting instead, with a status. Only then: without a debugger or emulator that
//! answers, the semihosting instruction is an undefined-instruction exception, which is reported as any other; that
//! report then ends the machine by PSCI.

use core::sync::atomic::{AtomicBool, Ordering};

use core::time::Duration;

use granule_arch::addr::{PhysRange, VirtAddr};
use granule_arch::psci::{self, Conduit};
use granule_arch::{interrupts, wait};
use linkme::distributed_slice;
use spin::Once;

use super::bcm2835_pm::{AfterReset, Watchdog};
use super::console;
use super::machine;
use super::syscon::Syscon;
use super::timer::Deadline;
use crate::bootargs::{self, PARAMETERS, Parameter};
use crate::platform::PowerRegisters;
use crate::smp;

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static SEMIHOSTING: Parameter = Parameter {
    name: "semihosting",
    help: "QEMU answers semihosting calls: poweroff and panics end it with a status",
    check: bootargs::flag,
};

static CONDUIT: Once<Option<Conduit>> = Once::new();
static REGISTERS: Once<Registers> = Once::new();
/// Within this time the machine is off.
const PATIENCE: Duration = Duration::from_secs(1);
/// Semihosting has been tried; a CPU that comes here again got no answer.
static ASKED: AtomicBool = AtomicBool::new(false);

/// How the machine's work ended: the exit status of QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// 0.
    Success,
    /// 1.
    Failure,
}

/// Sets how the firmware is called. Before, [`off`] can only stop the CPU.
pub fn init(conduit: Option<Conduit>) {
    CONDUIT.call_once(|| conduit);
}

/// The registers that the tree has beside PSCI, mapped.
struct Registers {
    off: Option<Syscon>,
    reset: Option<Syscon>,
    watchdog: Option<Watchdog>,
}

/// Maps what the tree has beside PSCI. `map` maps registers as device memory, for ever.
pub fn map(registers: &PowerRegisters, map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>) {
    let &PowerRegisters { off, reset, watchdog } = registers;
    REGISTERS.call_once(|| Registers {
        off: off.and_then(|change| Syscon::new(change, map)),
        reset: reset.and_then(|change| Syscon::new(change, map)),
        watchdog: watchdog.and_then(|pm| Watchdog::new(pm, map)),
    });
}

/// Turns the machine off. Where that cannot be done, a message says so and this CPU stops; the other CPUs have been
/// stopped.
pub fn off(status: Status) -> ! {
    let _ = interrupts::mask();
    console::flush();
    if bootargs::is_set("semihosting") && !ASKED.swap(true, Ordering::Relaxed) {
        exit(status);
    }
    if let Some(conduit) = conduit() {
        // It returns only where the firmware refuses; then there is nothing left to try.
        let _ = psci::system_off(conduit);
    }
    if let Some(registers) = REGISTERS.get() {
        if let Some(syscon) = &registers.off {
            syscon.apply();
            wait_for_the_end();
        }
        if let Some(watchdog) = registers.watchdog.as_ref().filter(|watchdog| watchdog.turns_off) {
            watchdog.reset(AfterReset::Halt);
            wait_for_the_end();
        }
    }
    stop_with(format_args!(
        "power: nothing turns this machine off: not PSCI, `syscon-poweroff` or the watchdog of a BCM2835; it has stopped"
    ))
}

/// Starts the machine anew. Where that cannot be done, a message says so and this CPU stops; the other CPUs have been
/// stopped.
pub fn reset() -> ! {
    let _ = interrupts::mask();
    console::flush();
    if let Some(conduit) = conduit() {
        let _ = psci::system_reset(conduit);
    }
    if let Some(registers) = REGISTERS.get() {
        if let Some(syscon) = &registers.reset {
            syscon.apply();
            wait_for_the_end();
        }
        if let Some(watchdog) = &registers.watchdog {
            watchdog.reset(AfterReset::Boot);
            wait_for_the_end();
        }
    }
    stop_with(format_args!(
        "power: nothing resets this machine: not PSCI, `syscon-reboot` or the watchdog of a BCM2835; it has stopped"
    ))
}

fn wait_for_the_end() {
    let deadline = Deadline::after(PATIENCE);
    while !deadline.has_passed() {
        wait::relax();
    }
}

/// Prints `why`, and stops this CPU for good.
fn stop_with(why: core::fmt::Arguments<'_>) -> ! {
    // A CPU that was stopped may have the console's lock.
    console::take_over();
    crate::println!("{why}");
    console::flush();
    smp::halt()
}

/// Prints why the boot failed where no console is known, by whatever answers semihosting calls, QEMU or a debugger, and
/// ends the machine. Where nothing answers, the call is an undefined instruction, and this CPU stops in its report.
pub fn fail_without_console(reason: core::fmt::Arguments<'_>) -> ! {
    if !ASKED.swap(true, Ordering::Relaxed) {
        machine::tell_debugger(reason);
        exit(Status::Failure);
    }
    smp::halt()
}

fn conduit() -> Option<Conduit> {
    CONDUIT.get().copied().flatten()
}

fn exit(status: Status) {
    machine::exit(status as i32);
}
