//! Splitting leaves in use, so that an owner of a part of one can change that part alone.
//!
//! Arm ARM D8.17.1 and FEAT_BBM level 2: the size of a live translation may change without break-before-make, as long
//! as both sizes translate alike; D8.7.1 for contiguous groups. A CPU must be known to raise no TLB conflict abort
//! while it holds both sizes: the caller checks that.
//!
//! A range has two ends, and only the leaves that these cut are split, from the top down to the largest legal pieces:
//!
//! ```text
//!  1 GiB block ─► a table of 2 MiB blocks, in contiguous groups ─► the group at the end loses its bit
//!     ─► the block at the end becomes a table of pages, in contiguous groups ─► the group at the end loses its bit
//! ```
//! Attributes, software bits and the present-invalid state go along. Nothing is invalidated and nothing broken: TLBs
//! may go on holding the larger leaf, which translates alike. The change after the split invalidates, by
//! address and **without a level hint**, because the level that a TLB holds is then not known.
//!
//! # Two splits of one leaf
//! Owners of neighbouring ranges own one block or group together until it is split, and may both come to split it. The
//! failure where nothing serialises them is an old trap: the bit is cleared by a read and a write, and in between
//! the neighbour, which had found it cleared already, changes its permission.
//!
//! ```text
//!     this CPU: splits                    the neighbour: splits, then changes entry 3
//!     reads entry 3: writable, CONT
//!                                         clears CONT in all entries
//!                                         entry 3 ← read-only; DSB, TLBI, DSB; returns
//!     entry 3 ← writable                                              … and its change is lost
//! ```
//! [`Serialise`] selects one of two remedies: a lock around the split alone, or atomic steps.
//!
//! # Where CPUs cannot hold both sizes
//! There each entry is replaced break-before-make, and between the two nothing is mapped where other CPUs may be at work.
//! So these are stopped first ([`PageTables::split_stopped`]), none inside a walk: then one CPU is alone with the tree, as
//! with one that is not in use.
//!
//! # Why an owner may then change its entries by plain stores
//! A splitter deals with **all** entries of a group in ascending order and with the last one last, after a DMB ISHST.
//! So if the last entry has no contiguous bit, none in the group has, and only the owner of an entry stores to it.
//! The change comes after that read by a control dependency, its TLBI after the change by a DSB ISHST; so no walk
//! that comes after the TLBI can find a neighbour that still has the bit, and cache the whole group with what this
//! entry was. [`PageTables::update`] asks the last entry of the group at each end that is not a group's own.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::cursor::{Cursor, Marks};
use crate::error::Error;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Stores, Survey, Table};
use crate::range::PageRange;
use crate::source::TableSource;
use crate::table_list::TableList;
use crate::tables::PageTables;
use crate::walk::Entry;

/// How splits of one leaf by several CPUs are kept apart.
///
/// # Safety
/// While a section lasts:
/// 1. With [`Entries::Alone`] no other split of the tree is under way, on this CPU or another.
/// 2. With [`Entries::Stopped`] no other CPU runs, and none is inside a walk of the tree.
///
/// [`Entries::Unguarded`] promises nothing, and loses changes of others: it is for machines that show that.
#[allow(unsafe_code, reason = "a contract for implementors; nothing unsafe is done here")]
pub unsafe trait Serialise {
    /// Held while entries are changed, and dropped after.
    type Section<'a>
    where
        Self: 'a;

    /// The other changes and reads that the entries may see during a split.
    fn entries(&self) -> Entries;

    /// Begins the changing half. Tables have been taken; nothing is allocated until the section ends.
    fn begin(&self) -> Self::Section<'_>;

    /// Whether the pieces of a block are in contiguous groups, where there are any.
    #[inline(always)]
    fn groups(&self) -> bool {
        true
    }

    /// With [`Entries::Unguarded`], between the read and the write of each entry: where the neighbour must not come.
    #[inline(always)]
    fn window(&self) {}
}

/// The protection of a leaf's entries while it is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entries {
    /// The section keeps all other splits out, so they stay as they are: plain loads and stores.
    Alone,
    /// Another split may be under way: a bit is cleared, and a block exchanged for a table, in one atomic step.
    Shared,
    /// Another split may be under way, and they are treated as if none were: for machines that show what is lost.
    Unguarded,
    /// No other CPU runs, so each is replaced break-before-make ([`Stores::break_before_make`]): for CPUs that cannot
    /// hold leaves of both sizes.
    Stopped,
}

