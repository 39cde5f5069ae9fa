//! The features of a CPU, from its ID registers (Arm ARM D24.2, and D24.1.3 on how their fields are to be compared).
//!
//! `CpuFeatures::read` copies the registers of the CPU that runs; [`CpuFeatures::least`] makes of two CPUs the one that
//! both are at least, which is what a kernel that runs on both may use. The accessors give fields a meaning; no code
//! above this file decodes an ID register.

use core::fmt;

use arm_sysregs::el0::registers::CtrEl0;
use arm_sysregs::el1::registers::{
    IdAa64dfr0El1, IdAa64isar0El1, IdAa64isar1El1, IdAa64isar2El1, IdAa64mmfr0El1, IdAa64mmfr1El1, IdAa64mmfr2El1,
    IdAa64pfr0El1, IdAa64pfr1El1,
};

use crate::cache::CodeCaches;
use crate::sysreg::{DCZID_EL0_DZP, EVENT_INST_RETIRED};

/// The identification registers of a CPU, or of the least of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuFeatures {
    /// MIDR_EL1: which design it is. Zero where several CPUs differ.
    pub midr: u64,
    /// ID_AA64ISAR0_EL1.
    pub isar0: u64,
    /// ID_AA64ISAR1_EL1.
    pub isar1: u64,
    /// ID_AA64ISAR2_EL1.
    pub isar2: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
    /// ID_AA64MMFR3_EL1.
    pub mmfr3: u64,
    /// ID_AA64MMFR4_EL1.
    pub mmfr4: u64,
    /// ID_AA64PFR0_EL1.
    pub pfr0: u64,
    /// ID_AA64PFR1_EL1.
    pub pfr1: u64,
    /// ID_AA64DFR0_EL1, PMUVer 0xf (a PMU that is not Arm's) given as 0 (none).
    pub dfr0: u64,
    /// CTR_EL0.
    pub ctr: u64,
    /// DCZID_EL0.
    pub dczid: u64,
    /// PMCEID0_EL0; zero without a PMU.
    pub pmceid0: u64,
}

/// The translation granules that stage 1 may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granules {
    /// 4 KiB.
    pub k4: bool,
    /// 16 KiB.
    pub k16: bool,
    /// 64 KiB.
    pub k64: bool,
}

/// The updates that the hardware makes to descriptors by itself (FEAT_HAFDBS).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HardwareUpdates {
    /// Nothing.
    None,
    /// The access flag.
    AccessFlag,
    /// The access flag and the dirty state.
    Dirty,
    /// Those, and the access flag of table descriptors (FEAT_HAFT).
    TableAccessFlag,
}

/// Privileged access never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pan {
    /// Not there.
    None,
    /// PSTATE.PAN.
    Pan,
    /// And AT S1E1RP, AT S1E1WP.
    Pan2,
    /// And execute-only pages of EL0 are covered.
    Epan,
}

/// The memory tagging extension.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mte {
    /// Not there.
    None,
    /// Its instructions exist, but memory holds no tags.
    Instructions,
    /// Tags in memory, checked.
    Tags,
    /// And loads checked synchronously while stores are not.
    Asymmetric,
}

/// The rule of ID_AA64MMFR2_EL1.BBM for changing the size of a live entry. Later levels promise what the last does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BreakBeforeMake {
    /// Level 0: break-before-make is required.
    Required,
    /// Level 1: not where the nT bit is used.
    BlockTranslation,
    /// Level 2: not required; a TLB conflict abort is possible.
    NotRequired,
    /// Level 3 (FEAT_BBML3): not required, and there is no TLB conflict abort.
    NeverAborts,
}

/// The performance monitors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pmu {
    /// ID_AA64DFR0_EL1.PMUVer: 1 is PMUv3, 4 is PMUv3p1, 5 p4, 6 p5, 7 p7, 8 p8, 9 p9.
    pub version: u8,
    /// Whether event 8 is counted, instructions architecturally executed.
    pub instructions: bool,
}

