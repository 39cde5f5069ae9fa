//! The SMMU's TLB as it may be: everything that could be walked to since the last invalidation that covers it.

use super::Time;
use super::walk::Step;

/// An entry that the TLB may have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Held {
    pub(crate) step: Step,
    /// When a walk could find it no more; `None` where one still can.
    pub(crate) until: Option<Time>,
}

/// The entries that a CMD_TLBI covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Covers {
    /// Everything.
    All,
    /// Entries of an address space that are not global.
    Asid(u16),
    /// Addresses of an address space, or of all.
    Range {
        asid: Option<u16>,
        start: u64,
        last: u64,
        /// The level of the leaves, where the command has one.
        level: Option<u32>,
        /// Leaves alone, no tables.
        leaves: bool,
    },
}

impl Covers {
    pub(crate) fn takes(&self, step: &Step) -> bool {
        match *self {
            Self::All => true,
            Self::Asid(asid) => step.asid == asid && !step.is_global(),
            Self::Range { asid, start, last, level, leaves } => {
                let of_space = asid.is_none_or(|asid| step.asid == asid || step.is_global());
                let of_level = !step.is_leaf || level.is_none_or(|level| step.level == level);
                of_space && of_level && (step.is_leaf || !leaves) && step.start <= last && start <= step.last()
            }
        }
    }
}

/// The TLB, and the invalidations that no CMD_SYNC has completed.
#[derive(Debug, Default)]
pub(crate) struct Tlb {
    held: Vec<Held>,
    begun: Vec<(Covers, Time)>,
}

impl Tlb {
    pub(crate) fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// Nothing but what is `now` can be walked to any more.
    pub(crate) fn walks_find(&mut self, now: impl Fn(&Step) -> bool, time: Time) {
        for held in &mut self.held {
            if held.until.is_none() && !now(&held.step) {
                held.until = Some(time);
            }
        }
    }

    /// One more can be walked to.
    pub(crate) fn may_hold(&mut self, step: Step) {
        match self.held.iter_mut().find(|held| held.step == step) {
            Some(held) => held.until = None,
            None => self.held.push(Held { step, until: None }),
        }
    }

    /// Steps that came from word `source` can be walked to no more.
    pub(crate) fn ends(&mut self, source: usize, time: Time) {
        for held in self.held.iter_mut().filter(|held| held.step.source == source && held.until.is_none()) {
            held.until = Some(time);
        }
    }

    /// A CMD_TLBI was taken from the queue.
    pub(crate) fn begin(&mut self, covers: Covers, time: Time) {
        self.begun.push((covers, time));
    }

    /// A CMD_SYNC was: what the others cover, and what no walk could find when they were taken, is gone.
    pub(crate) fn complete(&mut self) {
        for (covers, time) in std::mem::take(&mut self.begun) {
            self.held.retain(|held| !(covers.takes(&held.step) && held.until.is_some_and(|until| until <= time)));
        }
    }

    /// It may hold anything of which it is not known that it was invalidated.
    pub(crate) fn is_being_invalidated(&self, step: &Step) -> bool {
        self.begun.iter().any(|(covers, _)| covers.takes(step))
    }
}
