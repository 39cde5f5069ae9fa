//! Mapping a range: count and take the tables that are missing, then link them and write the leaves.
//!
//! Arm ARM D8.3 (descriptors), D8.7.1 (contiguous groups). The first pass finds what is mapped already and counts the
//! missing tables; all are taken before the first store, so that the second pass cannot fail. Tables that wait to be
//! linked hang on a list through their own first entries ([`TableList`]).

use core::slice;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, bits};

use crate::cursor::{Cursor, Marks, complete_unlinking};
use crate::error::Error;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::{Mmu, Stores};
use crate::range::PageRange;
use crate::reclaim::UNLINKED;
use crate::runs::Run;
use crate::source::TableSource;
use crate::table_list::TableList;
use crate::tables::PageTables;

/// Which leaves a mapping is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// At each address the largest that alignment of both addresses and the rest of the range allow: blocks, contiguous
    /// groups, pages. Below a table that exists already, what fits into that table.
    Largest,
    /// Pages, never in contiguous groups: any page can change alone.
    Pages,
}

/// Whether new tables forbid execution below them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Execution {
    /// Leaves decide.
    ByLeaf,
    /// Nothing below a table that this call links is ever executable, whatever its leaf allows: at EL1 by PXNTable, or for
    /// [user](Attributes::is_user) attributes at EL0 by UXNTable. (Of the other exception level it never is.)
    Forbidden,
}

/// How a mapping is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Which leaves.
    pub leaves: Leaves,
    /// Whether new tables forbid execution.
    pub execution: Execution,
}

impl Shape {
    /// Pages that may become executable: what `vmalloc` needs.
    pub const PAGES: Self = Self { leaves: Leaves::Pages, execution: Execution::ByLeaf };
    /// The largest leaves, below which nothing is ever executable: what a linear map needs.
    pub const LARGEST_DATA: Self = Self { leaves: Leaves::Largest, execution: Execution::Forbidden };
}

impl<M: Stores> PageTables<'_, M> {
    /// Maps `range` to the physical memory from `physical` on.
    ///
    /// Nothing of the range may be mapped. `shape` selects the leaves, and whether new tables forbid execution below
    /// them. The entries are in use when `lazy` has issued its barriers.
    ///
    /// # Errors
    /// [`Error::AlreadyMapped`] (the first such page), [`Error::Unaligned`] or [`Error::PhysicalTooHigh`] for
    /// `physical`, [`Error::ExecutionForbidden`], [`Error::OutOfTables`]. Nothing was changed, and tables that were
    /// taken are given back.
    pub fn map(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        physical: PhysAddr,
        attributes: Attributes,
        shape: Shape,
        source: &mut impl TableSource,
    ) -> Result<(), Error> {
        if !physical.is_aligned(M::Geometry::PAGE_SIZE) {
            return Err(Error::Unaligned(physical.0));
        }
        if is_too_high(physical, range.size()) {
            return Err(Error::PhysicalTooHigh(physical));
        }
        if shape.execution == Execution::Forbidden && forbidding(attributes) != 0 {
            return Err(Error::ExecutionForbidden(range.start()));
        }
        let fit = Fit { leaves: shape.leaves, delta: physical.0.wrapping_sub(range.start().0) };
        let frames = |address: VirtAddr, most| (PhysAddr(address.0.wrapping_add(fit.delta)), most);
        let Shape { leaves, execution } = shape;
        map(self, lazy, range, Mapping { fit, frames, leaves, attributes, execution }, source)
    }

    /// [`Self::map`] where that takes one look: `range` and the memory from `physical` on are whole blocks of the level
    /// above the last, whose entries are in one table and empty, not even marked. Whether it was done; if not, nothing
    /// was.
    #[must_use = "if it was not done, nothing is mapped"]
    #[inline]
    pub fn map_at_once(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        physical: PhysAddr,
        attributes: Attributes,
    ) -> bool {
        const LEVEL: u8 = LAST_LEVEL - 1;
        let (start, size) = (range.start(), M::Geometry::entry_size(LEVEL));
        let is_whole = M::Geometry::has_leaves(LEVEL) && (start.0 | physical.0 | range.size()) & (size - 1) == 0;
        let Ok(place) = Cursor::at_root(self).down_to(LEVEL, start, Marks::Clear) else { return false };
        let (first, count) = (M::Geometry::index(start, LEVEL), (range.size() >> M::Geometry::shift(LEVEL)) as usize);
        let Some(cells) = place.cells().get(first..first + count) else { return false };
        let is_refused = is_too_high(physical, range.size()) || place.inherited & forbidding(attributes) != 0;
        if !is_whole || is_refused || self.mmu().survey(cells).any != 0 {
            return false;
        }
        let block = Descriptor::block(physical, attributes);
        write_leaves(self.mmu(), cells, start, block, LEVEL, Leaves::Largest);
        lazy.wrote(block);
        true
    }

    /// Maps `range` to the frames that `frames` gives: by pages, and with [`Leaves::Largest`] in contiguous groups where
    /// frames and addresses allow. Never by blocks: those are for [`PageTables::map`].
    ///
    /// `frames` is called in ascending order with an address and the most pages from there on that it may give, when
    /// nothing can fail any more. It returns the first of frames that follow one another, page-aligned, and how many they
    /// are: at least one, at most what was asked for, all of them below 2^48.
    ///
    /// # Errors
    /// As [`PageTables::map`], those about `physical` excepted.
    pub fn map_frames(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        frames: impl FnMut(VirtAddr, usize) -> (PhysAddr, usize),
        attributes: Attributes,
        leaves: Leaves,
        source: &mut impl TableSource,
    ) -> Result<(), Error> {
        let fit = Fit { leaves: Leaves::Pages, delta: 0 };
        map(self, lazy, range, Mapping { fit, frames, leaves, attributes, execution: Execution::ByLeaf }, source)
    }
}

