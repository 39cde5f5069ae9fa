//! `order` for builds that do not check it, and for `kernel/loom`.

use crate::sync::rank::Sleeping;

/// Nothing.
#[inline(always)]
pub(crate) const fn acquire(rank: Sleeping) -> Sleeping {
    rank
}

/// Nothing.
#[inline(always)]
pub(crate) const fn note(_: Sleeping) {}

/// Nothing.
#[inline(always)]
pub(crate) const fn release(_: Sleeping) {}
