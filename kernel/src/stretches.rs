//! Marks for QEMU's plugin `tests-qemu/plugin/stretches.c`, which counts how long interrupts stay masked and how long
//! the kernel runs without a scheduling point: instructions without an effect that no compiler emits.

#![allow(unsafe_code, reason = "marks are instructions")]

macro_rules! mark {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_os = "none")]
            // SAFETY: writes the zero register.
            unsafe {
                core::arch::asm!($instruction, options(nomem, nostack, preserves_flags));
            }
        }
    };
}

mark!(
    /// Marks a scheduling point: another thread of this CPU may run, or has just begun to.
    mark_point, "orr xzr, xzr, xzr"
);
mark!(
    /// Marks the end of a record of the longest stretches; the next one begins.
    mark_record, "orr wzr, wzr, wzr"
);
