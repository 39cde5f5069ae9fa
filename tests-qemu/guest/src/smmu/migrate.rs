//! Pages and blocks that move to other frames while a device uses them.

#![allow(unsafe_code, reason = "canaries in frames of the test's own, by the linear map")]

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::devices::edu::edu;
use granule::devices::slot::Driver;
use granule::iommu::DmaAddress;
use granule::kernel;
use granule::mm::page_block::BLOCK_SIZE;
use granule::mm::space::{AreaAdvice, Moved, Sharing, SpaceRef};
use granule::sched;
use granule::smp::this_cpu;
use spin::Once;
use spin::mutex::SpinMutex;

use super::{DELIVERED, PAGE, Rig, START, space};
use crate::harness::{Test, another_cpu, target_test, wait_until};

/// The kind of memory that migrates: pages of anonymous memory, pages of an object, or blocks of either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Private,
    Shared,
    Block,
    SharedBlock,
}

impl Kind {
    /// A space with four pages at least, which are there.
    fn space(self, t: &mut Test) -> Option<SpaceRef> {
        let (count, sharing) = match self {
            Self::Private => (4, Sharing::Private),
            Self::Shared => (4, Sharing::Shared),
            Self::Block => (BLOCK_SIZE / PAGE, Sharing::Private),
            Self::SharedBlock => (BLOCK_SIZE / PAGE, Sharing::Shared),
        };
        let space = space(t, count, sharing)?;
        if self.bytes() == BLOCK_SIZE {
            t.ok("advice", space.madvise_areas(this_cpu(), START, BLOCK_SIZE, AreaAdvice::HugePage))?;
        }
        (0..4).try_for_each(|page| t.ok("a store", space.write_bytes(this_cpu(), START + page * PAGE, &[1])))?;
        Some(space)
    }

    /// Between two moves, in ms. A transfer of edu's takes 100 ms, and is submitted again where what it uses has moved
    /// during it: all of an object's block.
    const fn pause(self) -> usize {
        match self {
            Self::Private => 2,
            Self::Block => 50,
            Self::Shared => 100,
            Self::SharedBlock => 600,
        }
    }

    const fn bytes(self) -> u64 {
        if matches!(self, Self::Block | Self::SharedBlock) { BLOCK_SIZE } else { PAGE }
    }
}

target_test!(a_device_follows_a_page_that_migrates, needs("smmuv3 virtio-blk"));
fn a_device_follows_a_page_that_migrates(t: &mut Test) {
    follows_what_migrates(t, Kind::Private);
}

target_test!(a_device_follows_an_objects_page_that_migrates, needs("smmuv3 virtio-blk"));
fn a_device_follows_an_objects_page_that_migrates(t: &mut Test) {
    follows_what_migrates(t, Kind::Shared);
}

target_test!(a_device_follows_a_block_that_migrates, needs("smmuv3 virtio-blk"));
fn a_device_follows_a_block_that_migrates(t: &mut Test) {
    follows_what_migrates(t, Kind::Block);
}

target_test!(a_device_follows_an_objects_block_that_migrates, needs("smmuv3 virtio-blk"));
fn a_device_follows_an_objects_block_that_migrates(t: &mut Test) {
    follows_what_migrates(t, Kind::SharedBlock);
}

fn follows_what_migrates(t: &mut Test, kind: Kind) {
    let Some(rig) = kind.space(t).and_then(|space| Rig::bound_to(t, space)) else { return };
    for page in 0..4 {
        t.equal("the device writes", rig.device_store(START + page * PAGE, DELIVERED + page), Ok(1));
    }
    let from = rig.physical(START);
    let Some(moved) = t.ok("migrated", kernel().spaces.migrate_at(this_cpu(), &rig.space, START)) else { return };
    t.equal("from where it was", moved, Moved { from, to: moved.to, bytes: kind.bytes() });
    t.check("elsewhere", moved.to != from);
    rig.store(t, START, 2);
    t.equal("the device reads what was stored there", rig.device_load(START), Ok(2));
    t.equal("where it is", rig.physical(START), moved.to);
    t.equal("and what is beside it", rig.device_load(START + 3 * PAGE), Ok(DELIVERED + 3));
    rig.store(t, START, 3);
    t.equal("it writes there, at once", rig.device_store(START, DELIVERED + 1), Ok(1));
    t.equal("what is there", rig.load(START), DELIVERED + 1);
}

// QEMU's edu translates and copies in one step. Its virtio-blk translates when a request begins, and what it read
// arrives later: no CMD_SYNC waits for that, as an SMMU's does (Arm IHI 0070, 3.21). Every frame that a page leaves is
// full of canaries before its next page leaves one.
target_test!(a_device_writes_while_its_pages_migrate, needs("smmuv3 edu smp"), limit(60));
fn a_device_writes_while_its_pages_migrate(t: &mut Test) {
    writes_while_it_migrates(t, Kind::Private);
}

target_test!(a_device_writes_while_an_objects_pages_migrate, needs("smmuv3 edu smp"), limit(60));
fn a_device_writes_while_an_objects_pages_migrate(t: &mut Test) {
    writes_while_it_migrates(t, Kind::Shared);
}

target_test!(a_device_writes_while_a_block_migrates, needs("smmuv3 edu smp"), limit(60));
fn a_device_writes_while_a_block_migrates(t: &mut Test) {
    writes_while_it_migrates(t, Kind::Block);
}

