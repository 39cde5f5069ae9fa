//! Tag checks of a thread's accesses at EL0 (FEAT_MTE2; Arm ARM D10.5).
//!
//! [`TagChecks`] is a program's request. A CPU's registers hold those of the last user thread that had others than
//! the thread before it; a switch between threads with the same checks writes no register.
//!
//! **Late faults.** TFSRE0_EL1 records a mismatch of EL0 in the modes that report late. Each entry from EL0 collects it
//! as work of the thread, before anything else can be recorded: [`UserEntry::late_tag_fault`] runs on the way back, and
//! a system call is repeated after it. Mismatches of the kernel's own accesses with EL0's rights after that are removed
//! before EL0 is entered, and before another thread that reports late is: as on Linux, they are no faults.
//!
//! **A thread without checks pays nothing for them.** A thread with checks has other functions in the fields that the
//! vectors call, which prepare for the thread's own.
//!
//! [`UserEntry::late_tag_fault`]: super::UserEntry::late_tag_fault

use granule_arch::features::Mte;
use granule_arch::tag_check::TagCheck;

/// The faults that a program accepts for a mismatch of its tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagFaults {
    /// None: tags are not checked.
    Ignored = 0,
    /// At the access.
    AtOnce = 1,
    /// At some later exception, without the address.
    Late = 2,
    /// Either, as the kernel prefers.
    AtOnceOrLate = 3,
}

/// How the accesses of a thread are checked at EL0, and which tags IRG may find there.
///
/// A word: bits 1:0 are the [`TagFaults`], 3:2 the [`TagCheck`], 31:16 the tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagChecks(pub(super) u32);

impl TagChecks {
    /// No checks, and no tags but zero: that of every thread at first.
    pub const NONE: Self = Self(0);

    /// Checks on CPUs with `mte`, for a program that accepts `faults`. IRG finds the tags whose bits are in `included`,
    /// or only zero if there is none. The choice for [`TagFaults::AtOnceOrLate`] is a fault at once for loads, which
    /// costs them nothing, and late for stores; all late where the CPUs cannot distinguish.
    pub const fn new(faults: TagFaults, included: u16, mte: Mte) -> Self {
        let check = match (faults, mte) {
            (TagFaults::Ignored, _) => TagCheck::Off,
            (TagFaults::AtOnce, _) => TagCheck::Synchronous,
            (TagFaults::AtOnceOrLate, Mte::Asymmetric) => TagCheck::Asymmetric,
            (TagFaults::AtOnceOrLate | TagFaults::Late, _) => TagCheck::Asynchronous,
        };
        Self(faults as u32 | (check as u32) << 2 | (included as u32) << 16)
    }

    /// The kinds of report that the program accepts.
    pub const fn faults(self) -> TagFaults {
        match self.0 & 3 {
            0 => TagFaults::Ignored,
            1 => TagFaults::AtOnce,
            2 => TagFaults::Late,
            _ => TagFaults::AtOnceOrLate,
        }
    }

    /// The tags that IRG may find, a bit for each.
    pub const fn included(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The setting of the hardware.
    pub const fn check(self) -> TagCheck {
        match self.0 >> 2 & 3 {
            0 => TagCheck::Off,
            1 => TagCheck::Synchronous,
            2 => TagCheck::Asynchronous,
            _ => TagCheck::Asymmetric,
        }
    }
}

#[cfg(test)]
mod tests {
    use granule_arch::features::Mte;
    use granule_arch::tag_check::TagCheck;

    use super::{TagChecks, TagFaults};

    #[test]
    fn the_kernel_prefers_the_asymmetric_mode_where_either_will_do() {
        use TagFaults::{AtOnce, AtOnceOrLate, Ignored, Late};
        let checks = |mte| [Ignored, AtOnce, Late, AtOnceOrLate].map(|faults| TagChecks::new(faults, 0, mte).check());
        use TagCheck::{Asymmetric, Asynchronous, Off, Synchronous};
        assert_eq!(checks(Mte::Asymmetric), [Off, Synchronous, Asynchronous, Asymmetric]);
        assert_eq!(checks(Mte::Tags), [Off, Synchronous, Asynchronous, Asynchronous]);
    }

    #[test]
    fn a_word_keeps_what_was_asked() {
        for faults in [TagFaults::Ignored, TagFaults::AtOnce, TagFaults::Late, TagFaults::AtOnceOrLate] {
            for included in [0, 1, 0x8000, 0xfffe, 0xffff] {
                let checks = TagChecks::new(faults, included, Mte::Asymmetric);
                assert_eq!((checks.faults(), checks.included()), (faults, included));
            }
        }
        assert_eq!(TagChecks::new(TagFaults::Ignored, 0, Mte::Tags), TagChecks::NONE);
    }
}
