//! Tag storage that is in use as memory when a page needs it: what lies there moves away, or the page does.
//!
//! To have a page in the storage of another, a test takes all other frames for a moment, and lent ones until it has the
//! one that it wants; then the page migrates there.

use core::sync::atomic::{AtomicU32, Ordering};

use granule::chip::timer::instructions;
use granule::kernel;
use granule::mm::notifier::{Event, Range, Subscriber, Subscription};
use granule::mm::page_block::MAX_ORDER;
use granule::mm::space::{Access, FaultError, Sharing, SpaceRef, handle_fault};
use granule::mm::tag_storage::TagStorageStats;
use granule::smp::this_cpu;
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;

use super::{PAGE, START, TAGGED, pages, storage};
use crate::harness::{TakenFrames, Test, drain_magazines, target_test, wait_until};
use crate::smmu::{self, DELIVERED};

/// Replays of a fault before its page moves.
pub(crate) const REPLAYS: u32 = 8;
/// The words in the page that needs tags, and in the one that lies in its storage.
const OWN: u64 = 7;
const OTHERS: u64 = 8;

/// All frames that are free, but those of tag storage, until it is dropped.
#[derive(Default)]
pub(super) struct Exhausted {
    blocks: heapless::Vec<(PhysAddr, u32), 128>,
    frames: TakenFrames,
}

impl Exhausted {
    pub(super) fn new() -> Self {
        let mut all = Self::default();
        for order in (0..=MAX_ORDER).rev() {
            while !all.blocks.is_full()
                && let Ok(block) = kernel().frames.alloc_blocks(this_cpu(), order)
            {
                // There is room.
                let _ = all.blocks.push((block, order));
            }
        }
        drain_magazines();
        while all.frames.take().is_some() {}
        all
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        self.blocks.iter().for_each(|&(block, order)| kernel().frames.free_blocks(this_cpu(), block, order));
    }
}

/// The entry of a page.
pub(crate) fn entry(space: &SpaceRef, page: VirtAddr) -> Descriptor {
    space.tables().translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
}

/// Moves the page that `space` has at `page` into the storage for the tags of `frame`; whether it is there.
fn put_into_storage_of(space: &SpaceRef, page: VirtAddr, frame: PhysAddr) -> bool {
    let (cpu, kernel) = (this_cpu(), kernel());
    let Some(region) = kernel.frames.tag_storage().and_then(|storage| storage.regions().first()) else { return false };
    let number = frame.frame_number();
    let Some((block, _)) = region.blocks_of(number..number + 1).next() else { return false };
    let wanted = region.frames_of(block);
    let _taken = Exhausted::new();
    let mut lent = TakenFrames::default();
    while let Ok(to) = kernel.frames.alloc_movable(cpu) {
        if !wanted.contains(&to.frame_number()) {
            lent.keep(to);
            continue;
        }
        // The kernel's threads, woken where nothing is free, may hold the page for a moment.
        let mut moved = false;
        wait_until(|| {
            moved = kernel.spaces.migrate_page(cpu, entry(space, page).address(), to).is_ok();
            moved
        });
        if !moved {
            kernel.frames.free(cpu, to);
        }
        return moved;
    }
    false
}

/// A hold of a page's frame, as something has that works on it.
pub(crate) struct Pin(PhysAddr);

impl Pin {
    pub(crate) fn new(frame: PhysAddr) -> Self {
        kernel().frames.frame(frame).into_iter().for_each(|(_, record)| record.share());
        Self(frame)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let is_last = kernel().frames.frame(self.0).is_some_and(|(_, record)| record.put());
        if is_last {
            kernel().frames.free(this_cpu(), self.0);
        }
    }
}

/// A page that waits for tag storage, in which the page of another space lies.
pub(crate) struct Occupied {
    pub(crate) space: SpaceRef,
    other: SpaceRef,
}

impl Occupied {
    pub(crate) fn new(t: &mut Test) -> Option<Self> {
        end_the_count(t)?;
        let space = with_a_page(t, OWN)?;
        Self::of(t, space)
    }

    /// As [`Self::new`], for a space that has its page already.
    fn of(t: &mut Test, space: SpaceRef) -> Option<Self> {
        let other = with_a_page(t, OTHERS)?;
        let is_there = put_into_storage_of(&other, START, entry(&space, START).address());
        t.check("the page lies in the other's tag storage", is_there);
        t.ok("mprotect", space.mprotect(START, PAGE, TAGGED));
        t.check("it waits", entry(&space, START).is_fault_on_access());
        Some(Self { space, other })
    }

