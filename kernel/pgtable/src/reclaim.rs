//! Tables that nothing is mapped in any more: found, unlinked, and freed when no walk can reach them.
//!
//! Arm ARM D8.17.1 (a table is unlinked by break: invalid, DSB, TLBI of all levels, DSB) and D8.17.4 (which walk-cache
//! entries a TLBI takes). Owners of disjoint ranges share tables, map and unmap without a lock, and
//! [`PageTables::update`] runs in interrupts: none of them may wait. So a table is freed in three steps, and none
//! of these waits either:
//!
//! 1. **Mark** the descriptors of empty tables ([`bits::RECLAIM_MARK`], compare-exchange). Then a grace period.
//! 2. **Look again**: where the table is still empty, and compare-exchange of the marked descriptor to empty works, it
//!    is unlinked. DSB ISHST; TLBI, all levels; DSB ISH. Then a grace period.
//! 3. **Free.**
//!
//! A grace period is over when every walk that was announced at its start has ended ([`Grace`]).
//!
//! # Why no leaf is lost
//! [`PageTables::map`] announces its walk, and its first pass takes away each mark that it finds on its way. Take a
//! table that it means to write into, and its last read of the table's descriptor in the first pass.
//!
//! ```text
//!     it read no mark    a mark that came later waits for the end of this walk before step 2, which then sees the leaves
//!     it took one away   step 2 of that mark fails in its compare-exchange; for a later mark, see above
//!     it read no table   step 2 was first: the table counts as missing, and a new one is linked
//! ```
//! A table that a neighbour links between its two passes is of the first kind: the mark can only have come later. So
//! what the first pass has counted on is there in the second, and neither pass ever waits. `update` and `unmap` need
//! none of this for reclaim, which takes no table that has a leaf; [`crate::collapse`] does. A map that is refused
//! after its first pass has taken marks away from tables that stay empty: step 2 finds these, and step 1 follows anew.
//!
//! # Why no walker reads a freed table
//! A walk that begins after step 2 does not find the table; one that began before keeps the second grace period from
//! ending; and the TLBI has taken what the hardware's walkers had cached. Between steps 2 and 3 the table holds a link
//! and an address, which no walker takes for a descriptor.
//!
//! # Why nothing is made beside what walk caches hold
//! From step 2 until its invalidation is complete, walk caches may hold the old table for addresses that a mapper gives
//! a new one: two tables for one address, and a spurious fault through the old one after the mapper has returned. So
//! unlinking leaves [`bits::UNLINKED`] behind, invalid and not empty, until that DSB. A mapper that meets it does not
//! wait: it invalidates the address itself, and makes its entry in the place of the mark.
//!
//! [`bits::RECLAIM_MARK`]: granule_arch::descriptor::bits::RECLAIM_MARK
//! [`bits::UNLINKED`]: granule_arch::descriptor::bits::UNLINKED

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};

use crate::announce::{Grace, WalkWord};
use crate::cursor::{Cursor, Marks};
use crate::flush::Invalidation;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Stores, Table, Tlb};
use crate::range::PageRange;
use crate::table_list::TableList;
use crate::tables::PageTables;

/// The value of a table's link while walk caches may hold the table: empty, to hardware and to every
/// walk.
pub(crate) const UNLINKED: Descriptor = Descriptor(bits::UNLINKED);

/// How far a [`Reclaimer`] has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing is left to do: every table in the range that was empty is freed, or in use again.
    Done,
    /// A walk of another CPU must end first.
    Waiting,
}

/// The reclaim of one tree's tables, on a machine of up to `CPUS` CPUs.
///
/// One for each tree: two at the same time would take each other's tables away under them.
#[derive(Debug)]
pub struct Reclaimer<G: Geometry, const CPUS: usize> {
    stage: Stage<G, CPUS>,
}

#[derive(Clone, Copy, Debug)]
enum Stage<G: Geometry, const CPUS: usize> {
    Idle,
    /// Step 1 is next.
    Requested(PageRange<G>),
    /// Step 2 is next.
    Marked(PageRange<G>, Grace<CPUS>),
    /// Step 3 is next.
    Unlinked(PageRange<G>, TableList, Grace<CPUS>),
}

