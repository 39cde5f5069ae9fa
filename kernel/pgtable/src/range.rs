//! A range of whole pages.

use core::fmt;
use core::marker::PhantomData;

use granule_arch::addr::VirtAddr;

use crate::error::Error;
use crate::geometry::{Geometry, Granule4K};

/// Pages of virtual memory, one after the other.
///
/// Having one proves: it starts and ends on a page boundary of `G`, holds at least one page, does not wrap, and lies in
/// one half of the address space (the bits above the translated ones are all 0 or all 1, so no tag is left in them). It
/// proves nothing about what is mapped there, nor about its owner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageRange<G: Geometry = Granule4K> {
    start: VirtAddr,
    size: u64,
    geometry: PhantomData<G>,
}

impl<G: Geometry> PageRange<G> {
    /// The `size` bytes from `start` on.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::Empty`], [`Error::Wraps`], [`Error::NotCanonical`].
    pub fn new(start: VirtAddr, size: u64) -> Result<Self, Error> {
        for value in [start.0, size] {
            if value & (G::PAGE_SIZE - 1) != 0 {
                return Err(Error::Unaligned(value));
            }
        }
        if size == 0 {
            return Err(Error::Empty(start));
        }
        // The last byte, not the end: the last page of the address space is a page like any other.
        let Some(last) = start.0.checked_add(size - 1) else {
            return Err(Error::Wraps { start, size });
        };
        let half = |address: u64| address.cast_signed() >> G::VA_BITS;
        if half(start.0) != half(last) || !matches!(half(start.0), 0 | -1) {
            return Err(Error::NotCanonical { start, size });
        }
        Ok(Self { start, size, geometry: PhantomData })
    }

    /// The pages from `start` up to `end`; `None` unless both are page aligned, in this order, and in the lower half.
    #[inline(always)]
    pub const fn lower(start: VirtAddr, end: VirtAddr) -> Option<Self> {
        let are_aligned = (start.0 | end.0) & (G::PAGE_SIZE - 1) == 0;
        if are_aligned && start.0 < end.0 && end.0 <= 1 << G::VA_BITS {
            Some(Self { start, size: end.0 - start.0, geometry: PhantomData })
        } else {
            None
        }
    }

    /// The `pages` pages from `start` on.
    ///
    /// # Errors
    /// As [`PageRange::new`]; a count whose bytes exceed 64 bits is [`Error::Wraps`].
    pub fn from_pages(start: VirtAddr, pages: usize) -> Result<Self, Error> {
        match (pages as u64).checked_mul(G::PAGE_SIZE) {
            Some(size) => Self::new(start, size),
            None => Err(Error::Wraps { start, size: u64::MAX }),
        }
    }

    /// The `pages` pages from `start` on, where they are whole pages of this range, and at least one.
    #[inline(always)]
    pub const fn part(self, start: VirtAddr, pages: u64) -> Option<Self> {
        let offset = start.0.wrapping_sub(self.start.0);
        let aligned = offset & (G::PAGE_SIZE - 1) == 0;
        // In pages: so nothing is left to compare for a single one.
        let (first, all) = (offset >> G::PAGE_SHIFT, self.size >> G::PAGE_SHIFT);
        if aligned && first < all && pages != 0 && pages <= all - first {
            Some(Self { start, size: pages << G::PAGE_SHIFT, geometry: PhantomData })
        } else {
            None
        }
    }

    /// The first address.
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// The address after the last; 0 where the range ends with the address space.
    pub const fn end(self) -> VirtAddr {
        VirtAddr(self.start.0.wrapping_add(self.size))
    }

    /// The last address.
    pub const fn last(self) -> VirtAddr {
        VirtAddr(self.start.0 + (self.size - 1))
    }

    /// Bytes in it; at least a page.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Pages in it; at least one.
    pub const fn pages(self) -> usize {
        (self.size >> G::PAGE_SHIFT) as usize
    }

    /// Whether `address` is in it.
    pub const fn contains(self, address: VirtAddr) -> bool {
        address.0.wrapping_sub(self.start.0) < self.size
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        let start = self.start.min(other.start);
        let last = self.last().max(other.last());
        Self { start, size: last.0 - start.0 + 1, geometry: PhantomData }
    }

    /// The `size` bytes from `start` on, which the caller knows to be part of a range.
    #[inline(always)]
    pub(crate) fn trusted(start: VirtAddr, size: u64) -> Self {
        debug_assert!(Self::new(start, size).is_ok());
        Self { start, size, geometry: PhantomData }
    }
}

impl<G: Geometry> fmt::Debug for PageRange<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}-{:#018x}", self.start.0, self.end().0)
    }
}