/// No lock: atomic steps; the loser keeps its table and reads the entry again.
#[derive(Clone, Copy, Debug)]
pub struct Lockless;

// SAFETY: the entries are `Shared`.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Lockless {
    type Section<'a> = ();

    #[inline(always)]
    fn entries(&self) -> Entries {
        Entries::Shared
    }

    #[inline(always)]
    fn begin(&self) {}
}

/// Counts of the leaves that a call has split, by their level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Splits {
    /// Blocks that became tables.
    pub blocks: [u8; LAST_LEVEL as usize + 1],
    /// Contiguous groups that lost their bit.
    pub groups: [u8; LAST_LEVEL as usize + 1],
    /// Tables that were made for a block of which another CPU was faster to make one.
    pub retries: u8,
}

impl Splits {
    /// None.
    pub const NONE: Self = Self { blocks: [0; 4], groups: [0; 4], retries: 0 };

    /// Whether nothing was split.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// With what another call has split.
    fn and(self, other: Self) -> Self {
        let sum = |these: [u8; 4], those: [u8; 4]| core::array::from_fn(|level| these[level] + those[level]);
        let retries = self.retries + other.retries;
        Self { blocks: sum(self.blocks, other.blocks), groups: sum(self.groups, other.groups), retries }
    }
}

/// How an update deals with leaves that its range cuts: not at all ([`WholeLeaves`], [`RefuseSplits`]), or by splitting
/// them while they are in use ([`Split`]).
pub trait Splitter<M: Stores> {
    /// Whether leaves in the range and around it may be split while they are in use, by this splitter or by the owner
    /// of a neighbouring range.
    const LIVE_SPLITS: bool;

    /// Whether [`Splitter::split`] ever splits.
    const SPLITS: bool = Self::LIVE_SPLITS;

    /// Splits the leaves of `cut`.
    ///
    /// # Errors
    /// [`Cut::error`] where the splitter does not split them, [`Error::OutOfTables`].
    fn split(&mut self, cut: &Cut<'_, M>) -> Result<(), Error>;
}

impl<M: Stores, S: Splitter<M>> Splitter<M> for &mut S {
    const LIVE_SPLITS: bool = S::LIVE_SPLITS;
    const SPLITS: bool = S::SPLITS;

    #[inline]
    fn split(&mut self, cut: &Cut<'_, M>) -> Result<(), Error> {
        S::split(self, cut)
    }
}

/// Leaves are never split while they are in use: a contiguous group belongs to one owner.
#[derive(Clone, Copy, Debug)]
pub struct WholeLeaves;

impl<M: Stores> Splitter<M> for WholeLeaves {
    const LIVE_SPLITS: bool = false;

    fn split(&mut self, cut: &Cut<'_, M>) -> Result<(), Error> {
        Err(cut.error())
    }
}

/// Others may split leaves while they are in use; this call does not.
#[derive(Clone, Copy, Debug)]
pub struct RefuseSplits;

impl<M: Stores> Splitter<M> for RefuseSplits {
    const LIVE_SPLITS: bool = true;
    const SPLITS: bool = false;

    fn split(&mut self, cut: &Cut<'_, M>) -> Result<(), Error> {
        Err(cut.error())
    }
}

/// Splits leaves, serialised by `how`, with tables from `source`.
pub struct Split<'a, S, T> {
    how: &'a S,
    source: &'a mut T,
    splits: Splits,
}

impl<'a, S, T> Split<'a, S, T> {
    /// Nothing is split yet.
    pub const fn new(how: &'a S, source: &'a mut T) -> Self {
        Self { how, source, splits: Splits::NONE }
    }

    /// Counts of the splits.
    pub const fn splits(&self) -> Splits {
        self.splits
    }
}

impl<M: Stores, S: Serialise, T: TableSource> Splitter<M> for Split<'_, S, T> {
    const LIVE_SPLITS: bool = true;

    fn split(&mut self, cut: &Cut<'_, M>) -> Result<(), Error> {
        self.splits = self.splits.and(cut.split(self.how, self.source)?);
        Ok(())
    }
}

