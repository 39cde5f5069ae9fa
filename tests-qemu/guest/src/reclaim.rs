//! Empty tables: they come back, not too early, and whatever other CPUs do concurrently.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::vmalloc::KernelArea;
use granule::mm::layout::VMALLOC_START;
use granule::smp::{self, CallFunction, Cpu, CpuSet, this_cpu};
use granule::trap::probe;
use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Kind;
use granule_arch::interrupts;
use granule_arch::wait;

use crate::harness::{Test, draws, target_test, wait_until};
use crate::work;

/// Pages of an area that has seven whole tables of 512 entries to itself, wherever it begins.
const LARGE: u64 = 8 * 512;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// Tables, but for those that blocks of the linear map were split to, which stay.
fn tables() -> usize {
    space().area_table_frames()
}

/// Tables that are left from before are not this test's.
fn tables_in_use() -> usize {
    while space().reclaim(this_cpu()) != 0 {}
    tables()
}

/// Tables once they are as many as `before`, or after a while: where another CPU is in a walk, the next call continues.
fn tables_after(before: usize) -> usize {
    wait_until(|| tables_in_use() == before);
    tables()
}

/// A large area of which a page has changed alone in each 2 MiB: so there are tables, of blocks that were split.
fn large_area(t: &mut Test) -> Option<KernelArea> {
    let area = t.ok("vmalloc", space().vmalloc(this_cpu(), LARGE))?;
    for page in (0..LARGE).step_by(512).map(|first| area.start() + (first + 100) * PAGE) {
        t.ok("a page of it", space().set_memory_ro(page, 1).and_then(|()| space().set_memory_rw(page, 1)));
    }
    Some(area)
}

target_test!(a_large_area_gives_its_tables_back);
fn a_large_area_gives_its_tables_back(t: &mut Test) {
    let before = tables_in_use();
    let Some(area) = large_area(t) else { return };
    let (middle, full) = (area.start() + LARGE / 2 * PAGE, tables());
    t.check("its tables are in use", full >= before + 7);
    space().vfree(this_cpu(), area);
    t.check("the tables that were its alone are back", tables() <= full - 7);
    t.check("and unlinked", space().tables().walk(middle).last().is_some_and(|step| step.level < 3));
    t.equal("all are back", tables_after(before), before);
}

target_test!(neighbours_keep_their_tables);
fn neighbours_keep_their_tables(t: &mut Test) {
    let before = tables_in_use();
    let cpu = this_cpu();
    let areas = [1, LARGE, 1, LARGE, 1].map(|pages| match pages {
        LARGE => large_area(t),
        _ => t.ok("vmalloc", space().vmalloc(cpu, pages)),
    });
    let [first, large, second, other, third] = areas;
    for area in [large, other].into_iter().flatten() {
        space().vfree(cpu, area);
    }
    let small = [first, second, third].into_iter().flatten();
    for area in small {
        // SAFETY: the test's own page.
        t.equal("still mapped", unsafe { probe::write(area.start(), area.start().0) }, Ok(()));
        t.equal("to memory", probe::read::<u64>(area.start()), Ok(area.start().0));
        space().vfree(cpu, area);
    }
    t.equal("all are back at the end", tables_after(before), before);
}

target_test!(small_areas_leave_their_tables_to_the_next_ones);
fn small_areas_leave_their_tables_to_the_next_ones(t: &mut Test) {
    let before = tables_in_use();
    let mut most = 0;
    for _ in 0..50 {
        let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), 20)) else { return };
        space().vfree(this_cpu(), area);
        space().purge(this_cpu());
        most = most.max(tables());
    }
    t.check("one table, or two where it begins near an end", most <= before + 2);
    t.equal("reclaimed when asked for", tables_after(before), before);
}

target_test!(with_interrupts_masked_tables_are_left_for_later);
fn with_interrupts_masked_tables_are_left_for_later(t: &mut Test) {
    let before = tables_in_use();
    let Some(area) = large_area(t) else { return };
    let full = tables();
    let masked = interrupts::mask();
    space().vfree(this_cpu(), area);
    interrupts::restore(masked);
    t.equal("not now", tables(), full);
    t.equal("now", tables_after(before), before);
}

/// How far the walker of the next test has come, and may go.
static STEP: AtomicU32 = AtomicU32::new(0);
/// Where it walks.
static WALKED: AtomicU64 = AtomicU64::new(0);
/// Walks that ended in something that was never mapped there.
static WRONG: AtomicU32 = AtomicU32::new(0);

fn wait_for_step(step: u32) {
    while STEP.load(Ordering::Acquire) < step {
        wait::relax();
    }
}

