//! The walker of ranges: whatever changes or shows the leaves of one is a visitor of it. Descents to one entry or one
//! table that need less are written out where they are (`cells`, `reclaim`, and here [`sole_run`] and its kin).
//!
//! Arm ARM D8.2: from the root, each level's entry is a table (go on), a leaf, or nothing. The walker takes no lock.
//! Each entry is read once, and what to do is decided on that copy; the tables on the way stay because there are leaves
//! of the caller's below them, or because the walk is announced ([`crate::announce`]). It is a loop, not a recursion:
//! after each last-level table it starts again at the root, three loads for up to 512 entries, and no stack of tables
//! is kept. The way down to a last-level table, where nearly all walks end, is straight-line code; blocks and missing
//! tables are left to a function of their own.

use core::fmt;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::Error;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Table};
use crate::range::PageRange;

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

/// What a visitor did with a run.
pub(crate) enum Next {
    /// It dealt with this many entries, at least one and at most the run's count.
    Entries(usize),
    /// It made the first entry a table: read it again, and descend.
    Again,
}

/// What a visitor wants of tables on its way that are empty and about to be unlinked (see [`crate::reclaim`]).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Nothing: it finds what is there.
    Ignored,
    /// They stay: it takes their marks away. Only in announced walks.
    Kept,
}

/// An operation, as the walker sees it.
pub(crate) trait Visitor<'t, M: Mmu> {
    /// Why the walk ended early.
    type Error;

    /// What becomes of tables that are leaving.
    const LEAVING: Leaving = Leaving::Ignored;

    /// Deals with the entries at the start of `run`.
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Self::Error>;
}

/// Where the walker is: a table, and what was inherited on the way to it.
struct Place {
    table: Table,
    inherited: u64,
}

/// Visits all of `range` in ascending order.
#[inline(always)]
pub(crate) fn visit<'t, M: Mmu, V: Visitor<'t, M>>(
    mmu: &'t M,
    root: Table,
    range: PageRange<M::Geometry>,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let mut from = range.start();
    let mut left = range.size();
    while left != 0 {
        let done = match last_level(mmu, root, from, V::LEAVING) {
            Some(place) => visit_pages(mmu, &place, from, left, visitor)?,
            None => visit_upper(mmu, root, from, left, visitor)?,
        };
        from = VirtAddr(from.0.wrapping_add(done));
        left -= done;
    }
    Ok(())
}

/// The entry where the walk for an address ends, valid or not.
pub(crate) struct Entry<'a, M: Mmu> {
    /// The whole table that it is in.
    pub(crate) table: &'a [M::Cell],
    /// Its index there.
    pub(crate) index: usize,
    /// What it was when it was read: no table descriptor.
    pub(crate) descriptor: Descriptor,
    /// Its level.
    pub(crate) level: u8,
    /// As in [`Run`].
    pub(crate) inherited: u64,
}

/// The entry where the walk for `address` ends.
///
/// The level is a constant in each turn, as in [`last_level`].
pub(crate) fn entry<M: Mmu>(mmu: &M, root: Table, address: VirtAddr) -> Entry<'_, M> {
    debug_assert_eq!(root.level(), M::Geometry::FIRST_LEVEL);
    let mut address_of_table = root.address();
    let (mut level, mut inherited) = (M::Geometry::FIRST_LEVEL, 0);
    loop {
        let table = mmu.table(Table::new(address_of_table, level));
        let index = M::Geometry::index(address, level);
        let descriptor = mmu.load(&table[index]);
        if level == LAST_LEVEL || !descriptor.is_table() {
            return Entry { table, index, descriptor, level, inherited };
        }
        address_of_table = descriptor.address();
        inherited |= descriptor.0;
        level += 1;
    }
}

/// The last-level table for `address`, if there is one.
///
/// The level is a constant in each turn, so that shifts and masks are.
#[inline(always)]
fn last_level<M: Mmu>(mmu: &M, root: Table, address: VirtAddr, leaving: Leaving) -> Option<Place> {
    debug_assert_eq!(root.level(), M::Geometry::FIRST_LEVEL);
    let mut place = Place { table: root, inherited: 0 };
    let mut level = M::Geometry::FIRST_LEVEL;
    while level != LAST_LEVEL {
        place = below(mmu, &place, level, address, leaving)?;
        level += 1;
    }
    Some(place)
}

