//! Where the kernel's own image lies: virtually as linked plus the slide, physically as loaded.
//!
//! The sections and their permissions are the linker script's (`linker/granule.ld`); the entry code mapped them with
//! 4 KiB exactness before the first Rust instruction.

#![allow(unsafe_code, reason = "symbols of the linker, and a list that it collects")]

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_pgtable::PageRange;

use linkme::distributed_slice;

use super::policy::Rodata;
use crate::boot_info::BootInfo;
use crate::bootargs::{self, PARAMETERS, Parameter};

/// Where the slide is in the header of the Image, in bytes: 64 bits, zero as linked.
pub const SLIDE: u64 = 40;

/// Read by `platform::kaslr_seed`, and by the EFI stub (`boot/uefi`), which loads the image.
#[distributed_slice(PARAMETERS)]
static NOKASLR: Parameter = Parameter {
    name: "nokaslr",
    help: "the kernel runs where it is linked, and the EFI stub loads it to the lowest address that is free",
    check: bootargs::flag,
};

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __rodata_start: u8;
    static __relro_end: u8;
    static __image_end: u8;
}

/// First virtual address of the image.
pub fn start() -> VirtAddr {
    VirtAddr::from_ptr(&raw const __image_start)
}

/// First virtual address after the image, its zeroed data included.
pub fn end() -> VirtAddr {
    VirtAddr::from_ptr(&raw const __image_end)
}

/// Whether `address` is in the image.
pub fn contains(address: VirtAddr) -> bool {
    start() <= address && address < end()
}

/// The physical address of a virtual one of the image.
pub fn physical(boot: &BootInfo, address: VirtAddr) -> PhysAddr {
    debug_assert!(contains(address));
    PhysAddr(boot.image_start + (address - start()))
}

/// All of the image in physical memory.
pub fn physical_range(boot: &BootInfo) -> PhysRange {
    PhysRange::new(PhysAddr(boot.image_start), PhysAddr(boot.image_end)).expect("the entry code gives start before end")
}

/// The part of the image, in physical memory, that nothing may write: header and text, and constants unless
/// `rodata=off`.
pub fn read_only_range(boot: &BootInfo, rodata: Rodata) -> PhysRange {
    let start = physical(boot, VirtAddr::from_ptr(&raw const __text_start));
    let constants = constants();
    let last = if rodata == Rodata::Off { constants.start() } else { constants.end() };
    let end = PhysAddr(boot.image_start + (last - self::start()));
    PhysRange::new(start, end).expect("the linker script puts text before constants")
}

/// The constants, those among them that hold pointers: they were relocated before the first Rust instruction.
///
/// # Panics
/// Where the linker script has put their end before their start.
pub fn constants() -> PageRange {
    let [start, end] = [&raw const __rodata_start, &raw const __relro_end].map(VirtAddr::from_ptr);
    PageRange::new(start, end - start).expect("the linker script aligns constants to pages")
}
