//! Pages that move to other frames while a device uses them.

#![allow(unsafe_code, reason = "canaries in frames of the test's own, by the linear map")]

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use granule::devices::edu::edu;
use granule::devices::slot::Driver;
use granule::iommu::DmaAddress;
use granule::kernel;
use granule::mm::space::{Sharing, SpaceRef};
use granule::sched;
use granule::smp::this_cpu;
use granule_arch::addr::PhysAddr;
use spin::Once;
use spin::mutex::SpinMutex;

use super::{DELIVERED, PAGE, Rig, START, space};
use crate::harness::{Test, another_cpu, target_test, wait_until};

/// A rig whose pages the device has written; the first holds [`DELIVERED`].
fn rig_with_pages(t: &mut Test) -> Option<Rig> {
    let rig = Rig::new(t, 4, Sharing::Private)?;
    for page in 0..4 {
        rig.store(t, START + page * PAGE, 1);
        t.equal("the device writes", rig.device_store(START + page * PAGE, DELIVERED + page), Ok(1));
    }
    Some(rig)
}

target_test!(a_device_follows_a_page_that_migrates, needs("smmuv3 virtio-blk"));
fn a_device_follows_a_page_that_migrates(t: &mut Test) {
    let Some(rig) = rig_with_pages(t) else { return };
    let (cpu, spaces, frames) = (this_cpu(), &kernel().spaces, kernel().frames);
    let from = rig.physical(START);
    let Some(to) = t.ok("a frame", frames.alloc_movable(cpu)) else { return };
    t.ok("migrated", spaces.migrate_page(cpu, from, to));
    t.equal("where it is", rig.physical(START), to);
    t.equal("the device reads it", rig.device_load(START), Ok(DELIVERED));
    rig.store(t, START, 2);
    t.equal("the device reads what was stored there", rig.device_load(START), Ok(2));
    t.equal("it writes there, at once", rig.device_store(START, DELIVERED + 1), Ok(1));
    t.equal("what is there", rig.load(START), DELIVERED + 1);
}

// QEMU's edu translates and copies in one step. Its virtio-blk translates when a request begins, and what it read arrives
// later: no CMD_SYNC waits for that, as an SMMU's does (Arm IHI 0070, 3.21). Every frame that a page leaves is full of
// canaries before its next page leaves one.
target_test!(a_device_writes_while_its_pages_migrate, needs("smmuv3 edu smp"), limit(60));
fn a_device_writes_while_its_pages_migrate(t: &mut Test) {
    const CANARY: usize = 0x1234_5678;
    let cpu = this_cpu();
    let (Some(device), Some(space)) = (t.ok("edu", edu(cpu, 0)), space(t, 4, Sharing::Private)) else { return };
    t.ok("bound", device.bind(cpu, &space));
    let word = |page: u64| {
        let mut bytes = [0; 8];
        space.read_bytes(cpu, START + page * PAGE, &mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    (0..4).for_each(|page| _ = t.ok("a store", space.write_bytes(cpu, START + page * PAGE, &[1])));
    MOVED.store(0, Ordering::Relaxed);
    MOVING.call_once(|| SpinMutex::new(None)).lock().replace(space.clone());
    t.ok("a thread", sched::spawn_kernel(another_cpu(cpu), "migrate", migrate_on, CANARY));
    wait_until(Duration::from_secs(10), || MOVED.load(Ordering::Relaxed) != 0);
    for number in 1..=20_u64 {
        let (from, to) = (number % 2, 2 + number % 2);
        t.ok("a store", space.write_bytes(cpu, START + from * PAGE, &number.to_le_bytes()));
        t.check("the device reads", device.copy_in(DmaAddress((START + from * PAGE).0), 0, 8).is_ok());
        t.check("the device writes", device.copy_out(0, DmaAddress((START + to * PAGE).0), 8).is_ok());
        t.equal("what is there", word(to), Ok(number));
    }
    drop(MOVING.get().and_then(|moving| moving.lock().take()));
    wait_until(Duration::from_secs(20), || sched::thread_count() == 0);
    t.equal("threads that are left", sched::thread_count(), 0);
    t.equal("frames that were written after their pages had left", SPOILT.swap(0, Ordering::Relaxed), 0);
    t.check("pages moved", MOVED.load(Ordering::Relaxed) >= 100);
    t.ok("unbound", device.unbind(cpu));
}

/// The space whose pages [`migrate_on`] moves.
static MOVING: Once<SpinMutex<Option<SpaceRef>>> = Once::new();
static MOVED: AtomicU64 = AtomicU64::new(0);
/// Canaries that were overwritten.
static SPOILT: AtomicU64 = AtomicU64::new(0);

/// Moves pages on until there is no space any more. A frame that one has left holds canaries until the next has left its.
extern "C" fn migrate_on(canary: usize) {
    let (cpu, spaces, frames) = (this_cpu(), &kernel().spaces, kernel().frames);
    let words = |frame: PhysAddr| frames.linear().address(frame).as_ptr::<usize>();
    let mut last = None;
    for page in (0..4).cycle().map(|page| START + page * PAGE) {
        let Some(space) = MOVING.get().and_then(|moving| moving.lock().clone()) else { break };
        let from = space.tables().translate(page).map(|found| found.physical);
        let (Some(from), Ok(to)) = (from, frames.alloc_movable(cpu)) else { break };
        if spaces.migrate_page(cpu, from, to).is_err() {
            frames.free(cpu, to);
            continue;
        }
        MOVED.fetch_add(1, Ordering::Relaxed);
        if let Some(held) = last.take() {
            // SAFETY: it is this thread's.
            let whole = (0..PAGE as usize / 8).all(|word| unsafe { words(held).add(word).read_volatile() } == canary);
            SPOILT.fetch_add(u64::from(!whole), Ordering::Relaxed);
            frames.free(cpu, held);
        }
        // The frame that was left is on top of this CPU's magazine.
        if let Ok(left) = frames.alloc_movable(cpu) {
            // SAFETY: it was just allocated.
            (0..PAGE as usize / 8).for_each(|word| unsafe { words(left).add(word).write_volatile(canary) });
            last = Some(left);
        }
    }
    last.into_iter().for_each(|held| frames.free(cpu, held));
}
