//! The last-level entries of a range, for an owner that keeps a lock in each table: user spaces.
//!
//! [`map`](crate::PageTables::map) and its kin change whole ranges for one owner. The pages of a user space change one
//! by one, under faults of several CPUs, and each last-level table has a lock. So what is given out here are the tables
//! and their cells; the lock, and what is written, are the owner's. Three rules hold for such a tree:
//!
//! - leaves are pages, or blocks of the level above the last, whose lock is that of the table that has them; every other
//!   descriptor above is a table's or empty;
//! - tables are linked at any time, by compare-exchange, so that several CPUs may need the same one; the owner links one
//!   in place of a block under that lock;
//! - tables are unlinked only by an owner that excludes all other users ([`PageTables::unlink_tables`], or to put a
//!   block there), so a table that was found stays.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};

use crate::cursor::{Cursor, Marks};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Stores, Table};
use crate::range::PageRange;
use crate::source::TableSource;
use crate::table_list::TableList;
use crate::tables::PageTables;

/// Why there is no last-level entry for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnsureError {
    /// There are not as many tables as are missing.
    OutOfTables,
    /// A block is there, where a tree with cells has tables alone.
    Block,
}

/// Where a walk for a last-level table ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    /// At an entry of this level that links no table.
    Missing(u8),
    /// At a block of this level.
    Block(u8),
}

/// Last-level entries that are neighbours in one table.
pub struct Cells<'t, M: Mmu> {
    /// The table that they are in.
    pub table: PhysAddr,
    /// The entries.
    pub cells: &'t [M::Cell],
    /// The first address that the cells translate.
    pub start: VirtAddr,
}

/// The entry of the level above the last for some addresses: it links a table, is a block, or is empty.
pub struct BlockCell<'t, M: Mmu> {
    /// The table that it is in.
    pub table: PhysAddr,
    /// The entry.
    pub cell: &'t M::Cell,
    /// The first address that the entry translates.
    pub start: VirtAddr,
}

/// One stop of a walk.
pub enum CellsOrBlock<'t, M: Mmu> {
    /// Entries of a last-level table that are in its range.
    Cells(Cells<'t, M>),
    /// The first address in the range of a block, which may be in it in part.
    Block(VirtAddr),
}

/// The result of a visit to a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visited {
    /// All there was to do.
    Done,
    /// A table may be in its place now, and is visited.
    Again,
}

/// A walk of last-level tables and blocks ([`PageTables::walk_cells`]).
pub struct CellsWalk<'t, M: Mmu> {
    mmu: &'t M,
    root: Table<M::Geometry>,
    /// Where it continues.
    from: VirtAddr,
    /// The last address.
    last: VirtAddr,
    is_done: bool,
}

