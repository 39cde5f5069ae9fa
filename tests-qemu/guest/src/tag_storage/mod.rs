//! Tag storage on the target: what a program and the kernel reach while an entry waits for it, and what is reserved then.

pub(crate) mod occupied;
mod races;

use granule::kernel;
use granule::linux::process;
use granule::linux::process::status::ProcessEnd;
use granule::mm::heap;
use granule::mm::space::{Access, MapRequest, Placement, Populate, Sharing, SpaceRef, handle_fault};
use granule::mm::tag_storage::{TagStorage, TagStorageStats};
use granule::sched;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;

use crate::harness::{Test, target_test, wait_until};
use crate::mte::has_tags;
use crate::process::{settle, start, succeeds};

const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);
const TAGGED: Protection = READ_WRITE.and(Protection::TAGGED);
/// The first page of a test's own space.
const START: VirtAddr = VirtAddr(0x40_0000);
/// Addresses in program `tag_storage lazy`: its pages, the steps that it has done, and those that the test has seen.
const LAZY: VirtAddr = VirtAddr(0x7000_0000_0000);
const DONE: VirtAddr = VirtAddr(0x7100_0000_0000);
const SEEN: VirtAddr = VirtAddr(0x7100_0000_0008);
pub(crate) const PAGES: u64 = 1000;
const TOUCHED: u64 = 7;

fn storage(t: &mut Test) -> Option<&'static TagStorage> {
    has_tags(t);
    t.ok("tag storage", kernel().frames.tag_storage().ok_or("none"))
}

/// Frames whose tags have storage, but those of the heap, which keeps its pages.
pub(crate) fn users(stats: &TagStorageStats) -> i64 {
    stats.users as i64 - (heap::kernel_heap().stats().total / PAGE_SIZE) as i64
}

/// So many private pages from [`START`] on.
fn pages(count: u64) -> MapRequest {
    MapRequest {
        placement: Placement::Fixed(START),
        bytes: count * PAGE,
        protection: READ_WRITE,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    }
}

/// A space with [`PAGES`] pages in use.
pub(crate) fn a_thousand_pages(t: &mut Test) -> Option<SpaceRef> {
    let space = t.ok("a space", kernel().spaces.create(this_cpu()))?;
    t.ok("its pages", space.mmap(this_cpu(), &pages(PAGES)))?;
    touch(t, &space, PAGES);
    Some(space)
}

/// Gives them PROT_MTE.
pub(crate) fn mark(t: &mut Test, space: &SpaceRef) {
    t.ok("mprotect", space.mprotect(START, PAGES * PAGE, TAGGED));
}

/// Serves a store to each of the first pages.
pub(crate) fn touch(t: &mut Test, space: &SpaceRef, count: u64) {
    let fault = |page| handle_fault(space, this_cpu(), START + page * PAGE, Access::Write);
    t.check("stores", (0..count).all(|page| fault(page).is_ok()));
}

target_test!(the_region_is_at_the_end_of_memory, needs("tag-storage"));
fn the_region_is_at_the_end_of_memory(t: &mut Test) {
    let platform = kernel().platform;
    t.equal("regions", platform.tag_storage.len(), 1);
    t.equal("banks of memory", platform.memory.len(), 1);
    let (Some(region), Some(memory)) = (platform.tag_storage.first(), platform.memory.first()) else { return };
    t.equal("tags of", region.tagged, *memory);
    t.equal("end", region.storage.end(), memory.end());
    t.equal("bytes", region.storage.size(), memory.size() / 32);
    t.equal("bytes of a block", region.block_bytes, 4096);
}

/// Waits for a step of the program; the account then.
fn at_step(t: &mut Test, space: &SpaceRef, storage: &TagStorage, step: u64) -> TagStorageStats {
    let mut bytes = [0; 8];
    wait_until(|| space.read_bytes(this_cpu(), DONE, &mut bytes).is_ok() && u64::from_le_bytes(bytes) == step);
    t.equal("the program's step", u64::from_le_bytes(bytes), step);
    storage.stats()
}

fn go_on(t: &mut Test, space: &SpaceRef, step: u64) {
    t.ok("seen", space.write_bytes(this_cpu(), SEEN, &step.to_le_bytes()));
}

target_test!(a_thousand_pages_wait_and_one_that_is_touched_reserves_one_block, needs("tag-storage"), limit(30));
fn a_thousand_pages_wait_and_one_that_is_touched_reserves_one_block(t: &mut Test) {
    let Some(storage) = storage(t) else { return };
    let (threads, first) = (sched::thread_count(), storage.stats());
    let Some(id) = t.ok("the program", start("tag_storage lazy")) else { return };
    let Some(space) = t.ok("its space", process::space_of(id).ok_or("none")) else { return };
    let before = at_step(t, &space, storage, 1);
    go_on(t, &space, 1);
    let marked = at_step(t, &space, storage, 2);
    let waits = |page: u64| {
        let entry = space.tables().translate(LAZY + page * PAGE);
        entry.is_some_and(|found| found.descriptor.is_fault_on_access() && !found.descriptor.is_valid())
    };
    t.equal("blocks that mprotect reserves", marked.claims - before.claims, 0);
    t.equal("pages that wait", (0..PAGES).filter(|&page| waits(page)).count() as u64, PAGES);
    t.equal("frames with storage", users(&marked), users(&before));
    go_on(t, &space, 2);
    let touched = at_step(t, &space, storage, 3);
    t.equal("blocks that the access reserves", touched.claims - marked.claims, 1);
    t.equal("which are reserved", touched.reserved - marked.reserved, 1);
    t.check("the page waits no more", !waits(TOUCHED));
    t.equal("faults served", touched.replays[0] - marked.replays[0], 1);
    go_on(t, &space, 3);
    drop(space);
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    settle(t, threads);
    let end = storage.stats();
    t.equal("blocks still reserved", end.reserved, first.reserved);
    t.equal("frames that still have storage", users(&end), users(&first));
}

target_test!(programs_and_calls_reach_what_waits, needs("tag-storage"), limit(30));
fn programs_and_calls_reach_what_waits(t: &mut Test) {
    let Some(storage) = storage(t) else { return };
    let first = storage.stats();
    succeeds(t, "tag_storage calls children none");
    let end = storage.stats();
    t.check("faults were served", end.replays.iter().sum::<u64>() - first.replays.iter().sum::<u64>() >= 10);
    t.equal("blocks still reserved", end.reserved, first.reserved);
    t.equal("frames that still have storage", users(&end), users(&first));
}
