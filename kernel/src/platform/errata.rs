//! Errata of CPUs that the kernel works around, by design and release.
//!
//! On the designs of [`REPEATING`] a TLBI and its DSB may complete while an access through the old
//! translation is still under way on another CPU; a second TLBI, of anything, with a DSB of its own closes the gap.
//! Linux's list of 2026 (`ARM64_WORKAROUND_REPEAT_TLBI`), and its way: one VALE1IS of address 0 after the last DSB,
//! instead of every invalidation twice.
//!
//! On the designs of [`MISREPORTING`] an Instruction Abort may report a wrong address and cause once a page of EL0's has
//! changed from executable to not executable in place: `mprotect` breaks such entries first (Linux:
//! `ptep_modify_prot_start`). The kernel's own code is no such case: an abort there ends in a report at any rate, and its
//! pages cannot fault for a moment.
//!
//! On the designs of [`MISSHARING`] CPUs that share TLB entries by FEAT_TTCNP use entries that are not theirs, or keep what
//! another CPU has invalidated; there nothing is shared (Linux: `ARM64_WORKAROUND_DISABLE_CNP`).
//!
//! On the designs of [`LOSING_DIRT`] the hardware's own update of AP\[2\] may be lost, or hit an entry that changes
//! concurrently; there software does it, by a fault (Linux: `cpu_has_broken_dbm`).

use core::fmt;

use granule_arch::features::{CpuFeatures, HardwareUpdates};
use linkme::distributed_slice;

use super::design::{ARM, Design, Releases};
use crate::bootargs::{self, PARAMETERS, Parameter};

const QUALCOMM: u64 = 0x51;

const fn all(name: &'static str, implementer: u64, part: u64) -> Design {
    Design { name, implementer, part, releases: Releases::All }
}

/// The designs whose invalidations are to be repeated.
const REPEATING: [Design; 30] = [
    // 4118414 and its relatives, CVE-2025-10263.
    all("Cortex-A76", ARM, 0xd0b),
    all("Cortex-A76AE", ARM, 0xd0e),
    all("Cortex-A77", ARM, 0xd0d),
    all("Cortex-A78", ARM, 0xd41),
    all("Cortex-A78AE", ARM, 0xd42),
    all("Cortex-A78C", ARM, 0xd4b),
    all("Cortex-A710", ARM, 0xd47),
    all("Cortex-X1", ARM, 0xd44),
    all("Cortex-X1C", ARM, 0xd4c),
    all("Cortex-X2", ARM, 0xd48),
    all("Cortex-X3", ARM, 0xd4e),
    all("Cortex-X4", ARM, 0xd82),
    all("Cortex-X925", ARM, 0xd85),
    all("C1-Ultra", ARM, 0xd8c),
    all("C1-Premium", ARM, 0xd90),
    all("Neoverse-N1", ARM, 0xd0c),
    all("Neoverse-N2", ARM, 0xd49),
    all("Neoverse-V1", ARM, 0xd40),
    all("Neoverse-V2", ARM, 0xd4f),
    all("Neoverse-V3", ARM, 0xd84),
    all("Neoverse-V3AE", ARM, 0xd83),
    all("Azure Cobalt 100", 0x6d, 0xd49),
    all("NVIDIA Olympus", 0x4e, 0x010),
    // 2441007; 2441009, fixed in r1p2; 1286807 under Qualcomm's number (rcpe to rfpe are Arm's r0p0 to r3p0).
    all("Cortex-A55", ARM, 0xd05),
    Design { name: "Cortex-A510", implementer: ARM, part: 0xd46, releases: Releases::Between((0, 0), (1, 1)) },
    Design {
        name: "Kryo 4xx Gold",
        implementer: QUALCOMM,
        part: 0x804,
        releases: Releases::Between((0xc, 0xe), (0xf, 0xe)),
    },
    // Qualcomm 1009.
    Design { name: "Falkor", implementer: QUALCOMM, part: 0x800, releases: Releases::Between((0, 0), (0, 0)) },
    all("Kryo", QUALCOMM, 0x201),
    all("Kryo", QUALCOMM, 0x205),
    all("Kryo", QUALCOMM, 0x211),
];

