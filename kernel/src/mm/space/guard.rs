//! Guards in the place of entries of one table.
//!
//! ```text
//!     a guard                                        a fork              a fault
//!     lock the table                                 lock all areas      lock the areas (read)
//!       empty the entries, invalidate                  lock the table      lock the table
//!       store the guards                                 copy                look
//!     unlock
//! ```
//! The pages go and the guards come under one hold of the table's lock, so a fault finds the page or the guard, and so
//! does a fork, which waits for the areas too. A look without the lock that finds neither is no answer
//! ([`Glimpse`](super::look::Glimpse)).
//!
//! `kernel/loom` compiles this file, and lets it meet a fork and a fault.

use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::Stores;

use super::entry::{EntryState, state};
use super::table_lock::TableGuard;

/// Whether `entry`, of the last level, is a guard.
pub(super) fn is_guard(entry: Descriptor) -> bool {
    matches!(state(entry), EntryState::Marker(markers) if markers.contains(Markers::GUARD))
}

/// Makes a guard of `cell`, whose entry `old` has no page. One that is a guard stays, with the mark of a scan.
fn set_guard<M: Stores>(mmu: &M, cell: &M::Cell, old: Descriptor) {
    if !is_guard(old) {
        mmu.store(cell, Descriptor::from(Markers::GUARD));
    }
}

/// Makes guards of `cells`, entries without a page in the table that is `locked`, and calls `note_used` with the index of
/// each before; returns `false` at the first one that has a page, or that a TLB may still have.
pub(super) fn set_guards<M: Stores>(
    mmu: &M,
    locked: &TableGuard<'_>,
    cells: &[M::Cell],
    note_used: impl Fn(usize),
) -> bool {
    cells.iter().enumerate().all(|(index, cell)| {
        let old = locked.entry(mmu, cell).descriptor();
        match state(old) {
            EntryState::Empty | EntryState::Marker(_) => {
                note_used(index);
                set_guard(mmu, cell, old);
                true
            }
            EntryState::Page
            | EntryState::Inaccessible
            | EntryState::Stale
            | EntryState::Migration
            | EntryState::Damaged => false,
        }
    })
}

/// Makes guards of all `cells` of the table that is `locked`, which `zap` empties, with the invalidation; then it is
/// unlocked.
pub(super) fn replace_by_guards<M: Stores>(
    mmu: &M,
    locked: TableGuard<'_>,
    cells: &[M::Cell],
    zap: impl FnOnce(&TableGuard<'_>),
) {
    zap(&locked);
    cells.iter().for_each(|cell| set_guard(mmu, cell, locked.entry(mmu, cell).descriptor()));
    drop(locked);
}
