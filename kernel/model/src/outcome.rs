//! Outcomes of an access, and whether they are those that were promised.
//!
//! An access of a CPU uses any translation that its TLB may hold, or walks: from the root or from any step that its
//! walk cache may hold, reading in each cell any value that is visible. Every outcome of that must be allowed; which it
//! is on a real machine is chance.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind as EntryKind, bits};
use granule_pgtable::Geometry;

use crate::rules::address_of;
use crate::state::{State, Tree};
use crate::stores::{Version, entry_kind, faults};
use crate::story::{Rule, Violation};
use crate::tlb::{Held, Kind};

/// The kind of a CPU's access at EL1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

impl Access {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Execute];
}

/// How an access fails.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Nothing is mapped there.
    Translation,
    /// The access flag is 0.
    AccessFlag,
    /// It is mapped, not for this.
    Permission,
}

/// An outcome of one access: where it goes, or how it fails.
pub type Outcome = Result<PhysAddr, Fault>;

/// The outcome of an access by `held`.
fn judge(held: &Held, address: u64, access: Access) -> Outcome {
    let allowed = match access {
        Access::Read => true,
        Access::Write => held.attributes & bits::RDONLY == 0,
        Access::Execute => held.attributes & bits::PXN == 0 && held.inherited & bits::PXNTABLE == 0,
    };
    if allowed { Ok(held.translate(address)) } else { Err(Fault::Permission) }
}

/// One way in which a walk may fault.
struct MayFault {
    fault: Fault,
    /// The cell in which it ends.
    cell: PhysAddr,
}

/// The translation that the tables have now: all stores seen, nothing cached.
pub(crate) struct Current {
    /// The cell that the walk ends in.
    pub(crate) cell: PhysAddr,
    pub(crate) value: u64,
    pub(crate) level: u8,
}

impl<G: Geometry> State<G> {
    /// The tree in which `cpu` walks for `address`.
    fn tree(&self, cpu: usize, address: u64) -> Option<Tree> {
        let translates = |tree: &&Tree| address >> G::VA_BITS == tree.start >> G::VA_BITS;
        self.cpus[cpu].runs.iter().find(translates).copied()
    }

    /// The walk for `address` in the tree of `root`, with all stores seen.
    fn current(&self, root: PhysAddr, address: u64) -> Current {
        let (mut table, mut level) = (root, G::FIRST_LEVEL);
        loop {
            let cell = table + G::index(VirtAddr(address), level) as u64 * 8;
            let value = self.arena.value(cell);
            if entry_kind(value, level) != EntryKind::Table || !self.arena.range().contains(address_of(value)) {
                return Current { cell, value, level };
            }
            (table, level) = (address_of(value), level + 1);
        }
    }

    /// Whether `held` is what the tables hold.
    fn is_current(&self, held: &Held) -> bool {
        let is = |cell: PhysAddr| {
            let here = self.current(
                held.root,
                self.memory.place(cell).map_or(0, |place| place.start + (self.index(cell) << G::shift(place.level))),
            );
            let reached = here.cell == cell || held.kind == Kind::Table && self.is_on_the_way(cell);
            reached && self.entries(cell, self.arena.value(cell), held.stored).iter().any(|new| new.same_entry(held))
        };
        if held.grouped { self.group(held.cell).all(is) } else { is(held.cell) }
    }

    /// Whether the tables translate all addresses in `first..=last` as `held` does. Its size may be another one, where
    /// that may change under a live translation.
    fn is_true(&self, held: &Held, first: u64, last: u64) -> bool {
        if self.is_current(held) || !self.features.bbml2 {
            return self.is_current(held);
        }
        let (mut address, last) = (first.max(held.start), last.min(held.last()));
        loop {
            let Current { cell, value, level } = self.current(held.root, address);
            // Pages have the bit of tables, and blocks do not.
            let of_size = bits::CONTIGUOUS | bits::TABLE;
            let alike = |now: &Held| {
                now.kind == Kind::Leaf
                    && now.same_output(held)
                    && (now.attributes ^ held.attributes) & !of_size == 0
                    && (now.inherited ^ held.inherited) & bits::PXNTABLE == 0
            };
            if !self.entries(cell, value, held.stored).first().is_some_and(alike) {
                return false;
            }
            // Not the address after it: there is none after the last.
            let end = address | (G::entry_size(level) - 1);
            if end >= last {
                return true;
            }
            address = end + 1;
        }
    }

    /// Whether the table that `cell` is in is linked now, all the way up.
    pub(crate) fn is_on_the_way(&self, cell: PhysAddr) -> bool {
        let table = self.frame_of(cell);
        match self.memory.place(table).map(|place| (place, place.parent)) {
            None => false,
            Some((_, None)) => self.trees.iter().any(|tree| tree.root == table),
            Some((place, Some(parent))) => {
                let value = self.arena.value(parent);
                entry_kind(value, place.level - 1) == EntryKind::Table
                    && address_of(value) == table
                    && self.is_on_the_way(parent)
            }
        }
    }

