//! Stores that have not drained: what a table walk may read in each cell.
//!
//! Arm ARM B2.3 and D8.2.6. A store may reach the walkers at once, or at any later time; it certainly has only
//! - after a DSB (ISHST or ISH) of the CPU that made it: for everyone;
//! - after a DSB ISH of a CPU that read it, or was handed what its maker did: for everyone. A DSB ISHST there does not
//!   do, since it orders no loads; unless that CPU has stored in between: the store comes after what it had read, since
//!   it decides by that whether and what to store (a control or data dependency), and the DSB after the store;
//! - after an ISB of such a CPU: for that CPU.
//!
//! A CPU that reads a store has read what comes before it, too: what its maker stored before a barrier, or knew.
//!
//! Until then a walker may read the old value as well as the new, again and again, in any order.
//!
//! A load by software may read an old value as well ([`Memory::readable`]), but
//! - never one older than what it has read there, or stored itself;
//! - not from before a DSB of the CPU that stored, or an acquire of what that has released;
//! - not after a DSB ISH or an ISB of its own, where it had read what comes after.
//!
//! No other load orders a load. None is done before it stands, so this has fewer outcomes than the architecture.

use std::collections::{BTreeMap, HashMap};

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, Kind as EntryKind, LevelEntries, bits};
use granule_pgtable::geometry::LAST_LEVEL;

use crate::arena::Arena;
use crate::event::Time;
use crate::features::Features;

/// The most CPUs that a model may have.
pub const MAX_CPUS: usize = 8;

/// Some of the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CpuSet(u8);

impl CpuSet {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(u8::MAX);

    pub(crate) fn only(cpu: usize) -> Self {
        Self(1 << cpu)
    }

    fn contains(self, cpu: usize) -> bool {
        self.0 >> cpu & 1 != 0
    }
}

/// A value that was stored to a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) value: u64,
    pub(crate) writer: usize,
    pub(crate) time: Time,
    /// The last barrier in front of it: what its writer had stored by then comes before it.
    barrier: Time,
    /// The CPUs whose walkers read this value or a later one.
    pub(crate) certain: CpuSet,
}

/// The values of a cell that some walker may still read, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct CellState {
    versions: Vec<Version>,
    /// For each CPU, when a value that faults could last be read: a walk ahead of its use may have done so just before.
    faulted_until: [Time; MAX_CPUS],
}

impl CellState {
    fn new(value: u64) -> Self {
        let first = Version { value, writer: 0, time: Time(0), barrier: Time(0), certain: CpuSet::ALL };
        Self { versions: vec![first], faulted_until: [Time(0); MAX_CPUS] }
    }

    /// The values that a walk of `cpu` may read.
    pub(crate) fn visible(&self, cpu: usize) -> &[Version] {
        let first = self.versions.iter().rposition(|version| version.certain.contains(cpu));
        &self.versions[first.unwrap_or(0)..]
    }

    /// Those that some CPU may read.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter()
    }

    pub(crate) fn newest(&self) -> &Version {
        self.versions.last().expect("a cell has a value")
    }

    /// Those stores that some walker may not have seen.
    pub(crate) fn undrained(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter().filter(|version| version.certain != CpuSet::ALL)
    }

    /// When a value that faults could last be read by `cpu`, if that is past.
    pub(crate) fn faulted_until(&self, cpu: usize) -> Time {
        self.faulted_until[cpu]
    }

    /// The walkers of `cpus` read the versions that `which` picks, or later ones, from now on.
    fn settle(&mut self, cpus: CpuSet, walks: Option<(u8, Features)>, now: Time, which: impl Fn(&Version) -> bool) {
        let before: Vec<Vec<Version>> = (0..MAX_CPUS).map(|cpu| self.visible(cpu).to_vec()).collect();
        for version in self.versions.iter_mut().filter(|version| which(version)) {
            version.certain.0 |= cpus.0;
        }
        if let Some((level, features)) = walks {
            for (cpu, before) in before.iter().enumerate() {
                let dropped = before.len() - self.visible(cpu).len();
                if before[..dropped].iter().any(|version| faults(version.value, level, features)) {
                    self.faulted_until[cpu] = now;
                }
            }
        }
        let oldest = self.versions.iter().rposition(|version| version.certain == CpuSet::ALL).unwrap_or(0);
        self.versions.drain(..oldest);
    }
}

/// Whether a walk that reads `value` at `level` ends in a fault that no TLB keeps: not valid, or AF = 0 and left so.
pub(crate) fn faults(value: u64, level: u8, features: Features) -> bool {
    match entry_kind(value, level) {
        EntryKind::Table => false,
        EntryKind::Leaf => features.used(value) & bits::AF == 0,
        EntryKind::None => true,
    }
}

/// The kind of entry that the hardware makes of `value` at `level`: a present-invalid leaf is none.
pub(crate) fn entry_kind(value: u64, level: u8) -> EntryKind {
    let descriptor = Descriptor(value);
    let entries = if level == LAST_LEVEL { LevelEntries::Pages } else { LevelEntries::TablesAndBlocks };
    if descriptor.is_valid() { descriptor.kind(entries) } else { EntryKind::None }
}

