//! Why a fault cannot be served.
//!
//! `kernel/loom` compiles this file with [`look`](super::look).

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Mmu, PageTables};

use super::area::Area;
use super::area::tree::Areas;
use super::error::FaultError;
use super::look::LockedEntry;
use super::table_lock::TableGuard;

/// Why a fault cannot be served, formed of what does not change concurrently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Denied(FaultError);

impl Denied {
    /// By an area, or because there is none: the areas are locked.
    #[inline(always)]
    pub(super) fn by_areas(_areas: &Areas, error: FaultError) -> Self {
        Self(error)
    }

    /// By the entry of the page, or of its block.
    #[inline(always)]
    pub(super) fn by_entry(_entry: LockedEntry<'_>, error: FaultError) -> Self {
        Self(error)
    }

    /// By something else than the entry, with `error`, if no page is in `cell` under the lock either; `None` where
    /// another CPU was faster, and the retry decides.
    pub(super) fn where_empty<M: Mmu>(
        mmu: &M,
        locked: &TableGuard<'_>,
        cell: &M::Cell,
        error: FaultError,
    ) -> Option<Self> {
        locked.entry(mmu, cell).fillable().map(|_| Self(error))
    }

    /// By something else, for `page` of an area, which has no table and no block: while the areas are locked a table may
    /// be linked, and none is unlinked.
    pub(super) fn where_no_table<M: Mmu>(
        tables: &PageTables<'_, M>,
        _area: &Area,
        page: VirtAddr,
        error: FaultError,
    ) -> Option<Self> {
        let is_empty = |cell| tables.mmu().load(cell) == Descriptor::EMPTY;
        tables.block_cell(page).is_none_or(|found| is_empty(found.cell)).then_some(Self(error))
    }

    /// The reason.
    #[inline(always)]
    pub(super) const fn error(self) -> FaultError {
        self.0
    }
}
