//! The entries of an object's tree: which frame each page has.
//!
//! A page gets its frame by a compare-exchange, and loses it where the object is cut short or a hole is punched.
//! Neither a fault nor the work for each page takes a lock of the object's: the lock of the page table that maps the
//! page decides.
//!
//! ```text
//!   fault                                        truncation, hole
//!     find the frame of the page                   the new size; empty the entries of the object
//!     link the page table, if it is missing        fence
//!     fence, if it was                             for each area (reverse map), for each table that is linked:
//!     lock the table                                 lock the table
//!       the object still has the frame?                empty the entries, invalidate
//!       then a reference to it, and the entry        unlock
//!     unlock                                       drop the object's references to the frames
//! ```
//! Where the fault has the lock first, its entry is emptied. Where it comes second, it sees that the frame is not the
//! object's any more, or that the page is after the end. A table that was not linked when the walk came by is linked
//! later, and what links it looks at the object after a fence. So the fault needs no reference before it has the lock:
//! a frame that the object still has is not freed until the truncation has had the lock, too.
//!
//! A fault that finds a table that another CPU has just linked needs no fence: the address of the lock depends on that
//! of the table, the lock is acquired, and arm64 is multi-copy atomic (Arm ARM B2.3): the truncation's look, which
//! missed the link, comes before it on every CPU.
//!
//! A frame that is added to a page where a truncation has been already stays with the object, all zeros: what added it
//! looks at the size after a fence, as the truncation looks at the entries after one, so one of the two sees the
//! other. No entry maps the frame unless the object grows again.
//!
//! Migration does as a truncation does, but that the entry keeps the frame, and says that it is on its way: a fault
//! finds nothing to map, and waits. Then the object has the page in another frame. A page that a pager fills and
//! protects is on its way until it is mapped so, too ([`Arrival::Mapped`]).
//!
//! # Blocks
//! A fault that maps 512 pages by one entry, above the last level, does so where there is no table, whose lock would
//! decide. So it links first there, too:
//! ```text
//!   fault                                        truncation, hole
//!     lock the table above                         the new size; empty the entries of the object
//!       the entry was empty: a block, not valid    fence
//!       fence                                      the entry is not empty?
//!       the object still has the frames?             lock the table above
//!       then references, and a valid block;            empty the entry, invalidate
//!       else empty                                   unlock
//!     unlock                                       drop the object's references to the frames
//! ```
//! A walk that finds the entry empty has changed the object before the fault looks at it; one that does not waits for
//! the lock.
//!
//! `kernel/loom` compiles this file with a page table of one entry.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::{Geometry, Stores};

use super::super::look::{Fillable, LockedEntry};
use crate::mm::frame::Frame;
use crate::sync::atomic::{Ordering, fence};

/// In the entry of a page whose frame may be mapped; not in one whose frame is on its way.
const HERE: u64 = bits::PRESENT_INVALID;
/// In the entry of a page that has a frame and no contents yet, beside [`HERE`]: `fallocate` has made it, and nothing has
/// used it since (Linux: a folio that is not up to date). Until [it is used](Found::look_to_use) it counts as a hole.
const SPARE: u64 = 1 << 63;

/// Whether the page of an `entry` has contents: a frame that is used.
#[inline(always)]
pub(super) const fn is_used(entry: Descriptor) -> bool {
    // Neither empty nor with the highest bit, `SPARE`.
    entry.0 as i64 > 0
}

/// Whether the page of an `entry` is on its way.
#[inline(always)]
pub(super) const fn is_migrating(entry: Descriptor) -> bool {
    is_used(entry) && entry.0 & HERE == 0
}

/// The frame of a page, as it was when it was looked up. It may be freed at any time, but not while
/// [it is current](Found::is_current) and the lock of a table that maps the page is held.
pub(in super::super) struct Found<'a, M: Stores> {
    cell: &'a M::Cell,
    /// With [`HERE`], so that what is on its way is not current.
    entry: Descriptor,
}

