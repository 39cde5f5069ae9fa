//! System registers, and fields of them, that `aarch64-cpu` lacks (Arm ARM D24).
//!
//! The same shape as there: `register_bitfields!` and a zero-sized register. They are accessed by their encoding
//! (`S3_…`), so that they assemble for any target; the ID registers define whether a CPU has a register, and the caller
//! reads them first. Fields that are missing in a register that `aarch64-cpu` has are here under `ID_…_MORE`.

#![allow(unsafe_code, reason = "reads and writes system registers")]
#![allow(
    non_upper_case_globals,
    missing_docs,
    reason = "register and field names are Arm's, the macros write the items"
)]

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::register_bitfields;

register_bitfields! {u64,
    pub ID_AA64ISAR0_MORE [
        /// 1: TLBI with OS; 2: also TLBI by range.
        TLB OFFSET(56) NUMBITS(4) [],
        /// 2: FEAT_LSE, 3: FEAT_LSE128.
        ATOMIC OFFSET(20) NUMBITS(4) [],
        /// FEAT_RNG: RNDR and RNDRRS exist.
        RNDR OFFSET(60) NUMBITS(4) []
    ],
    pub ID_AA64ISAR2_EL1 [
        /// FEAT_MOPS: memory copy and set instructions.
        MOPS OFFSET(16) NUMBITS(4) []
    ],
    pub ID_AA64PFR0_MORE [
        /// The CPU interface of a GICv3 or later is in system registers.
        GIC OFFSET(24) NUMBITS(4) []
    ],
    pub ID_AA64PFR1_MORE [
        /// FEAT_BTI.
        BT OFFSET(0) NUMBITS(4) []
    ],
    pub ID_AA64MMFR0_MORE [
        /// 1: FEAT_FGT, 2: FEAT_FGT2.
        FGT OFFSET(56) NUMBITS(4) []
    ],
    pub ID_AA64MMFR1_MORE [
        /// FEAT_HCX: HCRX_EL2 exists.
        HCX OFFSET(40) NUMBITS(4) [],
        /// 2: FEAT_ETS2, 3: FEAT_ETS3. (1 promises nothing since the name ETS was withdrawn.)
        ETS OFFSET(36) NUMBITS(4) []
    ],
    pub ID_AA64MMFR3_EL1 [
        /// FEAT_SCTLR2.
        SCTLRX OFFSET(4) NUMBITS(4) [],
        /// FEAT_TCR2.
        TCRX OFFSET(0) NUMBITS(4) []
    ],
    pub ID_AA64MMFR4_EL1 [
        /// Negative (signed): HCR_EL2.E2H cannot be cleared.
        E2H0 OFFSET(24) NUMBITS(4) []
    ],
    /// SCTLR_EL1, the bits above and between those that `aarch64-cpu` names.
    pub SCTLR_EL1_MORE [
        /// PAN forbids accesses to pages that EL0 may only execute as well (FEAT_PAN3).
        EPAN OFFSET(57) NUMBITS(1) [],
        /// EL1 may access allocation tags.
        ATA OFFSET(43) NUMBITS(1) [],
        /// What a tag check fault at EL1 does.
        TCF OFFSET(40) NUMBITS(2) [Ignored = 0b00, Synchronous = 0b01, Asynchronous = 0b10, Asymmetric = 0b11],
        /// Load and store multiple need no alignment or atomicity; RES1 without FEAT_LSMAOC.
        LSMAOE OFFSET(29) NUMBITS(1) [],
        /// Load and store multiple to Device memory are not trapped; RES1 without FEAT_LSMAOC.
        nTLSMD OFFSET(28) NUMBITS(1) [],
        /// Taking an exception leaves PSTATE.PAN alone; RES1 without FEAT_PAN.
        SPAN OFFSET(23) NUMBITS(1) [],
        /// Entry to an exception is a context synchronisation event; RES1 without FEAT_ExS.
        EIS OFFSET(22) NUMBITS(1) [],
        /// EL0 may not use SCXTNUM_EL0; RES1 without FEAT_CSV2_2.
        TSCXT OFFSET(20) NUMBITS(1) [],
        /// Exit from an exception is a context synchronisation event; RES1 without FEAT_ExS.
        EOS OFFSET(11) NUMBITS(1) []
    ],
    pub TCR_EL1_MORE [
        /// An access of EL0 to the TTBR1 half faults without a walk (FEAT_E0PD).
        E0PD1 OFFSET(56) NUMBITS(1) []
    ],
    pub HCRX_EL2 [
        /// EL1 may access SCTLR2_EL1.
        SCTLR2En OFFSET(15) NUMBITS(1) [],
        /// EL1 may access TCR2_EL1.
        TCR2En OFFSET(14) NUMBITS(1) [],
        /// EL1 and EL0 may execute memory copy and set instructions.
        MSCEn OFFSET(11) NUMBITS(1) []
    ],
    pub CTR_EL0 [
        /// No instruction cache invalidation is needed for data to instruction coherence.
        DIC OFFSET(29) NUMBITS(1) [],
        /// No data cache clean to the point of unification is needed for that.
        IDC OFFSET(28) NUMBITS(1) [],
        /// log2 of the words in the largest unit of write-back; 0: unknown.
        CWG OFFSET(24) NUMBITS(4) [],
        /// log2 of the words in the largest exclusives reservation granule; 0: unknown.
        ERG OFFSET(20) NUMBITS(4) [],
        /// log2 of the words in the smallest data cache line.
        DminLine OFFSET(16) NUMBITS(4) [],
        /// log2 of the words in the smallest instruction cache line.
        IminLine OFFSET(0) NUMBITS(4) []
    ],
    pub DCZID_EL0 [
        /// DC ZVA is prohibited.
        DZP OFFSET(4) NUMBITS(1) [],
        /// log2 of the words that DC ZVA zeroes.
        BS OFFSET(0) NUMBITS(4) []
    ],
    pub PMCR_EL0 [
        /// How many event counters there are.
        N OFFSET(11) NUMBITS(5) [],
        /// Event counters overflow at 64 bits (FEAT_PMUv3p5).
        LP OFFSET(7) NUMBITS(1) [],
        /// The cycle counter overflows at 64 bits.
        LC OFFSET(6) NUMBITS(1) [],
        /// Zeroes the cycle counter.
        C OFFSET(2) NUMBITS(1) [],
        /// Zeroes the event counters.
        P OFFSET(1) NUMBITS(1) [],
        /// Counters count.
        E OFFSET(0) NUMBITS(1) []
    ],
    pub PMCEID0_EL0 [
        /// Event 8 is counted: instructions architecturally executed.
        INST_RETIRED OFFSET(8) NUMBITS(1) []
    ]
}

