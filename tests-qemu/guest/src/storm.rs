//! All that changes translations at once, on all CPUs, with a device on each of two processes: `storm` of the programs
//! compares what its pages hold, and here is what comes from outside.
//!
//! Pages migrate one by one and whole page blocks at a time; memory is short enough that pages of files are given back
//! all the time; devices copy from a process's pages to others of its pages; and frames that are free are taken for a
//! while, full of canaries, to see that no device reaches what it has lost. QEMU's edu translates and copies in one
//! step.
//!
//! It ends once there was [`ENOUGH`] of each and the processes have made their rounds: they get SIGTERM, and then end by
//! themselves. A transfer of a device waits for 5 s at most, also where its process has ended.

#![allow(unsafe_code, reason = "canaries in frames of the test's own, by the linear map")]

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::devices::edu::{Edu, edu};
use granule::devices::slot::Driver;
use granule::iommu::DmaAddress;
use granule::linux::process;
use granule::linux::process::status::ProcessEnd;
use granule::mm::layout;
use granule::mm::space::{SpaceRef, Used};
use granule::sched::{self, sleep_until};
use granule::smp::{self, this_cpu};
use granule::{kernel, println};
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use spin::Once;
use spin::mutex::SpinMutex;

use crate::harness::{Test, draws, frames_in_use, target_test, wait_until};
use crate::process::{settle, start, terminate};

/// Where `storm` has pages of its own; the first two are one or the other.
const PLACES: [(VirtAddr, u64); 6] = [
    (VirtAddr(0x7000_0000_0000), 48),
    (VirtAddr(0x7000_1000_0000), 48),
    (VirtAddr(0x7000_2000_0000), 48),
    (VirtAddr(0x7000_4000_0000), 1024),
    (SOURCE, COPIED),
    (TARGET, COPIED),
];
/// The pages that a device reads, and those that it writes.
const SOURCE: VirtAddr = VirtAddr(0x7000_6000_0000);
const TARGET: VirtAddr = VirtAddr(0x7000_6001_0000);
const COPIED: u64 = 4;
/// Processes: one more than devices.
const PROCESSES: usize = 3;
/// Frames that the processes have together: the rest is the reserve. The reserve is so large that the thread that frees
/// pages of files never has enough.
const ROOM: usize = 20 * 512;
/// Frames that are taken together for canaries.
const HELD: usize = 64;
/// And for so long: a transfer of edu takes 100 ms.
const WATCHED: Duration = Duration::from_millis(150);
/// Counts that are reached before the processes end, however busy the machine is: pages that devices copied, each of
/// which has been copied before and has changed since; pages that migrated; looks at blocks; pages of files given back;
/// canaries.
const ENOUGH: [usize; 5] = [12, 100, 1, 1, 1000];
const CANARY: u64 = 0x00c0_ffee_5eed_1234;

target_test!(all_that_changes_translations_at_once, needs("smmuv3 edu smp"), limit(120));
fn all_that_changes_translations_at_once(t: &mut Test) {
    storm(t, 120);
}

target_test!(all_that_changes_translations_at_once_for_long, needs("smmuv3 edu smp"), limit(1800), long());
fn all_that_changes_translations_at_once_for_long(t: &mut Test) {
    storm(t, 10_000);
}

/// State that the kernel threads beside the programs share.
struct Beside {
    spaces: Once<SpinMutex<heapless::Vec<SpaceRef, PROCESSES>>>,
    is_over: AtomicBool,
    copied: AtomicUsize,
    migrated: AtomicUsize,
    blocks: AtomicUsize,
    reclaimed: AtomicUsize,
    canaries: AtomicUsize,
    spoilt: AtomicUsize,
    seed: AtomicUsize,
}

static BESIDE: Beside = Beside {
    spaces: Once::new(),
    is_over: AtomicBool::new(false),
    copied: AtomicUsize::new(0),
    migrated: AtomicUsize::new(0),
    blocks: AtomicUsize::new(0),
    reclaimed: AtomicUsize::new(0),
    canaries: AtomicUsize::new(0),
    spoilt: AtomicUsize::new(0),
    seed: AtomicUsize::new(0),
};

