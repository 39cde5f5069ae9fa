//! The exception vectors (Arm ARM D1.4.1) and the code that saves and restores the interrupted registers.
//!
//! Those for EL0 are described in `user.S`. Every other first asks whether there is stack left, before it touches any.
//! A stack is [`STACK_SIZE`] bytes at a multiple of twice that: so bit 14 of every SP inside it is 0, and SP in the
//! guard area below it has the bit set. No register is free at that point, so SP and x0 are added and subtracted in
//! turn: SP and x0 come back as they were unless the bit is set.
//!
//! On an overflow the frame goes to the CPU's overflow stack. Its top is in the [`Cpu`] that TPIDR_EL1 points to;
//! TPIDR_EL0 and TPIDRRO_EL0 hold the two values that have no other place. They belong to EL0, to which a CPU that has
//! come here never returns. An exception taken *on* the overflow stack (a probing access of the report) is known by its
//! SP, and continues there.

#![allow(unsafe_code, reason = "vectors, stack frames and accesses that may fault, in assembly")]

use core::arch::global_asm;
use core::mem::offset_of;

use granule_arch::esr::Class;
use granule_arch::{alternative, tag_check};

use super::frame::TrapFrame;
use super::per_cpu::PerCpu;
use super::user::{user_exception, user_interrupt, user_work};
use super::{handle_exception, tags};
use crate::mm::layout::{OVERFLOW_STACK_SIZE, STACK_SIZE};
use crate::platform::features::branch;
use crate::sched::{self, Thread};
use crate::smp::Cpu;

/// Added to the vector's number where the frame lies on the overflow stack.
pub(super) const OVERFLOWED: u64 = 16;

const _: () = assert!(STACK_SIZE.is_power_of_two() && OVERFLOW_STACK_SIZE.is_power_of_two());

global_asm!(
    include_str!("user.S"),
    r#"
    .macro exception_vector number
    .balign 128
    sub     sp, sp, #{FRAME_SIZE}
    add     sp, sp, x0                  // sp' = sp + x0
    sub     x0, sp, x0                  // x0' = sp' - x0 = sp
    tbnz    x0, #{STACK_SHIFT}, 1f
    sub     x0, sp, x0                  // x0 as it was
    sub     sp, sp, x0                  // sp as it was
0:
    stp     x0, x1, [sp, #{X}]
    add     x0, sp, #{FRAME_SIZE}
    mov     x1, #\number
    b       exception_entry
1:
    msr     tpidr_el0, x0               // where the frame would have been
    sub     x0, sp, x0
    msr     tpidrro_el0, x0             // x0 as it was
    mrs     x0, tpidr_el1
    ldr     x0, [x0, #{OVERFLOW_STACK_TOP}]
    cbz     x0, exception_stop          // too early to report anything
    mov     sp, x0
    mrs     x0, tpidr_el0
    sub     x0, sp, x0                  // how far below the top of the overflow stack
    tst     x0, #~({OVERFLOW_STACK_SIZE} - 1)
    b.ne    2f
    sub     sp, sp, x0                  // on the overflow stack already: go on there
    mrs     x0, tpidrro_el0
    b       0b
2:
    sub     sp, sp, #{FRAME_SIZE}
    mrs     x0, tpidrro_el0
    stp     x0, x1, [sp, #{X}]
    mrs     x0, tpidr_el0
    add     x0, x0, #{FRAME_SIZE}
    mov     x1, #(\number + {OVERFLOWED})
    b       exception_entry
    .endm

    .pushsection .text.vectors, "ax", %progbits
    .balign 2048
    .global exception_vectors
    .type   exception_vectors, %function
exception_vectors:
    .irp    number, 0, 1, 2, 3, 4, 5, 6, 7
    exception_vector \number
    .endr
    el0_synchronous
    el0_irq
    el0_unexpected 10
    el0_unexpected 11
    .irp    number, 12, 13, 14, 15
    exception_vector \number
    .endr

    // x0: SP as it was; x1: the vector's number. The stack has a frame with x0 and x1 in it.
    .balign 128
    .type   exception_entry, %function
exception_entry:
    frame_registers stp
    stp     x30, x0, [sp, #{X} + 240]   // x30, sp
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x2, x3, [sp, #{ELR}]        // elr, spsr
    mrs     x4, esr_el1
    mrs     x5, far_el1
    stp     x4, x5, [sp, #{ESR}]        // esr, far
    stp     x29, x2, [sp, #{RECORD}]
    add     x29, sp, #{RECORD}
    mov     x0, sp
    resume_tag_checks
    bl      {handle_exception}
    .global exception_return
exception_return:
    ldp     x2, x3, [sp, #{ELR}]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x0, x1, [sp, #{X}]
    frame_registers ldp
    ldr     x30, [sp, #{X} + 240]
    add     sp, sp, #{FRAME_SIZE}
    eret
    speculation_ends

    .type   exception_stop, %function
exception_stop:
    wfi
    b       exception_stop
    .popsection
    "#,
    FRAME_SIZE = const size_of::<TrapFrame>(),
    X = const offset_of!(TrapFrame, x),
    ELR = const offset_of!(TrapFrame, elr),
    ESR = const offset_of!(TrapFrame, esr),
    RECORD = const offset_of!(TrapFrame, record),
    STACK_SHIFT = const STACK_SIZE.trailing_zeros(),
    OVERFLOW_STACK_SIZE = const OVERFLOW_STACK_SIZE,
    OVERFLOW_STACK_TOP = const Cpu::TRAP + offset_of!(PerCpu, overflow_stack_top),
    OVERFLOWED = const OVERFLOWED,
    CURRENT = const Cpu::SCHED + offset_of!(sched::PerCpu, current),
    SYSCALL = const Thread::SYSCALL,
    WORK = const Thread::WORK,
    FAULT = const Thread::FAULT,
    EC_SVC = const Class::SVC64 as u64,
    EC_FETCH_ABORT = const Class::InstrAbortLowerEL as u64,
    EC_ABORTS = const Class::InstrAbortLowerEL as u64 ^ Class::DataAbortLowerEL as u64,
    handle_exception = sym handle_exception,
    user_exception = sym user_exception,
    user_interrupt = sym user_interrupt,
    user_work = sym user_work,
    check_tags = sym tags::on_the_way_out,
    INSTRUCTION = const alternative::INSTRUCTION,
    TAG_CHECKS = const branch::TAG_CHECKS,
    ASYNCHRONOUS_TAG_CHECKS = const branch::ASYNCHRONOUS_TAG_CHECKS,
    CLEAR_TCO = const tag_check::CLEAR_TCO,
    SPECULATION_BARRIER = const branch::SPECULATION_BARRIER,
);

// One bit distinguishes the aborts.
const _: () = assert!((Class::InstrAbortLowerEL as u64 ^ Class::DataAbortLowerEL as u64).is_power_of_two());
// Pairs are stored together.
const _: () = assert!(offset_of!(TrapFrame, sp) == offset_of!(TrapFrame, x) + 31 * 8);
const _: () = assert!(offset_of!(TrapFrame, spsr) == offset_of!(TrapFrame, elr) + 8);
const _: () = assert!(offset_of!(TrapFrame, far) == offset_of!(TrapFrame, esr) + 8);

unsafe extern "C" {
    #[link_name = "exception_vectors"]
    static EXCEPTION_VECTORS: u8;
}

/// The value for VBAR_EL1.
pub(super) fn exception_vectors() -> u64 {
    (&raw const EXCEPTION_VECTORS).addr() as u64
}
