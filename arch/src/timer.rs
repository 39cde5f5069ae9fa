//! The generic timer (Arm ARM D12): the counter that all CPUs share, and this CPU's EL1 virtual timer.
//!
//! The virtual count is the physical one minus CNTVOFF_EL2, which the entry code sets to zero where it runs at EL2.

#![allow(unsafe_code, reason = "reads and writes the timer's registers")]

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};

/// See [`set_frequency`]; zero before.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
/// Of every counter from Armv8.6 on (D12.1.2): assumed while nothing is known.
const USUAL_FREQUENCY: u64 = 1_000_000_000;

/// CNTVCT_EL0, which may be read some instructions early or late: for sums of times, where an ISB would cost more than the
/// time it adds in precision.
#[inline(always)]
pub fn count_unordered() -> u64 {
    #[cfg(target_os = "none")]
    {
        let count: u64;
        // SAFETY: reads a counter.
        unsafe {
            core::arch::asm!("mrs {0}, cntvct_el0", out(reg) count, options(nostack, nomem, preserves_flags));
        }
        count
    }
    #[cfg(not(target_os = "none"))]
    0
}

/// CNTVCT_EL0, not read ahead of what comes before it in the program.
#[inline(always)]
pub fn count() -> u64 {
    #[cfg(target_os = "none")]
    {
        let count: u64;
        // SAFETY: reads a counter. The ISB keeps the read from being done early (D12.1.2); no `nomem`, so that the
        // compiler does not move it across accesses that it times.
        unsafe {
            core::arch::asm!("isb", "mrs {0}, cntvct_el0", out(reg) count, options(nostack, preserves_flags));
        }
        count
    }
    #[cfg(not(target_os = "none"))]
    0
}

/// Counts in a second, the same on all CPUs: what [`set_frequency`] was given, before that this CPU's [`own_frequency`].
/// Never zero, whatever the firmware left: where nothing else is known, 1 GHz.
#[inline(always)]
pub fn frequency() -> u64 {
    let set = FREQUENCY.load(Ordering::Relaxed);
    if set == 0 { own_or_usual() } else { set }
}

#[cold]
fn own_or_usual() -> u64 {
    let own = own_frequency();
    if own == 0 { USUAL_FREQUENCY } else { own }
}

/// CNTFRQ_EL0: what firmware has set it to on this CPU, which is zero where it has not. Only the highest exception level
/// can write it.
#[inline(always)]
pub fn own_frequency() -> u64 {
    #[cfg(target_os = "none")]
    {
        use aarch64_cpu::registers::{CNTFRQ_EL0, Readable as _};
        CNTFRQ_EL0.get()
    }
    #[cfg(not(target_os = "none"))]
    USUAL_FREQUENCY
}

/// Sets what [`frequency`] returns on all CPUs.
pub fn set_frequency(frequency: NonZeroU64) {
    FREQUENCY.store(frequency.get(), Ordering::Relaxed);
}

/// Has this CPU's virtual timer fire when [`count`] reaches `deadline`; at once where it has.
#[inline]
pub fn set_deadline(deadline: u64) {
    #[cfg(target_os = "none")]
    {
        use aarch64_cpu::registers::{CNTV_CTL_EL0, CNTV_CVAL_EL0, Writeable as _};
        CNTV_CVAL_EL0.set(deadline);
        CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR);
        // The interrupt may be asserted only after the write has taken effect (D12.2.4).
        crate::barrier::isb();
    }
    #[cfg(not(target_os = "none"))]
    let _ = deadline;
}

/// Stops this CPU's virtual timer: its interrupt line goes low.
#[inline]
pub fn stop() {
    #[cfg(target_os = "none")]
    {
        use aarch64_cpu::registers::{CNTV_CTL_EL0, Writeable as _};
        CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
        // The level must be gone before the interrupt is ended, or it is taken once more.
        crate::barrier::isb();
    }
}