impl<M: Stores> PageTables<'_, M> {
    /// Splits the leaves that `range` cuts at its ends, to the largest legal pieces, so that [`PageTables::update`] may
    /// change exactly the range. Nothing is split where it cuts none.
    ///
    /// Every address translates as before at any moment, so no barrier and no invalidation is needed. The CPUs hold
    /// leaves of both sizes for a while, and the caller knows that all of them can. The call that changes or unmaps the
    /// range afterwards gets a splitter whose [`Splitter::LIVE_SPLITS`] is set, such as [`RefuseSplits`].
    ///
    /// # Errors
    /// [`Error::OutOfTables`]; nothing was changed, and tables that were taken are given back.
    pub fn split<S: Serialise>(
        &self,
        range: PageRange<M::Geometry>,
        how: &S,
        source: &mut impl TableSource,
    ) -> Result<Splits, Error> {
        debug_assert_ne!(how.entries(), Entries::Stopped, "see `split_stopped`");
        // Leaves only become smaller until the second pass, so what is taken now is enough; another split may leave
        // some.
        split_with(self, range, missing_tables(self, range), how, source).map(|(splits, _)| splits)
    }

    /// [`PageTables::split`] while no other CPU runs, each entry break-before-make: for CPUs that cannot hold leaves of both
    /// sizes. The section of `how`, whose entries are [`Entries::Stopped`], stops the others where none is inside a walk,
    /// and ends the stop when it is dropped; so it begins outside of any walk of this CPU's, too.
    ///
    /// So many `tables` are taken before that. Returns what was split, and whether that is all: where it took more tables
    /// the caller continues with another one.
    ///
    /// # Errors
    /// As [`PageTables::split`].
    ///
    /// # Panics
    /// In debug builds, where the entries of `how` are not [`Entries::Stopped`]. [`PageTables::split`], and a [`Cut`]'s, where
    /// they are.
    pub fn split_stopped<S: Serialise>(
        &self,
        range: PageRange<M::Geometry>,
        tables: usize,
        how: &S,
        source: &mut impl TableSource,
    ) -> Result<(Splits, bool), Error> {
        debug_assert_eq!(how.entries(), Entries::Stopped);
        split_with(self, range, tables, how, source)
    }
}

/// [`PageTables::split`] with `needed` tables, and whether these were enough.
fn split_with<M: Stores, S: Serialise>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    needed: usize,
    how: &S,
    source: &mut impl TableSource,
) -> Result<(Splits, bool), Error> {
    let mmu = tables.mmu();
    let spare = TableList::take(mmu, needed, source)?;
    let mut splitting = Splitting { tables, how, spare, done: Splits::NONE };
    let section = how.begin();
    let is_done = ends(range).into_iter().all(|end| splitting.split_at(end));
    drop(section);
    splitting.spare.give_back(mmu, source);
    Ok((splitting.done, is_done))
}

/// An end of a range.
#[derive(Clone, Copy)]
struct End {
    /// A page of the range at that end. The caller owns it, so the tables on the way to it stay.
    page: VirtAddr,
    /// The address that no leaf may reach across.
    boundary: VirtAddr,
}

impl End {
    /// Whether pieces of `size` bytes, a power of two, reach across.
    #[inline(always)]
    const fn cuts(self, size: u64) -> bool {
        self.boundary.0 & (size - 1) != 0
    }
}

fn ends<G: Geometry>(range: PageRange<G>) -> [End; 2] {
    let last_page = range.last().align_down(G::PAGE_SIZE);
    [End { page: range.start(), boundary: range.start() }, End { page: last_page, boundary: range.end() }]
}