/// Whether invalidations are to be repeated, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RepeatTlbi {
    /// No CPU is of a design on the list.
    NotNeeded,
    /// A CPU of this design is among them.
    Needed(&'static str),
    /// `repeat-tlbi` is among the boot arguments.
    Forced,
}

impl RepeatTlbi {
    /// The need of one CPU, by its MIDR_EL1.
    pub fn of(midr: u64) -> Self {
        name_in(&REPEATING, midr).map_or(Self::NotNeeded, Self::Needed)
    }

    /// The need of two CPUs together. An invalidation is for all CPUs, so one that needs it decides.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self.is_needed() { self } else { other }
    }

    /// Whether they are to be repeated.
    pub fn is_needed(self) -> bool {
        self != Self::NotNeeded
    }
}

impl fmt::Display for RepeatTlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNeeded => f.write_str("no: no CPU is on the list of those that need it"),
            Self::Needed(name) => write!(f, "yes: {name} completes an invalidation too early"),
            Self::Forced => f.write_str("yes: repeat-tlbi is among the boot arguments"),
        }
    }
}

/// The designs that misreport aborts on what was executable: 2645198, fixed in r1p1.
const MISREPORTING: [Design; 1] =
    [Design { name: "Cortex-A715", implementer: ARM, part: 0xd4d, releases: Releases::Between((0, 0), (1, 0)) }];

/// The designs that share TLB entries wrongly. HiSilicon's is 162100125.
const MISSHARING: [Design; 2] = [all("NVIDIA Carmel", 0x4e, 0x004), all("HiSilicon HIP09", 0x48, 0xd02)];

/// The design of the CPU with this MIDR_EL1, where `mprotect` is to break entries before it makes code data.
pub fn misreports_former_code(midr: u64) -> Option<&'static str> {
    name_in(&MISREPORTING, midr)
}

/// The design of the CPU with this MIDR_EL1, where it must not share TLB entries with others.
pub fn shares_wrongly(midr: u64) -> Option<&'static str> {
    name_in(&MISSHARING, midr)
}

fn name_in(designs: &[Design], midr: u64) -> Option<&'static str> {
    designs.iter().find(|design| design.covers(midr)).map(|design| design.name)
}

/// The designs whose hardware may lose dirty state.
const LOSING_DIRT: [Design; 2] = [
    // 1024718.
    all("Cortex-A55", ARM, 0xd05),
    // 2051678, fixed in r0p3.
    Design { name: "Cortex-A510", implementer: ARM, part: 0xd46, releases: Releases::Between((0, 0), (0, 2)) },
];

/// The mechanism that notes a write to a page: FEAT_HAFDBS, or a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyState {
    /// The hardware of every CPU.
    Hardware,
    /// Software: a CPU has nothing for it.
    Absent,
    /// Software: a CPU of this design would do it wrong.
    Broken(&'static str),
}

impl DirtyState {
    /// The mechanism of one CPU.
    pub fn of(cpu: &CpuFeatures) -> Self {
        match name_in(&LOSING_DIRT, cpu.midr) {
            Some(name) => Self::Broken(name),
            None if cpu.hafdbs() >= HardwareUpdates::Dirty => Self::Hardware,
            None => Self::Absent,
        }
    }

    /// The mechanism of two CPUs together: the first that lacks it decides.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Hardware { other } else { self }
    }

    /// Switches it on for this CPU, if every CPU has it. TLB entries were walked without it: an invalidation of all of
    /// this CPU's follows.
    pub fn enable(self) {
        #[cfg(target_os = "none")]
        if self == Self::Hardware {
            use aarch64_cpu::registers::{ReadWriteable as _, TCR_EL1};
            TCR_EL1.modify(TCR_EL1::HD::Enable);
        }
    }
}

impl fmt::Display for DirtyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => f.write_str("by hardware"),
            Self::Absent => f.write_str("by faults: a CPU has no FEAT_HAFDBS that does it"),
            Self::Broken(name) => write!(f, "by faults: {name} may lose it"),
        }
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static REPEAT_TLBI: Parameter = Parameter {
    name: "repeat-tlbi",
    help: "issue each TLBI twice, as the errata of some CPUs require",
    check: bootargs::flag,
};

#[cfg(test)]
mod tests {
    use granule_arch::features::CpuFeatures;

