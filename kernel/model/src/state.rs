//! The machine's state, and what each event does to it.
//!
//! A store makes a value visible at once and leaves the older ones visible too (`stores`); whatever a walk can read
//! goes into what every TLB may hold (`tlb`), after the rules have been asked (`rules`). A TLBI takes the entries that
//! its operand covers (`decode`) and that no walk can read again; a DSB of the same CPU completes that; an ISB ends
//! what that CPU had translated ahead.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, Kind as EntryKind, bits};
use granule_arch::tlbi::Instruction;
use granule_pgtable::Geometry;

use crate::arena::Arena;
use crate::decode::{Decoded, Scope, decode};
use crate::event::{Event, Operation, Time};
use crate::features::Features;
use crate::inject::{Injection, strike};
use crate::stores::{Memory, Place, Version, entry_kind};
use crate::story::Violation;
use crate::tlb::{Doom, Held, Kind, MayHold};

/// See [`Model::late_loads`](crate::Model::late_loads).
pub(crate) type LateLoads = Box<dyn FnMut(usize) -> usize + Send>;

/// One CPU.
#[derive(Default)]
pub(crate) struct CpuState {
    pub(crate) tlb: MayHold,
    /// The trees that it walks, one for each half of the addresses at most.
    pub(crate) runs: Vec<Tree>,
    /// It is off: no invalidation of others reaches it.
    pub(crate) is_off: bool,
    /// Translations that are invalidated, and that this CPU may have looked up ahead for accesses to come: until its
    /// next ISB.
    pub(crate) ahead: Vec<Held>,
    /// Those of them that an invalidation of another CPU takes, with that CPU: its DSB waits for the accesses that use
    /// them.
    ahead_doomed: Vec<(usize, Scope, Held)>,
    pub(crate) last_isb: Time,
    /// Its last barrier that orders stores.
    pub(crate) last_barrier: Time,
}

/// A tree of tables, and what its entries that are not global belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tree {
    pub(crate) root: PhysAddr,
    /// The first address that it translates.
    pub(crate) start: u64,
    pub(crate) asid: u16,
}

/// An address that is no memory and no table's.
const UNKNOWN: PhysAddr = PhysAddr(0xf_0000_0000_0000);

/// Everything behind the lock.
pub(crate) struct State<G: Geometry> {
    pub(crate) features: Features,
    pub(crate) arena: Arc<Arena>,
    /// All trees, each under the ASID that a CPU ran it under last.
    pub(crate) trees: Vec<Tree>,
    pub(crate) memory: Memory,
    pub(crate) cpus: Vec<CpuState>,
    pub(crate) stream: Vec<Event>,
    pub(crate) injections: Vec<Injection>,
    /// Which of so many stores a load finds, where it may be late.
    pub(crate) late_loads: Option<LateLoads>,
    pub(crate) violations: Vec<Violation>,
    /// Addresses that may map frames that are free: a linear map.
    pub(crate) shows_all: Vec<RangeInclusive<u64>>,
    /// Frames, by address, that are free.
    pub(crate) free: BTreeSet<u64>,
    pub(crate) geometry: PhantomData<fn() -> G>,
}

impl<G: Geometry> State<G> {
    /// Notes an event; its time.
    pub(crate) fn note(&mut self, cpu: usize, operation: Operation) -> Time {
        self.stream.push(Event { cpu, operation });
        self.now()
    }

    pub(crate) fn now(&self) -> Time {
        Time(self.stream.len())
    }

    /// The event at `time`.
    pub(crate) fn event(&self, time: Time) -> Option<&Event> {
        self.stream.get(time.0.checked_sub(1)?)
    }

    /// The descriptor that `cpu` finds when it loads `cell`, which has the value `newest`.
    pub(crate) fn load(&mut self, cpu: usize, cell: PhysAddr, newest: Descriptor) -> Descriptor {
        let (mut found, mut until) = (newest, self.now());
        if let Some(draw) = &mut self.late_loads {
            let stores = self.memory.readable(cell, cpu);
            if stores.len() > 1 {
                let store = stores[draw(stores.len())];
                (found, until) = (Descriptor(store.value), store.time);
            }
        }
        self.memory.observe(cell, cpu, until);
        found
    }

    /// A barrier or an invalidation, unless a test takes it away.
    pub(crate) fn execute(&mut self, cpu: usize, operation: Operation) {
        if let Some((cpu, operation)) = strike(&mut self.injections, cpu, operation) {
            self.execute_unharmed(cpu, operation);
        }
    }

