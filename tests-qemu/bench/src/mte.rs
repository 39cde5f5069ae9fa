//! The suite `mte`: what tags cost. `user/src/bin/bench.rs` measures most of it at EL0; what others contain is measured
//! alone in the kernel, to be subtracted.
//!
//! Rows of tag storage belong to the machine `mte`, and those that zero to `mte-n2` as well, which has no FEAT_MOPS.

#![allow(unsafe_code, reason = "accesses tags, and maintains the caches of memory, that are the bench's own")]

use granule::smp::this_cpu;
use granule_arch::addr::PAGE;
use granule_arch::{cache, mte};

use crate::harness::{Bench, bench};
use crate::mm::{at_el0, migrate_all};
use crate::set_memory::area;
use crate::space;

at_el0! { "mte":
    null_syscall_sync, "null_syscall/sync", "call";
    null_syscall_async, "null_syscall/async", "call";
    tag_fault_signal, "tag_fault_signal", "fault", also("mte");
    late_tag_fault_signal, "late_tag_fault_signal", "fault";
    mprotect_mte, "mprotect_mte", "page", on("mte");
    mte_write_fault, "mte_write_fault", "page", on("mte"), also("mte-n2");
    reserved, "fault_on_access/reserved", "page", on("mte"), also("mte-n2");
    free_block, "fault_on_access/free_block", "page", on("mte"), also("mte-n2");
    lazy_0, "mprotect_touch/lazy/0", "page", on("mte");
    lazy_1, "mprotect_touch/lazy/1", "page", on("mte");
    lazy_10, "mprotect_touch/lazy/10", "page", on("mte");
    lazy_100, "mprotect_touch/lazy/100", "page", on("mte");
    eager_0, "mprotect_touch/eager/0", "page", on("mte"), bootargs("lab=reserve-at-mprotect");
    eager_1, "mprotect_touch/eager/1", "page", on("mte"), bootargs("lab=reserve-at-mprotect");
    eager_10, "mprotect_touch/eager/10", "page", on("mte"), bootargs("lab=reserve-at-mprotect");
    eager_100, "mprotect_touch/eager/100", "page", on("mte"), bootargs("lab=reserve-at-mprotect");
}

/// Sizes of what is subtracted from rows at EL0, which have the same.
const FAULTS: [u64; 4] = [1, 8, 64, 512];

bench!(clear_tags, "mte:memory/clear_tags", "page", on("mte"), also("mte-n2"));
/// The tags of a page, whose storage is reserved, so many times.
fn clear_tags(bench: &mut Bench<'_>) {
    let (_space, frames) = space::written_tagged(1);
    let page = granule::kernel().frames.linear().address(frames[0]);
    for pages in FAULTS {
        let clear = |pages| {
            for _ in 0..pages {
                // SAFETY: the linear map has the page Normal-Tagged, and the program that has it does not run.
                unsafe { mte::zero_page_tags(page) };
            }
        };
        bench.point(pages, || pages, clear, drop);
    }
}

bench!(invalidate_block, "mte:memory/invalidate_block", "block", on("mte"), also("mte-n2"));
/// Memory of a block's size, so many times.
fn invalidate_block(bench: &mut Bench<'_>) {
    let area = area(1);
    for blocks in FAULTS {
        let invalidate = |blocks| {
            for _ in 0..blocks {
                // SAFETY: the area is mapped writable, and nothing needs what it holds.
                unsafe { cache::invalidate_to_memory(area.start(), PAGE) };
            }
        };
        bench.point(blocks, || blocks, invalidate, drop);
    }
    granule::kernel().space.vfree(this_cpu(), area);
}

bench!(migrate_tagged, "mte:migrate_page/tagged", "page", on("mte"), also("mte-n2"));
/// As `migrate_page`, of pages with tags: storage is reserved for those of the copy, and they are copied.
fn migrate_tagged(bench: &mut Bench<'_>) {
    migrate_all(bench, space::written_tagged);
}
