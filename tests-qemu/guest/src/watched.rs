//! Write-protection while pages migrate and are reclaimed: the program `watched` knows which of its stores are reported, and
//! here is what comes from outside.

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::linux::process;
use granule::linux::process::status::ProcessEnd;
use granule::mm::space::{SpaceRef, Used};
use granule::sched::{self, sleep_until};
use granule::smp::this_cpu;
use granule::{kernel, println};
use granule_arch::addr::{PAGE, VirtAddr};
use spin::mutex::SpinMutex;

use crate::harness::{Test, another_cpu, draws, target_test, wait_until};
use crate::process::{settle, start, terminate};

/// Where `watched` has its pages, for each of two threads, and how many.
const PLACES: [(u64, u64); 4] = [(0, 16), (0x1000_0000, 512), (0x2000_0000, 4), (0x3000_0000, 16)];
const BASE: VirtAddr = VirtAddr(0x7000_0000_0000);
const STRIDE: u64 = 0x1_0000_0000;

static SPACE: SpinMutex<Option<SpaceRef>> = SpinMutex::new(None);
static IS_OVER: AtomicBool = AtomicBool::new(false);
static MIGRATED: AtomicUsize = AtomicUsize::new(0);
static RECLAIMED: AtomicUsize = AtomicUsize::new(0);

target_test!(stores_to_protected_pages_are_reported, needs("smp"), limit(30));
fn stores_to_protected_pages_are_reported(t: &mut Test) {
    watch(t, 1000);
}

target_test!(each_store_to_a_protected_page_is_reported_and_no_other, machines("default"), limit(60));
fn each_store_to_a_protected_page_is_reported_and_no_other(t: &mut Test) {
    watch(t, 3000);
}

target_test!(each_store_to_a_protected_page_is_reported_for_long, machines("default"), limit(1800), long());
fn each_store_to_a_protected_page_is_reported_for_long(t: &mut Test) {
    watch(t, 500_000);
}

/// Two threads make `steps` steps each.
fn watch(t: &mut Test, steps: usize) {
    let threads = sched::thread_count();
    let mut line = heapless::String::<64>::new();
    let _ = write!(line, "watched {} {steps}", t.random());
    let Some(id) = t.ok(&line, start(&line)) else { return };
    *SPACE.lock() = process::space_of(id);
    IS_OVER.store(false, Ordering::Relaxed);
    MIGRATED.store(0, Ordering::Relaxed);
    RECLAIMED.store(0, Ordering::Relaxed);
    let seed = t.random() as usize;
    t.ok("a thread", sched::spawn_kernel(another_cpu(this_cpu()), "migrate", migrate, seed));
    // It continues beyond its steps until SIGTERM, however busy the machine is.
    let is_enough = || MIGRATED.load(Ordering::Relaxed) > steps / 500 && RECLAIMED.load(Ordering::Relaxed) > 0;
    while process::space_of(id).is_some() {
        sleep_until(Deadline::after(Duration::from_millis(1)));
        if is_enough() {
            let _ = terminate(id);
        }
    }
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    IS_OVER.store(true, Ordering::Relaxed);
    wait_until(|| sched::thread_count() <= threads);
    *SPACE.lock() = None;
    settle(t, threads);
    let [migrated, reclaimed] = [&MIGRATED, &RECLAIMED].map(|count| count.load(Ordering::Relaxed));
    println!("{migrated} pages migrated, {reclaimed} pages of files were reclaimed");
    t.check("there was enough of each", is_enough());
}

/// Moves pages of the process to other frames, and reclaims those of files.
extern "C" fn migrate(seed: usize) {
    let (cpu, spaces, frames) = (this_cpu(), &kernel().spaces, kernel().frames);
    let Some(space) = SPACE.lock().take() else { return };
    let mut draw = draws(seed as u64);
    for number in 1_u32.. {
        if IS_OVER.load(Ordering::Relaxed) {
            break;
        }
        // The emulator flushes all of its translations for each invalidation.
        sleep_until(Deadline::after(Duration::from_micros(200)));
        if number.is_multiple_of(64) {
            let reclaimed = spaces.reclaim(cpu, usize::MAX, Used::Age, &|| IS_OVER.load(Ordering::Relaxed));
            RECLAIMED.fetch_add(reclaimed, Ordering::Relaxed);
        }
        let (offset, pages) = PLACES[draw(PLACES.len() as u64) as usize];
        let page = BASE + draw(2) * STRIDE + offset + draw(pages) * PAGE;
        let Some(found) = space.tables().translate(page) else { continue };
        let Ok(to) = frames.alloc_movable(cpu) else { continue };
        match spaces.migrate_page(cpu, found.physical, to) {
            Ok(()) => _ = MIGRATED.fetch_add(1, Ordering::Relaxed),
            Err(_) => frames.free(cpu, to),
        }
    }
}