    /// A barrier or an invalidation.
    pub(crate) fn execute_unharmed(&mut self, cpu: usize, operation: Operation) {
        let now = self.note(cpu, operation);
        match operation {
            Operation::DmbIshst => self.cpus[cpu].last_barrier = now,
            Operation::DsbIshst => self.drain(cpu, false, now),
            Operation::DsbIsh => {
                self.drain(cpu, true, now);
                self.complete(cpu, Scope::InnerShareable);
            }
            // It waits neither for others to see its accesses nor for its broadcasts.
            Operation::DsbNsh => self.complete(cpu, Scope::Local),
            Operation::Isb => {
                self.memory.synchronise(cpu, now);
                self.cpus[cpu].ahead.clear();
                self.cpus[cpu].ahead_doomed.clear();
                self.cpus[cpu].last_isb = now;
            }
            Operation::Tlbi(instruction) => self.tlbi(cpu, instruction, now),
            Operation::HandOver(to) => self.memory.hand_over(cpu, to, now),
            Operation::Write { .. }
            | Operation::SetFlags { .. }
            | Operation::Runs { .. }
            | Operation::FrameTaken(_)
            | Operation::FrameCopied(_)
            | Operation::FrameFreed(_) => {}
        }
    }

    fn drain(&mut self, cpu: usize, loads: bool, now: Time) {
        self.memory.drain(cpu, loads, now);
        self.cpus[cpu].last_barrier = now;
    }

    /// A DSB completes the invalidations of its CPU, those of `scope` and less, for all others with the accesses that
    /// used what is gone, looked up ahead or not; this CPU may have looked further ahead, which only an ISB undoes
    /// unless FEAT_ETS2 forbids it.
    fn complete(&mut self, issuer: usize, scope: Scope) {
        let ets2 = self.features.ets2;
        for (holder, cpu) in self.cpus.iter_mut().enumerate() {
            let gone = cpu.tlb.complete(issuer, scope);
            if holder == issuer && !ets2 {
                for (held, others) in gone {
                    cpu.ahead.push(held);
                    cpu.ahead_doomed.extend(others.into_iter().map(|(by, scope)| (by, scope, held)));
                }
            }
            let completed = cpu.ahead_doomed.extract_if(.., |&mut (by, of, _)| by == issuer && of <= scope);
            for (_, _, held) in completed {
                cpu.ahead.retain(|ahead| *ahead != held);
            }
        }
    }

    fn tlbi(&mut self, issuer: usize, instruction: Instruction, now: Time) {
        let decoded = match decode::<G>(instruction, &self.features) {
            Ok(decoded) => decoded,
            Err(why) => return self.undefined(issuer, now, why),
        };
        let (first, last) = decoded.bounds();
        for holder in 0..self.cpus.len() {
            if self.cpus[holder].is_off && holder != issuer {
                continue;
            }
            let taken: Vec<Held> = self.cpus[holder]
                .tlb
                .overlapping(first, last)
                .filter(|held| decoded.takes(issuer, holder, held).is_ok())
                .copied()
                .collect();
            // A translation that a walk can still read may be back in the TLB at once.
            let gone: Vec<Held> = taken
                .into_iter()
                .filter(|held| !self.is_walkable(holder, held, |cached| decoded.takes(issuer, holder, cached).is_ok()))
                .collect();
            let cpu = &mut self.cpus[holder];
            cpu.tlb.doom(&gone, Doom { by: issuer, scope: decoded.scope, at: now });
            let ahead = cpu.ahead.iter().filter(|held| holder != issuer && decoded.takes(issuer, holder, held).is_ok());
            cpu.ahead_doomed.extend(ahead.map(|&held| (issuer, decoded.scope, held)));
        }
    }

    /// The leaf that the hardware may make of `leaf` in `cell`, where a walk comes to it and that is something else.
    pub(crate) fn used_leaf(&self, cell: PhysAddr, leaf: Descriptor) -> Option<Descriptor> {
        let used = Descriptor(self.features.used(leaf.0));
        let level = self.memory.place(cell).filter(|_| used != leaf)?.level;
        let is_used = entry_kind(leaf.0, level) == EntryKind::Leaf && self.is_reachable(self.frame_of(cell));
        is_used.then_some(used)
    }

