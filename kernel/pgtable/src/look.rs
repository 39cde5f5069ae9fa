//! The first look at a change: one walk, one pass over entries that lie in one table and are alike. It decides nearly
//! every change, so it is inlined where a change is made, with what the compiler knows of that. It leaves any other
//! case to [`crate::update`], untouched.

use core::slice;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};
use granule_arch::tlbi::LevelHint;

use crate::code;
use crate::cursor::{Cursor, Marks};
use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::{Mmu, Stores, Survey};
use crate::permission::Change;
use crate::range::PageRange;
use crate::runs::{Run, SoleRun};
use crate::split::{Cut, CutLeaves, RefuseSplits, Splitter, cuts_a_group};
use crate::tables::PageTables;

impl<'t, M: Stores> PageTables<'t, M> {
    /// The first half of [`Self::update`] where one look is enough: the leaves of `range` are pages, or blocks, of one
    /// table and alike, and nothing is in the way but a leaf that the splitter has split. Stores nothing, except splits.
    /// `None`: it takes more than a look.
    ///
    /// It is inlined for each kind of change, so that nothing of [`Ready`] lies in memory.
    #[inline(always)]
    pub fn look<S: Splitter<M>>(
        &self,
        range: PageRange<M::Geometry>,
        change: &Change,
        splitter: &mut S,
    ) -> Option<Ready<'t, M>> {
        if !S::SPLITS {
            let run = self.sole_run(range)?;
            return look_at(self, &run, LAST_LEVEL, range, change, splitter);
        }
        match self.sole_run_of_leaves(range)? {
            SoleRun::Pages(run) => look_at(self, &run, LAST_LEVEL, range, change, splitter),
            SoleRun::Blocks(run) => look_at(self, &run, LAST_LEVEL - 1, range, change, splitter),
        }
    }
}

/// A change that may be made, of leaves that are alike and in one table.
#[must_use = "nothing has changed yet"]
pub struct Ready<'t, M: Stores> {
    mmu: &'t M,
    cells: &'t [M::Cell],
    /// The bits to flip in each entry; 0 where none changes.
    flip: u64,
    /// The new entry, of a page; of a run, as far as a change may touch it.
    to: Descriptor,
    /// Whether it is one page, which is stored whole.
    is_page: bool,
    /// Bytes of an entry.
    size: u64,
    range: PageRange<M::Geometry>,
    /// For [`flush`]: whether TLBs may hold the old leaves, and the leaves' level.
    leaves_stale: bool,
    level: Option<LevelHint>,
}

impl<'t, M: Stores> Ready<'t, M> {
    /// The entries, of pages; `None` where they are blocks.
    pub fn pages(&self) -> Option<&'t [M::Cell]> {
        (self.size == M::Geometry::PAGE_SIZE).then_some(self.cells)
    }

    /// Changes the entries.
    #[inline(always)]
    pub fn commit(self, lazy: &Lazy<'_, M>) -> Flush<M::Geometry> {
        if self.flip == 0 {
            return Flush::NONE;
        }
        match self.cells {
            [cell] if self.is_page => self.mmu.store(cell, self.to),
            cells => self.mmu.update_run(cells, self.flip),
        }
        lazy.wrote(self.to);
        flush(self.range, self.leaves_stale, self.level)
    }

    /// Where the physical memory of the range begins, if it is contiguous; `None` also where the leaf has been split
    /// concurrently.
    #[inline(always)]
    pub fn physical(&self) -> Option<PhysAddr> {
        let (first, mut left) = self.cells.split_first()?;
        // Of a block the range may be a part, where nothing changes; then the owner of another part may have split it
        // since it was looked at.
        let into = self.range.start().0 & (self.size - 1);
        let entry = self.mmu.load(first);
        if self.size != M::Geometry::PAGE_SIZE && entry.is_table() {
            return None;
        }
        let start = entry.address();
        let mut next = start.0 + self.size;
        while let Some(cell) = left.first() {
            let entry = self.mmu.load(cell);
            // Mostly the second entry decides.
            if entry.address().0 != next {
                return None;
            }
            let count = self.mmu.filled(left, entry, self.size);
            next += count as u64 * self.size;
            left = &left[count..];
        }
        Some(start + into)
    }
}