/// Of two registers of four-bit fields the lower one in each field. Where the bits of `signed` are set, the field is a
/// two's complement number (in these 0xf means that something is not there).
#[inline(never)]
const fn least_fields(a: u64, b: u64, signed: u64) -> u64 {
    let mut result = 0;
    let mut shift = 0;
    while shift < 64 {
        let mask = 0xf << shift;
        // Flipping the top bit of a signed field orders it as if it were unsigned.
        let flip = signed & (8 << shift);
        let (x, y) = ((a ^ flip) & mask, (b ^ flip) & mask);
        result |= (if x < y { x } else { y }) ^ flip;
        shift += 4;
    }
    result
}

/// ID_AA64MMFR0_EL1: TGran4 and TGran64 are signed.
const SIGNED_MMFR0: u64 = 0xff << 24;
/// ID_AA64MMFR4_EL1: E2H0 is signed.
const SIGNED_MMFR4: u64 = 0xf << 24;
/// ID_AA64PFR0_EL1: AdvSIMD and FP are signed.
const SIGNED_PFR0: u64 = 0xff << 16;

/// The register with a PMU that is not Arm's (PMUVer 0xf) as none (0).
#[cfg(any(target_os = "none", test))]
fn with_pmu_of_arm(mut dfr0: IdAa64dfr0El1) -> IdAa64dfr0El1 {
    if dfr0.pmuver() == 0xf {
        dfr0.set_pmuver(0);
    }
    dfr0
}

impl CpuFeatures {
    /// Reads the registers of this CPU.
    #[cfg(target_os = "none")]
    pub fn read() -> Self {
        use arm_sysregs::el0::accessors::read_ctr_el0;
        use arm_sysregs::el1::accessors::{
            read_id_aa64dfr0_el1, read_id_aa64isar0_el1, read_id_aa64isar1_el1, read_id_aa64isar2_el1,
            read_id_aa64mmfr0_el1, read_id_aa64mmfr1_el1, read_id_aa64mmfr2_el1, read_id_aa64mmfr3_el1,
            read_id_aa64mmfr4_el1, read_id_aa64pfr0_el1, read_id_aa64pfr1_el1, read_midr_el1,
        };

        use crate::sysreg::{read_dczid_el0, read_pmceid0_el0};

        let dfr0 = with_pmu_of_arm(read_id_aa64dfr0_el1());
        Self {
            midr: read_midr_el1().bits(),
            isar0: read_id_aa64isar0_el1().bits(),
            isar1: read_id_aa64isar1_el1().bits(),
            isar2: read_id_aa64isar2_el1().bits(),
            mmfr0: read_id_aa64mmfr0_el1().bits(),
            mmfr1: read_id_aa64mmfr1_el1().bits(),
            mmfr2: read_id_aa64mmfr2_el1().bits(),
            mmfr3: read_id_aa64mmfr3_el1().bits(),
            mmfr4: read_id_aa64mmfr4_el1().bits(),
            pfr0: read_id_aa64pfr0_el1().bits(),
            pfr1: read_id_aa64pfr1_el1().bits(),
            dfr0: dfr0.bits(),
            ctr: read_ctr_el0().bits(),
            dczid: read_dczid_el0(),
            pmceid0: if dfr0.pmuver() == 0 { 0 } else { read_pmceid0_el0() },
        }
    }

