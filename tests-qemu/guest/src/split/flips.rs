//! All CPUs change pages of their own in shared blocks, as fast as they can. In the end each page has the last change
//! of its owner.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::smp::{self, Cpu, this_cpu};
use granule_arch::addr::VirtAddr;
use granule_arch::wait;

use super::{BLOCK_PAGES, Block, PAGE, faults, is_readable, is_refused, make_invalid, make_valid};
use crate::harness::{Test, draws, target_test};
use crate::work;

/// Changes, of all CPUs together.
const FLIPS: u64 = 50_000;
/// Blocks, one after the other: every one is split anew.
const BLOCKS: u64 = 10;

static FIRST: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static CPUS: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU32 = AtomicU32::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);
static CHANGED: AtomicU64 = AtomicU64::new(0);

/// Flips pages of this CPU's own: every so many, so that each group and each cache line of entries has all CPUs in it.
fn flip_own_pages(_: &Cpu, me: usize) {
    let (first, cpus) = (VirtAddr(FIRST.load(Ordering::Relaxed)), CPUS.load(Ordering::Relaxed));
    let refused = REFUSED.load(Ordering::Relaxed) != 0;
    let pages = BLOCK_PAGES / cpus;
    let page = |own: u64| first + (own * cpus + me as u64) * PAGE;
    let mut invalid = [false; BLOCK_PAGES as usize];
    let mut draw = draws(SEED.load(Ordering::Relaxed) ^ (me as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    // All at once, since the first changes are those that split.
    ARRIVED.fetch_add(1, Ordering::AcqRel);
    while ARRIVED.load(Ordering::Acquire) < cpus {
        wait::relax();
    }
    for _ in 0..FLIPS / BLOCKS / cpus {
        let own = draw(pages);
        let flag = &mut invalid[own as usize];
        let result = if *flag { make_valid(page(own), 1) } else { make_invalid(page(own), 1) };
        WRONG.fetch_add(u32::from(result.is_err() != refused), Ordering::Relaxed);
        *flag ^= !refused;
        CHANGED.fetch_add(1, Ordering::Relaxed);
    }
    for own in 0..pages {
        let right = if invalid[own as usize] { faults(page(own)) } else { is_readable(page(own)) };
        WRONG.fetch_add(u32::from(!right), Ordering::Relaxed);
    }
}

target_test!(pages_that_all_cpus_flip_are_as_their_owners_left_them, needs("smp"), limit(120));
fn pages_that_all_cpus_flip_are_as_their_owners_left_them(t: &mut Test) {
    let cpus = smp::online();
    let others = cpus.without(this_cpu().id);
    CPUS.store(cpus.len() as u64, Ordering::Relaxed);
    WRONG.store(0, Ordering::Relaxed);
    CHANGED.store(0, Ordering::Relaxed);
    for _ in 0..BLOCKS {
        let Some(block) = Block::fresh(t) else { return };
        FIRST.store(block.page(0).0, Ordering::Relaxed);
        SEED.store(t.random(), Ordering::Relaxed);
        REFUSED.store(u32::from(is_refused(&block)), Ordering::Relaxed);
        ARRIVED.store(0, Ordering::Relaxed);
        for id in others.iter() {
            t.equal("started", work::run_on(id, flip_own_pages, id.0 as usize), Ok(()));
        }
        flip_own_pages(this_cpu(), this_cpu().id.0 as usize);
        work::wait_for(others);
        block.free(t);
    }
    t.equal(
        "changes",
        CHANGED.load(Ordering::Relaxed),
        FLIPS / BLOCKS / cpus.len() as u64 * cpus.len() as u64 * BLOCKS,
    );
    t.equal("changes and pages that went wrong", WRONG.load(Ordering::Relaxed), 0);
}
