//! Copy on write with the TLBs of several CPUs: what one CPU writes, all see, and a child never.
//!
//! The other CPU is a kernel thread that has the space's tables and looks by the kernel's accesses to user memory. It
//! does not sleep in between: without tables for a moment, QEMU would have emptied its TLB.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::kernel;
use granule::mm::space::{MapRequest, Placement, Populate, Sharing, SpaceRef};
use granule::sched::{self, sleep_until};
use granule::smp::this_cpu;
use granule::uaccess;
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_arch::wait;
use spin::mutex::SpinMutex;

use crate::harness::{Test, another_cpu, patience, target_test};

const PAGE: VirtAddr = VirtAddr(0x40_0000);

/// The space that the other CPU looks at, and how far both are: each step is one side's to take.
static SPACE: SpinMutex<Option<SpaceRef>> = SpinMutex::new(None);
static STEP: AtomicU64 = AtomicU64::new(0);
static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Spins until it is the turn of `step`; whether that came.
fn turn(step: u64) -> bool {
    let patience = patience();
    while STEP.load(Ordering::Acquire) != step {
        if patience.has_passed() {
            return false;
        }
        wait::relax();
    }
    true
}

fn read() -> u64 {
    let mut bytes = [0; 8];
    uaccess::copy_from_user(&mut bytes, PAGE).map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
}

/// Looks at the page before it is copied and after.
extern "C" fn look(_: usize) {
    drop(sched::set_space(SPACE.lock().clone().map(Into::into)));
    for (step, seen) in [0, 2].into_iter().zip(&SEEN) {
        if turn(step) {
            seen.store(read(), Ordering::Relaxed);
            STEP.store(step + 1, Ordering::Release);
        }
    }
    drop(sched::set_space(None));
}

target_test!(a_copy_is_seen_by_every_cpu, needs("smp"));
fn a_copy_is_seen_by_every_cpu(t: &mut Test) {
    let cpu = this_cpu();
    let Some(space) = t.ok("a space", kernel().spaces.create(cpu)) else { return };
    let request = MapRequest {
        placement: Placement::Fixed(PAGE),
        bytes: PAGE_SIZE as u64,
        protection: Protection::READ.and(Protection::WRITE),
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    };
    t.ok("a page", space.mmap(cpu, &request));
    let write = |value: u64| space.write_bytes(cpu, PAGE, &value.to_le_bytes());
    t.ok("the first value", write(1));
    let Some(child) = t.ok("a child", space.fork(cpu)) else { return };
    *SPACE.lock() = Some(space.clone());
    STEP.store(0, Ordering::Relaxed);
    let other = another_cpu(cpu);
    t.ok("a thread", sched::spawn_kernel(other, "look", look, 0));
    t.check("the other CPU has looked", turn(1));
    t.ok("the second value", write(2));
    STEP.store(2, Ordering::Release);
    t.check("the other CPU has looked again", turn(3));
    t.equal("before the copy", SEEN[0].load(Ordering::Relaxed), 1);
    t.equal("after the copy", SEEN[1].load(Ordering::Relaxed), 2);
    let mut bytes = [0; 8];
    t.ok("the child's page", child.read_bytes(cpu, PAGE, &mut bytes));
    t.equal("what the child has", u64::from_le_bytes(bytes), 1);
    while sched::thread_count() > 0 {
        sleep_until(Deadline::after(Duration::from_millis(1)));
    }
    *SPACE.lock() = None;
}