    /// Asks `is_held` of the frame of each leaf and table that some CPU may come to, now or when it runs the tree again.
    pub(crate) fn check_held(&mut self, is_held: &dyn Fn(PhysAddr) -> bool) {
        let leaf = self.cpus.iter().enumerate().find_map(|(cpu, state)| {
            let pages = |held: &Held| (0..held.size / G::PAGE_SIZE).map(|page| page * G::PAGE_SIZE);
            let is_free = |held: &&Held| pages(held).any(|offset| !is_held(held.target + offset));
            let mut held = state.tlb.all().filter(|held| held.kind == Kind::Leaf && self.is_of_use(cpu, held));
            held.find(is_free).map(|held| (cpu, *held))
        });
        if let Some((cpu, held)) = leaf {
            let headline = format!("{} is free while CPU {cpu} may reach it at {:#x}", held.target, held.start);
            let mut story = vec![format!("CPU {cpu} may hold {held}")];
            story.extend(self.why_held(cpu, &held));
            self.report(Violation::new(Rule::FrameInUse, headline, story));
        }
        let free: Vec<PhysAddr> = self.memory.frames().filter(|&frame| !is_held(frame)).collect();
        for frame in free {
            if let Some(cpu) = (0..self.cpus.len()).find(|&cpu| self.reaches(cpu, frame, |_| false)) {
                let headline = format!("table {frame} is free while a walk of CPU {cpu} may come to it");
                let story = self.why_reached(cpu, frame);
                self.report(Violation::new(Rule::TableInUse, headline, story));
            } else {
                // The frame may become anything: its old contents are not read again.
                self.memory.forget(frame);
            }
        }
    }

    /// The translations of `address` that an access of `cpu` may use.
    fn usable(&self, cpu: usize, address: u64) -> Vec<Held> {
        let state = &self.cpus[cpu];
        let ahead = state.ahead.iter().filter(|held| held.start <= address && address <= held.last());
        let is_usable = |held: &&Held| {
            held.kind == Kind::Leaf && (held.is_global() || state.runs.iter().any(|tree| tree.asid == held.asid))
        };
        state.tlb.overlapping(address, address).chain(ahead).filter(is_usable).copied().collect()
    }

    /// The ways in which a walk of `cpu` for `address` may fault, or have faulted ahead of the access.
    fn may_fault(&self, cpu: usize, address: u64) -> Vec<MayFault> {
        let mut faults = Vec::new();
        let Some(tree) = self.tree(cpu, address) else {
            // No walk is made.
            faults.push(MayFault { fault: Fault::Translation, cell: PhysAddr(0) });
            return faults;
        };
        self.walk(cpu, tree.root, G::FIRST_LEVEL, address, &mut faults);
        let steps = |held: &&Held| held.kind == Kind::Table && held.asid == tree.asid;
        let cached: Vec<Held> = self.cpus[cpu].tlb.overlapping(address, address).filter(steps).copied().collect();
        for held in cached {
            self.walk(cpu, held.target, held.level + 1, address, &mut faults);
        }
        faults
    }

    fn walk(&self, cpu: usize, table: PhysAddr, level: u8, address: u64, found: &mut Vec<MayFault>) {
        if !self.arena.range().contains(table) {
            return;
        }
        let cell = table + G::index(VirtAddr(address), level) as u64 * 8;
        let visible = self.memory.visible(&self.arena, cpu, cell);
        // With FEAT_ETS2 a fault is never older than the newest store.
        let old: &[Version] = if self.features.ets2 { &visible[visible.len() - 1..] } else { &visible };
        let ahead = !self.features.ets2
            && self.memory.cell(cell).is_some_and(|state| state.faulted_until(cpu) > self.cpus[cpu].last_isb);
        if ahead {
            found.push(MayFault { fault: Fault::Translation, cell });
        }
        for version in old.iter().filter(|version| faults(version.value, level, self.features)) {
            let leaf = entry_kind(version.value, level) == EntryKind::Leaf;
            found.push(MayFault { fault: if leaf { Fault::AccessFlag } else { Fault::Translation }, cell });
        }
        for version in visible.iter().filter(|version| entry_kind(version.value, level) == EntryKind::Table) {
            self.walk(cpu, Descriptor(version.value).address(), level + 1, address, found);
        }
    }