impl Beside {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// As in [`ENOUGH`].
    const fn counters(&self) -> [&AtomicUsize; 5] {
        [&self.copied, &self.migrated, &self.blocks, &self.reclaimed, &self.canaries]
    }

    fn counts(&self) -> [usize; 5] {
        self.counters().map(|count| count.load(Ordering::Relaxed))
    }

    fn is_enough(&self) -> bool {
        self.counts().iter().zip(ENOUGH).all(|(count, enough)| *count >= enough)
    }

    fn begin(&self, seed: usize, spaces: heapless::Vec<SpaceRef, PROCESSES>) {
        for count in self.counters().into_iter().chain([&self.spoilt]) {
            count.store(0, Ordering::Relaxed);
        }
        self.seed.store(seed, Ordering::Relaxed);
        *self.spaces.call_once(|| SpinMutex::new(heapless::Vec::new())).lock() = spaces;
        self.is_over.store(false, Ordering::Release);
    }

    fn space(&self, index: usize) -> Option<SpaceRef> {
        self.spaces.get()?.lock().get(index).cloned()
    }
}

fn storm(t: &mut Test, rounds: usize) {
    let (cpu, frames) = (this_cpu(), kernel().frames);
    let devices = [0, 1].map(|index| t.ok("edu", edu(cpu, index)));
    let [Some(first), Some(second)] = devices else { return };
    let (threads, reserve, before) = (sched::thread_count(), frames.reserve(), frames_in_use());
    let (mut ids, mut spaces) = (heapless::Vec::<u32, PROCESSES>::new(), heapless::Vec::new());
    for number in 1..=PROCESSES {
        let mut line = heapless::String::<64>::new();
        let _ = write!(line, "storm {number} {} {rounds}", t.random());
        let id = t.ok(&line, start(&line));
        ids.extend(id);
        spaces.extend(id.and_then(process::space_of));
    }
    t.equal("processes", spaces.len(), PROCESSES);
    for (device, space) in [first, second].into_iter().zip(&spaces) {
        t.ok("bound", device.bind(cpu, space));
    }
    BESIDE.begin(t.random() as usize, spaces);
    frames.set_reserve(frames.stats().free.saturating_sub(ROOM));
    let works: [(_, extern "C" fn(usize)); 3] = [("migrate", migrate), ("hold", hold), ("copy", copy_by_second)];
    let others = smp::online().without(cpu.id);
    for ((name, work), id) in works.into_iter().zip(others.iter()) {
        t.ok(name, sched::spawn_kernel(smp::cpu(id).unwrap_or(cpu), name, work, 0));
    }
    let is_here = |id: &u32| process::space_of(*id).is_some();
    while ids.iter().any(is_here) {
        copy(first);
        // One that has ended by itself has found an error.
        if BESIDE.is_enough() || !ids.iter().all(is_here) {
            ids.iter().for_each(|id| _ = terminate(*id));
        }
    }
    BESIDE.is_over.store(true, Ordering::Release);
    for id in ids {
        t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    }
    wait_until(|| sched::thread_count() <= threads);
    frames.set_reserve(reserve);
    [first, second].into_iter().for_each(|device| _ = t.ok("unbound", device.unbind(cpu)));
    BESIDE.spaces.get().into_iter().for_each(|spaces| spaces.lock().clear());
    settle(t, threads);
    report(t);
    t.equal("frames in use", frames_in_use(), before);
}

/// Prints and checks the counts of the threads beside the programs.
fn report(t: &mut Test) {
    let [copied, migrated, blocks, reclaimed, canaries] = BESIDE.counts();
    let spoilt = BESIDE.spoilt.load(Ordering::Relaxed);
    println!(
        "{copied} copies, {migrated} pages migrated, {blocks} looks at blocks, {reclaimed} pages of files given back, {canaries} canaries"
    );
    t.check("there was enough of each", BESIDE.is_enough());
    t.equal("frames that were written while they were nothing's", spoilt, 0);
}

