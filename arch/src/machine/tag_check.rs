//! The registers of tag checks, and PSTATE.TCO.

#![allow(unsafe_code, reason = "accesses tags and the registers of their check")]

use core::arch::asm;

use arm_sysregs::el1::registers::{GcrEl1, SctlrEl1, TfsrEl1, Tfsre0El1};

use crate::tag_check::{CLEAR_TCO, TagCheck};

/// The instruction `MSR TCO, #1`.
const SET_TCO: u32 = 0xd503_419f;

#[inline(always)]
pub(crate) fn set_el0(check: TagCheck, excluded: u16) {
    let gcr = GcrEl1::RRND.bits() | u64::from(excluded) << GcrEl1::EXCLUDE_SHIFT;
    // SAFETY: the registers exist, as `Registers` proves. The fields concern accesses of EL0 and with its
    // rights, and IRG, which the kernel does not use; the other fields of SCTLR_EL1 stay.
    unsafe {
        asm!(
            "msr s3_0_c1_c0_6, {gcr}", // GCR_EL1
            "mrs {sctlr}, sctlr_el1",
            "bfi {sctlr}, {check}, #{SHIFT}, #2",
            "msr sctlr_el1, {sctlr}",
            "isb",
            gcr = in(reg) gcr,
            sctlr = out(reg) _,
            check = in(reg) check as u64,
            SHIFT = const SctlrEl1::TCF0_SHIFT,
            options(nostack, preserves_flags),
        );
    }
}

#[inline(always)]
pub(crate) fn has_recorded() -> bool {
    let recorded: u64;
    // SAFETY: the register exists, as `Registers` proves, and reading it has no effect.
    unsafe { asm!("mrs {0}, s3_0_c5_c6_1", out(reg) recorded, options(nostack, preserves_flags)) };
    recorded & Tfsre0El1::TF0.bits() != 0
}

#[inline(always)]
pub(crate) fn clear_recorded() {
    // SAFETY: the register exists, as `Registers` proves. It concerns no memory.
    unsafe { asm!("dsb ish", "msr s3_0_c5_c6_1, xzr", options(nostack, preserves_flags)) };
}

pub(crate) fn set_el1(check: TagCheck) {
    // SAFETY: the registers exist, as `Registers` proves. A mismatch is an error in the accessing code; the
    // other fields of SCTLR_EL1 stay.
    unsafe {
        asm!(
            "mrs {sctlr}, sctlr_el1",
            "bfi {sctlr}, {check}, #{SHIFT}, #2",
            "msr sctlr_el1, {sctlr}",
            "isb",
            sctlr = out(reg) _,
            check = in(reg) check as u64,
            SHIFT = const SctlrEl1::TCF_SHIFT,
            options(nostack, preserves_flags),
        );
    }
}

pub(crate) fn take_recorded_of_el1() -> bool {
    let recorded: u64;
    // SAFETY: the register exists, as `Registers` proves. The record of an access is visible after the
    // access's completion.
    unsafe { asm!("dsb nsh", "isb", "mrs {0}, s3_0_c5_c6_0", out(reg) recorded, options(nostack, preserves_flags)) };
    let is_recorded = recorded & TfsrEl1::TF1.bits() != 0;
    if is_recorded {
        // SAFETY: as above.
        unsafe { asm!("msr s3_0_c5_c6_0, xzr", options(nostack, preserves_flags)) };
    }
    is_recorded
}

#[inline(always)]
pub(crate) fn resume() {
    // SAFETY: as for `set_el1`; accesses with EL0's rights may fault.
    unsafe { asm!(".inst {0}", const CLEAR_TCO, options(nostack, preserves_flags)) };
}

pub(crate) fn suspend() {
    // SAFETY: fewer accesses fault.
    unsafe { asm!(".inst {0}", const SET_TCO, options(nostack, preserves_flags)) };
}