    /// The features that both have. Commutative and associative, so that it can be folded over all CPUs in any order.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        Self {
            midr: if self.midr == other.midr { self.midr } else { 0 },
            isar0: least_fields(self.isar0, other.isar0, 0),
            isar1: least_fields(self.isar1, other.isar1, 0),
            isar2: least_fields(self.isar2, other.isar2, 0),
            mmfr0: least_fields(self.mmfr0, other.mmfr0, SIGNED_MMFR0),
            mmfr1: least_fields(self.mmfr1, other.mmfr1, 0),
            mmfr2: least_fields(self.mmfr2, other.mmfr2, 0),
            mmfr3: least_fields(self.mmfr3, other.mmfr3, 0),
            mmfr4: least_fields(self.mmfr4, other.mmfr4, SIGNED_MMFR4),
            pfr0: least_fields(self.pfr0, other.pfr0, SIGNED_PFR0),
            pfr1: least_fields(self.pfr1, other.pfr1, 0),
            dfr0: least_fields(self.dfr0, other.dfr0, 0),
            ctr: least_cache_type(self.ctr, other.ctr),
            dczid: least_block_zero(self.dczid, other.dczid),
            pmceid0: self.pmceid0 & other.pmceid0,
        }
    }

    /// Bits of a physical address.
    pub const fn pa_bits(&self) -> u32 {
        by_number(field(self.mmfr0, IdAa64mmfr0El1::PARANGE_SHIFT), [32, 36, 40, 42, 44, 48, 52, 56])
    }

    /// Bits of a virtual address that the CPU could translate (the kernel uses 48).
    pub const fn va_bits(&self) -> u32 {
        by_number(field(self.mmfr2, IdAa64mmfr2El1::VARANGE_SHIFT), [48, 52, 56])
    }

    /// The granules of stage 1.
    pub fn granules(&self) -> Granules {
        Granules {
            k4: field(self.mmfr0, IdAa64mmfr0El1::TGRAN4_SHIFT) < 8,
            k16: field(self.mmfr0, IdAa64mmfr0El1::TGRAN16_SHIFT) != 0,
            k64: field(self.mmfr0, IdAa64mmfr0El1::TGRAN64_SHIFT) < 8,
        }
    }

    /// Bits of an ASID.
    pub fn asid_bits(&self) -> u32 {
        if field(self.mmfr0, IdAa64mmfr0El1::ASIDBITS_SHIFT) >= 2 { 16 } else { 8 }
    }

    /// The updates that the hardware makes to descriptors by itself.
    pub fn hafdbs(&self) -> HardwareUpdates {
        match field(self.mmfr1, IdAa64mmfr1El1::HAFDBS_SHIFT) {
            0 => HardwareUpdates::None,
            1 => HardwareUpdates::AccessFlag,
            2 => HardwareUpdates::Dirty,
            _ => HardwareUpdates::TableAccessFlag,
        }
    }

    /// Privileged access never.
    pub fn pan(&self) -> Pan {
        match field(self.mmfr1, IdAa64mmfr1El1::PAN_SHIFT) {
            0 => Pan::None,
            1 => Pan::Pan,
            2 => Pan::Pan2,
            _ => Pan::Epan,
        }
    }

    /// FEAT_E0PD: accesses of EL0 to the kernel's half can fault without a walk.
    pub fn e0pd(&self) -> bool {
        field(self.mmfr2, IdAa64mmfr2El1::E0PD_SHIFT) >= 1
    }

    /// FEAT_TTCNP: CPUs may mark their tables as shared.
    pub fn cnp(&self) -> bool {
        field(self.mmfr2, IdAa64mmfr2El1::CNP_SHIFT) >= 1
    }

    /// FEAT_ETS2: a walk sees an entry that an earlier access in program order has seen.
    pub fn ets2(&self) -> bool {
        field(self.mmfr1, IdAa64mmfr1El1::ETS_SHIFT) >= 2
    }

    /// The ID register's level for a change of size of a live entry. Whether that is trusted is the kernel's decision.
    pub fn bbm(&self) -> BreakBeforeMake {
        match field(self.mmfr2, IdAa64mmfr2El1::BBM_SHIFT) {
            0 => BreakBeforeMake::Required,
            1 => BreakBeforeMake::BlockTranslation,
            2 => BreakBeforeMake::NotRequired,
            _ => BreakBeforeMake::NeverAborts,
        }
    }

    /// FEAT_TLBIRANGE: TLBI by range.
    pub fn tlb_range(&self) -> bool {
        field(self.isar0, IdAa64isar0El1::TLB_SHIFT) >= 2
    }

    /// FEAT_TTL: a TLBI may carry the leaf's level.
    pub fn ttl(&self) -> bool {
        field(self.mmfr2, IdAa64mmfr2El1::TTL_SHIFT) >= 1
    }

    /// The memory tagging extension.
    pub fn mte(&self) -> Mte {
        match field(self.pfr1, IdAa64pfr1El1::MTE_SHIFT) {
            0 => Mte::None,
            1 => Mte::Instructions,
            2 => Mte::Tags,
            _ => Mte::Asymmetric,
        }
    }

    /// FEAT_LSE: atomic instructions.
    pub fn lse(&self) -> bool {
        field(self.isar0, IdAa64isar0El1::ATOMIC_SHIFT) >= 2
    }

    /// FEAT_RNG: the CPU has a random number generator.
    pub fn rng(&self) -> bool {
        field(self.isar0, IdAa64isar0El1::RNDR_SHIFT) >= 1
    }

    /// FEAT_MOPS: memory copy and set instructions.
    pub fn mops(&self) -> bool {
        field(self.isar2, IdAa64isar2El1::MOPS_SHIFT) >= 1
    }

    /// FEAT_SB: a barrier to speculation.
    pub fn sb(&self) -> bool {
        field(self.isar1, IdAa64isar1El1::SB_SHIFT) >= 1
    }

    /// FEAT_CSV2: what code of one exception level, or of one context, has trained does not decide another's branches. 0: no
    /// promise; 1, 2: not the targets; 3: not the history either.
    pub fn csv2(&self) -> u64 {
        field(self.pfr0, IdAa64pfr0El1::CSV2_SHIFT)
    }

    /// FEAT_CSV3: what a load that faults would have read is not used in speculation.
    pub fn csv3(&self) -> bool {
        field(self.pfr0, IdAa64pfr0El1::CSV3_SHIFT) >= 1
    }

    /// FEAT_SSBS: PSTATE.SSBS forbids loads to pass older stores.
    pub fn ssbs(&self) -> bool {
        field(self.pfr1, IdAa64pfr1El1::SSBS_SHIFT) >= 1
    }

    /// FEAT_ECBHB: the history of branches of EL0 does not decide those of EL1.
    pub fn ecbhb(&self) -> bool {
        field(self.mmfr1, IdAa64mmfr1El1::ECBHB_SHIFT) >= 1
    }

    /// FEAT_BTI: branch target identification.
    pub fn bti(&self) -> bool {
        field(self.pfr1, IdAa64pfr1El1::BT_SHIFT) >= 1
    }

    /// The performance monitors.
    pub fn pmu(&self) -> Option<Pmu> {
        match field(self.dfr0, IdAa64dfr0El1::PMUVER_SHIFT) as u8 {
            0 => None,
            version => Some(Pmu { version, instructions: self.pmceid0 & 1 << EVENT_INST_RETIRED != 0 }),
        }
    }

    /// Properties of the caches that decide how fetches come to see new code.
    pub fn code_caches(&self) -> CodeCaches {
        CodeCaches::of(self.ctr)
    }

    /// Bytes that DC ZVA zeroes; `None` where it is prohibited.
    pub fn dc_zva(&self) -> Option<usize> {
        if self.dczid & DCZID_EL0_DZP == 0 { Some(4 << field(self.dczid, 0)) } else { None }
    }
}

