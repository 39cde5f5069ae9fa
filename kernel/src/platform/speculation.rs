//! Speculation of the CPUs that the kernel does not mitigate: a line at boot and in `features`, as Linux has
//! its own in `/sys/devices/system/cpu/vulnerabilities`.
//!
//! Against Spectre v1 a number of EL0's indexes a table by [`granule_arch::speculation`], and barriers follow each ERET.
//! Speculative store bypass is off where there is FEAT_SSBS: SCTLR_EL1.DSSBS is zero, and a program begins with SSBS
//! clear. Mitigations that take more are not there: no page tables of EL0's own (KPTI), no call of the firmware
//! (`SMCCC_ARCH_WORKAROUND_1` to `_3`), no loop or CLRBHB at entry.

use core::fmt;

use granule_arch::features::CpuFeatures;

use super::design::{ARM, Design, Releases};

/// A way by which EL0 may learn what the kernel's speculation has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Weakness {
    /// Branches of EL0 train those of EL1 (Spectre v2): not with FEAT_CSV2.
    BranchTargets = 1,
    /// The history of branches does (Spectre-BHB): not with CSV2 = 3 or FEAT_ECBHB.
    BranchHistory = 2,
    /// Loads of EL0 pass the permissions of the kernel's pages (Meltdown): not with FEAT_CSV3.
    KernelPages = 4,
    /// Loads pass older stores: PSTATE.SSBS forbids it, where there is FEAT_SSBS.
    StoreBypass = 8,
}

const ALL: [(Weakness, &str); 4] = [
    (Weakness::BranchTargets, "branch targets (no CSV2)"),
    (Weakness::BranchHistory, "branch history (no ECBHB)"),
    (Weakness::KernelPages, "the kernel's pages (no CSV3)"),
    (Weakness::StoreBypass, "store bypass (no SSBS)"),
];

/// Those that some CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weaknesses(u8);

const fn all(name: &'static str, part: u64) -> Design {
    Design { name, implementer: ARM, part, releases: Releases::All }
}

/// Cores that execute in order, or next to it, and have none of these weaknesses (Linux: the safe lists of
/// arch/arm64/kernel/proton-pack.c).
const IN_ORDER: [Design; 5] = [
    all("Cortex-A35", 0xd04),
    all("Cortex-A53", 0xd03),
    all("Cortex-A55", 0xd05),
    all("Cortex-A510", 0xd46),
    all("Cortex-A520", 0xd80),
];

/// Cores without FEAT_CSV3 whose loads do not pass the permissions (Linux: `kpti_safe_list`).
const KEEP_PERMISSIONS: [Design; 3] = [all("Cortex-A57", 0xd07), all("Cortex-A72", 0xd08), all("Cortex-A73", 0xd09)];

impl Weaknesses {
    /// Of one CPU.
    pub fn of(cpu: &CpuFeatures) -> Self {
        let is_of = |designs: &[Design]| designs.iter().any(|design| design.covers(cpu.midr));
        if is_of(&IN_ORDER) {
            return Self::default();
        }
        let has = |weakness| match weakness {
            Weakness::BranchTargets => cpu.csv2() == 0,
            Weakness::BranchHistory => cpu.csv2() < 3 && !cpu.ecbhb(),
            Weakness::KernelPages => !cpu.csv3() && !is_of(&KEEP_PERMISSIONS),
            Weakness::StoreBypass => !cpu.ssbs(),
        };
        Self(ALL.iter().filter(|(weakness, _)| has(*weakness)).fold(0, |all, (weakness, _)| all | *weakness as u8))
    }

    /// Those of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Weaknesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("mitigated, as far as these CPUs need it");
        }
        f.write_str("NOT mitigated: ")?;
        let there = ALL.iter().filter(|(weakness, _)| self.0 & *weakness as u8 != 0);
        for (place, (_, name)) in there.enumerate() {
            write!(f, "{}{name}", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use granule_arch::features::CpuFeatures;

    use super::Weaknesses;

    fn cpu(midr: u64) -> CpuFeatures {
        CpuFeatures { midr, ..CpuFeatures::default() }
    }

    #[test]
    fn what_a_cpu_needs_and_does_not_get_is_said() {
        let none = "mitigated, as far as these CPUs need it";
        let text = |cpu: &CpuFeatures| Weaknesses::of(cpu).to_string();
        assert_eq!(text(&cpu(0x410f_d034)), none);
        // Cortex-A72.
        let a72 = "NOT mitigated: branch targets (no CSV2), branch history (no ECBHB), store bypass (no SSBS)";
        assert_eq!(text(&cpu(0x410f_d083)), a72);
        // One of a design that is not known, with one field after the other.
        let mut other = cpu(0x000f_0510);
        assert!(text(&other).ends_with("the kernel's pages (no CSV3), store bypass (no SSBS)"));
        other.pfr0 = 1 << 60 | 1 << 56;
        assert_eq!(text(&other), "NOT mitigated: branch history (no ECBHB), store bypass (no SSBS)");
        other.pfr1 = 1 << 4;
        assert_eq!(text(&other), "NOT mitigated: branch history (no ECBHB)");
        let mut cleared = other;
        cleared.mmfr1 = 1 << 60;
        other.pfr0 = 1 << 60 | 3 << 56;
        assert_eq!((text(&cleared).as_str(), text(&other).as_str()), (none, none));
        assert_eq!(Weaknesses::of(&other).or(Weaknesses::of(&cpu(0x410f_d083))).to_string(), a72);
    }
}