/// Tables that splitting at the ends of `range` takes: at most one of each level below the highest block's for each
/// end, and fewer where both ends are in one leaf.
fn missing_tables<M: Mmu>(tables: &PageTables<'_, M>, range: PageRange<M::Geometry>) -> usize {
    let [first, last] = ends(range);
    let cut = |end: End, level| end.cuts(M::Geometry::entry_size(level));
    // The levels at which an entry must be a table: none where nothing is mapped.
    let levels = |end: End| {
        // The second pass stores to what is found here.
        let (place, entry) = Cursor::at_root(tables).end_of_walk(end.page, Marks::Clear);
        let level = place.level();
        let is_leaf = entry.kind(M::Geometry::level_entries(level)) == Kind::Leaf;
        if is_leaf { level..LAST_LEVEL } else { LAST_LEVEL..LAST_LEVEL }
    };
    let (mut needed, of_first) = (0, levels(first));
    for level in of_first.clone() {
        needed += usize::from(cut(first, level));
    }
    for level in levels(last) {
        let same_entry = (first.page.0 ^ last.page.0) >> M::Geometry::shift(level) == 0;
        let counted = same_entry && of_first.contains(&level) && cut(first, level);
        needed += usize::from(cut(last, level) && !counted);
    }
    needed
}

/// The second pass.
struct Splitting<'a, 't, M: Stores, S> {
    tables: &'a PageTables<'t, M>,
    how: &'a S,
    spare: TableList,
    done: Splits,
}

impl<M: Stores, S: Serialise> Splitting<'_, '_, M, S> {
    /// Splits until no leaf reaches across `end`; `false` where there is no table left.
    fn split_at(&mut self, end: End) -> bool {
        let mmu = self.tables.mmu();
        loop {
            let Entry { table, index, level, inherited, .. } = self.tables.entry(end.page);
            if !end.cuts(M::Geometry::group_size(level)) {
                return true;
            }
            let cleared = clear_group(mmu, self.how, group_of::<M>(table, index, level), level);
            self.done.groups[level as usize] += u8::from(cleared);
            if !end.cuts(M::Geometry::entry_size(level)) {
                return true;
            }
            let cell = &table[index];
            let block = mmu.load(cell);
            match block.kind(M::Geometry::level_entries(level)) {
                Kind::Leaf if self.how.entries() == Entries::Stopped && self.spare.is_empty() => return false,
                Kind::Leaf => self.make_table(cell, level, block, inherited, end),
                // Another split was faster: on with what it has made.
                Kind::Table => {}
                Kind::None => return true,
            }
        }
    }

    /// Puts a table in the place of `block`, whose pieces translate as it did, with no contiguous group across `end`.
    fn make_table(&mut self, cell: &M::Cell, level: u8, block: Descriptor, inherited: u64, end: End) {
        let mmu = self.tables.mmu();
        let Some(address) = self.spare.pop(mmu) else {
            // Leaves have only become smaller since the first pass.
            unreachable!("the first pass counted every missing table")
        };
        let table = mmu.table(Table::new(address, level + 1));
        let mut first = piece::<M::Geometry>(block, level + 1);
        if !self.how.groups() {
            first.0 &= !bits::CONTIGUOUS;
        }
        mmu.fill(table, first, M::Geometry::entry_size(level + 1));
        // A group that is cut takes a break of its own later; as long as the table is not linked it takes no more than this.
        let stopped = self.how.entries() == Entries::Stopped;
        let cuts_a_group = stopped && first.is_contiguous() && end.cuts(M::Geometry::group_size(level + 1));
        if cuts_a_group {
            let index = M::Geometry::index(end.page, level + 1);
            mmu.update_run(group_of::<M>(table, index, level + 1), bits::CONTIGUOUS);
        }
        // Execution is forbidden below as it was above, no more: a piece may be made executable if the block could. No
        // change makes a leaf executable at EL0.
        let of_kernel = block.0 & bits::UXN != 0 && block.0 & bits::USER == 0;
        let user = if of_kernel { bits::UXNTABLE } else { inherited & bits::UXNTABLE };
        let descriptor = Descriptor::table(address, user | inherited & bits::PXNTABLE);
        // A walk that follows the descriptor finds the table filled.
        mmu.dmb_ishst();
        let linked = match self.how.entries() {
            Entries::Shared => mmu.compare_exchange(cell, block, descriptor).is_ok(),
            Entries::Stopped => {
                mmu.break_before_make(core::slice::from_ref(cell), descriptor, 0);
                true
            }
            entries => {
                if entries == Entries::Unguarded {
                    self.how.window();
                }
                mmu.store(cell, descriptor);
                true
            }
        };
        if linked {
            self.done.blocks[level as usize] += 1;
            self.done.groups[level as usize + 1] += u8::from(cuts_a_group);
        } else {
            self.done.retries += 1;
            // It was never linked. It is given back as it was taken.
            mmu.fill(table, Descriptor::EMPTY, 0);
            self.spare.push(mmu, address);
        }
    }
}

