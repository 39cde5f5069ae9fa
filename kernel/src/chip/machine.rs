//! Functions of the CPU, and of a debugger, that the devices here need.

#![allow(unsafe_code, reason = "registers of the PMU")]

use aarch64_cpu::registers::{ID_AA64DFR0_EL1, Readable as _};
use granule_arch::sysreg::EVENT_INST_RETIRED;

/// Instructions that this CPU has retired, where the PMU counts them.
pub(super) fn instructions() -> Option<u64> {
    // 0 is no PMU, 15 is one that is not the architecture's.
    if matches!(ID_AA64DFR0_EL1.read(ID_AA64DFR0_EL1::PMUVer), 0 | 15) {
        return None;
    }
    let (events, count): (u64, u64);
    // SAFETY: a PMU is there (above), and the entry code set event counter 0 to this event and started it.
    unsafe {
        core::arch::asm!("mrs {0}, pmceid0_el0", "isb", "mrs {1}, pmevcntr0_el0", out(reg) events, out(reg) count,
            options(nostack, preserves_flags));
    }
    (events & 1 << EVENT_INST_RETIRED != 0).then_some(count)
}

/// Prints a line by semihosting.
pub(super) fn tell_debugger(line: core::fmt::Arguments<'_>) {
    semihosting::eprintln!("{line}");
}

/// SYS_EXIT (Arm semihosting specification, 6.5).
pub(super) fn exit(status: i32) {
    semihosting::process::exit(status);
}
