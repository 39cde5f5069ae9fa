//! The meaning of a few numbers: a descriptor, a syndrome, and the TLBIs that a range takes.
//!
//! `cargo run -p granule-arch --example words`

#![forbid(unsafe_code)]

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;
use granule_arch::esr::Syndrome;
use granule_arch::mmu::{Half, tcr};
use granule_arch::tlbi::{Granule, Plan, RangeSupport};

fn main() {
    for (word, level) in [(0x0060_0000_4833_a78f, 3), (0x0060_0000_4000_0f01, 2), (0x1000_0000_4032_1003, 0)] {
        println!("{word:#018x} at level {level}: {}", Descriptor(word).decoded(level));
    }
    println!("{:#x}: {}", 0x9600_004f_u64, Syndrome(0x9600_004f));

    let half = Half::On { granule: Granule::Size4K, va_bits: 39 };
    println!("TCR_EL1 for 39-bit addresses in the lower half: {:#x}", tcr(half, Half::Off));

    let start = VirtAddr(0xffff_8000_0000_0000);
    for support in [RangeSupport::Yes, RangeSupport::No] {
        println!("TLBI for 200 pages, by range {support:?}:");
        let mut operations = Plan::new(start, 200, Granule::Size4K, support);
        operations.by_ref().take(3).for_each(|operation| println!("  {operation:x?}"));
        println!("  and {} more", operations.count());
    }
}
