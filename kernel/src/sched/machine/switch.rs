//! From one thread to another.
//!
//! The registers that a call preserves go on the thread's own stack, and SP into the [`Thread`]; everything else that a
//! thread has in registers is EL0's and lies in its frame, or is saved here: TPIDR_EL0, TTBR0_EL1, floating point.
//!
//! The lock of the CPU's run queue is acquired by the thread that leaves and released by the one that comes: under the
//! queue lock, the registers of every thread that is not running are in memory, and the thread may move to another CPU.

#![allow(unsafe_code, reason = "switches stacks, in assembly")]

use core::arch::global_asm;
use core::mem::{ManuallyDrop, offset_of};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{Readable as _, TPIDR_EL0, TTBR0_EL1, Writeable as _};
use granule_arch::addr::VirtAddr;
use granule_arch::{barrier, interrupts, patched_branch, timer};

use super::queue::{self, PerCpu, RunQueue, WaitedFor};
use super::start;
use super::tag_check;
use super::thread::{Thread, ThreadRef, Work, current};
use crate::mm::asid::{self, Asids};
use crate::mm::context::Context;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::platform::features::branch;
use crate::smp::{Cpu, this_cpu};
use crate::stretches;
use crate::sync::{IrqGuard, rank};

/// The numbers by which TLBs know the spaces.
pub(super) static ASIDS: Asids = Asids::none();

/// The registers that [`context_switch`] pushes: x19 to x30.
#[repr(C)]
struct Saved {
    /// x19 to x28.
    x: [u64; 10],
    fp: u64,
    /// Where to go on.
    lr: u64,
}

