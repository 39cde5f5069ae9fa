//! What all CPUs can do together, and whether the size of a live kernel mapping may change.
//!
//! The least of the CPUs wins, field by field; every CPU has put its ID registers aside before the first of them uses a
//! feature. One question is not answered by the ID registers: a core of BBM level 2 may still raise a TLB conflict
//! abort when a block is split under it, and the kernel cannot survive one at EL1. So the promise that it never does is
//! taken from a list of designs, as Linux does, and all CPUs must be on it. The level alone is never enough; nor is it
//! asked for, since the promise is the stronger one.

use core::fmt;

use granule_arch::features::{CpuFeatures, HardwareUpdates};
use granule_arch::memory;

use super::design::{ARM, Design, Releases};
use super::errata::{DirtyState, RepeatTlbi};

/// The designs that are trusted. The Arm cores are bounded to variant 0, so a later variant needs its own entry.
const TRUSTED: [Design; 7] = [
    Design { name: "Cortex-X4", implementer: ARM, part: 0xd82, releases: Releases::Between((0, 3), (0, 15)) },
    Design { name: "Neoverse-V3AE", implementer: ARM, part: 0xd83, releases: Releases::Between((0, 2), (0, 15)) },
    Design { name: "Neoverse-V3", implementer: ARM, part: 0xd84, releases: Releases::Between((0, 2), (0, 15)) },
    Design { name: "NVIDIA Olympus", implementer: 0x4e, part: 0x010, releases: Releases::All },
    Design { name: "AmpereOne", implementer: 0xc0, part: 0xac3, releases: Releases::All },
    Design { name: "AmpereOne A", implementer: 0xc0, part: 0xac4, releases: Releases::All },
    // QEMU's own model under TCG, whose TLB keeps single pages: no implementer, part number 'Q'.
    Design { name: "QEMU max", implementer: 0x00, part: 0x051, releases: Releases::All },
];

/// Whether the size of a live kernel mapping may change without break-before-make, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeChange {
    /// Every CPU is of a design that never raises a TLB conflict abort; the name is the boot CPU's.
    Trusted(&'static str),
    /// The CPU with this MIDR is of no design on the list.
    UnknownDesign(u64),
}

impl SizeChange {
    /// Whether it may.
    pub fn is_trusted(self) -> bool {
        matches!(self, Self::Trusted(_))
    }

    /// What one CPU says.
    fn of(cpu: &CpuFeatures) -> Self {
        match TRUSTED.iter().find(|design| design.covers(cpu.midr)) {
            None => Self::UnknownDesign(cpu.midr),
            Some(design) => Self::Trusted(design.name),
        }
    }

    /// What two say together: the first that objects decides.
    fn and(self, other: Self) -> Self {
        if self.is_trusted() && !other.is_trusted() { other } else { self }
    }
}

impl fmt::Display for SizeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trusted(name) => write!(f, "trusted: {name} never raises a TLB conflict abort"),
            Self::UnknownDesign(midr) => {
                write!(f, "not trusted: MIDR {midr:#010x} is on no list of cores without TLB conflict aborts")
            }
        }
    }
}

/// Identifiers of features that hot code asks for by a patched branch (`granule_arch::patched_branch!`); those of the
/// memory routines are in `granule_arch::memory`.
pub mod branch {
    /// FEAT_TLBIRANGE.
    pub const TLB_RANGE: u16 = 0;
    /// FEAT_TTL.
    pub const TLB_LEVEL: u16 = 1;
    /// An erratum of a CPU that one more invalidation works around.
    pub const REPEAT_TLBI: u16 = 2;
    /// No feature: barriers and invalidations are counted (`crate::mm::maintenance`).
    pub const COUNT: u16 = 3;
    /// CTR_EL0.IDC.
    pub const IDC: u16 = 4;
    /// CTR_EL0.DIC.
    pub const DIC: u16 = 5;

    /// FEAT_TTCNP: CPUs may share what they cache under one TTBR.
    pub const CNP: u16 = 6;

    /// FEAT_HAFDBS: walks set the access flag.
    pub const ACCESS_FLAG: u16 = 7;

    const _: () = assert!(ACCESS_FLAG < granule_arch::memory::branch::MOPS);
}

