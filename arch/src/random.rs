//! The random number generator of a CPU (FEAT_RNG; Arm ARM D24.2, RNDR).

#![allow(unsafe_code, reason = "reads RNDR")]

/// The generator of the CPUs. A value proves that every CPU has it: elsewhere RNDR is UNDEFINED.
#[derive(Clone, Copy, Debug)]
pub struct Rndr(());

impl Rndr {
    /// Vouches for the generator.
    ///
    /// # Safety
    /// 1. Every CPU that uses the value or a copy of it has FEAT_RNG ([`CpuFeatures::rng`]).
    /// 2. No higher exception level traps RNDR (SCR_EL3.TRNDR).
    ///
    /// [`CpuFeatures::rng`]: crate::features::CpuFeatures::rng
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// A random number of this CPU's generator; `None` where the generator has none for the moment.
    #[cfg(target_os = "none")]
    pub fn number(self) -> Option<u64> {
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

    /// On the host there is none.
    #[cfg(not(target_os = "none"))]
    pub fn number(self) -> Option<u64> {
        None
    }
}
