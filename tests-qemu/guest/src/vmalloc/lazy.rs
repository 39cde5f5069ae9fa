//! Areas that were freed and wait for their invalidation: TLBs may lead to their frames, so nothing else may be there.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule::mm::kernel::vmalloc::KernelArea;
use granule::smp::{self, Cpu, this_cpu};
use granule::trap::probe;
use granule_arch::addr::VirtAddr;
use granule_arch::interrupts;

use super::{PAGE, space};
use crate::harness::{Test, draws, target_test, wait_until};
use crate::work;

/// The word in the area of a test, and the word that others write.
const OWN: u64 = 0x1111_2222_3333_4444;
const OTHER: u64 = 0x5555_6666_7777_8888;

/// CPUs that read their own word, and those that read another's.
static REACHED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn write(page: VirtAddr, value: u64) -> bool {
    // SAFETY: a word of a page of an area of the test's own.
    unsafe { probe::write(page, value) }.is_ok()
}

/// All CPUs read the word at `page`. How many found [`OWN`], and something else.
fn read_on_all(page: VirtAddr) -> (u64, u64) {
    fn read(_: &Cpu, page: usize) {
        match probe::read::<u64>(VirtAddr(page as u64)) {
            Ok(OWN) => _ = REACHED.fetch_add(1, Ordering::Relaxed),
            Ok(_) => _ = WRONG.fetch_add(1, Ordering::Relaxed),
            Err(_) => {}
        }
    }
    REACHED.store(0, Ordering::Relaxed);
    WRONG.store(0, Ordering::Relaxed);
    smp::call(smp::online(), read, page.0 as usize);
    (REACHED.load(Ordering::Relaxed), WRONG.load(Ordering::Relaxed))
}

/// Takes as many areas of a page as are had, and fills them with [`OTHER`].
fn take_pages(t: &mut Test) -> heapless::Vec<KernelArea, 64> {
    let mut areas = heapless::Vec::new();
    while !areas.is_full()
        && let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), 1))
    {
        t.check("writable", write(area.start(), OTHER));
        let _ = areas.push(area);
    }
    areas
}

// `lab=purge-no-flush` fails it: what a TLB leads to has a new owner.
target_test!(frames_of_a_freed_area_are_no_ones_while_a_tlb_leads_to_them);
fn frames_of_a_freed_area_are_no_ones_while_a_tlb_leads_to_them(t: &mut Test) {
    space().purge(this_cpu());
    let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), 1)) else { return };
    let (start, cpus) = (area.start(), smp::online().len() as u64);
    t.check("writable", write(start, OWN));
    t.equal("CPUs that read it, so that their TLBs have it", read_on_all(start), (cpus, 0));
    space().vfree(this_cpu(), area);
    let waits = space().policy().lazy_pages != 0;
    t.equal("pages that wait", space().unmapped_pages(), u64::from(waits));
    let others = take_pages(t);
    t.check("its address is no one's", others.iter().all(|other| !waits || other.start() != start));
    t.equal("CPUs that read what another has written", read_on_all(start).1, others_at(start, &others) * cpus);
    space().purge(this_cpu());
    let reached = (0, others_at(start, &others) * cpus);
    t.equal("CPUs that read it when it is freed, or another's", read_on_all(start), reached);
    others.into_iter().for_each(|area| space().vfree(this_cpu(), area));
    space().purge(this_cpu());
}

/// How many of the areas begin there: a new owner of the address.
fn others_at(start: VirtAddr, areas: &[KernelArea]) -> u64 {
    areas.iter().filter(|area| area.start() == start).count() as u64
}

