//! Two CPUs share a block, page by page: each looks, as soon as its call has returned, whether its page has changed and
//! no other has.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::smp::{self, Cpu, CpuId, CpuSet, this_cpu};
use granule_arch::addr::VirtAddr;
use granule_arch::wait;

use super::{BLOCK_PAGES, Block, GROUP_PAGES, PAGE, faults, is_readable, is_refused, make_invalid};
use crate::harness::{Test, target_test};
use crate::work;

/// State that both CPUs share.
static FIRST: AtomicU64 = AtomicU64::new(0);
static PAGES: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU32 = AtomicU32::new(0);
/// How far they are.
static STEP: AtomicU64 = AtomicU64::new(0);
/// Arrivals at a meeting, counted up for ever.
static MET: AtomicU64 = AtomicU64::new(0);
/// Pages that were not as they must be.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn page(index: u64) -> VirtAddr {
    VirtAddr(FIRST.load(Ordering::Relaxed)) + index * PAGE
}

fn expect(holds: bool) {
    WRONG.fetch_add(u32::from(!holds), Ordering::Relaxed);
}

/// Takes the page away, or is refused that, and looks at it.
fn change(index: u64) {
    let result = make_invalid(page(index), 1);
    if REFUSED.load(Ordering::Relaxed) != 0 {
        expect(result.is_err() && is_readable(page(index)));
    } else {
        expect(result.is_ok() && faults(page(index)));
    }
}

/// Whether a page is as its owner's call must have left it.
fn expect_changed(index: u64) {
    expect(if REFUSED.load(Ordering::Relaxed) != 0 { is_readable(page(index)) } else { faults(page(index)) });
}

/// Changes every other page, when it is its turn.
fn take_turns(_: &Cpu, me: usize) {
    let pages = PAGES.load(Ordering::Relaxed);
    for step in (me as u64..pages).step_by(2) {
        while STEP.load(Ordering::Acquire) != step {
            wait::relax();
        }
        // The other CPU has changed the page before this one, and none after it.
        if step > 0 {
            expect_changed(step - 1);
        }
        expect(is_readable(page(step)));
        change(step);
        if step + 1 < pages {
            expect(is_readable(page(step + 1)));
        }
        STEP.store(step + 1, Ordering::Release);
    }
}

/// Waits for the other CPU.
fn meet() {
    let arrived = MET.fetch_add(1, Ordering::AcqRel) + 1;
    while MET.load(Ordering::Acquire) < arrived.next_multiple_of(2) {
        wait::relax();
    }
}

/// Changes one half of each group while the other CPU changes the other half.
fn take_halves(_: &Cpu, me: usize) {
    let half = GROUP_PAGES / 2;
    for group in (0..PAGES.load(Ordering::Relaxed)).step_by(GROUP_PAGES as usize) {
        meet();
        let own = group + half * me as u64;
        for index in own..own + half {
            change(index);
            if index + 1 < own + half {
                expect(is_readable(page(index + 1)));
            }
        }
        meet();
        (group..group + GROUP_PAGES).for_each(expect_changed);
    }
}

/// Has this CPU and another take halves of every group of the block at once; returns how many pages were found as they
/// must not be.
pub(crate) fn share(t: &mut Test, block: &Block) -> u32 {
    on_two(t, block, 0, BLOCK_PAGES, take_halves)
}

/// Runs `work` on this CPU and another; returns how many pages were found as they must not be.
fn on_two(t: &mut Test, block: &Block, first: u64, pages: u64, work: fn(&Cpu, usize)) -> u32 {
    let Some(other) = another() else { return 0 };
    FIRST.store(block.page(first).0, Ordering::Relaxed);
    PAGES.store(pages, Ordering::Relaxed);
    REFUSED.store(u32::from(is_refused(block)), Ordering::Relaxed);
    for count in [&STEP, &MET] {
        count.store(0, Ordering::Relaxed);
    }
    WRONG.store(0, Ordering::Relaxed);
    t.equal("started", work::run_on(other, work, 1), Ok(()));
    work(this_cpu(), 0);
    work::wait_for(CpuSet::of(other));
    let wrong = WRONG.load(Ordering::Relaxed);
    t.equal("pages that were not as they must be", wrong, 0);
    wrong
}

fn another() -> Option<CpuId> {
    smp::online().without(this_cpu().id).iter().next()
}

/// Splits the block, and leaves its groups of pages whole but for the first.
fn split_into_groups(t: &mut Test, block: &Block) {
    let result = make_invalid(block.page(0), GROUP_PAGES);
    t.equal("refused", result.is_err(), is_refused(block));
}

target_test!(a_block_is_handed_over_page_by_page, needs("smp"), limit(30));
fn a_block_is_handed_over_page_by_page(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    on_two(t, &block, 0, BLOCK_PAGES, take_turns);
    block.free(t);
}

target_test!(a_group_is_handed_over_page_by_page, needs("smp"));
fn a_group_is_handed_over_page_by_page(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    split_into_groups(t, &block);
    on_two(t, &block, GROUP_PAGES, GROUP_PAGES, take_turns);
    let beyond = [2 * GROUP_PAGES, BLOCK_PAGES - 1].map(|page| is_readable(block.page(page)));
    t.equal("pages of no part in it", beyond, [true; 2]);
    block.free(t);
}

// In each group of pages both come to split it.
target_test!(a_group_is_split_by_two_owners_at_once, needs("smp"), limit(30));
fn a_group_is_split_by_two_owners_at_once(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    split_into_groups(t, &block);
    on_two(t, &block, GROUP_PAGES, BLOCK_PAGES - GROUP_PAGES, take_halves);
    block.free(t);
}

// And here to split the block as well.
target_test!(a_block_is_split_by_two_owners_at_once, needs("smp"), limit(30));
fn a_block_is_split_by_two_owners_at_once(t: &mut Test) {
    for _ in 0..16 {
        let Some(block) = Block::fresh(t) else { return };
        on_two(t, &block, 0, GROUP_PAGES, take_halves);
        block.free(t);
    }
}
