//! A set of CPUs.

use core::fmt;

use super::{CpuId, MAX_CPUS};

/// Some of the CPUs, by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSet(u32);

const _: () = assert!(MAX_CPUS <= u32::BITS as usize);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self(0);

    /// One CPU.
    pub const fn of(cpu: CpuId) -> Self {
        Self(1 << cpu.0)
    }

    /// The CPUs whose bits are set.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// A bit for each CPU.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// These and `cpu`.
    #[must_use]
    pub const fn with(self, cpu: CpuId) -> Self {
        Self(self.0 | 1 << cpu.0)
    }

    /// These but not `cpu`.
    #[must_use]
    pub const fn without(self, cpu: CpuId) -> Self {
        Self(self.0 & !(1 << cpu.0))
    }

    /// These but none of `others`.
    #[must_use]
    pub const fn minus(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether `cpu` is one of them.
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & 1 << cpu.0 != 0
    }

    /// How many there are.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Them, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = CpuId> {
        (0..u32::BITS).map(CpuId).filter(move |&cpu| self.contains(cpu))
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|cpu| cpu.0)).finish()
    }
}