    /// The frame of the page that needs tags.
    pub(crate) fn frame(&self) -> PhysAddr {
        entry(&self.space, START).address()
    }

    /// The frame of the page in its storage.
    pub(crate) fn other_frame(&self) -> PhysAddr {
        entry(&self.other, START).address()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        entry(&self.space, START).is_fault_on_access()
    }

    /// A store's fault.
    pub(crate) fn fault(&self) -> Result<(), FaultError> {
        handle_fault(&self.space, this_cpu(), START, Access::Write)
    }

    /// Faults until the page waits no more, at most so many; how many it took.
    pub(crate) fn faults(&self, at_most: u32) -> u32 {
        (0..at_most).find(|_| !self.is_waiting() || self.fault().is_err()).unwrap_or(at_most)
    }

    fn check_contents(&self, t: &mut Test) {
        t.equal("what the page holds", word(&self.space), OWN);
        t.equal("and the other", word(&self.other), OTHERS);
    }
}

fn with_a_page(t: &mut Test, holds: u64) -> Option<SpaceRef> {
    let space = t.ok("a space", kernel().spaces.create(this_cpu()))?;
    t.ok("a page", space.mmap(this_cpu(), &pages(1)))?;
    t.ok("written", space.write_bytes(this_cpu(), START, &holds.to_le_bytes()))?;
    Some(space)
}

/// A fault that is served ends the count of replays that this thread may have: it has served a device with another, and
/// which of them was the last is not known.
fn end_the_count(t: &mut Test) -> Option<()> {
    let space = with_a_page(t, OWN)?;
    t.ok("mprotect", space.mprotect(START, PAGE, TAGGED))?;
    t.ok("a fault that is served", handle_fault(&space, this_cpu(), START, Access::Write))?;
    t.check("the page is accessible", entry(&space, START).is_valid()).then_some(())
}

/// The first word of a space's page.
fn word(space: &SpaceRef) -> u64 {
    let mut bytes = [0; 8];
    space.read_bytes(this_cpu(), START, &mut bytes).map_or(u64::MAX, |()| u64::from_le_bytes(bytes))
}

target_test!(what_lies_in_the_storage_moves_away, needs("tag-storage"), limit(30));
fn what_lies_in_the_storage_moves_away(t: &mut Test) {
    let Some(storage) = storage(t) else { return };
    let before = storage.stats();
    let Some(pages) = Occupied::new(t) else { return };
    let (frame, others) = (pages.frame(), pages.other_frame());
    t.equal("frames that are lent", storage.stats().borrowed, before.borrowed + 1);
    t.equal("a fault", pages.fault(), Ok(()));
    t.check("the page is accessible, where it was", !pages.is_waiting() && pages.frame() == frame);
    t.check("the other has moved", pages.other_frame() != others);
    let after = storage.stats();
    t.equal("pages migrated out", after.migrations - before.migrations, 1);
    t.equal("frames that are lent", after.borrowed, before.borrowed);
    pages.check_contents(t);
}

target_test!(a_page_whose_storage_is_pinned_is_replayed_and_then_moves, needs("tag-storage"), limit(30));
fn a_page_whose_storage_is_pinned_is_replayed_and_then_moves(t: &mut Test) {
    const MANY: u32 = 20 * REPLAYS;
    let Some(storage) = storage(t) else { return };
    let Some(pages) = Occupied::new(t) else { return };
    let (before, frame, others) = (storage.stats(), pages.frame(), pages.other_frame());
    let pin = Pin::new(others);
    t.equal("faults, each of them a replay", pages.faults(REPLAYS), REPLAYS);
    t.check("it waits still, where it was", pages.is_waiting() && pages.frame() == frame);
    let faults = pages.faults(MANY);
    t.check("the page has moved before many more", faults < MANY);
    t.check("it is accessible, elsewhere", !pages.is_waiting() && pages.frame() != frame);
    let after = storage.stats();
    t.equal("pages moved for want of storage", after.moved_pages - before.moved_pages, 1);
    let replayed = |stats: &TagStorageStats| stats.replays.iter().skip(1).sum::<u64>();
    let timed = |stats: &TagStorageStats| stats.instructions.iter().skip(1).sum::<u64>();
    let (replayed, timed) = (replayed(&after) - replayed(&before), timed(&after) - timed(&before));
    t.equal("faults whose instructions are known", timed, if instructions().is_some() { replayed } else { 0 });
    t.check("the other has not", pages.other_frame() == others);
    drop(pin);
    pages.check_contents(t);
}

