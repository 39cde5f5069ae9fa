//! The event of an upgrade comes late: `mprotect`, `munmap` and the end of the space between the unlock and the event.
//!
//! A page of one entry, which a fault makes writable under the table's lock, by the kernel's own functions for both;
//! the event follows when the lock is dropped. A device walks the same table and keeps what it read until an
//! invalidation. In no order does it end up with something else than the entry holds, or with a page that has another
//! owner.

use std::sync::Arc;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection};
use granule_loom::mm::table::ChangedEntry;
use granule_loom::notifier::{Event, Range, Subscriber};
use granule_loom::{Machine, Without};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, Ordering};

use crate::leaving::{Chain, Joined};
use crate::{assert_caught, threads};

const PAGE: VirtAddr = VirtAddr(0x1000);
const FRAME: granule_arch::addr::PhysAddr = granule_arch::addr::PhysAddr(0x4000_0000);

fn entry(protection: Protection) -> Descriptor {
    Descriptor::page(FRAME, Attributes::user(MemoryType::Normal, protection)).dirty()
}

/// The entry after a store.
fn upgraded() -> Descriptor {
    entry(READ).young().writable().dirty()
}

/// A page of one entry.
struct Page {
    entry: ChangedEntry,
    /// The frame has another owner.
    freed: AtomicBool,
    /// The device must not be called any more.
    released: AtomicBool,
}

/// The CPUs.
const FAULTS: usize = 0;
const CHANGES: usize = 1;

/// The device's reaction to the event of an upgrade.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnUpgrade {
    /// It forgets.
    Forgets,
    /// It makes its own entry writable.
    Upgrades,
    /// It looks the entry up under the table's lock.
    Looks,
}

/// A device that walks the table.
struct Device {
    page: Arc<Page>,
    on_upgrade: OnUpgrade,
    /// The entry that it has read and not forgotten.
    kept: Mutex<Option<Descriptor>>,
    /// It translates no more.
    stopped: AtomicBool,
}

impl Device {
    /// An access: by what it has kept, or by a walk.
    fn access(&self) {
        let mut kept = self.kept.lock().unwrap();
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        let found = kept.unwrap_or_else(|| self.page.entry.load(CHANGES));
        if found.is_present() {
            *kept = Some(found);
        }
    }

    fn forget(&self) {
        assert!(!self.page.released.load(Ordering::Relaxed), "a call after the release");
        *self.kept.lock().unwrap() = None;
    }
}

impl Subscriber for Device {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::ProtectionUpgrade {
            match self.on_upgrade {
                OnUpgrade::Forgets => self.forget(),
                OnUpgrade::Upgrades => *self.kept.lock().unwrap() = Some(upgraded()),
                OnUpgrade::Looks => self.page.entry.wait_for_lock(),
            }
        }
    }

    /// In the place of the invalidation of secondary TLBs, which the TLB functions alone may ask for.
    fn invalidate_range(&self, _: VirtAddr, _: VirtAddr) {
        self.forget();
    }

    fn release(&self) {
        let mut kept = self.kept.lock().unwrap();
        self.stopped.store(true, Ordering::Relaxed);
        *kept = None;
    }
}

const READ: Protection = Protection::READ;

/// When the event of an upgrade comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EventTime {
    AfterUnlock,
    /// As with `lab=notify-before-unlock`.
    BeforeUnlock,
    /// As with `lab=no-upgrade-event`.
    Never,
}

/// The fault of a store: the entry becomes writable, if it is still there.
fn upgrade(page: &Page, chain: &Chain, time: EventTime) {
    let early = || {
        if time == EventTime::BeforeUnlock {
            chain.upgraded(PAGE, 0x1000);
        }
    };
    if page.entry.upgrade(FAULTS, early) && time == EventTime::AfterUnlock {
        chain.upgraded(PAGE, 0x1000);
    }
}

type Change = fn(&Page, &Chain);

fn mprotect(page: &Page, chain: &Chain) {
    let _section = chain.start(Range::page(Event::ProtectionVma, PAGE));
    page.entry.replace(CHANGES, entry(READ));
    chain.invalidate_range(PAGE, PAGE + 0x1000);
}

