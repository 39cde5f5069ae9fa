//! The entries that a CPU's TLB *may* hold: every translation, and every step of a walk, that it could read since the
//! last invalidation that took it.
//!
//! Arm ARM D8.13 to D8.16. Nothing is ever evicted and nothing is left to chance. An entry is here from the moment at
//! which a walk could read it until a TLBI that takes it, issued when no walk could read it any more, was completed by
//! a DSB of the CPU that issued it. A leaf of a contiguous group is here twice: alone, and as the whole group, because
//! hardware may do either.

use std::collections::{BTreeMap, BTreeSet};

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::bits;

use crate::decode::Scope;
use crate::event::Time;

/// The kind of a held entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A translation.
    Leaf,
    /// A step of a walk: where the next table is.
    Table,
}

/// One entry that a TLB or walk cache may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    /// The first address that it translates.
    pub(crate) start: u64,
    /// Bytes that it translates: a power of two.
    pub(crate) size: u64,
    /// The level of the descriptor that it was made from.
    pub(crate) level: u8,
    pub(crate) kind: Kind,
    /// Where the first address translates to, or the next table.
    pub(crate) target: PhysAddr,
    /// The descriptor without its address.
    pub(crate) attributes: u64,
    /// PXNTable and UXNTable of the tables above.
    pub(crate) inherited: u64,
    /// Whether it is a whole contiguous group, made from one entry of it.
    pub(crate) grouped: bool,
    /// The root of the tree that it was read in.
    pub(crate) root: PhysAddr,
    /// The ASID under which the CPU ran that tree; 0 as long as no CPU holds it.
    pub(crate) asid: u16,
    /// The cell that it was read from.
    pub(crate) cell: PhysAddr,
    /// When what it was read from was stored.
    pub(crate) stored: Time,
}

impl Held {
    /// The last address that it translates.
    pub(crate) fn last(&self) -> u64 {
        self.start | (self.size - 1)
    }

    /// Whether both are the same translation, wherever they were read.
    pub(crate) fn same(&self, other: &Self) -> bool {
        Self { cell: other.cell, stored: other.stored, ..*self } == *other
    }

    /// As [`Self::same`], under whatever ASID.
    pub(crate) fn same_entry(&self, other: &Self) -> bool {
        Self { asid: other.asid, ..*self }.same(other)
    }

    /// Whether every ASID may use it. Steps of a walk belong to one.
    pub(crate) fn is_global(&self) -> bool {
        self.kind == Kind::Leaf && self.attributes & bits::NG == 0
    }

    /// Where `address` translates to.
    pub(crate) fn translate(&self, address: u64) -> PhysAddr {
        PhysAddr(self.target.0 + (address - self.start))
    }

    /// Whether both translate alike where they overlap, but for permissions.
    pub(crate) fn same_output(&self, other: &Self) -> bool {
        self.target.0.wrapping_sub(self.start) == other.target.0.wrapping_sub(other.start)
    }

    /// Whether EL1 may write through it.
    pub(crate) fn is_writable(&self) -> bool {
        self.kind == Kind::Leaf && self.attributes & bits::RDONLY == 0
    }

    /// Whether EL1 may execute through it.
    pub(crate) fn is_executable(&self) -> bool {
        let forbidden = self.attributes & bits::PXN != 0 || self.inherited & bits::PXNTABLE != 0;
        self.kind == Kind::Leaf && !forbidden
    }

    /// Whether both translate to some of the same memory.
    pub(crate) fn shares_memory(&self, other: &Self) -> bool {
        self.target <= other.target + (other.size - 1) && other.target <= self.target + (self.size - 1)
    }

    /// Whether the leaf has the contiguous bit.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.kind == Kind::Leaf && self.attributes & bits::CONTIGUOUS != 0
    }
}

/// A TLBI that took an entry and is not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Doom {
    pub(crate) by: usize,
    /// How far it reaches: a DSB that reaches less does not complete it.
    pub(crate) scope: Scope,
    pub(crate) at: Time,
}

#[derive(Clone, Debug)]
struct Slot {
    held: Held,
    dooms: Vec<Doom>,
}

/// Size and start: entries of one size lie side by side, so that those around an address are found by one look for each
/// size.
type Key = (u64, u64);

/// Everything that one CPU's TLB may hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct MayHold {
    slots: BTreeMap<Key, Vec<Slot>>,
    sizes: BTreeSet<u64>,
    doomed: BTreeSet<Key>,
    /// Size and output address of the leaves, with the starts of those that translate there: which they are without a
    /// look at every one.
    outputs: BTreeMap<(u64, u64), BTreeSet<u64>>,
}

