//! Stage 1 tables as the SMMU walks them: a reading of its own, by shifts.

use std::collections::BTreeMap;

use super::config::{Regime, Tables};
use super::memory::Arena;

/// A step of a walk that the TLB may keep: a leaf, or the way to a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Step {
    pub(crate) asid: u16,
    /// The first input address.
    pub(crate) start: u64,
    /// Bytes of input addresses.
    pub(crate) size: u64,
    pub(crate) level: u32,
    /// The word that holds the descriptor.
    pub(crate) source: usize,
    /// The descriptor.
    pub(crate) descriptor: u64,
    pub(crate) is_leaf: bool,
}

impl Step {
    /// Where it leads: the first byte of the frame, or of the table.
    pub(crate) const fn target(&self) -> u64 {
        if self.is_leaf { self.descriptor & ADDRESS & !(self.size - 1) } else { self.descriptor & ADDRESS }
    }

    pub(crate) const fn last(&self) -> u64 {
        self.start + (self.size - 1)
    }

    /// The whole contiguous group that it may be kept as, in tables with pages of 2^`page_shift` bytes.
    pub(crate) fn as_group(&self, page_shift: u32) -> Option<Self> {
        let bits = match (page_shift, self.level) {
            (12, _) => 4,
            (14, 3) => 7,
            _ => 5,
        };
        let size = self.size << bits;
        (self.is_leaf && self.is_contiguous()).then_some(Self { start: self.start & !(size - 1), size, ..*self })
    }

    const fn is_contiguous(&self) -> bool {
        self.descriptor >> 52 & 1 != 0
    }

    /// Whether both are leaves for an address of one space, of different sizes.
    pub(crate) const fn is_another_size(&self, other: &Self) -> bool {
        let one_space = self.asid == other.asid || self.is_global() || other.is_global();
        let meet = self.start <= other.last() && other.start <= self.last();
        let differ = self.level != other.level || self.is_contiguous() != other.is_contiguous();
        self.is_leaf && other.is_leaf && one_space && meet && differ
    }

    /// nG is 0: it belongs to every ASID.
    pub(crate) const fn is_global(&self) -> bool {
        self.is_leaf && self.descriptor >> 11 & 1 == 0
    }
}

/// Output address and address of the next table, of 4 KiB and up.
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;

/// How a walk for one address ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum End {
    /// In this leaf.
    Leaf(Step),
    /// In nothing.
    Invalid,
    /// At an address that is not memory.
    External,
}

impl Tables {
    const fn index_bits(&self) -> u32 {
        self.page_shift - 3
    }

    const fn first_level(&self) -> u32 {
        4 - (self.input_bits - self.page_shift).div_ceil(self.index_bits())
    }

    /// log2 of what an entry of `level` covers.
    const fn shift(&self, level: u32) -> u32 {
        self.page_shift + (3 - level) * self.index_bits()
    }
}

/// Entries of one space's tables that are looked at: more are those of tables that lead to themselves.
pub(crate) const MOST_STEPS: usize = 1 << 14;

impl Regime {
    /// Every valid leaf, and every table on the way; [`MOST_STEPS`] of them, if there are more.
    pub(crate) fn all(&self, arena: &Arena) -> Vec<Step> {
        let mut found = Vec::new();
        if let Some(tables) = &self.tables {
            let level = tables.first_level();
            let entries = 1 << (tables.input_bits - tables.shift(level));
            self.all_of(tables, arena, tables.root, level, 0, entries, &mut found);
        }
        found
    }

    #[expect(clippy::too_many_arguments, reason = "a walk is all of these")]
    fn all_of(
        &self,
        tables: &Tables,
        arena: &Arena,
        table: u64,
        level: u32,
        start: u64,
        entries: u64,
        found: &mut Vec<Step>,
    ) {
        for entry in 0..entries {
            let Some(source) = arena.index(table + entry * 8).filter(|_| found.len() < MOST_STEPS) else { return };
            let size = 1 << tables.shift(level);
            let Some(step) = self.step(tables, arena, source, level, start + entry * size) else { continue };
            found.push(step);
            found.extend(step.as_group(tables.page_shift));
            if !step.is_leaf {
                let below = 1 << tables.index_bits();
                self.all_of(tables, arena, step.target(), level + 1, step.start, below, found);
            }
        }
    }

    /// The step of the descriptor in word `source`, at `level` of the walk for `start`; `None` if it is not valid, or
    /// may not be cached.
    pub(crate) fn step(&self, tables: &Tables, arena: &Arena, source: usize, level: u32, start: u64) -> Option<Step> {
        let descriptor = arena.read(source);
        if descriptor & 1 == 0 {
            return None;
        }
        let has_table_bit = descriptor & 2 != 0;
        let is_leaf = if level == 3 { true } else { !has_table_bit };
        // At the last level 0b01 is reserved; level 0 has no blocks.
        if level == 3 && !has_table_bit || level == 0 && is_leaf {
            return None;
        }
        Some(Step { asid: self.asid, start, size: 1 << tables.shift(level), level, source, descriptor, is_leaf })
    }

    /// How the walk for `address` ends now; `met` gets each word that it reads.
    pub(crate) fn walk(&self, arena: &Arena, address: u64, mut met: impl FnMut(usize)) -> End {
        let Some(tables) = &self.tables else { return End::Invalid };
        if address >> tables.input_bits != 0 {
            return End::Invalid;
        }
        let (mut table, mut level) = (tables.root, tables.first_level());
        loop {
            let shift = tables.shift(level);
            let mask = if level == tables.first_level() { u64::MAX } else { (1 << tables.index_bits()) - 1 };
            let Some(source) = arena.index(table + ((address >> shift) & mask) * 8) else { return End::External };
            met(source);
            match self.step(tables, arena, source, level, address >> shift << shift) {
                None => return End::Invalid,
                Some(leaf) if leaf.is_leaf => return End::Leaf(leaf),
                Some(next) => (table, level) = (next.target(), level + 1),
            }
        }
    }
}

/// A leaf that the access flag keeps out of TLBs.
pub(crate) fn is_young(step: &Step, regime: &Regime) -> bool {
    regime.ignores_young || step.descriptor >> 10 & 1 != 0
}

/// Everything of `steps`, each with its regime, that a TLB may hold, by the word that it comes from.
pub(crate) fn walkable<'a>(steps: impl Iterator<Item = (&'a Regime, &'a Step)>) -> BTreeMap<Key, Step> {
    let young = steps.filter(|(regime, step)| !step.is_leaf || is_young(step, regime)).map(|(_, step)| *step);
    young.map(|step| (key(&step), step)).collect()
}

/// The fields that set a step apart from all others that a walk finds.
pub(crate) type Key = (u16, u64, u64, usize);

pub(crate) const fn key(step: &Step) -> Key {
    (step.asid, step.start, step.size, step.source)
}
