//! All that the model knows, and what happens in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use granule_smmuv3::Step as DriverStep;

use super::ats::{Atc, EATS, FULL_ATS};
use super::command::Pending;
use super::config::{Context, Regime};
use super::hardware::Hardware;
use super::memory::{Arena, PAGE_WORDS};
use super::registers::{Registers, SMMUEN};
use super::tlb::Tlb;
use super::violation::{SmmuRule, SmmuViolation};
use super::walk::{self, Step};
use super::{Barrier, Operation, Recorded, Rewrite, Time, View};

/// Operations that are recorded at most, some 100 MiB of them: a driver that waits for what never comes ends in a
/// verdict.
const MOST_RECORDED: usize = 1 << 21;

pub(crate) struct State {
    pub(crate) hardware: Hardware,
    pub(crate) arena: Arc<Arena>,
    pub(crate) registers: Registers,
    pub(crate) time: Time,
    pub(crate) clock: u64,
    pub(crate) recorded: Vec<Recorded>,
    pub(crate) violations: Vec<SmmuViolation>,
    /// Tables lead to themselves: what can be walked to is not followed any more.
    is_endless: bool,
    pub(crate) reports: Vec<String>,
    /// Blocks of memory that were given out, by their first word.
    pub(crate) allocated: BTreeMap<usize, usize>,
    pub(crate) next_free: usize,
    pub(crate) allocations_left: usize,
    /// The values that each word has had, for as long as anybody asks.
    pub(crate) history: HashMap<usize, Vec<(Time, u64)>>,
    /// Stores that no barrier of their thread has ordered yet, with what was there before.
    pub(crate) unordered: HashMap<usize, Unordered>,
    /// Configuration that was fetched before these is gone.
    pub(crate) fetched: Since,
    pub(crate) pending: Vec<Pending>,
    pub(crate) tlb: Tlb,
    pub(crate) atc: Atc,
    /// Streams whose transactions may come at any time.
    devices: BTreeSet<u32>,
    /// Pages whose words decide what can be walked to.
    pub(crate) watched: BTreeSet<usize>,
    /// The words of watched pages at the last look, where stores are not observed.
    known: BTreeMap<usize, Box<[u64]>>,
    /// Pages that are tables of the last level of 4 KiB, with what they serve.
    last_level: HashMap<usize, Vec<(Regime, u64)>>,
    /// Records that the SMMU has announced, and a CPU may read too early.
    pub(crate) late_records: Vec<(usize, [u64; 4])>,
    /// Events of transactions wait in `delayed` for a CMD_SYNC.
    pub(crate) delays_events: bool,
    pub(crate) delayed: Vec<[u64; 4]>,
    /// Load barriers since the event queue's PROD was read, and events that it announced.
    pub(crate) load_barriers: usize,
    /// CMD_TLBI_NSNH_ALL was completed once.
    pub(crate) translations_invalidated: bool,
    pub(crate) left_out: Vec<DriverStep>,
    pub(crate) lost_barriers: Vec<(Barrier, usize)>,
    /// So many cleans until one that is not there.
    pub(crate) lost_clean: Option<usize>,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) answers: bool,
    pub(crate) failing_fetches: usize,
    pub(crate) prefers_old: bool,
    /// A stream that is looked at all the time, and what it was seen as.
    pub(crate) spied: Option<(u32, BTreeSet<View>)>,
}

/// A store that no barrier of its thread has ordered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unordered {
    writer: ThreadId,
    /// The value before it.
    pub(crate) before: u64,
    pub(crate) time: Time,
}

/// When what is cached of configuration was invalidated last.
#[derive(Debug, Default)]
pub(crate) struct Since {
    pub(crate) all: Time,
    pub(crate) level1: HashMap<u32, Time>,
    pub(crate) entry: HashMap<u32, Time>,
    pub(crate) context: HashMap<u32, Time>,
}

impl Since {
    pub(crate) fn of(&self, of: &HashMap<u32, Time>, key: u32) -> Time {
        of.get(&key).copied().unwrap_or(0).max(self.all)
    }
}

impl State {
    pub(crate) fn new(hardware: Hardware, registers: Registers, arena: Arc<Arena>) -> Self {
        Self {
            hardware,
            arena,
            registers,
            time: 1,
            clock: 0,
            recorded: Vec::new(),
            violations: Vec::new(),
            is_endless: false,
            reports: Vec::new(),
            allocated: BTreeMap::new(),
            next_free: Arena::first(),
            allocations_left: usize::MAX,
            history: HashMap::new(),
            unordered: HashMap::new(),
            fetched: Since::default(),
            pending: Vec::new(),
            tlb: Tlb::default(),
            atc: Atc::default(),
            devices: BTreeSet::new(),
            watched: BTreeSet::new(),
            known: BTreeMap::new(),
            last_level: HashMap::new(),
            late_records: Vec::new(),
            delays_events: false,
            delayed: Vec::new(),
            load_barriers: 0,
            translations_invalidated: false,
            left_out: Vec::new(),
            lost_barriers: Vec::new(),
            lost_clean: None,
            rewrite: None,
            answers: true,
            failing_fetches: 0,
            prefers_old: false,
            spied: None,
        }
    }