/// Where a table hangs in the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) level: u8,
    /// The first address that it translates.
    pub(crate) start: u64,
    /// The cell that points to it; the root has none.
    pub(crate) parent: Option<PhysAddr>,
    /// The root of the tree.
    pub(crate) root: PhysAddr,
}

/// The record of a frame.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// Where it hangs, or last hung and may still be reached.
    pub(crate) place: Option<Place>,
    /// Cells that were written by CPUs; any other has its plain value and always had.
    cells: BTreeMap<u16, CellState>,
}

impl Frame {
    /// The cells that were written, by index.
    pub(crate) fn written(&self) -> impl Iterator<Item = (u16, &CellState)> {
        self.cells.iter().map(|(&index, cell)| (index, cell))
    }

    /// Makes older stores unreadable: each cell has its newest value and no past.
    pub(crate) fn forget_past(&mut self) {
        self.cells.clear();
    }
}

/// Stores of a CPU that some walker may not have seen.
#[derive(Clone, Debug, Default)]
struct Pending {
    own: Vec<PhysAddr>,
    /// The stores of others that this CPU knows of, and had not known when it made the last of its own.
    observed: Known,
    /// The stores of others that it had known then.
    ordered: Known,
    /// The stores that it certainly finds when it loads there.
    found: Known,
}

/// Cells, with the time up to which the stores of others there are known.
#[derive(Clone, Debug, Default)]
struct Known(BTreeMap<PhysAddr, Time>);

impl Known {
    fn note(&mut self, cell: PhysAddr, until: Time) {
        let known = self.0.entry(cell).or_insert(until);
        *known = until.max(*known);
    }
}

impl Pending {
    /// All that is known.
    fn known(&self) -> impl Iterator<Item = (PhysAddr, Time)> {
        self.ordered.0.iter().chain(&self.observed.0).map(|(&cell, &until)| (cell, until))
    }

    fn stores(&mut self, cell: PhysAddr) {
        self.own.push(cell);
        for (cell, until) in std::mem::take(&mut self.observed).0 {
            self.ordered.note(cell, until);
        }
    }
}

/// All frames, and all stores that are under way.
pub(crate) struct Memory {
    page_shift: u32,
    features: Features,
    frames: HashMap<u64, Frame>,
    /// Frames, by number, that were zeroed by plain stores when they were taken, and are in no use yet.
    zeroed: BTreeMap<u64, Time>,
    pending: Vec<Pending>,
}

impl Memory {
    pub(crate) fn new(page_shift: u32, cpus: usize, features: Features) -> Self {
        let (frames, zeroed) = (HashMap::new(), BTreeMap::new());
        Self { page_shift, features, frames, zeroed, pending: vec![Pending::default(); cpus] }
    }

    fn split(&self, cell: PhysAddr) -> (u64, u16) {
        (cell.0 >> self.page_shift, ((cell.0 & ((1 << self.page_shift) - 1)) / 8) as u16)
    }

    pub(crate) fn frame(&self, address: PhysAddr) -> Option<&Frame> {
        self.frames.get(&(address.0 >> self.page_shift))
    }

    pub(crate) fn frame_mut(&mut self, address: PhysAddr) -> &mut Frame {
        self.frames.entry(address.0 >> self.page_shift).or_default()
    }

    /// The frame at `frame` was zeroed by plain stores, by `time`.
    pub(crate) fn was_zeroed(&mut self, frame: PhysAddr, time: Time) {
        self.zeroed.insert(frame.0 >> self.page_shift, time);
    }

    /// The `size` bytes from `start` on come into use: when the last frame of them was zeroed, if any was since it was
    /// taken.
    pub(crate) fn take_zeroed(&mut self, start: PhysAddr, size: u64) -> Option<Time> {
        let (first, last) = (start.0 >> self.page_shift, (start.0 + (size - 1)) >> self.page_shift);
        let frames: Vec<u64> = self.zeroed.range(first..=last).map(|(&frame, _)| frame).collect();
        frames.into_iter().filter_map(|frame| self.zeroed.remove(&frame)).max()
    }

    /// Where the table that `cell` is in hangs.
    pub(crate) fn place(&self, cell: PhysAddr) -> Option<Place> {
        self.frame(cell)?.place
    }

    pub(crate) fn cell(&self, cell: PhysAddr) -> Option<&CellState> {
        let (frame, index) = self.split(cell);
        self.frames.get(&frame)?.cells.get(&index)
    }

    /// The frames that are tables, or were.
    pub(crate) fn frames(&self) -> impl Iterator<Item = PhysAddr> {
        self.frames.keys().map(|&frame| PhysAddr(frame << self.page_shift))
    }

    /// Nothing is known of the frame at `frame` any more.
    pub(crate) fn forget(&mut self, frame: PhysAddr) {
        self.frames.remove(&(frame.0 >> self.page_shift));
    }

