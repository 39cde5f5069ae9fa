//! The way down a tree: the only code that follows table descriptors.
//!
//! Arm ARM D8.2: from the root, each level's entry is a table (go on), a leaf, or nothing. No lock is taken. Each entry
//! is read once, and what to do is decided on that copy; the tables on the way stay because there are leaves of the
//! caller's below them, because the walk is announced ([`crate::announce`]), or because only the caller unlinks any.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, bits};

use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Table};
use crate::tables::PageTables;

/// What a walk does with the marks of reclaim on its path: see [`crate::reclaim`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReclaimMark {
    /// They stay.
    Keep,
    /// They are cleared, so that the marked tables stay linked. Only in announced walks.
    Clear,
}

/// A table that was reached from the root.
pub(crate) struct Cursor<'t, M: Mmu> {
    mmu: &'t M,
    table: Table,
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
    pub(crate) const fn table(&self) -> Table {
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
    pub(crate) fn descend(&mut self, level: u8, address: VirtAddr, mark: ReclaimMark) -> Result<(), Descriptor> {
        debug_assert_eq!(level, self.level());
        let cell = &self.cells()[M::Geometry::index(address, level)];
        let mut entry = self.mmu.load(cell);
        if mark == ReclaimMark::Clear {
            while entry.is_table() && entry.0 & bits::RECLAIM_MARK != 0 {
                self.mmu.clear_bits(cell, bits::RECLAIM_MARK);
                // Read again: the table may have been unlinked in between, and then clearing has changed nothing.
                entry = self.mmu.load(cell);
            }
        }
        self.follow_from(level, entry)
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
    pub(crate) fn down_to(mut self, level: u8, address: VirtAddr, mark: ReclaimMark) -> Result<Self, (Descriptor, u8)> {
        let mut at = M::Geometry::FIRST_LEVEL;
        while at != level {
            self.descend(at, address, mark).map_err(|entry| (entry, at))?;
            at += 1;
        }
        self.table = Table::new(self.table.address(), level);
        Ok(self)
    }

    /// Goes down to where the walk for `address` ends, and returns the entry there: no table descriptor.
    #[inline(always)]
    pub(crate) fn end_of_walk(mut self, address: VirtAddr, mark: ReclaimMark) -> (Self, Descriptor) {
        let mut at = M::Geometry::FIRST_LEVEL;
        loop {
            if let Err(entry) = self.descend(at, address, mark) {
                return (self, entry);
            }
            at += 1;
        }
    }
}
