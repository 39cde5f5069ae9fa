//! A device whose process ends during a transfer.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::devices::slot::Driver;
use granule::devices::virtio_blk::{VirtioBlk, blk};
use granule::iommu::{DmaAddress, iommu};
use granule::mm::space::Sharing;
use granule::sched::{self, sleep_until};
use granule::smp::this_cpu;
use spin::Once;

use super::{DELIVERED, PAGE, START, space};
use crate::harness::{Test, another_cpu, patience, target_test, wait_until};

/// Pages that the device writes in one request.
const PAGES: u64 = 8;
/// Rounds in which a space ends; each is the wait for an interrupt that cannot come any more.
const ROUNDS: u32 = 4;

static DISK: Once<&'static VirtioBlk> = Once::new();
static STOP: AtomicBool = AtomicBool::new(false);
/// Transfers that arrived, and that did not.
static DONE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

/// Has the device write the pages again and again.
extern "C" fn work(_: usize) {
    let Some(disk) = DISK.get() else { return };
    while !STOP.load(Ordering::Acquire) {
        let done = disk.read(DELIVERED, DmaAddress(START.0), (PAGES * PAGE) as u32);
        DONE[usize::from(done.is_err())].fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until one of [`DONE`] has grown by some; whether it has.
fn wait_for(which: usize) -> bool {
    let patience = patience();
    let enough = DONE[which].load(Ordering::Relaxed) + 3;
    while DONE[which].load(Ordering::Relaxed) < enough && !patience.has_passed() {
        sleep_until(Deadline::after(Duration::from_micros(500)));
    }
    DONE[which].load(Ordering::Relaxed) >= enough
}

target_test!(a_space_ends_while_a_device_writes_to_it, needs("smmuv3 virtio-blk smp"), limit(60));
fn a_space_ends_while_a_device_writes_to_it(t: &mut Test) {
    let here = this_cpu();
    let other = another_cpu(here);
    for _ in 0..ROUNDS {
        let (Some(space), Some(disk)) = (space(t, PAGES, Sharing::Private), t.ok("a disk", blk(here, 0))) else {
            return;
        };
        t.ok("bound", disk.bind(here, &space));
        DISK.call_once(|| disk);
        STOP.store(false, Ordering::Release);
        t.ok("a thread", sched::spawn_kernel(other, "work", work, 0));
        t.check("the device writes", wait_for(0));
        let Some(before) = iommu().map(|iommu| iommu.fault_stats()) else { return };
        drop(space);
        t.check("the device is refused", wait_for(1));
        STOP.store(true, Ordering::Release);
        wait_until(|| sched::thread_count() == 0);
        t.equal("threads that are left", sched::thread_count(), 0);
        if let Some(after) = iommu().map(|iommu| iommu.fault_stats()) {
            t.equal("storms", after.storms, before.storms);
        }
        t.check("it can be bound again", disk.unbind(here).is_ok());
    }
}
