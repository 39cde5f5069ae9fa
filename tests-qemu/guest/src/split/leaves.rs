//! Which leaves there are before and after: only those at the ends of a range are split, to the largest pieces that
//! fit, and every other page translates as before.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use granule::mm::kernel::mmu::{LinearView, Metal};
use granule::mm::kernel::set_memory::SetMemoryError;
use granule::mm::tlb::KernelTlb;
use granule::trap::probe;
use granule_arch::descriptor::bits;
use granule_arch::esr::FaultStatus;
use granule_pgtable::{Change, Lazy, PageRange, RefuseSplits, Translation};

use super::{BLOCK_PAGES, Block, GIB, GROUP_PAGES, MIB, PAGE, faults, is_readable, make_invalid, make_valid, space};
use crate::harness::{Test, target_test};

/// Bytes of a contiguous group of pages, of a block, of a group of blocks.
const GROUP: u64 = GROUP_PAGES * PAGE;
const BLOCK: u64 = 2 * MIB;
const BLOCKS: u64 = 16 * BLOCK;

/// A hash of the translations of these pages, without what a split changes: the leaf's size, and the bits that encode
/// it. The translations would not fit on the stack.
fn fingerprint(block: &Block, pages: impl Iterator<Item = u64>) -> u64 {
    let attributes = |found: &Translation| found.descriptor.0 & !(bits::ADDRESS | bits::CONTIGUOUS | bits::TABLE);
    let words =
        pages.filter_map(|page| block.translation(page)).flat_map(|found| [found.physical.0, attributes(&found)]);
    // FNV-1a, a word at a time.
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(29))
}

/// Makes `pages` pages from `first` on invalid and valid again, and looks at every `step`th page and those at the ends.
fn change_and_compare(t: &mut Test, block: &Block, first: u64, pages: u64, all: u64, step: u64) {
    let looked_at = || {
        let ends = [first, first + pages].into_iter().flat_map(|end| [end.saturating_sub(1), end]);
        (0..all).step_by(step as usize).chain(ends.filter(move |page| *page < all))
    };
    let sum = |t: &mut Test, what: &str, changed: bool| {
        let mut wrong = 0;
        for page in looked_at() {
            let inside = (first..first + pages).contains(&page);
            let right = if inside && changed { faults(block.page(page)) } else { is_readable(block.page(page)) };
            wrong += u32::from(!right);
        }
        t.equal(what, wrong, 0);
    };
    let before = fingerprint(block, looked_at());
    t.ok("made invalid", make_invalid(block.page(first), pages));
    sum(t, "pages that are wrong while they are away", true);
    t.ok("made valid", make_valid(block.page(first), pages));
    sum(t, "pages that are wrong afterwards", false);
    t.equal("all translate as before", fingerprint(block, looked_at()), before);
}

/// The sizes of the leaves at some pages.
fn sizes<const N: usize>(block: &Block, pages: [u64; N]) -> [u64; N] {
    pages.map(|page| block.translation(page).map_or(0, |found| found.leaf_size))
}

target_test!(a_page_in_a_block_leaves_the_rest_in_groups, needs("split"));
fn a_page_in_a_block_leaves_the_rest_in_groups(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let page = 5 * GROUP_PAGES + 3;
    change_and_compare(t, &block, page, 1, BLOCK_PAGES, 1);
    let leaves = sizes(&block, [0, page - 4, page - 1, page, page + 1, page + 13, BLOCK_PAGES - 1]);
    t.equal("leaves", leaves, [GROUP, GROUP, PAGE, PAGE, PAGE, GROUP, GROUP]);
    block.free(t);
}

target_test!(whole_leaves_are_changed_and_not_split, needs("split"));
fn whole_leaves_are_changed_and_not_split(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let groups = BLOCK_PAGES / 2 - GROUP_PAGES..BLOCK_PAGES / 2 + GROUP_PAGES;
    change_and_compare(t, &block, 0, BLOCK_PAGES, BLOCK_PAGES, 1);
    t.equal("a block", sizes(&block, [0, BLOCK_PAGES - 1]), [BLOCK; 2]);
    change_and_compare(t, &block, groups.start, groups.end - groups.start, BLOCK_PAGES, 1);
    t.equal("groups", sizes(&block, [0, groups.start, groups.end - 1, BLOCK_PAGES - 1]), [GROUP; 4]);
    block.free(t);
}