    /// The values that a walk of `cpu` may read in `cell`.
    pub(crate) fn visible(&self, arena: &Arena, cpu: usize, cell: PhysAddr) -> Vec<Version> {
        match self.cell(cell) {
            Some(state) => state.visible(cpu).to_vec(),
            None => CellState::new(arena.value(cell)).versions,
        }
    }

    /// `writer`, whose last barrier was `barrier`, stored `new` over `old`.
    pub(crate) fn store(&mut self, cell: PhysAddr, old: u64, new: u64, writer: usize, time: Time, barrier: Time) {
        let (frame, index) = self.split(cell);
        let state = self.frames.entry(frame).or_default().cells.entry(index).or_insert_with(|| CellState::new(old));
        state.versions.push(Version { value: new, writer, time, barrier, certain: CpuSet::NONE });
        self.pending[writer].stores(cell);
    }

    /// The stores to `cell` of which a load by `reader` may find any, the oldest first; empty where there is only one
    /// value.
    pub(crate) fn readable(&self, cell: PhysAddr, reader: usize) -> &[Version] {
        let Some(state) = self.cell(cell) else { return &[] };
        let found = self.pending[reader].found.0.get(&cell).copied().unwrap_or(Time(0));
        let is_certain =
            |version: &Version| version.writer == reader || version.certain.contains(reader) || version.time <= found;
        let first = state.versions.iter().rposition(is_certain);
        &state.versions[first.unwrap_or(0)..]
    }

    /// `reader` found what was stored to `cell` at `until`, and so knows what comes before that.
    pub(crate) fn observe(&mut self, cell: PhysAddr, reader: usize, until: Time) {
        let others = self.pending.iter().enumerate().filter(|&(cpu, _)| cpu != reader);
        // Loads are many, and mostly nothing is under way.
        if others.into_iter().all(|(_, pending)| pending.own.is_empty()) {
            return;
        }
        let Some(state) = self.cell(cell) else { return };
        let is_read = |version: &&Version| version.writer != reader && version.time <= until;
        let read: Vec<Version> = state.undrained().filter(is_read).copied().collect();
        self.pending[reader].found.note(cell, until);
        for Version { writer, time, barrier, .. } in read {
            let writer = &self.pending[writer];
            let stored = writer.own.iter().filter(|_| barrier != Time(0)).map(|&cell| (cell, barrier));
            let before: Vec<_> = stored.chain(writer.known().map(|(cell, until)| (cell, until.min(time)))).collect();
            let observed = &mut self.pending[reader].observed;
            before.into_iter().for_each(|(cell, until)| observed.note(cell, until));
            observed.note(cell, time);
        }
    }

    /// `to` acquired what `from` released: it knows all that `from` stored and knew.
    pub(crate) fn hand_over(&mut self, from: usize, to: usize, now: Time) {
        let from = &self.pending[from];
        let known: Vec<_> = from.own.iter().map(|&cell| (cell, now)).chain(from.known()).collect();
        let found: Vec<_> = from.found.0.iter().map(|(&cell, &until)| (cell, until)).collect();
        let to = &mut self.pending[to];
        known.iter().for_each(|&(cell, until)| to.observed.note(cell, until));
        known.into_iter().chain(found).for_each(|(cell, until)| to.found.note(cell, until));
    }

    /// A DSB of `cpu`: its stores are seen by all walkers, and what it knew when it made them; with `loads` all that it
    /// knows.
    pub(crate) fn drain(&mut self, cpu: usize, loads: bool, now: Time) {
        let Pending { own, mut observed, mut ordered, found } = std::mem::take(&mut self.pending[cpu]);
        for cell in own {
            self.settle(cell, CpuSet::ALL, now, |version| version.writer == cpu);
        }
        if loads {
            std::mem::take(&mut observed).0.into_iter().for_each(|(cell, until)| ordered.note(cell, until));
        }
        for (cell, until) in ordered.0 {
            self.settle(cell, CpuSet::ALL, now, |version| version.time <= until);
        }
        (self.pending[cpu].observed, self.pending[cpu].found) = (observed, found);
    }

    /// An ISB of `cpu`: its walks from now on see what it had observed.
    pub(crate) fn synchronise(&mut self, cpu: usize, now: Time) {
        let known: Vec<_> = self.pending[cpu].known().collect();
        for (cell, until) in known {
            self.settle(cell, CpuSet::only(cpu), now, |version| version.time <= until);
        }
    }

    fn settle(&mut self, cell: PhysAddr, cpus: CpuSet, now: Time, which: impl Fn(&Version) -> bool) {
        let (frame, index) = self.split(cell);
        let Some(frame) = self.frames.get_mut(&frame) else { return };
        let walks = frame.place.map(|place| (place.level, self.features));
        if let Some(state) = frame.cells.get_mut(&index) {
            state.settle(cpus, walks, now, which);
        }
    }
}