/// Whether descriptors have no bits for the last of `size` bytes from `physical` on: `ADDRESS` reaches up to bit 47.
#[inline(always)]
fn is_too_high(physical: PhysAddr, size: u64) -> bool {
    physical.0.checked_add(size - 1).is_none_or(|last| last >> 48 != 0)
}

/// Writes leaves of `level` from `address` on, the first of them `leaf` and each further one to the next memory: whole
/// groups of them contiguous, where `leaves` and the addresses allow.
#[inline(always)]
fn write_leaves<M: Stores>(mmu: &M, cells: &[M::Cell], address: VirtAddr, leaf: Descriptor, level: u8, leaves: Leaves) {
    let (group, size) = (M::Geometry::group_entries(level), M::Geometry::entry_size(level));
    let (mut cells, mut leaf) = (cells, leaf);
    let in_group = |address: u64| (address >> M::Geometry::shift(level)) as usize & (group - 1);
    if leaves == Leaves::Largest
        && group > 1
        && in_group(address.0) == in_group(leaf.address().0)
        && let before = (group - in_group(address.0)) & (group - 1)
        && let Some(count) = cells.len().checked_sub(before)
    {
        let (first, others) = cells.split_at(before);
        let (groups, last) = others.split_at(count & !(group - 1));
        let next = |leaf: Descriptor, count: usize| Descriptor(leaf.0 + count as u64 * size);
        mmu.fill(first, leaf, size);
        leaf = next(leaf, before);
        mmu.fill(groups, leaf.contiguous(), size);
        (cells, leaf) = (last, next(leaf, groups.len()));
    }
    mmu.fill(cells, leaf, size);
}

/// Where which leaf fits.
#[derive(Clone, Copy)]
struct Fit {
    leaves: Leaves,
    /// Physical minus virtual address, wrapping.
    delta: u64,
}

impl Fit {
    /// Whether `size` bytes, a power of two, may be translated as one from `address` on, with `left` bytes to go.
    #[inline(always)]
    fn allows(self, address: VirtAddr, size: u64, left: u64) -> bool {
        let physical = address.0.wrapping_add(self.delta);
        self.leaves == Leaves::Largest && (address.0 | physical) & (size - 1) == 0 && left >= size
    }

    /// Whether one entry of `level` may be a leaf there. Pages always may.
    #[inline(always)]
    fn leaf<G: Geometry>(self, level: u8, address: VirtAddr, left: u64) -> bool {
        level == LAST_LEVEL || (G::has_leaves(level) && self.allows(address, G::entry_size(level), left))
    }

    /// Tables needed to map `left` bytes from `from` on, all inside one empty entry of `level` that cannot be a leaf
    /// itself.
    fn tables_below<G: Geometry>(self, level: u8, mut from: VirtAddr, mut left: u64) -> usize {
        let below = level + 1;
        let mut tables = 1;
        while below != LAST_LEVEL && left != 0 {
            let in_entry = left.min(G::entry_size(below) - (from.0 & (G::entry_size(below) - 1)));
            if !self.leaf::<G>(below, from, in_entry) {
                tables += self.tables_below::<G>(below, from, in_entry);
            }
            from = VirtAddr(from.0.wrapping_add(in_entry));
            left -= in_entry;
        }
        tables
    }
}

