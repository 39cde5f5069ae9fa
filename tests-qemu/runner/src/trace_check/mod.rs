//! Checks what a guest prints about a device's translations against QEMU's trace of the SMMU.
//!
//! The guest prints a [`Expectation`] for each change and each access; the trace has each command and each access as
//! well, in the order in which they came to the SMMU. The two must be the same story: after each change, and before
//! the next access, comes one call of commands that end in a CMD_SYNC, under the ASID under which the device's accesses
//! are looked up, which covers exactly the pages that were changed, by the fewest commands there are; there are no
//! others; each access goes where the CPU's tables map it; and none passes untranslated.
//!
//! A change of pages of which the SMMU holds nothing shows nothing, and does not count.

mod trace;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use granule_protocol::{Access, Expectation};

pub use trace::arguments;
use trace::{Effect, Seen};

const PAGE: u64 = 4096;
/// A change of all pages that there are, which one command for the whole ASID covers.
const EVERYTHING: (u64, u64) = (0, u64::MAX);
/// Events of accesses that a translation does not permit. All others are mistakes in tables.
const FAULTS: [&str; 3] = ["SMMU_EVT_F_PERMISSION", "SMMU_EVT_F_TRANSLATION", "SMMU_EVT_F_ACCESS"];

/// Counts of the changes and accesses on which the two agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Agreed {
    /// Changes of what the SMMU held, each with its commands.
    pub changes: u32,
    /// Commands for them, CMD_SYNC not counted.
    pub commands: u32,
    /// Accesses that passed.
    pub reached: u32,
    /// Accesses that did not.
    pub refused: u32,
}

/// The expectations that a test printed.
///
/// # Errors
/// When a line means to be one and cannot be read.
pub fn expectations(output: &str) -> Result<Vec<Expectation>> {
    let read = |line: &str| {
        Expectation::read(line).map(|expectation| expectation.with_context(|| format!("a damaged expectation: {line}")))
    };
    output.lines().filter_map(read).collect()
}

/// Compares.
///
/// # Errors
/// Where they differ, with the place in the trace.
pub fn check(expectations: &[Expectation], trace: &str) -> Result<Agreed> {
    let mut checker = Checker::new(expectations);
    for (number, line) in trace.lines().enumerate() {
        if let Some(seen) = trace::read(line)? {
            checker.step(seen).with_context(|| format!("line {} of the trace: {line}", number + 1))?;
        }
    }
    checker.end()
}

/// Commands up to a CMD_SYNC.
#[derive(Default)]
struct Call {
    commands: u32,
    effects: Vec<Effect>,
}

/// The state of a stream, as far as it is known.
#[derive(Default)]
struct Stream {
    is_bound: bool,
    /// The ASID under which its accesses are looked up, since it was bound.
    asid: Option<u32>,
    /// It has made an access that counts.
    is_at_work: bool,
    /// An unbinding has invalidated the stream's configuration; the invalidation of its ASID must follow.
    is_cut_off: bool,
}

struct Checker<'a> {
    left: std::slice::Iter<'a, Expectation>,
    /// The expectation that came last, if no commands came since: a device may take several steps for one access.
    last: Option<Expectation>,
    streams: BTreeMap<u32, Stream>,
    /// Pages that expectations are about. Other pages, of rings for one, are ignored.
    watched: Vec<(u64, u64)>,
    /// Pages that the SMMU may hold.
    held: BTreeSet<u64>,
    /// The ASID of the access under way.
    looked: Option<u32>,
    call: Call,
    agreed: Agreed,
}

impl<'a> Checker<'a> {
    fn new(expectations: &'a [Expectation]) -> Self {
        let stream = |expectation: &Expectation| match *expectation {
            Expectation::Bound { stream } | Expectation::Unbound { stream } => Some((stream, Stream::default())),
            Expectation::Reached { stream, .. } | Expectation::Refused { stream, .. } => {
                Some((stream, Stream::default()))
            }
            Expectation::Changed { .. } => None,
        };
        let watched = |expectation: &Expectation| match *expectation {
            Expectation::Reached { page, .. } | Expectation::Refused { page, .. } => Some((page, page + PAGE)),
            Expectation::Changed { start, end } => Some((start, end)).filter(|range| *range != EVERYTHING),
            Expectation::Bound { .. } | Expectation::Unbound { .. } => None,
        };
        let mut watched: Vec<_> = expectations.iter().filter_map(watched).collect();
        watched.sort_unstable();
        watched.dedup();
        Self {
            left: expectations.iter(),
            last: None,
            streams: expectations.iter().filter_map(stream).collect(),
            watched,
            held: BTreeSet::new(),
            looked: None,
            call: Call::default(),
            agreed: Agreed::default(),
        }
    }

