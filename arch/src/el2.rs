//! From EL2 to EL1, by which EL2 is left empty (Arm ARM D1.3; registers: D24.2).
//!
//! By the arm64 boot protocol a kernel is entered at EL2 where there is EL2, and at EL1 where not; [`mmu`](crate::mmu)
//! and all else here translates, traps and times at EL1. Each CPU goes down by itself, with its MMU off:
//!
//! ```ignore
//! // SAFETY: as the boot protocol enters a kernel; the vectors stop.
//! let entered_at = unsafe { enter_el1(vectors) }?;
//! ```
//!
//! [`drop_to_el1`] is for assembly that has no stack yet, [`enter_el1`] for Rust.

#![allow(unsafe_code, reason = "writes the registers of EL2")]

use core::fmt;

use aarch64_cpu::registers::{CNTHCTL_EL2, CPACR_EL1, HCR_EL2, ID_AA64DFR0_EL1, ID_AA64PFR0_EL1, SPSR_EL2};
use arm_sysregs::el0::registers::PmcrEl0;
use arm_sysregs::el1::registers::{IdAa64isar2El1, IdAa64mmfr0El1, IdAa64mmfr1El1, IdAa64mmfr3El1, IdAa64pfr0El1};

use crate::addr::PhysAddr;
use crate::mmu::SCTLR_MMU_OFF;
use crate::sysreg::{HCRX_EL2_MSCEN, HCRX_EL2_SCTLR2EN, HCRX_EL2_TCR2EN};

/// SCTLR_EL2 with everything off: its RES1 bits (29, 28, 23, 22, 18, 16, 11, 5, 4).
const SCTLR_EL2_MMU_OFF: u64 = 0x30c5_0830;

/// HCR_EL2: EL1 is AArch64 and owns pointer authentication and allocation tags. The bits of absent features are RES0,
/// and ignored there.
const HCR: u64 =
    HCR_EL2::RW::EL1IsAarch64.value | HCR_EL2::API::SET.value | HCR_EL2::APK::SET.value | HCR_EL2::ATA::SET.value;
const _: () = assert!(HCR & 0xffff == 0, "the function writes the upper 48 bits");

/// The sign of ID_AA64MMFR4_EL1.E2H0, bits 27:24: negative where HCR_EL2.E2H is RES1.
const E2H0_SIGN: u32 = 27;

/// CPTR_EL2, E2H = 0: its RES1 bits, which trap SVE and SME where those exist. Floating point is left to CPACR_EL1.
const CPTR: u64 = 0x33ff;
/// CPTR_EL2, E2H = 1: laid out as CPACR_EL1. Floating point is not trapped, SVE and SME are.
const CPTR_VHE: u64 = CPACR_EL1::FPEN::TrapNothing.value;

/// CNTHCTL_EL2, E2H = 0: EL1 may use the physical counter and timer.
const CNTHCTL: u64 = CNTHCTL_EL2::EL1PCEN::SET.value | CNTHCTL_EL2::EL1PCTEN::SET.value;
/// CNTHCTL_EL2, E2H = 1: the same two bits are ten higher, above those for EL0.
const CNTHCTL_VHE: u64 = CNTHCTL << 10;

/// VTCR_EL2: no stage 2; bit 31 is RES1.
const VTCR: u64 = 1 << 31;

/// MDCR_EL2.E2PB: the profiling buffer is EL1's. HPMN is the number of event counters.
const MDCR_E2PB_EL1: u64 = 0b11 << 12;

/// ICC_SRE_EL2: EL1 may use the GIC's system registers (Enable), as EL2 does (SRE).
const ICC_SRE: u64 = 0b1001;

/// PSTATE of the first instruction at EL1: on SP_EL1, everything masked.
const SPSR_EL1H_MASKED: u64 = SPSR_EL2::M::EL1h.value
    | SPSR_EL2::D::Masked.value
    | SPSR_EL2::A::Masked.value
    | SPSR_EL2::I::Masked.value
    | SPSR_EL2::F::Masked.value;

/// The exception level that a CPU was entered at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// A hypervisor or firmware above has decided all that EL2 could.
    El1,
    /// EL2 is empty now, and [`leave`](crate::mmu::leave) can go back to it.
    El2,
}

/// The CPU is at EL3, from which there is no way here: the firmware that belongs there enters a kernel at EL2 or EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AtEl3;

impl fmt::Display for AtEl3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entered at EL3; the loader must enter at EL2 or EL1")
    }
}

impl core::error::Error for AtEl3 {}