/// The bits of a table above that would forbid the execution that `attributes` allow.
#[inline(always)]
const fn forbidding(attributes: Attributes) -> u64 {
    let at_el0 = if attributes.is_user_executable() { bits::UXNTABLE } else { 0 };
    if attributes.is_executable() { at_el0 | bits::PXNTABLE } else { at_el0 }
}

/// The prohibitions of a new table above leaves with `attributes`.
const fn limits(attributes: Attributes, execution: Execution) -> u64 {
    match (execution, attributes.is_user()) {
        (Execution::Forbidden, _) => bits::PXNTABLE | bits::UXNTABLE,
        (Execution::ByLeaf, true) => bits::PXNTABLE,
        (Execution::ByLeaf, false) => bits::UXNTABLE,
    }
}

/// The mapping to make.
struct Mapping<F> {
    /// Of blocks.
    fit: Fit,
    /// See [`PageTables::map_frames`].
    frames: F,
    /// Of pages: whether they make contiguous groups.
    leaves: Leaves,
    attributes: Attributes,
    execution: Execution,
}

fn map<M: Stores, F: FnMut(VirtAddr, usize) -> (PhysAddr, usize)>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    mapping: Mapping<F>,
    source: &mut impl TableSource,
) -> Result<(), Error> {
    let mut counting = Counting { fit: mapping.fit, forbidding: forbidding(mapping.attributes), needed: 0 };
    // As in `update`, most ranges lie in one last-level table; if that is there, none is missing. It stays there like
    // what the first of two passes has counted on.
    if let Some(run) = tables.sole_run(range) {
        counting.count(tables.mmu(), &run)?;
        Writing { lazy, mapping, spare: TableList::EMPTY }.write_pages(tables.mmu(), &run);
        return Ok(());
    }
    map_tables(tables, lazy, range, mapping, counting, source)
}

/// As [`map`], for any range: table by table, in two walks.
#[inline(never)]
fn map_tables<M: Stores, F: FnMut(VirtAddr, usize) -> (PhysAddr, usize)>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    mapping: Mapping<F>,
    mut counting: Counting,
    source: &mut impl TableSource,
) -> Result<(), Error> {
    // A table that is not counted here must still be there in the second pass: see [`crate::reclaim`].
    let mut runs = tables.runs(range, Marks::Clear);
    while let Some(run) = runs.entries() {
        runs.pass(&run, counting.count(tables.mmu(), &run)?);
    }
    let spare = TableList::take(tables.mmu(), counting.needed, source)?;
    let mut writing = Writing { lazy, mapping, spare };
    let mut runs = tables.runs(range, Marks::Keep);
    while let Some(run) = runs.entries() {
        runs.pass(&run, writing.write(tables.mmu(), &run));
    }
    // Another owner may have linked a table that this call counted; then one is left over.
    writing.spare.give_back(tables.mmu(), source);
    Ok(())
}

/// The first pass: nothing is mapped, and how many tables are missing.
struct Counting {
    fit: Fit,
    /// See [`forbidding`].
    forbidding: u64,
    needed: usize,
}

impl Counting {
    /// Looks at the entries of `run` up to the first table, and returns how many they are.
    #[inline(always)]
    fn count<M: Mmu>(&mut self, mmu: &M, run: &Run<'_, M>) -> Result<usize, Error> {
        if run.inherited & self.forbidding != 0 {
            return Err(Error::ExecutionForbidden(run.from));
        }
        if run.level == LAST_LEVEL {
            // No entry is valid or present-invalid: nothing is mapped, and no entry is read again.
            if mmu.survey(run.cells()).any & (bits::VALID | bits::PRESENT_INVALID) == 0 {
                return Ok(run.count);
            }
            return match run.cells().iter().position(|cell| !mmu.load(cell).is_vacant()) {
                Some(index) => Err(Error::AlreadyMapped(run.address(index))),
                None => Ok(run.count),
            };
        }
        let last = VirtAddr(run.from.0 + (run.left - 1));
        for (index, cell) in run.cells().iter().enumerate() {
            let (entry, from) = (mmu.load(cell), run.address(index).max(run.from));
            if entry.is_table() {
                return Ok(index);
            }
            if !entry.is_vacant() {
                return Err(Error::AlreadyMapped(from));
            }
            let end_of_entry = VirtAddr(run.address(index).0 + (M::Geometry::entry_size(run.level) - 1));
            let in_entry = end_of_entry.min(last) - from + 1;
            if !self.fit.leaf::<M::Geometry>(run.level, from, in_entry) {
                self.needed += self.fit.tables_below::<M::Geometry>(run.level, from, in_entry);
            }
        }
        Ok(run.count)
    }
}