impl<'t, M: Mmu> CellsWalk<'t, M> {
    /// The next table's entries, or block, in ascending order.
    #[inline(always)]
    #[allow(clippy::should_implement_trait, reason = "used with `go_on` in between, which takes it")]
    pub fn next(&mut self) -> Option<CellsOrBlock<'t, M>> {
        let tables = PageTables::new(self.mmu, self.root);
        while !self.is_done {
            let from = self.from;
            match tables.last_table(from) {
                Ok(place) => {
                    let pages = ((self.last.0 - from.0) >> M::Geometry::PAGE_SHIFT) as usize + 1;
                    let left = M::Geometry::entries(LAST_LEVEL) - M::Geometry::index(from, LAST_LEVEL);
                    self.pass(BLOCK_LEVEL);
                    return Some(CellsOrBlock::Cells(cells_in(&place, from, pages.min(left))));
                }
                Err(Stop::Missing(level)) => self.pass(level),
                Err(Stop::Block(_)) => {
                    self.pass(BLOCK_LEVEL);
                    return Some(CellsOrBlock::Block(from));
                }
            }
        }
        None
    }

    /// The next table's entries. `visit` is called with each block that is met before them.
    #[inline(always)]
    pub fn next_cells(&mut self, mut visit: impl FnMut(VirtAddr) -> Visited) -> Option<Cells<'t, M>> {
        loop {
            match self.next()? {
                CellsOrBlock::Cells(found) => return Some(found),
                CellsOrBlock::Block(at) => self.go_on(at, visit(at)),
            }
        }
    }

    /// Calls `visit` with each table's entries.
    ///
    /// # Panics
    /// At a block: to pass over it would leave its pages as they are.
    #[inline(always)]
    pub fn for_each(mut self, mut visit: impl FnMut(Cells<'t, M>)) {
        while let Some(found) = self.next_cells(|address| refuse_block(address)) {
            visit(found);
        }
    }

    /// Where it continues; `None` at its end.
    pub fn continues_at(&self) -> Option<VirtAddr> {
        (!self.is_done).then_some(self.from)
    }

    /// Passes what an entry of `level` translates.
    #[inline(always)]
    fn pass(&mut self, level: u8) {
        let last = VirtAddr(self.from.0 | (M::Geometry::entry_size(level) - 1));
        self.is_done = last >= self.last;
        if !self.is_done {
            self.from = last + 1;
        }
    }

    /// Continues after the block that it met at `address`, which was the last, or there again.
    #[inline(always)]
    pub fn go_on(&mut self, address: VirtAddr, visited: Visited) {
        if visited == Visited::Again {
            (self.from, self.is_done) = (address, false);
        }
    }
}

/// The level of blocks in such a tree.
const BLOCK_LEVEL: u8 = LAST_LEVEL - 1;

impl<M: Mmu> BlockCell<'_, M> {
    /// Whether all that it translates is in `range`.
    pub fn is_in(&self, range: PageRange<M::Geometry>) -> bool {
        range.start() <= self.start && self.range().last() <= range.last()
    }

    /// The addresses that it translates.
    pub fn range(&self) -> PageRange<M::Geometry> {
        PageRange::trusted(self.start, M::Geometry::entry_size(BLOCK_LEVEL))
    }
}

impl<M: Mmu> Clone for Cells<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Mmu> Copy for Cells<'_, M> {}

impl<M: Mmu> Cells<'_, M> {
    /// The address of the page that the entry at `index` translates.
    #[inline(always)]
    pub fn address(&self, index: usize) -> VirtAddr {
        VirtAddr(self.start.0 + ((index as u64) << M::Geometry::PAGE_SHIFT))
    }
}

impl<'a, M: Mmu> PageTables<'a, M> {
    /// The entry of the page at `address`, and its table; `None` where there is no table: where a block is in its place
    /// [`Self::ensure_cell`] refuses.
    #[inline(always)]
    pub fn cell(&self, address: VirtAddr) -> Option<(PhysAddr, &'a M::Cell)> {
        let place = self.last_table(address).ok()?;
        Some((place.table().address(), place.cell(address)))
    }

    /// The entries of `count` pages from `start` on, which one table translates; `None` where there is no table.
    #[inline(always)]
    pub fn cells(&self, start: VirtAddr, count: usize) -> Option<Cells<'a, M>> {
        Some(cells_in(&self.last_table(start).ok()?, start, count))
    }

    /// A walk of the entries of `range`, table by table, in ascending order, and of the blocks of a tree that has some.
    /// Where there is no table nothing is met.
    #[inline(always)]
    pub fn walk_cells(&self, range: PageRange<M::Geometry>) -> CellsWalk<'a, M> {
        CellsWalk { mmu: self.mmu(), root: self.root(), from: range.start(), last: range.last(), is_done: false }
    }

    /// The entry above the last level for `address`; `None` where there is no table of that level, or a larger block.
    #[inline]
    pub fn block_cell(&self, address: VirtAddr) -> Option<BlockCell<'a, M>> {
        let place = Cursor::at_root(self).down_to(BLOCK_LEVEL, address, Marks::Keep).ok()?;
        Some(block_in(self.mmu(), place.table(), address))
    }

    /// The last-level table for `address`, or where the walk for it ends.
    #[inline(always)]
    fn last_table(&self, address: VirtAddr) -> Result<Cursor<'a, M>, Stop> {
        Cursor::at_root(self).down_to(LAST_LEVEL, address, Marks::Keep).map_err(stop)
    }
}

