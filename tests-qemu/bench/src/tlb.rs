//! The suite `tlb`: passes over 2 MiB, followed by the TLB that QEMU's plugin `tests-qemu/plugin/tlb.c` models.
//!
//! All passes read one area. It is a block at first; then a change of 16 pages splits it into contiguous groups, and
//! changes of single pages split those. The size of a leaf is what the live tables have, for each page.

#![allow(unsafe_code, reason = "markers, and reads of memory without contents")]

use granule::bootargs::{self, PARAMETERS, Parameter};
use granule::chip::power;
use granule::kernel;
use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::vmalloc::KernelArea;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE, VirtAddr};
use granule_protocol::{TlbLeaf, TlbOrder, TlbPass};
use linkme::distributed_slice;

use crate::linear::{BLOCK_PAGES, GROUP_PAGES};

const _: () = assert!(BLOCK_PAGES * PAGE == TlbPass::BYTES);

#[distributed_slice(PARAMETERS)]
static TLB: Parameter = Parameter {
    name: "bench.tlb",
    help: "mark reads of 2 MiB that is a block, contiguous groups, pages",
    check: bootargs::flag,
};

fn space() -> &'static KernelSpace {
    &kernel().space
}

/// Makes all passes and ends the machine, if the boot argument `bench.tlb` asks for them.
pub(crate) fn run_if_asked() {
    if !bootargs::is_set("bench.tlb") {
        return;
    }
    let area = space().vmalloc_huge(this_cpu(), BLOCK_PAGES).expect("memory for the area");
    passes(&area, TlbLeaf::Block);
    change_by(&area, GROUP_PAGES);
    passes(&area, TlbLeaf::Group);
    change_by(&area, 1);
    passes(&area, TlbLeaf::Page);
    space().vfree(this_cpu(), area);
    power::off(power::Status::Success)
}

/// Changes all pages of the area, so many in each call, and changes them back. The leaves are then no larger.
fn change_by(area: &KernelArea, pages: u64) {
    for first in (0..area.pages()).step_by(pages as usize) {
        let start = area.start() + first * PAGE;
        space().set_memory_ro(start, pages).expect("pages of the area");
        space().set_memory_rw(start, pages).expect("pages of the area");
    }
}

/// Reads the area in each order.
fn passes(area: &KernelArea, leaf: TlbLeaf) {
    for order in TlbOrder::ALL {
        let size = leaf_size(area);
        assert_eq!(size, leaf.size(), "leaves of the area");
        pass(area.start(), size, TlbPass { order, leaf });
    }
}

/// The size of the area's leaves in the tables, all of which have one.
fn leaf_size(area: &KernelArea) -> u64 {
    let of_page = |page: u64| {
        let found = space().tables().translate(area.start() + page * PAGE);
        found.expect("the area is mapped").leaf_size
    };
    let size = of_page(0);
    assert!((1..area.pages()).all(|page| of_page(page) == size), "the area has leaves of one size");
    size
}

/// Reads between the markers.
fn pass(start: VirtAddr, leaf_size: u64, pass: TlbPass) {
    // SAFETY: does nothing. No `nomem`, so the compiler moves no access across it.
    unsafe {
        core::arch::asm!("hint #96", in("x0") start.0, in("x1") TlbPass::BYTES, in("x2") leaf_size, options(nostack));
    }
    for nth in 0..pass.order.reads() {
        let address = start + pass.order.offset(nth);
        // SAFETY: loads from an area that is mapped, into no register.
        unsafe { core::arch::asm!("ldr xzr, [{0}]", in(reg) address.0, options(nostack, readonly)) };
    }
    // SAFETY: as the first marker.
    unsafe { core::arch::asm!("hint #97", in("x0") pass.number(), options(nostack)) };
}
