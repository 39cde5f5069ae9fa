//! `vmalloc` and `vfree`, by pages: frames, tables that are there already, addresses, and back.

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::vmalloc::{KernelArea, VmallocError};
use granule::smp::{Cpu, this_cpu};

use crate::harness::{Bench, PAGES, bench};
use crate::set_memory::area;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// Measures `call`, which maps an area, for each of `sizes`.
#[inline(always)]
pub(crate) fn row_of_areas(
    bench: &mut Bench<'_>,
    sizes: &[u64],
    call: impl Fn(&'static Cpu, u64) -> Result<KernelArea, VmallocError>,
) {
    for &size in sizes {
        let cpu = this_cpu();
        let free = |area: Result<_, _>| space().vfree(cpu, area.expect("memory for the area"));
        bench.point(size, || (), |()| call(cpu, size), free);
    }
}

bench!(vmalloc, "vmalloc", "page", bootargs("vmalloc=pages vmalloc.lazy=0"));
fn vmalloc(bench: &mut Bench<'_>) {
    row_of_areas(bench, &PAGES, |cpu, pages| space().vmalloc(cpu, pages));
}

bench!(vfree, "vfree", "page", bootargs("vmalloc=pages vmalloc.lazy=0"));
fn vfree(bench: &mut Bench<'_>) {
    for pages in PAGES {
        let cpu = this_cpu();
        bench.point(pages, || area(pages), |area| space().vfree(cpu, area), drop);
    }
}