impl<G: Geometry, const CPUS: usize> Default for Reclaimer<G, CPUS> {
    fn default() -> Self {
        Self::new()
    }
}

impl<G: Geometry, const CPUS: usize> Reclaimer<G, CPUS> {
    /// Nothing to do yet.
    pub const fn new() -> Self {
        Self { stage: Stage::Idle }
    }

    /// Whether [`Reclaimer::start`] may be called.
    pub const fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Has the next [`Reclaimer::advance`] look for empty tables that translate any of `range`.
    ///
    /// # Panics
    /// In debug builds, where an earlier range is not done.
    pub fn start(&mut self, range: PageRange<G>) {
        debug_assert!(self.is_idle());
        self.stage = Stage::Requested(range);
    }

    /// Advances as far as it can without waiting. Each freed table goes to `free`, zeroed.
    ///
    /// `words` gives each CPU's walk word by number: those of all CPUs that may walk this tree. Not inside a walk of
    /// this CPU's own, which would be waited for like any other's; a tree that has its own words has its own callers.
    ///
    /// # Safety
    /// 1. It is the one reclaimer of the tree, and no other tree's.
    /// 2. Every walk of the tree is announced ([`crate::Announced`]) until the reclaimer is idle, and `words` gives the word
    ///    of each CPU that may walk. Other than that only the tree's [`crate::Collapser`] walks, and not concurrently.
    /// 3. `tlb` invalidates for every CPU, and every device, that uses the tree.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn advance<'w, M: Stores<Geometry = G>, W: WalkWord + 'w>(
        &mut self,
        tables: &PageTables<'_, M>,
        tlb: &impl Tlb<M>,
        words: impl Fn(usize) -> Option<&'w W>,
        mut free: impl FnMut(PhysAddr),
    ) -> Progress {
        let mmu = tables.mmu();
        loop {
            self.stage = match &mut self.stage {
                Stage::Idle => return Progress::Done,
                Stage::Requested(range) => {
                    if mark(tables, *range) == 0 {
                        Stage::Idle
                    } else {
                        // The marks before the words, and a store before a load takes a full barrier.
                        mmu.dsb_ish();
                        Stage::Marked(*range, Grace::begin(&words))
                    }
                }
                Stage::Marked(range, grace) => {
                    if !grace.is_over(&words) {
                        return Progress::Waiting;
                    }
                    let (unlinked, unmarked) = unlink(tables, *range);
                    if unlinked.is_empty() {
                        if unmarked { Stage::Requested(*range) } else { Stage::Idle }
                    } else {
                        // Ends with a DSB ISH: the words are read after the unlinking.
                        tlb.invalidate(
                            mmu,
                            unlinked.iter(mmu).map(|table| Invalidation::unlinked_at(unlinked_at(mmu, *range, table))),
                        );
                        unlinked.iter(mmu).for_each(|table| take_mark_away(tables, unlinked_at(mmu, *range, table)));
                        Stage::Unlinked(*range, unlinked, Grace::begin(&words))
                    }
                }
                Stage::Unlinked(range, unlinked, grace) => {
                    if !grace.is_over(&words) {
                        return Progress::Waiting;
                    }
                    while let Some(table) = unlinked.pop(mmu) {
                        mmu.store(&TableList::cells(mmu, table)[1], Descriptor::EMPTY);
                        free(table);
                    }
                    // The tables above may be empty now.
                    Stage::Requested(*range)
                }
            };
        }
    }
}

/// Step 1. Returns how many tables are marked.
fn mark<M: Stores>(tables: &PageTables<'_, M>, range: PageRange<M::Geometry>) -> usize {
    let mut marked = 0;
    for_each_table(tables, range, |mmu, found| {
        if is_empty(mmu, found.table) {
            let marked_entry = Descriptor(found.descriptor.0 | bits::RECLAIM_MARK);
            // Only reclaim changes the descriptor of a table, except that a mapper takes marks away.
            marked += usize::from(mmu.compare_exchange(found.cell, found.descriptor, marked_entry).is_ok());
        }
    });
    marked
}