/// The first look at the entries of `run`, which are all of `range`, or a block that has it.
#[inline(always)]
fn look_at<'t, M: Stores, S: Splitter<M>>(
    tables: &PageTables<'t, M>,
    run: &Run<'t, M>,
    level: u8,
    range: PageRange<M::Geometry>,
    change: &Change,
    splitter: &mut S,
) -> Option<Ready<'t, M>> {
    let (mmu, cells) = (tables.mmu(), run.cells());
    if change.makes_executable() && run.inherited & bits::PXNTABLE != 0 {
        return None;
    }
    let level_hint = if S::LIVE_SPLITS { None } else { LevelHint::new(level) };
    let leaves_stale = change.leaves_stale();
    let size = M::Geometry::entry_size(level);
    let ready = |cells, flip, to, is_page| Ready {
        mmu,
        cells,
        flip,
        to,
        is_page,
        size,
        range,
        leaves_stale,
        level: level_hint,
    };
    // A page takes one load where a run takes a loop.
    let found = if level == LAST_LEVEL && run.count == 1 {
        match look_at_page::<M, S>(mmu, run.table, run.first, change) {
            PageLook::Change { old, new } => {
                let cells = slice::from_ref(run.entry(run.first));
                return Some(ready(cells, old.0 ^ new.0, new, true));
            }
            PageLook::Unchanged => return Some(ready(cells, 0, Descriptor::EMPTY, false)),
            PageLook::Cut(old) if S::SPLITS => Survey::NOTHING.with(old),
            PageLook::Cut(_) | PageLook::Undecided => return None,
        }
    } else {
        mmu.survey(cells)
    };
    let refused = if S::LIVE_SPLITS { 0 } else { bits::CONTIGUOUS };
    if !may_change::<M::Geometry>(change, level, found, refused) {
        return None;
    }
    let (flip, to) = match Uniform::of(found, change) {
        Uniform::Not => return None,
        // An invalidation may be pending all the same: the general way decides.
        Uniform::Unchanged if change.makes_invalid() => return None,
        Uniform::Unchanged => return Some(ready(cells, 0, Descriptor::EMPTY, false)),
        Uniform::Flip { from, to } => (from.0 ^ to.0, to),
    };
    if S::LIVE_SPLITS
        && let Some(leaves) = cut_leaves(mmu, run, level, found)
    {
        let is_block = matches!(leaves, CutLeaves::Block);
        let split = splitter.split(&Cut::new(*tables, range, leaves));
        // The new table takes another look, and so does an error.
        if is_block || split.is_err() {
            return None;
        }
    }
    if change.may_make_code_of(found.all) && !code::is_visible_as_stored(mmu) {
        return None;
    }
    Some(ready(cells, flip, to, false))
}

/// The result of a look at a page.
enum PageLook {
    /// It may change.
    Change { old: Descriptor, new: Descriptor },
    /// It has the new permissions already.
    Unchanged,
    /// It may be in a contiguous group, which a splitter may split.
    Cut(Descriptor),
    /// It takes more than a look.
    Undecided,
}

#[inline(always)]
fn look_at_page<M: Stores, S: Splitter<M>>(mmu: &M, table: &[M::Cell], index: usize, change: &Change) -> PageLook {
    let entry = |index: usize| mmu.load(&table[index]);
    let old = entry(index);
    // Where leaves are split, the last entry decides for the group: see [`beyond`].
    if S::LIVE_SPLITS && (old.0 | entry(index | (M::Geometry::group_entries(LAST_LEVEL) - 1)).0) & bits::CONTIGUOUS != 0
    {
        return PageLook::Cut(old);
    }
    let refused = if S::LIVE_SPLITS { 0 } else { bits::CONTIGUOUS };
    if !wanted(change, LAST_LEVEL, refused).iter().any(|wanted| wanted.is(old)) {
        return PageLook::Undecided;
    }
    let new = change.apply(old);
    if new == old {
        return if change.makes_invalid() { PageLook::Undecided } else { PageLook::Unchanged };
    }
    if change.may_make_code_of(old.0) && !code::is_visible_as_stored(mmu) {
        return PageLook::Undecided;
    }
    PageLook::Change { old, new }
}

