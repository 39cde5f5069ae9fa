//! Moving, filling and comparing memory, on the target: what the compiler calls by name, and zeroing pages.
//!
//! `compiler_builtins` brings byte loops for `memcpy` and its kin on this target, under weak names. The strong ones in
//! `memory.S` move 64 bytes per turn in pairs of registers. Assembly, because a compiler that finds such a loop in Rust
//! turns it into a call of the function that it is.

use crate::addr::{PAGE_SIZE, VirtAddr};

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("memory.S"));

/// Zeroes a page of Normal memory, by blocks with DC ZVA where the CPU allows it (Arm ARM C5.3.8).
///
/// # Safety
/// `page` is page aligned, mapped writable as Normal memory, and nobody else uses the page now.
pub unsafe fn zero_page(page: VirtAddr) {
    debug_assert!(page.is_aligned(PAGE_SIZE as u64));
    #[cfg(target_os = "none")]
    // SAFETY: the caller owns the page. DC ZVA zeroes a naturally aligned block of at most 2 KiB, which divides it.
    unsafe {
        core::arch::asm!(
            "mrs {block}, dczid_el0",
            "tbnz {block}, #4, 3f",          // DZP: prohibited
            "mov {step}, #4",                // the field counts words
            "lsl {block}, {step}, {block}",
            "2: dc zva, {page}",
            "add {page}, {page}, {block}",
            "cmp {page}, {end}",
            "b.lo 2b",
            "b 4f",
            "3: stp xzr, xzr, [{page}], #16",
            "stp xzr, xzr, [{page}], #16",
            "stp xzr, xzr, [{page}], #16",
            "stp xzr, xzr, [{page}], #16",
            "cmp {page}, {end}",
            "b.lo 3b",
            "4:",
            page = inout(reg) page.0 => _,
            end = in(reg) page.0 + PAGE_SIZE as u64,
            block = out(reg) _,
            step = out(reg) _,
            options(nostack)
        );
    }
    #[cfg(not(target_os = "none"))]
    // SAFETY: the caller owns the page.
    unsafe {
        page.as_ptr::<u8>().write_bytes(0, PAGE_SIZE);
    }
}
