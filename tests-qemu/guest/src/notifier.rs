//! Notifiers of a space, with calls and changes on several CPUs at once.
//!
//! Every order of a few steps is tried by `granule-loom`; here are the kernel's own calls, on CPUs with TLBs.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::kernel;
use granule::mm::kernel::Machine;
use granule::mm::kernel::mmu::{LinearView, Metal};
use granule::mm::notifier::{Event, Range, Subscriber, Subscription};
use granule::mm::space::{Access, MapRequest, Placement, Populate, Sharing, SpaceRef, handle_fault};
use granule::sched::{self, Work, sleep_until};
use granule::smp::{self, this_cpu};
use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_pgtable::{Granule4K, PageTables, Table};
use spin::mutex::SpinMutex;

use crate::harness::{Test, another_cpu, patience, target_test};

const START: VirtAddr = VirtAddr(0x40_0000);
const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);

type Joined<S> = Subscription<S, SpaceRef>;

/// A space with so many writable pages from [`START`] on.
fn space(t: &mut Test, pages: u64) -> Option<SpaceRef> {
    let space = t.ok("a space", kernel().spaces.create(this_cpu()))?;
    let request = MapRequest {
        placement: Placement::Fixed(START),
        bytes: pages * PAGE,
        protection: READ_WRITE,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    };
    t.ok("its pages", space.mmap(this_cpu(), &request))?;
    Some(space)
}

/// Makes the first page read-only although its area is not, as after a fork whose child has exited.
fn make_read_only(t: &mut Test, space: &SpaceRef) {
    t.ok("the page", handle_fault(space, this_cpu(), START, Access::Write));
    drop(t.ok("a child", space.fork(this_cpu())));
}

/// Waits until `flag` is set, at most some seconds; whether it is.
fn wait_for(flag: &AtomicBool) -> bool {
    let patience = patience();
    while !flag.load(Ordering::Acquire) && !patience.has_passed() {
        sleep_until(Deadline::after(Duration::from_micros(200)));
    }
    flag.load(Ordering::Acquire)
}

/// Waits until no thread is left that a test has made: for as long as a host takes that hardly lets the machine run.
fn wait_for_threads(t: &mut Test) {
    while sched::thread_count() != 0 {
        sleep_until(Deadline::after(Duration::from_millis(1)));
    }
    t.equal("threads that are left", sched::thread_count(), 0);
}

/// State that both sides of a test share.
struct Meeting {
    /// A call to the subscriber runs.
    running: AtomicBool,
    /// The other CPU has done its work, which is concurrent, or has begun it.
    go_on: AtomicBool,
    /// It was not done in time: something that the call holds was in its way.
    held_up: AtomicBool,
    /// The work that must wait for the end of the call is done.
    over: AtomicBool,
    /// It was done while the call was running.
    too_early: AtomicBool,
    /// Calls.
    calls: AtomicU32,
}

impl Meeting {
    const fn new() -> Self {
        Self {
            running: AtomicBool::new(false),
            go_on: AtomicBool::new(false),
            held_up: AtomicBool::new(false),
            over: AtomicBool::new(false),
            too_early: AtomicBool::new(false),
            calls: AtomicU32::new(0),
        }
    }

    fn reset(&self) {
        for flag in [&self.running, &self.go_on, &self.held_up, &self.over, &self.too_early] {
            flag.store(false, Ordering::Relaxed);
        }
        self.calls.store(0, Ordering::Relaxed);
    }
}

static MEETING: Meeting = Meeting::new();

/// Is in a call for as long as it takes to do something on another CPU. It sleeps there, as it may.
struct Slow;

impl Subscriber for Slow {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::ProtectionUpgrade {
            MEETING.calls.fetch_add(1, Ordering::Relaxed);
            MEETING.running.store(true, Ordering::Release);
            MEETING.held_up.store(!wait_for(&MEETING.go_on), Ordering::Relaxed);
            // Time for a thread that does not wait for this call to show it.
            sleep_until(Deadline::after(Duration::from_millis(20)));
            MEETING.too_early.store(MEETING.over.load(Ordering::Acquire), Ordering::Relaxed);
        }
    }
}

/// The space that the other thread works on.
static SHARED: SpinMutex<Option<SpaceRef>> = SpinMutex::new(None);

