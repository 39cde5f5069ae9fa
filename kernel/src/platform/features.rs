//! The features that all CPUs have.
//!
//! The least of the CPUs wins, field by field; every CPU has put its ID registers aside before the first of them uses a
//! feature. Each CPU's design decides where the registers do not suffice: [`SizeChange`], [`RepeatTlbi`].

use core::fmt;

use granule_arch::features::{CpuFeatures, HardwareUpdates, Mte, Pan};
use granule_arch::memory;
use granule_arch::tag_check::TagCheck;

use super::errata::{self, DirtyState, RepeatTlbi};
use super::size_change::SizeChange;
use super::speculation::Weaknesses;

/// Identifiers of features that hot code asks for by a patched branch (`granule_arch::patched_branch!`); those of the
/// memory routines are in `granule_arch::memory`.
pub mod branch {
    use granule_arch::alternative::FIRST_LAB;
    use granule_arch::memory::branch::{DC_ZVA, MOPS};

    /// Declares them all, and in `ALL` those with which they must not be mixed up.
    macro_rules! identifiers {
        ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
            $($(#[$doc])* pub const $name: u16 = $value;)*

            const ALL: &[u16] = &[MOPS, DC_ZVA, $($name),*];
        };
    }

    identifiers! {
        /// FEAT_TLBIRANGE.
        TLB_RANGE = 0;
        /// FEAT_TTL.
        TLB_LEVEL = 1;
        /// An erratum of a CPU that one more invalidation works around.
        REPEAT_TLBI = 2;
        /// No feature: barriers and invalidations are counted (`crate::mm::maintenance`).
        COUNT = 3;
        /// CTR_EL0.IDC.
        IDC = 4;
        /// CTR_EL0.DIC.
        DIC = 5;
        /// No feature: the alias in the linear map follows what `set_memory_*` does (`crate::mm::kernel::policy`).
        ALIAS = 6;
        /// No feature: permissions in the linear map are managed.
        DIRECT_MAP = 7;
        /// No feature: free frames are not in the linear map.
        DEBUG_PAGEALLOC = 8;
        /// FEAT_TTCNP: CPUs may share what they cache under one TTBR.
        CNP = 9;
        /// FEAT_HAFDBS: walks set the access flag.
        ACCESS_FLAG = 10;
        /// FEAT_PAN3: pages may be executable and nothing else for EL0.
        EXECUTE_ONLY = 11;
        /// No feature: a valid leaf in use may change its size ([`SizeChange`](super::SizeChange)).
        SIZE_CHANGE = 12;
        /// FEAT_MTE2: memory has tags.
        MTE = 13;
        /// FEAT_MTE2, and no feature: the kernel's accesses are checked, as
        /// [`kernel_tag_check`](super::SystemFeatures::kernel_tag_check) has it.
        TAG_CHECKS = 14;
        /// Some of them asynchronously.
        ASYNCHRONOUS_TAG_CHECKS = 15;
        /// No feature: tags need storage that is reserved for them (`crate::mm::tag_storage`).
        TAG_STORAGE = 16;
        /// No feature: samples of the heap's objects are guarded (`crate::mm::heap::guarded`).
        GUARDED_HEAP = 17;
        /// No feature: areas that are freed wait for an invalidation that serves many (`crate::mm::kernel`).
        LAZY_UNMAP = 18;
        /// An erratum of a CPU: entries of EL0's code are broken before they become those of data
        /// (`crate::platform::errata`).
        BREAK_CODE = 19;
        /// FEAT_SB: a barrier to speculation.
        SPECULATION_BARRIER = 20;
        /// FEAT_BTI: branches may be checked where they end.
        BTI = 21;
    }

    // Sites with one identifier are taken together, whatever each of them asks; those of the lab begin at `FIRST_LAB`.
    const _: () = {
        let mut one = 0;
        while one < ALL.len() {
            assert!(ALL[one] < FIRST_LAB);
            let mut other = one + 1;
            while other < ALL.len() {
                assert!(ALL[one] != ALL[other], "two features have one branch identifier");
                other += 1;
            }
            one += 1;
        }
    };
}

/// The features that the CPUs of the system have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemFeatures {
    /// The least of all CPUs.
    pub cpus: CpuFeatures,
    /// Whether the size of a live kernel mapping may change.
    pub size_change: SizeChange,
    /// Whether a completed invalidation is to be followed by one more.
    pub repeat_tlbi: RepeatTlbi,
    /// A design among the CPUs on which entries of code are broken before they become those of data.
    pub misreports_former_code: Option<&'static str>,
    /// A design among the CPUs that must not share TLB entries.
    pub shares_wrongly: Option<&'static str>,
    /// The speculation of the CPUs that nothing hinders.
    pub weaknesses: Weaknesses,
    /// Whether the hardware is to note by itself that a page was written.
    pub dirty_state: DirtyState,
    /// How the tags of the kernel's own accesses are checked: as decided once all CPUs are known, see
    /// [`super::kernel_tag_check`].
    pub kernel_tag_check: TagCheck,
}

