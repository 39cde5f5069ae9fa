//! The instructions that access tags.

#![allow(unsafe_code, reason = "accesses tags and the registers of their check")]

use core::arch::asm;

use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::memory::branch;
use crate::mte::Tag;

/// Bytes whose tags one LDGM or STGM accesses.
#[inline(always)]
fn bytes_at_once() -> u64 {
    let gmid: u64;
    // SAFETY: the register exists where tags do, and reading it has no effect. GMID_EL1.BS, bits 3:0.
    unsafe { asm!("mrs {0}, s3_1_c0_c0_4", out(reg) gmid, options(nomem, nostack, preserves_flags)) };
    4 << (gmid & 0xf)
}

#[inline(always)]
pub(crate) unsafe fn zero_page_tags(page: VirtAddr) {
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
pub(crate) unsafe fn copy_page_tags(to: VirtAddr, from: VirtAddr) {
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
pub(crate) unsafe fn zero_page_and_tags(page: VirtAddr) {
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
                at = inout(reg) page.with_tag(Tag::ZERO).0 => _,
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
                at = inout(reg) page.with_tag(Tag::ZERO).0 => _,
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
pub(crate) unsafe fn set_tags(start: VirtAddr, bytes: u64) {
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
pub(crate) unsafe fn load_tag(address: VirtAddr) -> VirtAddr {
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