    fn step(&mut self, seen: Seen) -> Result<()> {
        match seen {
            Seen::Command(true) => {
                let call = std::mem::take(&mut self.call);
                self.call(&call)
            }
            Seen::Command(false) => {
                self.call.commands += 1;
                Ok(())
            }
            Seen::Effect(effect) => {
                self.call.effects.push(effect);
                Ok(())
            }
            Seen::Illegal => bail!("the SMMU got a command that it does not know"),
            Seen::Looked { asid } => {
                self.looked = Some(asid);
                Ok(())
            }
            Seen::Reached { stream, page, physical, writable } => self.reached(stream, page, physical, writable),
            Seen::Refused { stream, event } if self.streams.contains_key(&stream) => {
                ensure!(FAULTS.contains(&event.as_str()), "stream {stream:#x} is not set up as it should be: {event}");
                self.refused(stream)
            }
            Seen::Aborted { stream } if self.streams.contains_key(&stream) => self.refused(stream),
            Seen::Bypassed { stream } if self.streams.contains_key(&stream) => {
                bail!("stream {stream:#x} passes untranslated")
            }
            Seen::Refused { .. } | Seen::Aborted { .. } | Seen::Bypassed { .. } => Ok(()),
        }
    }

    /// Commands are complete.
    fn call(&mut self, call: &Call) -> Result<()> {
        self.last = None;
        if let Some(&Expectation::Bound { stream }) = self.next()
            && call.effects.iter().any(|effect| effect.is_of(stream))
        {
            self.take();
            self.streams.insert(stream, Stream { is_bound: true, ..Stream::default() });
        }
        if let Some(&Expectation::Unbound { stream }) = self.next() {
            return self.unbind(stream, call);
        }
        for (&stream, known) in &mut self.streams {
            if call.effects.iter().any(|effect| effect.is_of(stream)) {
                ensure!(!known.is_at_work, "stream {stream:#x} is configured anew");
                // It may come under another ASID.
                known.asid = None;
            }
        }
        let tags: Vec<u32> = self.bound().filter_map(|stream| stream.asid).collect();
        let is_ours = |effect: &Effect| tags.iter().any(|&tag| effect.forgets_of(tag));
        let ours: Vec<Effect> = call.effects.iter().copied().filter(is_ours).collect();
        if ours.is_empty() {
            return Ok(());
        }
        let Some(&Expectation::Changed { start, end }) = self.next() else {
            bail!("an invalidation of what was not said to change: {ours:x?}; next: {}", self.expected());
        };
        ensure!(
            ours.len() == call.effects.len() && exactly(&ours, start, end),
            "not exactly {start:#x} to {end:#x} under {tags:?} was invalidated, but: {:x?}",
            call.effects
        );
        let fewest = if (start, end) == EVERYTHING { 1 } else { fewest((end - start) / PAGE) };
        ensure!(call.commands == fewest, "{} commands for what takes {fewest}", call.commands);
        let pages: Vec<u64> = self.held.range(start..end).copied().collect();
        if !pages.is_empty() {
            self.agreed.changes += 1;
            self.agreed.commands += call.commands;
        }
        for page in pages {
            self.held.remove(&page);
        }
        self.take();
        Ok(())
    }

    fn unbind(&mut self, stream: u32, call: &Call) -> Result<()> {
        let known = self.streams.get_mut(&stream).context("a stream that was never bound")?;
        for effect in &call.effects {
            known.is_cut_off |= effect.is_of(stream);
            let forgotten = known.asid.is_none_or(|asid| matches!(effect, Effect::Asid(it) if *it == asid));
            if known.is_cut_off && forgotten {
                *known = Stream::default();
                self.take();
                return Ok(());
            }
        }
        Ok(())
    }

