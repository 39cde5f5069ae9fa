//! The registers of floating point, as they lie in memory.

/// The registers of floating point.
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FpState {
    /// V0 to V31.
    pub v: [u128; 32],
    /// FPSR.
    pub fpsr: u32,
    /// FPCR.
    pub fpcr: u32,
}

impl FpState {
    /// As a program finds them: all zero.
    pub const ZERO: Self = Self { v: [0; 32], fpsr: 0, fpcr: 0 };

    /// Whether they are.
    pub fn is_zero(&self) -> bool {
        self.v.iter().fold(u128::from(self.fpsr | self.fpcr), |bits, register| bits | register) == 0
    }
}
