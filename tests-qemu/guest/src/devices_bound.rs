//! Devices that use a process's addresses: what they read and write is the process's memory, whatever its pages are
//! when they come; and what the process does not have they do not get.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::ops::RangeBounds;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use granule::devices::disk::SECTOR;
use granule::devices::edu::{EduError, edu};
use granule::devices::nvme::{NvmeError, nvme};
use granule::devices::slot::{BindRefused, Driver};
use granule::devices::virtio::requests::{RequestError, Transfer};
use granule::devices::virtio_blk::{BlkError, VirtioBlk, blk};
use granule::devices::virtio_rng::rng;
use granule::iommu::{BindError, DmaAddress};
use granule::kernel;
use granule::mm::space::{
    Access, AreaAdvice, FaultError, MapRequest, Placement, Populate, Sharing, SpaceRef, handle_fault,
};
use granule::sched::{self, relax};
use granule::smp::this_cpu;
pub(crate) use granule_arch::addr::PAGE;
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_arch::features::Pan;

use crate::harness::{Test, another_cpu, target_test};
use crate::sched::wait_until_alone;

pub(crate) const START: VirtAddr = VirtAddr(0x40_0000);
const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);

/// A space with so many pages from [`START`] on, none of them there yet.
pub(crate) fn space(t: &mut Test, pages: u64) -> Option<SpaceRef> {
    let space = t.ok("a space", kernel().spaces.create(this_cpu()))?;
    map(t, &space, START, pages, READ_WRITE)?;
    Some(space)
}

pub(crate) fn map(t: &mut Test, space: &SpaceRef, start: VirtAddr, pages: u64, protection: Protection) -> Option<()> {
    let request = MapRequest {
        placement: Placement::Fixed(start),
        bytes: pages * PAGE,
        protection,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    };
    t.ok("pages", space.mmap(this_cpu(), &request)).map(|_| ())
}

/// The words of a page as it is now, which stays as it is while the borrow lasts; none if it is not there.
pub(crate) fn page(space: &SpaceRef, at: VirtAddr) -> &[u64] {
    let found = space.tables().translate(at);
    found.map_or(&[], |found| {
        let start = kernel().frames.linear().address(found.physical);
        // SAFETY: a page of this test's space, which nothing runs in, and which no device works on now.
        unsafe { core::slice::from_raw_parts(start.as_ptr::<u64>(), PAGE_SIZE / 8) }
    })
}

/// Stores into a page as its process would.
pub(crate) fn fill(t: &mut Test, space: &SpaceRef, at: VirtAddr, mut word: impl FnMut(&mut Test) -> u64) {
    t.ok("a page", handle_fault(space, this_cpu(), at, Access::Write));
    let Some(found) = space.tables().translate(at) else { return };
    let start = kernel().frames.linear().address(found.physical);
    for index in 0..PAGE / 8 {
        // SAFETY: as for `page`; it is this space's own, by the fault.
        unsafe { (start + index * 8).as_ptr::<u64>().write(word(t)) };
    }
}

/// Words of so many pages that do not hold what a disk has from sector `first` on as it was delivered.
pub(crate) fn wrong_words(space: &SpaceRef, start: VirtAddr, pages: u64, first: u64) -> u64 {
    let wrong = |number: u64| {
        let words = page(space, start + number * PAGE);
        let sector = |index: usize| first + (number * PAGE + index as u64 * 8) / u64::from(SECTOR);
        let right = words.iter().enumerate().filter(|(index, word)| **word == sector(*index)).count();
        PAGE / 8 - right as u64
    };
    (0..pages).map(wrong).sum()
}

/// A device that is bound, until this is dropped.
pub(crate) struct Bound<T: Driver>(&'static T);

impl<T: Driver> Bound<T> {
    pub(crate) fn new(t: &mut Test, device: &'static T, space: &SpaceRef) -> Option<Self> {
        t.ok("bound", device.bind(this_cpu(), space))?;
        Some(Self(device))
    }
}

impl<T: Driver> Drop for Bound<T> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unbind(this_cpu()) {
            granule::println!("{}: {error}", T::NAME);
        }
    }
}

pub(crate) fn at(address: VirtAddr) -> DmaAddress {
    DmaAddress(address.0)
}

