//! The suite `mm`: what programs feel of their memory. `user/src/bin/bench.rs` measures these at EL0, entry and exit of
//! the kernel included.

use granule::mm::space::SpaceRef;
use granule::smp::this_cpu;

use crate::harness::{Bench, bench};
use crate::space;

/// Rows of a suite that are measured at EL0, each by its name.
macro_rules! at_el0 {
    ($suite:literal: $($function:ident, $name:literal, $unit:literal $(, $option:ident($($value:expr)?))*;)*) => {
        $(
            bench!($function, concat!($suite, ":", $name), $unit $(, $option($($value)?))*);
            fn $function(bench: &mut Bench<'_>) {
                bench.at_el0($name);
            }
        )*
    };
}
pub(crate) use at_el0;

at_el0! { "mm":
    null_syscall, "null_syscall", "call";
    anon_write_fault, "anon_write_fault", "page", also("a72");
    zero_page_read_fault, "zero_page_read_fault", "page";
    cow_copy_fault, "cow_copy_fault", "page", also("a72");
    cow_reuse_fault, "cow_reuse_fault", "page";
    mprotect_ro, "mprotect_ro", "page";
    mprotect_rw, "mprotect_rw", "page";
    munmap, "munmap", "page";
    mremap, "mremap", "page";
    madvise_dontneed, "madvise_dontneed", "page";
    fork, "fork", "page";
    mmap_populate, "mmap_populate", "page", also("a72");
    memfd_first_write_fault, "memfd_first_write_fault", "page";
    memfd_map_fault, "memfd_map_fault", "page";
    memfd_punch_hole, "memfd_punch_hole", "page";
    memfd_truncate, "memfd_truncate", "page";
    huge_write_fault, "huge_write_fault", "block", also("a72");
    huge_mprotect, "huge_mprotect", "block";
    huge_mprotect_split, "huge_mprotect_split", "block";
    mmap_munmap_touched, "mmap_munmap/touched", "page";
}

bench!(migrate_page, "mm:migrate_page", "page", also("a72 mte mte-n2"));
fn migrate_page(bench: &mut Bench<'_>) {
    migrate_all(bench, space::written);
}

/// In the kernel: each page of a program, which `prepare` makes, goes to a frame that is allocated for it.
pub(crate) fn migrate_all(bench: &mut Bench<'_>, prepare: impl Fn(u64) -> (SpaceRef, space::FramesOf)) {
    let (spaces, frames) = (&granule::kernel().spaces, granule::kernel().frames);
    for pages in [1, 8, 64] {
        let migrate = |(space, from): (SpaceRef, space::FramesOf)| {
            for &frame in &from {
                let to = frames.alloc_movable(this_cpu()).expect("a frame");
                spaces.migrate_page(this_cpu(), frame, to).expect("a page that can be moved");
            }
            (space, from)
        };
        bench.point(pages, || prepare(pages), migrate, drop);
    }
}