fn shared() -> SpaceRef {
    SHARED.lock().clone().expect("the test has put a space there")
}

/// Runs `work` in a thread on another CPU while `during` runs here.
fn meanwhile(t: &mut Test, work: extern "C" fn(usize), argument: usize, during: impl FnOnce(&mut Test)) {
    let here = this_cpu();
    let other = another_cpu(here);
    t.ok("a thread", sched::spawn_kernel(other, "meanwhile", work, argument));
    during(t);
    wait_for_threads(t);
    *SHARED.lock() = None;
}

/// The fault of a store whose upgrade a [`Slow`] subscriber gets while `work` runs elsewhere.
fn upgrade_meanwhile(t: &mut Test, space: &SpaceRef, work: extern "C" fn(usize), argument: usize) {
    MEETING.reset();
    *SHARED.lock() = Some(space.clone());
    meanwhile(t, work, argument, |t| {
        t.ok("the fault", handle_fault(space, this_cpu(), START, Access::Write));
    });
    t.equal("calls", MEETING.calls.load(Ordering::Relaxed), 1);
    t.check("nothing is held during an upgrade event", !MEETING.held_up.load(Ordering::Relaxed));
    t.check("nothing that waits for the call came before its end", !MEETING.too_early.load(Ordering::Relaxed));
}

fn entry(space: &SpaceRef, page: VirtAddr) -> Descriptor {
    space.tables().translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
}

target_test!(mprotect_and_munmap_come_between_an_upgrade_and_its_event, needs("smp"), limit(60));
fn mprotect_and_munmap_come_between_an_upgrade_and_its_event(t: &mut Test) {
    extern "C" fn change(number: usize) {
        let space = shared();
        wait_for(&MEETING.running);
        if number == 0 {
            space.mprotect(START, PAGE, Protection::READ).expect("it is mapped");
        } else {
            space.munmap(this_cpu(), START, PAGE).expect("pages");
        }
        MEETING.go_on.store(true, Ordering::Release);
    }
    for number in [0, 1] {
        let Some(space) = space(t, 1) else { return };
        make_read_only(t, &space);
        let Some(slow) = t.ok("to join", Joined::new(space.clone(), Slow, 1)) else { return };
        let device = Device::of(&space);
        let Some(device) = t.ok("to join", Joined::new(space.clone(), device, 0)) else { return };
        device.read(START);
        t.check("the device has the read-only entry", !device.is_empty());
        upgrade_meanwhile(t, &space, change, number);
        t.check("the change was the later one", !entry(&space, START).may_be_written());
        t.check("the device has nothing", device.is_empty());
        drop((slow, device));
        if t.has_failed() {
            break;
        }
    }
}

target_test!(the_end_of_a_space_waits_for_a_late_event, needs("smp"), limit(60));
fn the_end_of_a_space_waits_for_a_late_event(t: &mut Test) {
    extern "C" fn end(_: usize) {
        let space = shared();
        wait_for(&MEETING.running);
        MEETING.go_on.store(true, Ordering::Release);
        space.release(this_cpu());
        MEETING.over.store(true, Ordering::Release);
    }
    let Some(space) = space(t, 1) else { return };
    make_read_only(t, &space);
    let Some(slow) = t.ok("to join", Joined::new(space.clone(), Slow, 0)) else { return };
    upgrade_meanwhile(t, &space, end, 0);
    t.check("it has ended", MEETING.over.load(Ordering::Relaxed));
    t.check("the chain is empty", space.notifiers().is_empty());
    // An event that comes later still finds the chain, and it is empty.
    space.notifiers().upgraded(START, 0x1000);
    t.equal("calls", MEETING.calls.load(Ordering::Relaxed), 1);
    drop(slow);
}

target_test!(who_leaves_waits_for_a_running_call, needs("smp"), limit(60));
fn who_leaves_waits_for_a_running_call(t: &mut Test) {
    static LEAVING: SpinMutex<Option<Joined<Slow>>> = SpinMutex::new(None);
    extern "C" fn leave(_: usize) {
        let leaving = LEAVING.lock().take();
        wait_for(&MEETING.running);
        MEETING.go_on.store(true, Ordering::Release);
        drop(leaving);
        MEETING.over.store(true, Ordering::Release);
    }
    let Some(space) = space(t, 1) else { return };
    make_read_only(t, &space);
    *LEAVING.lock() = t.ok("to join", Joined::new(space.clone(), Slow, 0));
    upgrade_meanwhile(t, &space, leave, 0);
    t.check("it has left", MEETING.over.load(Ordering::Relaxed));
    t.check("no subscriber is left", space.notifiers().is_empty());
}