fn munmap(page: &Page, chain: &Chain) {
    let section = chain.start(Range::page(Event::Unmap, PAGE));
    page.entry.replace(CHANGES, Descriptor::EMPTY);
    chain.invalidate_range(PAGE, PAGE + 0x1000);
    drop(section);
    page.freed.store(true, Ordering::Relaxed);
}

fn exit(page: &Page, chain: &Chain) {
    chain.release();
    page.released.store(true, Ordering::Relaxed);
    page.entry.replace(CHANGES, Descriptor::EMPTY);
    page.freed.store(true, Ordering::Relaxed);
}

/// A fault on one CPU, `change` on another, and a device that may walk in between. The space itself goes last, with
/// the last reference to it.
fn late_event(change: Change, on_upgrade: OnUpgrade, time: EventTime) {
    threads(move || {
        let page = Arc::new(Page {
            entry: ChangedEntry::new(Machine::new(1, Without::Nothing), entry(READ)),
            freed: AtomicBool::new(false),
            released: AtomicBool::new(false),
        });
        let chain = Chain::default();
        let device = Device {
            page: Arc::clone(&page),
            on_upgrade,
            kept: Mutex::new(Some(entry(READ))),
            stopped: AtomicBool::new(false),
        };
        let device: Arc<Joined<Device>> = Arc::new(Joined::new(Arc::clone(&chain), device, 0).unwrap());
        let (other, others, walks) = (Arc::clone(&page), Arc::clone(&chain), Arc::clone(&device));
        let changing = loom::thread::spawn(move || {
            change(&other, &others);
            walks.access();
        });
        upgrade(&page, &chain, time);
        changing.join().unwrap();
        let kept = *device.kept.lock().unwrap();
        if let Some(kept) = kept {
            assert!(!page.freed.load(Ordering::Relaxed), "the device has a page that has another owner");
            assert_eq!(kept, page.entry.load(FAULTS), "the device has what the entry does not say");
        }
    });
}

#[test]
fn an_event_after_mprotect_only_invalidates() {
    late_event(mprotect, OnUpgrade::Forgets, EventTime::AfterUnlock);
}

#[test]
fn an_event_after_munmap_touches_nothing_freed() {
    late_event(munmap, OnUpgrade::Forgets, EventTime::AfterUnlock);
}

#[test]
fn an_event_after_the_end_of_the_space_reaches_no_subscriber() {
    late_event(exit, OnUpgrade::Forgets, EventTime::AfterUnlock);
}

#[test]
fn a_subscriber_that_upgrades_its_entry_from_the_event_is_caught() {
    for change in [mprotect as Change, munmap] {
        assert_caught("the device has", || late_event(change, OnUpgrade::Upgrades, EventTime::AfterUnlock));
    }
}

/// Nothing changes in between: what the device has is the old permission, for ever.
#[test]
fn an_upgrade_without_an_event_is_caught() {
    fn nothing(_: &Page, _: &Chain) {}
    late_event(nothing, OnUpgrade::Forgets, EventTime::AfterUnlock);
    assert_caught("the device has what the entry does not say", || {
        late_event(nothing, OnUpgrade::Forgets, EventTime::Never);
    });
}

/// A subscriber may look into the tables: no lock of theirs is held then.
#[test]
fn an_event_under_the_lock_of_the_table_is_caught() {
    fn nothing(_: &Page, _: &Chain) {}
    // It spins for ever.
    assert_caught("maximum number of branches", || late_event(nothing, OnUpgrade::Looks, EventTime::BeforeUnlock));
}

#[test]
fn a_change_that_does_not_invalidate_is_caught() {
    fn silent(page: &Page, chain: &Chain) {
        let _section = chain.start(Range::page(Event::ProtectionVma, PAGE));
        page.entry.replace(CHANGES, Descriptor::EMPTY);
    }
    assert_caught("the device has what the entry does not say", || {
        late_event(silent, OnUpgrade::Forgets, EventTime::AfterUnlock);
    });
}

#[test]
fn an_end_of_the_space_that_does_not_wait_is_caught() {
    use granule_loom::{Omitted, omit};
    fn hasty(page: &Page, chain: &Chain) {
        omit(Omitted::Fences);
        exit(page, chain);
        omit(Omitted::Nothing);
    }
    assert_caught("a call after the release", || late_event(hasty, OnUpgrade::Forgets, EventTime::AfterUnlock));
}
