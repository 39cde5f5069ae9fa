//! A reader of a block does not notice its split.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::smp::{self, Cpu, this_cpu};
use granule::trap::probe;
use granule_arch::addr::VirtAddr;
use granule_arch::wait;

use super::{BLOCK_PAGES, Block, PAGE, make_invalid, make_valid};
use crate::harness::{Test, target_test};
use crate::work;

static FIRST: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU32 = AtomicU32::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);

/// Reads the even pages, each of which holds its own number, until it is stopped.
fn read_on(_: &Cpu, _: usize) {
    let first = VirtAddr(FIRST.load(Ordering::Relaxed));
    while STOP.load(Ordering::Acquire) == 0 {
        for page in (0..BLOCK_PAGES).step_by(2) {
            let right = probe::read::<u64>(first + page * PAGE) == Ok(page);
            WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
        }
        ROUNDS.fetch_add(1, Ordering::Release);
        wait::relax();
    }
}

// Where leaves are replaced break-before-make, all of the block is unmapped for a moment.
target_test!(readers_of_other_pages_are_parked_for_a_break, needs("smp stop"), limit(30));
fn readers_of_other_pages_are_parked_for_a_break(t: &mut Test) {
    readers_of_other_pages_notice_nothing(t);
}

target_test!(readers_of_other_pages_notice_nothing, needs("smp split"), limit(30));
fn readers_of_other_pages_notice_nothing(t: &mut Test) {
    let others = smp::online().without(this_cpu().id);
    WRONG.store(0, Ordering::Relaxed);
    for _ in 0..8 {
        let Some(block) = Block::fresh(t) else { return };
        for page in 0..BLOCK_PAGES {
            // SAFETY: the test's own memory.
            t.equal("written", unsafe { probe::write(block.page(page), page) }, Ok(()));
        }
        FIRST.store(block.page(0).0, Ordering::Relaxed);
        STOP.store(0, Ordering::Relaxed);
        ROUNDS.store(0, Ordering::Relaxed);
        for id in others.iter() {
            t.equal("started", work::run_on(id, read_on, 0), Ok(()));
        }
        while ROUNDS.load(Ordering::Acquire) == 0 {
            wait::relax();
        }
        for page in (1..BLOCK_PAGES).step_by(2) {
            t.ok("made invalid", make_invalid(block.page(page), 1));
        }
        STOP.store(1, Ordering::Release);
        work::wait_for(others);
        t.ok("made valid", make_valid(block.page(0), BLOCK_PAGES));
        block.free(t);
    }
    t.equal("reads that went wrong", WRONG.load(Ordering::Relaxed), 0);
}