/// Reads `pages` pages from `sector` on to [`START`], and looks whether they are there, in so many tries.
fn read(t: &mut Test, disk: &VirtioBlk, space: &SpaceRef, sector: u64, pages: u64, tries: impl RangeBounds<u32>) {
    let done = t.ok("read", disk.read(sector, at(START), (pages * PAGE) as u32));
    t.equal("words that differ", wrong_words(space, START, pages, sector), 0);
    let done = done.map_or(0, |done: Transfer| done.tries);
    t.check("tries", tries.contains(&done));
}

target_test!(a_disk_reads_into_pages_that_are_not_there_yet, needs("smmuv3 virtio-blk"));
fn a_disk_reads_into_pages_that_are_not_there_yet(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 16) else { return };
    let Some(bound) = Bound::new(t, disk, &space) else { return };
    let (arrivals, resets) = (disk.device().arrivals(), disk.device().resets());
    let (before, missed) = (arrivals.count(), arrivals.missed());
    read(t, disk, &space, 64, 1, 2..=10);
    read(t, disk, &space, 128, 1, 1..=1);
    // QEMU's device cannot do several at once: it needs a reset.
    read(t, disk, &space, 256, 16, 2..=60);
    t.check("resets", disk.device().resets() > resets);
    read(t, disk, &space, 512, 16, 1..=1);
    // The messages go through the process's tables as everything does.
    t.check("interrupts", arrivals.count() >= before + 4);
    t.equal("interrupts that are missing", arrivals.missed(), missed);
    drop(bound);
    t.equal("unbound twice", disk.unbind(this_cpu()), Err(BindRefused::NotBound));
}

target_test!(a_disk_is_written_from_a_process, needs("smmuv3 virtio-blk"));
fn a_disk_is_written_from_a_process(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 2) else { return };
    fill(t, &space, START, Test::random);
    let Some(_bound) = Bound::new(t, disk, &space) else { return };
    t.ok("written", disk.write(2000, at(START), PAGE as u32));
    t.ok("read", disk.read(2000, at(START + PAGE), PAGE as u32));
    t.check("the same", page(&space, START) == page(&space, START + PAGE));
    t.equal("a page each", page(&space, START + PAGE).len(), PAGE_SIZE / 8);
}

target_test!(what_a_process_does_not_have_its_devices_do_not_get, needs("smmuv3 virtio-blk virtio-rng edu"), limit(30));
fn what_a_process_does_not_have_its_devices_do_not_get(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 1) else { return };
    let constant = START + 16 * PAGE;
    let Some(()) = map(t, &space, constant, 1, Protection::READ) else { return };
    t.ok("a page", handle_fault(&space, this_cpu(), constant, Access::Read));
    let read_fails = |address| match disk.read(7, at(address), PAGE as u32) {
        Err(BlkError::Request(RequestError::Fault(error))) => Some(error),
        _ => None,
    };
    if let Some(_bound) = Bound::new(t, disk, &space) {
        t.equal("read-only", read_fails(constant), Some(FaultError::NotAllowed));
        t.equal("the zero page", page(&space, constant).iter().filter(|word| **word != 0).count(), 0);
        t.equal("nothing", read_fails(START + PAGE), Some(FaultError::NotMapped));
        t.equal("the null page", read_fails(VirtAddr(0)), Some(FaultError::NotMapped));
        t.equal("the kernel", read_fails(VirtAddr::from_ptr(&raw const *this_cpu())), Some(FaultError::NotMapped));
        // The rings are in the space, but no request may use their addresses: only the driver does.
        t.ok("what is there", disk.read(7, at(START), PAGE as u32));
        t.equal("words that differ", wrong_words(&space, START, 1, 7), 0);
        t.ok("read-only memory to the disk", disk.write(2300, at(constant), PAGE as u32));
    }
    if let Some(source) = t.ok("random numbers", rng(this_cpu(), 0))
        && let Some(_bound) = Bound::new(t, source, &space)
    {
        let fault = |error| Err(RequestError::Fault(error));
        t.equal("read-only", source.fill(at(constant), 64), fault(FaultError::NotAllowed));
        t.equal("nothing", source.fill(at(START + PAGE), 64), fault(FaultError::NotMapped));
    }
    if let Some(device) = t.ok("edu", edu(this_cpu(), 0))
        && let Some(_bound) = Bound::new(t, device, &space)
    {
        t.equal("read-only", device.copy_out(0, at(constant), 8), Err(EduError::Fault(FaultError::NotAllowed)));
        t.equal("nothing", device.copy_in(at(START + PAGE), 0, 8), Err(EduError::Fault(FaultError::NotMapped)));
    }
    t.equal("the zero page", page(&space, constant).iter().filter(|word| **word != 0).count(), 0);
}

