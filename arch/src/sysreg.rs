//! System registers, and fields of them, that neither `aarch64-cpu` nor `arm-sysregs` has (Arm ARM D24).
//!
//! The registers are read by their encoding (`s3_…`), so that they assemble for any target; the ID registers define
//! whether a CPU has a register, and the caller reads them first.

#![allow(unsafe_code, reason = "reads system registers")]
#![allow(missing_docs, reason = "field names are Arm's, the macro writes the items")]

use tock_registers::register_bitfields;

register_bitfields! {u64,
    pub HCRX_EL2 [
        /// EL1 may access SCTLR2_EL1.
        SCTLR2En OFFSET(15) NUMBITS(1) [],
        /// EL1 may access TCR2_EL1.
        TCR2En OFFSET(14) NUMBITS(1) [],
        /// EL1 and EL0 may execute memory copy and set instructions.
        MSCEn OFFSET(11) NUMBITS(1) []
    ],
    pub DCZID_EL0 [
        /// DC ZVA is prohibited.
        DZP OFFSET(4) NUMBITS(1) [],
        /// log2 of the words that DC ZVA zeroes.
        BS OFFSET(0) NUMBITS(4) []
    ],
    pub PMCEID0_EL0 [
        /// Event 8 is counted: instructions architecturally executed.
        INST_RETIRED OFFSET(8) NUMBITS(1) []
    ]
}

/// The number of the PMU event "instruction architecturally executed".
pub const EVENT_INST_RETIRED: u64 = 8;

// What DC ZVA zeroes.
#[cfg(target_os = "none")]
arm_sysregs::read_sysreg!(dczid_el0: s3_3_c0_c0_7, u64, safe);
// Which of the first 32 events are counted. Exists where ID_AA64DFR0_EL1.PMUVer has it.
#[cfg(target_os = "none")]
arm_sysregs::read_sysreg!(pmceid0_el0: s3_3_c9_c12_6, u64, safe);