    pub(crate) fn report(&mut self, rule: SmmuRule, text: String) {
        self.violations.push(SmmuViolation { rule, time: self.time, text });
    }

    /// Something happens.
    ///
    /// # Panics
    /// Too much has happened: see [`MOST_RECORDED`].
    pub(crate) fn note(&mut self, operation: Operation) -> Time {
        assert!(
            self.recorded.len() < MOST_RECORDED,
            "the driver does not come to an end, or a long test does not forget: {operation:x?}"
        );
        self.time += 1;
        self.recorded.push(Recorded { time: self.time, operation });
        self.time
    }

    /// A CPU stored to word `index`, which is `value` now.
    pub(crate) fn stored(&mut self, index: usize, value: u64) {
        let before = self.history.get(&index).and_then(|past| past.last()).map_or(0, |(_, value)| *value);
        let time = self.note(Operation::Store { address: Arena::address(index), value });
        if !self.arena.is_seen(index) {
            return;
        }
        self.unordered.entry(index).or_insert(Unordered { writer: thread::current().id(), before, time });
        self.history.entry(index).or_default().push((time, value));
        if self.changed(index, time) {
            self.fill();
        }
        self.spy();
    }

    /// A CPU cleans the lines of `bytes` at `address`, no more of them than that.
    pub(crate) fn clean(&mut self, address: u64, bytes: u64) {
        let time = self.note(Operation::Clean { address, bytes });
        if let Some(left) = self.lost_clean {
            self.lost_clean = left.checked_sub(1);
            if left == 0 {
                return;
            }
        }
        let mut changes = false;
        for at in (address..address + bytes).step_by(8) {
            let index = self.arena.index(at).expect("memory is cleaned");
            // Of a test's memory what has changed is found by `look`.
            if let Some(value) = self.arena.clean(index).filter(|_| !self.arena.is_elsewhere()) {
                self.history.entry(index).or_default().push((time, value));
                changes |= self.changed(index, time);
            }
        }
        if changes {
            self.fill();
        }
    }

    /// Word `index` has changed: what the TLB may have of it, where it is an entry of a table of the last level.
    /// Returns whether more is to be looked at.
    fn changed(&mut self, index: usize, time: Time) -> bool {
        let page = index / PAGE_WORDS;
        if let Some(serves) = self.last_level.get(&page) {
            // A leaf: nothing else changes.
            let leaves: Vec<Step> = serves
                .iter()
                .filter_map(|(regime, start)| {
                    let start = start + (index % PAGE_WORDS) as u64 * 0x1000;
                    regime
                        .step(regime.tables.as_ref()?, &self.arena, index, 3, start)
                        .filter(|leaf| walk::is_young(leaf, regime))
                })
                .flat_map(|leaf| [Some(leaf), leaf.as_group(12)])
                .flatten()
                .collect();
            self.tlb.ends(index, time);
            leaves.into_iter().for_each(|leaf| self.may_hold(leaf));
            self.atc.ask(&self.tlb);
            return false;
        }
        self.watched.contains(&page)
    }

    /// Finds out what has changed in memory where stores are not observed, as far as it matters.
    pub(crate) fn look(&mut self) {
        if !self.arena.is_elsewhere() {
            return;
        }
        let time = self.time + 1;
        let mut changes = false;
        for (page, mut known) in std::mem::take(&mut self.known) {
            if !self.watched.contains(&page) {
                // When it is watched again it is something else.
                continue;
            }
            let arena = Arc::clone(&self.arena);
            arena.for_each_word(page, |index, value| {
                let known = &mut known[index % PAGE_WORDS];
                if *known != value {
                    self.time = time;
                    self.history.entry(index).or_insert_with(|| vec![(0, *known)]).push((time, value));
                    *known = value;
                    changes |= self.changed(index, time);
                }
            });
            self.known.insert(page, known);
        }
        if changes {
            self.fill();
        }
        self.know();
    }

    /// Remembers what is in pages that are watched from now on, where stores are not observed.
    fn know(&mut self) {
        if !self.arena.is_elsewhere() {
            return;
        }
        let new: Vec<usize> = self.watched.iter().filter(|page| !self.known.contains_key(page)).copied().collect();
        for page in new {
            let first = page * PAGE_WORDS;
            (first..first + PAGE_WORDS).for_each(|index| drop(self.history.remove(&index)));
            let mut words = Vec::with_capacity(PAGE_WORDS);
            self.arena.for_each_word(page, |_, value| words.push(value));
            self.known.insert(page, words.into());
        }
    }

