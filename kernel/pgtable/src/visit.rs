//! The visitor of ranges: whatever changes or shows the leaves of one, but for a first look at it, is one of its
//! operations.
//!
//! It is a loop, not a recursion: after each last-level table it starts again at the root, three loads for up to 512
//! entries, and no stack of tables is kept. The way down to a last-level table, where nearly all walks end, is
//! straight-line code; blocks and missing tables are left to a function of their own.

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
    /// The whole table, for visitors that look at a contiguous group.
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
    /// The first entry, as it was read, above the last level. Pages are left to the visitor to read.
    pub(crate) descriptor: Option<Descriptor>,
    /// The bits that any table descriptor on the way has: PXNTable and UXNTable hold for all below.
    pub(crate) inherited: u64,
}

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

    /// The first `count` cells of the run.
    #[inline(always)]
    pub(crate) fn leading(&self, count: usize) -> &'a [M::Cell] {
        &self.cells()[..count]
    }

    /// The first address that entry `index` (from the start of the run) translates.
    #[inline(always)]
    pub(crate) fn address(&self, index: usize) -> VirtAddr {
        VirtAddr(self.start.0 + ((index as u64) << M::Geometry::shift(self.level)))
    }
}

/// The result of a visit to a run.
pub(crate) enum Next {
    /// It dealt with this many entries, at least one and at most the run's count.
    Entries(usize),
    /// It made the first entry a table: read it again, and descend.
    Again,
}

/// An operation, as the walker sees it.
pub(crate) trait Visitor<'t, M: Mmu> {
    /// Why the walk ended early.
    type Error;

    /// How the walk treats marks: [`Marks::Clear`] where it stores, or where another of the same caller stores and
    /// counts on the findings of this one.
    const MARKS: Marks = Marks::Keep;

    /// Deals with the entries at the start of `run`.
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Self::Error>;
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
    /// Visits all of `range` in ascending order.
    #[inline(always)]
    pub(crate) fn visit<V: Visitor<'t, M>>(
        &self,
        range: PageRange<M::Geometry>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let mut from = range.start();
        let mut left = range.size();
        while left != 0 {
            let done = match Cursor::at_root(self).down_to(LAST_LEVEL, from, V::MARKS) {
                Ok(place) => visit_pages(self.mmu(), &place, from, left, visitor)?,
                Err(_) => visit_upper(self, from, left, visitor)?,
            };
            from = VirtAddr(from.0.wrapping_add(done));
            left -= done;
        }
        Ok(())
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
        let Err(descriptor) = place.descend(ABOVE, start) else {
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
        let run = Run { table, first, count, level: ABOVE, start, from, left, descriptor: Some(descriptor), inherited };
        Some(SoleRun::Blocks(run))
    }
}

/// The entries of a last-level table from the one for `from` on.
#[inline(always)]
fn page_run<'t, M: Mmu>(place: &Cursor<'t, M>, from: VirtAddr, left: u64) -> Run<'t, M> {
    let first = M::Geometry::index(from, LAST_LEVEL);
    Run {
        table: place.cells(),
        first,
        count: ((left >> M::Geometry::PAGE_SHIFT) as usize).min(M::Geometry::entries(LAST_LEVEL) - first),
        level: LAST_LEVEL,
        start: from,
        from,
        left,
        descriptor: None,
        inherited: place.inherited,
    }
}

/// Visits the entries of one last-level table, up to its end or the end of the range; returns the bytes that were dealt
/// with.
#[inline(always)]
fn visit_pages<'t, M: Mmu, V: Visitor<'t, M>>(
    mmu: &'t M,
    place: &Cursor<'t, M>,
    from: VirtAddr,
    left: u64,
    visitor: &mut V,
) -> Result<u64, V::Error> {
    let run = page_run(place, from, left);
    match visitor.visit(mmu, &run)? {
        Next::Entries(entries) => {
            debug_assert!(entries != 0 && entries <= run.count);
            Ok((entries as u64) << M::Geometry::PAGE_SHIFT)
        }
        // There is nothing below to descend to.
        Next::Again => Ok(0),
    }
}

/// Visits the entries of the table where the walk for `from` ends above the last level, up to its end, the end of the
/// range, or the first table descriptor; returns the bytes that were dealt with.
#[cold]
#[inline(never)]
fn visit_upper<'t, M: Mmu, V: Visitor<'t, M>>(
    tables: &PageTables<'t, M>,
    from: VirtAddr,
    left: u64,
    visitor: &mut V,
) -> Result<u64, V::Error> {
    let mmu = tables.mmu();
    let (place, _) = Cursor::at_root(tables).end_of_walk(from, V::MARKS);
    let level = place.level();
    let shift = M::Geometry::shift(level);
    let table = place.cells();
    let mut done = 0;
    let mut first = M::Geometry::index(from, level);
    // How many entries the bytes from an address on touch: rounded up in halves, because the whole upper half's end does
    // not fit.
    let touched = |offset: u64, left: u64| (((offset + (left - 1)) >> shift) as usize).saturating_add(1);
    if V::MARKS == Marks::Clear && left != 0 {
        let offset = from.0 & ((1 << shift) - 1);
        let count = touched(offset, left).min(table.len() - first);
        clear_all(mmu, &table[first..first + count], level, VirtAddr(from.0 - offset));
    }
    while done < left && first < table.len() {
        let from = VirtAddr(from.0 + done);
        let offset = from.0 & ((1 << shift) - 1);
        let count = touched(offset, left - done).min(table.len() - first);
        let descriptor = mmu.load(&table[first]);
        if level != LAST_LEVEL && descriptor.is_table() {
            break;
        }
        let run = Run {
            table,
            first,
            count,
            level,
            start: VirtAddr(from.0 - offset),
            from,
            left: left - done,
            descriptor: Some(descriptor),
            inherited: place.inherited,
        };
        match visitor.visit(mmu, &run)? {
            Next::Entries(entries) => {
                debug_assert!(entries != 0 && entries <= run.count);
                first += entries;
                done = (done + ((entries as u64) << shift) - offset).min(left);
            }
            Next::Again => break,
        }
    }
    Ok(done)
}

/// Entries at the start of `run` that are no table descriptors; the last level has none.
#[inline(always)]
pub(crate) fn leading_leaves<M: Mmu>(mmu: &M, run: &Run<'_, M>) -> usize {
    if run.level == LAST_LEVEL {
        return run.count;
    }
    let is_table = |cell| mmu.load(cell).is_table();
    // The first one was read and is none; were it linked concurrently, its owner would not be the caller.
    run.cells().iter().skip(1).position(is_table).map_or(run.count, |position| 1 + position)
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