    /// The last moment before `cpu` exchanges what is in `cell`: the hardware sets flags there, as an access of any CPU
    /// makes it do.
    pub(crate) fn use_leaf(&mut self, cpu: usize, cell: PhysAddr) {
        let leaf = Descriptor(self.arena.value(cell));
        if let Some(used) = self.used_leaf(cell, leaf) {
            self.arena.cells(cell, 1)[0].store(used.0, Ordering::Release);
            let time = self.note(cpu, Operation::SetFlags { cell, old: leaf, new: used });
            self.stored(cpu, cell, leaf, used, time);
        }
    }

    /// `cpu` wrote `new` over `old`.
    pub(crate) fn store(&mut self, cpu: usize, cell: PhysAddr, old: Descriptor, new: Descriptor) {
        let time = self.note(cpu, Operation::Write { cell, old, new });
        self.stored(cpu, cell, old, new, time);
    }

    fn stored(&mut self, cpu: usize, cell: PhysAddr, old: Descriptor, new: Descriptor, time: Time) {
        let place = self.memory.place(cell);
        let fresh = match place {
            Some(place) if entry_kind(new.0, place.level) == EntryKind::Table => !self.is_reachable(new.address()),
            _ => false,
        };
        self.memory.store(cell, old.0, new.0, cpu, time, self.cpus[cpu].last_barrier);
        // Not what was a table once, and is something else now.
        if place.is_some() && (self.is_on_the_way(cell) || self.is_reachable(self.frame_of(cell))) {
            if old.is_vacant() {
                self.check_fill(cpu, &self.entries(cell, new.0, time), time);
            }
            self.became_visible(cpu, cell, new.0, time, fresh);
        }
    }

    /// Walks that come to `cell` can read `value` from now on, and if it is a table, all that is in it. `fresh`:
    /// that no walk could reach that table before.
    fn became_visible(&mut self, writer: usize, cell: PhysAddr, value: u64, time: Time, fresh: bool) {
        let Some(place) = self.memory.place(cell) else { return };
        let kind = entry_kind(value, place.level);
        if kind == EntryKind::Table {
            let start = place.start + (self.index(cell) << G::shift(place.level));
            let child = Place { level: place.level + 1, start, parent: Some(cell), root: place.root };
            if !self.link(writer, Descriptor(value).address(), child, time, fresh) {
                return;
            }
        }
        let entries = self.entries(cell, value, time);
        self.check_make(writer, &entries, time);
        if let Some(leaf) = entries.first().filter(|held| held.kind == Kind::Leaf) {
            self.check_zeroed(writer, leaf, time);
        }
        for cpu in 0..self.cpus.len() {
            if let Some(asid) = self.asid_of(cpu, place.root)
                && self.reaches(cpu, self.frame_of(cell), |_| false)
            {
                entries.iter().for_each(|&held| self.cpus[cpu].tlb.insert(Held { asid, ..held }));
            }
        }
        self.check_write_xor_execute(writer, &entries, time);
        if kind == EntryKind::Table {
            self.children_became_visible(writer, Descriptor(value).address(), time, fresh);
        }
    }

    fn children_became_visible(&mut self, writer: usize, table: PhysAddr, time: Time, fresh: bool) {
        let Some(place) = self.memory.place(table) else { return };
        for index in 0..G::entries(place.level) as u64 {
            let cell = table + index * 8;
            let mut values: Vec<(u64, Time)> = match self.memory.cell(cell) {
                Some(state) => state.versions().map(|version| (version.value, version.time.max(time))).collect(),
                None => vec![(self.arena.value(cell), time)],
            };
            values.retain(|(value, _)| value & bits::VALID != 0);
            for (value, stored) in values {
                self.became_visible(writer, cell, value, stored, fresh);
            }
        }
    }

    /// The index of `cell` in its table.
    pub(crate) fn index(&self, cell: PhysAddr) -> u64 {
        (cell.0 & (G::PAGE_SIZE - 1)) / 8
    }

    /// The frame that `cell` is in.
    pub(crate) fn frame_of(&self, cell: PhysAddr) -> PhysAddr {
        cell.align_down(G::PAGE_SIZE)
    }

