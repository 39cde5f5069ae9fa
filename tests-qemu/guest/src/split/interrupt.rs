//! Handlers that split: with the frames that their CPU has in reserve, and without ever waiting for what they have
//! interrupted.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer;
use granule::mm::kernel::collapse::CollapseError;
use granule::mm::kernel::policy::SplitMode;
use granule::mm::kernel::set_memory::SetMemoryError;
use granule::smp::{Cpu, this_cpu};
use granule::sync::{IrqLock, rank};
use granule_arch::addr::VirtAddr;
use granule_arch::{interrupts, wait};
use granule_pgtable::PageRange;

use super::{BLOCK_PAGES, Block, GROUP_PAGES, PAGE, faults, is_readable, make_invalid, make_valid, space};
use crate::harness::{Test, patience, target_test};

/// The page that the handler takes away and gives back, and what came of it.
static OWN: AtomicU64 = AtomicU64::new(0);
static RESULT: AtomicU32 = AtomicU32::new(PENDING);
const PENDING: u32 = 0;
const DONE: u32 = 1;
const NO_TABLES: u32 = 2;
const WRONG: u32 = 3;
const CANNOT_STOP: u32 = 4;

fn change_own_page(_: &Cpu) {
    let page = VirtAddr(OWN.load(Ordering::Relaxed));
    let result = match make_invalid(page, 1) {
        Ok(()) if faults(page) && make_valid(page, 1).is_ok() && is_readable(page) => DONE,
        Err(SetMemoryError::OutOfTables { needed: 1, available: 0 }) if is_readable(page) => NO_TABLES,
        Err(SetMemoryError::CannotStop { .. }) if is_readable(page) => CANNOT_STOP,
        _ => WRONG,
    };
    RESULT.store(result, Ordering::Release);
}

/// As [`change_own_page`], with no frame in the CPU's magazine.
fn change_own_page_without_reserve(cpu: &Cpu) {
    granule::kernel().frames.drain_cpu(cpu);
    change_own_page(cpu);
}

/// Has `handler` interrupt this CPU after a while, for `page`.
fn interrupt_after(time: Duration, page: VirtAddr, handler: timer::DeadlineHandler) {
    OWN.store(page.0, Ordering::Relaxed);
    RESULT.store(PENDING, Ordering::Relaxed);
    timer::set_deadline(this_cpu(), time, handler);
}

/// The result of the interrupt's handler, once it has run; [`PENDING`] if it does not run in time.
fn result() -> u32 {
    let patience = patience();
    while RESULT.load(Ordering::Acquire) == PENDING && !patience.has_passed() {
        wait::relax();
    }
    RESULT.load(Ordering::Acquire)
}

/// A frame that is taken and given back leaves at least one in the magazine.
fn fill_reserve(t: &mut Test) {
    let frames = &granule::kernel().frames;
    if let Some(frame) = t.ok("a frame", frames.alloc(this_cpu())) {
        frames.free(this_cpu(), frame);
    }
}

target_test!(a_handler_splits_with_what_its_cpu_has_in_reserve, needs("split"));
fn a_handler_splits_with_what_its_cpu_has_in_reserve(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let leaf = |page| block.translation(page).map(|found| found.leaf_size);
    let before = leaf(7);

    interrupt_after(Duration::ZERO, block.page(7), change_own_page_without_reserve);
    t.equal("nothing in reserve: an error", result(), NO_TABLES);
    t.check("the block is whole", leaf(7) >= Some(BLOCK_PAGES * PAGE) && leaf(7) <= before);

    fill_reserve(t);
    interrupt_after(Duration::ZERO, block.page(7), change_own_page);
    t.equal("split", result(), DONE);
    t.equal("to pages", leaf(7), Some(PAGE));
    block.free(t);
}

target_test!(other_cpus_are_not_parked_from_a_handler_nor_with_interrupts_masked, needs("stop"));
fn other_cpus_are_not_parked_from_a_handler_nor_with_interrupts_masked(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let whole = PageRange::from_pages(block.page(0), BLOCK_PAGES as usize).expect("a block's pages");
    let leaf = |page| block.translation(page).map(|found| found.leaf_size);
    let (before, stops) = (leaf(7), space().split_counts().stops);
    interrupt_after(Duration::ZERO, block.page(7), change_own_page);
    t.equal("in a handler", result(), CANNOT_STOP);
    let masked = interrupts::mask();
    let change = make_invalid(block.page(7), 1);
    let collapse = space().collapse(this_cpu(), whole);
    interrupts::restore(masked);
    t.check("with interrupts masked", matches!(change, Err(SetMemoryError::CannotStop { .. })));
    t.equal("and a collapse", collapse, Err(CollapseError::CannotStop));
    let lock = IrqLock::<(), { rank::RANDOM }>::new(());
    let guard = lock.lock();
    let change = make_invalid(block.page(7), 1);
    drop(guard);
    t.check("with a lock held", matches!(change, Err(SetMemoryError::CannotStop { .. })));
    t.equal("nothing was stopped or split", (leaf(7), space().split_counts().stops), (before, stops));
    t.check("whole leaves change there, too", {
        interrupt_after(Duration::ZERO, block.page(7), |_| {
            let whole = make_invalid(VirtAddr(OWN.load(Ordering::Relaxed) & !(BLOCK_PAGES * PAGE - 1)), BLOCK_PAGES);
            RESULT.store(if whole.is_ok() { DONE } else { WRONG }, Ordering::Release);
        });
        leaf(7) != Some(BLOCK_PAGES * PAGE) || result() == DONE
    });
    block.free(t);
}

// Interrupts at any instruction of a split, by chance: both in one block, each with a page of its own in one group. With
// interrupts unmasked under the lock, the handler would wait for the lock that it has interrupted.
target_test!(handlers_and_what_they_interrupt_split_the_same_leaves, needs("split"), limit(30));
fn handlers_and_what_they_interrupt_split_the_same_leaves(t: &mut Test) {
    const BLOCKS: u64 = 8;
    let (mut wrong, mut without_tables) = (0, 0);
    let locked = space().split_counts().locked;
    for _ in 0..BLOCKS {
        let Some(block) = Block::fresh(t) else { return };
        fill_reserve(t);
        for group in (0..BLOCK_PAGES).step_by(GROUP_PAGES as usize) {
            let page = block.page(group + t.random() % 8);
            interrupt_after(Duration::from_nanos(t.random() % 4000), block.page(group + 8), change_own_page);
            let away = make_invalid(page, 1).is_ok() && faults(page);
            let back = make_valid(page, 1).is_ok() && is_readable(page);
            let handled = result();
            without_tables += u32::from(handled == NO_TABLES);
            wrong += u32::from(!(away && back && matches!(handled, DONE | NO_TABLES)));
        }
        block.free(t);
    }
    t.equal("rounds that went wrong", wrong, 0);
    let is_locked = space().policy().split == SplitMode::Lock;
    t.equal("the lock was taken", space().split_counts().locked > locked, is_locked);
    // A handler that comes where the last of them was just taken finds none: how often is chance.
    let rounds = (BLOCKS * BLOCK_PAGES / GROUP_PAGES) as u32;
    t.check("as a rule there are frames in reserve", without_tables < rounds / 4);
}
