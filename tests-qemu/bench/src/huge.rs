//! Areas of 2 MiB blocks: mapping them, and changing all of one. The unit is the block.

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::vmalloc::KernelArea;
use granule::mm::layout;
use granule::mm::page_block::BLOCK_SIZE;
use granule::smp::this_cpu;

use crate::harness::{Bench, bench};
use crate::linear::BLOCK_PAGES;
use crate::vmalloc::row_of_areas;

const BLOCKS: [u64; 5] = [1, 2, 4, 8, 16];

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

bench!(vmalloc, "vmalloc_huge", "block");
fn vmalloc(bench: &mut Bench<'_>) {
    row_of_areas(bench, &BLOCKS, |cpu, blocks| space().vmalloc_huge(cpu, blocks * BLOCK_PAGES));
}

/// Areas to look at before one is taken whose alias is of pages: as on a machine whose whole linear map is.
const TRIES: u64 = 16;

/// An area whose alias is made of blocks too, whatever rows before have changed, if one of `tries` is.
fn area(blocks: u64, tries: u64) -> KernelArea {
    let area = space().vmalloc_huge(this_cpu(), blocks * BLOCK_PAGES).expect("memory for the area");
    let alias_of = |block: u64| {
        let found = space().tables().translate(area.start() + block * BLOCK_SIZE)?;
        space().tables().translate(layout::linear(found.physical))
    };
    if tries == 1 || (0..blocks).all(|block| alias_of(block).is_some_and(|alias| alias.leaf_size >= BLOCK_SIZE)) {
        return area;
    }
    let other = self::area(blocks, tries - 1);
    space().vfree(this_cpu(), area);
    other
}

// With the alias, whose contiguous groups the first change has split.
bench!(read_only, "set_memory_ro/huge", "block");
fn read_only(bench: &mut Bench<'_>) {
    for blocks in BLOCKS {
        let (cpu, pages) = (this_cpu(), blocks * BLOCK_PAGES);
        let area = area(blocks, TRIES);
        bench.point(
            blocks,
            || space().set_memory_rw(area.start(), pages).expect("the pages are an area"),
            |()| space().set_memory_ro(area.start(), pages),
            |result| result.expect("the pages are an area"),
        );
        space().vfree(cpu, area);
    }
}
