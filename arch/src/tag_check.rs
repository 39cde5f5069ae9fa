//! The check of allocation tags (FEAT_MTE2; Arm ARM D10.5, D10.6): what becomes of an access through an address whose
//! tag is not that of the memory, see [`mte`](crate::mte).
//!
//! | | the mode | a mismatch that does not fault |
//! |---|---|---|
//! | EL0, and EL1 with EL0's rights (LDTR, STTR) | SCTLR_EL1.TCF0 | TFSRE0_EL1 |
//! | EL1 | SCTLR_EL1.TCF | TFSR_EL1 |
//!
//! An exception entry sets PSTATE.TCO, and with it no access is checked: [`CLEAR_TCO`]. SCTLR_EL1.ITFSB, which the
//! boot code has set, makes both registers complete after each exception entry. A value of [`Registers`] proves that
//! they exist. On the host accesses to them are recorded.

#![allow(unsafe_code, reason = "accesses the registers of tag checks")]

use core::fmt;

use crate::machine::tag_check as metal;

/// The instruction `MSR TCO, #0`: accesses are checked from here on.
pub const CLEAR_TCO: u32 = 0xd503_409f;

/// The effect of a tag mismatch: SCTLR_EL1.TCF0, SCTLR_EL1.TCF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagCheck {
    /// Nothing.
    Off = 0,
    /// The access faults, and has no effect.
    Synchronous = 1,
    /// The access has its effect, and is recorded.
    Asynchronous = 2,
    /// A load faults, a store is recorded (FEAT_MTE3).
    Asymmetric = 3,
}

impl TagCheck {
    /// Whether a mismatch of a load faults.
    pub const fn faults(self) -> bool {
        self as u8 & 1 != 0
    }

    /// Whether a mismatch may be recorded.
    pub const fn is_recorded(self) -> bool {
        self as u8 & 2 != 0
    }
}

/// "synchronous".
impl fmt::Display for TagCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "not checked",
            Self::Synchronous => "synchronous",
            Self::Asynchronous => "asynchronous",
            Self::Asymmetric => "reads synchronous, writes asynchronous",
        })
    }
}

/// The registers of tag checks. A value proves that every CPU has them: elsewhere each access is UNDEFINED.
#[derive(Clone, Copy, Debug)]
pub struct Registers(());

impl Registers {
    /// Vouches for the registers.
    ///
    /// # Safety
    /// Every CPU that uses the value or a copy of it has `ID_AA64PFR1_EL1.MTE >= 2`
    /// ([`Mte::Tags`](crate::features::Mte)).
    #[inline(always)]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// Has this CPU check EL0's accesses as `check` says, and IRG at EL0 find no tag whose bit is in `excluded`, unless
    /// all are. From the next access on: an ISB follows. Interrupts masked: SCTLR_EL1 is read and written.
    #[inline(always)]
    pub fn set_el0(self, check: TagCheck, excluded: u16) {
        metal::set_el0(check, excluded);
    }

    /// Whether a mismatch has been recorded on this CPU since the last [`Self::clear_recorded`]. Complete for EL0's
    /// accesses before the exception that was taken last (SCTLR_EL1.ITFSB). Interrupts masked: the register is this
    /// CPU's.
    #[inline(always)]
    pub fn has_recorded(self) -> bool {
        metal::has_recorded()
    }

    /// Removes what has been recorded on this CPU, for all accesses before. Interrupts masked.
    #[inline(always)]
    pub fn clear_recorded(self) {
        metal::clear_recorded();
    }

    /// Has this CPU check EL1's accesses as `check` says. From the next access on: an ISB follows. Interrupts masked:
    /// SCTLR_EL1 is read and written.
    pub fn set_el1(self, check: TagCheck) {
        metal::set_el1(check);
    }

    /// Whether a mismatch of EL1 at an address of the upper half has been recorded on this CPU since the last call.
    /// Accesses before the call count: a DSB and an ISB come first. Interrupts masked: the register is read and cleared.
    pub fn take_recorded_of_el1(self) -> bool {
        metal::take_recorded_of_el1()
    }

    /// Has this CPU check accesses of the kernel from here on, as both modes say: clears PSTATE.TCO, up to the next
    /// exception.
    #[inline(always)]
    pub fn resume(self) {
        metal::resume();
    }

    /// Has this CPU check nothing up to the exception return, or for good where it is about to stop: sets PSTATE.TCO.
    pub fn suspend(self) {
        metal::suspend();
    }
}

#[cfg(test)]
mod tests {
    use super::TagCheck;

    #[test]
    fn the_modes_are_those_of_the_register() {
        let modes = [TagCheck::Off, TagCheck::Synchronous, TagCheck::Asynchronous, TagCheck::Asymmetric];
        assert_eq!(modes.map(|mode| mode as u8), [0, 1, 2, 3]);
        assert_eq!(modes.map(TagCheck::faults), [false, true, false, true]);
        assert_eq!(modes.map(TagCheck::is_recorded), [false, false, true, true]);
    }
}
