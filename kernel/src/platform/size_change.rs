//! Whether the size of a live kernel mapping may change.
//!
//! Up to BBM level 2 a core may raise a TLB conflict abort when a block is split under it (Arm ARM D8.17.1), and the
//! kernel cannot survive one at EL1. FEAT_BBML3, level 3 of the same field of ID_AA64MMFR2_EL1, is the promise that it
//! never does. Cores made before that level existed are taken from a list of designs whose makers promise the same, as
//! Linux does. Each CPU must have the one or be on the other; level 2 alone is never enough.

use core::fmt;

use granule_arch::features::{BreakBeforeMake, CpuFeatures};
use linkme::distributed_slice;

use super::design::{ARM, Design, Releases};
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};

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
    /// Every CPU promises it; the boot CPU is of this design.
    Trusted(&'static str),
    /// Every CPU promises it; the boot CPU by FEAT_BBML3.
    Architected,
    /// The CPU with this MIDR neither has FEAT_BBML3 nor is of a design on the list.
    UnknownDesign(u64),
    /// `bbml2=` among the boot arguments decides.
    Overridden(Override),
}

/// The values of `bbml2=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Override {
    /// `trust`: it may, whatever the CPUs are.
    Trust,
    /// `off`: it may not.
    Off,
    /// `boot-cpu`: the boot CPU may, and another one may not, as where that is of an unknown design.
    BootCpu,
}

impl SizeChange {
    /// Whether it may.
    pub fn is_trusted(self) -> bool {
        matches!(self, Self::Trusted(_) | Self::Architected | Self::Overridden(Override::Trust))
    }

    /// Whether it may as far as is known when only the boot CPU runs.
    pub fn is_trusted_at_first(self) -> bool {
        self.is_trusted() || self == Self::Overridden(Override::BootCpu)
    }

    /// The answer for one CPU.
    pub fn of(cpu: &CpuFeatures) -> Self {
        if cpu.bbm() >= BreakBeforeMake::NeverAborts {
            return Self::Architected;
        }
        match TRUSTED.iter().find(|design| design.covers(cpu.midr)) {
            None => Self::UnknownDesign(cpu.midr),
            Some(design) => Self::Trusted(design.name),
        }
    }

    /// The answer for two: the first refusal decides.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self.is_trusted() && !other.is_trusted() { other } else { self }
    }

    /// The decision in effect: the boot argument's, where there is one.
    #[must_use]
    pub fn or_as_told(self) -> Self {
        self.overridden(bootargs::get("bbml2").and_then(parse))
    }

    fn overridden(self, argument: Option<Override>) -> Self {
        argument.map_or(self, Self::Overridden)
    }
}

impl fmt::Display for SizeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trusted(name) => write!(f, "trusted: {name} never raises a TLB conflict abort"),
            Self::Architected => f.write_str("trusted: FEAT_BBML3, no TLB conflict abort is ever raised"),
            Self::UnknownDesign(midr) => {
                write!(f, "not trusted: MIDR {midr:#010x} is on no list of cores without TLB conflict aborts")
            }
            Self::Overridden(Override::Trust) => f.write_str("trusted: bbml2=trust is among the boot arguments"),
            Self::Overridden(Override::Off) => f.write_str("not trusted: bbml2=off is among the boot arguments"),
            Self::Overridden(Override::BootCpu) => {
                f.write_str("not trusted but for the boot CPU: bbml2=boot-cpu is among the boot arguments")
            }
        }
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static BBML2: Parameter = Parameter {
    name: "bbml2",
    help: "bbml2=trust|off|boot-cpu: live leaves may change size, or not, or on the boot CPU alone, whatever the CPUs report",
    check: |value| parse(value).map(drop).ok_or_else(|| Refused::because("trust, off or boot-cpu")),
};

fn parse(value: &str) -> Option<Override> {
    match value {
        "trust" => Some(Override::Trust),
        "off" => Some(Override::Off),
        "boot-cpu" => Some(Override::BootCpu),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use granule_arch::features::CpuFeatures;

    use super::{Override, SizeChange, parse};

    fn cpu(midr: u64, bbm: u64) -> CpuFeatures {
        CpuFeatures { midr, mmfr2: bbm << 52, ..CpuFeatures::default() }
    }

    fn trusted(midr: u64) -> bool {
        SizeChange::of(&cpu(midr, 2)).is_trusted()
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

    const NEOVERSE_N2: u64 = 0x410f_d490;

    #[test]
    fn level_2_is_never_enough_and_level_3_always_is() {
        for bbm in 0..=2 {
            assert_eq!(SizeChange::of(&cpu(NEOVERSE_N2, bbm)), SizeChange::UnknownDesign(NEOVERSE_N2));
        }
        for bbm in [3, 4, 15] {
            assert_eq!(SizeChange::of(&cpu(NEOVERSE_N2, bbm)), SizeChange::Architected);
        }
    }

    #[test]
    fn one_cpu_that_does_not_promise_it_decides_for_all() {
        let [listed, level_3, neither] =
            [(0x000f_0510, 2), (NEOVERSE_N2, 3), (NEOVERSE_N2, 2)].map(|(midr, bbm)| SizeChange::of(&cpu(midr, bbm)));
        assert!(listed.and(level_3).is_trusted() && level_3.and(listed).is_trusted());
        assert_eq!(listed.and(neither).and(level_3), neither);
        assert_eq!(neither.and(listed), neither);
    }

    #[test]
    fn the_boot_argument_decides_where_there_is_one() {
        let (yes, no) = (SizeChange::Architected, SizeChange::UnknownDesign(NEOVERSE_N2));
        assert!(no.overridden(parse("trust")).is_trusted());
        assert_eq!(yes.overridden(parse("off")), SizeChange::Overridden(Override::Off));
        assert_eq!(yes.overridden(parse("maybe")), yes);
        assert_eq!(no.overridden(None), no);
    }
}
