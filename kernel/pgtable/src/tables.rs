//! A tree of tables, and the entry points to everything that is done with it.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Attributes;

use crate::Error;
use crate::alias::{self, Alias, NoAlias};
use crate::dump::{self, Extent, LeafTotals};
use crate::flush::Flush;
use crate::lazy::Lazy;
use crate::map::{self, Shape};
use crate::mmu::{Mmu, Table, Tlb};
use crate::permission::Change;
use crate::range::PageRange;
use crate::source::TableSource;
use crate::split::{self, Cut, Serialise, Splits};
use crate::unmap::{self, Leaf};
use crate::update::{self, Leaves};
use crate::walk::{self, Entry, Leaving, Next, Run, Translation, Visitor, Walk};

/// A tree of tables as one CPU sees it: a root and that CPU's [`Mmu`].
///
/// Two words, made anew where it is needed; the tree itself belongs to whoever vouched for the root.
pub struct PageTables<'a, M: Mmu> {
    mmu: &'a M,
    root: Table,
}

impl<'a, M: Mmu> PageTables<'a, M> {
    /// The tree under `root`, as the CPU of `mmu` sees it.
    #[inline(always)]
    pub const fn new(mmu: &'a M, root: Table) -> Self {
        Self { mmu, root }
    }

    /// Where the root table is.
    pub const fn root(&self) -> Table {
        self.root
    }

