//! Translations that devices ask for ahead and keep (ATS, IHI 0070, 3.9): a device's cache, its ATC, as it may be.
//!
//! A device whose stream has EATS may ask for a translation at any time. The answer may come from the SMMU's TLB,
//! stale entries included, and is kept until a CMD_ATC_INV that covers it. So that command comes after the CMD_SYNC of
//! the CMD_TLBI: before, the device may ask once more, and have the stale entry again.

use super::config::Regime;
use super::tlb::Tlb;
use super::walk::Step;

/// EATS of a stream table entry that is full ATS, in place.
pub(crate) const FULL_ATS: u64 = 0b01 << 28;
/// The field.
pub(crate) const EATS: u64 = 0b11 << 28;

/// An answer that a device may have.
#[derive(Clone, Copy, Debug)]
struct Answer {
    stream: u32,
    step: Step,
    /// A CMD_ATC_INV was taken that covers it, when it could not be asked for again.
    is_covered: bool,
}

/// The ATCs of all devices.
#[derive(Debug, Default)]
pub(crate) struct Atc {
    answers: Vec<Answer>,
    /// Streams with ATS, and how they are translated.
    streams: Vec<(u32, Regime)>,
}

impl Atc {
    /// Devices of `streams` may ask from now on, and no others.
    pub(crate) fn serve(&mut self, streams: Vec<(u32, Regime)>, tlb: &Tlb) {
        self.streams = streams;
        self.ask(tlb);
    }

    /// They ask for everything that the TLB may have.
    pub(crate) fn ask(&mut self, tlb: &Tlb) {
        for (stream, regime) in &self.streams {
            for held in tlb.held().filter(|held| held.step.is_leaf && regime.uses(&held.step)) {
                let same = |answer: &&mut Answer| answer.stream == *stream && answer.step == held.step;
                match self.answers.iter_mut().find(same) {
                    Some(answer) => answer.is_covered = false,
                    None => self.answers.push(Answer { stream: *stream, step: held.step, is_covered: false }),
                }
            }
        }
    }

    /// A CMD_ATC_INV was taken from the queue.
    pub(crate) fn begin(&mut self, stream: u32, (start, last): (u64, u64), tlb: &Tlb) {
        for answer in self.answers.iter_mut().filter(|answer| answer.stream == stream) {
            let is_touched = answer.step.start <= last && start <= answer.step.last();
            answer.is_covered |= is_touched && !tlb.held().any(|held| held.step == answer.step);
        }
    }

    /// A CMD_SYNC was.
    pub(crate) fn complete(&mut self) {
        self.answers.retain(|answer| !answer.is_covered);
    }

    /// The answers that devices may have and that a walk finds no more, each with its stream.
    pub(crate) fn stale<'a>(&'a self, tlb: &'a Tlb) -> impl Iterator<Item = (u32, Step)> + 'a {
        let is_found = |step: &Step| tlb.held().any(|held| held.step == *step && held.until.is_none());
        self.answers.iter().filter(move |answer| !is_found(&answer.step)).map(|answer| (answer.stream, answer.step))
    }

    /// Whether transactions of `stream` may be translated by its device.
    pub(crate) fn serves(&self, stream: u32) -> bool {
        self.streams.iter().any(|(served, _)| *served == stream)
    }
}

impl Regime {
    /// Whether the tag of `step` is this one's.
    pub(crate) const fn uses(&self, step: &Step) -> bool {
        step.asid == self.asid || step.is_global()
    }
}