/// Returns at EL1, whichever of EL2 and EL1 it is called at, with the caller's stack: see [`drop_to_el1`].
///
/// # Errors
/// [`AtEl3`]: nothing was written.
///
/// # Safety
/// The contract of [`drop_to_el1`]; the stack is in memory.
pub unsafe fn enter_el1(vectors: PhysAddr) -> Result<Level, AtEl3> {
    // SAFETY: the caller's contract.
    match unsafe { drop_to_el1(vectors) } {
        1 => Ok(Level::El1),
        2 => Ok(Level::El2),
        _ => Err(AtEl3),
    }
}

/// Returns the exception level that it is called at: 2, and it returns at EL1; 1 or 3, and it has done nothing else.
///
/// It uses no stack and no memory, clobbers x0 to x3 and the flags alone, and does nothing that moves with the image:
/// all addresses are relative to the PC. At EL2 it grants EL1 all that EL2 could withhold, or switches it off, and
/// returns by ERET to x30, on SP_EL1, which is the SP of the caller, with D, A, I and F masked:
///
/// | register | is left so |
/// |---|---|
/// | SCTLR_EL1 | [`SCTLR_MMU_OFF`]; by SCTLR_EL12 where E2H stays set |
/// | SCTLR_EL2, VBAR_EL2 | everything off; `vectors` |
/// | HCR_EL2, VTTBR_EL2, VTCR_EL2 | no TGE, no E2H but where that is RES1, no stage 2, no traps but those below |
/// | CPTR_EL2, HSTR_EL2 | floating point is EL1's, SVE and SME trap |
/// | CNTHCTL_EL2, CNTVOFF_EL2 | EL1 has the physical counter and timer; the virtual count is the physical one |
/// | VPIDR_EL2, VMPIDR_EL2 | the CPU's own |
/// | MDCR_EL2 | debug, all event counters and the profiling buffer are EL1's |
/// | ICC_SRE_EL2, ICH_HCR_EL2 | the GIC's system registers are EL1's where EL3 grants them; no virtual interrupts |
/// | HCRX_EL2 | memory copies, TCR2_EL1 and SCTLR2_EL1 are EL1's where they exist, and nothing newer |
/// | MPAM2_EL2 | as it was; the trace buffer and SCXTNUM_EL1 stay withheld from EL1 |
/// | HFGRTR_EL2 and its kin | no fine-grained traps, but by bits that trap while zero: newer features (BRBE, GCS) |
///
/// No TLB of this CPU has an entry of EL2 or of any VMID. All other registers of EL1 are as they were: the caller
/// writes VBAR_EL1, CPACR_EL1 and those of translation after it has returned. Before, where the host regime of VHE was
/// on, their names meant the registers of EL2.
///
/// # Safety
/// 1. The CPU's MMU is off, D, A, I and F are masked, and the code at x30 runs with the MMU of EL1 off as well.
/// 2. Nothing that runs at EL2, or below it under its control, is needed any more.
/// 3. `vectors` is a multiple of 0x800, the physical address of code that may run at EL2, with the MMU off and any
///    stack pointer, as long as the CPU runs: an HVC of EL1's comes there, and what is withheld from EL1 and used
///    all the same. It stops, or goes on as [`mmu::leave`](crate::mmu::leave) says.
#[unsafe(naked)]
pub unsafe extern "C" fn drop_to_el1(vectors: PhysAddr) -> u64 {
    core::arch::naked_asm!(
        include_str!("el2.S"),
        SCTLR_EL1 = const SCTLR_MMU_OFF,
        SCTLR_EL2 = const SCTLR_EL2_MMU_OFF,
        HCR = const HCR,
        E2H = const HCR_EL2::E2H.shift,
        E2H0_SIGN = const E2H0_SIGN,
        CPTR = const CPTR,
        CPTR_VHE = const CPTR_VHE,
        CNTHCTL = const CNTHCTL,
        CNTHCTL_VHE = const CNTHCTL_VHE,
        VTCR = const VTCR,
        MDCR_E2PB_EL1 = const MDCR_E2PB_EL1,
        ICC_SRE = const ICC_SRE,
        SPSR = const SPSR_EL1H_MASKED,
        MSCEN = const HCRX_EL2_MSCEN,
        TCR2EN = const HCRX_EL2_TCR2EN,
        SCTLR2EN = const HCRX_EL2_SCTLR2EN,
        PMCR_N = const PmcrEl0::N_SHIFT,
        PMUVER = const ID_AA64DFR0_EL1::PMUVer.shift,
        GIC = const IdAa64pfr0El1::GIC_SHIFT,
        AMU = const ID_AA64PFR0_EL1::AMU.shift,
        FGT = const IdAa64mmfr0El1::FGT_SHIFT,
        HCX = const IdAa64mmfr1El1::HCX_SHIFT,
        TCRX = const IdAa64mmfr3El1::TCRX_SHIFT,
        SCTLRX = const IdAa64mmfr3El1::SCTLRX_SHIFT,
        MOPS = const IdAa64isar2El1::MOPS_SHIFT,
    )
}