/// Goes down to the table whose entry for `address` is no table descriptor.
fn descend<M: Mmu>(mmu: &M, root: Table, address: VirtAddr, leaving: Leaving) -> Place {
    let mut place = Place { table: root, inherited: 0 };
    while place.table.level() != LAST_LEVEL
        && let Some(next) = below(mmu, &place, place.table.level(), address, leaving)
    {
        place = next;
    }
    place
}

/// The table that the entry for `address` in a table of `level`, not the last, leads to.
#[inline(always)]
fn below<M: Mmu>(mmu: &M, place: &Place, level: u8, address: VirtAddr, leaving: Leaving) -> Option<Place> {
    let cell = &mmu.table(place.table)[M::Geometry::index(address, level)];
    let mut entry = mmu.load(cell);
    if leaving == Leaving::Kept {
        while entry.is_table() && entry.0 & bits::LEAVING != 0 {
            mmu.clear_bits(cell, bits::LEAVING);
            // Read again: the table may have been unlinked in between, and then clearing has changed nothing.
            entry = mmu.load(cell);
        }
    }
    entry
        .is_table()
        .then(|| Place { table: Table::new(entry.address(), level + 1), inherited: place.inherited | entry.0 })
}

/// All of `range`, where it lies in one last-level table.
#[inline(always)]
pub(crate) fn sole_run<'t, M: Mmu>(
    mmu: &'t M,
    root: Table,
    range: PageRange<M::Geometry>,
    leaving: Leaving,
) -> Option<Run<'t, M>> {
    let run = page_run(mmu, &last_level(mmu, root, range.start(), leaving)?, range.start(), range.size());
    (run.count == range.pages()).then_some(run)
}

/// Sends `visitor` to all of `range` at once, where its leaves are pages of one table, or whole blocks of one table of
/// the level above, or a part of one such block; `None` where they are not.
///
/// Written out for these two, so that the level is a constant in each.
#[inline(always)]
pub(crate) fn visit_sole_run<'t, M: Mmu, V: Visitor<'t, M>>(
    mmu: &'t M,
    root: Table,
    range: PageRange<M::Geometry>,
    visitor: &mut V,
) -> Option<Result<Next, V::Error>> {
    const ABOVE: u8 = LAST_LEVEL - 1;
    let (start, size) = (range.start(), range.size());
    let mut place = Place { table: root, inherited: 0 };
    let mut level = M::Geometry::FIRST_LEVEL;
    while level != ABOVE {
        place = below(mmu, &place, level, start, Leaving::Ignored)?;
        level += 1;
    }
    let table = mmu.table(Table::new(place.table.address(), ABOVE));
    let first = M::Geometry::index(start, ABOVE);
    let descriptor = mmu.load(&table[first]);
    if descriptor.is_table() {
        let table = Table::new(descriptor.address(), LAST_LEVEL);
        let run = page_run(mmu, &Place { table, inherited: place.inherited | descriptor.0 }, start, size);
        return if run.count == range.pages() { Some(visitor.visit(mmu, &run)) } else { None };
    }
    let block = M::Geometry::entry_size(ABOVE);
    let (from, start) = (start, start.align_down(block));
    let whole = (from.0 | size) & (block - 1) == 0;
    let count = if whole { (size >> M::Geometry::shift(ABOVE)) as usize } else { 1 };
    if count > table.len() - first || (!whole && range.last().0 - start.0 >= block) {
        return None;
    }
    let (left, inherited) = (size, place.inherited);
    let run = Run { table, first, count, level: ABOVE, start, from, left, descriptor: Some(descriptor), inherited };
    Some(visitor.visit(mmu, &run))
}