impl MayHold {
    /// A walk can read this entry from now on. Invalidations that were under way no longer take it.
    pub(crate) fn insert(&mut self, held: Held) {
        let key = (held.size, held.start);
        self.sizes.insert(held.size);
        if held.kind == Kind::Leaf {
            self.outputs.entry((held.size, held.target.0)).or_default().insert(held.start);
        }
        let slots = self.slots.entry(key).or_default();
        // Read elsewhere it is another entry: a walk may read the one again and not the other.
        match slots.iter_mut().find(|slot| slot.held.same(&held) && slot.held.cell == held.cell) {
            Some(slot) => *slot = Slot { held, dooms: Vec::new() },
            None => slots.push(Slot { held, dooms: Vec::new() }),
        }
    }

    /// The entries that translate some address of `first..=last`.
    pub(crate) fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = &Held> {
        self.sizes
            .iter()
            .flat_map(move |&size| self.slots.range((size, first & !(size - 1))..=(size, last)))
            .flat_map(|(_, slots)| slots.iter().map(|slot| &slot.held))
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Held> {
        self.slots.values().flatten().map(|slot| &slot.held)
    }

    /// The leaves that translate to some of the memory in `first..=last`.
    pub(crate) fn translating_to(&self, first: PhysAddr, last: PhysAddr) -> impl Iterator<Item = &Held> {
        let ranges = self.sizes.iter().map(move |&size| (size, first.0.saturating_sub(size - 1))..=(size, last.0));
        let outputs = ranges.flat_map(|range| self.outputs.range(range));
        outputs.flat_map(move |(&(size, target), starts)| {
            let slots = starts.iter().filter_map(move |&start| self.slots.get(&(size, start)));
            slots
                .flatten()
                .map(|slot| &slot.held)
                .filter(move |held| held.kind == Kind::Leaf && held.target == PhysAddr(target))
        })
    }

    /// The walk-cache entry for the entry of a table that translates `size` bytes from `start` on.
    pub(crate) fn tables(&self, start: u64, size: u64) -> impl Iterator<Item = &Held> {
        let slots = self.slots.get(&(size, start)).into_iter().flatten();
        slots.map(|slot| &slot.held).filter(|held| held.kind == Kind::Table)
    }

    /// Marks each of `entries` as taken by `doom`.
    pub(crate) fn doom(&mut self, entries: &[Held], doom: Doom) {
        for held in entries {
            let key = (held.size, held.start);
            let slots = self.slots.get_mut(&key).into_iter().flatten();
            for slot in slots.filter(|slot| slot.held == *held) {
                slot.dooms.push(doom);
                self.doomed.insert(key);
            }
        }
    }

    /// The invalidations that took `held` and are not complete.
    pub(crate) fn dooms(&self, held: &Held) -> Vec<Doom> {
        let slots = self.slots.get(&(held.size, held.start)).into_iter().flatten();
        slots.filter(|slot| slot.held == *held).flat_map(|slot| slot.dooms.clone()).collect()
    }

    /// CPU `by` completed its invalidations of `scope` and less; returns what is gone, with those that took it as well
    /// and are not through: the CPU and the scope.
    pub(crate) fn complete(&mut self, by: usize, scope: Scope) -> Vec<(Held, Vec<(usize, Scope)>)> {
        let mut gone: Vec<(Held, Vec<(usize, Scope)>)> = Vec::new();
        let mut left = BTreeSet::new();
        for key in std::mem::take(&mut self.doomed) {
            let Some(slots) = self.slots.get_mut(&key) else { continue };
            let before = gone.len();
            slots.retain(|slot| {
                let taken = slot.dooms.iter().any(|doom| doom.by == by && doom.scope <= scope);
                if taken {
                    let others = slot.dooms.iter().filter(|doom| doom.by != by).map(|doom| (doom.by, doom.scope));
                    gone.push((slot.held, others.collect()));
                }
                !taken
            });
            for (held, _) in &gone[before..] {
                // Another slot may translate there in another way.
                if let Some(starts) = self.outputs.get_mut(&(held.size, held.target.0))
                    && !slots.iter().any(|slot| slot.held.target == held.target)
                {
                    starts.remove(&held.start);
                }
            }
            if slots.iter().any(|slot| !slot.dooms.is_empty()) {
                left.insert(key);
            }
            if slots.is_empty() {
                self.slots.remove(&key);
            }
        }
        self.doomed = left;
        gone
    }
}
