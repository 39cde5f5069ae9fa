//! `vmalloc` and `vfree`, by pages: frames, tables that are there already, addresses, and back. And many small areas that
//! are freed with an invalidation each, or with one for all.

use core::cell::Cell;

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

/// Areas that are freed together, and the pages of each.
const AREAS: [u64; 5] = [1, 4, 16, 64, 256];
const PAGES_OF_EACH: u64 = 4;
const MOST_AREAS: usize = 256;

/// Measures the frees together with the purge, after which all frames and addresses are free again.
fn row_of_frees(bench: &mut Bench<'_>) {
    let areas = [const { Cell::new(None) }; MOST_AREAS];
    for count in AREAS {
        let (cpu, areas) = (this_cpu(), &areas[..count as usize]);
        let take = || areas.iter().for_each(|place| place.set(Some(area(PAGES_OF_EACH))));
        let free = |()| {
            areas.iter().filter_map(Cell::take).for_each(|area| space().vfree(cpu, area));
            space().purge(cpu)
        };
        bench.point(count, take, free, drop);
    }
}

bench!(vfree_at_once, "vfree_areas", "area", bootargs("vmalloc=pages vmalloc.lazy=0"));
fn vfree_at_once(bench: &mut Bench<'_>) {
    row_of_frees(bench);
}

bench!(vfree_lazily, "vfree_areas/lazy", "area", bootargs("vmalloc=pages vmalloc.lazy=4096"));
fn vfree_lazily(bench: &mut Bench<'_>) {
    row_of_frees(bench);
}
