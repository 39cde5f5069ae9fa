//! Unmapping, and releasing frames only when no CPU can use them.
//!
//! Arm ARM D8.17.1, and the order that the memory model asks for: invalid; DSB ISHST; TLBI; DSB ISH; then reuse. The
//! list of frames to release needs no memory: the entries themselves keep it. The first pass makes each leaf
//! present-invalid, with its address kept; one invalidation serves the whole range; the second pass reads the addresses
//! back, empties the entries and hands the leaves out. So there is no moment at which a caller could free a frame too
//! early.
//!
//! The invalidation may also be left for later, and serve several ranges ([`PageTables::unmap_lazily`]): each keeps its
//! frames in its own entries until then.
//!
//! Tables stay linked; [`crate::reclaim`] takes those away that are left empty.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};
use granule_arch::tlbi::LevelHint;

use crate::cursor::Marks;
use crate::error::Error;
use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::{Stores, Survey, Tlb};
use crate::permission::Change;
use crate::range::PageRange;
use crate::runs::{Run, whole_leaf};
use crate::split::Splitter;
use crate::stale::Stale;
use crate::tables::PageTables;

/// A leaf that no CPU uses any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first address that it translated.
    pub address: VirtAddr,
    /// The physical memory that it translated to.
    pub physical: PhysAddr,
    /// Bytes of the entry; each entry of a contiguous group is one.
    pub size: u64,
}

