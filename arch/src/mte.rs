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

#[cfg(target_os = "none")]
mod metal {
    use core::arch::asm;

    use crate::addr::{PAGE_SIZE, VirtAddr};
    use crate::memory::branch;

    /// Bytes whose tags one LDGM or STGM accesses.
    #[inline(always)]
    fn bytes_at_once() -> u64 {
        let gmid: u64;
        // SAFETY: the register exists where tags do, and reading it has no effect. GMID_EL1.BS, bits 3:0.
        unsafe { asm!("mrs {0}, s3_1_c0_c0_4", out(reg) gmid, options(nomem, nostack, preserves_flags)) };
        4 << (gmid & 0xf)
    }

    #[inline(always)]
    pub(super) unsafe fn zero_page_tags(page: VirtAddr) {
        // SAFETY: the page is the caller's. Four at once: a page has at least 16 such blocks, as the largest has 256
        // bytes.
        unsafe {
            asm!(
                ".arch_extension memtag",
                "2: stgm xzr, [{at}]",
                "add {at}, {at}, {step}",
                "stgm xzr, [{at}]",
                "add {at}, {at}, {step}",
                "stgm xzr, [{at}]",
                "add {at}, {at}, {step}",
                "stgm xzr, [{at}]",
                "add {at}, {at}, {step}",
                "tst {at}, #{PAGE_MASK}",
                "b.ne 2b",
                ".arch_extension nomemtag",
                at = inout(reg) page.0 => _,
                step = in(reg) bytes_at_once(),
                PAGE_MASK = const PAGE_SIZE - 1,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    pub(super) unsafe fn copy_page_tags(to: VirtAddr, from: VirtAddr) {
        // SAFETY: the pages are the caller's.
        unsafe {
            asm!(
                ".arch_extension memtag",
                "2: ldgm {tags}, [{from}]",
                "stgm {tags}, [{to}]",
                "add {from}, {from}, {step}",
                "add {to}, {to}, {step}",
                "tst {to}, #{PAGE_MASK}",
                "b.ne 2b",
                ".arch_extension nomemtag",
                from = inout(reg) from.0 => _,
                to = inout(reg) to.0 => _,
                tags = out(reg) _,
                step = in(reg) bytes_at_once(),
                PAGE_MASK = const PAGE_SIZE - 1,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    pub(super) unsafe fn zero_page_and_tags(page: VirtAddr) {
        if crate::patched_branch!(branch::MOPS) {
            // SAFETY: the page is the caller's. The tag is that of the address, which bits 59:56 hold.
            unsafe {
                asm!(
                    ".arch_extension memtag",
                    ".arch_extension mops",
                    "setgp [{at}]!, {bytes}!, xzr",
                    "setgm [{at}]!, {bytes}!, xzr",
                    "setge [{at}]!, {bytes}!, xzr",
                    ".arch_extension nomops",
                    ".arch_extension nomemtag",
                    at = inout(reg) page.with_tag(super::Tag::ZERO).0 => _,
                    bytes = inout(reg) PAGE_SIZE => _,
                    options(nostack),
                );
            }
        } else if crate::patched_branch!(branch::DC_ZVA) {
            let dczid = crate::sysreg::read_dczid_el0();
            // SAFETY: the page is the caller's. It has a multiple of eight blocks, but where these are of 1 KiB, or 2 KiB,
            // which is the architecture's largest: a multiple of two.
            unsafe {
                asm!(
                    ".arch_extension memtag",
                    "cmp {step}, #512",
                    "b.hi 3f",
                    "2:",
                    ".rept 8",
                    "dc gzva, {at}",
                    "add {at}, {at}, {step}",
                    ".endr",
                    "tst {at}, #{PAGE_MASK}",
                    "b.ne 2b",
                    "b 4f",
                    "3:",
                    ".rept 2",
                    "dc gzva, {at}",
                    "add {at}, {at}, {step}",
                    ".endr",
                    "tst {at}, #{PAGE_MASK}",
                    "b.ne 3b",
                    "4:",
                    ".arch_extension nomemtag",
                    at = inout(reg) page.with_tag(super::Tag::ZERO).0 => _,
                    step = in(reg) 4_u64 << (dczid & 0xf),
                    PAGE_MASK = const PAGE_SIZE - 1,
                    options(nostack),
                );
            }
        } else {
            // SAFETY: the page is the caller's.
            unsafe {
                page.as_ptr::<u8>().write_bytes(0, PAGE_SIZE);
                zero_page_tags(page);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn set_tags(start: VirtAddr, bytes: u64) {
        // SAFETY: the granules are the caller's. One by hand where their number is odd, then pairs, eight at once.
        unsafe {
            asm!(
                ".arch_extension memtag",
                "tbz {bytes}, #4, 2f",
                "stg {at}, [{at}], #16",
                "sub {bytes}, {bytes}, #16",
                "2: tbz {bytes}, #5, 3f",
                "st2g {at}, [{at}], #32",
                "sub {bytes}, {bytes}, #32",
                "3: tbz {bytes}, #6, 4f",
                "st2g {at}, [{at}], #32",
                "st2g {at}, [{at}], #32",
                "sub {bytes}, {bytes}, #64",
                "4: tbz {bytes}, #7, 6f",
                "st2g {at}, [{at}], #32",
                "st2g {at}, [{at}], #32",
                "st2g {at}, [{at}], #32",
                "st2g {at}, [{at}], #32",
                "sub {bytes}, {bytes}, #128",
                "b 6f",
                "5:",
                ".rept 8",
                "st2g {at}, [{at}], #32",
                ".endr",
                "sub {bytes}, {bytes}, #256",
                "6: cbnz {bytes}, 5b",
                ".arch_extension nomemtag",
                at = inout(reg) start.0 => _,
                bytes = inout(reg) bytes => _,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    pub(super) unsafe fn load_tag(address: VirtAddr) -> VirtAddr {
        let tagged: u64;
        // SAFETY: the address is mapped, by the caller's contract.
        unsafe {
            asm!(
                ".arch_extension memtag",
                "ldg {tagged}, [{at}]",
                ".arch_extension nomemtag",
                at = in(reg) address.0,
                tagged = inout(reg) address.0 => tagged,
                options(nostack, preserves_flags, readonly),
            );
        }
        VirtAddr(tagged)
    }
}

/// Each thread of the host has tags of its own, by the address of their granule; each function records its name.
#[cfg(not(target_os = "none"))]
mod metal {
    extern crate std;

    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::{GRANULE, Tag};
    use crate::addr::{PAGE_SIZE, VirtAddr};
    use crate::recorded;

    std::thread_local! {
        /// Those that are not zero, by the number of the granule.
        static TAGS: RefCell<BTreeMap<u64, Tag>> = const { RefCell::new(BTreeMap::new()) };
    }

    const fn granule(address: VirtAddr) -> u64 {
        address.canonical().0 / GRANULE
    }

    fn get(granule: u64) -> Tag {
        TAGS.with_borrow(|tags| tags.get(&granule).copied().unwrap_or(Tag::ZERO))
    }

    fn set(start: VirtAddr, bytes: u64, tag: impl Fn(u64) -> Tag) {
        for index in 0..bytes / GRANULE {
            let (granule, tag) = (granule(start) + index, tag(index));
            TAGS.with_borrow_mut(|tags| match tag {
                Tag::ZERO => tags.remove(&granule),
                other => tags.insert(granule, other),
            });
        }
    }

    pub(super) unsafe fn zero_page_tags(page: VirtAddr) {
        set(page, PAGE_SIZE as u64, |_| Tag::ZERO);
        recorded::note("stgm");
    }

    pub(super) unsafe fn copy_page_tags(to: VirtAddr, from: VirtAddr) {
        set(to, PAGE_SIZE as u64, |index| get(granule(from) + index));
        recorded::note("ldgm, stgm");
    }

    pub(super) unsafe fn zero_page_and_tags(page: VirtAddr) {
        // SAFETY: the page is the caller's.
        unsafe { crate::memory::zero_page(page) };
        set(page, PAGE_SIZE as u64, |_| Tag::ZERO);
        recorded::note("dc gzva");
    }

    pub(super) unsafe fn set_tags(start: VirtAddr, bytes: u64) {
        set(start, bytes, |_| Tag::of(start));
        recorded::note("stg");
    }

    pub(super) unsafe fn load_tag(address: VirtAddr) -> VirtAddr {
        address.with_tag(get(granule(address)))
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
