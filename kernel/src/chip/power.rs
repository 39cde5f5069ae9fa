//! Turning the machine off.
//!
//! PSCI cannot report whether the work succeeded: QEMU always exits with status 0. With the boot argument `semihosting`
//! the machine ends through QEMU's semihosting instead, with a status. Only then: without a debugger or emulator that
//! answers, the semihosting instruction is an undefined-instruction exception, which is reported as any other; that
//! report then ends the machine by PSCI.

use core::sync::atomic::{AtomicBool, Ordering};

use granule_arch::psci::{self, Conduit};
use granule_arch::{interrupts, wait};
use linkme::distributed_slice;
use spin::Once;

use super::console;
use crate::bootargs::{self, PARAMETERS, Parameter};

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static SEMIHOSTING: Parameter = Parameter {
    name: "semihosting",
    help: "QEMU answers semihosting calls: poweroff and panics end it with a status",
    check: bootargs::flag,
};

static CONDUIT: Once<Option<Conduit>> = Once::new();
/// Semihosting has been tried; a CPU that comes here again has had no answer.
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

/// Turns the machine off. Where that cannot be done, this CPU stops; the other CPUs are the caller's to stop.
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
    stop()
}

/// Starts the machine anew. Where that cannot be done, this CPU stops.
pub fn reset() -> ! {
    let _ = interrupts::mask();
    console::flush();
    if let Some(conduit) = conduit() {
        let _ = psci::system_reset(conduit);
    }
    stop()
}

/// Stops this CPU for good.
pub fn stop() -> ! {
    let _ = interrupts::mask();
    loop {
        wait::wfi();
    }
}

/// Prints why the boot failed where no console is known, by whatever answers semihosting calls, QEMU or a debugger, and
/// ends the machine. Where nothing answers, the call is an undefined instruction, and this CPU stops in its report.
pub fn fail_without_console(reason: core::fmt::Arguments<'_>) -> ! {
    if !ASKED.swap(true, Ordering::Relaxed) {
        #[cfg(target_os = "none")]
        semihosting::eprintln!("{reason}");
        #[cfg(not(target_os = "none"))]
        std::eprintln!("{reason}");
        exit(Status::Failure);
    }
    stop()
}

fn conduit() -> Option<Conduit> {
    CONDUIT.get().copied().flatten()
}

/// SYS_EXIT (Arm semihosting specification, 6.5).
fn exit(status: Status) {
    #[cfg(target_os = "none")]
    semihosting::process::exit(status as i32);
    #[cfg(not(target_os = "none"))]
    std::process::exit(status as i32);
}