    fn reached(&mut self, stream: u32, page: u64, physical: u64, writable: bool) -> Result<()> {
        let looked = self.looked.take();
        let Some(known) = self.streams.get_mut(&stream) else { return Ok(()) };
        if known.is_bound {
            let asid = looked.context("an access that was not looked up")?;
            ensure!(*known.asid.get_or_insert(asid) == asid, "stream {stream:#x} has changed its ASID to {asid}");
        }
        if !self.is_watched(page) {
            return Ok(());
        }
        let is_this = |expectation: Option<&Expectation>| match expectation {
            Some(&Expectation::Reached { stream: its, access, page: at, physical: to }) => {
                (its, at, to) == (stream, page, physical) && (writable || access == Access::Read)
            }
            _ => false,
        };
        if is_this(self.next()) {
            self.take();
            self.held.insert(page);
            if let Some(known) = self.streams.get_mut(&stream) {
                known.is_at_work = known.is_bound;
            }
            self.agreed.reached += 1;
        } else {
            ensure!(is_this(self.last.as_ref()), "the access was not expected; next: {}", self.expected());
        }
        Ok(())
    }

    fn refused(&mut self, stream: u32) -> Result<()> {
        let is_this = |expectation: Option<&Expectation>| matches!(expectation, Some(Expectation::Refused { stream: its, .. }) if *its == stream);
        if is_this(self.next()) {
            self.take();
            self.agreed.refused += 1;
        } else {
            ensure!(is_this(self.last.as_ref()), "a fault that was not expected; next: {}", self.expected());
        }
        Ok(())
    }

    fn end(self) -> Result<Agreed> {
        ensure!(self.next().is_none(), "the trace ends before: {}", self.expected());
        ensure!(self.call.effects.is_empty(), "commands without a CMD_SYNC: {:x?}", self.call.effects);
        ensure!(self.agreed.reached > 0, "no access passed: this shows nothing");
        Ok(self.agreed)
    }

    fn next(&self) -> Option<&'a Expectation> {
        self.left.as_slice().first()
    }

    fn take(&mut self) {
        self.last = self.left.next().copied();
    }

    fn bound(&self) -> impl Iterator<Item = &Stream> {
        self.streams.values().filter(|stream| stream.is_bound)
    }

    fn is_watched(&self, page: u64) -> bool {
        // Ranges are few, or single pages that lie one after another.
        let behind = self.watched.partition_point(|(start, _)| *start <= page);
        self.watched[..behind].iter().any(|(_, end)| page < *end)
    }

    fn expected(&self) -> String {
        self.next().map_or_else(|| "nothing".into(), ToString::to_string)
    }
}

impl Effect {
    fn is_of(&self, stream: u32) -> bool {
        matches!(self, Self::Streams(start, end) if (*start..=*end).contains(&stream))
    }

    fn forgets_of(&self, tag: u32) -> bool {
        match self {
            Self::Streams(..) => false,
            Self::Range { asid, .. } => asid.is_none_or(|asid| asid == tag),
            Self::Asid(asid) => *asid == tag,
            Self::Everything => true,
        }
    }
}

/// Whether these are about all pages of the range and no other.
fn exactly(effects: &[Effect], start: u64, end: u64) -> bool {
    let range = |effect: &Effect| match *effect {
        Effect::Range { start, end, .. } => Some((start, end)),
        _ => None,
    };
    if (start, end) == EVERYTHING {
        return effects.iter().all(|effect| matches!(effect, Effect::Asid(_)));
    }
    let Some(mut ranges) = effects.iter().map(range).collect::<Option<Vec<_>>>() else { return false };
    ranges.sort_unstable();
    let mut reached = start;
    for (from, to) in &ranges {
        if *from > reached {
            return false;
        }
        reached = reached.max(*to);
    }
    reached == end && ranges.first().is_some_and(|(from, _)| *from == start)
}

/// Commands for so many pages, with range invalidation: one where five bits and a shift can hold the number, else two.
fn fewest(pages: u64) -> u32 {
    if pages >> pages.trailing_zeros().min(63) <= 32 { 1 } else { 2 }
}