/// Clears the contiguous bit of every entry of a group that has it, the last entry last; whether any had it.
fn clear_group<M: Stores, S: Serialise>(mmu: &M, how: &S, group: &[M::Cell], level: u8) -> bool {
    let Some((last, others)) = group.split_last() else { return false };
    if how.entries() == Entries::Stopped {
        // Of any entry, as what has refused the change asks.
        if mmu.survey(group).any & bits::CONTIGUOUS == 0 {
            return false;
        }
        let first = mmu.load(&group[0]);
        mmu.break_before_make(group, Descriptor(first.0 & !bits::CONTIGUOUS), M::Geometry::entry_size(level));
        return true;
    }
    if how.entries() == Entries::Alone {
        // Each split clears all entries under the lock, so they are alike. Only leaves have the bit: what a table
        // descriptor has in its place means nothing, and is 0.
        let old = mmu.load(last);
        if !old.is_contiguous() {
            return false;
        }
        mmu.update_run(others, bits::CONTIGUOUS);
        // A clear last entry means that all are clear.
        mmu.dmb_ishst();
        mmu.store(last, Descriptor(old.0 & !bits::CONTIGUOUS));
        return true;
    }
    let mut cleared = false;
    for cell in others {
        cleared |= clear(mmu, how, cell);
    }
    // As above. An entry that this CPU has cleared comes before by the barrier, one that it
    // has only found cleared by a control dependency: each read decides whether there is a write.
    if cleared {
        mmu.dmb_ishst();
    }
    cleared | clear(mmu, how, last)
}

/// Clears the contiguous bit where it is set; returns whether it was.
#[inline(always)]
fn clear<M: Stores, S: Serialise>(mmu: &M, how: &S, cell: &M::Cell) -> bool {
    let old = mmu.load(cell);
    if !old.is_contiguous() {
        return false;
    }
    if how.entries() == Entries::Shared {
        return mmu.clear_bits(cell, bits::CONTIGUOUS).is_contiguous();
    }
    how.window();
    mmu.store(cell, Descriptor(old.0 & !bits::CONTIGUOUS));
    true
}

/// Leaves that a range cuts at its ends, where they are all that is in the way of a change.
pub struct Cut<'t, M: Stores> {
    tables: PageTables<'t, M>,
    range: PageRange<M::Geometry>,
    leaves: CutLeaves<'t, M>,
}

/// Which leaves.
pub(crate) enum CutLeaves<'t, M: Stores> {
    /// Any, at both ends of the range; the first of them as an error.
    Ends(Error),
    /// One block of the level above the last, which has all of the range.
    Block,
    /// Contiguous groups of one table.
    Groups {
        table: &'t [M::Cell],
        /// The range's first entry.
        first: usize,
        /// The range's last entry.
        last: usize,
        level: u8,
    },
}

impl<'t, M: Stores> Cut<'t, M> {
    #[inline(always)]
    pub(crate) const fn new(
        tables: PageTables<'t, M>,
        range: PageRange<M::Geometry>,
        leaves: CutLeaves<'t, M>,
    ) -> Self {
        Self { tables, range, leaves }
    }

    /// The blocks that `range` cuts at its ends, with the groups there; `None` where it cuts no block. Only in announced
    /// walks: a table that is found there stays a table until the walk ends.
    pub fn blocks_at_ends(tables: PageTables<'t, M>, range: PageRange<M::Geometry>) -> Option<Self> {
        let leaves = CutLeaves::Ends(Error::Straddles { leaf: range.start(), size: range.size() });
        (missing_tables(&tables, range) != 0).then(|| Self::new(tables, range, leaves))
    }

    /// The first address of the range.
    #[inline(always)]
    pub const fn start(&self) -> VirtAddr {
        self.range.start()
    }

    /// The leaf that is cut, as the error that it is where it is not split.
    pub fn error(&self) -> Error {
        match self.leaves {
            CutLeaves::Ends(error) => error,
            CutLeaves::Block | CutLeaves::Groups { .. } => {
                Error::Straddles { leaf: self.range.start(), size: self.range.size() }
            }
        }
    }