target_test!(a_range_across_two_blocks_is_split_at_its_ends_only, needs("split"));
fn a_range_across_two_blocks_is_split_at_its_ends_only(t: &mut Test) {
    let found = Block::find(2, |leaf| matches!(leaf >> 20, 2 | 32));
    t.check("four blocks that are not split", found.is_some());
    let Some(block) = found else { return };
    change_and_compare(t, &block, BLOCK_PAGES - 1, 2 * BLOCK_PAGES + 2, 4 * BLOCK_PAGES, 7);
    let ends = [BLOCK_PAGES - 2, BLOCK_PAGES - 1, 3 * BLOCK_PAGES, 3 * BLOCK_PAGES + 1];
    t.equal("at the ends", sizes(&block, ends), [PAGE; 4]);
    t.equal("in the middle", sizes(&block, [BLOCK_PAGES, 3 * BLOCK_PAGES - 1]), [BLOCK; 2]);
    block.free(t);
}

// Two levels at once. The machine has several GiB, so that other tests leave one whole.
target_test!(a_page_in_a_gigabyte_leaves_the_rest_in_the_largest_pieces, machines("n2-split"));
fn a_page_in_a_gigabyte_leaves_the_rest_in_the_largest_pieces(t: &mut Test) {
    // 256 MiB at once, so that a few tries reach every GiB.
    let found = Block::find(7, |leaf| leaf == GIB);
    t.check("a GiB that is not split", found.is_some());
    let Some(block) = found else { return };
    let pages = BLOCK_PAGES << 7;
    let page = 70 * BLOCK_PAGES + 5 * GROUP_PAGES + 3;
    change_and_compare(t, &block, page, 1, pages, 509);
    let leaves =
        [page, page ^ 1, page ^ GROUP_PAGES, page + BLOCK_PAGES, page - BLOCK_PAGES, page + 20 * BLOCK_PAGES, 0];
    t.equal("leaves", sizes(&block, leaves), [PAGE, PAGE, GROUP, BLOCK, BLOCK, BLOCKS, BLOCKS]);
    block.free(t);
}

target_test!(a_page_of_an_invalid_block_comes_back_alone, needs("split"));
fn a_page_of_an_invalid_block_comes_back_alone(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    t.ok("all made invalid", make_invalid(block.page(0), BLOCK_PAGES));
    let page = 9 * GROUP_PAGES + 7;
    t.ok("one made valid", make_valid(block.page(page), 1));
    let wrong = (0..BLOCK_PAGES).filter(|&other| is_readable(block.page(other)) != (other == page)).count();
    t.equal("pages that are wrong", wrong, 0);
    t.equal("leaves", sizes(&block, [0, page, page + 1, page + GROUP_PAGES]), [GROUP, PAGE, PAGE, GROUP]);
    t.ok("all made valid", make_valid(block.page(0), BLOCK_PAGES));
    let wrong = (0..BLOCK_PAGES).filter(|&other| !is_readable(block.page(other))).count();
    t.equal("pages that are still away", wrong, 0);
    block.free(t);
}

target_test!(a_read_only_page_in_a_block_refuses_writes_and_only_it, needs("split"));
fn a_read_only_page_in_a_block_refuses_writes_and_only_it(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let mmu = Metal(LinearView {});
    let page = 30 * GROUP_PAGES;
    let Some(range) = t.ok("the range", PageRange::from_pages(block.page(page), 2)) else { return };
    // A page that is read-only in the linear map may be code elsewhere: the kernel has no call that makes it writable.
    let make_writable = |lazy: &_| space().tables().get().update(lazy, range, Change::READ_WRITE, RefuseSplits);
    for refused in [true, false] {
        let lazy = Lazy::new(&mmu);
        let flush = if refused {
            t.ok("read-only", space().update_linear(&lazy, range, Change::READ_ONLY))
        } else {
            t.ok("writable again", make_writable(&lazy))
        };
        let Some(flush) = flush else { return };
        lazy.invalidate(&KernelTlb, [flush]);
        let wrong = (0..BLOCK_PAGES).filter(|&other| {
            // SAFETY: memory of the test's own.
            let written = unsafe { probe::write(block.page(other), other) };
            let status = written.err().and_then(|fault| fault.syndrome.abort()).map(|abort| abort.status);
            let inside = (page..page + 2).contains(&other);
            status != (refused && inside).then_some(FaultStatus::Permission)
        });
        t.equal("pages that are wrong", wrong.count(), 0);
    }
    let lazy = Lazy::new(&mmu);
    let read_only = space().update_linear(&lazy, range, Change::READ_ONLY);
    if let Some(flush) = t.ok("read-only again", read_only) {
        lazy.invalidate(&KernelTlb, [flush]);
    }
    let executable = space().update_linear(&lazy, range, Change::EXECUTABLE).map(|_| ());
    t.equal("never executable", executable, Err(SetMemoryError::NeverExecutable(range.start())));
    let writable = space().update_linear(&lazy, range, Change::READ_WRITE).map(|_| ());
    t.equal("nor writable", writable, Err(SetMemoryError::ReadOnly(range.start())));
    if let Some(flush) = t.ok("writable again", make_writable(&lazy)) {
        lazy.invalidate(&KernelTlb, [flush]);
    }
    drop(lazy);
    block.free(t);
}