    use super::{DirtyState, REPEATING, RepeatTlbi, misreports_former_code, shares_wrongly};

    #[test]
    fn designs_that_misreport_or_share_wrongly_are_known_by_their_releases() {
        for (midr, name) in [(0x410f_d4d0, Some("Cortex-A715")), (0x411f_d4d0, Some("Cortex-A715"))] {
            assert_eq!(misreports_former_code(midr), name);
        }
        // Cortex-A715 r1p1, A720, A710; a core of another maker with the number.
        for midr in [0x411f_d4d1, 0x410f_d811, 0x410f_d470, 0x420f_d4d0] {
            assert_eq!(misreports_former_code(midr), None);
        }
        assert_eq!([0x4e0f_0040, 0x481f_d020].map(shares_wrongly), [Some("NVIDIA Carmel"), Some("HiSilicon HIP09")]);
        // Olympus, TSV110, QEMU max.
        assert_eq!([0x4e0f_0100, 0x481f_d010, 0x000f_0510].map(shares_wrongly), [None; 3]);
    }

    #[test]
    fn one_cpu_without_dirty_state_or_with_a_broken_one_decides_for_all() {
        let cpu = |midr, hafdbs| CpuFeatures { midr, mmfr1: hafdbs, ..CpuFeatures::default() };
        let good = DirtyState::of(&cpu(0x413f_d0c1, 2));
        assert_eq!(good, DirtyState::Hardware);
        assert_eq!(DirtyState::of(&cpu(0x413f_d0c1, 1)), DirtyState::Absent);
        assert_eq!(DirtyState::of(&cpu(0x412f_d050, 2)), DirtyState::Broken("Cortex-A55"));
        assert_eq!(DirtyState::of(&cpu(0x410f_d463, 2)), DirtyState::Hardware, "A510 r0p3");
        assert_eq!(good.and(DirtyState::Absent), DirtyState::Absent);
        assert_eq!(DirtyState::Broken("x").and(good), DirtyState::Broken("x"));
        assert_eq!(good.and(good), good);
    }

    fn needed(midr: u64) -> bool {
        RepeatTlbi::of(midr).is_needed()
    }

    #[test]
    fn designs_on_the_list_repeat_their_invalidations() {
        for (midr, name) in [
            (0x413f_d0c1, "Neoverse-N1"),
            (0x410f_d490, "Neoverse-N2"),
            (0x6d0f_d490, "Azure Cobalt 100"),
            (0x411f_d401, "Neoverse-V1"),
            (0x412f_d050, "Cortex-A55"),
            (0x4e0f_0100, "NVIDIA Olympus"),
        ] {
            assert_eq!(RepeatTlbi::of(midr), RepeatTlbi::Needed(name));
        }
        // Cortex-A53, A57, A72, A520, A720, Neoverse-N3, AmpereOne, QEMU max.
        for midr in
            [0x410f_d034, 0x411f_d070, 0x410f_d083, 0x410f_d801, 0x410f_d811, 0x410f_d8e0, 0xc00f_ac30, 0x000f_0510]
        {
            assert!(!needed(midr), "{midr:#x}");
        }
    }

    #[test]
    fn releases_that_are_fixed_do_not() {
        assert!(needed(0x410f_d460) && needed(0x411f_d461) && !needed(0x411f_d462)); // Cortex-A510 r0p0, r1p1, r1p2
        assert!(!needed(0x51bf_804e) && needed(0x51cf_804e) && needed(0x51ff_804e) && !needed(0x51ff_804f)); // Kryo
    }

    #[test]
    fn one_cpu_that_needs_it_decides_for_all() {
        let fine = RepeatTlbi::of(0x410f_d034);
        let affected = RepeatTlbi::of(0x410f_d0b0);
        assert_eq!(fine.or(fine), RepeatTlbi::NotNeeded);
        assert_eq!(fine.or(affected).or(fine), RepeatTlbi::Needed("Cortex-A76"));
    }

    #[test]
    fn no_design_is_listed_twice() {
        for (index, design) in REPEATING.iter().enumerate() {
            let same = |other: &super::Design| (other.implementer, other.part) == (design.implementer, design.part);
            assert!(!REPEATING[..index].iter().any(same), "{}", design.name);
        }
    }
}