    /// Whether this is a first look: an error is followed by another, which finds the leaf.
    pub const fn is_first_look(&self) -> bool {
        !matches!(self.leaves, CutLeaves::Ends(_))
    }

    /// Splits it as [`PageTables::split`] does, and returns what was split: nothing where others were faster.
    ///
    /// # Errors
    /// As [`PageTables::split`].
    pub fn split<S: Serialise>(&self, how: &S, source: &mut impl TableSource) -> Result<Splits, Error> {
        debug_assert_ne!(how.entries(), Entries::Stopped, "this is inside a walk");
        match self.leaves {
            CutLeaves::Ends(_) => self.tables.split(self.range, how, source),
            // Both ends are in the one table that the block becomes.
            CutLeaves::Block => split_with(&self.tables, self.range, 1, how, source).map(|(splits, _)| splits),
            CutLeaves::Groups { table, first, last, level } => {
                let mut splits = Splits::NONE;
                let _section = how.begin();
                each_group_cut::<M>(table, first, last, level, |group| {
                    splits.groups[level as usize] += u8::from(clear_group(self.tables.mmu(), how, group, level));
                });
                Ok(splits)
            }
        }
    }
}

/// Whether entries `first` to `last` have only a part of a group that has the contiguous bit.
#[cold]
#[inline(never)]
pub(crate) fn cuts_a_group<M: Mmu>(mmu: &M, table: &[M::Cell], first: usize, last: usize, level: u8) -> bool {
    let mut found = Survey::NOTHING;
    each_group_cut::<M>(table, first, last, level, |group| found = found.and(mmu.survey(group)));
    found.any & bits::CONTIGUOUS != 0
}

/// The contiguous group that entry `index` of a table of `level` may be in: itself alone where there are none.
#[inline(always)]
fn group_of<M: Mmu>(table: &[M::Cell], index: usize, level: u8) -> &[M::Cell] {
    let entries = M::Geometry::group_entries(level);
    let first = index & !(entries - 1);
    &table[first..first + entries]
}

/// Calls `each` for the groups of which entries `first` to `last` are only a part: none, one or two.
#[inline(always)]
fn each_group_cut<'t, M: Mmu>(
    table: &'t [M::Cell],
    first: usize,
    last: usize,
    level: u8,
    mut each: impl FnMut(&'t [M::Cell]),
) {
    let in_group = M::Geometry::group_entries(level) - 1;
    let (group_of_first, group_of_last) = (first & !in_group, last & !in_group);
    let (at_first, at_last) = (first != group_of_first, last != group_of_last + in_group);
    if at_first || (at_last && group_of_first == group_of_last) {
        each(group_of::<M>(table, first, level));
    }
    if at_last && group_of_first != group_of_last {
        each(group_of::<M>(table, last, level));
    }
}

/// The first of the pieces that `block` becomes at `level`, in a contiguous group where there are any: the block's
/// address is aligned to its own size, and so to theirs.
fn piece<G: Geometry>(block: Descriptor, level: u8) -> Descriptor {
    let page = if level == LAST_LEVEL { bits::TABLE } else { 0 };
    let contiguous = if G::group_entries(level) > 1 { bits::CONTIGUOUS } else { 0 };
    Descriptor(block.0 | page | contiguous)
}

#[cfg(test)]
mod tests {
    use super::piece;
    use crate::geometry::{Granule4K, Granule64K};
    use granule_arch::descriptor::{Descriptor, bits};

    #[test]
    fn a_piece_is_a_leaf_of_its_level_and_has_all_else_of_the_block() {
        let attributes = bits::AF | bits::PXN | bits::UXN | bits::WRITE | bits::VM_ALLOC;
        for state in [bits::VALID, bits::PRESENT_INVALID] {
            let block = Descriptor(0x4000_0000 | attributes | state);
            let group = Descriptor(block.0 | bits::CONTIGUOUS);
            assert_eq!(piece::<Granule4K>(block, 2), group);
            // A page's second bit is set whether it is valid or not: made valid later, it is a page again.
            assert_eq!(piece::<Granule4K>(block, 3), Descriptor(group.0 | bits::TABLE));
            assert_eq!(piece::<Granule64K>(block, 3), Descriptor(group.0 | bits::TABLE));
        }
    }
}