/// Has a device copy the pages of the source to the target, as far as there are such pages at that moment.
fn copy(device: &Edu) {
    for page in 0..COPIED {
        if device.copy_in(DmaAddress((SOURCE + page * PAGE).0), 0, PAGE).is_err() {
            // Of a process that has ended it takes a second.
            break;
        }
        let written = device.copy_out(0, DmaAddress((TARGET + page * PAGE).0), PAGE);
        BESIDE.copied.fetch_add(usize::from(written.is_ok()), Ordering::Relaxed);
    }
    sleep_until(Deadline::after(Duration::from_millis(1)));
}

extern "C" fn copy_by_second(_: usize) {
    let Ok(device) = edu(this_cpu(), 1) else { return };
    while !BESIDE.is_over() {
        copy(device);
    }
}

/// Moves single pages of the processes to other frames, makes page blocks whole, and gives pages of files back.
extern "C" fn migrate(_: usize) {
    let (cpu, spaces, frames) = (this_cpu(), &kernel().spaces, kernel().frames);
    let mut left = heapless::Deque::<PhysAddr, HELD>::new();
    let mut draw = draws(BESIDE.seed.load(Ordering::Relaxed) as u64);
    for number in 1_u32.. {
        if BESIDE.is_over() {
            break;
        }
        // Where no page is found, or none moves, a process that ends may wait for this CPU.
        sched::relax();
        if number.is_multiple_of(64) {
            let given_back = spaces.reclaim(cpu, usize::MAX, Used::Age, &|| BESIDE.is_over());
            BESIDE.reclaimed.fetch_add(given_back, Ordering::Relaxed);
        }
        if number.is_multiple_of(512) {
            spaces.compact(cpu, 1, &|| BESIDE.is_over());
        }
        let Some(space) = BESIDE.space(draw(PROCESSES as u64) as usize) else { break };
        let (start, pages) = PLACES[draw(PLACES.len() as u64) as usize];
        let Some(found) = space.tables().translate(start + draw(pages) * PAGE) else { continue };
        BESIDE.blocks.fetch_add(usize::from(found.leaf_size > PAGE), Ordering::Relaxed);
        let Ok(to) = frames.alloc_movable(cpu) else { continue };
        match spaces.migrate_page(cpu, found.physical, to) {
            Ok(()) => _ = BESIDE.migrated.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                frames.free(cpu, to);
                continue;
            }
        }
        // The frame that was left is on top of this CPU's magazine.
        let Ok(frame) = frames.alloc_movable(cpu) else { continue };
        fill(frame);
        let _ = left.push_back(frame);
        if left.is_full()
            && let Some(frame) = left.pop_front()
        {
            look_at(frame);
            frames.free(cpu, frame);
        }
    }
    left.into_iter().for_each(|frame| frames.free(cpu, frame));
}

/// Watches frames that are free: it takes some, for longer than a transfer lasts.
extern "C" fn hold(_: usize) {
    let (cpu, frames) = (this_cpu(), kernel().frames);
    while !BESIDE.is_over() {
        let mut held = heapless::Deque::<PhysAddr, HELD>::new();
        while let Ok(frame) = frames.alloc_movable(cpu) {
            fill(frame);
            if held.push_back(frame).is_err() {
                frames.free(cpu, frame);
                break;
            }
        }
        sleep_until(Deadline::after(WATCHED));
        while let Some(frame) = held.pop_front() {
            look_at(frame);
            frames.free(cpu, frame);
        }
    }
}

/// Fills a frame of the calling thread's with canaries.
fn fill(frame: PhysAddr) {
    let words = layout::linear(frame).as_ptr::<u64>();
    // SAFETY: the frame is the caller's, and in the linear map.
    (0..PAGE as usize / 8).for_each(|word| unsafe { words.add(word).write_volatile(CANARY) });
    sched::relax();
}

/// Counts whether they are all there.
fn look_at(frame: PhysAddr) {
    let words = layout::linear(frame).as_ptr::<u64>();
    // SAFETY: as above.
    let is_whole = (0..PAGE as usize / 8).all(|word| unsafe { words.add(word).read_volatile() } == CANARY);
    BESIDE.canaries.fetch_add(1, Ordering::Relaxed);
    BESIDE.spoilt.fetch_add(usize::from(!is_whole), Ordering::Relaxed);
    sched::relax();
}
