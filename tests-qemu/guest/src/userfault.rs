//! Pages that a pager has write-protected, and that are gone when they are written next: which stores the pager reads of.
//!
//! The store is a kernel thread's, by the process's addresses. It waits for the pager as a program does.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::devices::edu::edu;
use granule::devices::slot::Driver;
use granule::iommu::DmaAddress;
use granule::kernel;
use granule::mm::counted::Counted;
use granule::mm::notifier::{Event, Range, Subscriber, Subscription};
use granule::mm::space::{
    Enrolment, Features, MapRequest, MappedFile, Mark, Message, Object, PageFault, Placement, Populate, Reason, Seals,
    Sharing, SpaceRef, Terms, Used, Userfaultfd,
};
use granule::sched::{self, IfNotReady, sleep_until};
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers, NonPresent, Protection};
use spin::mutex::SpinMutex;

use crate::harness::{Test, another_cpu, target_test, wait_until};

/// The page that is watched.
pub(crate) const START: VirtAddr = VirtAddr(0x40_0000);
/// The message of a store that is reported.
const REPORTED: Option<PageFault> =
    Some(PageFault { address: START, is_write: true, reason: Reason::WriteProtected, thread: None });

/// A page of a process, registered for write-protection.
pub(crate) struct Watched {
    space: SpaceRef,
    pager: Counted<Userfaultfd>,
}

/// The memory that a page is of.
#[derive(Clone, Copy)]
pub(crate) enum Memory<'a> {
    /// Private, of no object.
    Anonymous,
    /// Shared, of an object without a name.
    Shared,
    /// Private, of a file.
    File(&'a Counted<Object>),
}

/// Where the thread stores, what, and whether it has.
static SPACE: SpinMutex<Option<SpaceRef>> = SpinMutex::new(None);
static STATE: AtomicU32 = AtomicU32::new(0);

const STORED: u32 = 1;
const FAILED: u32 = 2;
/// Bytes of what is stored.
const VALUE: u64 = 8;

extern "C" fn store(value: usize) {
    let space = SPACE.lock().take();
    let stored = space.map(|space| space.write_bytes(this_cpu(), START, &value.to_le_bytes()));
    STATE.store(if stored == Some(Ok(())) { STORED } else { FAILED }, Ordering::Release);
}

/// Has a device store what it has copied before.
extern "C" fn copy_out(index: usize) {
    let stored = edu(this_cpu(), index).map(|device| device.copy_out(0, DmaAddress(START.0), VALUE));
    STATE.store(if matches!(stored, Ok(Ok(_))) { STORED } else { FAILED }, Ordering::Release);
}

impl Watched {
    /// One page of `memory` that nothing has written, which is not protected.
    pub(crate) fn new(t: &mut Test, memory: Memory<'_>) -> Option<Self> {
        let cpu = this_cpu();
        let (sharing, file) = match memory {
            Memory::Anonymous => (Sharing::Private, None),
            Memory::Shared => (Sharing::Shared, None),
            Memory::File(object) => (Sharing::Private, Some(MappedFile { object, first_page: 0, may_write: true })),
        };
        let request = MapRequest {
            placement: Placement::Fixed(START),
            bytes: PAGE,
            protection: Protection::READ.and(Protection::WRITE),
            sharing,
            populate: Populate::OnDemand,
        };
        let space = t.ok("a space", kernel().spaces.create(cpu))?;
        t.ok("a page", space.mmap_within(cpu, &request, &Terms { file, ..Terms::NONE }, &|| false))?;
        let pager = t.ok("a userfaultfd", Userfaultfd::new(&space, false, 0))?;
        t.ok("agreed", pager.agree(Features(Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM)))?;
        let enrolment = Enrolment { missing: false, minor: false, write_protected: true };
        t.ok("registered", Userfaultfd::register(&pager, cpu, START, PAGE, enrolment))?;
        Some(Self { space, pager })
    }

    pub(crate) fn protect(&self, t: &mut Test) {
        t.ok("write-protected", self.pager.write_protect(this_cpu(), None, START, PAGE, Mark::Set));
        t.check("its entry has the mark", self.entry().is_uffd_wp() && !self.entry().may_be_written());
    }

    /// Discards the page: `MADV_DONTNEED`.
    pub(crate) fn discard(&self, t: &mut Test) {
        t.ok("discarded", self.space.madvise_dontneed(this_cpu(), START, PAGE));
        t.check("it has no page there", !self.entry().is_valid());
    }

