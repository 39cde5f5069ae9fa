//! The return to EL0: pending signals are delivered to their handlers or default actions; and the return from handlers.

#![allow(unsafe_code, reason = "tasks of threads, and the spaces that they run in")]

use granule_abi::number;
use granule_abi::signal::{
    MINSIGSTKSZ, SA_EXPOSE_TAGBITS, SA_NODEFER, SA_ONSTACK, SA_RESTART, SA_RESTORER, SEGV_ACCERR, SEGV_MAPERR,
    SS_DISABLE, SigAction, SigFrame, SigStack,
};
use granule_arch::addr::VirtAddr;
use granule_arch::patched_branch;

use super::frame::{ContextRegisters, Image, Interrupted, Restored, is_on_stack, place, reported, restore};
use super::{Effect, Set, Signal, SignalCause};
use crate::linux::errno::Errno;
use crate::linux::process::exit;
use crate::linux::process::jobs;
use crate::linux::process::rseq;
use crate::linux::process::status::ProcessEnd;
use crate::linux::process::task::{Restart, RestartKind, Task};
use crate::linux::process::timer;
use crate::platform::features::branch;
use crate::sched::{FpState, Thread};
use crate::trap::{SPSR_BTYPE, TrapFrame};
use crate::uaccess;

/// Bytes of an SVC, by which PC moves back to repeat a call.
const INSTRUCTION: u64 = 4;

/// The next step on the return to EL0.
enum Next {
    /// Enter EL0.
    Nothing,
    /// Leave the process.
    Exit,
    /// Halt: the process is stopped.
    Halt,
    Deliver(Signal, SignalCause, Effect),
}

/// Delivers the signals of the running thread, until none is pending.
pub fn deliver_signals(frame: &mut TrapFrame, thread: &Thread) {
    // SAFETY: the thread returns to EL0, so it has not left its process.
    let task = unsafe { Task::of(thread) };
    loop {
        match next(task) {
            Next::Nothing => break,
            Next::Exit => exit::leave(task),
            Next::Halt | Next::Deliver(_, _, Effect::Stops) => jobs::halt(task),
            Next::Deliver(_, _, Effect::Ignored) => {}
            Next::Deliver(signal, _, Effect::Fatal) => {
                crate::log::debug!("{task:?}: {signal} at {:#x}, {:?}", frame.elr, task.fault.get());
                exit::exit_group(task, ProcessEnd::Killed(signal));
            }
            Next::Deliver(signal, cause, Effect::Handled(action)) => {
                finish_call(task, frame, Some(&action));
                if enter(task, thread, frame, signal, cause, &action).is_err() {
                    // The frame did not fit, or its sequence is none: as on Linux a SIGSEGV, which ends the program if that was its own frame.
                    task.force(Signal::SEGV, SignalCause::KERNEL, Some(signal));
                }
            }
        }
    }
    finish_call(task, frame, None);
    if let Some(mask) = task.saved_mask.take() {
        task.set_blocked(mask);
    }
}

fn next(task: &Task) -> Next {
    let mut state = task.process().lock();
    if state.is_ending(task) {
        return Next::Exit;
    }
    match state.take(task, task.blocked()) {
        None if state.stop.is_active() => Next::Halt,
        None => Next::Nothing,
        Some((signal, cause)) => {
            let effect = state.handlers.with(|actions| actions.deliver(signal));
            // SIGSTOP stops it whatever another thread takes.
            if effect == Effect::Stops && state.stop.taken != Some(Signal::STOP) {
                state.stop.taken = Some(signal);
            }
            drop(state);
            Next::Deliver(signal, timer::delivered(task.process(), signal, cause), effect)
        }
    }
}

/// Repeats a call that a signal interrupted, unless the handler forbids that.
fn finish_call(task: &Task, frame: &mut TrapFrame, handler: Option<&SigAction>) {
    let Some(Restart { kind, x0 }) = task.restart.take() else { return };
    let again = match handler {
        None => true,
        Some(action) => kind == RestartKind::UnlessHandled && action.flags & SA_RESTART != 0,
    };
    if !again {
        frame.x[0] = Errno::EINTR.returned();
        return;
    }
    frame.x[0] = x0;
    frame.elr = frame.elr.wrapping_sub(INSTRUCTION);
    if kind == RestartKind::Continued {
        // As on Linux, x8 has the number of the call.
        frame.x[8] = number::RESTART_SYSCALL as u64;
    }
}

