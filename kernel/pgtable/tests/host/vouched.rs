//! The calls that have a contract, as the tests make them. Tables of the host machine are words of its arena, what they
//! map is no memory, and there is one CPU: a contract that is broken shows in what the test reads back, and nowhere else.

#![allow(unsafe_code, reason = "keeps the contracts on a machine without memory")]

use core::sync::atomic::AtomicU64;

use granule_arch::addr::PhysAddr;
use granule_pgtable::host::HostMachine;
use granule_pgtable::{
    Collapser, Geometry, Leaf, PageRange, PageTables, Progress, Reclaimer, Stores, TableSource, Tlb,
};

/// [`PageTables::release_unmapped`].
pub(crate) fn release_unmapped<M: Stores>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    released: impl FnMut(Leaf),
) {
    // SAFETY: see above.
    unsafe { tables.release_unmapped(range, released) };
}

/// [`Reclaimer::advance`], with frames that go back to the machine; how many came.
pub(crate) fn reclaim<'w, G: Geometry>(
    machine: &HostMachine<G>,
    reclaimer: &mut Reclaimer<G, 2>,
    words: impl Fn(usize) -> Option<&'w AtomicU64>,
) -> (Progress, usize) {
    let (mut frames, mut freed) = (machine.frames(), 0);
    let free = |table| {
        // SAFETY: the machine's frames are of one source, which insists on zeroes.
        unsafe { frames.give_back(table) };
        freed += 1;
    };
    // SAFETY: see above.
    let progress = unsafe { reclaimer.advance(&machine.page_tables(), machine.tlb(), words, free) };
    (progress, freed)
}

/// [`Collapser::mark`].
pub(crate) fn mark<'w, M: Stores, const CPUS: usize>(
    collapser: &mut Collapser<M::Geometry, CPUS>,
    tables: &PageTables<'_, M>,
    words: impl Fn(usize) -> Option<&'w AtomicU64>,
) {
    // SAFETY: see above.
    unsafe { collapser.mark(tables, words) };
}

/// [`Collapser::replace_stopped`].
pub(crate) fn replace_stopped<M: Stores, const CPUS: usize>(
    collapser: &mut Collapser<M::Geometry, CPUS>,
    tables: &PageTables<'_, M>,
) {
    // SAFETY: see above.
    unsafe { collapser.replace_stopped(tables) };
}

/// [`Collapser::advance`].
pub(crate) fn collapse<'w, M: Stores, const CPUS: usize>(
    collapser: &mut Collapser<M::Geometry, CPUS>,
    tables: &PageTables<'_, M>,
    tlb: &impl Tlb<M>,
    words: impl Fn(usize) -> Option<&'w AtomicU64>,
    source: &mut impl TableSource,
    free: impl FnMut(PhysAddr),
) -> Progress {
    // SAFETY: see above.
    unsafe { collapser.advance(tables, tlb, words, source, free) }
}