/// Discards the page of a space as soon as that of another migrates.
struct Discards {
    space: SpaceRef,
    discarded: AtomicU32,
}

impl Subscriber for Discards {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::Migrate {
            let is_done = self.space.madvise_dontneed(this_cpu(), START, PAGE).is_ok();
            self.discarded.fetch_add(u32::from(is_done), Ordering::Relaxed);
        }
    }
}

target_test!(a_page_that_is_discarded_while_its_storage_is_reserved_stays_so, needs("tag-storage"), limit(30));
fn a_page_that_is_discarded_while_its_storage_is_reserved_stays_so(t: &mut Test) {
    if storage(t).is_none() {
        return;
    }
    let Some(pages) = Occupied::new(t) else { return };
    let discards = Discards { space: pages.space.clone(), discarded: AtomicU32::new(0) };
    let Some(joined) = t.ok("a subscriber", Subscription::new(pages.other.clone(), discards, 0)) else { return };
    t.equal("a fault", pages.fault(), Ok(()));
    t.equal("discarded meanwhile", joined.discarded.load(Ordering::Relaxed), 1);
    t.equal("what the page holds", word(&pages.space), 0);
    t.equal("and the other", word(&pages.other), OTHERS);
}

target_test!(a_device_reaches_what_waits, needs("tag-storage smmuv3 virtio-blk"), limit(30));
fn a_device_reaches_what_waits(t: &mut Test) {
    let Some(storage) = storage(t) else { return };
    for (is_occupied, writes) in [(false, false), (false, true), (true, false), (true, true)] {
        let Some(rig) = smmu::Rig::new(t, 1, Sharing::Private) else { return };
        rig.store(t, smmu::START, OWN);
        let migrations = storage.stats().migrations;
        let occupied = if is_occupied {
            Occupied::of(t, rig.space.clone())
        } else {
            t.ok("mprotect", rig.space.mprotect(smmu::START, PAGE, TAGGED));
            None
        };
        t.check("it waits", rig.entry(smmu::START).is_fault_on_access());
        if writes {
            let tries = rig.device_store(smmu::START, DELIVERED);
            t.check("the device's fault is served", tries.is_ok_and(|tries| tries >= 2));
            t.equal("it has arrived", rig.load(smmu::START), DELIVERED);
        } else {
            t.equal("the device reads", rig.device_load(smmu::START), Ok(OWN));
        }
        t.check("it waits no more", rig.entry(smmu::START).is_valid());
        let moved = storage.stats().migrations - migrations;
        t.equal("pages that moved out of its storage", moved, u64::from(is_occupied));
        occupied.into_iter().for_each(|pages| _ = t.equal("the other page", word(&pages.other), OTHERS));
    }
}

target_test!(
    a_device_whose_page_cannot_have_its_storage_gets_it_elsewhere,
    needs("tag-storage smmuv3 virtio-blk"),
    limit(30)
);
fn a_device_whose_page_cannot_have_its_storage_gets_it_elsewhere(t: &mut Test) {
    let Some(storage) = storage(t) else { return };
    let Some(rig) = smmu::Rig::new(t, 1, Sharing::Private) else { return };
    rig.store(t, smmu::START, OWN);
    let Some(pages) = Occupied::of(t, rig.space.clone()) else { return };
    let (before, frame) = (storage.stats(), pages.frame());
    let pin = Pin::new(pages.other_frame());
    let tries = rig.device_store(smmu::START, DELIVERED);
    // The first attempt faults. A thread that serves devices counts the replays of all pages together, also of those that
    // the other one has served, so it may move this page after fewer attempts.
    t.check("the device's fault was replayed, and served", tries.is_ok_and(|tries| tries > 1));
    t.equal("it has arrived", rig.load(smmu::START), DELIVERED);
    t.check("the page has moved", rig.entry(smmu::START).is_valid() && pages.frame() != frame);
    // Two threads serve the device here, and both may have come to the last replay before the page was moved.
    let moved = storage.stats().moved_pages - before.moved_pages;
    t.check("pages moved for want of storage", (1..=2).contains(&moved));
    drop(pin);
    t.equal("the other page", word(&pages.other), OTHERS);
}
