//! Calls for signals.

use granule_abi::file::{O_RDWR, SFD_CLOEXEC, SFD_NONBLOCK};
use granule_abi::signal::{SI_TKILL, SI_USER, SIG_BLOCK, SIG_SETMASK, SIG_UNBLOCK, SigAction, SigStack};
use granule_arch::addr::VirtAddr;

use super::io::{self, UserBytes};
use super::pidfd::{given, permit};
use super::poll::exchange_mask;
use super::time::{after, read_timespec};
use super::{Answer, Syscall, read_quads, streams, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::open::{self, Kind, OpenFile};
use crate::linux::file::signalfd::SignalFile;
use crate::linux::file::table::OnExec;
use crate::linux::process::send::{self, Asked};
use crate::linux::process::signal::frame::info_bytes;
use crate::linux::process::signal::record::{RECORD, record};
use crate::linux::process::signal::{Effect, Set, Signal, SignalCause, deliver};
use crate::linux::process::status::Life;
use crate::linux::process::task::Task;
use crate::linux::process::timer;
use crate::linux::process::tree::Process;
use crate::sched::{self, IfNotReady, Woken};
use crate::uaccess;

/// Bytes of a signal set, which each call passes.
pub(super) const SET: u64 = 8;

pub(super) fn kill(call: &mut Syscall<'_>) -> Answer {
    let signal = Asked(call.argument::<1>() as u32);
    let own = call.task.process();
    let cause = SignalCause::process(SI_USER, own.id());
    match call.argument::<0>() as i32 {
        0 => send::to_group(own.group(), signal, cause),
        -1 => send::to_all_where(signal, cause, |process| process.id() != own.id()),
        i32::MIN => Err(Errno::ESRCH),
        group @ ..0 => send::to_group(group.unsigned_abs(), signal, cause),
        id => send::to_process(Some(own), id as u32, signal, cause),
    }?;
    Ok(0)
}

/// The number of a process or thread, in calls that accept positive numbers only.
fn positive(number: u64) -> Result<u32, Errno> {
    u32::try_from(number as i32).ok().filter(|&number| number != 0).ok_or(Errno::EINVAL)
}

pub(super) fn tkill(call: &mut Syscall<'_>) -> Answer {
    let (thread, signal) = (positive(call.argument::<0>())?, Asked(call.argument::<1>() as u32));
    let cause = SignalCause::process(SI_TKILL, call.task.process().id());
    send::to_thread(call.task, None, thread, signal, cause).map(|()| 0)
}

pub(super) fn tgkill(call: &mut Syscall<'_>) -> Answer {
    let (process, thread) = (positive(call.argument::<0>())?, positive(call.argument::<1>())?);
    let signal = Asked(call.argument::<2>() as u32);
    let cause = SignalCause::process(SI_TKILL, call.task.process().id());
    send::to_thread(call.task, Some(process), thread, signal, cause).map(|()| 0)
}

/// The number in the information does not count: Linux stores the call's there.
pub(super) fn rt_sigqueueinfo(call: &mut Syscall<'_>) -> Answer {
    let (id, (_, cause)) = (call.argument::<0>() as i32, given(call.address::<2>())?);
    // As on Linux, a process is itself for its first thread alone.
    permit(&cause, id as u32 == call.task.id())?;
    let id = u32::try_from(id).map_err(|_| Errno::ESRCH)?;
    send::to_process(Some(call.task.process()), id, Asked(call.argument::<1>() as u32), cause).map(|()| 0)
}

pub(super) fn rt_tgsigqueueinfo(call: &mut Syscall<'_>) -> Answer {
    let (_, cause) = given(call.address::<3>())?;
    let (process, thread) = (positive(call.argument::<0>())?, positive(call.argument::<1>())?);
    permit(&cause, thread == call.task.id())?;
    send::to_thread(call.task, Some(process), thread, Asked(call.argument::<2>() as u32), cause).map(|()| 0)
}

/// Sleeps until a signal is to be delivered.
pub(super) fn rt_sigsuspend(call: &mut Syscall<'_>) -> Answer {
    let before = exchange_mask(call, call.address::<0>(), call.argument::<1>())?;
    sched::sleep_until(after(u64::MAX));
    // The signal is delivered with the call's mask.
    call.task.saved_mask.set(Some(before));
    Err(Errno::ERESTARTNOHAND)
}

pub(super) fn rt_sigtimedwait(call: &mut Syscall<'_>) -> Answer {
    let (set, info, limit) = (call.address::<0>(), call.address::<1>(), call.address::<2>());
    if call.argument::<3>() != SET {
        return Err(Errno::EINVAL);
    }
    let [set] = read_quads(set)?;
    let (wanted, task) = (Set(set).blockable(), call.task);
    let limit = if limit.0 == 0 { u64::MAX } else { read_timespec(limit)? };
    let (end, mut failure) = (after(limit), (limit == 0).then_some(Errno::EAGAIN));
    let (signal, cause) = loop {
        // It is notified of none any more where it does not sleep again.
        match (task.take_or_await(wanted, if failure.is_none() { wanted } else { Set::EMPTY }), failure) {
            (Some(taken), _) => break taken,
            (None, Some(error)) => return Err(error),
            (None, None) => {}
        }
        failure = match sched::sleep_until(end) {
            Woken::TimedOut => Some(Errno::EAGAIN),
            Woken::Interrupted if task.is_interrupted() => Some(Errno::EINTR),
            Woken::Interrupted | Woken::ByAnother => None,
        };
    };
    let cause = timer::delivered(task.process(), signal, cause);
    if info.0 != 0 {
        uaccess::copy_to_user(info, &info_bytes(&cause.info(signal)))?;
    }
    Ok(u64::from(signal.number()))
}

/// Opens a file that the signals of a set are read from, or gives it another set.
pub(super) fn signalfd4(call: &mut Syscall<'_>) -> Answer {
    let (descriptor, flags) = (call.argument::<0>() as u32, call.argument::<3>() as u32);
    if call.argument::<2>() != SET {
        return Err(Errno::EINVAL);
    }
    let [wanted] = read_quads(call.address::<1>())?;
    if flags & !(SFD_CLOEXEC | SFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let wanted = Set(wanted).blockable().0;
    if descriptor == u32::MAX {
        let signals = Kind::Signals(SignalFile::new(wanted, Task::look));
        let file = OpenFile::new(signals, O_RDWR | flags & SFD_NONBLOCK)?;
        return streams::add(call, file, OnExec::requested(flags & SFD_CLOEXEC));
    }
    let file = io::file(call, descriptor.into())?;
    let Kind::Signals(signals) = file.kind() else { return Err(Errno::EINVAL) };
    signals.set_wanted(wanted);
    call.task.process().signal_pollers.wake();
    Ok(descriptor.into())
}

/// Takes as many signals as there are, and there is room for; waits for the first alone.
#[inline(never)]
pub(super) fn read_signals(
    call: &Syscall<'_>,
    flags: u32,
    file: &SignalFile,
    bytes: u64,
    to: &mut UserBytes,
) -> Answer {
    let (task, process) = (call.task, call.task.process());
    if bytes < RECORD as u64 {
        return Err(Errno::EINVAL);
    }
    let (mut done, mut if_not_ready) = (0, open::if_not_ready(flags));
    let outcome = loop {
        let mut taken = None;
        let outcome = file.read(&process.signal_pollers, if_not_ready, &mut |wanted| {
            taken = task.take_or_await(Set(wanted), Set::EMPTY);
            taken.is_some()
        });
        let Some((signal, cause)) = taken else { break outcome };
        let cause = timer::delivered(process, signal, cause);
        // As on Linux, one that cannot be stored is lost.
        if to.store(&record(signal, &cause)) < RECORD {
            break Err(Errno::EFAULT);
        }
        done += RECORD as u64;
        if bytes - done < RECORD as u64 {
            break Ok(());
        }
        if_not_ready = IfNotReady::Fail;
        sched::relax();
        // Others may send them as fast.
        if task.is_killed(call.thread) {
            break Err(Errno::EINTR);
        }
    };
    if done == 0 { outcome.map(|()| 0) } else { Ok(done) }
}

pub(super) fn rt_sigaction(call: &mut Syscall<'_>) -> Answer {
    let (new, old) = (call.address::<1>(), call.address::<2>());
    if call.argument::<3>() != SET {
        return Err(Errno::EINVAL);
    }
    let action = match new.0 {
        0 => None,
        _ => {
            let [handler, flags, restorer, mask] = read_quads(new)?;
            Some(SigAction { handler, flags, restorer, mask })
        }
    };
    let signal = Signal::new(u64::from(call.argument::<0>() as u32)).ok_or(Errno::EINVAL)?;
    let before = set_action(call.task.process(), signal, action)?;
    timer::reconsider(call.task.process(), signal);
    if old.0 != 0 {
        write_quads(old, [before.handler, before.flags, before.restorer, before.mask])?;
    }
    Ok(0)
}

/// Sets the action of a signal, if the call has one; returns the action before.
fn set_action(process: &Process, signal: Signal, action: Option<SigAction>) -> Result<SigAction, Errno> {
    let (before, mut forget) = {
        let mut state = process.lock();
        let Some(action) = action else { return Ok(state.handlers.with(|actions| actions.get(signal))) };
        let before = state.handlers.with(|actions| actions.set(signal, action))?;
        // A pending signal that is ignored from now on is dropped (POSIX, sigaction).
        let ignored = state.effect(signal) == Effect::Ignored;
        (before, if ignored { state.forget(signal, None) } else { None })
    };
    while forget.is_some() {
        sched::relax();
        let mut state = process.lock();
        // Another thread may have set another action in between: signals sent since then stay pending. A process that
        // ends needs none of them; one in which another thread executes a program does.
        let goes_on = state.life == Life::Running && state.effect(signal) == Effect::Ignored;
        forget = if goes_on { state.forget(signal, forget) } else { None };
    }
    Ok(before)
}

pub(super) fn rt_sigprocmask(call: &mut Syscall<'_>) -> Answer {
    let (how, new, old) = (call.argument::<0>(), call.address::<1>(), call.address::<2>());
    if call.argument::<3>() != SET {
        return Err(Errno::EINVAL);
    }
    let before = call.task.blocked();
    if new.0 != 0 {
        let [set] = read_quads(new)?;
        let after = match u64::from(how as u32) {
            SIG_BLOCK => before.with(Set(set)),
            SIG_UNBLOCK => before.without(Set(set)),
            SIG_SETMASK => Set(set),
            _ => return Err(Errno::EINVAL),
        };
        call.task.set_blocked(after);
    }
    if old.0 != 0 {
        write_quads(old, [before.0])?;
    }
    Ok(0)
}

pub(super) fn rt_sigpending(call: &mut Syscall<'_>) -> Answer {
    let (to, size) = (call.address::<0>(), call.argument::<1>());
    if size > SET {
        return Err(Errno::EINVAL);
    }
    let waiting = {
        let state = call.task.process().lock();
        call.task.all_pending(&state).and(call.task.blocked()).0.to_le_bytes()
    };
    if let Some(part @ [_, ..]) = waiting.get(..size as usize) {
        crate::uaccess::copy_to_user(to, part)?;
    }
    Ok(0)
}

pub(super) fn rt_sigreturn(call: &mut Syscall<'_>) -> Answer {
    deliver::sigreturn(call.task, call.thread, call.frame);
    Ok(call.argument::<0>())
}

pub(super) fn sigaltstack(call: &mut Syscall<'_>) -> Answer {
    let (new, old) = (call.address::<0>(), call.address::<1>());
    let sp = call.frame.sp;
    let before = deliver::stack(call.task, sp);
    if new.0 != 0 {
        let [base, flags, size] = read_quads(new)?;
        let stack = SigStack { base, flags: flags as u32 as i32, padding: 0, size };
        deliver::set_stack(call.task, stack, sp)?;
    }
    if old.0 != 0 {
        write_quads(VirtAddr(old.0), [before.base, u64::from(before.flags as u32), before.size])?;
    }
    Ok(0)
}
