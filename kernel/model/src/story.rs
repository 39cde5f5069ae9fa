//! Violations, and their reports: which CPU, which entry, which store, which step is missing.
//!
//! Nothing is noted in advance: a story is read off the recorded stream when something is wrong.

use std::fmt;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, Kind as EntryKind, bits};
use granule_pgtable::Geometry;

use crate::decode::Miss;
use crate::event::{Operation, Time};
use crate::rules::is_last;
use crate::state::State;
use crate::stores::entry_kind;
use crate::tlb::{Held, Kind};

/// Which rule was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Something changed under a live translation that must not.
    BreakBeforeMake,
    /// An entry that was emptied is filled again although some TLB may still hold what it was.
    EarlyFill,
    /// A store overwrites a flag that the hardware may have set since the entry was read.
    LostUpdate,
    /// A contiguous group was used whose entries differ.
    MixedGroup,
    /// A table was linked before its contents.
    UnorderedTable,
    /// A frame was mapped before it was seen zeroed.
    UnorderedFrame,
    /// A translation that should be gone may still be used.
    StaleTranslation,
    /// An access may fault although its translation was made before.
    SpuriousFault,
    /// A frame was given up that some TLB still translates to, or copied while some CPU may store to it.
    FrameInUse,
    /// A table was given up, or used twice, that some walk may still come to.
    TableInUse,
    /// An ASID is given to another tree although the TLB may still hold entries of the one that had it before.
    AsidInUse,
    /// A CPU may write through an entry that it holds where a CPU may execute.
    WriteXorExecute,
    /// An instruction or operand that the machine does not define.
    Undefined,
}

/// A violation, and how it came about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    headline: String,
    story: Vec<String>,
}

impl Violation {
    pub(crate) const fn new(rule: Rule, headline: String, story: Vec<String>) -> Self {
        Self { rule, headline, story }
    }

    /// The violation, in a line.
    pub fn headline(&self) -> &str {
        &self.headline
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.headline)?;
        self.story.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// `page, read-only, 0x0060000048001783`: what an entry is.
pub(crate) fn entry(value: u64, level: u8) -> String {
    let decoded = Descriptor(value).decoded(level);
    match entry_kind(value, level) {
        EntryKind::None => format!("invalid ({value:#x})"),
        EntryKind::Table | EntryKind::Leaf => format!("{decoded} ({value:#018x})"),
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size, level, target, cell, stored, .. } = self;
        let what = match self.kind {
            Kind::Table => "table",
            Kind::Leaf if self.grouped => "group",
            Kind::Leaf if is_last(*level) => "page",
            Kind::Leaf => "block",
        };
        write!(f, "{what} {start:#x} +{size:#x} -> {target}")?;
        if self.kind == Kind::Leaf {
            let write = if self.attributes & bits::RDONLY == 0 { "rw" } else { "ro" };
            let execute = if self.attributes & bits::PXN == 0 { "x" } else { "nx" };
            write!(f, " {write} {execute}")?;
        }
        write!(f, " ({:#x}, level {level}, entry at {cell}", self.attributes)?;
        if *stored == Time(0) { write!(f, ")") } else { write!(f, ", stored {stored})") }
    }
}

impl<G: Geometry> State<G> {
    /// An event of the stream, as a line.
    pub(crate) fn line(&self, time: Time) -> String {
        self.event(time).map_or_else(|| format!("{time} before the first event"), |event| format!("{time} {event}"))
    }

    /// The store that made `held` untrue: to its cell, its group, or a table above; with the CPU that made it.
    fn superseded(&self, held: &Held) -> Option<(Time, usize)> {
        let mut cells: Vec<PhysAddr> = if held.grouped { self.group(held.cell).collect() } else { vec![held.cell] };
        let mut above = self.memory.place(held.cell).and_then(|place| place.parent);
        while let Some(cell) = above {
            cells.push(cell);
            above = self.memory.place(cell).and_then(|place| place.parent);
        }
        let after = self.stream.iter().enumerate().skip(held.stored.0);
        let stores = after.filter_map(|(index, event)| match event.operation {
            Operation::Write { cell, old, new } | Operation::SetFlags { cell, old, new }
                if cells.contains(&cell) && old != new =>
            {
                Some((cell, new, Time(index + 1), event.cpu))
            }
            _ => None,
        });
        let remakes =
            |cell, new: Descriptor, time| self.entries(cell, new.0, time).iter().any(|new| new.same_entry(held));
        let mut untrue = stores.filter(|&(cell, new, time, _)| !remakes(cell, new, time));
        untrue.next().map(|(_, _, time, cpu)| (time, cpu))
    }

