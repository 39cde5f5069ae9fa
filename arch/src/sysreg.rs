//! System registers, and fields of them, that neither `aarch64-cpu` nor `arm-sysregs` has (Arm ARM D24).
//!
//! The registers are read by their encoding (`s3_…`), so that they assemble for any target; the ID registers define
//! whether a CPU has a register, and the caller reads them first.

#![allow(unsafe_code, reason = "reads system registers")]

/// HCRX_EL2: EL1 and EL0 may execute memory copy and set instructions.
pub const HCRX_EL2_MSCEN: u64 = 1 << 11;
/// HCRX_EL2: EL1 may access TCR2_EL1.
pub const HCRX_EL2_TCR2EN: u64 = 1 << 14;
/// HCRX_EL2: EL1 may access SCTLR2_EL1.
pub const HCRX_EL2_SCTLR2EN: u64 = 1 << 15;
/// DCZID_EL0: DC ZVA is prohibited. Bits 3:0 are log2 of the words that it zeroes.
pub const DCZID_EL0_DZP: u64 = 1 << 4;
/// The number of the PMU event "instruction architecturally executed", and of its bit in PMCEID0_EL0.
pub const EVENT_INST_RETIRED: u64 = 8;

// The size of the block that DC ZVA zeroes.
#[cfg(target_os = "none")]
arm_sysregs::read_sysreg!(dczid_el0: s3_3_c0_c0_7, u64, safe);
// Which of the first 32 events are counted. Exists where ID_AA64DFR0_EL1.PMUVer has it.
#[cfg(target_os = "none")]
arm_sysregs::read_sysreg!(pmceid0_el0: s3_3_c9_c12_6, u64, safe);
