//! Marks for QEMU's plugin `tests-qemu/plugin/stretches.c`, which counts how long interrupts stay masked and how long
//! the kernel runs without a scheduling point: instructions without an effect that no compiler emits.

#![allow(unsafe_code, reason = "marks are instructions")]

/// Marks a scheduling point: another thread of this CPU may run, or has just begun to.
#[cfg(target_os = "none")]
#[inline(always)]
pub(crate) fn mark_point() {
    // SAFETY: writes the zero register.
    unsafe {
        core::arch::asm!("orr xzr, xzr, xzr", options(nomem, nostack, preserves_flags));
    }
}

/// Marks the end of a record of the longest stretches; the next one begins.
#[inline(always)]
pub fn mark_record() {
    #[cfg(target_os = "none")]
    // SAFETY: as in `mark_point`.
    unsafe {
        core::arch::asm!("orr wzr, wzr, wzr", options(nomem, nostack, preserves_flags));
    }
}
