//! Of the suite `mte`: an object of the kernel's heap, from its allocation to its free, with tags and without.

#![allow(unsafe_code, reason = "a heap, and objects, of the bench's own")]

use core::alloc::Layout;
use core::hint::black_box;

use granule::mm::OutOfMemory;
use granule::mm::heap::{Heap, kernel_heap};
use granule_arch::addr::{PAGE, VirtAddr};

use crate::harness::{Bench, bench};
use crate::set_memory::area;

/// Pages of a heap of the bench's own.
const PAGES: u64 = 16;

bench!(tagged_64, "mte:heap_alloc_free/64", "object");
fn tagged_64(bench: &mut Bench<'_>) {
    with_tags(bench, 64);
}

bench!(tagged_4096, "mte:heap_alloc_free/4096", "object");
fn tagged_4096(bench: &mut Bench<'_>) {
    with_tags(bench, 4096);
}

bench!(untagged_64, "mte:heap_alloc_free/64/untagged", "object");
fn untagged_64(bench: &mut Bench<'_>) {
    without_tags(bench, 64);
}

bench!(untagged_4096, "mte:heap_alloc_free/4096/untagged", "object");
fn untagged_4096(bench: &mut Bench<'_>) {
    without_tags(bench, 4096);
}

/// The kernel's heap, in the way that `Box` and `Vec` go.
fn with_tags(bench: &mut Bench<'_>, bytes: usize) {
    let layout = Layout::from_size_align(bytes, 16).expect("a layout");
    let before = kernel_heap().stats().tagged;
    bench.point(
        1,
        || (),
        |()| {
            // SAFETY: the layout has a size; the object is freed with the same.
            unsafe {
                // The compiler leaves out an allocation that nothing sees.
                let object = black_box(alloc::alloc::alloc(layout));
                alloc::alloc::dealloc(object, layout);
            }
        },
        drop,
    );
    // SAFETY: as above.
    unsafe {
        let object = black_box(alloc::alloc::alloc(layout));
        assert!(kernel_heap().stats().tagged == before + 1, "the machine's heap has no tags");
        alloc::alloc::dealloc(object, layout);
    }
}

/// A heap that has not been given tags.
fn without_tags(bench: &mut Bench<'_>, bytes: usize) {
    fn grow(_: VirtAddr, _: usize) -> Result<(), OutOfMemory> {
        Ok(())
    }
    let layout = Layout::from_size_align(bytes, 16).expect("a layout");
    let area = area(PAGES);
    let heap = Heap::new(area.start(), PAGES * PAGE);
    // SAFETY: the area is mapped, and is the heap's until the end of the row.
    unsafe { heap.start(grow, |_, _| {}) };
    bench.point(
        1,
        || (),
        |()| {
            let object = heap.alloc(layout);
            // SAFETY: it was just allocated, with this layout.
            unsafe { heap.dealloc(black_box(object), layout) }
        },
        |freed| freed.expect("an object in use"),
    );
    granule::kernel().space.vfree(granule::smp::this_cpu(), area);
}