/// The leaves of which the run is only a part, where these may be split.
#[inline(always)]
fn cut_leaves<'t, M: Stores>(mmu: &M, run: &Run<'t, M>, level: u8, found: Survey) -> Option<CutLeaves<'t, M>> {
    // Of a block that it cuts, the run is the block.
    if level != LAST_LEVEL && run.left >> M::Geometry::shift(level) != run.count as u64 {
        return Some(CutLeaves::Block);
    }
    let in_group = M::Geometry::group_entries(level) - 1;
    if (found.any | beyond(mmu, run)) & bits::CONTIGUOUS == 0 || (run.first | (run.first + run.count)) & in_group == 0 {
        return None;
    }
    let (table, first, last) = (run.table, run.first, run.first + run.count - 1);
    // In one group, that is it that has the bit; else it may be one that lies between.
    let is_cut = (first ^ last) & !in_group == 0 || cuts_a_group(mmu, table, first, last, level);
    is_cut.then_some(CutLeaves::Groups { table, first, last, level })
}

/// The last-level table that was looked at last. Pages that change one by one mostly lie near one another: they are
/// found without a walk for each.
pub struct LastTable<'t, M: Stores> {
    mmu: &'t M,
    /// The first address that it translates.
    start: u64,
    cells: &'t [M::Cell],
}

/// The result of [`LastTable::update_page`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageUpdate {
    /// Nothing: the page was so before.
    Unchanged,
    /// It is changed.
    Changed,
    /// Nothing: it takes [`PageTables::update`].
    TakesMore,
}

/// The last-level table that translates `address`, to change pages in; `None` where there is a block, or nothing.
#[inline(never)]
fn last_table_of<'t, M: Stores>(tables: PageTables<'t, M>, address: VirtAddr) -> Option<LastTable<'t, M>> {
    let place = Cursor::at_root(&tables).down_to(LAST_LEVEL, address, Marks::Clear).ok()?;
    let start = address.align_down(M::Geometry::entry_size(LAST_LEVEL - 1)).0;
    Some(LastTable { mmu: tables.mmu(), start, cells: place.cells() })
}

impl<M: Stores> Clone for LastTable<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Stores> Copy for LastTable<'_, M> {}

impl<'t, M: Stores> LastTable<'t, M> {
    /// None yet: it translates nothing.
    #[inline(always)]
    pub const fn none(mmu: &'t M) -> Self {
        // In neither half of the address space, and farther from both than a table reaches.
        Self { mmu, start: 1 << 62, cells: &[] }
    }

    /// Whether `address` is translated by a last-level table of `tables`, which this one is then.
    #[inline(always)]
    pub fn find(&mut self, tables: PageTables<'t, M>, address: VirtAddr) -> bool {
        if !self.translates(address) {
            let Some(found) = last_table_of(tables, address) else { return false };
            *self = found;
        }
        true
    }

    /// Whether it translates `address`.
    #[inline(always)]
    pub fn translates(&self, address: VirtAddr) -> bool {
        address.0.wrapping_sub(self.start) >> M::Geometry::shift(LAST_LEVEL - 1) == 0
    }

