//! Moving, filling and comparing memory, on the target: what the compiler calls by name, and zeroing pages.
//!
//! `compiler_builtins` brings byte loops for `memcpy` and its kin on this target, under weak names. The strong ones in
//! `memory.S` use pairs of registers, DC ZVA or FEAT_MOPS, as the [`branch`]es select. Assembly, because a compiler
//! that finds such a loop in Rust turns it into a call of the function that it is.

#![allow(unsafe_code, reason = "the compiler's memory functions, in assembly")]

use crate::addr::{PAGE, PAGE_SIZE, VirtAddr};

/// Identifiers of the patched branches that choose among the ways: see [`crate::alternative`]. Before they are patched,
/// and where the CPUs have neither, it is pairs of registers.
pub mod branch {
    /// FEAT_MOPS.
    pub const MOPS: u16 = 62;
    /// DC ZVA is allowed, and its block is the same on every CPU.
    pub const DC_ZVA: u16 = 63;
}

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("memory.S"), mops = const branch::MOPS, dc_zva = const branch::DC_ZVA);

/// Zeroes a page of Normal memory.
///
/// # Safety
/// `page` is page aligned, mapped writable as Normal memory, and not in use elsewhere now.
pub unsafe fn zero_page(page: VirtAddr) {
    debug_assert!(page.is_aligned(PAGE));
    // SAFETY: the caller owns the page.
    unsafe {
        page.as_ptr::<u8>().write_bytes(0, PAGE_SIZE);
    }
}
