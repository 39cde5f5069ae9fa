//! The way down a tree: the only code that follows table descriptors.
//!
//! Arm ARM D8.2: from the root, each level's entry is a table (go on), a leaf, or nothing. No lock is taken. Each entry
//! is read once, and what to do is decided on that copy; the tables on the way stay because there are leaves of the
//! caller's below them, because the walk is announced ([`crate::announce`]), or because only the caller unlinks any.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, bits};
use granule_arch::tlbi::{AddressOperand, Instruction};

use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Table};
use crate::tables::PageTables;

/// How a walk treats the marks of [`crate::reclaim`] and [`crate::collapse`] on its path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Marks {
    /// They stay: the walk stores nothing, or another one of the same caller has taken them away.
    Keep,
    /// They are taken away, so that the marked tables stay linked. Only in announced walks.
    Clear,
}

/// Marks of table descriptors.
const MARKS: u64 = bits::RECLAIM_MARK | bits::COLLAPSING;

/// A table that was reached from the root.
pub(crate) struct Cursor<'t, M: Mmu> {
    mmu: &'t M,
    table: Table<M::Geometry>,
    /// The bits that any table descriptor on the way has: PXNTable and UXNTable hold for all below.
    pub(crate) inherited: u64,
}

impl<'t, M: Mmu> Cursor<'t, M> {
    /// The root.
    #[inline(always)]
    pub(crate) fn at_root(tables: &PageTables<'t, M>) -> Self {
        debug_assert_eq!(tables.root().level(), M::Geometry::FIRST_LEVEL);
        Self { mmu: tables.mmu(), table: tables.root(), inherited: 0 }
    }

    #[inline(always)]
    pub(crate) const fn table(&self) -> Table<M::Geometry> {
        self.table
    }

    #[inline(always)]
    pub(crate) const fn level(&self) -> u8 {
        self.table.level()
    }

    /// The entries of the table.
    #[inline(always)]
    pub(crate) fn cells(&self) -> &'t [M::Cell] {
        self.mmu.table(self.table)
    }

    /// The entry for `address`.
    #[inline(always)]
    pub(crate) fn cell(&self, address: VirtAddr) -> &'t M::Cell {
        &self.cells()[M::Geometry::index(address, self.level())]
    }

    /// Goes down if `entry`, which was read in the table, links one.
    ///
    /// # Errors
    /// The entry, where it links none.
    #[inline(always)]
    pub(crate) fn follow(&mut self, entry: Descriptor) -> Result<(), Descriptor> {
        self.follow_from(self.level(), entry)
    }

    /// Reads the entry for `address` and goes down if it links a table. `level` is that of the table: where it is a
    /// constant, shifts and masks are.
    ///
    /// # Errors
    /// The entry, where it links none.
    #[inline(always)]
    pub(crate) fn descend(&mut self, level: u8, address: VirtAddr) -> Result<(), Descriptor> {
        debug_assert_eq!(level, self.level());
        let cell = &self.cells()[M::Geometry::index(address, level)];
        self.follow_from(level, self.mmu.load(cell))
    }

    /// As [`Self::descend`], with the entry's marks taken away.
    fn descend_and_clear(&mut self, level: u8, address: VirtAddr) -> Result<(), Descriptor> {
        let cell = &self.cells()[M::Geometry::index(address, level)];
        let entry = cleared(self.mmu, cell, level, address);
        self.follow_from(level, entry)
    }

    /// Whether a descriptor on the way down had a mark.
    #[inline(always)]
    pub(crate) const fn is_marked(&self) -> bool {
        self.inherited & MARKS != 0
    }

    /// Whether a descriptor on the way down had the mark of a collapse.
    #[inline(always)]
    pub(crate) const fn is_collapsing(&self) -> bool {
        self.inherited & bits::COLLAPSING != 0
    }

    #[inline(always)]
    fn follow_from(&mut self, level: u8, entry: Descriptor) -> Result<(), Descriptor> {
        if level == LAST_LEVEL || !entry.is_table() {
            return Err(entry);
        }
        self.table = Table::new(entry.address(), level + 1);
        self.inherited |= entry.0;
        Ok(())
    }

    /// Goes down to the table of `level` for `address`.
    ///
    /// # Errors
    /// The entry where the walk ends above that, and its level.
    #[inline(always)]
    pub(crate) fn down_to(mut self, level: u8, address: VirtAddr, marks: Marks) -> Result<Self, (Descriptor, u8)> {
        let root = self.table;
        let mut at = M::Geometry::FIRST_LEVEL;
        let mut end = Ok(());
        while at != level {
            end = self.descend(at, address).map_err(|entry| (entry, at));
            if end.is_err() {
                break;
            }
            at += 1;
        }
        if marks == Marks::Clear && self.is_marked() {
            self = Self { table: root, inherited: 0, ..self }.down_and_clear(level, address)?;
        } else {
            end?;
        }
        self.table = Table::new(self.table.address(), level);
        Ok(self)
    }

    /// As [`Self::down_to`], with all marks on the way taken away.
    #[cold]
    #[inline(never)]
    fn down_and_clear(mut self, level: u8, address: VirtAddr) -> Result<Self, (Descriptor, u8)> {
        for at in M::Geometry::FIRST_LEVEL..level {
            self.descend_and_clear(at, address).map_err(|entry| (entry, at))?;
        }
        Ok(self)
    }

    /// Itself, made of its parts: as a whole it would be copied with its padding, by `memmove`, whose accesses are not
    /// aligned, as they must be with the MMU off.
    #[inline(always)]
    pub(crate) fn by_parts(self) -> Self {
        let Self { mmu, table, inherited } = self;
        Self { mmu, table: Table::new(table.address(), table.level()), inherited }
    }

    /// Goes down to where the walk for `address` ends, and returns the entry there: no table descriptor.
    #[inline(always)]
    pub(crate) fn end_of_walk(mut self, address: VirtAddr, marks: Marks) -> (Self, Descriptor) {
        if marks == Marks::Clear {
            return self.clear_to_the_end(address);
        }
        let mut at = M::Geometry::FIRST_LEVEL;
        loop {
            if let Err(entry) = self.descend(at, address) {
                return (self, entry);
            }
            at += 1;
        }
    }

    /// As [`Self::end_of_walk`], with all marks on the way and at its end taken away.
    #[inline(never)]
    fn clear_to_the_end(mut self, address: VirtAddr) -> (Self, Descriptor) {
        loop {
            if let Err(entry) = self.descend_and_clear(self.level(), address) {
                return (self, entry);
            }
        }
    }
}

