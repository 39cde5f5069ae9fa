//! `set_memory_*` on vmalloc areas, each call a change of every page of the area.
//!
//! The areas are mapped by pages, as Linux's are, and lie wherever vmalloc puts them. Rows with `/no_alias` leave the
//! linear map's alias of the pages alone, as Linux does with `rodata=noalias`.

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::set_memory::{SetMemoryError, Validity};
use granule::mm::kernel::vmalloc::KernelArea;
use granule::smp::this_cpu;
use granule_arch::addr::VirtAddr;

use crate::harness::{Bench, PAGES, bench};

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
        let start = area.start();
        if let Some(before) = before {
            before(space(), start, pages).expect("the pages are an area");
        }
        bench.point(
            pages,
            || undo(space(), start, pages).expect("the pages are an area"),
            |()| call(space(), start, pages),
            |result| result.expect("the pages are an area"),
        );
        space().vfree(this_cpu(), area);
    }
}

bench!(x, "set_memory_x", "page");
fn x(bench: &mut Bench<'_>) {
    let (ro, nx): (Call, Call) = (KernelSpace::set_memory_ro, KernelSpace::set_memory_nx);
    row(bench, Some(ro), nx, KernelSpace::set_memory_x);
}

bench!(nx, "set_memory_nx", "page");
fn nx(bench: &mut Bench<'_>) {
    row(bench, Some(KernelSpace::set_memory_ro), KernelSpace::set_memory_x, KernelSpace::set_memory_nx);
}

bench!(ro, "set_memory_ro/no_alias", "page", bootargs("rodata=noalias"));
fn ro(bench: &mut Bench<'_>) {
    row(bench, None, KernelSpace::set_memory_rw, KernelSpace::set_memory_ro);
}

bench!(rw, "set_memory_rw/no_alias", "page", bootargs("rodata=noalias"));
fn rw(bench: &mut Bench<'_>) {
    row(bench, None, KernelSpace::set_memory_ro, KernelSpace::set_memory_rw);
}

const OFF: Call = |space, start, pages| space.set_memory_valid(start, pages, Validity::Invalid);
const ON: Call = |space, start, pages| space.set_memory_valid(start, pages, Validity::Valid);

bench!(off, "set_memory_valid/off", "page");
fn off(bench: &mut Bench<'_>) {
    row(bench, None, ON, |space, start, pages| space.set_memory_valid(start, pages, Validity::Invalid));
}

bench!(on, "set_memory_valid/on", "page");
fn on(bench: &mut Bench<'_>) {
    row(bench, None, OFF, |space, start, pages| space.set_memory_valid(start, pages, Validity::Valid));
}