/// Makes the thread continue in its handler. Not inlined: its frame of a few KiB is on the stack only during the call.
#[inline(never)]
fn enter(
    task: &Task,
    thread: &Thread,
    frame: &mut TrapFrame,
    signal: Signal,
    cause: SignalCause,
    action: &SigAction,
) -> Result<(), Errno> {
    if task.rseq.get().at != 0 {
        rseq::restart(task, frame)?;
    }
    let blocked = task.blocked();
    let stack = task.stack.get();
    let before = Interrupted {
        registers: ContextRegisters { x: frame.x, sp: frame.sp, pc: frame.elr, pstate: frame.spsr },
        fp: thread.fp_state().unwrap_or(FpState::ZERO),
        // A call may block others until here: they are not the ones that the program continues with.
        mask: task.saved_mask.get().unwrap_or(blocked).0,
        stack,
    };
    let switches = action.flags & SA_ONSTACK != 0 && stack.size != 0 && !is_on_stack(&stack, frame.sp);
    // A stack may be at any address: on one that wraps the copy fails.
    let sp = if switches { stack.base.wrapping_add(stack.size) } else { frame.sp };
    let (at, record) = place(sp).ok_or(Errno::EFAULT)?;
    let info = if action.flags & SA_EXPOSE_TAGBITS == 0 { cause.untagged(signal) } else { cause }.info(signal);
    uaccess::copy_to_user(VirtAddr(at), Image::new(&info, &before, task.fault.take()).bytes())?;
    uaccess::copy_to_user(VirtAddr(record), [frame.x[29], frame.x[30]].map(u64::to_le_bytes).as_flattened())?;

    let offset = |field: usize| at + field as u64;
    frame.x[0] = u64::from(signal.number());
    frame.x[1] = offset(core::mem::offset_of!(granule_abi::signal::SigFrame, info));
    frame.x[2] = offset(core::mem::offset_of!(granule_abi::signal::SigFrame, context));
    frame.x[29] = record;
    frame.x[30] = if action.flags & SA_RESTORER != 0 { action.restorer } else { task.space().trampoline().0 };
    frame.sp = at;
    frame.elr = action.handler;
    frame.spsr = frame.spsr & !(SPSR_BTYPE | CHECK_OVERRIDE) | branch_type();

    let own = if action.flags & SA_NODEFER != 0 { Set::EMPTY } else { signal.set() };
    task.saved_mask.set(None);
    task.set_blocked(blocked.with(Set(action.mask)).with(own));
    Ok(())
}

/// [`SPSR_BTYPE`] of a handler: as on Linux it begins as if it was called, so in a guarded page by a BTI instruction.
fn branch_type() -> u64 {
    const CALL: u64 = 0b10 << SPSR_BTYPE.trailing_zeros();
    if patched_branch!(branch::BTI) { CALL } else { 0 }
}

/// PSTATE.TCO: as on Linux, tags are checked in a handler where they are in the program.
const CHECK_OVERRIDE: u64 = 1 << 25;

/// `rt_sigreturn`: the thread continues with the state in the frame at SP. A refused frame is SIGSEGV; as on Linux,
/// mask and registers are taken from it all the same, as far as they could be read.
#[inline(never)]
pub fn sigreturn(task: &Task, thread: &Thread, frame: &mut TrapFrame) {
    let at = frame.sp;
    task.restart.set(None);
    task.continuation.set(None);
    if !at.is_multiple_of(16) || !uaccess::is_user_range(VirtAddr(at), size_of::<SigFrame>()) {
        return refuse(task, at);
    }
    let read = |from, to: &mut [u8]| Ok(uaccess::copy_from_user(to, VirtAddr(from))?);
    let restored = Image::restored(|to| read(at, to));
    let Restored { mask, registers, rest } = restored.unwrap_or_else(|| restore(at, read));
    let ContextRegisters { x, sp, pc, pstate } = registers;
    (frame.x, frame.sp, frame.elr, frame.spsr) = (x, sp, pc, pstate);
    if let Some(mask) = mask {
        task.set_blocked(Set(mask));
    }
    let Ok((fp, stack)) = rest else { return refuse(task, sp) };
    thread.set_fp_state(if fp.is_zero() { None } else { Some(&fp) });
    // A stack that is refused leaves the current one, as on Linux.
    let _ = set_stack(task, stack, sp);
}

/// The signal for a bad frame, at this SP. As on Linux (`arm64_notify_segfault`), an address counts as mapped if any
/// area is above it.
fn refuse(task: &Task, sp: u64) {
    let mut below = false;
    let address = VirtAddr(sp).untagged();
    task.space().for_each_area(|area| below |= address < area.end());
    let code = if below { SEGV_ACCERR } else { SEGV_MAPERR };
    task.force(Signal::SEGV, SignalCause::fault(code, sp), None);
}

/// Sets the alternative stack.
///
/// # Errors
/// `EPERM` (the thread runs on the current one), `EINVAL`, `ENOMEM` (too small).
pub fn set_stack(task: &Task, stack: SigStack, sp: u64) -> Result<(), Errno> {
    if is_on_stack(&task.stack.get(), sp) {
        return Err(Errno::EPERM);
    }
    let stack = match stack.flags {
        SS_DISABLE => SigStack::NONE,
        // A program may pass SS_ONSTACK as it has read it; it has no meaning.
        0 | granule_abi::signal::SS_ONSTACK if stack.size < MINSIGSTKSZ => return Err(Errno::ENOMEM),
        0 | granule_abi::signal::SS_ONSTACK => SigStack { flags: 0, ..stack },
        _ => return Err(Errno::EINVAL),
    };
    task.stack.set(stack);
    Ok(())
}

/// The alternative stack, as the program reads it.
pub fn stack(task: &Task, sp: u64) -> SigStack {
    reported(&task.stack.get(), sp)
}
