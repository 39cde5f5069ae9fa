//! Drivers of devices: a transfer that they report as complete is in memory, and a refused one is an
//! error.
//!
//! Each check is of data, never of a device's status: it reports success also where nothing has arrived.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::devices::disk::{SECTOR, SectorError};
use granule::devices::edu::{EduError, edu};
use granule::devices::nvme::nvme;
use granule::devices::pci::InterruptVector;
use granule::devices::slot::{Arrivals, Driver, StartError};
use granule::devices::virtio::requests::{RequestError, Ticket};
use granule::devices::virtio::transport::{ACCESS_PLATFORM, TransportError, VERSION_1};
use granule::devices::virtio_blk::{BlkError, VirtioBlk, blk};
use granule::devices::virtio_rng::rng;
use granule::iommu::{Direction, DmaAddress, DmaDevice};
use granule::kernel;
use granule::sched::{self, sleep_until};
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr};

use crate::harness::{Test, another_cpu, has, target_test, wait_until};
use crate::sched::wait_until_alone;

/// Pages that follow one another, shown to a device.
pub(crate) struct Buffer<'d> {
    device: &'d DmaDevice,
    start: PhysAddr,
    order: u32,
    /// Where the device has it.
    pub(crate) address: DmaAddress,
}

impl<'d> Buffer<'d> {
    pub(crate) fn new(t: &mut Test, device: &'d DmaDevice, order: u32, filler: u64) -> Option<Self> {
        let start = t.ok("pages", kernel().frames.alloc_blocks(this_cpu(), order))?;
        let shown = device.map(this_cpu(), start, PAGE_SIZE << order, Direction::Both);
        let Some(address) = t.ok("shown to the device", shown) else {
            kernel().frames.free_blocks(this_cpu(), start, order);
            return None;
        };
        let mut buffer = Self { device, start, order, address };
        buffer.words().fill(filler);
        Some(buffer)
    }

    pub(crate) fn bytes(&self) -> u32 {
        (PAGE as u32) << self.order
    }

    pub(crate) fn words(&mut self) -> &mut [u64] {
        let start = kernel().frames.linear().address(self.start);
        // SAFETY: this test's pages, which the device does not have while the borrow lasts.
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), self.bytes() as usize / 8) }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.device.unmap(this_cpu(), self.address, self.bytes() as usize);
        kernel().frames.free_blocks(this_cpu(), self.start, self.order);
    }
}

/// Words that do not hold what a disk has there as it was delivered: the number of their sector, from `first` on.
pub(crate) fn wrong_words(words: &[u64], first: u64) -> usize {
    let sector = |index: usize| first + (index * 8) as u64 / u64::from(SECTOR);
    words.iter().enumerate().filter(|(index, word)| **word != sector(*index)).count()
}

target_test!(disk_reads_what_is_there, needs("virtio-blk"));
fn disk_reads_what_is_there(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    for (sector, order) in [(3, 0), (5000, 2), (8192 - 8, 0)] {
        let Some(mut buffer) = Buffer::new(t, disk.device().dma(), order, !0) else { return };
        t.ok("read", disk.read(sector, buffer.address, buffer.bytes()));
        t.equal("words that differ", wrong_words(buffer.words(), sector), 0);
    }
}

target_test!(disk_holds_what_is_written, needs("virtio-blk"));
fn disk_holds_what_is_written(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let dma = disk.device().dma();
    let (Some(mut out), Some(mut back)) = (Buffer::new(t, dma, 1, 0), Buffer::new(t, dma, 1, 0)) else { return };
    for sector in [40, 1000] {
        out.words().fill_with(|| t.random());
        t.ok("written", disk.write(sector, out.address, out.bytes()));
        t.ok("read", disk.read(sector, back.address, back.bytes()));
        t.check("the same", out.words() == back.words());
        t.ok("what follows", disk.read(sector + 16, back.address, SECTOR));
        t.equal("is as it was", wrong_words(&back.words()[..64], sector + 16), 0);
    }
}

target_test!(several_requests_are_in_flight_at_once, needs("virtio-blk"));
fn several_requests_are_in_flight_at_once(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(mut buffer) = Buffer::new(t, disk.device().dma(), 3, !0) else { return };
    let sectors = |page: u64| 100 + 64 * page;
    let start = |page: u64| disk.start_read(sectors(page), DmaAddress(buffer.address.0 + page * PAGE), PAGE as u32);
    let tickets: heapless::Vec<Result<Ticket, BlkError>, 8> = (0..8).map(start).collect();
    // The waiter for the last one serves the others as well.
    for ticket in tickets.into_iter().rev() {
        let Some(ticket) = t.ok("handed over", ticket) else { return };
        t.ok("read", disk.finish(ticket));
    }
    for (words, page) in buffer.words().chunks(PAGE_SIZE / 8).zip(0..) {
        t.equal("words that differ", wrong_words(words, sectors(page)), 0);
    }
}

