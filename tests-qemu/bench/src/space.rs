//! Spaces of programs, from the kernel's side: what a fault or a call takes between its entry and its exit.

use granule::mm::space::{Access, MapRequest, Placement, Populate, Sharing, Space, SpaceRef, handle_fault};
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::Protection;

use crate::harness::{Bench, bench};

const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);
/// Where everything is mapped: what comes before and after is mapped too, so that neither gaps nor tables come and go.
const START: VirtAddr = VirtAddr(0x10_0010_0000);
/// The sizes of a row whose unit is the page.
const PAGES: [u64; 5] = [1, 8, 64, 512, 4096];

fn private(start: VirtAddr, pages: u64, populate: Populate) -> MapRequest {
    let placement = Placement::Fixed(start);
    MapRequest { placement, bytes: pages * PAGE, protection: READ_WRITE, sharing: Sharing::Private, populate }
}

/// A space with `pages` pages at [`START`], in an area of their own between two others.
fn space(pages: u64, populate: Populate) -> SpaceRef {
    space_between(Protection::EXECUTE, pages, populate)
}

/// As [`space`], with the protection of the two others given: areas that are alike become one.
fn space_between(others: Protection, pages: u64, populate: Populate) -> SpaceRef {
    space_with(READ_WRITE, others, pages, populate)
}

/// As [`space_between`], with the protection `own` for the area between them.
fn space_with(own: Protection, others: Protection, pages: u64, populate: Populate) -> SpaceRef {
    let space = granule::kernel().spaces.create(this_cpu()).expect("memory for a space");
    for (start, protection) in [(START - PAGE, others), (START, own), (START + pages * PAGE, others)] {
        let pages = if start == START { pages } else { 1 };
        let request = MapRequest { protection, ..private(start, pages, populate) };
        space.mmap(this_cpu(), &request).expect("memory for areas");
    }
    if populate == Populate::OnDemand {
        handle_fault(&space, this_cpu(), START - PAGE, Access::Execute).expect("memory for a table");
    }
    space
}

/// The frames of a space's pages.
pub(crate) type FramesOf = heapless::Vec<PhysAddr, 64>;

/// A space with `pages` written pages, at most 64, and their frames.
pub(crate) fn written(pages: u64) -> (SpaceRef, FramesOf) {
    let space = space(pages, Populate::Now);
    let frames = frames_of(&space, pages);
    (space, frames)
}

/// As [`written`], with pages that have tags, and storage for them.
pub(crate) fn written_tagged(pages: u64) -> (SpaceRef, FramesOf) {
    let space = space_with(READ_WRITE.and(Protection::TAGGED), Protection::EXECUTE, pages, Populate::Now);
    let frames = frames_of(&space, pages);
    (space, frames)
}

fn frames_of(space: &Space, pages: u64) -> FramesOf {
    let frame = |page| space.tables().translate(START + page * PAGE).map(|found| found.physical);
    (0..pages).filter_map(frame).collect()
}

fn fault(space: &Space, pages: u64, access: Access) {
    for page in 0..pages {
        handle_fault(space, this_cpu(), START + page * PAGE, access).expect("memory for a page");
    }
}

/// Measures faults of `access` on one page, in a space that `prepare` makes.
fn fault_row(bench: &mut Bench<'_>, prepare: impl Fn() -> (SpaceRef, Option<SpaceRef>), access: Access) {
    bench.point(1, prepare, |spaces| (fault(&spaces.0, 1, access), spaces).1, drop);
}

bench!(write_fault, "space/fault_write", "page", also("a72"));
fn write_fault(bench: &mut Bench<'_>) {
    fault_row(bench, || (space(1, Populate::OnDemand), None), Access::Write);
}

bench!(read_fault, "space/fault_read", "page");
fn read_fault(bench: &mut Bench<'_>) {
    fault_row(bench, || (space(1, Populate::OnDemand), None), Access::Read);
}

bench!(copy_fault, "space/fault_copy", "page", also("a72"));
fn copy_fault(bench: &mut Bench<'_>) {
    let forked = || {
        let parent = space(1, Populate::Now);
        (parent.fork(this_cpu()).expect("memory for a fork"), Some(parent))
    };
    fault_row(bench, forked, Access::Write);
}