    /// [`PageTables::update`] of one page, which the table translates and whose leaf others may have split, where that
    /// takes a look. The caller notes that an entry was written, once for all pages ([`Lazy::wrote`]).
    #[inline(always)]
    pub fn update_page(&self, page: VirtAddr, change: &Change) -> PageUpdate {
        let index = M::Geometry::index(page, LAST_LEVEL);
        match look_at_page::<M, RefuseSplits>(self.mmu, self.cells, index, change) {
            PageLook::Cut(_) | PageLook::Undecided => PageUpdate::TakesMore,
            PageLook::Unchanged => PageUpdate::Unchanged,
            PageLook::Change { new, .. } => {
                self.mmu.store(&self.cells[index], new);
                PageUpdate::Changed
            }
        }
    }
}

/// The effect of a change on entries that are alike, in the bits that it touches.
pub(crate) enum Uniform {
    /// They are not alike.
    Not,
    /// They have the new permissions already.
    Unchanged,
    /// Each goes from one to the other.
    Flip { from: Descriptor, to: Descriptor },
}

impl Uniform {
    #[inline(always)]
    pub(crate) fn of(found: Survey, change: &Change) -> Self {
        // Bits that decide how an entry changes, and whether a TLB may hold it.
        let touched = change.set_mask() | change.clear_mask() | bits::VALID;
        match found.common(touched).map(Descriptor) {
            None => Self::Not,
            Some(from) if change.apply(from) == from => Self::Unchanged,
            Some(from) => Self::Flip { from, to: change.apply(from) },
        }
    }
}

/// The invalidation where every entry changed: the range holds whole leaves only, so it is what they translate.
#[inline(always)]
pub(crate) fn flush<G: Geometry>(range: PageRange<G>, leaves_stale: bool, level: Option<LevelHint>) -> Flush<G> {
    Flush::new(leaves_stale.then_some(Invalidation { range, tables: Tables::Kept, level }))
}

/// Bits of which entries have all, and bits of which they have none.
#[derive(Clone, Copy)]
struct Wanted {
    all: u64,
    none: u64,
}

impl Wanted {
    /// Whether one entry is so.
    #[inline(always)]
    const fn is(self, entry: Descriptor) -> bool {
        entry.0 & (self.all | self.none) == self.all
    }

    /// Whether all entries are so that `found` is of.
    #[inline(always)]
    const fn are(self, found: Survey) -> bool {
        found.all & self.all == self.all && found.any & self.none == 0
    }
}

/// The forms of an entry of `level` that may be changed: valid leaves, which nearly all are, or present-invalid
/// ones, with what the change requires and without the bits `refused`.
#[inline(always)]
fn wanted(change: &Change, level: u8, refused: u64) -> [Wanted; 2] {
    let required = change.required() | change.required_bits();
    // A block's mark takes another look, which takes it away.
    let (valid, table) = if level == LAST_LEVEL {
        (bits::VALID | bits::TABLE, 0)
    } else {
        (bits::VALID, bits::TABLE | bits::COLLAPSING)
    };
    [
        Wanted { all: required | valid, none: table | refused },
        Wanted { all: required | bits::PRESENT_INVALID, none: bits::VALID | refused },
    ]
}

/// Whether entries of `level` may be changed, by what they have in common.
#[inline(always)]
pub(crate) fn may_change<G: Geometry>(change: &Change, level: u8, found: Survey, refused: u64) -> bool {
    G::has_leaves(level) && wanted(change, level, refused).iter().any(|wanted| wanted.are(found))
}

/// The last entries of the groups that a run has only a part of, as bits that any of them has.
///
/// If the last entry has no contiguous bit, none in the group has: a split clears it last ([`crate::split`]).
#[inline(always)]
pub(crate) fn beyond<M: Mmu>(mmu: &M, run: &Run<'_, M>) -> u64 {
    let in_group = M::Geometry::group_entries(run.level) - 1;
    // Below the length as it is: so the compiler knows.
    let last_of_group = |entry: usize| mmu.load(run.entry((entry | in_group) & (run.table.len() - 1))).0;
    // Of a whole group that is an entry of the run.
    last_of_group(run.first) | last_of_group(run.first + run.count - 1)
}