target_test!(disk_refuses_what_it_does_not_have, needs("virtio-blk"));
fn disk_refuses_what_it_does_not_have(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let nowhere = DmaAddress(0);
    let sectors = 8192;
    for (sector, bytes) in [(sectors, SECTOR), (sectors - 1, 2 * SECTOR), (u64::MAX, SECTOR)] {
        let error = BlkError::Sectors(SectorError::OutOfRange { sector, bytes, sectors });
        t.equal("read", disk.read(sector, nowhere, bytes), Err(error));
        t.equal("written", disk.write(sector, nowhere, bytes), Err(error));
    }
    for bytes in [0, 1, 511, 513, (1 << 20) + SECTOR, u32::MAX] {
        t.equal("size", disk.read(0, nowhere, bytes), Err(BlkError::Sectors(SectorError::Size(bytes))));
    }
}

target_test!(random_numbers_fill_what_they_are_asked_for, needs("virtio-rng"));
fn random_numbers_fill_what_they_are_asked_for(t: &mut Test) {
    let Some(source) = t.ok("random numbers", rng(this_cpu(), 0)) else { return };
    let Some(mut buffer) = Buffer::new(t, source.device().dma(), 0, 0) else { return };
    let words = PAGE_SIZE / 8;
    t.ok("filled", source.fill(buffer.address, PAGE as u32 - 8));
    let numbers = &buffer.words()[..words - 1];
    // One in 2⁶⁴ is zero.
    t.equal("words that are zero", numbers.iter().filter(|word| **word == 0).count(), 0);
    let ones: u32 = numbers.iter().map(|word| word.count_ones()).sum();
    let expected = 32 * (words as u32 - 1);
    t.check("half of the bits, about, are ones", ones.abs_diff(expected) < expected / 10);
    t.equal("what was not asked for", buffer.words()[words - 1], 0);
}

target_test!(edu_copies_both_ways, needs("edu"), limit(30));
fn edu_copies_both_ways(t: &mut Test) {
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    let dma = device.dma();
    let (Some(mut out), Some(mut back)) = (Buffer::new(t, dma, 0, 0), Buffer::new(t, dma, 0, 7)) else { return };
    out.words().fill_with(|| t.random());
    t.ok("in", device.copy_in(out.address, 0, PAGE));
    t.ok("out", device.copy_out(8, DmaAddress(back.address.0 + 16), 64));
    t.check("what was copied", back.words()[2..10] == out.words()[1..9]);
    t.check("and no more", back.words()[..2] == [7; 2] && back.words()[10..].iter().all(|word| *word == 7));
    for (offset, bytes) in [(0, 0), (0, PAGE + 1), (PAGE, 1), (u64::MAX, 2)] {
        let refused = Err(EduError::OutOfRange { offset, bytes });
        t.equal("not in the device", device.copy_in(out.address, offset, bytes), refused);
        t.equal("not in the device", device.copy_out(offset, out.address, bytes), refused);
    }
}

/// The result of the other thread's use of the device: 0 is none yet, 1 failed, 2 done.
static OTHER: AtomicU32 = AtomicU32::new(0);

/// The other thread is done, and this came of it.
fn other_used_it(succeeded: bool) {
    OTHER.store(1 + u32::from(succeeded), Ordering::Release);
}

/// Waits until it is; what came of it.
fn wait_for_other() -> u32 {
    wait_until(|| OTHER.load(Ordering::Acquire) != 0);
    OTHER.load(Ordering::Acquire)
}

/// Copies 64 bytes at `address`, as the device knows it, in and back out after them.
extern "C" fn copy_twice(address: usize) {
    let (from, to) = (DmaAddress(address as u64), DmaAddress(address as u64 + 64));
    let copied = edu(this_cpu(), 0)
        .is_ok_and(|device| device.copy_in(from, 0, 64).is_ok() && device.copy_out(0, to, 64).is_ok());
    other_used_it(copied);
}