// A thread of a process that exits has a signal, and may share its CPU with the call that it waits for.
target_test!(leaving_with_a_signal_pending_lets_a_sleeping_call_of_this_cpu_end, limit(30));
fn leaving_with_a_signal_pending_lets_a_sleeping_call_of_this_cpu_end(t: &mut Test) {
    static LEAVING: SpinMutex<Option<Joined<Slow>>> = SpinMutex::new(None);
    extern "C" fn leave(_: usize) {
        let leaving = LEAVING.lock().take();
        wait_for(&MEETING.running);
        sched::current().raise(Work::SIGNAL);
        MEETING.go_on.store(true, Ordering::Release);
        drop(leaving);
        MEETING.over.store(true, Ordering::Release);
    }
    let Some(space) = space(t, 1) else { return };
    make_read_only(t, &space);
    *LEAVING.lock() = t.ok("to join", Joined::new(space.clone(), Slow, 0));
    MEETING.reset();
    t.ok("a thread", sched::spawn_kernel(this_cpu(), "leave", leave, 0));
    t.ok("the fault", handle_fault(&space, this_cpu(), START, Access::Write));
    wait_for_threads(t);
    t.equal("calls", MEETING.calls.load(Ordering::Relaxed), 1);
    t.check("it has left, and not before the call had ended", {
        MEETING.over.load(Ordering::Relaxed) && !MEETING.too_early.load(Ordering::Relaxed)
    });
    t.check("no subscriber is left", space.notifiers().is_empty());
}

/// Mirrors one entry, updated only by events: it has no TLB of its own.
struct Mirror(AtomicU64);

impl Subscriber for Mirror {
    fn invalidate_range_start(&self, range: &Range) {
        if range.start <= START && START < range.end {
            self.0.store(0, Ordering::Relaxed);
        }
    }
}

target_test!(a_mirror_follows_an_upgrade_by_its_event);
fn a_mirror_follows_an_upgrade_by_its_event(t: &mut Test) {
    let Some(space) = space(t, 1) else { return };
    make_read_only(t, &space);
    let Some(mirror) = t.ok("to join", Joined::new(space.clone(), Mirror(AtomicU64::new(0)), 0)) else { return };
    mirror.0.store(entry(&space, START).0, Ordering::Relaxed);
    t.check("it is read-only", !entry(&space, START).may_be_written());
    t.ok("the fault", handle_fault(&space, this_cpu(), START, Access::Write));
    t.check("it is writable", entry(&space, START).may_be_written());
    t.equal("what the mirror has of it", mirror.0.load(Ordering::Relaxed), 0);
    // A fault that changes nothing is none.
    let now = entry(&space, START).0;
    mirror.0.store(now, Ordering::Relaxed);
    t.ok("the fault", handle_fault(&space, this_cpu(), START, Access::Write));
    t.equal("what the mirror has of it", mirror.0.load(Ordering::Relaxed), now);
}

/// Pages of the space that [`a_device_follows_every_change`] works on.
const PAGES: u64 = 16;

/// The bits that a device uses, the address among them.
const HARDWARE: u64 = bits::VALID | bits::ADDRESS | bits::AF | bits::RDONLY | bits::USER | bits::UXN;

/// Walks the tables of a space, and keeps what it has read until it is invalidated.
struct Device {
    root: Table,
    mmu: Machine,
    /// The cached entries, by page; 0 for none. A walk and its store here are one step.
    kept: SpinMutex<[u64; PAGES as usize]>,
    reads: AtomicU64,
}

impl Device {
    fn of(space: &SpaceRef) -> Self {
        // SAFETY: the root of a space, which the test keeps for longer; its tables are not unlinked concurrently.
        let root = unsafe { Table::<Granule4K>::root(space.root()) };
        Self { root, mmu: Metal(LinearView {}), kept: SpinMutex::new([0; PAGES as usize]), reads: AtomicU64::new(0) }
    }

