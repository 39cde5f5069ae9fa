//! The used parts of a last-level table: a bit for each eight entries, in the record of the table's frame.
//!
//! Most tables are sparse, those of stacks above all, and a fork skips unused parts. A bit is set under the table's
//! lock, before the first of its eight entries is stored, and stays set.

use core::ops::Range;
use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Geometry, Granule4K, Mmu};

use super::cells::TableCells;
use super::table_lock::TableGuard;
use crate::mm::frame::Frame;
use crate::mm::kernel::Machine;

/// Of a table all of whose entries are in use.
pub(super) const ALL_USED: u64 = u64::MAX;
/// Entries for each bit.
const EIGHT: usize = 8;
const _: () = assert!(1 << Granule4K::INDEX_BITS == EIGHT * u64::BITS as usize);

impl TableGuard<'_> {
    /// Notes that an entry for `page` is about to be stored.
    #[inline(always)]
    pub(super) fn note_used(&self, page: VirtAddr) {
        note_used(self.frame(), page);
    }

    /// The bits of `found`, entries of this table, that may be in use.
    #[inline(always)]
    pub(super) fn used(&self, mmu: &Machine, found: &TableCells<'_>) -> u64 {
        let used = self.frame().owner.load(Ordering::Relaxed) & bits_of(found);
        let first = index(found.start);
        debug_assert!(
            found.cells.iter().enumerate().all(|(cell, entry)| {
                used >> ((first + cell) / EIGHT) & 1 != 0 || mmu.load(entry) == Descriptor::EMPTY
            }),
            "an entry that was not noted"
        );
        used
    }
}

/// As [`TableGuard::note_used`], for `table`, whose lock is held.
#[inline(always)]
pub(super) fn note_used(table: &Frame, page: VirtAddr) {
    note_all_used(table, 1 << (index(page) / EIGHT));
}

/// The bits of `found`.
#[inline(always)]
pub(super) fn bits_of(found: &TableCells<'_>) -> u64 {
    let (first, last) = (index(found.start), index(found.start) + found.cells.len() - 1);
    (u64::MAX << (first / EIGHT)) & (u64::MAX >> (u64::BITS as usize - 1 - last / EIGHT))
}

/// As [`TableGuard::note_used`], for a table of an object, which has no lock.
#[inline(always)]
pub(super) fn note_used_by_others(table: &Frame, page: VirtAddr) {
    let bit = 1 << (index(page) / EIGHT);
    if table.owner.load(Ordering::Relaxed) & bit == 0 {
        // Before the entry: the barrier that publishes it comes next.
        table.owner.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Notes that entries at these bits are about to be stored. The table's lock is held, or the table is not linked yet.
#[inline(always)]
pub(super) fn note_all_used(table: &Frame, bits: u64) {
    // No atomic operation: see above.
    table.owner.store(table.owner.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
}

/// Calls `visit` with the indices in `found` of the entries at `bits`, neighbours together, in ascending order.
#[inline(always)]
pub(super) fn for_each_used(found: &TableCells<'_>, mut bits: u64, mut visit: impl FnMut(Range<usize>)) {
    let (first, end) = (index(found.start), index(found.start) + found.cells.len());
    while bits != 0 {
        let start = bits.trailing_zeros();
        let after = start + (bits >> start).trailing_ones();
        visit((start as usize * EIGHT).max(first) - first..(after as usize * EIGHT).min(end) - first);
        bits = bits.checked_shr(after).map_or(0, |rest| rest << after);
    }
}

#[inline(always)]
fn index(page: VirtAddr) -> usize {
    Granule4K::index(page, granule_pgtable::geometry::LAST_LEVEL)
}