target_test!(transfers_of_two_threads_take_turns, needs("edu"), limit(30));
fn transfers_of_two_threads_take_turns(t: &mut Test) {
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    let (Some(mut mine), Some(mut other)) = (Buffer::new(t, device.dma(), 0, 0), Buffer::new(t, device.dma(), 0, 0))
    else {
        return;
    };
    for buffer in [&mut mine, &mut other] {
        buffer.words()[..8].fill_with(|| t.random());
    }
    let mut is_under_way = false;
    // The device takes 100 ms for each transfer; on a busy host this CPU may stand still until both are over.
    while !is_under_way {
        OTHER.store(0, Ordering::Relaxed);
        t.ok("a thread", sched::spawn_kernel(this_cpu(), "copy", copy_twice, other.address.0 as usize));
        sleep_until(Deadline::after(Duration::from_millis(30)));
        is_under_way = OTHER.load(Ordering::Acquire) == 0;
        t.ok("in", device.copy_in(mine.address, 2048, 64));
        t.ok("out", device.copy_out(2048, DmaAddress(mine.address.0 + 64), 64));
        t.equal("the other has copied", wait_for_other(), 2);
        wait_until_alone(t);
    }
    for (buffer, what) in [(&mut mine, "this thread's words"), (&mut other, "the other's words")] {
        let words = buffer.words();
        t.check(what, words[..8] == words[8..16]);
    }
}

/// While a device's way to memory is changed no command of another thread reaches it; `uses` does one, at an address.
fn waits_for_a_change<T: Driver>(t: &mut Test, device: &T, dma: &DmaDevice, uses: extern "C" fn(usize)) {
    let Some(buffer) = Buffer::new(t, dma, 0, 0) else { return };
    OTHER.store(0, Ordering::Relaxed);
    let changed = device.while_idle(&mut |_| {
        let other = another_cpu(this_cpu());
        t.ok("a thread", sched::spawn_kernel(other, "use", uses, buffer.address.0 as usize));
        // Longer than the slowest takes for a command.
        sleep_until(Deadline::after(Duration::from_millis(150)));
        t.equal("meanwhile", OTHER.load(Ordering::Acquire), 0);
        Ok(())
    });
    t.ok("changed", changed);
    t.equal("afterwards", wait_for_other(), 2);
    wait_until_alone(t);
}

target_test!(a_transfer_waits_for_a_change_of_the_way_to_memory, needs("edu"), limit(30));
fn a_transfer_waits_for_a_change_of_the_way_to_memory(t: &mut Test) {
    extern "C" fn uses(address: usize) {
        let device = edu(this_cpu(), 0);
        other_used_it(device.is_ok_and(|device| device.copy_in(DmaAddress(address as u64), 0, 64).is_ok()));
    }
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    waits_for_a_change(t, device, device.dma(), uses);
}

target_test!(a_request_waits_for_a_change_of_the_way_to_memory, needs("virtio-blk"), limit(30));
fn a_request_waits_for_a_change_of_the_way_to_memory(t: &mut Test) {
    extern "C" fn uses(address: usize) {
        let disk = blk(this_cpu(), 0);
        other_used_it(disk.is_ok_and(|disk| disk.read(0, DmaAddress(address as u64), SECTOR).is_ok()));
    }
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    waits_for_a_change(t, disk, disk.device().dma(), uses);
}

target_test!(a_command_waits_for_a_change_of_the_way_to_memory, needs("nvme"), limit(30));
fn a_command_waits_for_a_change_of_the_way_to_memory(t: &mut Test) {
    extern "C" fn uses(address: usize) {
        let disk = nvme(this_cpu(), 0);
        other_used_it(disk.is_ok_and(|disk| disk.read(0, DmaAddress(address as u64), SECTOR).is_ok()));
    }
    let Some(disk) = t.ok("a disk", nvme(this_cpu(), 0)) else { return };
    waits_for_a_change(t, disk, disk.dma(), uses);
}

/// Checks how a device's interrupts arrive, that `work` causes some, and that none is missing.
fn interrupts(t: &mut Test, arrivals: &Arrivals, vector: Option<InterruptVector>, work: impl FnOnce(&mut Test)) {
    let kind = match vector {
        Some(InterruptVector::MsiX { .. } | InterruptVector::Msi { .. }) => "message",
        Some(InterruptVector::Pin { .. }) => "pin",
        Some(InterruptVector::Line { .. }) => "line",
        None => "none",
    };
    let expected = match (has("virtio-mmio"), has("msi")) {
        (Some(true), _) => "line",
        (_, Some(true)) => "message",
        _ => "pin",
    };
    t.equal("they arrive by", kind, expected);
    let (before, missed) = (arrivals.count(), arrivals.missed());
    work(t);
    t.check("interrupts", arrivals.count() > before);
    t.equal("interrupts that are missing", arrivals.missed(), missed);
}

target_test!(virtio_interrupts_when_it_is_done, needs("virtio-rng"));
fn virtio_interrupts_when_it_is_done(t: &mut Test) {
    let Some(source) = t.ok("random numbers", rng(this_cpu(), 0)) else { return };
    let Some(buffer) = Buffer::new(t, source.device().dma(), 0, 0) else { return };
    let device = source.device();
    interrupts(t, device.arrivals(), device.vector(), |t| {
        for _ in 0..20 {
            t.ok("filled", source.fill(buffer.address, 64));
        }
    });
}