/// A field of an ID register.
const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

/// The meaning of the value of a field: the last of `meanings` is also that of the values which are greater.
const fn by_number<T: Copy, const N: usize>(value: u64, meanings: [T; N]) -> T {
    meanings[if value < N as u64 { value as usize } else { N - 1 }]
}

/// CTR_EL0: the shorter line, and maintenance left out only where both may; of the granules the larger, unknown (0)
/// before all.
fn least_cache_type(a: u64, b: u64) -> u64 {
    let smaller = |shift| field(a, shift).min(field(b, shift)) << shift;
    let granule = |shift| match (field(a, shift), field(b, shift)) {
        (0, _) | (_, 0) => 0,
        (x, y) => x.max(y) << shift,
    };
    a & b & (CtrEl0::DIC | CtrEl0::IDC).bits()
        | smaller(CtrEl0::DMINLINE_SHIFT)
        | smaller(CtrEl0::IMINLINE_SHIFT)
        | granule(CtrEl0::CWG_SHIFT)
        | granule(CtrEl0::ERG_SHIFT)
}

/// DCZID_EL0: usable only where both zero blocks of the same size.
fn least_block_zero(a: u64, b: u64) -> u64 {
    if a == b { a } else { DCZID_EL0_DZP }
}

impl fmt::Display for Granules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (has, name) in [(self.k4, "4K"), (self.k16, "16K"), (self.k64, "64K")] {
            if has {
                write!(f, "{separator}{name}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

impl fmt::Display for HardwareUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "no",
            Self::AccessFlag => "access flag",
            Self::Dirty => "access flag, dirty state",
            Self::TableAccessFlag => "access flag (tables too), dirty state",
        })
    }
}