/// The entries of a last-level table from the one for `from` on.
#[inline(always)]
fn page_run<'t, M: Mmu>(mmu: &'t M, place: &Place, from: VirtAddr, left: u64) -> Run<'t, M> {
    let first = M::Geometry::index(from, LAST_LEVEL);
    Run {
        table: mmu.table(Table::new(place.table.address(), LAST_LEVEL)),
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
    place: &Place,
    from: VirtAddr,
    left: u64,
    visitor: &mut V,
) -> Result<u64, V::Error> {
    let run = page_run(mmu, place, from, left);
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
    mmu: &'t M,
    root: Table,
    from: VirtAddr,
    left: u64,
    visitor: &mut V,
) -> Result<u64, V::Error> {
    let place = descend(mmu, root, from, V::LEAVING);
    let level = place.table.level();
    let shift = M::Geometry::shift(level);
    let table = mmu.table(place.table);
    let mut done = 0;
    let mut first = M::Geometry::index(from, level);
    while done < left && first < table.len() {
        let descriptor = mmu.load(&table[first]);
        if level != LAST_LEVEL && descriptor.is_table() {
            break;
        }
        let from = VirtAddr(from.0 + done);
        let offset = from.0 & ((1 << shift) - 1);
        // Rounded up in halves, because the whole upper half's end does not fit.
        let touched = ((offset + (left - done - 1)) >> shift) as usize + 1;
        let run = Run {
            table,
            first,
            count: touched.min(table.len() - first),
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

/// One level of the walk for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The level: 3 is the last.
    pub level: u8,
    /// The table that was read.
    pub table: PhysAddr,
    /// The index of the entry in it.
    pub index: usize,
    /// The entry.
    pub descriptor: Descriptor,
    /// What it says at this level.
    pub kind: Kind,
}

/// `level 3  0x40324000[1]  0x00f8000048001f0f  page 0x48001000, …`: where the entry is, its value, and what it says.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, table, index, descriptor, .. } = self;
        write!(f, "level {level}  {table}[{index}]  {descriptor:?}  {}", descriptor.decoded(*level))
    }
}

/// The walk for one address, level by level: an iterator over [`Step`]s that ends with the first that is no table.
///
/// Each entry is read once, when the iterator comes to it. Bits above the translated ones do not count: which half an
/// address belongs to is the caller's knowledge, as it is TTBR0's and TTBR1's on the machine.
pub struct Walk<'a, M: Mmu> {
    mmu: &'a M,
    address: VirtAddr,
    next: Option<Table>,
}

impl<'a, M: Mmu> Walk<'a, M> {
    pub(crate) const fn new(mmu: &'a M, root: Table, address: VirtAddr) -> Self {
        Self { mmu, address, next: Some(root) }
    }
}

impl<M: Mmu> Iterator for Walk<'_, M> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let table = self.next.take()?;
        let level = table.level();
        let index = M::Geometry::index(self.address, level);
        let descriptor = self.mmu.load(&self.mmu.table(table)[index]);
        let kind = descriptor.kind(M::Geometry::level_entries(level));
        if kind == Kind::Table {
            self.next = Some(Table::new(descriptor.address(), level + 1));
        }
        Some(Step { level, table: table.address(), index, descriptor, kind })
    }
}

/// What an address translates to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address, offset included.
    pub physical: PhysAddr,
    /// The leaf.
    pub descriptor: Descriptor,
    /// The leaf's level.
    pub level: u8,
    /// Bytes that the leaf translates; of the whole group where it is contiguous.
    pub leaf_size: u64,
    /// Whether the hardware would use it; a present-invalid leaf describes a mapping all the same.
    pub valid: bool,
    /// Whether a table on the way forbids execution at EL1 (PXNTable).
    pub execution_forbidden_above: bool,
}

/// The translation of `address`, valid or present-invalid.
pub(crate) fn translate<M: Mmu>(walk: Walk<'_, M>) -> Option<Translation> {
    let address = walk.address;
    let mut inherited = 0;
    for step in walk {
        match step.kind {
            Kind::Table => inherited |= step.descriptor.0,
            Kind::None => return None,
            Kind::Leaf => {
                let offset = address.0 & (M::Geometry::entry_size(step.level) - 1);
                return Some(Translation {
                    physical: step.descriptor.address() + offset,
                    descriptor: step.descriptor,
                    level: step.level,
                    leaf_size: leaf_size::<M::Geometry>(step.descriptor, step.level),
                    valid: step.descriptor.is_valid(),
                    execution_forbidden_above: inherited & bits::PXNTABLE != 0,
                });
            }
        }
    }
    None
}

/// Entries at the start of `run` that are no table descriptors; the last level has none.
#[inline(always)]
pub(crate) fn leading_leaves<M: Mmu>(mmu: &M, run: &Run<'_, M>) -> usize {
    if run.level == LAST_LEVEL {
        return run.count;
    }
    let is_table = |cell| mmu.load(cell).is_table();
    // The first one was read and is none; were it linked meanwhile, its owner would not be the caller.
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