impl<'a, M: Stores> Found<'a, M> {
    /// The frame that `cell` of the object's tree has now; `None` for a hole.
    #[inline(always)]
    pub(super) fn look(mmu: &M, cell: &'a M::Cell) -> Option<Self> {
        let entry = mmu.load(cell);
        is_used(entry).then_some(Self { cell, entry: Descriptor(entry.0 | HERE) })
    }

    /// As [`Self::look`], and a page that [`add_spare`] has made is used from now on.
    #[inline(always)]
    pub(super) fn look_to_use(mmu: &M, cell: &'a M::Cell) -> Option<Self> {
        let mut entry = mmu.load(cell);
        if entry.0 & SPARE != 0 {
            let used = Descriptor(entry.0 & !SPARE);
            // Where it fails, another CPU was faster, or has taken the page away.
            entry = mmu.compare_exchange(cell, entry, used).map_or_else(|now| now, |()| used);
        }
        is_used(entry).then_some(Self { cell, entry: Descriptor(entry.0 | HERE) })
    }

    /// Whether the page is on its way to another frame now.
    pub(in super::super) fn is_migrating(&self, mmu: &M) -> bool {
        is_migrating(mmu.load(self.cell))
    }

    #[inline(always)]
    pub(in super::super) fn frame(&self) -> PhysAddr {
        self.entry.address()
    }

    /// Whether the entry is the same, and the page, by `is_inside`, before the object's end. The lock of the page table
    /// is held, which a truncation takes after its change.
    #[inline(always)]
    pub(in super::super) fn is_current(&self, mmu: &M, is_inside: impl FnOnce() -> bool) -> bool {
        let is_there = mmu.load(self.cell) == self.entry;
        // The entry before the size, as what added the page has them, and before what is known of the frame.
        fence(Ordering::Acquire);
        is_there && is_inside()
    }

    /// How the page is mapped, if the entry of the page table, `seen`, has none yet, and what was found [is
    /// current](Self::is_current).
    #[inline(always)]
    pub(in super::super) fn fillable(
        &self,
        mmu: &M,
        seen: LockedEntry<'_>,
        is_inside: impl FnOnce() -> bool,
    ) -> Option<Fillable> {
        let fillable = seen.fillable()?;
        self.is_current(mmu, is_inside).then_some(fillable)
    }

    /// Maps what was found in `cell` of the page table, if that is so: stores what `new` returns, with a reference of its
    /// own in the frame's `record`, which may be free before that is known. Returns whether it is mapped; `seen` is the
    /// entry in `cell`.
    #[inline(always)]
    pub(in super::super) fn map<'r>(
        &self,
        mmu: &M,
        seen: LockedEntry<'_>,
        cell: &M::Cell,
        record: impl FnOnce() -> &'r Frame,
        is_inside: impl FnOnce() -> bool,
        new: impl FnOnce(Fillable) -> Descriptor,
    ) -> bool {
        let fillable = self.fillable(mmu, seen, is_inside);
        if let Some(fillable) = fillable {
            record().share();
            mmu.store(cell, new(fillable));
        }
        fillable.is_some()
    }
}

/// The frames of the pages of a block, as they were when they were looked up: all of one page block, in order.
pub(in super::super) struct FoundBlock<'a, M: Stores> {
    cells: &'a [M::Cell],
    first: Descriptor,
}

impl<'a, M: Stores> FoundBlock<'a, M> {
    /// The frames that `cells`, of the pages of a block, have now; `None` where no block can map them.
    pub(super) fn look(mmu: &M, cells: &'a [M::Cell]) -> Option<Self> {
        let first = mmu.load(cells.first()?);
        let found = Self { cells, first };
        let is_aligned = first.address().is_aligned((cells.len() as u64) << M::Geometry::PAGE_SHIFT);
        (is_used(first) && first.0 & HERE != 0 && is_aligned && found.is_same(mmu)).then_some(found)
    }

    fn is_same(&self, mmu: &M) -> bool {
        mmu.filled(self.cells, self.first, 1 << M::Geometry::PAGE_SHIFT) == self.cells.len()
    }

    /// The first of the frames.
    pub(in super::super) fn block(&self) -> PhysAddr {
        self.first.address()
    }