impl<'a, M: Stores> PageTables<'a, M> {
    /// [`Self::block_cell`], with the tables above it linked first where they are missing.
    ///
    /// # Errors
    /// [`EnsureError`]; nothing was linked.
    #[inline(always)]
    pub fn ensure_block_cell(
        &self,
        address: VirtAddr,
        source: &mut impl TableSource,
    ) -> Result<BlockCell<'a, M>, EnsureError> {
        let (table, ()) = self.ensure::<BLOCK_LEVEL, _, _>(address, source, || Ok(()))?;
        Ok(block_in(self.mmu(), table, address))
    }

    /// The entry of the page at `address`, and its table, which is linked first where it is missing; and what `prepare`
    /// made when nothing else could fail any more.
    ///
    /// # Errors
    /// [`EnsureError`], or that of `prepare`; nothing was linked, but for tables above a block that another CPU has
    /// put in place concurrently. The result of `prepare` is dropped then.
    #[cold]
    pub fn ensure_cell<T, E: From<EnsureError>>(
        &self,
        address: VirtAddr,
        source: &mut impl TableSource,
        prepare: impl FnOnce() -> Result<T, E>,
    ) -> Result<((PhysAddr, &'a M::Cell), T), E> {
        let (table, prepared) = self.ensure::<LAST_LEVEL, _, _>(address, source, prepare)?;
        Ok(((table.address(), cell_in(self.mmu(), table, address)), prepared))
    }

    /// As [`Self::ensure_cell`], for the table of `LEVEL`.
    #[inline(always)]
    fn ensure<const LEVEL: u8, T, E: From<EnsureError>>(
        &self,
        address: VirtAddr,
        source: &mut impl TableSource,
        prepare: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Table<M::Geometry>, T), E> {
        let missing = self.missing::<LEVEL>(address).ok_or(EnsureError::Block)?;
        let mmu = self.mmu();
        let mut spare = TableList::take(mmu, missing, source).map_err(|_| EnsureError::OutOfTables)?;
        let prepared = match prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                spare.give_back(mmu, source);
                return Err(error);
            }
        };
        let linked = link_down::<LEVEL, M>(mmu, self.root().address(), address, &mut spare);
        // Another CPU may have linked a table that was missing; then one is left over.
        spare.give_back(mmu, source);
        // A block was not there at the first look.
        Ok((Table::new(linked.ok_or(EnsureError::Block)?, LEVEL), prepared))
    }

    /// How many tables are missing down to `LEVEL` for `address`; `None` at a block.
    #[inline(always)]
    fn missing<const LEVEL: u8>(&self, address: VirtAddr) -> Option<usize> {
        match Cursor::at_root(self).down_to(LEVEL, address, Marks::Keep).map_err(stop) {
            Ok(_) => Some(0),
            Err(Stop::Missing(found)) => Some(usize::from(LEVEL - found)),
            Err(Stop::Block(_)) => None,
        }
    }

    /// Takes out of the tree the tables below the root that translate an address of `range` and none outside `hole`,
    /// and hands each to `unlinked`, the lower ones first. The hole holds the range and has no leaves.
    ///
    /// # Safety
    /// Nothing but table walks of the hardware comes to an address of `hole` concurrently; what goes to other addresses
    /// may. No cell that was found before ([`Self::cell`] and its kin) is used afterwards where its table is handed
    /// out. A table is used for something else when walk caches are invalidated for `range`, and not before.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn unlink_tables(
        &self,
        range: PageRange<M::Geometry>,
        hole: PageRange<M::Geometry>,
        mut unlinked: impl FnMut(PhysAddr),
    ) {
        for level in (M::Geometry::FIRST_LEVEL..LAST_LEVEL).rev() {
            let size = M::Geometry::entry_size(level);
            let mut from = range.start().align_down(size);
            loop {
                let mut last = VirtAddr(from.0 | (size - 1));
                // Only the entries at both ends of the range may translate more than the hole: those stay.
                if hole.contains(from) && hole.contains(last) {
                    match self.table_cell(from, level) {
                        Ok(cell) => unlinked(self.unlink(cell, level)),
                        // Nothing further down for all that this entry translates.
                        Err(missing) => last = VirtAddr(from.0 | (M::Geometry::entry_size(missing) - 1)),
                    }
                }
                // Not the address after it: there is none after the last.
                if last >= range.last() {
                    break;
                }
                from = last + 1;
            }
        }
    }

    /// Empties an entry of `level` that links a table without entries; returns which.
    fn unlink(&self, cell: &M::Cell, level: u8) -> PhysAddr {
        let mmu = self.mmu();
        let table = Table::new(mmu.load(cell).address(), level + 1);
        debug_assert!(mmu.table(table).iter().all(|cell| mmu.load(cell) == Descriptor::EMPTY));
        mmu.store(cell, Descriptor::EMPTY);
        table.address()
    }

    /// The entry of `level` for `address`, which links a table, or the level at which the walk to it ends.
    fn table_cell(&self, address: VirtAddr, level: u8) -> Result<&'a M::Cell, u8> {
        let missing = |end| stop(end).missing_at(address);
        let cell = Cursor::at_root(self).down_to(level, address, Marks::Keep).map_err(missing)?.cell(address);
        let entry = self.mmu().load(cell);
        if entry.is_table() { Ok(cell) } else { Err(missing((entry, level))) }
    }

    /// Takes everything out of the tree, and hands it out when `invalidate` is done, which must leave nothing of the
    /// tree in any TLB or walk cache. Each table comes after what was in it; the root stays.
    ///
    /// # Safety
    /// Nothing but table walks of the hardware uses the tree concurrently, `invalidate` does what this comment demands,
    /// and no cell of the tree that was found before ([`Self::cell`] and its kin) is used afterwards, those of the root
    /// excepted.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn dismantle(&self, invalidate: impl FnOnce(), mut out: impl FnMut(Dismantled)) {
        let mmu = self.mmu();
        let root = mmu.table(self.root());
        for_each_used(mmu, root, |cell, _| {
            // Invalid, and keeps the address: that is all the list there is.
            mmu.clear_bits(cell, bits::VALID);
        });
        invalidate();
        for_each_used(mmu, root, |cell, entry| {
            mmu.store(cell, Descriptor::EMPTY);
            hand_out(mmu, Table::new(entry.address(), self.root().level() + 1), &mut out);
        });
    }
}