/// What the CPUs of the system have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemFeatures {
    /// The least of all CPUs.
    pub cpus: CpuFeatures,
    /// Whether the size of a live kernel mapping may change.
    pub size_change: SizeChange,
    /// Whether a completed invalidation is to be followed by one more.
    pub repeat_tlbi: RepeatTlbi,
    /// Whether the hardware is to note by itself that a page was written.
    pub dirty_state: DirtyState,
}

impl SystemFeatures {
    /// A system of one CPU.
    pub fn new(boot_cpu: &CpuFeatures) -> Self {
        Self {
            cpus: *boot_cpu,
            size_change: SizeChange::of(boot_cpu),
            repeat_tlbi: RepeatTlbi::of(boot_cpu.midr),
            dirty_state: DirtyState::of(boot_cpu),
        }
    }

    /// Whether the branch sites with this identifier, one of [`branch`], are to be taken; `false` for any other.
    pub fn takes(&self, identifier: u16) -> bool {
        match identifier {
            branch::TLB_RANGE => self.cpus.tlb_range(),
            branch::TLB_LEVEL => self.cpus.ttl(),
            branch::IDC => self.cpus.idc(),
            branch::DIC => self.cpus.dic(),
            branch::CNP => self.cpus.cnp(),
            branch::ACCESS_FLAG => self.cpus.hafdbs() >= HardwareUpdates::AccessFlag,
            memory::branch::MOPS => self.cpus.mops(),
            memory::branch::DC_ZVA => self.cpus.dc_zva().is_some(),
            branch::REPEAT_TLBI => self.repeat_tlbi.is_needed(),
            _ => false,
        }
    }

    /// The system with one CPU more. No feature can be gained by it.
    pub fn add(&mut self, cpu: &CpuFeatures) {
        self.cpus = self.cpus.least(cpu);
        self.size_change = self.size_change.and(SizeChange::of(cpu));
        self.repeat_tlbi = self.repeat_tlbi.or(RepeatTlbi::of(cpu.midr));
        self.dirty_state = self.dirty_state.and(DirtyState::of(cpu));
    }
}

/// A line for each feature, for the monitor's `features`.
impl fmt::Display for SystemFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.cpus)?;
        writeln!(f, "live size change {}", self.size_change)?;
        writeln!(f, "TLBI repeated    {}", self.repeat_tlbi)?;
        write!(f, "dirty state      {}", self.dirty_state)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use granule_arch::features::CpuFeatures;

    use super::{SizeChange, SystemFeatures};

    const BBM_2: u64 = 2 << 52;

    fn cpu(midr: u64) -> CpuFeatures {
        CpuFeatures { midr, mmfr2: BBM_2, ..CpuFeatures::default() }
    }

    fn trusted(midr: u64) -> bool {
        SizeChange::of(&cpu(midr)).is_trusted()
    }

    #[test]
    fn designs_on_the_list_are_trusted_from_their_revision_on() {
        assert!(trusted(0x410f_d823) && trusted(0x410f_d824)); // Cortex-X4 r0p3, r0p4
        assert!(!trusted(0x410f_d822)); // r0p2
        assert!(!trusted(0x411f_d823)); // r1p3: a variant of which nothing is promised
        assert!(trusted(0x410f_d842) && !trusted(0x410f_d841)); // Neoverse-V3
        assert!(trusted(0x410f_d832) && !trusted(0x410f_d831)); // Neoverse-V3AE
        assert!(trusted(0xc00f_ac30) && trusted(0xc00f_ac40)); // AmpereOne, A
        assert!(trusted(0x4e0f_0100)); // Olympus
        assert!(trusted(0x000f_0510)); // QEMU max
    }

    #[test]
    fn the_level_alone_is_never_enough() {
        assert_eq!(SizeChange::of(&cpu(0x410f_d490)), SizeChange::UnknownDesign(0x410f_d490)); // Neoverse-N2: BBM 2
    }

    #[test]
    fn one_cpu_that_is_not_on_the_list_decides_for_all() {
        let mut system = SystemFeatures::new(&cpu(0x410f_d823));
        assert!(system.size_change.is_trusted());
        system.add(&cpu(0x410f_d824));
        assert!(system.size_change.is_trusted());
        system.add(&cpu(0x410f_d034));
        system.add(&cpu(0x410f_d823));
        assert_eq!(system.size_change, SizeChange::UnknownDesign(0x410f_d034));
        assert!(system.to_string().contains(
            "live size change not trusted: MIDR 0x410fd034 is on no list of cores without TLB conflict aborts\n"
        ));
    }
}