    /// Everything that an access may come to, in order and each once.
    pub(crate) fn outcomes(&self, cpu: usize, address: u64, access: Access) -> Vec<Outcome> {
        let used = self.usable(cpu, address).into_iter().map(|held| judge(&held, address, access));
        let faults = self.may_fault(cpu, address).into_iter().map(|may| Err(may.fault));
        let mut outcomes: Vec<Outcome> = used.chain(faults).collect();
        outcomes.sort_unstable();
        outcomes.dedup();
        outcomes
    }

    /// The outcome of the access once every store and every invalidation has taken effect.
    fn settled(&self, cpu: usize, address: u64, access: Access) -> Outcome {
        let Some(tree) = self.tree(cpu, address) else { return Err(Fault::Translation) };
        let Current { cell, value, level } = self.current(tree.root, address);
        match self.entries(cell, value, self.now()).first() {
            Some(held) if held.kind == Kind::Leaf => judge(held, address, access),
            _ if entry_kind(value, level) == EntryKind::Leaf => Err(Fault::AccessFlag),
            _ => Err(Fault::Translation),
        }
    }

    /// An access is made: only one outcome may be possible, its group must not be mixed, its frame not free.
    pub(crate) fn access(&mut self, cpu: usize, address: u64, access: Access) -> Outcome {
        let settled = self.settled(cpu, address, access);
        let other = self.usable(cpu, address).into_iter().find(|held| judge(held, address, access) != settled);
        if let Some(held) = other {
            self.report_stale(cpu, &held);
        } else if settled.is_ok() {
            self.check_no_fault(cpu, address);
        }
        if let Some(tree) = self.tree(cpu, address)
            && let Some(mixed) = self.mixed_group(self.current(tree.root, address).cell)
        {
            let headline = format!("CPU {cpu} uses {address:#x} in a group whose entries differ");
            self.report(Violation::new(Rule::MixedGroup, headline, vec![mixed]));
        }
        if let Ok(physical) = settled
            && self.free.contains(&physical.align_down(G::PAGE_SIZE).0)
            && !self.shows_all.iter().any(|range| range.contains(&address))
        {
            let headline = format!("CPU {cpu} reaches {physical} at {address:#x}, and that frame is free");
            self.report(Violation::new(Rule::FrameInUse, headline, Vec::new()));
        }
        settled
    }

    /// A call that returned on `caller` promises, for `first..=last`: no CPU holds a translation that the tables do
    /// not, no group is mixed, and the caller itself can use what is valid.
    pub(crate) fn audit(&mut self, caller: usize, first: u64, last: u64) {
        let state = |cpu: usize| self.cpus[cpu].tlb.overlapping(first, last).chain(&self.cpus[cpu].ahead);
        // Entries of walk caches for tables are checked where the table is freed.
        let concerned = |held: &&Held| held.kind == Kind::Leaf && held.start <= last && first <= held.last();
        let stale = (0..self.cpus.len()).find_map(|cpu| {
            let mut held = state(cpu).filter(concerned).filter(|_| !self.cpus[cpu].is_off);
            held.find(|held| !self.is_true(held, first, last)).map(|held| (cpu, *held))
        });
        if let Some((cpu, held)) = stale {
            return self.report_stale(cpu, &held);
        }
        // Every leaf that is valid and can be walked to is in every TLB's set: no table need be read.
        let leaves =
            self.cpus[caller].tlb.overlapping(first, last).filter(|held| held.kind == Kind::Leaf && !held.grouped);
        let leaves: Vec<Held> = leaves.copied().collect();
        let mut asked = None;
        for leaf in leaves {
            // One entry stands for its group, and those of a group follow one another.
            let group = self.group(leaf.cell).next();
            let first_of_group = asked != group;
            asked = group;
            if first_of_group && let Some(mixed) = self.mixed_group(leaf.cell) {
                let headline = format!("the call leaves a group whose entries differ at {:#x}", leaf.start);
                return self.report(Violation::new(Rule::MixedGroup, headline, vec![mixed]));
            }
            self.check_no_fault(caller, leaf.start.max(first));
        }
    }

    fn check_no_fault(&mut self, cpu: usize, address: u64) {
        if let Some(MayFault { fault, cell }) = self.may_fault(cpu, address).into_iter().next() {
            let headline =
                format!("an access of CPU {cpu} to {address:#x} may take a fault ({fault:?}) that was removed");
            let story = self.why_faults(cpu, cell);
            self.report(Violation::new(Rule::SpuriousFault, headline, story));
        }
    }

    fn report_stale(&mut self, cpu: usize, held: &Held) {
        let ahead = !self.cpus[cpu].tlb.all().any(|other| other == held);
        let mut story = vec![format!("CPU {cpu} may hold {held}")];
        story.extend(if ahead { self.why_ahead(cpu, held) } else { self.why_held(cpu, held) });
        let headline = format!("CPU {cpu} may still use an old translation of {:#x}", held.start);
        self.report(Violation::new(Rule::StaleTranslation, headline, story));
    }
}