// An interrupt would have to wait for all that is freed.
target_test!(with_interrupts_masked_areas_are_left_for_later);
fn with_interrupts_masked_areas_are_left_for_later(t: &mut Test) {
    space().purge(this_cpu());
    let (limit, purges) = (space().policy().lazy_pages, space().purges());
    if limit == 0 {
        let area = t.ok("vmalloc", space().vmalloc(this_cpu(), 1));
        area.into_iter().for_each(|area| space().vfree(this_cpu(), area));
        t.equal("pages that wait where none may", space().unmapped_pages(), 0);
        return;
    }
    let areas = [(); 3].map(|()| t.ok("vmalloc", space().vmalloc(this_cpu(), limit / 2 + 1)));
    let [first, second, third] = areas;
    let masked = interrupts::mask();
    [first, second].into_iter().flatten().for_each(|area| space().vfree(this_cpu(), area));
    let waiting = space().unmapped_pages();
    interrupts::restore(masked);
    t.equal("pages that wait, more than may", (waiting, space().purges()), (2 * (limit / 2 + 1), purges));
    third.into_iter().for_each(|area| space().vfree(this_cpu(), area));
    t.equal("none does after the next one", (space().unmapped_pages(), space().purges()), (0, purges + 1));
}

// The thread that frees pages of files purges areas first.
target_test!(where_frames_become_few_those_that_wait_are_freed);
fn where_frames_become_few_those_that_wait_are_freed(t: &mut Test) {
    let frames = granule::kernel().frames;
    let Some(area) = t.ok("vmalloc", space().vmalloc(this_cpu(), 1)) else { return };
    space().vfree(this_cpu(), area);
    let (reserve, purges) = (frames.reserve(), space().purges());
    let waits = space().unmapped_pages() != 0;
    frames.set_reserve(frames.total());
    // The allocation that fills the empty magazine finds that frames are few.
    frames.drain_cpu(this_cpu());
    let frame = frames.alloc(this_cpu()).map(|frame| frames.free(this_cpu(), frame));
    wait_until(|| space().unmapped_pages() == 0);
    frames.set_reserve(reserve);
    t.equal("a frame", frame, Ok(()));
    t.equal("pages that wait, and purges", (space().unmapped_pages(), space().purges() - purges), (0, waits.into()));
}

/// CPUs on which areas still come and go.
static AT_WORK: AtomicU64 = AtomicU64::new(0);
/// Whether areas were purged while others came.
static IS_PURGED: AtomicBool = AtomicBool::new(false);

/// Areas come and go. A read in one finds the word that was written there; in one that is gone as well, as long as it
/// can be read at all.
fn churn(cpu: &Cpu, seed: usize) {
    /// At least, and until an area was purged concurrently.
    const ROUNDS: u64 = 400;
    let mut draw = draws(seed as u64 ^ u64::from(cpu.id.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let wrong = |holds: bool| _ = WRONG.fetch_add(u64::from(!holds), Ordering::Relaxed);
    for round in (0..).take_while(|&round| round < ROUNDS || !IS_PURGED.load(Ordering::Relaxed)) {
        let pages = 1 + draw(6);
        let Ok(area) = space().vmalloc(cpu, pages) else {
            wrong(false);
            continue;
        };
        let stamp = |page: u64| u64::from(cpu.id.0) << 56 | round << 8 | page;
        let start = area.start();
        for page in 0..pages {
            wrong(write(start + page * PAGE, stamp(page)));
        }
        wrong((0..pages).all(|page| probe::read(start + page * PAGE) == Ok(stamp(page))));
        space().vfree(cpu, area);
        wrong(
            (0..pages).all(|page| probe::read::<u64>(start + page * PAGE).map_or(true, |value| value == stamp(page))),
        );
    }
    AT_WORK.fetch_sub(1, Ordering::Release);
}

target_test!(areas_come_and_go_on_all_cpus_while_one_purges, needs("smp"), limit(60));
fn areas_come_and_go_on_all_cpus_while_one_purges(t: &mut Test) {
    WRONG.store(0, Ordering::Relaxed);
    let (others, purges) = (smp::online().without(this_cpu().id), space().purges());
    let seed = t.random() as usize;
    AT_WORK.store(others.len() as u64, Ordering::Relaxed);
    IS_PURGED.store(false, Ordering::Relaxed);
    for id in others.iter() {
        t.equal("work", work::run_on(id, churn, seed), Ok(()));
    }
    let waits = space().policy().lazy_pages != 0;
    while AT_WORK.load(Ordering::Acquire) != 0 {
        space().purge(this_cpu());
        IS_PURGED.store(!waits || space().purges() > purges, Ordering::Relaxed);
    }
    work::wait_for(others);
    t.equal("things that were not as they must be", WRONG.load(Ordering::Relaxed), 0);
}