    fn index(page: VirtAddr) -> usize {
        ((page - START) / PAGE) as usize
    }

    fn walk(&self, page: VirtAddr) -> Descriptor {
        PageTables::new(&self.mmu, self.root).translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
    }

    fn read(&self, page: VirtAddr) {
        let mut kept = self.kept.lock();
        let entry = self.walk(page);
        if entry.is_valid() && entry.is_young() && kept[Self::index(page)] == 0 {
            kept[Self::index(page)] = entry.0;
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.kept.lock().iter().all(|&kept| kept == 0)
    }

    fn forget(&self, start: VirtAddr, end: VirtAddr) {
        let mut kept = self.kept.lock();
        for (page, kept) in (0..PAGES).map(|page| START + page * PAGE).zip(kept.iter_mut()) {
            if start <= page && page < end {
                *kept = 0;
            }
        }
    }

    /// The pages of which it has something else than the entries, a bit each. They do not change concurrently.
    fn stale(&self) -> u64 {
        let kept = *self.kept.lock();
        let differs = |&page: &u64| {
            let kept = kept[page as usize];
            kept != 0 && (kept ^ self.walk(START + page * PAGE).0) & HARDWARE != 0
        };
        (0..PAGES).filter(differs).fold(0, |pages, page| pages | 1 << page)
    }
}

impl Subscriber for Device {
    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        self.forget(start, end);
    }

    fn release(&self) {
        self.forget(VirtAddr(0), VirtAddr(u64::MAX));
    }
}

target_test!(a_device_follows_every_change, needs("smp"), limit(120));
fn a_device_follows_every_change(t: &mut Test) {
    static DEVICE: SpinMutex<Option<Joined<Device>>> = SpinMutex::new(None);
    /// Random faults and calls on the shared space; the device reads in between.
    extern "C" fn work(seed: usize) {
        let (space, cpu) = (shared(), this_cpu());
        let mut random = seed as u64;
        for _ in 0..400 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (what, page) = (random >> 33 & 15, random >> 40 & (PAGES - 1));
            let (at, pages) = (START + page * PAGE, (random >> 50 & 3) + 1);
            let bytes = pages.min(PAGES - page) * PAGE;
            // This does not test whether a call is refused.
            match what {
                0..=4 => _ = handle_fault(&space, cpu, at, Access::Write),
                5..=7 => _ = handle_fault(&space, cpu, at, Access::Read),
                8 => _ = space.mprotect(at, bytes, Protection::READ),
                9 | 10 => _ = space.mprotect(at, bytes, READ_WRITE),
                11 => _ = space.madvise_dontneed(cpu, at, bytes),
                12 => drop(space.fork(cpu)),
                _ => {
                    if let Some(device) = DEVICE.lock().as_ref() {
                        device.read(at);
                    }
                }
            }
        }
    }
    let Some(space) = space(t, PAGES) else { return };
    t.ok("a table", handle_fault(&space, this_cpu(), START, Access::Read));
    let Some(device) = t.ok("to join", Joined::new(space.clone(), Device::of(&space), 0)) else { return };
    *DEVICE.lock() = Some(device);
    *SHARED.lock() = Some(space.clone());
    for _ in 0..4 {
        smp::for_each(|cpu| {
            let seed = t.random() as usize;
            t.ok("a thread", sched::spawn_kernel(cpu, "work", work, seed));
        });
        wait_for_threads(t);
        let stale = DEVICE.lock().as_ref().map_or(u64::MAX, |device| device.stale());
        t.equal("pages of which the device has something else than the entries", stale, 0);
    }
    *SHARED.lock() = None;
    let device = DEVICE.lock().take();
    let reads = device.as_deref().map_or(0, |device| device.reads.load(Ordering::Relaxed));
    t.check("the device has read", reads > 100);
    // The checker can fail: one entry changes without a notification.
    if let Some(device) = &device {
        t.ok("writable", space.mprotect(START, PAGE, READ_WRITE));
        t.ok("a page", handle_fault(&space, this_cpu(), START, Access::Write));
        device.read(START);
        let kept = device.kept.lock()[0];
        device.kept.lock()[0] = kept ^ bits::RDONLY;
        t.equal("what the device has is noticed", device.stale(), 1);
        device.forget(START, START + PAGE);
    }
}