impl fmt::Display for Pan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "no",
            Self::Pan => "yes",
            Self::Pan2 => "yes, and in AT instructions",
            Self::Epan => "yes, and of execute-only pages",
        })
    }
}

impl fmt::Display for Mte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "no",
            Self::Instructions => "instructions only, memory holds no tags",
            Self::Tags => "tags, synchronous and asynchronous",
            Self::Asymmetric => "tags, synchronous, asynchronous and asymmetric",
        })
    }
}

impl fmt::Display for BreakBeforeMake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Required => "level 0",
            Self::BlockTranslation => "level 1",
            Self::NotRequired => "level 2",
            Self::NeverAborts => "level 3",
        })
    }
}

impl fmt::Display for Pmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = if self.instructions { "counts instructions" } else { "does not count instructions" };
        write!(f, "version {}, {counts}", self.version)
    }
}

/// One line for each feature that the kernel asks about, in two columns.
impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |has: bool| if has { "yes" } else { "no" };
        writeln!(f, "VA size    {} bits", self.va_bits())?;
        writeln!(f, "PA size    {} bits", self.pa_bits())?;
        writeln!(f, "granules   {}", self.granules())?;
        writeln!(f, "ASID       {} bits", self.asid_bits())?;
        writeln!(f, "HAFDBS     {}", self.hafdbs())?;
        writeln!(f, "PAN        {}", self.pan())?;
        writeln!(f, "E0PD       {}", yes(self.e0pd()))?;
        writeln!(f, "CNP        {}", yes(self.cnp()))?;
        writeln!(f, "ETS2       {}", yes(self.ets2()))?;
        writeln!(f, "BBM        {}", self.bbm())?;
        writeln!(f, "TLBIRANGE  {}", yes(self.tlb_range()))?;
        writeln!(f, "TTL        {}", yes(self.ttl()))?;
        writeln!(f, "MTE        {}", self.mte())?;
        writeln!(f, "LSE        {}", yes(self.lse()))?;
        writeln!(f, "MOPS       {}", yes(self.mops()))?;
        writeln!(f, "BTI        {}", yes(self.bti()))?;
        match self.dc_zva() {
            Some(bytes) => writeln!(f, "DC ZVA     {bytes} bytes")?,
            None => writeln!(f, "DC ZVA     no")?,
        }
        match self.pmu() {
            Some(pmu) => write!(f, "PMU        {pmu}"),
            None => write!(f, "PMU        no"),
        }
    }
}

#[cfg(test)]
mod tests;
