//! The invalidation that a change needs, for its caller to issue.

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::LevelHint;

use crate::geometry::{Geometry, Granule4K};
use crate::range::PageRange;

/// Whether table descriptors were unlinked, so that walk caches must be invalidated as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tables {
    /// Only leaves changed: a last-level invalidation is enough.
    Kept,
    /// Tables were unlinked: every level must go, before they are freed.
    Unlinked,
}

/// Translations that a TLB may hold and that are no longer true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalidation<G: Geometry = Granule4K> {
    /// The pages whose translation changed, from the first to the last.
    pub range: PageRange<G>,
    /// Whether walk caches must go too.
    pub tables: Tables,
    /// The level of every changed leaf, where all were of one: a hint that must not be given unless it is certain,
    /// because a wrong one may invalidate nothing. After a live split TLBs may hold the larger leaf: then it is not
    /// certain.
    pub level: Option<LevelHint>,
}

impl<G: Geometry> Invalidation<G> {
    /// Of one page, whose leaf may be of any level.
    #[inline(always)]
    pub fn page(page: VirtAddr) -> Self {
        Self { range: PageRange::trusted(page, G::PAGE_SIZE), tables: Tables::Kept, level: None }
    }

    /// Of the table that was linked for `start` and is no more, so that its frame may become another one. One page is
    /// enough (Arm ARM D8.17), whatever the table's entries are:
    ///
    /// - Walk caches hold the table's descriptor once for all that it translates: a TLBI by any address in there takes it,
    ///   if it is for all levels.
    /// - Without FEAT_nTLBPA walk caches may also hold each entry of the table by the physical address where it was read
    ///   (R_BKKRB), and use it again when the frame is a table for other addresses. "Any TLB maintenance instruction that
    ///   applies to a PE with the context information that is relevant to the translation table entry" takes all that is
    ///   held in this way (R_TJQVP): no address is among the context (R_NWYRD), so this one does for each of the 512
    ///   entries, and ID_AA64MMFR1_EL1.nTLBPA need not be read. It comes once no link leads to the table and takes what walk
    ///   caches hold of the link, so that none of the entries is read again. The model holds links by address alone: one
    ///   that is left over when the table is freed stands for all of its entries.
    /// - TLBs may hold leaves of the table by their virtual addresses. They translate as the leaf in the place of the table
    ///   does, and go with the next change of that, which gives no level ([`Flush::without_level`]): with one, leaves of
    ///   another size would stay.
    #[inline(always)]
    pub(crate) fn unlinked_at(start: VirtAddr) -> Self {
        Self { tables: Tables::Unlinked, ..Self::page(start) }
    }
}

/// The invalidation that a change needs; none where no entry that was valid changed.
///
/// Issue it with [`crate::Lazy::invalidate`], several at once for one pair of barriers, or leave it to a later
/// one with [`Flush::defer`]. Until it is issued, any CPU may still use the old translations.
#[must_use = "until the invalidation is issued, any CPU may still use the old permissions"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flush<G: Geometry = Granule4K>(Option<Invalidation<G>>);

impl<G: Geometry> From<Invalidation<G>> for Flush<G> {
    /// For changes of several ranges, of which the caller knows the common invalidation.
    #[inline(always)]
    fn from(owed: Invalidation<G>) -> Self {
        Self(Some(owed))
    }
}

impl<G: Geometry> Flush<G> {
    /// Nothing to invalidate.
    pub const NONE: Self = Self(None);

    pub(crate) const fn new(invalidation: Option<Invalidation<G>>) -> Self {
        Self(invalidation)
    }

    /// This flush without the level: for leaves that may have been split while they were in use.
    #[inline(always)]
    pub(crate) fn without_level(self) -> Self {
        Self(self.0.map(|owed| Invalidation { level: None, ..owed }))
    }

    /// The invalidation that is needed.
    pub const fn invalidation(self) -> Option<Invalidation<G>> {
        self.0
    }

    /// Whether none is needed.
    pub const fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Leaves it to the caller: for the `…_noflush` contracts.
    pub const fn defer(self) {}
}
