//! Devices' way to memory under pressure: more faults than the event queue holds, and a process that ends while a slow
//! device is in the middle of a transfer.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use granule::chip::timer::{self, Deadline};
use granule::devices::edu::edu;
use granule::devices::slot::Driver;
use granule::devices::virtio_rng::rng;
use granule::iommu::{DmaAddress, FaultStats, iommu};
use granule::kernel;
use granule::mm::space::{Access, MapRequest, Placement, Populate, Sharing, SpaceRef, handle_fault};
use granule::sched::{self, sleep_until};
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;

use crate::harness::{Test, target_test, wait_until};
use crate::sched::wait_until_alone;

const START: VirtAddr = VirtAddr(0x40_0000);
/// Nothing is mapped here.
const NOTHING: DmaAddress = DmaAddress(0x7000_0000);

fn space(t: &mut Test) -> Option<SpaceRef> {
    let space = t.ok("a space", kernel().spaces.create(this_cpu()))?;
    let request = MapRequest {
        placement: Placement::Fixed(START),
        bytes: PAGE,
        protection: Protection::READ.and(Protection::WRITE),
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    };
    t.ok("a page", space.mmap(this_cpu(), &request))?;
    t.ok("its memory", handle_fault(&space, this_cpu(), START, Access::Write))?;
    Some(space)
}

fn stats() -> FaultStats {
    iommu().map(granule::iommu::Iommu::fault_stats).unwrap_or_default()
}

target_test!(a_storm_of_faults_is_lost_in_part_counted_and_survived, needs("smmuv3 virtio-rng edu"), limit(60));
fn a_storm_of_faults_is_lost_in_part_counted_and_survived(t: &mut Test) {
    let (Some(device), Some(source)) = (t.ok("edu", edu(this_cpu(), 0)), t.ok("random numbers", rng(this_cpu(), 0)))
    else {
        return;
    };
    let Some(space) = space(t) else { return };
    let Some(other) = self::space(t) else { return };
    for bound in [device.bind(this_cpu(), &space), source.bind(this_cpu(), &other)] {
        t.ok("bound", bound);
    }
    let before = stats();
    for _ in 0..3 {
        // A fault every four bytes: many times more than the event queue holds.
        t.check("the transfer fails", device.copy_in(NOTHING, 0, PAGE).is_err());
    }
    let after = stats();
    t.check("events", after.events > before.events + 128);
    t.check("some were lost, and that is known", after.losses > before.losses);
    t.check("so many at once are a storm", after.storms > before.storms);
    t.equal("faults that were served", after.served, before.served);
    // An idle device may need one retry, and then completes; the device of the storm works as before.
    t.ok("another device", source.fill(DmaAddress(START.0), PAGE as u32));
    t.ok("the same device", device.copy_in(DmaAddress(START.0), 0, 64));
    for unbound in [device.unbind(this_cpu()), source.unbind(this_cpu())] {
        t.ok("unbound", unbound);
    }
}

/// Set when the other thread is through.
static THROUGH: AtomicBool = AtomicBool::new(false);
/// Whether its transfer succeeded.
static ARRIVED: AtomicBool = AtomicBool::new(false);

extern "C" fn transfer(_: usize) {
    let arrived = edu(this_cpu(), 0).is_ok_and(|device| device.copy_out(0, DmaAddress(START.0), PAGE).is_ok());
    ARRIVED.store(arrived, Ordering::Relaxed);
    THROUGH.store(true, Ordering::Release);
}

target_test!(a_process_may_end_during_a_transfer_without_an_event, needs("smmuv3 edu"), limit(60));
fn a_process_may_end_during_a_transfer_without_an_event(t: &mut Test) {
    // By the clock that the device goes by: it writes 100 ms after it has begun, and counts whole milliseconds.
    const LEAST: Duration = Duration::from_millis(98);
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    let mut is_in_time = false;
    // On a busy host this CPU may stand still until the transfer is over: then nothing is shown.
    while !is_in_time {
        let Some(space) = space(t) else { return };
        t.ok("bound", device.bind(this_cpu(), &space));
        let frames = kernel().frames.stats().used;
        let before = stats();
        THROUGH.store(false, Ordering::Relaxed);
        let begin = timer::uptime();
        t.ok("a thread", sched::spawn_kernel(this_cpu(), "transfer", transfer, 0));
        sleep_until(Deadline::after(Duration::from_millis(30)));
        drop(space);
        is_in_time = timer::uptime() - begin < LEAST;
        t.check("the process's memory is free", kernel().frames.stats().used < frames);
        wait_until(|| THROUGH.load(Ordering::Acquire));
        t.check("it is over", THROUGH.load(Ordering::Acquire));
        t.check("and failed", !is_in_time || !ARRIVED.load(Ordering::Relaxed));
        t.equal("events", stats().events, before.events);
        t.ok("unbound", device.unbind(this_cpu()));
        wait_until_alone(t);
    }
}