// `lab=early-table-free` fails it twice: the tables are gone at once, and the walker finds what their next owner wrote.
target_test!(a_table_stays_while_another_cpu_walks_through_it, needs("smp"));
fn a_table_stays_while_another_cpu_walks_through_it(t: &mut Test) {
    /// Walks to a last-level table, and reads it when everything has happened that could happen to it.
    fn walk(_: &Cpu, _: usize) {
        let tables = space().tables();
        let mut walk = tables.walk(VirtAddr(WALKED.load(Ordering::Relaxed)));
        let above = walk.by_ref().take(3).last();
        STEP.store(1, Ordering::Release);
        wait_for_step(2);
        let wrong = above.is_none_or(|step| step.kind != Kind::Table) || walk.any(|step| step.kind != Kind::None);
        WRONG.store(u32::from(wrong), Ordering::Relaxed);
    }
    let before = tables_in_use();
    let cpu = this_cpu();
    let Some(area) = large_area(t) else { return };
    let full = tables();
    WALKED.store((area.start() + LARGE / 2 * PAGE).0, Ordering::Relaxed);
    STEP.store(0, Ordering::Relaxed);
    let Some(other) = smp::online().without(cpu.id).iter().next() else { return };
    t.equal("work", work::run_on(other, walk, 0), Ok(()));
    wait_for_step(1);
    space().vfree(cpu, area);
    space().reclaim(cpu);
    t.equal("tables that are still there", tables(), full);
    // Takes the freed frames again, one by one, and fills them with words that a walker takes for leaves.
    let next = [15; 5].map(|pages| space().vmalloc(cpu, pages));
    for area in next.iter().flatten() {
        // SAFETY: the test's own area.
        unsafe { area.start().as_ptr::<u8>().write_bytes(0xff, area.pages() as usize * PAGE_SIZE) };
    }
    STEP.store(2, Ordering::Release);
    work::wait_for(CpuSet::of(other));
    t.equal("walks into memory of another owner", WRONG.load(Ordering::Relaxed), 0);
    for area in next {
        t.ok("vmalloc", area).into_iter().for_each(|area| space().vfree(cpu, area));
    }
    t.equal("all are back when the walk has ended", tables_after(before), before);
}

/// Every CPU maps, changes, looks and unmaps, in areas that come and go beside each other's.
fn churn(cpu: &Cpu, seed: usize) {
    const ROUNDS: u32 = 24;
    let mut draw = draws(seed as u64 ^ u64::from(cpu.id.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let wrong = |holds: bool| _ = WRONG.fetch_add(u32::from(!holds), Ordering::Relaxed);
    for round in 0..ROUNDS {
        // Frames come from one lock, which four emulated CPUs hand round slowly: no more than a table's worth of them,
        // and tables are reclaimed by hand.
        let pages = 1 + if round % 3 == 0 { 480 + draw(80) } else { draw(20) };
        let Ok(area) = space().vmalloc(cpu, pages) else {
            wrong(false);
            continue;
        };
        let ends = [area.start(), area.start() + (pages - 1) * PAGE];
        for end in ends {
            // SAFETY: the area's own first and last page, writable.
            wrong(unsafe { probe::write(end, end.0) } == Ok(()));
        }
        wrong(space().set_memory_ro(area.start(), pages).is_ok());
        for end in ends {
            // SAFETY: the page must refuse the write, which would not change its contents.
            wrong(unsafe { probe::write(end, end.0) }.is_err());
            let leaf = space().tables().translate(end);
            wrong(leaf.is_some_and(|leaf| leaf.valid && !leaf.descriptor.is_writable()));
        }
        // Pages of other CPUs and holes: no walk ends at an address that is no entry.
        for _ in 0..20 {
            let anywhere = VMALLOC_START + draw(16 << 20);
            let found = space().tables().translate(anywhere);
            wrong(found.is_none_or(|leaf| leaf.leaf_size.is_power_of_two() && leaf.physical.0 != 0));
        }
        // A hole, or fixed pages of another owner: refused, through tables that are linked and unlinked concurrently.
        wrong(space().set_memory_ro(area.start() + pages * PAGE, 1).is_err());
        wrong(space().set_memory_rw(area.start(), pages).is_ok());
        for end in ends {
            wrong(probe::read::<u64>(end) == Ok(end.0));
        }
        space().vfree(cpu, area);
        space().reclaim(cpu);
    }
}

/// Frees an area over all addresses that [`churn`] used. A change that is refused takes away a table's mark as a mapping
/// does: the table, if it is empty, then stays until the next area goes from there.
fn leave_all(cpu: &Cpu, _: usize) {
    const ALL: u64 = 4 * 512;
    match space().vmalloc(cpu, ALL) {
        Ok(area) => space().vfree(cpu, area),
        Err(_) => _ = WRONG.fetch_add(1, Ordering::Relaxed),
    }
}

/// Has all CPUs do `function` at once.
fn on_all(t: &mut Test, function: CallFunction, argument: usize) {
    let others = smp::online().without(this_cpu().id);
    for id in others.iter() {
        t.equal("work", work::run_on(id, function, argument), Ok(()));
    }
    function(this_cpu(), argument);
    work::wait_for(others);
}

target_test!(cpus_that_map_change_walk_and_unmap_at_once_lose_nothing, limit(60));
fn cpus_that_map_change_walk_and_unmap_at_once_lose_nothing(t: &mut Test) {
    /// A table that stays goes with the areas of the next round; one that is lost never does.
    const ROUNDS: usize = 20;
    let before = tables_in_use();
    WRONG.store(0, Ordering::Relaxed);
    let seed = t.random() as usize;
    for round in 0..ROUNDS {
        on_all(t, churn, seed.wrapping_add(round));
        on_all(t, leave_all, 0);
        if tables_in_use() == before {
            break;
        }
    }
    t.equal("things that were not as they must be", WRONG.load(Ordering::Relaxed), 0);
    t.equal("all tables are back", tables(), before);
}
