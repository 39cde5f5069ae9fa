//! The accesses, in assembly: each returns 0, or 1 where it faulted.

#![allow(unsafe_code, reason = "accesses to memory of EL0 that may fault, in assembly")]

use core::arch::global_asm;

use granule_arch::memory::branch::MOPS;
use granule_arch::patched_branch;

// The kernel's side may be unaligned: LDR and STR of Normal memory take any address. So does EL0's, but for the
// words, which are one access.
global_asm!(
    r#"
    .macro  user label, instruction:vararg
\label: \instruction
    .pushsection .extable, "a"
    .balign 4
    .long   \label\()b - ., user_faulted - .
    .popsection
    .endm

    .pushsection .text.uaccess, "ax", %progbits
    // x0: to; x1: from, of EL0; x2: bytes.
    .type   user_copy_from, %function
    .global user_copy_from
user_copy_from:
    subs    x2, x2, #32
    b.lo    2f
1:
    user    10, ldtr x3, [x1]
    user    11, ldtr x4, [x1, #8]
    user    12, ldtr x5, [x1, #16]
    user    13, ldtr x6, [x1, #24]
    add     x1, x1, #32
    stp     x3, x4, [x0], #16
    stp     x5, x6, [x0], #16
    subs    x2, x2, #32
    b.hs    1b
2:
    tbz     x2, #4, 3f
    user    10, ldtr x3, [x1]
    user    11, ldtr x4, [x1, #8]
    add     x1, x1, #16
    stp     x3, x4, [x0], #16
3:
    tbz     x2, #3, 3f
    user    10, ldtr x3, [x1]
    add     x1, x1, #8
    str     x3, [x0], #8
3:
    ands    x2, x2, #7
    b.eq    5f
4:
    user    10, ldtrb w3, [x1]
    add     x1, x1, #1
    strb    w3, [x0], #1
    subs    x2, x2, #1
    b.ne    4b
5:
    mov     x0, #0
    ret

    // x0: to, of EL0; x1: from; x2: bytes.
    .type   user_copy_to, %function
    .global user_copy_to
user_copy_to:
    subs    x2, x2, #32
    b.lo    2f
1:
    ldp     x3, x4, [x1], #16
    ldp     x5, x6, [x1], #16
    user    10, sttr x3, [x0]
    user    11, sttr x4, [x0, #8]
    user    12, sttr x5, [x0, #16]
    user    13, sttr x6, [x0, #24]
    add     x0, x0, #32
    subs    x2, x2, #32
    b.hs    1b
2:
    tbz     x2, #4, 3f
    ldp     x3, x4, [x1], #16
    user    10, sttr x3, [x0]
    user    11, sttr x4, [x0, #8]
    add     x0, x0, #16
3:
    tbz     x2, #3, 3f
    ldr     x3, [x1], #8
    user    10, sttr x3, [x0]
    add     x0, x0, #8
3:
    ands    x2, x2, #7
    b.eq    5f
4:
    ldrb    w3, [x1], #1
    user    10, sttrb w3, [x0]
    add     x0, x0, #1
    subs    x2, x2, #1
    b.ne    4b
5:
    mov     x0, #0
    ret

    // x0: to, of EL0; x1: bytes.
    .type   user_clear, %function
    .global user_clear
user_clear:
    subs    x1, x1, #32
    b.lo    2f
1:
    user    10, sttr xzr, [x0]
    user    11, sttr xzr, [x0, #8]
    user    12, sttr xzr, [x0, #16]
    user    13, sttr xzr, [x0, #24]
    add     x0, x0, #32
    subs    x1, x1, #32
    b.hs    1b
2:
    ands    x1, x1, #31
    b.eq    5f
4:
    user    10, sttrb wzr, [x0]
    add     x0, x0, #1
    subs    x1, x1, #1
    b.ne    4b
5:
    mov     x0, #0
    ret

    // x0: to; x1: from, of EL0.
    .type   user_get_word, %function
    .global user_get_word
user_get_word:
    user    10, ldtr w3, [x1]
    str     w3, [x0]
    mov     x0, #0
    ret

    // x0: to, of EL0; x1: the value.
    .type   user_put_word, %function
    .global user_put_word
user_put_word:
    user    10, sttr w1, [x0]
    mov     x0, #0
    ret

    // The two copies and the clear by FEAT_MOPS. A fault that is resolved continues at the instruction, on the
    // same CPU, with the rest: one that implements the other of options A and B would refuse what the registers hold.
    .arch_extension mops
    .type   user_copy_from_mops, %function
    .global user_copy_from_mops
user_copy_from_mops:
    user    10, cpyfprt [x0]!, [x1]!, x2!
    user    10, cpyfmrt [x0]!, [x1]!, x2!
    user    10, cpyfert [x0]!, [x1]!, x2!
    mov     x0, #0
    ret

    .type   user_copy_to_mops, %function
    .global user_copy_to_mops
user_copy_to_mops:
    user    10, cpyfpwt [x0]!, [x1]!, x2!
    user    10, cpyfmwt [x0]!, [x1]!, x2!
    user    10, cpyfewt [x0]!, [x1]!, x2!
    mov     x0, #0
    ret

    .type   user_clear_mops, %function
    .global user_clear_mops
user_clear_mops:
    user    10, setpt [x0]!, x1!, xzr
    user    10, setmt [x0]!, x1!, xzr
    user    10, setet [x0]!, x1!, xzr
    mov     x0, #0
    ret
    .arch_extension nomops

    // Where each of them goes on after a fault.
    .global user_faulted
    .hidden user_faulted
user_faulted:
    mov     x0, #1
    ret
    .popsection
    .purgem user
        "#
);

unsafe extern "C" {
    static user_faulted: u8;
    fn user_copy_from(to: *mut u8, from: u64, bytes: usize) -> u64;
    fn user_copy_from_mops(to: *mut u8, from: u64, bytes: usize) -> u64;
    fn user_copy_to(to: u64, from: *const u8, bytes: usize) -> u64;
    fn user_copy_to_mops(to: u64, from: *const u8, bytes: usize) -> u64;
    fn user_clear(to: u64, bytes: usize) -> u64;
    fn user_clear_mops(to: u64, bytes: usize) -> u64;
    #[link_name = "user_get_word"]
    pub(super) fn get_word(to: &mut u32, from: u64) -> u64;
    #[link_name = "user_put_word"]
    pub(super) fn put_word(to: u64, value: u32) -> u64;
}

/// A function that calls the first of two where the CPUs have FEAT_MOPS, else the second.
macro_rules! by_mops {
    ($name:ident($($argument:ident: $type:ty),*) $mops:ident $else:ident) => {
        /// # Safety
        /// The kernel's side is the caller's.
        #[inline(always)]
        pub(super) unsafe fn $name($($argument: $type),*) -> u64 {
            if patched_branch!(MOPS) {
                // SAFETY: the caller's contract.
                unsafe { $mops($($argument),*) }
            } else {
                // SAFETY: the caller's contract.
                unsafe { $else($($argument),*) }
            }
        }
    };
}

/// Whether the running thread has asked for addresses with tags.
pub(super) fn accepts_tags() -> bool {
    crate::sched::current().has_tagged_addresses()
}

/// [`is_fixup`](super::is_fixup).
pub(super) fn is_fixup(pc: u64) -> bool {
    pc == (&raw const user_faulted).addr() as u64
}

by_mops!(copy_from(to: *mut u8, from: u64, bytes: usize) user_copy_from_mops user_copy_from);
by_mops!(copy_to(to: u64, from: *const u8, bytes: usize) user_copy_to_mops user_copy_to);
by_mops!(clear(to: u64, bytes: usize) user_clear_mops user_clear);