/// One item that [`PageTables::dismantle`] hands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dismantled {
    /// A last-level entry that was not empty.
    Entry(Descriptor),
    /// A block, and the table that it was in.
    Block(Descriptor, PhysAddr),
    /// A table that no walk reaches any more.
    Table(PhysAddr),
}

// Inlined into itself, level by level, it would be eight times as large.
#[inline(never)]
fn hand_out<M: Mmu>(mmu: &M, table: Table<M::Geometry>, out: &mut impl FnMut(Dismantled)) {
    for_each_used(mmu, mmu.table(table), |_, entry| {
        if table.level() == LAST_LEVEL {
            out(Dismantled::Entry(entry));
        } else if !entry.is_table() {
            out(Dismantled::Block(entry, table.address()));
        } else {
            hand_out(mmu, Table::new(entry.address(), table.level() + 1), out);
        }
    });
    out(Dismantled::Table(table.address()));
}

/// Calls `visit` with each entry that is not empty. Most are: they are looked at by the chunk.
#[inline(always)]
fn for_each_used<M: Mmu>(mmu: &M, cells: &[M::Cell], mut visit: impl FnMut(&M::Cell, Descriptor)) {
    for chunk in cells.chunks(32) {
        if mmu.survey(chunk).any == Descriptor::EMPTY.0 {
            continue;
        }
        for cell in chunk {
            let entry = mmu.load(cell);
            if entry != Descriptor::EMPTY {
                visit(cell, entry);
            }
        }
    }
}

