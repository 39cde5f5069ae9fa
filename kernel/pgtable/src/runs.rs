//! The entries of a range, in runs: every operation on a range is a loop over these, but for a first look at it.
//!
//! After each last-level table the walk starts again at the root, three loads for up to 512 entries, and no stack of
//! tables is kept. The way down to a last-level table, where nearly all walks end, is straight-line code; blocks and
//! missing tables are left to a function of their own.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;

use crate::cursor::{Cursor, Marks, clear_all};
use crate::error::Error;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::Mmu;
use crate::range::PageRange;
use crate::tables::PageTables;

/// Entries of one table that the range touches, the first of which is no table descriptor.
///
/// At the last level these are all entries that the range has in the table. At upper levels tables may follow among
/// them.
pub(crate) struct Run<'a, M: Mmu> {
    /// The whole table, for a look at a contiguous group.
    pub(crate) table: &'a [M::Cell],
    /// Index of the run's first entry.
    pub(crate) first: usize,
    /// Entries of the table from `first` on that the range touches; at least one.
    pub(crate) count: usize,
    /// Level of the table.
    pub(crate) level: u8,
    /// The first address that the first entry translates; before `from` where the range begins inside it.
    pub(crate) start: VirtAddr,
    /// The first address of the range in the run.
    pub(crate) from: VirtAddr,
    /// Bytes of the range from `from` on: to its end, also where that is beyond this table.
    pub(crate) left: u64,
    /// Those of them that the run's entries translate.
    bytes: u64,
    /// The bits that any table descriptor on the way has: PXNTable and UXNTable hold for all below.
    pub(crate) inherited: u64,
}

impl<M: Mmu> Clone for Run<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Mmu> Copy for Run<'_, M> {}

impl<'a, M: Mmu> Run<'a, M> {
    /// The cells of the run.
    #[inline(always)]
    pub(crate) fn cells(&self) -> &'a [M::Cell] {
        &self.table[self.first..self.first + self.count]
    }

    /// Entry `index` of the table that the run is in.
    #[inline(always)]
    pub(crate) fn entry(&self, index: usize) -> &'a M::Cell {
        &self.table[index]
    }

    /// The first `count` of its entries.
    #[inline(always)]
    fn first_entries(self, count: usize) -> Self {
        let before = self.from.0 - self.start.0;
        let bytes = ((count as u64) << M::Geometry::shift(self.level)).saturating_sub(before).min(self.left);
        Self { count, bytes, ..self }
    }

    /// The first address that entry `index` (from the start of the run) translates.
    #[inline(always)]
    pub(crate) fn address(&self, index: usize) -> VirtAddr {
        VirtAddr(self.start.0 + ((index as u64) << M::Geometry::shift(self.level)))
    }
}

/// The runs of a range, in ascending order ([`PageTables::runs`]): all entries of a last-level table that are in the
/// range; of an upper one, entries that link no table.
pub(crate) struct Runs<'t, M: Mmu> {
    tables: PageTables<'t, M>,
    /// Where it continues.
    from: VirtAddr,
    /// Bytes from there to the end of the range.
    left: u64,
    marks: Marks,
}

impl<'t, M: Mmu> Runs<'t, M> {
    /// The entries from here to the end of the table or of the range, in place of [`Self::next`]: tables may be among
    /// them, but for the first. Nothing is passed.
    #[inline(always)]
    pub(crate) fn entries(&self) -> Option<Run<'t, M>> {
        self.run(Extent::Table)
    }

    #[inline(always)]
    fn run(&self, extent: Extent) -> Option<Run<'t, M>> {
        if self.left == 0 {
            return None;
        }
        loop {
            match Cursor::at_root(&self.tables).down_to(LAST_LEVEL, self.from, self.marks) {
                Ok(place) => return Some(page_run(&place, self.from, self.left)),
                Err(_) => {
                    let (place, count) = end_of_walk(self.tables, self.from, self.left, self.marks, extent);
                    if count != 0 {
                        return Some(upper_run(&place, count, self.from, self.left));
                    }
                }
            }
        }
    }

    /// Continues after the first `entries` of `run`.
    #[inline(always)]
    pub(crate) fn pass(&mut self, run: &Run<'t, M>, entries: usize) {
        let Run { from, left, bytes, .. } = run.first_entries(entries);
        (self.from, self.left) = (VirtAddr(from.0.wrapping_add(bytes)), left - bytes);
    }

    /// Continues with `run`, as its entries are then.
    pub(crate) fn again(&mut self, run: &Run<'t, M>) {
        (self.from, self.left) = (run.from, run.left);
    }
}

impl<'t, M: Mmu> Iterator for Runs<'t, M> {
    type Item = Run<'t, M>;

    #[inline(always)]
    fn next(&mut self) -> Option<Run<'t, M>> {
        let run = self.run(Extent::Leaves)?;
        (self.from, self.left) = (VirtAddr(run.from.0.wrapping_add(run.bytes)), run.left - run.bytes);
        Some(run)
    }
}

/// Where a run of an upper table ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Before the next table descriptor.
    Leaves,
    /// With the table that it is in, or the range.
    Table,
}