target_test!(a_device_writes_while_an_objects_block_migrates, needs("smmuv3 edu smp"), limit(60));
fn a_device_writes_while_an_objects_block_migrates(t: &mut Test) {
    writes_while_it_migrates(t, Kind::SharedBlock);
}

fn writes_while_it_migrates(t: &mut Test, kind: Kind) {
    let cpu = this_cpu();
    let (Some(device), Some(space)) = (t.ok("edu", edu(cpu, 0)), kind.space(t)) else { return };
    t.ok("bound", device.bind(cpu, &space));
    let word = |page: u64| {
        let mut bytes = [0; 8];
        space.read_bytes(cpu, START + page * PAGE, &mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    MOVED.store(0, Ordering::Relaxed);
    WATCHED.store(0, Ordering::Relaxed);
    MOVING.call_once(|| SpinMutex::new(None)).lock().replace(space.clone());
    t.ok("a thread", sched::spawn_kernel(another_cpu(cpu), "migrate", migrate_on, kind.pause()));
    wait_until(|| MOVED.load(Ordering::Relaxed) != 0);
    // On a busy host the thread may stand still: then until enough has moved.
    for number in (1..).take_while(|number| *number <= 20_u64 || MOVED.load(Ordering::Relaxed) < 5) {
        let (from, to) = (number % 2, 2 + number % 2);
        t.ok("a store", space.write_bytes(cpu, START + from * PAGE, &number.to_le_bytes()));
        t.check("the device reads", device.copy_in(DmaAddress((START + from * PAGE).0), 0, 8).is_ok());
        t.check("the device writes", device.copy_out(0, DmaAddress((START + to * PAGE).0), 8).is_ok());
        t.equal("what is there", word(to), Ok(number));
    }
    drop(MOVING.get().and_then(|moving| moving.lock().take()));
    wait_until(|| sched::thread_count() == 0);
    t.equal("threads that are left", sched::thread_count(), 0);
    t.equal("frames that were written after their pages had left", SPOILT.swap(0, Ordering::Relaxed), 0);
    let (moved, watched) = (MOVED.load(Ordering::Relaxed), WATCHED.load(Ordering::Relaxed));
    // An object gives back frames, and no block.
    let wanted = if kind == Kind::SharedBlock { 0 } else { moved / 2 };
    t.check("what it left was watched", watched >= wanted);
    t.ok("unbound", device.unbind(cpu));
}

/// The space whose memory [`migrate_on`] moves.
static MOVING: Once<SpinMutex<Option<SpaceRef>>> = Once::new();
static MOVED: AtomicU64 = AtomicU64::new(0);
/// How often what was left was filled with canaries.
static WATCHED: AtomicU64 = AtomicU64::new(0);
/// Canaries that were overwritten.
static SPOILT: AtomicU64 = AtomicU64::new(0);

/// Moves pages on until there is no space any more. A frame that one has left holds canaries until the next has left
/// its.
extern "C" fn migrate_on(pause: usize) {
    const CANARY: usize = 0x1234_5678;
    /// Words of the pages that the device uses.
    const WORDS: usize = 4 * PAGE as usize / 8;
    let (cpu, spaces, frames) = (this_cpu(), &kernel().spaces, kernel().frames);
    let words = |left: Moved| (0..WORDS.min(left.bytes as usize / 8)).map(move |word| (left, word));
    let at = |(left, word): (Moved, usize)| {
        // SAFETY: the caller's memory, as far as it goes.
        unsafe { frames.linear().address(left.from).as_ptr::<usize>().add(word) }
    };
    let free = |left: Moved| match left.bytes {
        BLOCK_SIZE => frames.free_splittable(cpu, left.from),
        _ => frames.free(cpu, left.from),
    };
    let mut last = None;
    for page in (0..4).cycle().map(|page| START + page * PAGE) {
        let Some(space) = MOVING.get().and_then(|moving| moving.lock().clone()) else { break };
        // A page that migrates all the time cannot be used.
        let _ = sched::sleep_until(Deadline::after(Duration::from_millis(pause as u64)));
        let Ok(moved) = spaces.migrate_at(cpu, &space, page) else { continue };
        MOVED.fetch_add(1, Ordering::Relaxed);
        if let Some(held) = last.take() {
            // SAFETY: it is this thread's.
            let whole = words(held).all(|word| unsafe { at(word).read_volatile() } == CANARY);
            SPOILT.fetch_add(u64::from(!whole), Ordering::Relaxed);
            free(held);
        }
        // The memory that was left is allocated again soon: a frame is on top of this CPU's magazine.
        let mut others = heapless::Vec::<Moved, 8>::new();
        while !others.is_full() && last.is_none() {
            let is_block = moved.bytes == BLOCK_SIZE;
            let again = if is_block { frames.alloc_splittable(cpu) } else { frames.alloc_movable(cpu) };
            let Ok(from) = again else { break };
            if from == moved.from {
                // SAFETY: it was just allocated.
                words(moved).for_each(|word| unsafe { at(word).write_volatile(CANARY) });
                WATCHED.fetch_add(1, Ordering::Relaxed);
                last = Some(moved);
            } else {
                let _ = others.push(Moved { from, ..moved });
            }
        }
        others.into_iter().for_each(free);
    }
    last.into_iter().for_each(free);
}