    /// The entries that a TLB may keep of `value`, read in `cell`: none if it faults; a leaf of a group also as group.
    pub(crate) fn entries(&self, cell: PhysAddr, value: u64, stored: Time) -> Vec<Held> {
        let Some(place) = self.memory.place(cell) else { return Vec::new() };
        let level = place.level;
        let value = if entry_kind(value, level) == EntryKind::Leaf { self.features.used(value) } else { value };
        let descriptor = Descriptor(value);
        let index = self.index(cell);
        let start = place.start + (index << G::shift(level));
        let kind = match entry_kind(value, level) {
            EntryKind::None => return Vec::new(),
            EntryKind::Leaf if value & bits::AF == 0 || !G::has_leaves(level) => return Vec::new(),
            EntryKind::Leaf => Kind::Leaf,
            EntryKind::Table => Kind::Table,
        };
        let alone = Held {
            start,
            size: G::entry_size(level),
            level,
            kind,
            target: descriptor.address(),
            // The mark of a collapse is nothing to the hardware, and goes by itself.
            attributes: descriptor.without_address().0 & !bits::COLLAPSING,
            inherited: self.inherited(place),
            grouped: false,
            root: place.root,
            asid: 0,
            cell,
            stored,
        };
        if !alone.is_contiguous() {
            return vec![alone];
        }
        let size = G::group_size(level);
        let start_of_group = start & !(size - 1);
        // The bits of the address below the size of the group are not looked at.
        let target = PhysAddr(descriptor.address().0 & !(size - 1));
        vec![alone, Held { start: start_of_group, size, target, grouped: true, ..alone }]
    }

    /// The permissions that the tables above forbid.
    fn inherited(&self, place: Place) -> u64 {
        let mut inherited = 0;
        let mut next = place.parent;
        while let Some(cell) = next {
            inherited |= self.arena.value(cell) & (bits::PXNTABLE | bits::UXNTABLE);
            next = self.memory.place(cell).and_then(|place| place.parent);
        }
        inherited
    }

    /// The cells of the group that `cell` is in; alone where its level has none.
    pub(crate) fn group(&self, cell: PhysAddr) -> impl Iterator<Item = PhysAddr> + use<G> {
        let level = self.memory.place(cell).map_or(0, |place| place.level);
        let entries = G::group_entries(level) as u64;
        let first = self.frame_of(cell) + (self.index(cell) & !(entries - 1)) * 8;
        (0..entries).map(move |index| first + index * 8)
    }

    /// Whether a walk of some CPU can come to `table`.
    pub(crate) fn is_reachable(&self, table: PhysAddr) -> bool {
        (0..self.cpus.len()).any(|cpu| self.reaches(cpu, table, |_| false))
    }

    /// The ASID under which `cpu` runs the tree of `root`, if it does.
    pub(crate) fn asid_of(&self, cpu: usize, root: PhysAddr) -> Option<u16> {
        self.cpus[cpu].runs.iter().find(|tree| tree.root == root).map(|tree| tree.asid)
    }

    /// Whether `cpu` may use what it holds without another invalidation: it is global, or of an ASID that the CPU runs
    /// under, or that its tree still has. An ASID of a generation that is past is used by none.
    pub(crate) fn is_of_use(&self, cpu: usize, held: &Held) -> bool {
        let has = |tree: &Tree| tree.asid == held.asid;
        if self.cpus[cpu].is_off {
            return false;
        }
        held.is_global()
            || self.cpus[cpu].runs.iter().any(has)
            || self.trees.iter().any(|tree| tree.root == held.root && has(tree))
    }

    /// `cpu` is off until it runs a tree. Its TLB is unknown out of reset (Arm ARM D8.16): for all addresses
    /// from `start` on something that no tree has.
    pub(crate) fn turn_off(&mut self, cpu: usize, start: u64) {
        let unknown = Held {
            start,
            size: 1 << G::VA_BITS,
            level: G::FIRST_LEVEL,
            kind: Kind::Leaf,
            target: UNKNOWN,
            attributes: bits::VALID | bits::AF,
            inherited: 0,
            grouped: false,
            root: UNKNOWN,
            asid: 0,
            cell: UNKNOWN,
            stored: Time(0),
        };
        self.cpus[cpu] = CpuState { is_off: true, ..CpuState::default() };
        self.cpus[cpu].tlb.insert(unknown);
    }