target_test!(edu_interrupts_when_it_is_done_and_on_request, needs("edu"), limit(30));
fn edu_interrupts_when_it_is_done_and_on_request(t: &mut Test) {
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    let Some(buffer) = Buffer::new(t, device.dma(), 0, 0) else { return };
    interrupts(t, device.arrivals(), device.vector(), |t| {
        let before = device.arrivals().count();
        for _ in 0..10 {
            t.check("on request", device.interrupt(1));
        }
        t.equal("interrupts", device.arrivals().count() - before, 10);
        // After lost fault records the transfer is repeated; each one interrupts.
        let tries = t.ok("out", device.copy_out(0, buffer.address, 8)).unwrap_or(0);
        t.equal("interrupts", device.arrivals().count() - before, 10 + u64::from(tries));
    });
}

target_test!(what_passes_by_the_smmu_is_not_driven, needs("smmuv3 virtio-rng"));
fn what_passes_by_the_smmu_is_not_driven(t: &mut Test) {
    let Some(source) = t.ok("random numbers", rng(this_cpu(), 0)) else { return };
    t.equal("features", source.device().features(), VERSION_1 | ACCESS_PLATFORM);
    // The machine has a second one, which bypasses the SMMU.
    let refused = rng(this_cpu(), 1).err();
    t.equal("refused", refused, Some(StartError::Transport(TransportError::PassesBy)));
}

target_test!(starts_of_one_device_take_turns, needs("smmuv3 virtio-rng smp"), limit(30));
fn starts_of_one_device_take_turns(t: &mut Test) {
    /// Whether the second source, which is never started, is refused for the one reason each time: its function is
    /// free.
    fn is_refused_alike() -> bool {
        let refused = Some(StartError::Transport(TransportError::PassesBy));
        (0..100).all(|_| rng(this_cpu(), 1).err() == refused)
    }
    extern "C" fn starts(_: usize) {
        other_used_it(is_refused_alike());
    }
    OTHER.store(0, Ordering::Relaxed);
    t.ok("a thread", sched::spawn_kernel(another_cpu(this_cpu()), "start", starts, 0));
    t.check("here", is_refused_alike());
    t.equal("there", wait_for_other(), 2);
    wait_until_alone(t);
}

target_test!(missing_devices_are_errors, needs("pcie"));
fn missing_devices_are_errors(t: &mut Test) {
    t.equal("no disk", blk(this_cpu(), 3).err(), Some(StartError::None("blk", 3)));
    t.equal("no such place", edu(this_cpu(), 100).err(), Some(StartError::TooMany("edu", 2)));
}

/// Requests of the disk that the SMMU refuses. The contents of the written sectors are unknown: no other test reads
/// them.
fn refused(t: &mut Test, disk: &VirtioBlk, address: DmaAddress) {
    let read = disk.read(7, address, PAGE as u32);
    t.check("the read fails", matches!(read, Err(BlkError::Request(RequestError::Fault(_)))));
    let write = disk.write(2400, address, PAGE as u32);
    t.check("the write fails", matches!(write, Err(BlkError::Request(RequestError::Fault(_)))));
}

target_test!(memory_that_was_not_shown_is_an_error, needs("smmuv3 virtio-blk virtio-rng edu"), limit(30));
fn memory_that_was_not_shown_is_an_error(t: &mut Test) {
    let Some(disk) = t.ok("a disk", blk(this_cpu(), 0)) else { return };
    let Some(mut buffer) = Buffer::new(t, disk.device().dma(), 0, !0) else { return };
    let taken_back = {
        let Some(other) = Buffer::new(t, disk.device().dma(), 0, 0) else { return };
        t.ok("read", disk.read(1, other.address, PAGE as u32));
        other.address
    };
    for nowhere in [taken_back, DmaAddress(0), DmaAddress(buffer.start.0), DmaAddress(1 << 47)] {
        refused(t, disk, nowhere);
    }
    // A failure is one request's, not the device's.
    t.ok("read", disk.read(7, buffer.address, PAGE as u32));
    t.equal("words that differ", wrong_words(buffer.words(), 7), 0);

    if let Some(source) = t.ok("random numbers", rng(this_cpu(), 0)) {
        // A buffer that is mapped for one device is not mapped for another.
        let filled = source.fill(buffer.address, 64);
        t.check("not its own", matches!(filled, Err(RequestError::Fault(_))));
    }
    if let Some(device) = t.ok("edu", edu(this_cpu(), 0)) {
        t.check("out", matches!(device.copy_out(0, buffer.address, 8), Err(EduError::Fault(_))));
        t.check("in", matches!(device.copy_in(buffer.address, 0, 8), Err(EduError::Fault(_))));
    }
    t.equal("words that differ", wrong_words(buffer.words(), 7), 0);
}
