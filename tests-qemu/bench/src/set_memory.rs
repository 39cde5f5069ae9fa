//! `set_memory_*` on vmalloc areas, each call a change of every page of the area.
//!
//! The areas are mapped by pages (`vmalloc=pages`), as Linux's are, and lie wherever vmalloc puts them. Rows with
//! `/no_alias` leave the linear map's alias of the pages alone, as Linux does with `rodata=noalias`. Where it goes along,
//! the frames lie in one piece of memory: in order, or no two that follow one another side by side.

#![allow(unsafe_code, reason = "calls functions of the kernel whose contracts the bench keeps")]

extern crate alloc;

use alloc::vec::Vec;

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::mmu::{LinearView, Metal};
use granule::mm::kernel::set_memory::{SetMemoryError, Validity};
use granule::mm::kernel::vmalloc::KernelArea;
use granule::mm::tlb::KernelTlb;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::{Lazy, Leaves, PageRange, TableSource, WholeLeaves};

use crate::harness::{Bench, PAGES, bench};
use crate::linear::{BLOCK_PAGES, Blocks};

type Call = fn(&KernelSpace, VirtAddr, u64) -> Result<(), SetMemoryError>;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// A new area.
pub(crate) fn area(pages: u64) -> KernelArea {
    space().vmalloc(this_cpu(), pages).expect("memory for the area")
}

/// Measures `call` on areas of every size, each time after `undo`, of pages that `before` was applied to once.
fn row(
    bench: &mut Bench<'_>,
    before: Option<Call>,
    undo: Call,
    call: impl Fn(&KernelSpace, VirtAddr, u64) -> Result<(), SetMemoryError>,
) {
    for pages in PAGES {
        let area = area(pages);
        if let Some(before) = before {
            before(space(), area.start(), pages).expect("the pages are an area");
        }
        point(bench, area.start(), pages, undo, &call);
        space().vfree(this_cpu(), area);
    }
}

fn point(
    bench: &mut Bench<'_>,
    start: VirtAddr,
    pages: u64,
    undo: Call,
    call: &impl Fn(&KernelSpace, VirtAddr, u64) -> Result<(), SetMemoryError>,
) {
    bench.point(
        pages,
        || undo(space(), start, pages).expect("the pages are an area"),
        |()| call(space(), start, pages),
        |result| result.expect("the pages are an area"),
    );
}

/// As [`row`], on areas whose frames lie in one piece of memory, that of page n at place `place(n)`, and which the
/// linear map shows by pages, whatever ran before.
fn row_of_frames(
    bench: &mut Bench<'_>,
    place: fn(u64) -> u64,
    undo: Call,
    call: impl Fn(&KernelSpace, VirtAddr, u64) -> Result<(), SetMemoryError>,
) {
    for pages in PAGES {
        let blocks = Blocks::by_pages((pages * 2).div_ceil(BLOCK_PAGES).next_power_of_two().ilog2());
        let area = area(pages);
        let own: Vec<PhysAddr> = (0..pages).map(|page| frame(area.start() + page * PAGE)).collect();
        exchange_frames(&area, |page| blocks.frame(place(page)));
        point(bench, area.start(), pages, undo, &call);
        space().set_memory_rw(area.start(), pages).expect("the pages are an area");
        exchange_frames(&area, |page| own[page as usize]);
        space().vfree(this_cpu(), area);
        blocks.give_back();
    }
}

/// The frame of a page.
fn frame(page: VirtAddr) -> PhysAddr {
    space().tables().translate(page).expect("the pages are an area").physical
}

/// Gives the pages of an area other frames.
fn exchange_frames(area: &KernelArea, frame: impl Fn(u64) -> PhysAddr) {
    let (mmu, tables) = (Metal(LinearView {}), space().tables());
    let lazy = Lazy::new(&mmu);
    let whole = PageRange::from_pages(area.start(), area.pages() as usize).expect("an area is a range");
    tables.get().unmap(&lazy, &KernelTlb, whole, WholeLeaves, |_| ()).expect("an area is made of pages");
    let attributes = Attributes::kernel_data(MemoryType::NormalTagged).vm_alloc();
    let frames = |page: VirtAddr, _| (frame((page - area.start()) / PAGE), 1);
    let mapped = tables.get().map_frames(&lazy, whole, frames, attributes, Leaves::Pages, &mut NoTables);
    mapped.expect("the tables are there");
}

/// The tables are there.
struct NoTables;

// SAFETY: it gives nothing.
unsafe impl TableSource for NoTables {
    fn take(&mut self) -> Option<PhysAddr> {
        None
    }

    unsafe fn give_back(&mut self, _: PhysAddr) {}
}

bench!(ro_alias, "set_memory_ro", "page", bootargs("vmalloc=pages"));
fn ro_alias(bench: &mut Bench<'_>) {
    row_of_frames(bench, |page| page, KernelSpace::set_memory_rw, KernelSpace::set_memory_ro);
}

bench!(rw_alias, "set_memory_rw", "page", bootargs("vmalloc=pages"));
fn rw_alias(bench: &mut Bench<'_>) {
    row_of_frames(bench, |page| page, KernelSpace::set_memory_ro, KernelSpace::set_memory_rw);
}

bench!(ro_scattered, "set_memory_ro/scattered", "page", bootargs("vmalloc=pages"));
fn ro_scattered(bench: &mut Bench<'_>) {
    row_of_frames(bench, |page| 2 * page, KernelSpace::set_memory_rw, KernelSpace::set_memory_ro);
}

bench!(x, "set_memory_x", "page", bootargs("vmalloc=pages"));
fn x(bench: &mut Bench<'_>) {
    let (ro, nx): (Call, Call) = (KernelSpace::set_memory_ro, KernelSpace::set_memory_nx);
    row(bench, Some(ro), nx, KernelSpace::set_memory_x);
}

bench!(nx, "set_memory_nx", "page", bootargs("vmalloc=pages"));
fn nx(bench: &mut Bench<'_>) {
    row(bench, Some(KernelSpace::set_memory_ro), KernelSpace::set_memory_x, KernelSpace::set_memory_nx);
}

bench!(ro, "set_memory_ro/no_alias", "page", bootargs("rodata=noalias vmalloc=pages"));
fn ro(bench: &mut Bench<'_>) {
    row(bench, None, KernelSpace::set_memory_rw, KernelSpace::set_memory_ro);
}

bench!(rw, "set_memory_rw/no_alias", "page", bootargs("rodata=noalias vmalloc=pages"));
fn rw(bench: &mut Bench<'_>) {
    row(bench, None, KernelSpace::set_memory_ro, KernelSpace::set_memory_rw);
}

const OFF: Call = |space, start, pages| space.set_memory_valid(start, pages, Validity::Invalid);
const ON: Call = |space, start, pages| space.set_memory_valid(start, pages, Validity::Valid);

bench!(off, "set_memory_valid/off", "page", bootargs("vmalloc=pages"));
fn off(bench: &mut Bench<'_>) {
    row(bench, None, ON, |space, start, pages| space.set_memory_valid(start, pages, Validity::Invalid));
}

bench!(on, "set_memory_valid/on", "page", bootargs("vmalloc=pages"));
fn on(bench: &mut Bench<'_>) {
    row(bench, None, OFF, |space, start, pages| space.set_memory_valid(start, pages, Validity::Valid));
}
