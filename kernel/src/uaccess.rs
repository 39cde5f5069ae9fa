//! The kernel's access to memory of EL0.
//!
//! By LDTR and STTR, or their like of FEAT_MOPS: the hardware allows what it would allow EL0 itself, whatever the
//! address, and PAN stays on. A fault goes to the thread's [`resolve`](crate::sched::UserEntry::resolve), which may
//! sleep; what it cannot resolve is [`AccessError::Fault`]. Where interrupts are masked, as under a spinning lock,
//! nothing is resolved: then a page that is merely not there yet is a fault, too, and the caller tries again without
//! the lock.
//!
//! Tags are checked as the thread has its own accesses checked (`crate::sched::TagChecks`): a mismatch that faults is
//! [`AccessError::Fault`], and one that is recorded is none.
//!
//! An access that fails may have been made in part.

#![allow(unsafe_code, reason = "accesses to memory of EL0 that may fault, in assembly")]

use granule_arch::addr::VirtAddr;
use granule_arch::mte::GRANULE;

use thiserror::Error;

/// Why an access to memory of EL0 was not made, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AccessError {
    /// EL0 itself may not access the address.
    #[error("bad address")]
    Fault,
    /// An access of a word is not aligned to its size.
    #[error("the address of a word is not aligned")]
    Unaligned,
}

/// Whether a fault that continues at `pc` is of an access here, on either side of it: with FEAT_MOPS one instruction
/// reads one side and writes the other. Only EL0's side may fault.
#[cfg(target_os = "none")]
pub(crate) fn is_fixup(pc: u64) -> bool {
    machine::is_fixup(pc)
}

/// The first address that is not EL0's.
pub const END: VirtAddr = VirtAddr(1 << 48);

/// Whether these bytes are at addresses of EL0. A tag in the top byte, which the hardware ignores, is accepted where
/// the running thread has asked for that.
pub fn is_user_range(start: VirtAddr, bytes: usize) -> bool {
    is_range(start, bytes) || start.untagged() != start && accepts_tags() && is_range(start.untagged(), bytes)
}

fn is_range(start: VirtAddr, bytes: usize) -> bool {
    start.0.checked_add(bytes as u64).is_some_and(|end| end <= END.0)
}

#[cold]
fn accepts_tags() -> bool {
    #[cfg(target_os = "none")]
    return crate::sched::current().has_tagged_addresses();
    #[cfg(not(target_os = "none"))]
    false
}

/// Copies from memory of EL0.
///
/// # Errors
/// [`AccessError::Fault`].
#[inline]
pub fn copy_from_user(to: &mut [u8], from: VirtAddr) -> Result<(), AccessError> {
    checked(from, to.len())?;
    // SAFETY: the slice is the caller's, and the other side is EL0's or faults.
    outcome(unsafe { machine::copy_from(to.as_mut_ptr(), from.0, to.len()) })
}

/// Copies from memory of EL0 up to the first granule of tags that cannot be read, or the first page; returns how many
/// bytes were copied.
pub fn copy_from_user_up_to(to: &mut [u8], from: VirtAddr) -> usize {
    if copy_from_user(to, from).is_ok() {
        return to.len();
    }
    let mut done = 0;
    while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = from.0.wrapping_add(done as u64);
        let bytes = rest.len().min((GRANULE - at % GRANULE) as usize);
        let Some(granule) = rest.get_mut(..bytes) else { break };
        if copy_from_user(granule, VirtAddr(at)).is_err() {
            break;
        }
        done += bytes;
    }
    done
}

/// Copies to memory of EL0.
///
/// # Errors
/// [`AccessError::Fault`].
pub fn copy_to_user(to: VirtAddr, from: &[u8]) -> Result<(), AccessError> {
    checked(to, from.len())?;
    // SAFETY: as above.
    outcome(unsafe { machine::copy_to(to.0, from.as_ptr(), from.len()) })
}

/// Copies to memory of EL0 up to the first byte that cannot be written; returns how many bytes were copied.
pub fn copy_to_user_up_to(to: VirtAddr, from: &[u8]) -> usize {
    if copy_to_user(to, from).is_ok() {
        return from.len();
    }
    // Somewhere in it: byte by byte, because a fault of a larger access only means that not all of it can be made.
    let byte = |(offset, byte): &(usize, &u8)| {
        let at = VirtAddr(to.0.wrapping_add(*offset as u64));
        copy_to_user(at, core::slice::from_ref(byte)).is_ok()
    };
    from.iter().enumerate().take_while(byte).count()
}

/// Zeroes memory of EL0.
///
/// # Errors
/// [`AccessError::Fault`].
pub fn clear_user(to: VirtAddr, bytes: usize) -> Result<(), AccessError> {
    checked(to, bytes)?;
    // SAFETY: what is written is EL0's, or faults.
    outcome(unsafe { machine::clear(to.0, bytes) })
}

/// A word of EL0, by a single load.
///
/// # Errors
/// [`AccessError::Fault`]; [`AccessError::Unaligned`] where it is not aligned.
pub fn get_u32(from: VirtAddr) -> Result<u32, AccessError> {
    checked_word::<u32>(from)?;
    let mut value = 0;
    // SAFETY: the value is this function's, and the other side is EL0's or faults.
    outcome(unsafe { machine::get_word(&mut value, from.0) }).map(|()| value)
}

/// Stores a word of EL0, by a single store.
///
/// # Errors
/// [`AccessError::Fault`]; [`AccessError::Unaligned`] where it is not aligned.
pub fn put_u32(to: VirtAddr, value: u32) -> Result<(), AccessError> {
    checked_word::<u32>(to)?;
    // SAFETY: what is written is EL0's, or faults.
    outcome(unsafe { machine::put_word(to.0, value) })
}

fn checked(start: VirtAddr, bytes: usize) -> Result<(), AccessError> {
    if is_user_range(start, bytes) { Ok(()) } else { Err(AccessError::Fault) }
}

fn checked_word<T>(at: VirtAddr) -> Result<(), AccessError> {
    checked(at, size_of::<T>())?;
    if at.0.is_multiple_of(align_of::<T>() as u64) { Ok(()) } else { Err(AccessError::Unaligned) }
}

fn outcome(faulted: u64) -> Result<(), AccessError> {
    if faulted == 0 { Ok(()) } else { Err(AccessError::Fault) }
}

/// Each returns 0, or 1 where an access faulted.
#[cfg(target_os = "none")]
mod machine {
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

    /// [`is_fixup`](super::is_fixup).
    pub(super) fn is_fixup(pc: u64) -> bool {
        pc == (&raw const user_faulted).addr() as u64
    }

    by_mops!(copy_from(to: *mut u8, from: u64, bytes: usize) user_copy_from_mops user_copy_from);
    by_mops!(copy_to(to: u64, from: *const u8, bytes: usize) user_copy_to_mops user_copy_to);
    by_mops!(clear(to: u64, bytes: usize) user_clear_mops user_clear);
}

/// On the host there is no EL0: every access faults.
#[cfg(not(target_os = "none"))]
mod machine {
    macro_rules! faults {
        ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
            /// # Safety
            /// None: nothing is accessed.
            pub(super) unsafe fn $name($(_: $type),*) -> u64 {
                1
            }
        )*};
    }

    faults! {
        copy_from(to: *mut u8, from: u64, bytes: usize);
        copy_to(to: u64, from: *const u8, bytes: usize);
        clear(to: u64, bytes: usize);
        get_word(to: &mut u32, from: u64);
        put_word(to: u64, value: u32);
    }
}
