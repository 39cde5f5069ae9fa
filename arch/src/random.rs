//! The random number generator of a CPU (FEAT_RNG; Arm ARM D24.2, RNDR).

#![allow(unsafe_code, reason = "reads RNDR")]

/// A random number of the CPU's own generator; `None` where the generator has none for the moment. The CPU has FEAT_RNG.
#[cfg(target_os = "none")]
pub fn rndr() -> Option<u64> {
    let (number, valid): (u64, u64);
    // SAFETY: a read of a register, which changes nothing but the flags.
    unsafe {
        core::arch::asm!(
            // RNDR. NZCV is 0b0100 where there was no number in time.
            "mrs {number}, S3_3_C2_C4_0",
            "cset {valid}, ne",
            number = out(reg) number,
            valid = out(reg) valid,
            options(nomem, nostack),
        );
    }
    (valid != 0).then_some(number)
}

/// On the host there is none.
#[cfg(not(target_os = "none"))]
pub fn rndr() -> Option<u64> {
    None
}