    /// `cpu` runs the tree of `root` under `asid` from now on, instead of that for the same addresses, and has done an
    /// ISB; or none, where there is no root.
    pub(crate) fn run(&mut self, cpu: usize, start: u64, tree: Option<(PhysAddr, u16)>) {
        self.cpus[cpu].runs.retain(|tree| tree.start != start);
        self.cpus[cpu].is_off = false;
        self.execute_unharmed(cpu, Operation::Isb);
        let Some((root, asid)) = tree else { return };
        let now = self.note(cpu, Operation::Runs { root, asid });
        let tree = Tree { root, start, asid };
        self.trees.retain(|tree| tree.root != root);
        self.trees.push(tree);
        self.check_asid(cpu, tree, now);
        self.cpus[cpu].runs.push(tree);
        let place = Place { level: G::FIRST_LEVEL, start, parent: None, root };
        self.memory.frame_mut(root).place = Some(place);
        // Translations that a walk can come to go into its TLB, from the root and from what its walk cache has.
        let held: Vec<Held> = self.cpus[cpu].tlb.all().copied().collect();
        let cached = held.iter().filter(|held| held.kind == Kind::Table && held.root == root && held.asid == asid);
        let tables: BTreeSet<PhysAddr> = cached.map(|held| held.target).chain([root]).collect();
        tables.into_iter().for_each(|table| self.walk_in(cpu, asid, table, now));
    }

    /// Translations that a walk of `cpu` can read in `table` and below go into its TLB, under `asid`.
    fn walk_in(&mut self, cpu: usize, asid: u16, table: PhysAddr, now: Time) {
        let Some(place) = self.memory.place(table) else { return };
        for index in 0..G::entries(place.level) as u64 {
            let cell = table + index * 8;
            for Version { value, time, .. } in self.memory.visible(&self.arena, cpu, cell) {
                let entries = self.entries(cell, value, time);
                if !entries.is_empty() {
                    self.check_make(cpu, &entries, now);
                    entries.iter().for_each(|&held| self.cpus[cpu].tlb.insert(Held { asid, ..held }));
                    self.check_write_xor_execute(cpu, &entries, now);
                }
                if entry_kind(value, place.level) == EntryKind::Table {
                    let below = Descriptor(value).address();
                    // It may have been linked before any CPU ran the tree.
                    let start = place.start + (index << G::shift(place.level));
                    let child = Place { level: place.level + 1, start, parent: Some(cell), root: place.root };
                    self.memory.frame_mut(below).place = Some(child);
                    self.walk_in(cpu, asid, below, now);
                }
            }
        }
    }

    /// Whether a walk of `cpu` can come to `table`, from the root or from what its walk cache may hold and `cut` does
    /// not take: a step for which it may be walking, or when it runs the tree again.
    pub(crate) fn reaches(&self, cpu: usize, table: PhysAddr, cut: impl Fn(&Held) -> bool + Copy) -> bool {
        let Some(place) = self.memory.place(table) else { return false };
        let Some(parent) = place.parent else { return self.asid_of(cpu, table).is_some() };
        let above = place.level - 1;
        let points_here = |version: &Version| {
            entry_kind(version.value, above) == EntryKind::Table && Descriptor(version.value).address() == table
        };
        let linked = || self.memory.visible(&self.arena, cpu, parent).iter().any(points_here);
        let mut cached = self.cpus[cpu].tlb.tables(place.start, G::entry_size(above));
        cached.any(|held| held.target == table && !cut(held) && self.is_of_use(cpu, held))
            || (linked() && self.reaches(cpu, self.frame_of(parent), cut))
    }

    /// Whether a walk of `cpu` can read what makes `held`, with those steps that `cut` takes gone from its walk cache.
    pub(crate) fn is_walkable(&self, cpu: usize, held: &Held, cut: impl Fn(&Held) -> bool + Copy) -> bool {
        if self.asid_of(cpu, held.root) != Some(held.asid) {
            return false;
        }
        let cells: Vec<PhysAddr> = if held.grouped { self.group(held.cell).collect() } else { vec![held.cell] };
        cells.into_iter().any(|cell| {
            let versions = self.memory.visible(&self.arena, cpu, cell);
            let makes = |version: &Version| {
                // Permissions that tables above forbid are in walk caches, whatever stands in their places now.
                let as_cached = |new: Held| Held { inherited: held.inherited, ..new };
                self.entries(cell, version.value, held.stored).into_iter().any(|new| as_cached(new).same_entry(held))
            };
            versions.iter().any(makes) && self.reaches(cpu, self.frame_of(cell), cut)
        })
    }

    /// The TLBI at `time`, as it was decoded.
    pub(crate) fn decoded(&self, instruction: Instruction) -> Option<Decoded> {
        decode::<G>(instruction, &self.features).ok()
    }
}