target_test!(a_device_reads_nothing_that_el0_may_not, needs("smmuv3 virtio-blk nvme edu"), limit(30));
fn a_device_reads_nothing_that_el0_may_not(t: &mut Test) {
    let has_execute_only = kernel().features().cpus.pan() == Pan::Epan;
    let Some(space) = space(t, 3) else { return };
    for number in 0..3 {
        fill(t, &space, START + number * PAGE, Test::random);
    }
    let secret = START + PAGE;
    t.ok("execute-only", space.mprotect(secret, PAGE, Protection::EXECUTE));
    let expected = if has_execute_only { Some(FaultError::NotAllowed) } else { None };
    let (readable, across) = (at(START), at(START + PAGE / 2));
    if let Some(disk) = t.ok("a disk", blk(this_cpu(), 0))
        && let Some(_bound) = Bound::new(t, disk, &space)
    {
        let written = |address| match disk.write(2400, address, PAGE as u32) {
            Err(BlkError::Request(RequestError::Fault(error))) => Some(error),
            _ => None,
        };
        t.equal("virtio, what is readable", written(readable), None);
        t.equal("virtio, execute-only", written(at(secret)), expected);
        t.equal("virtio, half of it", written(across), expected);
    }
    if let Some(disk) = t.ok("a second disk", nvme(this_cpu(), 0))
        && let Some(_bound) = Bound::new(t, disk, &space)
    {
        let written = |address| match disk.write(2400, address, PAGE as u32) {
            Err(NvmeError::Fault(error)) => Some(error),
            _ => None,
        };
        t.equal("nvme, what is readable", written(readable), None);
        t.equal("nvme, execute-only", written(at(secret)), expected);
        t.equal("nvme, half of it", written(across), expected);
    }
    if let Some(device) = t.ok("edu", edu(this_cpu(), 0))
        && let Some(_bound) = Bound::new(t, device, &space)
    {
        let taken = |address| match device.copy_in(address, 0, 64) {
            Err(EduError::Fault(error)) => Some(error),
            _ => None,
        };
        t.equal("edu, what is readable", taken(readable), None);
        t.equal("edu, execute-only", taken(at(secret)), expected);
        t.ok("readable again", space.mprotect(secret, PAGE, Protection::READ));
        t.equal("edu, readable again", taken(at(secret)), None);
    }
}

target_test!(a_device_reaches_neither_other_processes_nor_the_kernel, needs("smmuv3 edu"), limit(60));
fn a_device_reaches_neither_other_processes_nor_the_kernel(t: &mut Test) {
    const CANARY: u64 = 0x0c0f_fee0_0c0f_fee0;
    let cpu = this_cpu();
    let (Some(device), Some(other)) = (t.ok("edu", edu(cpu, 0)), t.ok("another", edu(cpu, 1))) else { return };
    let (Some(mine), Some(others)) = (space(t, 1), t.ok("a space", kernel().spaces.create(cpu))) else { return };
    let theirs = START + 64 * PAGE;
    let Some(()) = map(t, &others, theirs, 1, READ_WRITE) else { return };
    fill(t, &mine, START, |_| 7);
    fill(t, &others, theirs, |_| CANARY);
    let Some(frame) = t.ok("a frame of the kernel's", kernel().frames.alloc_zeroed(cpu)) else { return };
    let linear = kernel().frames.linear().address(frame);
    // The device reads in the 8 bytes that it writes later, whatever it reaches.
    if let Some(_bound) = Bound::new(t, device, &mine) {
        t.equal("its own process's", device.copy_in(at(START), 0, 8), Ok(1));
    }
    let physical =
        |space: &SpaceRef, at| space.tables().translate(at).map_or(VirtAddr(0), |it| VirtAddr(it.physical.0));
    let foreign = [theirs, physical(&others, theirs), VirtAddr(frame.0), linear];
    let reaches_none = |t: &mut Test, what: &str, addresses: &[VirtAddr]| {
        for &address in addresses {
            t.check(what, device.copy_out(0, at(address), 8).is_err() && device.copy_in(at(address), 8, 8).is_err());
        }
        t.check("the other process's page is whole", page(&others, theirs).iter().all(|word| *word == CANARY));
        // SAFETY: this test's frame.
        t.equal("the kernel's frame is whole", unsafe { linear.as_ptr::<u64>().read_volatile() }, 0);
        t.check("its own process's page is whole", page(&mine, START).iter().all(|word| *word == 7));
    };
    {
        let (Some(_bound), Some(_other)) = (Bound::new(t, device, &mine), Bound::new(t, other, &others)) else {
            return;
        };
        t.equal("the other device reaches its process's", other.copy_in(at(theirs), 0, 8), Ok(1));
        reaches_none(t, "bound to one process it does not reach", &foreign);
    }
    reaches_none(t, "bound to none it does not reach", &foreign);
    reaches_none(t, "nor", &[START, physical(&mine, START), VirtAddr(0)]);
    kernel().frames.free(cpu, frame);
}