    /// The entry of the page.
    pub(crate) fn entry(&self) -> Descriptor {
        self.space.tables().entry(START).descriptor
    }

    /// Whether the entry has no page, and remembers that it is write-protected.
    pub(crate) fn has_marker(&self) -> bool {
        matches!(self.entry().non_present(), NonPresent::Marker(markers) if markers.contains(Markers::UFFD_WP))
    }

    /// The word at the start of the page.
    pub(crate) fn load(&self) -> u64 {
        let mut bytes = [0; 8];
        self.space.read_bytes(this_cpu(), START, &mut bytes).map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
    }

    /// Stores `value`. If the store waits for the pager: the message, after which the pager ends the protection.
    pub(crate) fn store(&self, t: &mut Test, value: u64) -> Option<PageFault> {
        *SPACE.lock() = Some(self.space.clone());
        self.store_by(t, store, value as usize, value)
    }

    /// As [`Self::store`], by a thread that calls `work(argument)`, after which the page must hold `value`.
    fn store_by(&self, t: &mut Test, work: extern "C" fn(usize), argument: usize, value: u64) -> Option<PageFault> {
        STATE.store(0, Ordering::Relaxed);
        let cpu = this_cpu();
        t.ok("a thread", sched::spawn_kernel(another_cpu(cpu), "store", work, argument));
        wait_until(|| self.pager.has_message() || STATE.load(Ordering::Acquire) != 0);
        let read = self.pager.read(IfNotReady::Fail).ok().map(|reading| {
            let message = reading.message().clone();
            reading.done();
            message
        });
        if read.is_some() {
            t.equal("the store waits", STATE.load(Ordering::Acquire), 0);
            t.ok("not write-protected", self.pager.write_protect(cpu, None, START, PAGE, Mark::Clear));
            t.ok("woken", self.pager.wake(START, PAGE));
        }
        wait_until(|| sched::thread_count() == 0);
        t.equal("the store", (STATE.load(Ordering::Acquire), self.load()), (STORED, value));
        match read {
            Some(Message::Fault(fault)) => Some(fault),
            _ => None,
        }
    }

    /// Stores `value`, and compares the message with `wanted`.
    fn compare(&self, t: &mut Test, what: &str, value: u64, wanted: Option<PageFault>) {
        let message = self.store(t, value);
        t.equal(what, message, wanted);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.pager.close();
    }
}

// `lab=drop-marker-always` fails it.
target_test!(a_store_to_shared_memory_is_reported_though_its_page_was_discarded);
fn a_store_to_shared_memory_is_reported_though_its_page_was_discarded(t: &mut Test) {
    let Some(watched) = Watched::new(t, Memory::Shared) else { return };
    watched.compare(t, "before it is protected", 1, None);
    watched.protect(t);
    watched.discard(t);
    t.equal("the object has the page", watched.load(), 1);
    watched.compare(t, "a store to it, mapped again", 2, REPORTED);
    watched.compare(t, "the next store", 3, None);
    watched.protect(t);
    watched.discard(t);
    t.check("a marker is there", watched.has_marker());
    watched.compare(t, "a store to what is not mapped", 4, REPORTED);
}

// `lab=no-marker-on-reclaim` fails it.
target_test!(a_store_to_a_file_is_reported_though_its_page_was_reclaimed);
fn a_store_to_a_file_is_reported_though_its_page_was_reclaimed(t: &mut Test) {
    static CONTENTS: [u8; 8] = *b"the file";
    let cpu = this_cpu();
    let file = kernel().spaces.create_object(cpu, PAGE, Some(&CONTENTS), Seals(0));
    let Some(file) = t.ok("a file", file) else { return };
    let Some(watched) = Watched::new(t, Memory::File(&file)) else { return };
    t.equal("what it holds", watched.load(), u64::from_le_bytes(CONTENTS));
    watched.protect(t);
    wait_until(|| {
        kernel().spaces.reclaim(cpu, usize::MAX, Used::Age, &|| false);
        !watched.entry().is_valid()
    });
    t.equal("pages of the file", file.pages(), 0);
    t.check("a marker is there", watched.has_marker());
    watched.compare(t, "a store", 2, REPORTED);
}