/// The second pass.
struct Writing<'a, M: Stores, F> {
    lazy: &'a Lazy<'a, M>,
    mapping: Mapping<F>,
    spare: TableList,
}

impl<M: Stores, F: FnMut(VirtAddr, usize) -> (PhysAddr, usize)> Writing<'_, M, F> {
    /// Writes leaves to the first entries of `run`, and returns how many; none where it has linked a table there.
    fn write(&mut self, mmu: &M, run: &Run<'_, M>) -> usize {
        if run.level == LAST_LEVEL {
            self.write_pages(mmu, run);
            return run.count;
        }
        if self.mapping.fit.leaf::<M::Geometry>(run.level, run.from, run.left) {
            return self.write_blocks(mmu, run);
        }
        self.link_table(mmu, run.entry(run.first), run.from);
        0
    }

    /// Writes all pages of `run`.
    #[inline(always)]
    fn write_pages(&mut self, mmu: &M, run: &Run<'_, M>) {
        let (mut cells, mut address) = (run.cells(), run.from);
        while !cells.is_empty() {
            let (physical, count) = (self.mapping.frames)(address, cells.len());
            debug_assert!((1..=cells.len()).contains(&count), "{count} frames of 1 to {}", cells.len());
            let (these, rest) = cells.split_at(count.clamp(1, cells.len()));
            let count = these.len();
            let page = Descriptor::page(physical, self.mapping.attributes);
            write_leaves(mmu, these, address, page, LAST_LEVEL, self.mapping.leaves);
            cells = rest;
            address = VirtAddr(address.0.wrapping_add((count as u64) << M::Geometry::PAGE_SHIFT));
        }
        self.lazy.wrote(Descriptor::page(PhysAddr(0), self.mapping.attributes));
    }

    /// Writes a block to the first entry of `run`, or a whole contiguous group of them; returns how many.
    ///
    /// A group is only made where all its entries are empty: a table may be among them, empty itself, from an earlier
    /// mapping.
    fn write_blocks(&mut self, mmu: &M, run: &Run<'_, M>) -> usize {
        let entries = M::Geometry::group_entries(run.level);
        let group = run.cells().get(..entries).filter(|group| {
            entries > 1
                && self.mapping.fit.allows(run.from, M::Geometry::group_size(run.level), run.left)
                && group.iter().all(|cell| mmu.load(cell).is_vacant())
        });
        let cells = group.unwrap_or(slice::from_ref(run.entry(run.first)));
        for (index, cell) in cells.iter().enumerate() {
            if mmu.load(cell) == UNLINKED {
                complete_unlinking(mmu, run.address(index));
            }
        }
        let (physical, _) = (self.mapping.frames)(run.from, cells.len());
        let block = Descriptor::block(physical, self.mapping.attributes);
        write_leaves(mmu, cells, run.from, block, run.level, self.mapping.leaves);
        self.lazy.wrote(block);
        cells.len()
    }

    /// Links one of the tables that were taken.
    fn link_table(&mut self, mmu: &M, cell: &M::Cell, address: VirtAddr) {
        let Some(table) = self.spare.pop(mmu) else {
            // The first pass cleared the reclaim marks on its path, so no more tables can be missing than it counted.
            unreachable!("the first pass counted every missing table")
        };
        let descriptor = Descriptor::table(table, limits(self.mapping.attributes, self.mapping.execution));
        // The table's zeroes, and the end of the list in its first entry, must be seen before the table is: a walker
        // follows the new descriptor as soon as it is there. Stores before stores is all that takes.
        mmu.dmb_ishst();
        let mut nothing = Descriptor::EMPTY;
        loop {
            match mmu.compare_exchange(cell, nothing, descriptor) {
                Ok(()) => return self.lazy.wrote(descriptor),
                Err(found) if found == Descriptor::EMPTY || found == UNLINKED => nothing = found,
                // The owner of a neighbouring range was first; theirs is as good.
                Err(_) => return self.spare.push(mmu, table),
            }
            if nothing == UNLINKED {
                complete_unlinking(mmu, address);
            }
        }
    }
}