/// Takes the marks of `cells` away, entries of a table of `level` from the one for `address` on.
#[inline(never)]
pub(crate) fn clear_all<M: Mmu>(mmu: &M, cells: &[M::Cell], level: u8, address: VirtAddr) {
    for (index, cell) in cells.iter().enumerate() {
        cleared(mmu, cell, level, VirtAddr(address.0 + ((index as u64) << M::Geometry::shift(level))));
    }
}

/// The entry for `address`, with its marks taken away.
#[inline(never)]
#[allow(unsafe_code, reason = "any walk may take a mark away")]
fn cleared<M: Mmu>(mmu: &M, cell: &M::Cell, level: u8, address: VirtAddr) -> Descriptor {
    loop {
        let entry = mmu.load(cell);
        // A block has the mark of the table that it has replaced.
        let marks = if entry.is_table() { MARKS } else { bits::COLLAPSING };
        if level == LAST_LEVEL || !entry.is_valid() || entry.0 & marks == 0 {
            return entry;
        }
        // And read again: the table may be gone meanwhile, and then clearing has changed nothing.
        if entry.0 & bits::COLLAPSING != 0 {
            settle(mmu, cell, entry, address);
        } else {
            // SAFETY: a mark is no part of what the entry translates to or links, and each announced walk may take it away.
            unsafe { mmu.clear(cell, bits::RECLAIM_MARK) };
        }
    }
}

/// Takes a mark away that a walk has found, where `entry` was read for `address`: what is stored from now on is not
/// lost, and no walk cache has another table for the address.
#[cold]
#[allow(unsafe_code, reason = "any walk may take a mark away")]
fn settle<M: Mmu>(mmu: &M, cell: &M::Cell, entry: Descriptor, address: VirtAddr) {
    complete_unlinking(mmu, address);
    // Where this fails the collapser or another walk was faster: the caller reads again.
    // SAFETY: as in `cleared`; no walk cache has the table that the mark warns of.
    let _ = unsafe { mmu.exchange(cell, entry, Descriptor(entry.0 & !bits::COLLAPSING)) };
}

/// Takes out of all walk caches the table that was unlinked at `address`, where this CPU has read [`bits::UNLINKED`].
#[cold]
pub(crate) fn complete_unlinking<M: Mmu>(mmu: &M, address: VirtAddr) {
    // Another CPU stored the mark: a DSB that orders this CPU's read of it makes all walks see it. DSB ISHST would not.
    mmu.dsb_ish();
    mmu.tlbi(Instruction::Vaae1is(AddressOperand::new(address, None)));
    mmu.complete_tlbi();
}
