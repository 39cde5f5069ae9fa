//! RNDR.

#![allow(unsafe_code, reason = "reads RNDR")]

/// A number of the generator, which the CPU has.
#[inline]
pub(crate) fn number() -> Option<u64> {
    let (number, valid): (u64, u64);
    // SAFETY: the register exists, which the value proves; reading it changes nothing but the flags.
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