/// The number of the PMU event "instruction architecturally executed".
pub const EVENT_INST_RETIRED: u64 = 8;

macro_rules! read {
    ($(#[$doc:meta])* $module:ident, $name:ident: $fields:ty, $encoding:literal) => {
        mod $module {
            /// The register; see the constant of the same name in capitals.
            pub struct Reg;
        }

        impl Readable for $module::Reg {
            type T = u64;
            type R = $fields;

            #[inline(always)]
            fn get(&self) -> u64 {
                #[cfg(target_os = "none")]
                {
                    let value: u64;
                    // SAFETY: reading this register has no effect on memory or state. No `nomem`: counters and
                    // registers that another instruction changes are read anew each time.
                    unsafe {
                        core::arch::asm!(
                            concat!("mrs {0}, ", $encoding), out(reg) value, options(nostack, preserves_flags)
                        );
                    }
                    value
                }
                #[cfg(not(target_os = "none"))]
                0
            }
        }

        $(#[$doc])*
        pub const $name: $module::Reg = $module::Reg;
    };
}

macro_rules! read_write {
    ($(#[$doc:meta])* $module:ident, $name:ident: $fields:ty, $encoding:literal) => {
        read!($(#[$doc])* $module, $name: $fields, $encoding);

        impl Writeable for $module::Reg {
            type T = u64;
            type R = $fields;

            #[inline(always)]
            fn set(&self, value: u64) {
                #[cfg(target_os = "none")]
                // SAFETY: the registers given to this macro control counting only, no access to memory.
                unsafe {
                    core::arch::asm!(
                        concat!("msr ", $encoding, ", {0}"), in(reg) value, options(nostack, preserves_flags)
                    );
                }
                #[cfg(not(target_os = "none"))]
                let _ = value;
            }
        }
    };
}

read!(
    /// Instruction set attributes, third register. Zero on CPUs that are older than it.
    id_aa64isar2_el1, ID_AA64ISAR2_EL1: ID_AA64ISAR2_EL1::Register, "S3_0_C0_C6_2"
);
read!(
    /// Memory model features, fourth register. Zero on CPUs that are older than it.
    id_aa64mmfr3_el1, ID_AA64MMFR3_EL1: ID_AA64MMFR3_EL1::Register, "S3_0_C0_C7_3"
);
read!(
    /// Memory model features, fifth register. Zero on CPUs that are older than it.
    id_aa64mmfr4_el1, ID_AA64MMFR4_EL1: ID_AA64MMFR4_EL1::Register, "S3_0_C0_C7_4"
);
read!(
    /// Cache type.
    ctr_el0, CTR_EL0: CTR_EL0::Register, "S3_3_C0_C0_1"
);
read!(
    /// What DC ZVA zeroes.
    dczid_el0, DCZID_EL0: DCZID_EL0::Register, "S3_3_C0_C0_7"
);
read!(
    /// Which of the first 32 events are counted. Exists where ID_AA64DFR0_EL1.PMUVer has it.
    pmceid0_el0, PMCEID0_EL0: PMCEID0_EL0::Register, "S3_3_C9_C12_6"
);
read_write!(
    /// Performance monitors control. Exists where ID_AA64DFR0_EL1.PMUVer has it.
    pmcr_el0, PMCR_EL0: PMCR_EL0::Register, "S3_3_C9_C12_0"
);
read!(
    /// Event counter 0, which the entry code sets to count instructions. Exists where PMCR_EL0.N is not 0.
    pmevcntr0_el0, PMEVCNTR0_EL0: (), "S3_3_C14_C8_0"
);