// `lab=marker-on-anon` fails it.
target_test!(a_store_to_a_new_anonymous_page_is_not_reported);
fn a_store_to_a_new_anonymous_page_is_not_reported(t: &mut Test) {
    let Some(watched) = Watched::new(t, Memory::Anonymous) else { return };
    watched.compare(t, "a store", 1, None);
    watched.protect(t);
    watched.discard(t);
    t.equal("its entry", watched.entry(), Descriptor::EMPTY);
    watched.compare(t, "a store to the new page", 2, None);
}

// A device's fault takes the path of a CPU's: the transfer waits, and continues when the pager has served it.
target_test!(a_devices_store_to_a_protected_page_is_reported, needs("smmuv3 edu smp"), limit(30));
fn a_devices_store_to_a_protected_page_is_reported(t: &mut Test) {
    let cpu = this_cpu();
    let (Some(watched), Some(device)) = (Watched::new(t, Memory::Shared), t.ok("edu", edu(cpu, 0))) else { return };
    t.ok("bound", device.bind(cpu, &watched.space));
    watched.compare(t, "what the device will store", 7, None);
    t.ok("copied", device.copy_in(DmaAddress(START.0), 0, VALUE));
    watched.compare(t, "something else", 8, None);
    watched.protect(t);
    let message = watched.store_by(t, copy_out, 0, 7);
    t.equal("a store to a page", message, REPORTED);
    watched.compare(t, "something else again", 9, None);
    watched.protect(t);
    watched.discard(t);
    let message = watched.store_by(t, copy_out, 0, 7);
    t.equal("a store to a marker", message, REPORTED);
    let message = watched.store_by(t, copy_out, 0, 7);
    t.equal("a store to what is not protected", message, None);
    t.ok("unbound", device.unbind(cpu));
}

/// Sleeps while the page is on its way to another frame.
struct HoldsUp;

static IS_HELD_UP: AtomicBool = AtomicBool::new(false);
static FRAME: AtomicU64 = AtomicU64::new(0);

impl Subscriber for HoldsUp {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::Migrate && !IS_HELD_UP.swap(true, Ordering::AcqRel) {
            sleep_until(Deadline::after(Duration::from_millis(50)));
        }
    }
}

extern "C" fn move_page(_: usize) {
    let (cpu, frames) = (this_cpu(), kernel().frames);
    let Ok(to) = frames.alloc_movable(cpu) else { return };
    if kernel().spaces.migrate_page(cpu, PhysAddr(FRAME.load(Ordering::Relaxed)), to).is_err() {
        frames.free(cpu, to);
    }
}

extern "C" fn load(_: usize) {
    let space = SPACE.lock().take();
    let mut bytes = [0; VALUE as usize];
    let loaded = space.map(|space| space.read_bytes(this_cpu(), START, &mut bytes));
    STATE.store(if loaded == Some(Ok(())) { STORED } else { FAILED }, Ordering::Release);
}

// An access of the kernel is repeated until it is served. If it did not wait, the thread that moves the page would never run
// again on this CPU.
target_test!(a_fault_at_a_marker_waits_for_the_page_that_is_on_its_way, needs("smp"), limit(30));
fn a_fault_at_a_marker_waits_for_the_page_that_is_on_its_way(t: &mut Test) {
    let Some(watched) = Watched::new(t, Memory::Shared) else { return };
    watched.compare(t, "a store", 7, None);
    watched.protect(t);
    let Some(found) = t.ok("the page", watched.space.tables().translate(START).ok_or("none")) else { return };
    FRAME.store(found.physical.0, Ordering::Relaxed);
    watched.discard(t);
    t.check("a marker is there", watched.has_marker());
    let Some(joined) = t.ok("a subscriber", Subscription::new(watched.space.clone(), HoldsUp, 0)) else { return };
    let other = another_cpu(this_cpu());
    IS_HELD_UP.store(false, Ordering::Relaxed);
    STATE.store(0, Ordering::Relaxed);
    *SPACE.lock() = Some(watched.space.clone());
    t.ok("a thread", sched::spawn_kernel(other, "move", move_page, 0));
    wait_until(|| IS_HELD_UP.load(Ordering::Acquire));
    t.ok("another", sched::spawn_kernel(other, "load", load, 0));
    wait_until(|| sched::thread_count() == 0);
    t.equal("it was loaded", (STATE.load(Ordering::Acquire), watched.load()), (STORED, 7));
    let moved = watched.space.tables().translate(START).map(|found| found.physical.0);
    t.check("from another frame", moved.is_some_and(|moved| moved != FRAME.load(Ordering::Relaxed)));
    drop(joined);
}
