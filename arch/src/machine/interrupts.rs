//! PSTATE.DAIF.

#![allow(unsafe_code, reason = "reads and writes PSTATE.DAIF")]

use crate::interrupts::Daif;

/// Masks IRQ and FIQ on this CPU and returns the masks as they were.
#[inline(always)]
pub fn mask() -> Daif {
    let daif: u64;
    // SAFETY: masking interrupts changes no memory; the compiler may not move accesses across (no `nomem`).
    unsafe {
        core::arch::asm!("mrs {0}, daif", "msr daifset, #3", out(reg) daif, options(nostack, preserves_flags));
    }
    Daif(daif)
}

/// Puts the masks back as [`mask`] found them.
#[inline(always)]
pub fn restore(state: Daif) {
    // SAFETY: the value came from DAIF; the caller that masked is done with what the mask protected.
    unsafe {
        core::arch::asm!("msr daif, {0}", in(reg) state.0, options(nostack, preserves_flags));
    }
}

/// Lets this CPU take IRQs. For the end of a CPU's bring-up and the idle loop; elsewhere use [`restore`].
#[inline(always)]
pub fn enable() {
    // SAFETY: the vectors and the interrupt controller of this CPU are set up before anyone calls this.
    unsafe {
        core::arch::asm!("msr daifclr, #3", options(nostack, preserves_flags));
    }
}

/// The masks as they are now.
#[inline(always)]
pub fn state() -> Daif {
    let daif: u64;
    // SAFETY: reads PSTATE only.
    unsafe {
        core::arch::asm!("mrs {0}, daif", out(reg) daif, options(nomem, nostack, preserves_flags));
    }
    Daif(daif)
}
