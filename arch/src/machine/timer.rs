//! The timer's registers.

#![allow(unsafe_code, reason = "reads and writes the timer's registers")]

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, Readable as _, Writeable as _};

use crate::barrier;

/// CNTVCT_EL0, which may be read some instructions early or late: for sums of times, where an ISB would cost more than the
/// time it adds in precision.
#[inline(always)]
pub fn count_unordered() -> u64 {
    let count: u64;
    // SAFETY: reads a counter.
    unsafe {
        core::arch::asm!("mrs {0}, cntvct_el0", out(reg) count, options(nostack, nomem, preserves_flags));
    }
    count
}

/// CNTVCT_EL0, not read ahead of what comes before it in the program.
#[inline(always)]
pub fn count() -> u64 {
    let count: u64;
    // SAFETY: reads a counter. The ISB keeps the read from being done early (D12.1.2); no `nomem`, so that the
    // compiler does not move it across accesses that it times.
    unsafe {
        core::arch::asm!("isb", "mrs {0}, cntvct_el0", out(reg) count, options(nostack, preserves_flags));
    }
    count
}

/// CNTFRQ_EL0: what firmware has set it to on this CPU, which is zero where it has not. Only the highest exception level
/// can write it.
#[inline(always)]
pub fn own_frequency() -> u64 {
    CNTFRQ_EL0.get()
}

/// Has this CPU's virtual timer fire when [`count`] reaches `deadline`; at once where it has.
#[inline]
pub fn set_deadline(deadline: u64) {
    CNTV_CVAL_EL0.set(deadline);
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR);
    // The interrupt may be asserted only after the write has taken effect (D12.2.4).
    barrier::isb();
}

/// Stops this CPU's virtual timer: its interrupt line goes low.
#[inline]
pub fn stop() {
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
    // The level must be gone before the interrupt is ended, or it is taken once more.
    barrier::isb();
}
