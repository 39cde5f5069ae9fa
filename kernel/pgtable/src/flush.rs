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

/// What a TLB may hold that is no longer true.
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

    /// Of the table that was linked for `start` and is no more. Walk caches hold its descriptor once for all that it
    /// translates, and an invalidation by any address in there takes it: one page is enough.
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

    /// The same without the level: for leaves that may have been split while they were in use.
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
