//! Changes and accesses of a device, each printed in a line, which a test compares with QEMU's trace
//! (`tests-qemu/host/tests/outside/smmu_trace.rs`).

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use granule::devices::disk::SECTOR;
use granule::devices::edu::{EduError, edu};
use granule::devices::slot::Driver;
use granule::iommu::{Direction, DmaAddress, Mode, NotifyMode, iommu};
use granule::mm::space::{FaultError, Sharing};
use granule::smp::this_cpu;
use granule::{kernel, println};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_protocol::{Access, Expectation};

use super::{DELIVERED, PAGE, READ_WRITE, Rig, START, WRITTEN};
use crate::harness::{Test, target_test};

/// Pages of the memory that is worked on; more than one command covers.
const PAGES: u64 = 40;
/// Rounds of six changes.
const ROUNDS: u64 = 40;

struct Account {
    rig: Rig,
    stream: u32,
    is_notified_by_events: bool,
}

impl Account {
    /// The device reads a page that is there.
    fn reads(&self, t: &mut Test, page: VirtAddr) {
        let done = self.rig.disk.write(WRITTEN, DmaAddress(page.0), SECTOR);
        if t.ok("the device reads", done).is_some() {
            self.reached(Access::Read, page);
        }
    }

    /// The device writes a page that it may write.
    fn writes(&self, t: &mut Test, page: VirtAddr) {
        t.equal("the device writes, at once", self.rig.device_store(page, DELIVERED), Ok(1));
        self.reached(Access::Write, page);
    }

    fn reached(&self, access: Access, page: VirtAddr) {
        let physical = self.rig.physical(page).0;
        println!("{}", Expectation::Reached { stream: self.stream, access, page: page.0, physical });
    }

    /// The device is refused a page.
    fn refused(&self, t: &mut Test, page: VirtAddr) {
        t.check("the device does not write", self.rig.device_store(page, DELIVERED).is_err());
        println!("{}", Expectation::Refused { stream: self.stream, access: Access::Write, page: page.0 });
    }

    /// The CPU's store. Of an entry that is read-only it makes one that is writable, or another one.
    fn store(&self, t: &mut Test, page: VirtAddr, value: u64) {
        let before = self.rig.entry(page);
        self.rig.store(t, page, value);
        if !before.is_valid() || before.may_be_written() {
            return;
        }
        if self.rig.physical(page) == before.address() {
            self.changed(page, 1);
        } else {
            self.taken_away(page, 1);
        }
    }

    /// Pages were taken out of the tables. By events the call comes at once, and again when the change is over.
    fn taken_away(&self, page: VirtAddr, pages: u64) {
        for _ in 0..if self.is_notified_by_events { 2 } else { 1 } {
            self.changed(page, pages);
        }
    }

    fn changed(&self, page: VirtAddr, pages: u64) {
        println!("{}", Expectation::Changed { start: page.0, end: page.0 + pages * PAGE });
    }
}

target_test!(what_a_device_writes_while_it_is_shut_out_does_not_arrive, needs("smmuv3 edu"), limit(60));
fn what_a_device_writes_while_it_is_shut_out_does_not_arrive(t: &mut Test) {
    let cpu = this_cpu();
    let Some(device) = t.ok("edu", edu(cpu, 0)) else { return };
    let dma = device.dma();
    let (Some(stream), Some(frame)) = (dma.stream(), t.ok("a page", kernel().frames.alloc_zeroed(cpu))) else { return };
    let Some(at) = t.ok("shown", dma.map(cpu, frame, PAGE_SIZE, Direction::Both)) else { return };
    let word: *mut u64 = kernel().frames.linear().address(frame).as_ptr();
    // SAFETY: this test's page, which the device has only during transfers.
    let store = |value: u64| unsafe { word.write_volatile(value) };
    // SAFETY: as above.
    let load = || unsafe { word.read_volatile() };
    store(7);
    t.ok("in", device.copy_in(at, 0, 8));
    println!("{}", Expectation::Reached { stream, access: Access::Read, page: at.0, physical: frame.0 });
    // The device reports success each time, and the SMMU leaves no record of what it aborts.
    for mode in [Mode::Translated, Mode::Abort, Mode::Translated] {
        store(0);
        t.ok("set", dma.set_mode(mode));
        let copied = device.copy_out(0, at, 8);
        if mode == Mode::Translated {
            t.equal("out", copied, Ok(1));
            t.equal("it has arrived", load(), 7);
            println!("{}", Expectation::Reached { stream, access: Access::Write, page: at.0, physical: frame.0 });
        } else {
            t.equal("refused", copied, Err(EduError::Fault(FaultError::NotMapped)));
            t.equal("nothing has arrived", load(), 0);
            println!("{}", Expectation::Refused { stream, access: Access::Write, page: at.0 });
        }
    }
    dma.unmap(cpu, at, PAGE_SIZE);
    kernel().frames.free(cpu, frame);
}

target_test!(each_change_is_notified_once_and_exactly, needs("smmuv3 virtio-blk"), limit(60));
fn each_change_is_notified_once_and_exactly(t: &mut Test) {
    let cpu = this_cpu();
    let Some(rig) = Rig::new(t, PAGES, Sharing::Private) else { return };
    let Some(stream) = rig.disk.device().dma().stream() else { return };
    let is_notified_by_events = iommu().is_some_and(|iommu| iommu.notify_mode() == NotifyMode::Events);
    let account = Account { rig, stream, is_notified_by_events };
    println!("{}", Expectation::Bound { stream });
    for round in 0..ROUNDS {
        // The trace has a translation only of pages that the SMMU has not seen, so it shows a failure one round later.
        if round > 1 && t.has_failed() {
            break;
        }
        // Somewhere, and of every length that takes one command or two.
        let pages = round % (PAGES - 3) + 1;
        let first = START + (round * 7 % (PAGES - pages + 1)) * PAGE;
        let last = first + (pages - 1) * PAGE;
        let bytes = pages * PAGE;
        let rig = &account.rig;
        for page in 0..pages {
            account.store(t, first + page * PAGE, round);
        }
        // Each change is between two accesses: what the SMMU holds before, and what it finds after.
        account.writes(t, first);
        t.ok("read-only", rig.space.mprotect(first, bytes, Protection::READ));
        account.changed(first, pages);
        account.refused(t, first);
        account.reads(t, last);
        t.ok("writable", rig.space.mprotect(first, bytes, READ_WRITE));
        account.changed(first, pages);
        account.writes(t, last);
        if let Some(child) = t.ok("a child", rig.space.fork(cpu)) {
            // All writable pages became read-only: the TLBs are invalidated completely, and events have the private
            // ranges.
            if account.is_notified_by_events {
                account.changed(START, PAGES);
            } else {
                println!("{}", Expectation::Changed { start: 0, end: u64::MAX });
            }
            account.reads(t, first);
            account.store(t, first, round);
            account.writes(t, first);
            drop(child);
        }
        // More might be unmapped in several steps, each with an event.
        let few = pages.min(32);
        t.ok("given up", rig.space.madvise_dontneed(cpu, first, few * PAGE));
        account.taken_away(first, few);
        account.store(t, first, round);
        account.reads(t, first);
    }
    t.ok("unbound", account.rig.disk.unbind(cpu));
    println!("{}", Expectation::Unbound { stream });
}