bench!(reuse_fault, "space/fault_reuse", "page");
fn reuse_fault(bench: &mut Bench<'_>) {
    let forked = || {
        let parent = space(1, Populate::Now);
        drop(parent.fork(this_cpu()).expect("memory for a fork"));
        (parent, None)
    };
    fault_row(bench, forked, Access::Write);
}

/// Measures a call on all pages.
fn call_row(bench: &mut Bench<'_>, prepare: impl Fn(u64) -> SpaceRef, call: impl Fn(&Space, u64)) {
    for pages in PAGES {
        bench.point(pages, || prepare(pages), |space| (call(&space, pages), space).1, drop);
    }
}

bench!(mprotect_ro, "space/mprotect_ro", "page");
fn mprotect_ro(bench: &mut Bench<'_>) {
    let call = |space: &Space, pages: u64| space.mprotect(START, pages * PAGE, Protection::READ).expect("mapped");
    call_row(bench, |pages| space(pages, Populate::Now), call);
}

bench!(mprotect_rw, "space/mprotect_rw", "page");
fn mprotect_rw(bench: &mut Bench<'_>) {
    let prepare = |pages: u64| {
        let space = space(pages, Populate::Now);
        space.mprotect(START, pages * PAGE, Protection::READ).expect("mapped");
        space
    };
    call_row(bench, prepare, |space, pages| space.mprotect(START, pages * PAGE, READ_WRITE).expect("mapped"));
}

bench!(mprotect_cut, "space/mprotect_ro/cut", "page");
fn mprotect_cut(bench: &mut Bench<'_>) {
    let call = |space: &Space, pages: u64| space.mprotect(START, pages * PAGE, Protection::READ).expect("mapped");
    call_row(bench, |pages| space_between(READ_WRITE, pages, Populate::Now), call);
}

bench!(mprotect_merge, "space/mprotect_ro/merge", "page");
fn mprotect_merge(bench: &mut Bench<'_>) {
    let call = |space: &Space, pages: u64| space.mprotect(START, pages * PAGE, Protection::READ).expect("mapped");
    call_row(bench, |pages| space_between(Protection::READ, pages, Populate::Now), call);
}

bench!(munmap_cut, "space/munmap/cut", "page");
fn munmap_cut(bench: &mut Bench<'_>) {
    let call = |space: &Space, pages: u64| space.munmap(this_cpu(), START, pages * PAGE).expect("mapped");
    call_row(bench, |pages| space_between(READ_WRITE, pages, Populate::Now), call);
}

bench!(munmap, "space/munmap", "page");
fn munmap(bench: &mut Bench<'_>) {
    let call = |space: &Space, pages: u64| space.munmap(this_cpu(), START, pages * PAGE).expect("mapped");
    call_row(bench, |pages| space(pages, Populate::Now), call);
}

bench!(dontneed, "space/madvise_dontneed", "page");
fn dontneed(bench: &mut Bench<'_>) {
    let call = |space: &Space, pages: u64| space.madvise_dontneed(this_cpu(), START, pages * PAGE).expect("mapped");
    call_row(bench, |pages| space(pages, Populate::Now), call);
}

bench!(populate, "space/mmap_populate", "page", also("a72"));
fn populate(bench: &mut Bench<'_>) {
    let prepare = |pages: u64| {
        let space = space(pages, Populate::OnDemand);
        space.munmap(this_cpu(), START, pages * PAGE).expect("mapped");
        space
    };
    let call = |space: &Space, pages: u64| {
        space.mmap(this_cpu(), &private(START, pages, Populate::Now)).expect("memory");
    };
    call_row(bench, prepare, call);
}

bench!(fork, "space/fork", "page");
fn fork(bench: &mut Bench<'_>) {
    for pages in PAGES {
        let prepare = || space(pages, Populate::Now);
        bench.point(pages, prepare, |space| (space.fork(this_cpu()).expect("memory for a fork"), space), drop);
    }
}
