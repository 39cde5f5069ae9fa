//! Allocation tags of memory (FEAT_MTE2; Arm ARM D10): four bits for each 16 bytes of memory that is mapped as
//! [`NormalTagged`](crate::descriptor::MemoryType::NormalTagged), compared with bits 59:56 of the address of an access.
//!
//! The functions that access tags need `ID_AA64PFR1_EL1.MTE >= 2` ([`Mte::Tags`](crate::features::Mte)) on every CPU,
//! and access through addresses that are mapped with that type: elsewhere a tag is read as zero, and a write has no
//! effect. They are not checked themselves. Order: a write of tags is ordered with other accesses as a store to
//! the granule is, so a barrier between the contents of a page and its entry is one for the tags as well.
//!
//! On the host they are recorded, and tags are kept beside the memory; nothing is checked against them.

#![allow(unsafe_code, reason = "writes tags by address")]

use crate::addr::VirtAddr;
use crate::machine::mte as metal;

/// Bytes that have one tag.
pub const GRANULE: u64 = 16;
/// The logical tag of an address whose top byte was never set: in the upper half it matches any memory (TCR_EL1.TCMA1).
pub const MATCH_ALL: Tag = Tag(0xf);
/// The first bit of an address's tag.
const SHIFT: u32 = 56;

/// A tag, 0 to 15: of memory, or the logical tag of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tag(u8);

impl Tag {
    /// The tag of memory that was never given another.
    pub const ZERO: Self = Self(0);

    /// The tag with this number; its low four bits count.
    pub const fn new(number: u8) -> Self {
        Self(number & 0xf)
    }

    /// The logical tag of `address`.
    pub const fn of(address: VirtAddr) -> Self {
        Self::new((address.0 >> SHIFT) as u8)
    }

    /// Its number, 0 to 15.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl VirtAddr {
    /// This address with `tag` as its logical tag, which replaces bits 59:56.
    #[inline(always)]
    #[must_use]
    pub const fn with_tag(self, tag: Tag) -> Self {
        Self(self.0 & !(0xf << SHIFT) | (tag.0 as u64) << SHIFT)
    }
}

/// Sets the tags of a page to zero (STGM).
///
/// # Safety
/// `page` is page aligned and mapped writable as Normal-Tagged; no access is checked against its tags now.
#[inline(always)]
pub unsafe fn zero_page_tags(page: VirtAddr) {
    // SAFETY: the caller's contract.
    unsafe { metal::zero_page_tags(page) }
}

/// Zeroes a page, its contents and its tags: at once by SETG* (FEAT_MOPS) or DC GZVA, as the branches of
/// [`crate::memory`] select.
///
/// # Safety
/// As [`zero_page_tags`], and the page is not in use elsewhere now.
#[inline(always)]
pub unsafe fn zero_page_and_tags(page: VirtAddr) {
    // SAFETY: the caller's contract.
    unsafe { metal::zero_page_and_tags(page) }
}

/// Copies the tags of page `from` to page `to` (LDGM, STGM).
///
/// # Safety
/// Both are page aligned and mapped as Normal-Tagged, `to` writable; no access is checked against the tags of `to` now.
#[inline(always)]
pub unsafe fn copy_page_tags(to: VirtAddr, from: VirtAddr) {
    // SAFETY: the caller's contract.
    unsafe { metal::copy_page_tags(to, from) }
}

/// Sets the tags of `bytes` bytes, a multiple of [`GRANULE`], to the logical tag of `start` (STG, ST2G).
///
/// # Safety
/// The range is aligned to [`GRANULE`] and mapped writable as Normal-Tagged. Accesses by another tag fault from then
/// on.
#[inline(always)]
pub unsafe fn set_tags(start: VirtAddr, bytes: u64) {
    debug_assert!(start.is_aligned(GRANULE) && bytes.is_multiple_of(GRANULE));
    // SAFETY: the caller's contract.
    unsafe { metal::set_tags(start, bytes) }
}

/// The tag of the granule at `address` (LDG).
///
/// # Safety
/// `address` is mapped readable.
#[inline(always)]
pub unsafe fn load_tag(address: VirtAddr) -> Tag {
    // SAFETY: the caller's contract.
    Tag::of(unsafe { metal::load_tag(address) })
}

#[cfg(test)]
mod tests {
    use super::{MATCH_ALL, Tag, copy_page_tags, load_tag, set_tags, zero_page_tags};
    use crate::addr::VirtAddr;

    #[test]
    fn a_tag_is_bits_59_to_56_of_an_address() {
        let untagged = VirtAddr(0xffff_8000_1234_5678);
        assert_eq!(Tag::of(untagged), MATCH_ALL);
        assert_eq!(untagged.with_tag(Tag::new(3)), VirtAddr(0xf3ff_8000_1234_5678));
        assert_eq!(Tag::of(untagged.with_tag(Tag::new(0x1a))).number(), 0xa);
        assert_eq!(untagged.with_tag(Tag::new(5)).with_tag(MATCH_ALL), untagged);
    }

    /// Code above this crate is tested by it.
    #[test]
    fn the_host_keeps_a_tag_for_each_granule() {
        let page = VirtAddr(0x7ace_1000);
        // SAFETY: the host accesses no memory for tags.
        unsafe {
            set_tags((page + 32).with_tag(Tag::new(3)), 16);
            copy_page_tags(page + 0x1000, page);
            zero_page_tags(page);
            let tags = [31, 32, 47, 48].map(|offset| load_tag(page + 0x1000 + offset).number());
            assert_eq!((tags, load_tag(page + 32)), ([0, 3, 3, 0], Tag::ZERO));
            zero_page_tags(page + 0x1000);
        }
    }
}
