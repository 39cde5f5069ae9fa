//! In host tests: a subscriber that records its calls, where in the record of the machine, and under which locks.
//!
//! So a test reads one stream of both: table updates, barriers and invalidations by
//! [`record`], and between them the calls to the subscriber.

use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_pgtable::host::Operation;

use super::{Event, EventSet, Range, Subscriber};
use crate::mm::kernel::record;
use crate::smp::this_cpu;

/// One call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Notified {
    /// [`Subscriber::invalidate_range_start`].
    Start(Event),
    /// [`Subscriber::invalidate_range_end`].
    End(Event),
    /// [`Subscriber::invalidate_range`].
    Range,
    /// [`Subscriber::invalidate_secondary_tlbs`].
    SecondaryTlbs,
    /// [`Subscriber::release`].
    Release,
}

/// A call with its circumstances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    /// Which.
    pub(crate) notified: Notified,
    /// The addresses, as numbers; of a release nothing.
    pub(crate) range: (u64, u64),
    /// The locks that the caller held, a bit for each rank: in debug builds.
    pub(crate) ranks: u32,
    /// How much the machine had done by then, in this thread's record.
    pub(crate) position: usize,
}

/// One step, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecordedStep {
    /// To the machine.
    Machine(Operation),
    /// To the subscriber.
    Notified(Notified, (u64, u64)),
}

/// Remembers every call.
#[derive(Debug)]
pub(crate) struct Recording {
    events: EventSet,
    calls: Mutex<Vec<Call>>,
}

impl Default for Recording {
    fn default() -> Self {
        Self::of(EventSet::ALL)
    }
}

impl Recording {
    /// Of these events, and all invalidations.
    pub(crate) const fn of(events: EventSet) -> Self {
        Self { events, calls: Mutex::new(Vec::new()) }
    }

    /// Takes the calls so far.
    pub(crate) fn take(&self) -> Vec<Call> {
        core::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The operations of `work` on the machine and its calls to this subscriber, as one stream.
    #[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
    pub(crate) fn stream(&self, work: impl FnOnce()) -> Vec<RecordedStep> {
        self.take();
        let machine = record::record(work);
        let mut calls = self.take().into_iter().peekable();
        let mut steps = Vec::new();
        for position in 0..=machine.len() {
            while let Some(call) = calls.next_if(|call| call.position <= position) {
                steps.push(RecordedStep::Notified(call.notified, call.range));
            }
            steps.extend(machine.get(position).copied().map(RecordedStep::Machine));
        }
        steps
    }

    #[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
    fn note(&self, notified: Notified, start: VirtAddr, end: VirtAddr) {
        let ranks = this_cpu().held_ranks().bits();
        let call = Call { notified, range: (start.0, end.0), ranks, position: record::position() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

impl Subscriber for Recording {
    fn events(&self) -> EventSet {
        self.events
    }

    fn invalidate_range_start(&self, range: &Range) {
        self.note(Notified::Start(range.event), range.start, range.end);
    }

    fn invalidate_range_end(&self, range: &Range) {
        self.note(Notified::End(range.event), range.start, range.end);
    }

    fn invalidate_range(&self, start: VirtAddr, end: VirtAddr) {
        self.note(Notified::Range, start, end);
    }

    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        self.note(Notified::SecondaryTlbs, start, end);
    }

    fn release(&self) {
        self.note(Notified::Release, VirtAddr(0), VirtAddr(0));
    }
}