    /// Whether the entries are the same, and the last page, by `is_inside`, before the object's end. The lock of the
    /// table that is to have the block is held, where the entry is empty no more, and [`order`] has come since.
    pub(super) fn is_current(&self, mmu: &M, is_inside: impl FnOnce() -> bool) -> bool {
        let is_there = self.is_same(mmu);
        // As for a page.
        fence(Ordering::Acquire);
        is_there && is_inside()
    }
}

/// Gives a hole the frame `new`, unless another CPU was faster, and returns what the page has then. `unused` takes a
/// frame that is not needed.
#[inline(always)]
pub(super) fn add<'a, M: Stores>(
    mmu: &M,
    cell: &'a M::Cell,
    new: PhysAddr,
    unused: impl FnOnce(PhysAddr),
) -> Found<'a, M> {
    let entry = Descriptor(new.0 | HERE);
    let entry = match fill(mmu, cell, entry) {
        Ok(()) => entry,
        Err(other) => {
            unused(new);
            Descriptor(other.0 | HERE)
        }
    };
    Found { cell, entry }
}

/// Gives a hole the frame `new`, of zeros, for a first use that comes later; returns whether it was one still.
pub(super) fn add_spare<M: Stores>(mmu: &M, cell: &M::Cell, new: PhysAddr) -> bool {
    fill(mmu, cell, Descriptor(new.0 | HERE | SPARE)).is_ok()
}

/// From when on a page that has got its contents may be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Arrival {
    /// At once, by what finds it.
    Added,
    /// It is on its way until [`end_migration`]: what finds it before waits.
    Mapped,
}

/// Gives a hole the frame `new`, which has its contents; returns whether it was one still.
pub(super) fn add_filled<M: Stores>(mmu: &M, cell: &M::Cell, new: PhysAddr, arrival: Arrival) -> bool {
    let here = if arrival == Arrival::Added { HERE } else { 0 };
    fill(mmu, cell, Descriptor(new.0 | here)).is_ok()
}

/// Stores the `entry` of a new frame in place of a hole, if it is one still; else returns what is there.
#[inline(always)]
fn fill<M: Stores>(mmu: &M, cell: &M::Cell, entry: Descriptor) -> Result<(), Descriptor> {
    // The contents before the entry, for a CPU that finds it here.
    mmu.dmb_ishst();
    mmu.compare_exchange(cell, Descriptor::EMPTY, entry)
}

/// Brings the page in `cell` into use, if it is one that [`add_spare`] has made.
pub(super) fn use_spare<M: Stores>(mmu: &M, cell: &M::Cell) {
    let _ = Found::look_to_use(mmu, cell);
}

/// Empties an entry; returns the frame that it had. The caller has the object's reference to that now.
#[inline(always)]
pub(super) fn take<M: Stores>(mmu: &M, cell: &M::Cell) -> Option<PhysAddr> {
    let mut entry = mmu.load(cell);
    while entry != Descriptor::EMPTY {
        match mmu.compare_exchange(cell, entry, Descriptor::EMPTY) {
            Ok(()) => return Some(entry.address()),
            Err(now) => entry = now,
        }
    }
    None
}

/// Marks the page whose frame is `frame` as on its way; whether it has that frame. The state is locked for writing.
pub(super) fn start_migration<M: Stores>(mmu: &M, cell: &M::Cell, frame: PhysAddr) -> bool {
    mmu.compare_exchange(cell, Descriptor(frame.0 | HERE), Descriptor(frame.0)).is_ok()
}

/// Gives the page that was on its way the frame `to`. The state is locked since, and a barrier has come after the
/// stores to a new frame.
pub(super) fn end_migration<M: Stores>(mmu: &M, cell: &M::Cell, to: PhysAddr) {
    mmu.store(cell, Descriptor(to.0 | HERE));
}

/// Between the change of an object and the look at the tables that map it; and between the link of such a table, or of
/// a block, and the look at the object.
#[inline(always)]
pub(in super::super) fn order() {
    fence(Ordering::SeqCst);
}
