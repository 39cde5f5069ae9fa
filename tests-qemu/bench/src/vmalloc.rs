//! `vmalloc` and `vfree`, by pages: frames, tables that are there already, addresses, and back.

use granule::mm::kernel::KernelSpace;
use granule::smp::this_cpu;

use crate::harness::{Bench, PAGES, bench};
use crate::set_memory::area;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

bench!(vmalloc, "vmalloc", "page", bootargs("vmalloc=pages"));
fn vmalloc(bench: &mut Bench<'_>) {
    for pages in PAGES {
        let cpu = this_cpu();
        bench.point(
            pages,
            || (),
            |()| space().vmalloc(cpu, pages),
            |area| space().vfree(cpu, area.expect("memory for the area")),
        );
    }
}

bench!(vfree, "vfree", "page", bootargs("vmalloc=pages"));
fn vfree(bench: &mut Bench<'_>) {
    for pages in PAGES {
        let cpu = this_cpu();
        bench.point(pages, || area(pages), |area| space().vfree(cpu, area), drop);
    }
}
