//! Entries in the tables of a space, where they are.

use granule_pgtable::{Cells, Mmu};

use crate::mm::kernel::Machine;

/// A live entry.
pub(super) type EntryCell = <Machine as Mmu>::Cell;
/// The entry of a block, or where there could be one.
pub(super) type BlockCell<'t> = granule_pgtable::BlockCell<'t, Machine>;
/// Entries of one last-level table.
pub(super) type TableCells<'t> = Cells<'t, Machine>;
