//! The random number generator of a CPU (FEAT_RNG; Arm ARM D24.2, RNDR).

#![allow(unsafe_code, reason = "a contract for callers")]

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
    pub fn number(self) -> Option<u64> {
        crate::machine::random::number()
    }
}
