//! Blocks that were split become blocks again, while their neighbours' owners change pages.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::mm::kernel::collapse::CollapseError;
use granule::mm::layout;
use granule::sched;
use granule::smp::{self, CallFunction, Cpu, this_cpu};
use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;
use granule_pgtable::PageRange;

use super::{BLOCK_PAGES, Block, PAGE, faults, is_readable, is_refused, make_invalid, make_valid, space};
use crate::harness::{Test, patience, target_test};
use crate::work;

fn range_of(block: &Block) -> PageRange {
    PageRange::from_pages(block.page(0), BLOCK_PAGES as usize).expect("a block's pages")
}

target_test!(a_block_that_was_split_is_collapsed);
fn a_block_that_was_split_is_collapsed(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let size = |page| block.translation(page).map(|found| found.leaf_size);
    if is_refused(&block) {
        t.equal("refused", space().collapse(this_cpu(), range_of(&block)), Err(CollapseError::NeverSplit));
    } else if size(0) != Some(PAGE) {
        t.ok("invalid", make_invalid(block.page(3), 1));
        t.equal("the leaf of a page alone", size(3), Some(PAGE));
        t.check("a page that is invalid is not part of a block", {
            let done = space().collapse(this_cpu(), range_of(&block));
            done.is_ok_and(|done| done.blocks == [0; 4]) && faults(block.page(3))
        });
        t.ok("valid", make_valid(block.page(3), 1));
        let (before, refused) = (space().collapse_counts().0, granule::kernel().frames.stats().refused);
        let done = space().collapse(this_cpu(), range_of(&block));
        t.check("a block again", done.is_ok_and(|done| done.blocks[2] == 1));
        t.check("the leaf", size(3).is_some_and(|size| size > PAGE * (BLOCK_PAGES - 1)));
        t.check("counted", space().collapse_counts().0.since(before).blocks[2] == 1);
        // The table above the block is of the boot, and no frame of the allocator's.
        t.equal("frees refused", granule::kernel().frames.stats().refused, refused);
        t.check("every page is read", (0..BLOCK_PAGES).all(|page| is_readable(block.page(page))));
    }
    block.free(t);
}

/// Whether the leaf at `address` is a block or more, in time.
fn becomes_a_block(address: VirtAddr) -> bool {
    let patience = patience();
    let is_block =
        || space().tables().translate(address).is_some_and(|found| found.leaf_size > PAGE * (BLOCK_PAGES - 1));
    while !is_block() && !patience.has_passed() {
        sched::sleep_until(Deadline::after(Duration::from_millis(10)));
    }
    is_block()
}

// By the thread: `collapse.quiet=`.
target_test!(what_was_split_is_collapsed_when_nothing_is_split_any_more, machines("collapse"), limit(40));
fn what_was_split_is_collapsed_when_nothing_is_split_any_more(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    t.ok("invalid", make_invalid(block.page(3), 1));
    sched::sleep_until(Deadline::after(Duration::from_millis(200)));
    t.check("a page that is invalid stays one", faults(block.page(3)) && is_readable(block.page(2)));
    t.ok("valid", make_valid(block.page(3), 1));
    t.check("a block again", becomes_a_block(block.page(0)));
    block.free(t);
    // The alias of an area, once it is freed.
    let Some(area) = t.ok("vmalloc_huge", space().vmalloc_huge(this_cpu(), BLOCK_PAGES)) else { return };
    let frames = space().tables().translate(area.start()).map(|found| found.physical);
    let alias = layout::linear(frames.unwrap_or_default());
    t.ok("read-only", space().set_memory_ro(area.start() + PAGE, 1));
    t.equal("its alias", space().tables().translate(alias).map(|found| found.leaf_size), Some(PAGE));
    space().vfree(this_cpu(), area);
    t.check("the alias is a block again", becomes_a_block(alias));
}

/// Times that CPUs change pages and then all rest: in every other one each CPU, in those between one.
const PHASES: u32 = 8;
/// Changes of a CPU in a phase.
const CHANGES: u64 = 100;

static FIRST: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU32 = AtomicU32::new(0);
/// The phase that may begin.
static PHASE: AtomicU32 = AtomicU32::new(0);
/// Phases that CPUs have ended, all together.
static ENDED: AtomicU32 = AtomicU32::new(0);

/// Takes a page of its own away and gives it back, and looks each time whether it is so.
fn flip(_: &Cpu, me: usize) {
    let page = VirtAddr(FIRST.load(Ordering::Relaxed)) + (me as u64 * 31 + 7) * PAGE;
    let others = smp::online().len() - 1;
    for phase in 1..=PHASES {
        while PHASE.load(Ordering::Acquire) < phase {
            granule_arch::wait::relax();
        }
        let is_mine = phase % 2 == 0 || (phase / 2) as usize % others == me;
        for _ in 0..if is_mine { CHANGES } else { 0 } {
            let gone = make_invalid(page, 1).is_ok() && faults(page);
            let back = make_valid(page, 1).is_ok() && is_readable(page);
            LOST.fetch_add(u32::from(!gone || !back), Ordering::Relaxed);
        }
        ENDED.fetch_add(1, Ordering::Release);
    }
}

target_test!(no_change_is_lost_between_the_stops_for_a_collapse, needs("smp stop"), limit(120));
fn no_change_is_lost_between_the_stops_for_a_collapse(t: &mut Test) {
    no_change_is_lost_while_its_block_is_collapsed(t);
}

