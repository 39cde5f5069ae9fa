//! Which core a CPU is: MIDR_EL1 (Arm ARM D24.2.122) against the entries of a list.

use aarch64_cpu::registers::MIDR_EL1;

/// MIDR_EL1.Implementer of Arm Limited.
pub const ARM: u64 = 0x41;

/// A core by its maker's name, or some releases of it.
pub struct Design {
    /// For people.
    pub name: &'static str,
    /// MIDR_EL1.Implementer.
    pub implementer: u64,
    /// MIDR_EL1.PartNum.
    pub part: u64,
    /// Which of them.
    pub releases: Releases,
}

/// Releases of a design: `(n, m)` is what its maker calls rnpm, variant and revision.
pub enum Releases {
    /// Every one.
    All,
    /// From the first to the last, both included.
    Between((u64, u64), (u64, u64)),
}

impl Design {
    /// Whether the CPU with this MIDR_EL1 is one.
    pub fn covers(&self, midr: u64) -> bool {
        let release = (MIDR_EL1::Variant.read(midr), MIDR_EL1::Revision.read(midr));
        MIDR_EL1::Implementer.read(midr) == self.implementer
            && MIDR_EL1::PartNum.read(midr) == self.part
            && match self.releases {
                Releases::All => true,
                Releases::Between(first, last) => first <= release && release <= last,
            }
    }
}
