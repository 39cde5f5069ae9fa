//! Looks at a last-level entry: [`Glimpse`] without the lock of its table, [`LockedEntry`] under it.
//!
//! Software changes an entry under the lock of its table, and may need several stores for one change. A look without
//! the lock falls between them, and finds an entry empty whose page is there all the time:
//!
//! ```text
//!   copy on write                                 a fault on another CPU
//!     lock the table
//!     empty the entry                               the entry is empty: SIGBUS, "absent"?
//!     invalidate (Arm ARM D8.17.1)
//!     store the entry of the copy
//!     unlock                                        lock the table: the page is there
//! ```
//! So a [`Glimpse`] decides only what is tried next: each attempt loads the entry again under the lock, and fails where
//! another CPU was faster. An answer is formed of a [`LockedEntry`], which exists only while the lock is held:
//!
//! - why a fault is [`Denied`](super::denied::Denied), and why a pager is asked (`userfault/fault.rs`);
//! - that a page is absent, or of a kind: [`Seen`](super::pagemap::Seen) (`pagemap`, `smaps`, `mincore`, footprints), the
//!   categories of `PAGEMAP_SCAN`, the guard that a futex must not be in.
//!
//! Accesses of the kernel's (`uaccess`, `process_vm_readv`, futexes) answer by a fault of theirs. Entries of an object
//! need no second look: each change of one is a single compare-exchange, so that none passes through another state
//! (`shmem/pages.rs`).
//!
//! `kernel/loom` compiles this file, and lets looks of both kinds meet a [copy](replace_frame).

use core::marker::PhantomData;

use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{Mmu, Stores};

use super::table_lock::TableGuard;
use crate::lab;
use crate::sync::rank::Rank;

/// An entry as it was at some moment. Its page may be there nevertheless: see the [module](self).
#[derive(Clone, Copy)]
pub(super) struct Glimpse(Descriptor);

impl Glimpse {
    /// Loads the entry in `cell`.
    #[inline(always)]
    pub(super) fn at<M: Mmu>(mmu: &M, cell: &M::Cell) -> Self {
        Self(mmu.load(cell))
    }

    /// This look as an answer: [`ANSWER_AT_GLIMPSE`](crate::lab::ANSWER_AT_GLIMPSE) takes the second look away. `None`
    /// without that switch.
    #[inline(always)]
    pub(super) fn believed(self) -> Option<LockedEntry<'static>> {
        lab::is_on!(ANSWER_AT_GLIMPSE).then_some(LockedEntry { entry: self.0, locked: PhantomData })
    }

    /// Whether a page may have to be installed.
    #[inline(always)]
    pub(super) fn is_empty(self) -> bool {
        self.0 == Descriptor::EMPTY
    }

    /// Whether a page may be mapped over what may be there.
    pub(super) fn may_be_filled(self) -> bool {
        Fillable::over(self.0).is_some()
    }

    /// Whether a store may need a copy of a page.
    pub(super) fn may_be_copied(self) -> bool {
        self.0.is_valid() && self.refuses_stores()
    }

    /// Whether a store may need more than the access flag and dirt.
    #[inline(always)]
    pub(super) fn refuses_stores(self) -> bool {
        !self.0.may_be_written()
    }
}

/// An entry whose table is locked: it is what the last change has made it, and stays so but for flags that the hardware
/// sets.
#[derive(Clone, Copy)]
pub(super) struct LockedEntry<'l> {
    entry: Descriptor,
    locked: PhantomData<&'l ()>,
}

impl<const RANK: Rank> TableGuard<'_, RANK> {
    /// Loads the entry in `cell`, which is one of the locked table.
    #[inline(always)]
    pub(super) fn entry<M: Mmu>(&self, mmu: &M, cell: &M::Cell) -> LockedEntry<'_> {
        LockedEntry { entry: mmu.load(cell), locked: PhantomData }
    }
}

impl LockedEntry<'_> {
    /// The entry.
    #[inline(always)]
    pub(super) fn descriptor(self) -> Descriptor {
        self.entry
    }

    /// The entry in another form, such as that of a page for one of a block.
    #[inline(always)]
    pub(super) fn formed(self, form: impl FnOnce(Descriptor) -> Descriptor) -> Self {
        Self { entry: form(self.entry), ..self }
    }

    /// How a page is mapped over it, if a page may be.
    #[inline(always)]
    pub(super) fn fillable(self) -> Option<Fillable> {
        Fillable::over(self.entry)
    }
}

/// An entry that a page may be mapped over: an empty one, or the marker that userfaultfd write-protects the page, which
/// keeps that. The table's lock is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fillable {
    is_protected: bool,
}

impl Fillable {
    #[inline(always)]
    fn over(entry: Descriptor) -> Option<Self> {
        if entry == Descriptor::EMPTY { Some(Self { is_protected: false }) } else { Self::at_marker(entry) }
    }

    #[cold]
    fn at_marker(entry: Descriptor) -> Option<Self> {
        (entry == Descriptor::from(Markers::UFFD_WP)).then_some(Self { is_protected: true })
    }

    /// The entry to store for `new`.
    #[inline(always)]
    pub(super) fn with(self, new: Descriptor) -> Descriptor {
        if self.is_protected { new.uffd_wp() } else { new }
    }
}

/// Replaces the page in `cell` by another, `new`, by break-before-make; `invalidate` completes the invalidation of the
/// old one. The table's lock is held.
#[inline(always)]
pub(super) fn replace_frame<M: Stores>(mmu: &M, cell: &M::Cell, new: Descriptor, invalidate: impl FnOnce()) {
    mmu.store(cell, Descriptor::EMPTY);
    invalidate();
    mmu.store(cell, new);
}