/// The entries of `count` pages from `start` on, in the last-level table of `place`.
#[inline(always)]
fn cells_in<'t, M: Mmu>(place: &Cursor<'t, M>, start: VirtAddr, count: usize) -> Cells<'t, M> {
    let first = M::Geometry::index(start, LAST_LEVEL);
    Cells { table: place.table().address(), cells: &place.cells()[first..first + count], start }
}

/// The block's entry for `address` in `table`.
fn block_in<M: Mmu>(mmu: &M, table: Table<M::Geometry>, address: VirtAddr) -> BlockCell<'_, M> {
    let start = address.align_down(M::Geometry::entry_size(BLOCK_LEVEL));
    BlockCell { table: table.address(), cell: cell_in(mmu, table, address), start }
}

/// The entry for `address` in `table`.
#[inline(always)]
fn cell_in<M: Mmu>(mmu: &M, table: Table<M::Geometry>, address: VirtAddr) -> &M::Cell {
    &mmu.table(table)[M::Geometry::index(address, table.level())]
}

/// Goes down from `root` to the table of `LEVEL` for `address`, with `spare` tables where they are missing; `None` at a
/// block.
#[inline(always)]
fn link_down<const LEVEL: u8, M: Stores>(
    mmu: &M,
    root: PhysAddr,
    address: VirtAddr,
    spare: &mut TableList,
) -> Option<PhysAddr> {
    let mut table = root;
    for level in M::Geometry::FIRST_LEVEL..LEVEL {
        let cell = cell_in(mmu, Table::new(table, level), address);
        let mut entry = mmu.load(cell);
        if !entry.is_table()
            && let Stop::Missing(_) = stop((entry, level))
        {
            entry = link(mmu, cell, spare);
        }
        if !entry.is_table() {
            return None;
        }
        table = entry.address();
    }
    Some(table)
}

#[cold]
fn refuse_block(address: VirtAddr) -> ! {
    panic!("a block at {address}, in a tree whose leaves are pages")
}

/// The reason why a walk ends at an entry, of this level, that links no table. An entry that a block has left is not
/// vacant either: a table that is linked over it loses what it remembers.
#[cold]
fn stop((entry, level): (Descriptor, u8)) -> Stop {
    if entry == Descriptor::EMPTY { Stop::Missing(level) } else { Stop::Block(level) }
}

impl Stop {
    /// The level of the entry for `address` that links no table.
    ///
    /// # Panics
    /// At a block: to pass over it would leave its pages as they are.
    #[inline(always)]
    fn missing_at(self, address: VirtAddr) -> u8 {
        match self {
            Self::Missing(level) => level,
            Self::Block(_) => refuse_block(address),
        }
    }
}

/// Links a spare table in `cell`, where nothing is yet; returns what is there then: this table, or what another CPU
/// has put there, be it a table or a block.
fn link<M: Stores>(mmu: &M, cell: &M::Cell, spare: &mut TableList) -> Descriptor {
    let Some(table) = spare.pop(mmu) else { unreachable!("tables are only added, so no more are missing than before") };
    let descriptor = Descriptor::user_table(table);
    // The table's zeroes, and the end of the list in its first entry, must be seen before the table is.
    mmu.dmb_ishst();
    match mmu.compare_exchange(cell, Descriptor::EMPTY, descriptor) {
        Ok(()) => descriptor,
        Err(found) => {
            spare.push(mmu, table);
            found
        }
    }
}
