//! Violations of the SMMU's rules, in words.

use std::fmt;

use super::Time;

/// Which rule of the SMMU was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmmuRule {
    /// Something was done to a register when it must not be, or not yet.
    RegisterOrder,
    /// A table or queue is not aligned to its size.
    Misaligned,
    /// PROD was written before the commands are certain to be seen.
    UnorderedCommand,
    /// Something leads to a structure that is not certain to be seen.
    UnorderedStructure,
    /// PROD was moved further than there is room, or CONS further than there are events.
    Index,
    /// A command that this SMMU does not define, or whose fields are reserved.
    Undefined,
    /// Event records were read before the index, or given back before they were read.
    UnorderedEvent,
    /// A transaction may still be treated as the stream was set up before.
    StaleConfiguration,
    /// An entry that a walk reads is in the CPUs' caches, and not in memory, where the SMMU reads it.
    NotCleaned,
    /// A translation that should be gone may still be used.
    StaleTranslation,
    /// A leaf changes its size while the TLB may have it, of an SMMU that does not permit that.
    BreakBeforeMake,
    /// Memory was given up that the SMMU may still reach.
    MemoryInUse,
    /// Tables have more entries than any space of a test: they lead to themselves.
    Endless,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SmmuViolation {
    /// The rule.
    pub rule: SmmuRule,
    /// When, by the recorded operations.
    pub time: Time,
    /// The violation and its reason.
    pub text: String,
}

impl fmt::Display for SmmuViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at #{}: {}", self.rule, self.time, self.text)
    }
}