/// Step 2 up to the invalidation. The second entry of each table in the list holds the address that it translated.
///
/// Also returns whether an empty table has no mark: a map took it away and was refused, its leaves are gone already, or
/// the table is new.
fn unlink<M: Stores>(tables: &PageTables<'_, M>, range: PageRange<M::Geometry>) -> (TableList, bool) {
    let (mut unlinked, mut unmarked) = (TableList::EMPTY, false);
    for_each_table(tables, range, |mmu, found| {
        let marked = found.descriptor.0 & bits::RECLAIM_MARK != 0;
        if !is_empty(mmu, found.table) {
            if marked {
                mmu.clear_bits(found.cell, bits::RECLAIM_MARK);
            }
        } else if marked && mmu.compare_exchange(found.cell, found.descriptor, UNLINKED).is_ok() {
            let table = found.table.address();
            unlinked.push(mmu, table);
            mmu.store(&TableList::cells(mmu, table)[1], Descriptor(found.start.0 & bits::ADDRESS));
        } else {
            unmarked = true;
        }
    });
    (unlinked, unmarked)
}

/// The first address that a table in the list translated.
fn unlinked_at<M: Mmu>(mmu: &M, range: PageRange<M::Geometry>, table: PhysAddr) -> VirtAddr {
    let low = mmu.load(&TableList::cells(mmu, table)[1]).0;
    // Both are in the same half of the address space.
    VirtAddr(range.start().0 & !bits::ADDRESS | low)
}

/// The end of step 2 for the table that translated `address`: the entry is free, unless a mapper has taken it already.
fn take_mark_away<M: Stores>(tables: &PageTables<'_, M>, address: VirtAddr) {
    let (place, entry) = Cursor::at_root(tables).end_of_walk(address, Marks::Keep);
    if entry == UNLINKED {
        // Where this fails a mapper was here: it has invalidated the address itself.
        let _ = tables.mmu().compare_exchange(place.cell(address), UNLINKED, Descriptor::EMPTY);
    }
}

/// Looks at a few entries at once, and no further than the first that are in use.
fn is_empty<M: Mmu>(mmu: &M, table: Table<M::Geometry>) -> bool {
    mmu.table(table).chunks(64).all(|entries| are_empty(mmu, entries))
}

// Inlined, it is there eight times.
#[inline(never)]
fn are_empty<M: Mmu>(mmu: &M, entries: &[M::Cell]) -> bool {
    mmu.survey(entries).any == Descriptor::EMPTY.0
}

/// A table that links no other below the address where it was looked at.
struct Found<'a, M: Mmu> {
    /// Where it is linked.
    cell: &'a M::Cell,
    /// How.
    descriptor: Descriptor,
    table: Table<M::Geometry>,
    /// The first address that it translates.
    start: VirtAddr,
}

/// Visits the lowest tables that translate any of `range`, once each; never the root. An upper table is visited where
/// its first entry in the range links nothing.
///
/// Only the one reclaimer unlinks tables, so nothing vanishes on the way and this walk need not be announced.
fn for_each_table<M: Mmu>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    mut visit: impl FnMut(&M, Found<'_, M>),
) {
    let mmu = tables.mmu();
    let mut address = range.start();
    loop {
        let (mut place, mut link) = (Cursor::at_root(tables), None);
        loop {
            let cell = place.cell(address);
            let descriptor = mmu.load(cell);
            if place.follow(descriptor).is_err() {
                break;
            }
            link = Some((cell, descriptor));
        }
        let table = place.table();
        if let Some((cell, descriptor)) = link {
            let start = address.align_down(M::Geometry::entry_size(table.level() - 1));
            if address == start || address == range.start() {
                visit(mmu, Found { cell, descriptor, table, start });
            }
        }
        // All that the last table translates, or one entry of an upper one.
        let size = M::Geometry::entry_size(table.level().min(LAST_LEVEL - 1));
        let last = VirtAddr(address.0 | (size - 1));
        if last >= range.last() {
            return;
        }
        address = last + 1;
    }
}