target_test!(small_devices_work_in_a_process_too, needs("smmuv3 virtio-rng edu"), limit(30));
fn small_devices_work_in_a_process_too(t: &mut Test) {
    let (Some(filled), Some(space)) = (space(t, 1), space(t, 3)) else { return };
    let (Some(source), Some(device)) = (t.ok("random numbers", rng(this_cpu(), 0)), t.ok("edu", edu(this_cpu(), 0)))
    else {
        return;
    };
    let (Some(_one), Some(_other)) = (Bound::new(t, source, &filled), Bound::new(t, device, &space)) else { return };
    t.ok("filled", source.fill(at(START), PAGE as u32));
    t.equal("words that are zero", page(&filled, START).iter().filter(|word| **word == 0).count(), 0);
    for (index, word) in (0..).zip(page(&filled, START)) {
        t.ok("copied", space.write_bytes(this_cpu(), START + index * 8, &word.to_le_bytes()));
    }
    t.ok("in", device.copy_in(at(START), 0, PAGE));
    // Into a page that is not there, over its end into the next.
    t.ok("out", device.copy_out(0, at(START + PAGE + PAGE / 2), PAGE));
    let half = PAGE_SIZE / 16;
    let (first, second) = (page(&space, START + PAGE), page(&space, START + 2 * PAGE));
    t.check("the first half", first.get(half..) == page(&space, START).get(..half) && !first.is_empty());
    t.check("the second half", second.get(..half) == page(&space, START).get(half..) && !second.is_empty());
    t.equal("what is before it", first[..half].iter().filter(|word| **word != 0).count(), 0);
}

/// Set when the thread that changes a group is to end, and how often it has made pages of it and a group again.
static IS_OVER: AtomicBool = AtomicBool::new(false);
static CHANGES: AtomicU32 = AtomicU32::new(0);

/// Unfolds and folds the group at [`START`] of the space whose reference is at `space`.
extern "C" fn change_group(space: usize) {
    // SAFETY: the test's own, which waits for this thread.
    let space = unsafe { &*core::ptr::with_exposed_provenance::<SpaceRef>(space) };
    while !IS_OVER.load(Ordering::Acquire) {
        let changed =
            [Protection::READ, READ_WRITE].map(|protection| space.mprotect(START + 9 * PAGE, PAGE, protection));
        if changed == [Ok(()); 2] {
            CHANGES.fetch_add(1, Ordering::Relaxed);
        }
        relax();
    }
}

target_test!(a_device_writes_to_a_group_that_is_unfolded_meanwhile, needs("smmuv3 edu"), limit(60));
fn a_device_writes_to_a_group_that_is_unfolded_meanwhile(t: &mut Test) {
    const PAGES: u64 = 16;
    let cpu = this_cpu();
    let Some(space) = space(t, PAGES) else { return };
    t.ok("advised", space.madvise_areas(cpu, START, PAGES * PAGE, AreaAdvice::HugePage));
    let Some(device) = t.ok("edu", edu(cpu, 0)) else { return };
    let Some(_bound) = Bound::new(t, device, &space) else { return };
    fill(t, &space, START, Test::random);
    let is_group = || space.tables().translate(START).is_some_and(|found| found.descriptor.is_contiguous());
    t.check("a group", is_group());
    t.ok("in", device.copy_in(at(START), 0, PAGE));
    IS_OVER.store(false, Ordering::Relaxed);
    CHANGES.store(0, Ordering::Relaxed);
    let argument = core::ptr::from_ref(&space).expose_provenance();
    t.ok("a thread", sched::spawn_kernel(another_cpu(cpu), "change", change_group, argument));
    let numbers = [3, 15, 8];
    // On a busy host the thread may stand still: then more transfers, until it was unfolded many times.
    for (transfers, number) in numbers.into_iter().cycle().enumerate() {
        if transfers >= numbers.len() && CHANGES.load(Ordering::Relaxed) > 20 {
            break;
        }
        t.ok("out", device.copy_out(0, at(START + number * PAGE), PAGE));
    }
    IS_OVER.store(true, Ordering::Release);
    wait_until_alone(t);
    t.check("a group again", is_group());
    for number in numbers {
        t.check("what was written", page(&space, START + number * PAGE) == page(&space, START));
    }
    t.equal("beside it", page(&space, START + 4 * PAGE).iter().filter(|word| **word != 0).count(), 0);
}