impl<'t, M: Stores> PageTables<'t, M> {
    /// Takes everything that is mapped in `range` away, and hands each leaf to `released` when no CPU can use it any
    /// more.
    ///
    /// Holes are passed over. `released` is called in ascending order, after the invalidation, so it may free the
    /// frames; a contiguous group comes entry by entry. Tables stay linked.
    ///
    /// `splitter` says whether leaves of the range may ever have been split while they were in use, by whichever owner. No
    /// leaf is split here, but the TLBs may then hold a larger one than there is, so the invalidation gives no level: with
    /// [`WholeLeaves`](crate::WholeLeaves) after a split a TLB may keep what is handed out here. Then
    /// [`RefuseSplits`](crate::RefuseSplits) is right.
    ///
    /// # Errors
    /// [`Error::Straddles`]: a leaf is only partly in the range. Nothing was changed.
    #[inline]
    #[allow(unsafe_code, reason = "releases what it has invalidated")]
    pub fn unmap<S: Splitter<M>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        splitter: S,
        mut released: impl FnMut(Leaf),
    ) -> Result<(), Error> {
        if self.unmap_at_once(lazy, tlb, range, bits::CONTIGUOUS, &splitter, &mut released) {
            return Ok(());
        }
        let unmapping = self.begin_unmap(range)?;
        let flush = unmapping.break_leaves(self, &splitter);
        lazy.invalidate(tlb, [flush]);
        // SAFETY: the two lines above.
        unsafe { unmapping.release(self, released) };
        Ok(())
    }

    /// [`Self::unmap`] where that takes one look: all of the range is pages of one table, none of which has any of the
    /// bits `unwanted`. Whether it was done; if not, nothing was.
    ///
    /// The caller passes the contiguous bit too, unless the range ends where leaves end: a group that is cut would be
    /// unmapped in part. `splitter` is that of [`Self::unmap`].
    #[must_use = "if it was not done, nothing is unmapped"]
    #[inline(always)]
    pub fn unmap_at_once<S: Splitter<M>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        unwanted: u64,
        _splitter: &S,
        released: impl FnMut(Leaf),
    ) -> bool {
        if let Some(run) = self.sole_run(range)
            && let found = self.mmu().survey(run.cells())
            && found.any & unwanted == 0
            && let Some(flip) = breaking_flip::<M::Geometry>(found, LAST_LEVEL, 0)
        {
            self.mmu().update_run(run.cells(), flip);
            let level = if S::LIVE_SPLITS { None } else { LevelHint::new(LAST_LEVEL) };
            let changed = Invalidation { range, tables: Tables::Kept, level };
            lazy.invalidate(tlb, [Flush::new(Some(changed))]);
            release(self.mmu(), &run, released);
            return true;
        }
        false
    }

    /// The first half of an unmapping: makes each leaf of `range` present-invalid, without the software bits `marks`.
    /// Returns whether it has: where a leaf may be executable or have one of the bits `unwanted`, it changes nothing.
    ///
    /// The memory stays there to be read, but every TLB may still hold the leaves. The caller invalidates the range,
    /// without a level (a leaf may have been split). Afterwards [`Self::release_unmapped`] hands out the leaves.
    /// Until then neither they nor the addresses get another owner. A range with a hole counts as executable.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    #[must_use = "if it was not done, nothing is unmapped"]
    #[inline]
    pub fn unmap_lazily(&self, range: PageRange<M::Geometry>, unwanted: u64, marks: u64) -> Result<bool, Error> {
        if let Some(run) = self.sole_run(range)
            && let found = self.mmu().survey(run.cells())
            && found.any & unwanted == 0
            && found.all & bits::PXN != 0
            && (found.any & bits::CONTIGUOUS == 0 || is_of_whole_groups(range))
            && let Some(flip) = breaking_flip::<M::Geometry>(found, LAST_LEVEL, marks)
        {
            self.mmu().update_run(run.cells(), flip);
            return Ok(true);
        }
        let unmapping = self.begin_unmap(range)?;
        if unmapping.found.any & unwanted != 0 || unmapping.may_be_executable() {
            return Ok(false);
        }
        let _owed = unmapping.make_invalid(self, marks);
        Ok(true)
    }

    /// The second half of [`Self::unmap_lazily`]: empties the entries and hands out the leaves, as [`Self::unmap`] does.
    ///
    /// # Safety
    /// 1. [`Self::unmap_lazily`], or [`Unmapping::break_leaves`], has made each leaf of `range` present-invalid.
    /// 2. An invalidation of the range that began after that is complete: no CPU and no device uses what it translated to.
    /// 3. It is called once for each unmapping, and nothing else was mapped there since.
    #[inline]
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn release_unmapped(&self, range: PageRange<M::Geometry>, mut released: impl FnMut(Leaf)) {
        // Where the leaves were made invalid in another walk, a collapse may have marked them since.
        self.runs(range, Marks::Clear).for_each(|run| release(self.mmu(), &run, &mut released));
    }

    /// The first of the three steps of [`Self::unmap`] for any range: refuses one that cuts a leaf.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    #[inline(never)]
    pub fn begin_unmap(&self, range: PageRange<M::Geometry>) -> Result<Unmapping<M::Geometry>, Error> {
        let (mmu, mut found) = (self.mmu(), Survey::NOTHING);
        // The next steps store to what is found here.
        for run in self.runs(range, Marks::Clear) {
            for index in [0, run.count - 1] {
                let entry = mmu.load(run.entry(run.first + index));
                if entry.kind(M::Geometry::level_entries(run.level)) == Kind::Leaf {
                    whole_leaf(range, entry, run.level, run.address(index))?;
                }
            }
            found = found.and(mmu.survey(run.cells()));
        }
        Ok(Unmapping { range, found })
    }
}

/// A range that is being unmapped, for owners that have something to do between the steps: check, break,
/// **invalidate**, release.
#[must_use = "nothing is unmapped yet"]
pub struct Unmapping<G: Geometry> {
    range: PageRange<G>,
    /// The bits that all entries have, and those that any has. A page that is not mapped may count, without harm.
    found: Survey,
}

impl<G: Geometry> Unmapping<G> {
    /// Whether leaves may be read-only.
    pub const fn may_be_read_only(&self) -> bool {
        self.found.any & bits::RDONLY != 0
    }

    /// Whether leaves may be executable at EL1.
    pub const fn may_be_executable(&self) -> bool {
        self.found.all & bits::PXN == 0
    }