target_test!(no_change_is_lost_while_its_block_is_collapsed, needs("smp"), needs("split"), limit(120));
fn no_change_is_lost_while_its_block_is_collapsed(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    FIRST.store(block.page(0).0, Ordering::Relaxed);
    for count in [&LOST, &PHASE, &ENDED] {
        count.store(0, Ordering::Relaxed);
    }
    let others = smp::online().without(this_cpu().id);
    for (index, id) in others.iter().enumerate() {
        t.equal("started", work::run_on(id, flip, index), Ok(()));
    }
    let collapse = || space().collapse(this_cpu(), range_of(&block)).map(|done| done.blocks[2]).unwrap_or(0);
    let (mut made, mut blocks) = (0, 0);
    for phase in 1..=PHASES {
        PHASE.store(phase, Ordering::Release);
        while ENDED.load(Ordering::Acquire) < phase * others.len() as u32 {
            made += collapse();
        }
        // All rest, with every page valid.
        made += collapse();
        let size = block.translation(0).map(|found| found.leaf_size);
        blocks += u32::from(size.is_some_and(|size| size > PAGE * (BLOCK_PAGES - 1)));
    }
    work::wait_for(others);
    t.equal("a block where all rested", blocks, PHASES);
    t.check("each of which was split before", made >= u64::from(PHASES));
    t.equal("changes that were lost", LOST.load(Ordering::Relaxed), 0);
    block.free(t);
}

/// Values of [`SEEN`]: the walk of another CPU has seen nothing yet, the mark of its table, or a block in its place.
const NOTHING: u32 = 0;
const MARKED: u32 = 1;
const REPLACED: u32 = 2;

static IN_WALK: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(NOTHING);

/// Looks at a table's link, all in one walk, until it is marked, and takes a page away then; or until it is no table.
fn walk_until_marked(_: &Cpu, _: usize) {
    let page = VirtAddr(FIRST.load(Ordering::Relaxed));
    let tables = space().tables();
    IN_WALK.store(1, Ordering::Release);
    let seen = loop {
        match tables.walk(page).find(|step| step.level == 2).map(|step| step.descriptor) {
            Some(link) if link.is_table() && link.0 & bits::COLLAPSING != 0 => break MARKED,
            Some(link) if link.is_table() => granule_arch::wait::relax(),
            _ => break REPLACED,
        }
    };
    if seen == MARKED && make_invalid(page, 1).is_err() {
        return;
    }
    SEEN.store(seen, Ordering::Release);
}

/// Looks at a table's link, all in one walk that lasts.
fn walk_for_long(_: &Cpu, _: usize) {
    let page = VirtAddr(FIRST.load(Ordering::Relaxed));
    let tables = space().tables();
    IN_WALK.store(1, Ordering::Release);
    let is_linked = |_| {
        granule_arch::wait::relax();
        tables.walk(page).any(|step| step.level == 2 && step.descriptor.is_table())
    };
    SEEN.store(if (0..2000).all(is_linked) { MARKED } else { REPLACED }, Ordering::Release);
}

/// A block that was split, with another CPU in a walk through its table.
fn split_and_walked(t: &mut Test, walk: CallFunction) -> Option<Block> {
    let block = Block::fresh(t)?;
    let page = block.page(0);
    t.ok("split", make_invalid(page, 1).and_then(|()| make_valid(page, 1)));
    FIRST.store(page.0, Ordering::Relaxed);
    IN_WALK.store(0, Ordering::Relaxed);
    SEEN.store(NOTHING, Ordering::Relaxed);
    let other = smp::online().without(this_cpu().id).iter().next()?;
    t.equal("started", work::run_on(other, walk, 0), Ok(()));
    while IN_WALK.load(Ordering::Acquire) == 0 {
        granule_arch::wait::relax();
    }
    Some(block)
}

// It is interrupted to be parked, and continues.
target_test!(no_cpu_is_parked_inside_a_walk, needs("smp stop"), limit(60));
fn no_cpu_is_parked_inside_a_walk(t: &mut Test) {
    let Some(block) = split_and_walked(t, walk_for_long) else { return };
    let done = space().collapse(this_cpu(), range_of(&block));
    t.equal("what the walk had seen when it was collapsed", SEEN.load(Ordering::Acquire), MARKED);
    t.check("collapsed", done.is_ok_and(|done| done.blocks[2] == 1));
    work::wait_for(smp::online().without(this_cpu().id));
    block.free(t);
}

target_test!(a_walk_that_is_under_way_is_waited_for, needs("smp"), needs("split"), limit(60));
fn a_walk_that_is_under_way_is_waited_for(t: &mut Test) {
    let Some(block) = split_and_walked(t, walk_until_marked) else { return };
    let page = block.page(0);
    let done = space().collapse(this_cpu(), range_of(&block));
    work::wait_for(smp::online().without(this_cpu().id));
    t.equal("what a walk found in the place of its table", SEEN.load(Ordering::Acquire), MARKED);
    t.check("the owner was faster", done.is_ok_and(|done| done.blocks == [0; 4] && done.cancelled == 1));
    t.check("its change is there", faults(page) && is_readable(block.page(1)));
    t.ok("valid", make_valid(page, 1));
    block.free(t);
}