/// The table where the walk for `from` ends above the last level, and how many of its entries from there on the `left` bytes
/// touch, up to the `extent`; 0 where the walk goes on by now. All is passed by value, and what is returned is no
/// [`Run`], so that neither the runs nor one of them lie in memory.
#[cold]
#[inline(never)]
fn end_of_walk<'t, M: Mmu>(
    tables: PageTables<'t, M>,
    from: VirtAddr,
    left: u64,
    marks: Marks,
    extent: Extent,
) -> (Cursor<'t, M>, usize) {
    let mmu = tables.mmu();
    let (place, _) = Cursor::at_root(&tables).end_of_walk(from, marks);
    let (level, table) = (place.level(), place.cells());
    let (shift, first) = (M::Geometry::shift(level), M::Geometry::index(from, level));
    let start = from.align_down(1 << shift);
    // How many entries the range touches: rounded up in halves, because the whole upper half's end does not fit.
    let touched = (((from.0 - start.0 + (left - 1)) >> shift) as usize).saturating_add(1);
    let cells = &table[first..first + touched.min(table.len() - first)];
    if marks == Marks::Clear {
        clear_all(mmu, cells, level, start);
    }
    if level != LAST_LEVEL && mmu.load(&table[first]).is_table() {
        return (place.by_parts(), 0);
    }
    let is_table = |cell| level != LAST_LEVEL && mmu.load(cell).is_table();
    let next_table = if extent == Extent::Leaves { cells.iter().skip(1).position(is_table) } else { None };
    // The first one was read and is none; were it linked concurrently, its owner would not be the caller.
    (place.by_parts(), next_table.map_or(cells.len(), |position| 1 + position))
}

/// All of a range, where its leaves lie in one table: of one of two levels, so that the level is a constant in what is
/// done with each.
pub(crate) enum SoleRun<'t, M: Mmu> {
    /// Pages.
    Pages(Run<'t, M>),
    /// Whole blocks of the level above the last, or a part of one such block.
    Blocks(Run<'t, M>),
}

impl<'t, M: Mmu> PageTables<'t, M> {
    /// The runs of `range`. With [`Marks::Clear`] where the loop stores, or where another one of the same caller stores
    /// and counts on the findings of this one.
    #[inline(always)]
    pub(crate) fn runs(&self, range: PageRange<M::Geometry>, marks: Marks) -> Runs<'t, M> {
        Runs { tables: *self, from: range.start(), left: range.size(), marks }
    }

    /// All of `range`, where it lies in one last-level table, with the marks on the way taken away.
    #[inline(always)]
    pub(crate) fn sole_run(&self, range: PageRange<M::Geometry>) -> Option<Run<'t, M>> {
        let table = Cursor::at_root(self).down_to(LAST_LEVEL, range.start(), Marks::Clear).ok()?;
        let run = page_run(&table, range.start(), range.size());
        (run.count == range.pages()).then_some(run)
    }

    /// All of `range`, where its leaves lie in one table of the last two levels, without the mark of a collapse on the way.
    /// (A block may have one.)
    #[inline(always)]
    pub(crate) fn sole_run_of_leaves(&self, range: PageRange<M::Geometry>) -> Option<SoleRun<'t, M>> {
        const ABOVE: u8 = LAST_LEVEL - 1;
        let (start, size) = (range.start(), range.size());
        let mut place = Cursor::at_root(self).down_to(ABOVE, start, Marks::Keep).ok()?;
        let table = place.cells();
        let Err(_) = place.descend(ABOVE, start) else {
            let run = page_run(&place, start, size);
            return if run.count == range.pages() && !place.is_collapsing() { Some(SoleRun::Pages(run)) } else { None };
        };
        if place.is_collapsing() {
            return None;
        }
        let first = M::Geometry::index(start, ABOVE);
        let block = M::Geometry::entry_size(ABOVE);
        let (from, start) = (start, start.align_down(block));
        let whole = (from.0 | size) & (block - 1) == 0;
        let count = if whole { (size >> M::Geometry::shift(ABOVE)) as usize } else { 1 };
        if count > table.len() - first || (!whole && range.last().0 - start.0 >= block) {
            return None;
        }
        let (left, inherited) = (size, place.inherited);
        Some(SoleRun::Blocks(Run { table, first, count, level: ABOVE, start, from, left, bytes: size, inherited }))
    }
}

/// The first `count` entries for `from` and after it of the table where the walk ends.
#[inline(always)]
fn upper_run<'t, M: Mmu>(place: &Cursor<'t, M>, count: usize, from: VirtAddr, left: u64) -> Run<'t, M> {
    let level = place.level();
    let first = M::Geometry::index(from, level);
    let start = from.align_down(M::Geometry::entry_size(level));
    let (table, inherited) = (place.cells(), place.inherited);
    Run { table, first, count, level, start, from, left, bytes: left, inherited }.first_entries(count)
}

/// The entries of a last-level table from the one for `from` on.
#[inline(always)]
fn page_run<'t, M: Mmu>(place: &Cursor<'t, M>, from: VirtAddr, left: u64) -> Run<'t, M> {
    let first = M::Geometry::index(from, LAST_LEVEL);
    let count = ((left >> M::Geometry::PAGE_SHIFT) as usize).min(M::Geometry::entries(LAST_LEVEL) - first);
    Run {
        table: place.cells(),
        first,
        count,
        level: LAST_LEVEL,
        start: from,
        from,
        left,
        bytes: (count as u64) << M::Geometry::PAGE_SHIFT,
        inherited: place.inherited,
    }
}

/// Checks that the leaf found at `address` lies in `range` with all that it translates.
#[inline(always)]
pub(crate) fn whole_leaf<G: Geometry>(
    range: PageRange<G>,
    leaf: Descriptor,
    level: u8,
    address: VirtAddr,
) -> Result<(), Error> {
    let size = leaf_size::<G>(leaf, level);
    let start = address.align_down(size);
    if range.contains(start) && range.contains(start + (size - 1)) {
        Ok(())
    } else {
        Err(Error::Straddles { leaf: start, size })
    }
}

/// Bytes that a leaf translates; a contiguous group counts as one leaf.
#[inline(always)]
pub(crate) fn leaf_size<G: Geometry>(leaf: Descriptor, level: u8) -> u64 {
    if leaf.is_contiguous() { G::group_size(level) } else { G::entry_size(level) }
}