target_test!(a_device_that_has_read_a_page_may_write_it_once_a_cpu_may, needs("smmuv3 virtio-blk"));
fn a_device_that_has_read_a_page_may_write_it_once_a_cpu_may(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 1) else { return };
    let Some(_bound) = Bound::new(t, disk, &space) else { return };
    for round in 0..20 {
        t.ok("the page", handle_fault(&space, this_cpu(), START, Access::Write));
        // As after a fork whose child has exited: read-only, with one user.
        drop(t.ok("a child", space.fork(this_cpu())));
        t.ok("the device reads it", disk.write(2100, at(START), PAGE as u32));
        t.ok("the CPU's store", handle_fault(&space, this_cpu(), START, Access::Write));
        read(t, disk, &space, 300 + 8 * round, 1, 1..=1);
    }
}

target_test!(a_write_of_a_device_copies_a_page_that_others_have, needs("smmuv3 virtio-blk"));
fn a_write_of_a_device_copies_a_page_that_others_have(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 1) else { return };
    fill(t, &space, START, |_| 77);
    let Some(_bound) = Bound::new(t, disk, &space) else { return };
    t.ok("the device reads it", disk.write(2200, at(START), PAGE as u32));
    let Some(child) = t.ok("a child", space.fork(this_cpu())) else { return };
    read(t, disk, &space, 400, 1, 2..=10);
    t.check("the child's is as it was", page(&child, START).iter().all(|word| *word == 77));
    t.equal("and is there", page(&child, START).len(), PAGE_SIZE / 8);
}

target_test!(a_process_that_ends_takes_its_memory_from_its_devices, needs("smmuv3 virtio-blk"), limit(30));
fn a_process_that_ends_takes_its_memory_from_its_devices(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(first) = space(t, 1) else { return };
    let Some(bound) = Bound::new(t, disk, &first) else { return };
    read(t, disk, &first, 500, 1, ..);
    drop(first);
    let failed = disk.read(500, at(START), PAGE as u32);
    t.equal("it gets nothing", failed, Err(BlkError::Request(RequestError::Ended)));
    drop(bound);
    let Some(second) = space(t, 1) else { return };
    let Some(_bound) = Bound::new(t, disk, &second) else { return };
    read(t, disk, &second, 600, 1, ..);
}

target_test!(a_device_is_bound_once_and_when_it_rests, needs("smmuv3 virtio-blk"));
fn a_device_is_bound_once_and_when_it_rests(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 1) else { return };
    let Some(_bound) = Bound::new(t, disk, &space) else { return };
    let again = disk.bind(this_cpu(), &space);
    t.equal("bound twice", again, Err(BindRefused::Bind(BindError::Bound)));
    t.ok("the page", handle_fault(&space, this_cpu(), START, Access::Write));
    let Some(ticket) = t.ok("begun", disk.start_read(8, at(START), PAGE as u32)) else { return };
    // It may be complete already, but its completion was not read.
    let refused = disk.unbind(this_cpu());
    let in_flight = matches!(refused, Err(BindRefused::InFlight(1)));
    t.check("in flight, or through", in_flight || refused.is_ok());
    t.ok("finished", disk.finish(ticket));
    t.equal("words that differ", wrong_words(&space, START, 1, 8), 0);
    if refused.is_ok() {
        t.ok("bound", disk.bind(this_cpu(), &space));
    }
}

target_test!(without_an_smmu_there_is_no_binding, needs("gicv2 virtio-rng"));
fn without_an_smmu_there_is_no_binding(t: &mut Test) {
    let Some(source) = t.ok("random numbers", rng(this_cpu(), 0)) else { return };
    let Some(space) = space(t, 1) else { return };
    let refused = source.bind(this_cpu(), &space);
    t.equal("refused", refused, Err(BindRefused::Bind(BindError::NoSmmu)));
}