    /// Makes each leaf present-invalid; what it translates to stays there to be read.
    #[inline]
    pub fn break_leaves<M: Stores<Geometry = G>, S: Splitter<M>>(
        &self,
        tables: &PageTables<'_, M>,
        _splitter: &S,
    ) -> Flush<G> {
        let flush = self.make_invalid(tables, 0);
        if S::LIVE_SPLITS { flush.without_level() } else { flush }
    }

    /// As [`Self::break_leaves`], without the software bits `marks`.
    #[inline(never)]
    fn make_invalid<M: Stores<Geometry = G>>(&self, tables: &PageTables<'_, M>, marks: u64) -> Flush<G> {
        let (mmu, mut stale) = (tables.mmu(), Stale::NONE);
        for run in tables.runs(self.range, Marks::Keep) {
            if let Some(flip) = breaking_flip::<G>(mmu.survey(run.cells()), run.level, marks) {
                mmu.update_run(run.cells(), flip);
                let size = (run.count as u64) << G::shift(run.level);
                stale.note(PageRange::trusted(run.address(0), size), run.level);
                continue;
            }
            stale.note_each(&run, |cell| {
                let old = mmu.load(cell);
                let is_leaf = old.kind(G::level_entries(run.level)) == Kind::Leaf;
                let new = Descriptor(Change::INVALID.apply(old).0 & !marks);
                if is_leaf && new != old {
                    mmu.store(cell, new);
                }
                // A present-invalid leaf counts too: the call that made it so may have deferred its invalidation.
                is_leaf
            });
        }
        stale.flush()
    }

    /// Empties the entries and hands out the leaves.
    ///
    /// # Safety
    /// 1. [`Self::break_leaves`] was called, for the same `tables`.
    /// 2. The invalidation that it returned is complete.
    #[allow(unsafe_code, reason = "passes on its caller's contract")]
    pub unsafe fn release<M: Stores<Geometry = G>>(self, tables: &PageTables<'_, M>, released: impl FnMut(Leaf)) {
        // SAFETY: the caller's contract; this value is there once.
        unsafe { tables.release_unmapped(self.range, released) };
    }
}

/// Whether no contiguous group of pages is cut by `range`, where there are any.
#[inline(always)]
fn is_of_whole_groups<G: Geometry>(range: PageRange<G>) -> bool {
    (range.start().0 | range.size()) & (G::group_size(LAST_LEVEL) - 1) == 0
}

/// The bits to flip in each entry to make it present-invalid without the bits `marks`, where that is one change for all:
/// valid leaves, all global or none, and all with the same marks.
#[inline(always)]
fn breaking_flip<G: Geometry>(found: Survey, level: u8, marks: u64) -> Option<u64> {
    if !G::has_leaves(level) {
        return None;
    }
    let leaf = if level == LAST_LEVEL { bits::VALID | bits::TABLE } else { bits::VALID };
    // At upper levels a neighbour may have linked a table where this walk read nothing: valid, and no leaf.
    let from = Descriptor(found.common(bits::VALID | bits::TABLE | bits::NG | marks)?);
    (from.0 & (bits::VALID | bits::TABLE) == leaf).then(|| from.0 ^ (Change::INVALID.apply(from).0 & !marks))
}

/// Empties each entry and hands its leaf out.
#[inline(always)]
fn release<M: Stores>(mmu: &M, run: &Run<'_, M>, mut released: impl FnMut(Leaf)) {
    for (index, cell) in run.cells().iter().enumerate() {
        let leaf = mmu.load(cell);
        if leaf.kind(M::Geometry::level_entries(run.level)) == Kind::Leaf {
            // Invalid to invalid: no barrier is needed, no TLB can hold it.
            mmu.store(cell, Descriptor::EMPTY);
            let (address, physical) = (run.address(index), leaf.address());
            released(Leaf { address, physical, size: M::Geometry::entry_size(run.level) });
        }
    }
}