global_asm!(
    r#"
    .macro  saved_registers op
    \op     x19, x20, [sp]
    \op     x21, x22, [sp, #16]
    \op     x23, x24, [sp, #32]
    \op     x25, x26, [sp, #48]
    \op     x27, x28, [sp, #64]
    \op     x29, x30, [sp, #80]
    .endm

    .pushsection .text.context_switch, "ax", %progbits
    // x0: where SP of the thread that leaves goes; x1: SP of the one that comes. Returns in that one, with its CPU.
    .type   context_switch, %function
    .global context_switch
context_switch:
    sub     sp, sp, #{SAVED}
    saved_registers stp
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    saved_registers ldp
    add     sp, sp, #{SAVED}
    mrs     x0, tpidr_el1
    ret

    // A user thread's first instructions: its frame is at SP.
    .type   user_thread_start, %function
    .global user_thread_start
user_thread_start:
    bl      {finish}
    mrs     x19, tpidr_el1
    ldr     x19, [x19, #{CURRENT}]
    b       el0_return

    // A kernel thread's first instructions. x19: its function; x20: the argument.
    .type   kernel_thread_start, %function
    .global kernel_thread_start
kernel_thread_start:
    bl      {finish}
    msr     daifclr, #7
    mov     x0, x20
    blr     x19
    bl      {exit}
    .popsection
    "#,
    SAVED = const size_of::<Saved>(),
    CURRENT = const Cpu::SCHED + offset_of!(PerCpu, current),
    finish = sym finish,
    exit = sym exit_kernel,
);

unsafe extern "C" {
    fn context_switch(leaving: *mut u64, coming: u64) -> *const ();
    static user_thread_start: u8;
    static kernel_thread_start: u8;
}

/// Has a new user thread begin on its way out to EL0.
pub(super) fn prepare_user(thread: &Thread) {
    let lr = (&raw const user_thread_start).addr() as u64;
    push(thread, thread.frame().addr() as u64, Saved { x: [0; 10], fp: 0, lr });
}

/// Has a new kernel thread begin with `function`.
pub(super) fn prepare_kernel(thread: &Thread, function: extern "C" fn(usize), argument: usize) {
    let lr = (&raw const kernel_thread_start).addr() as u64;
    let x = [function as usize as u64, argument as u64, 0, 0, 0, 0, 0, 0, 0, 0];
    push(thread, thread.stack_top.get(), Saved { x, fp: 0, lr });
}

fn push(thread: &Thread, top: u64, saved: Saved) {
    let sp = top - size_of::<Saved>() as u64;
    // SAFETY: on the stack of a thread that has not run yet.
    unsafe { VirtAddr(sp).as_ptr::<Saved>().write(saved) };
    thread.sp.set(sp);
}

/// Goes from the running thread to `next`. Returns when the thread runs again: on another CPU only if it was ready, not
/// asleep. Interrupts masked, before as after.
pub(super) fn to(
    cpu: &'static Cpu,
    thread: &Thread,
    next: NonNull<Thread>,
    queue: IrqGuard<'_, RunQueue, { rank::RUN_QUEUE }>,
) {
    debug_assert!(!interrupts::state().irqs_enabled() && !cpu.trap().is_in_handler());
    if patched_branch!(branch::ASYNCHRONOUS_TAG_CHECKS) {
        (start::surroundings().check_tags)();
    }
    let waited_for = if queue.is_empty() { WaitedFor::No } else { WaitedFor::Yes };
    // Now the one that comes holds it.
    queue.hand_over();
    // SAFETY: it was taken from the queue, so it has not ended.
    let next_thread = unsafe { next.as_ref() };
    leave(cpu, thread);
    enter(cpu, next_thread, waited_for);
    // SAFETY: the registers of `next` were saved at its SP, under the lock that this thread holds. The return value is
    // TPIDR_EL1.
    let cpu: &'static Cpu = unsafe { &*context_switch(thread.sp.as_ptr(), next_thread.sp.get()).cast() };
    finish(cpu);
}

/// Saves what only user threads have in registers.
fn leave(cpu: &Cpu, thread: &Thread) {
    if thread.entry.is_some() {
        thread.time.stop(timer::count_unordered());
        thread.tls.set(TPIDR_EL0.get());
        thread.fp.leave(cpu, thread);
    }
}

fn enter(cpu: &Cpu, thread: &Thread, waited_for: WaitedFor) {
    cpu.sched().current.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
    cpu.trap().set_stack_top(thread.stack_top.get());
    cpu.reserve().set_for_program(thread.works_for_program());
    if thread.entry.is_some() {
        thread.time.start(timer::count_unordered());
        TPIDR_EL0.set(thread.tls.get());
        thread.fp.enter(cpu, thread);
        tag_check::enter(cpu, thread);
        if thread.reports_moves.load(Ordering::Relaxed) {
            thread.raise_own(Work::MOVED);
        }
    }
    // A thread that stays in the kernel has a slice as well: it ends at the next `relax`.
    queue::begin_slice(cpu, waited_for);
    // SAFETY: the space of a thread that comes is this CPU's.
    install(cpu, unsafe { &*thread.space.get() }.as_ref());
}

/// The end of a switch, in the thread that came: releases the lock, and sees to the thread that left for good. It goes to
/// another CPU, or is dropped if it has ended. Then its stack was kept by [`exit`], and is another thread's as soon as the
/// lock is released: nothing is unmapped here, on top of whatever the thread that came has on its own stack.
extern "C" fn finish(cpu: &'static Cpu) {
    stretches::mark_point();
    let leaving = cpu.sched().leaving.swap(null_mut(), Ordering::Relaxed);
    // SAFETY: the thread that left handed it over.
    unsafe { cpu.sched().queue.release_handed_over() };
    if let Some(thread) = NonNull::new(leaving) {
        // SAFETY: it has a reference to itself, and no CPU runs it.
        if unsafe { thread.as_ref() }.state.has_ended() {
            // SAFETY: that reference; it has ended.
            drop(unsafe { ThreadRef::from_raw(thread) });
        } else {
            queue::arrive(thread);
        }
    }
}

/// Puts the tables of a space, or those of none, into TTBR0_EL1.
#[inline]
fn install(cpu: &Cpu, space: Option<&Context>) {
    let none = cpu.sched().no_tables.load(Ordering::Relaxed);
    let before = TTBR0_EL1.get();
    let Some(space) = space else {
        if before != none {
            set_tables(none);
        }
        return;
    };
    // A space keeps its number for as long as a CPU runs under it.
    if TTBR0_EL1.get_baddr() == space.root().0 {
        return;
    }
    if patched_branch!(branch::CNP) && before != none {
        // Between two spaces the CPU has none: see `mm::asid`.
        set_tables(none);
    }
    let number = ASIDS.activate(cpu, &Metal(LinearView {}), space.asid());
    set_tables(asid::ttbr0(space.root(), number));
}

/// The generation of the numbers that spaces run under: see [`Asids::generation`].
pub fn asid_generation() -> u64 {
    ASIDS.generation()
}

fn set_tables(register: u64) {
    TTBR0_EL1.set(register);
    // The kernel's accesses at addresses of EL0 go by it as well.
    barrier::isb();
}

/// The present value of TTBR0_EL1.
pub(super) fn tables_register() -> u64 {
    TTBR0_EL1.get()
}

/// Gives the running thread another space, from now on, and returns the one that it had. `None` before a space is
/// dropped for good.
pub fn set_space(space: Option<Context>) -> Option<Context> {
    let masked = interrupts::mask();
    let thread = current();
    // SAFETY: the space of the running thread is this CPU's, and nothing here refers to it while it is replaced.
    let old = unsafe { core::mem::replace(&mut *thread.space.get(), ManuallyDrop::new(space)) };
    // SAFETY: as above.
    install(this_cpu(), unsafe { &*thread.space.get() }.as_ref());
    interrupts::restore(masked);
    ManuallyDrop::into_inner(old)
}

/// Ends the running thread, which drops its space. It holds all else for ever, so it should hold nothing.
pub fn exit() -> ! {
    drop(set_space(None));
    let cpu = this_cpu();
    let thread = current();
    let _ = interrupts::mask();
    // Room for its stack is made on this stack, which is nearly empty.
    let mut queue = start::lock_with_room(cpu);
    // The lock is released when no CPU runs on it any more.
    queue.keep_stack(VirtAddr(thread.stack_top.get()));
    thread.state.end();
    cpu.sched().leaving.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
    let next = queue.pick_or_idle(cpu);
    to(cpu, &thread, next, queue);
    unreachable!("a thread that has ended runs");
}

extern "C" fn exit_kernel() -> ! {
    exit()
}
