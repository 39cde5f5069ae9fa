//! Zeroing, filling, copying and comparing memory. CPUs differ in the instructions for it, so these rows are of `a72`
//! too: `default` has FEAT_MOPS, where one instruction may move a page, and counts have little to do with time.

#![allow(unsafe_code, reason = "calls functions of the kernel whose contracts the bench keeps")]

use core::hint::black_box;

use granule::smp::this_cpu;
use granule_arch::addr::PAGE;
use granule_arch::memory::zero_page;

use crate::harness::{Bench, bench};
use crate::set_memory::area;

/// Sizes in bytes: below one turn of a loop, and far above.
const BYTES: [u64; 6] = [16, 64, 256, 1024, 4096, 65_536];
/// The pages that hold the largest size.
const AREA: u64 = 16;

bench!(zero, "memory/zero_page", "page", also("a72"));
fn zero(bench: &mut Bench<'_>) {
    let area = area(AREA);
    for pages in [1, 4, AREA] {
        let zero = |pages: u64| {
            for page in 0..pages {
                // SAFETY: a page of the bench's own area.
                unsafe { zero_page(area.start() + page * PAGE) };
            }
        };
        bench.point(pages, || pages, zero, drop);
    }
    granule::kernel().space.vfree(this_cpu(), area);
}

/// Measures `operation` on two pieces of memory of their own, equal in all bytes, of every size.
fn row(bench: &mut Bench<'_>, operation: impl Fn(&mut [u8], &[u8])) {
    let (to, from) = (area(AREA), area(AREA));
    for bytes in BYTES {
        let slice = |start: granule_arch::addr::VirtAddr| {
            // SAFETY: the first bytes of an area of the bench's own, which outlives the point; the two are apart.
            unsafe { core::slice::from_raw_parts_mut(start.as_ptr::<u8>(), bytes as usize) }
        };
        let prepare = || {
            let (to, from) = (slice(to.start()), slice(from.start()));
            to.fill(0x5a);
            from.fill(0x5a);
            (to, &*from)
        };
        bench.point(bytes, prepare, |(to, from)| operation(to, from), drop);
    }
    for area in [to, from] {
        granule::kernel().space.vfree(this_cpu(), area);
    }
}

bench!(fill, "memory/fill", "byte", also("a72"));
fn fill(bench: &mut Bench<'_>) {
    row(bench, |to, _| to.fill(black_box(7)));
}

bench!(copy, "memory/copy", "byte", also("a72"));
fn copy(bench: &mut Bench<'_>) {
    row(bench, |to, from| to.copy_from_slice(from));
}

bench!(compare, "memory/compare", "byte", also("a72"));
fn compare(bench: &mut Bench<'_>) {
    row(bench, |to, from| {
        black_box(*to == *from);
    });
}