    /// Why CPU `holder` may still hold `held`: what was stored over it, and the step that is missing.
    pub(crate) fn why_held(&self, holder: usize, held: &Held) -> Vec<String> {
        let Some((store, writer)) = self.superseded(held) else {
            return vec!["nothing was stored over it".to_owned()];
        };
        let mut story = vec![self.line(store)];
        let is_drain = |operation| matches!(operation, Operation::DsbIshst | Operation::DsbIsh);
        let after = || self.stream.iter().enumerate().skip(store.0).map(|(index, event)| (Time(index + 1), event));
        let drained = after().find(|(_, event)| event.cpu == writer && is_drain(event.operation)).map(|(time, _)| time);
        if self.is_walkable(holder, held, |_| false) {
            story.push(format!(
                "missing: DSB ISHST on CPU {writer} after {store}; until then any walk may read the old entry and keep it"
            ));
        }
        let dooms = self.cpus[holder].tlb.dooms(held);
        let (mut covered, mut elsewhere) = (false, Vec::new());
        for (time, event) in after() {
            let Operation::Tlbi(instruction) = event.operation else { continue };
            let Some(decoded) = self.decoded(instruction) else { continue };
            let verdict = match decoded.takes(event.cpu, holder, held) {
                Err(Miss::Elsewhere) => {
                    elsewhere.push(format!("{time} {event}"));
                    continue;
                }
                Ok(()) if dooms.iter().any(|doom| doom.at == time) => {
                    format!("took it, but missing: DSB ISH on CPU {}, which issued it", event.cpu)
                }
                Ok(()) if drained.is_none_or(|drained| time < drained) => {
                    format!(
                        "came before a DSB ISHST made {store} visible: a walk after it may read the old entry again"
                    )
                }
                Ok(()) => "was for an entry that a walk could read again".to_owned(),
                Err(Miss::Local) => format!("is for CPU {} alone", event.cpu),
                Err(Miss::Hint(level)) => format!("says that the leaf is at level {level}"),
                Err(Miss::LastLevelOnly) => "takes leaves only, no tables".to_owned(),
                Err(Miss::Asid) => "is for another ASID".to_owned(),
                Err(Miss::Void(why)) => format!("need not do anything: {why}"),
            };
            covered = true;
            story.push(format!("{time} {event}: {verdict}"));
        }
        if let Some((first, more)) = elsewhere.split_first().filter(|_| !covered) {
            let more = if more.is_empty() { String::new() } else { format!(" (and so are {} more)", more.len()) };
            story.push(format!("{first}: is for other addresses{more}"));
        }
        if !covered {
            story.push(format!("missing: TLBI after {store}"));
        }
        story
    }

    /// Why `cpu` itself may still use `held`, which its TLB no longer has.
    pub(crate) fn why_ahead(&self, cpu: usize, held: &Held) -> Vec<String> {
        let store = self.superseded(held).map(|(store, _)| self.line(store));
        let missing =
            format!("missing: ISB on CPU {cpu} after the DSB that completed the TLBI; it may have translated ahead");
        store.into_iter().chain([missing]).collect()
    }

    /// Why a walk of `cpu` may come to `table`.
    pub(crate) fn why_reached(&self, cpu: usize, table: PhysAddr) -> Vec<String> {
        let Some(place) = self.memory.place(table) else { return Vec::new() };
        let Some(parent) = place.parent else { return vec!["it is the root".to_owned()] };
        let mut cached = self.cpus[cpu].tlb.tables(place.start, G::entry_size(place.level - 1));
        if let Some(held) = cached.find(|held| held.target == table).copied() {
            let mut story = vec![format!("the walk cache of CPU {cpu} may hold {held}")];
            story.extend(self.why_held(cpu, &held));
            return story;
        }
        let value = self.arena.value(parent);
        vec![format!("the entry at {parent} is {}", entry(value, place.level - 1))]
    }

    /// Why an access of `cpu` may fault although `cell` now translates.
    pub(crate) fn why_faults(&self, cpu: usize, cell: PhysAddr) -> Vec<String> {
        let Some(state) = self.memory.cell(cell) else { return Vec::new() };
        let newest = *state.newest();
        let mut story = vec![self.line(newest.time)];
        story.push(if state.visible(cpu).len() > 1 {
            format!("missing: DSB ISHST on CPU {} after {}, then ISB on CPU {cpu}", newest.writer, newest.time)
        } else {
            format!("missing: ISB on CPU {cpu} after {}; it may have walked ahead", state.faulted_until(cpu))
        });
        story
    }
}
