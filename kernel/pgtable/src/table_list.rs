//! A list of tables that runs through their own first entries: no memory, and no bound on its length.
//!
//! The links are not valid as descriptors and not marked present, so a walk that still reads such a table finds nothing
//! there.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;

use crate::error::Error;
use crate::geometry::LAST_LEVEL;
use crate::mmu::{Mmu, Stores, Table};
use crate::source::TableSource;

/// Tables that are not linked in a tree: not yet, or not any more. All entries but the first are the owner's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableList {
    head: PhysAddr,
    count: usize,
}

impl TableList {
    pub(crate) const EMPTY: Self = Self { head: PhysAddr(0), count: 0 };

    /// Takes `needed` tables from `source`, or none.
    #[inline]
    pub(crate) fn take<M: Stores>(mmu: &M, needed: usize, source: &mut impl TableSource) -> Result<Self, Error> {
        let mut tables = Self::EMPTY;
        while tables.count < needed {
            let Some(table) = source.take() else {
                let available = tables.count;
                tables.give_back(mmu, source);
                return Err(Error::OutOfTables { needed, available });
            };
            tables.push(mmu, table);
        }
        Ok(tables)
    }

    pub(crate) fn push<M: Stores>(&mut self, mmu: &M, table: PhysAddr) {
        mmu.store(&Self::cells(mmu, table)[0], Descriptor(self.head.0));
        self.head = table;
        self.count += 1;
    }

    pub(crate) fn pop<M: Stores>(&mut self, mmu: &M) -> Option<PhysAddr> {
        self.count = self.count.checked_sub(1)?;
        let table = self.head;
        let link = &Self::cells(mmu, table)[0];
        self.head = mmu.load(link).address();
        mmu.store(link, Descriptor::EMPTY);
        Some(table)
    }

    /// Gives back what [`Self::take`] took from `source`.
    #[allow(unsafe_code, reason = "gives back what it has taken")]
    pub(crate) fn give_back<M: Stores>(mut self, mmu: &M, source: &mut impl TableSource) {
        while let Some(table) = self.pop(mmu) {
            // SAFETY: it came from there and was never linked; `pop` has emptied the entry that was used.
            unsafe { source.give_back(table) };
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The tables, which stay in the list.
    pub(crate) fn iter<'m, M: Mmu>(&self, mmu: &'m M) -> impl Iterator<Item = PhysAddr> + use<'m, M> {
        let mut next = self.head;
        (0..self.count).map(move |_| {
            let table = next;
            next = mmu.load(&Self::cells(mmu, table)[0]).address();
            table
        })
    }

    /// The entries of a table in a list: at least two in every geometry.
    pub(crate) fn cells<M: Mmu>(mmu: &M, table: PhysAddr) -> &[M::Cell] {
        mmu.table(Table::new(table, LAST_LEVEL))
    }
}