    /// The CPU that looks.
    #[inline(always)]
    pub(crate) const fn mmu(&self) -> &'a M {
        self.mmu
    }

    /// Sends `visitor` over `range`.
    #[inline(always)]
    pub(crate) fn visit<V: Visitor<'a, M>>(
        &self,
        range: PageRange<M::Geometry>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        walk::visit(self.mmu, self.root, range, visitor)
    }

    /// All of `range`, where it lies in one last-level table.
    #[inline(always)]
    pub(crate) fn sole_run(&self, range: PageRange<M::Geometry>, leaving: Leaving) -> Option<Run<'a, M>> {
        walk::sole_run(self.mmu, self.root, range, leaving)
    }

    /// Sends `visitor` to all of `range` at once, where its leaves lie in one table.
    #[inline(always)]
    pub(crate) fn visit_sole_run<V: Visitor<'a, M>>(
        &self,
        range: PageRange<M::Geometry>,
        visitor: &mut V,
    ) -> Option<Result<Next, V::Error>> {
        walk::visit_sole_run(self.mmu, self.root, range, visitor)
    }

    /// The entry where the walk for `address` ends.
    #[inline]
    pub(crate) fn entry(&self, address: VirtAddr) -> Entry<'a, M> {
        walk::entry(self.mmu, self.root, address)
    }

    /// Maps `range` to the physical memory from `physical` on.
    ///
    /// Nothing of the range may be mapped. Which leaves are used, and whether new tables forbid execution below them,
    /// is `shape`'s to say. The entries are in use when `lazy` has paid.
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
        map::map_contiguous(self, lazy, range, physical, attributes, shape, source)
    }

    /// Maps each page of `range` to the frame that `frame` gives for it, by pages.
    ///
    /// `frame` is called once for each page, in ascending order, with the page's address, when nothing can fail any
    /// more. It returns page-aligned addresses below 2^48; other bits are ignored.
    ///
    /// # Errors
    /// As [`PageTables::map`], those about `physical` excepted.
    pub fn map_frames(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        frame: impl FnMut(VirtAddr) -> PhysAddr,
        attributes: Attributes,
        source: &mut impl TableSource,
    ) -> Result<(), Error> {
        map::map_frames(self, lazy, range, frame, attributes, source)
    }

    /// Takes everything that is mapped in `range` away, and hands each leaf to `released` when no CPU can use it any
    /// more.
    ///
    /// Holes are passed over. `released` is called in ascending order, after the invalidation, so it may free the
    /// frames; a contiguous group comes entry by entry. Tables stay linked.
    ///
    /// # Errors
    /// [`Error::Straddles`]: a leaf is only partly in the range. Nothing was changed.
    pub fn unmap(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        released: impl FnMut(Leaf),
    ) -> Result<(), Error> {
        unmap::unmap(self, lazy, tlb, range, &mut NoAlias, released)
    }

    /// [`Self::unmap`] of a range whose frames are mapped a second time, by `alias`: that of pages that are read-only
    /// becomes writable again, before their leaves are handed out: in the same invalidation, or where a page is executable
    /// in one of its own, when that of the range is complete. At no moment may one CPU write what another can execute.
    ///
    /// # Errors
    /// As [`Self::unmap`], and those of [`Alias::split`], which is only called where the alias was not changed with the
    /// range. Nothing is unmapped.
    pub fn unmap_with_alias<A: Alias<M::Geometry>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        alias: &mut A,
        released: impl FnMut(Leaf),
    ) -> Result<(), A::Error> {
        unmap::unmap(self, lazy, tlb, range, alias, released)
    }

    /// Changes the permissions of every leaf in `range`, and returns the invalidation that is then owed: none where no
    /// entry that was valid changed.
    ///
    /// For ranges where no leaf is ever split: the invalidation says the level of the leaves, if it is one.
    ///
    /// # Errors
    /// [`Error::NotMapped`] (the first hole), [`Error::NotMarked`], [`Error::Straddles`],
    /// [`Error::WritableAndExecutable`], [`Error::ExecutionForbidden`]. Nothing was changed.
    #[inline]
    pub fn update(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
    ) -> Result<Flush<M::Geometry>, Error> {
        update::update(self, lazy, range, &change)
    }

    /// [`Self::update`] where leaves may be split at any time, by this caller or the owner of a neighbouring range.
    ///
    /// A group that the range cuts counts as one leaf until *all* its entries are clear of the contiguous bit. The
    /// invalidation says no level, because TLBs may hold a larger leaf than there is now. A leaf that is cut is no
    /// error where nothing in the range would change.
    ///
    /// # Errors
    /// As [`Self::update`].
    #[inline]
    pub fn update_divisible(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
    ) -> Result<Flush<M::Geometry>, Error> {
        match self.update_at_once(lazy, range, change) {
            Some(flush) => Ok(flush),
            None => update::update_tables(self, lazy, range, &change, Leaves::Divisible).map(Flush::without_level),
        }
    }

    /// [`Self::update_divisible`] where that takes one look: the leaves are pages, or blocks, of one table and alike,
    /// all whole, and nothing speaks against the change. Nearly always it is so.
    ///
    /// `None`: nothing was done, and `update_divisible` does it or says why not. A result that fits in registers, and
    /// so little code that callers can have it in line.
    #[inline(always)]
    pub fn update_at_once(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
    ) -> Option<Flush<M::Geometry>> {
        update::update_at_once(self, lazy, range, change, Leaves::Divisible, |_| false)
    }

    /// The same for [`Self::update`].
    #[inline(always)]
    pub fn update_fixed_at_once(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
    ) -> Option<Flush<M::Geometry>> {
        update::update_at_once(self, lazy, range, change, Leaves::Fixed, |_| false)
    }

    /// [`Self::update_at_once`] where the range may also cut groups, or one block: where that is all, `split` may split
    /// them, and says whether it has.
    ///
    /// `None`: nothing was changed.
    #[inline(always)]
    pub fn update_at_once_splitting(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
        split: impl Fn(&Cut<'a, M>) -> bool,
    ) -> Option<Flush<M::Geometry>> {
        update::update_at_once(self, lazy, range, change, Leaves::Divisible, split)
    }

    /// [`Self::update_at_once`] of the page at `page`, which is page aligned: with one load where a run takes a loop.
    #[inline(always)]
    pub fn update_page_at_once(
        &self,
        lazy: &Lazy<'_, M>,
        page: VirtAddr,
        change: Change,
    ) -> Option<Flush<M::Geometry>> {
        update::update_page_at_once(self, lazy, page, change)
    }

    /// Splits the leaves that `range` cuts at its ends, to the largest legal pieces, so that
    /// [`Self::update_divisible`] may change exactly the range. Nothing is split where it cuts none.
    ///
    /// Every address translates as before at any moment, so nothing is owed: no barrier, no invalidation. The CPUs hold
    /// leaves of both sizes for a while, and the caller knows that all of them can.
    ///
    /// # Errors
    /// [`Error::OutOfTables`]; nothing was changed, and tables that were taken are given back.
    pub fn split(
        &self,
        range: PageRange<M::Geometry>,
        how: &impl Serialise,
        source: &mut impl TableSource,
    ) -> Result<Splits, Error> {
        split::split(self, range, how, source)
    }

    /// [`Self::update_divisible`] that splits what the range cuts, and says what it has split.
    ///
    /// # Errors
    /// As [`Self::update`], [`Error::Straddles`] excepted, and [`Error::OutOfTables`]. Every page is as it was; leaves
    /// may have been split.
    #[inline]
    pub fn update_splitting(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
        how: &impl Serialise,
        source: &mut impl TableSource,
    ) -> Result<(Flush<M::Geometry>, Splits), Error> {
        match self.update_divisible(lazy, range, change) {
            Err(Error::Straddles { .. }) => {
                let splits = self.split(range, how, source)?;
                Ok((self.update_divisible(lazy, range, change)?, splits))
            }
            result => Ok((result?, Splits::NONE)),
        }
    }

    /// [`Self::update`] of a range whose frames are mapped a second time, by `alias`: where the change is about
    /// writing, the alias becomes read-only or writable too, and one invalidation serves both.
    ///
    /// # Errors
    /// As [`Self::update`], and those of [`Alias::split`]. Every page is as it was; leaves of the alias may have been
    /// split.
    ///
    /// # Panics
    /// Where a frame of the range is not mapped by the alias, or executable there.
    #[inline(always)]
    pub fn update_with_alias<A: Alias<M::Geometry>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        change: Change,
        alias: &mut A,
    ) -> Result<(), A::Error> {
        alias::update(self, lazy, tlb, range, &change, alias)
    }

    /// Makes every leaf in `range` read-only and executable at EL1, of those alone that have the software bits `marks`:
    /// read-only first, with an invalidation of its own where anything changed, and executable then. At no moment may
    /// one CPU write what another can execute.
    ///
    /// # Errors
    /// As [`Self::update`]. Nothing was changed.
    pub fn update_to_code(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        marks: u64,
    ) -> Result<(), Error> {
        alias::update_to_code(self, lazy, tlb, range, marks, &mut NoAlias)
    }

    /// [`Self::update_to_code`] of a range whose frames are mapped a second time, by `alias`, which becomes read-only
    /// in the first step.
    ///
    /// # Errors
    /// As [`Self::update_with_alias`].
    ///
    /// # Panics
    /// As [`Self::update_with_alias`].
    pub fn update_to_code_with_alias<A: Alias<M::Geometry>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        marks: u64,
        alias: &mut A,
    ) -> Result<(), A::Error> {
        alias::update_to_code(self, lazy, tlb, range, marks, alias)
    }

    /// The walk for `address`, level by level.
    pub const fn walk(&self, address: VirtAddr) -> Walk<'a, M> {
        Walk::new(self.mmu, self.root, address)
    }

    /// What `address` translates to, valid or present-invalid; `None` where nothing is mapped.
    pub fn translate(&self, address: VirtAddr) -> Option<Translation> {
        walk::translate(self.walk(address))
    }

    /// Calls `extent` for each run of like leaves in `range`, in ascending order; returns how many leaves of each size
    /// there were.
    ///
    /// Leaves that the range only touches count wholly. Other CPUs may change the tables meanwhile; each entry is read
    /// once.
    pub fn dump(&self, range: PageRange<M::Geometry>, extent: impl FnMut(&Extent)) -> LeafTotals {
        dump::dump(self, range, extent)
    }
}