    /// The value of word `index` before its history begins.
    pub(crate) fn at_first(&self, index: usize) -> u64 {
        let known = || self.known.get(&(index / PAGE_WORDS)).map(|words| words[index % PAGE_WORDS]);
        match self.arena.is_elsewhere() && !self.history.contains_key(&index) {
            true => known().unwrap_or_else(|| self.arena.read(index)),
            false => 0,
        }
    }

    /// Notes what the spied stream may be treated as now.
    pub(crate) fn spy(&mut self) {
        if let Some((stream, mut seen)) = self.spied.take() {
            seen.extend(self.views(stream));
            self.spied = Some((stream, seen));
        }
    }

    /// A barrier of this thread.
    pub(crate) fn barrier(&mut self, barrier: Barrier) {
        self.note(Operation::Barrier(barrier));
        if let Some(at) = self.lost_barriers.iter_mut().position(|(which, left)| {
            let hit = *which == barrier && *left == 0;
            *left -= usize::from(*which == barrier && !hit);
            hit
        }) {
            self.lost_barriers.remove(at);
            return;
        }
        match barrier {
            Barrier::Store => {
                let thread = thread::current().id();
                self.unordered.retain(|_, store| store.writer != thread);
            }
            Barrier::Load => {
                self.load_barriers += 1;
                for (index, record) in std::mem::take(&mut self.late_records) {
                    (0..).zip(record).for_each(|(word, value)| self.arena.write(index + word, value));
                }
            }
        }
    }

    pub(crate) fn is_allocated(&self, address: u64, bytes: u64) -> bool {
        let Some(index) = self.arena.index(address) else { return false };
        if self.arena.is_elsewhere() {
            return true;
        }
        let block = self.allocated.range(..=index).next_back();
        block.is_some_and(|(start, words)| index + (bytes / 8) as usize <= start + words)
    }

    pub(crate) fn control_changed(&mut self, before: u32, now: u32) {
        if (before ^ now) & SMMUEN != 0 {
            self.fill();
        }
    }

    /// A device that `stream` belongs to is there: its transactions, and fetches ahead of them, may come at any time.
    pub(crate) fn add_device(&mut self, stream: u32) {
        self.devices.insert(stream);
        self.fill();
    }

    /// The TLB may have one more.
    fn may_hold(&mut self, step: Step) {
        let beside = self.tlb.held().map(|held| held.step).find(|held| held.is_another_size(&step));
        if let Some(held) = beside.filter(|_| !self.hardware.size_changes) {
            let text = format!("the TLB may have {held:x?} beside {step:x?}");
            self.report(SmmuRule::BreakBeforeMake, text);
        }
        self.tlb.may_hold(step);
    }

    /// Steps that can be walked to may have changed: the TLB may have the new ones, and keeps those that are gone.
    pub(crate) fn fill(&mut self) {
        if self.is_endless {
            return;
        }
        self.time += 1;
        self.watched.clear();
        self.last_level.clear();
        let mut regimes = BTreeSet::new();
        let mut with_ats = Vec::new();
        for stream in self.devices.clone() {
            for view in self.views(stream) {
                if let View::Translate { stage1, context: Context::Regime(regime) } = view {
                    regimes.insert(regime);
                    if self.hardware.ats && stage1.rest[0] & EATS == FULL_ATS {
                        with_ats.push((stream, regime));
                    }
                }
            }
        }
        let regimes: Vec<Regime> = regimes.into_iter().collect();
        let steps: Vec<Vec<Step>> = regimes.iter().map(|regime| regime.all(&self.arena)).collect();
        for (regime, steps) in regimes.iter().zip(&steps) {
            let Some(tables) = &regime.tables else { continue };
            if steps.len() >= walk::MOST_STEPS {
                let text = format!("the tables at {:#x} have {} entries and more", tables.root, walk::MOST_STEPS);
                self.is_endless = true;
                return self.report(SmmuRule::Endless, text);
            }
            self.watched.extend(self.arena.index(tables.root).map(|index| index / PAGE_WORDS));
            for step in steps.iter().filter(|step| !step.is_leaf) {
                let Some(page) = self.arena.index(step.target()).map(|index| index / PAGE_WORDS) else { continue };
                self.watched.insert(page);
                if tables.page_shift == 12 && step.level == 2 {
                    self.last_level.entry(page).or_default().push((*regime, step.start));
                }
            }
        }
        let all = regimes.iter().zip(&steps);
        let walkable = walk::walkable(all.flat_map(|(regime, steps)| steps.iter().map(move |step| (regime, step))));
        self.tlb.walks_find(|step| walkable.get(&walk::key(step)) == Some(step), self.time);
        walkable.into_values().for_each(|step| self.may_hold(step));
        self.atc.serve(with_ats, &self.tlb);
        self.know();
    }
}