impl SystemFeatures {
    /// A system of one CPU.
    pub fn new(boot_cpu: &CpuFeatures) -> Self {
        Self {
            cpus: *boot_cpu,
            size_change: SizeChange::of(boot_cpu),
            repeat_tlbi: RepeatTlbi::of(boot_cpu.midr),
            misreports_former_code: errata::misreports_former_code(boot_cpu.midr),
            shares_wrongly: errata::shares_wrongly(boot_cpu.midr),
            weaknesses: Weaknesses::of(boot_cpu),
            dirty_state: DirtyState::of(boot_cpu),
            kernel_tag_check: TagCheck::Off,
        }
    }

    /// Whether the branch sites with this identifier, one of [`branch`], are to be taken; `false` for any other.
    pub fn takes(&self, identifier: u16) -> bool {
        match identifier {
            branch::TLB_RANGE => self.cpus.tlb_range(),
            branch::TLB_LEVEL => self.cpus.ttl(),
            branch::IDC => self.cpus.code_caches().idc,
            branch::DIC => self.cpus.code_caches().dic,
            branch::CNP => self.cpus.cnp() && self.shares_wrongly.is_none(),
            branch::SIZE_CHANGE => self.size_change.is_trusted(),
            branch::EXECUTE_ONLY => self.cpus.pan() == Pan::Epan,
            branch::MTE => self.has_tags(),
            branch::SPECULATION_BARRIER => self.cpus.sb(),
            branch::BTI => self.cpus.bti(),
            branch::ACCESS_FLAG => self.cpus.hafdbs() >= HardwareUpdates::AccessFlag,
            memory::branch::MOPS => self.cpus.mops(),
            memory::branch::DC_ZVA => self.cpus.dc_zva().is_some(),
            branch::TAG_CHECKS => self.kernel_tag_check != TagCheck::Off,
            branch::ASYNCHRONOUS_TAG_CHECKS => self.kernel_tag_check.is_recorded(),
            branch::REPEAT_TLBI => self.repeat_tlbi.is_needed(),
            branch::BREAK_CODE => self.misreports_former_code.is_some(),
            _ => false,
        }
    }

    /// FEAT_MTE2: memory has tags, and accesses can be checked against them.
    pub fn has_tags(&self) -> bool {
        self.cpus.mte() >= Mte::Tags
    }

    /// The system with one CPU more. No feature can be gained by it.
    pub fn add(&mut self, cpu: &CpuFeatures) {
        self.cpus = self.cpus.least(cpu);
        self.size_change = self.size_change.and(SizeChange::of(cpu));
        self.repeat_tlbi = self.repeat_tlbi.or(RepeatTlbi::of(cpu.midr));
        self.misreports_former_code = self.misreports_former_code.or(errata::misreports_former_code(cpu.midr));
        self.shares_wrongly = self.shares_wrongly.or(errata::shares_wrongly(cpu.midr));
        self.weaknesses = self.weaknesses.or(Weaknesses::of(cpu));
        self.dirty_state = self.dirty_state.and(DirtyState::of(cpu));
    }
}

/// A line for each feature, for the monitor's `features`.
impl fmt::Display for SystemFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.cpus)?;
        writeln!(f, "live size change {}", self.size_change)?;
        writeln!(f, "TLBI repeated    {}", self.repeat_tlbi)?;
        if let Some(name) = self.misreports_former_code {
            writeln!(f, "code made data   broken first: {name} misreports aborts otherwise")?;
        }
        if let Some(name) = self.shares_wrongly {
            writeln!(f, "CNP unused       {name} shares TLB entries wrongly")?;
        }
        writeln!(f, "speculation      {}", self.weaknesses)?;
        writeln!(f, "dirty state      {}", self.dirty_state)?;
        write!(f, "kernel's tags    {}", self.kernel_tag_check)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use granule_arch::features::CpuFeatures;

    use super::{SizeChange, SystemFeatures};

    fn cpu(midr: u64) -> CpuFeatures {
        CpuFeatures { midr, ..CpuFeatures::default() }
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
