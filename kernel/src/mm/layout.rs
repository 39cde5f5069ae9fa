//! Where things lie in the kernel's half of the address space (TTBR1, 48-bit addresses, 4 KiB granule).
//!
//! ```text
//! ffff_0000_0000_0000  linear map        physical address p is at LINEAR_BASE + p            128 TiB
//! ffff_8000_8000_0000  kernel image      linked here; a slide by multiples of 2 MiB is allowed  1 GiB
//! ffff_8000_c000_0000  fixmap            one table, by FixmapSlot               2 MiB
//! ffff_8001_0000_0000  vmalloc           areas with guard pages, device registers, stacks
//! ffff_c000_0000_0000  frame array       one Frame record for each frame that is memory
//! ffff_d000_0000_0000  heap              grows at its top
//! ```

use granule_arch::addr::{PhysAddr, VirtAddr};

/// First address of the linear map.
pub const LINEAR_BASE: VirtAddr = VirtAddr(0xffff_0000_0000_0000);
/// Bytes of physical address space that the linear map can show.
pub const LINEAR_SIZE: u64 = 1 << 47;
/// Where the image is linked; the entry code hands it to the linker script.
pub const IMAGE_BASE: VirtAddr = VirtAddr(0xffff_8000_8000_0000);
/// The image is loaded and mapped at multiples of this, in bytes.
const IMAGE_SLOT: u64 = 2 << 20;
/// First address of the fixmap; the entry code links its table there.
pub const FIXMAP_BASE: VirtAddr = VirtAddr(0xffff_8000_c000_0000);
/// First address for vmalloc areas.
pub const VMALLOC_START: VirtAddr = VirtAddr(0xffff_8001_0000_0000);
/// End of the vmalloc window.
pub const VMALLOC_END: VirtAddr = VirtAddr(0xffff_c000_0000_0000);
/// The `Frame` record of frame number 0 would lie here.
pub const FRAMES_BASE: VirtAddr = VirtAddr(0xffff_c000_0000_0000);
/// First address of the heap.
pub const HEAP_BASE: VirtAddr = VirtAddr(0xffff_d000_0000_0000);
/// Bytes that the heap may grow to.
pub const HEAP_SIZE: u64 = 64 << 30;

/// Bytes of every stack that the kernel runs on.
pub const STACK_SIZE: u64 = 16 << 10;
/// A stack starts at a multiple of this, and the page below it is not mapped: so one bit of SP is set when it has
/// overflowed.
pub const STACK_ALIGN: u64 = 2 * STACK_SIZE;
/// Bytes of the stack on which an overflow is reported. It may lie anywhere.
pub const OVERFLOW_STACK_SIZE: u64 = 16 << 10;

/// Where the linear map shows `address`.
///
/// `address` must be below [`LINEAR_SIZE`]; whether anything is mapped there is another question.
pub const fn linear(address: PhysAddr) -> VirtAddr {
    debug_assert!(address.0 < LINEAR_SIZE);
    VirtAddr(LINEAR_BASE.0 + address.0)
}

/// Whether `address` is in the linear map. Whether anything is mapped there is another question.
pub const fn is_linear(address: VirtAddr) -> bool {
    address.0.wrapping_sub(LINEAR_BASE.0) < LINEAR_SIZE
}

/// The name of the part of the map that `address` is in.
pub const fn region_name(address: VirtAddr) -> &'static str {
    match address.0 {
        address if address < LINEAR_BASE.0 => "lower half",
        address if address < LINEAR_BASE.0 + LINEAR_SIZE => "linear map",
        address if address < FIXMAP_BASE.0 => "kernel image",
        address if address < VMALLOC_START.0 => "fixmap",
        address if address < VMALLOC_END.0 => "vmalloc",
        address if address < HEAP_BASE.0 => "frame array",
        _ => "heap",
    }
}

/// The distance from where the kernel is linked to where an image of `size` bytes is mapped: a multiple of 2 MiB that
/// leaves it in the window of the layout, and that lets both mappings be there, by `seed`. 0 where there is no such
/// place.
pub fn image_slide(size: u64, seed: u64) -> u64 {
    let slots = size.div_ceil(IMAGE_SLOT);
    let Some(choices) =
        ((FIXMAP_BASE - IMAGE_BASE) / IMAGE_SLOT + 1).checked_sub(2 * slots).filter(|&choices| choices != 0)
    else {
        return 0;
    };
    (slots + seed % choices) * IMAGE_SLOT
}

#[cfg(test)]
mod tests {
    use super::{FIXMAP_BASE, IMAGE_BASE, IMAGE_SLOT, image_slide};

    #[test]
    fn a_slide_leaves_the_image_in_its_window_and_clear_of_where_it_is_linked() {
        let window = FIXMAP_BASE - IMAGE_BASE;
        let size = 3 * IMAGE_SLOT - 4096;
        assert_eq!([0, 7, 506, 507].map(|seed| image_slide(size, seed) / IMAGE_SLOT), [3, 10, 509, 3]);
        assert!((0..2000).map(|seed| image_slide(size, seed)).all(|slide| size <= slide && slide + size <= window));
        assert_eq!([window / 2, window / 2 + 1, window + 1].map(|size| image_slide(size, 5)), [window / 2, 0, 0]);
    }
}
