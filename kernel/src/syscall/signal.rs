//! Calls for signals.

use granule_abi::signal::{SI_TKILL, SI_USER, SIG_BLOCK, SIG_SETMASK, SIG_UNBLOCK, SigAction, SigStack};
use granule_arch::addr::VirtAddr;

use super::{Answer, Call, read_quads, write_quads};
use crate::errno::Errno;
use crate::process::signal::{Cause, Effect, Set, Signal, deliver};
use crate::process::tree::{self, PROCESSES, State};

/// Bytes of a set of signals, which each call is told.
const SET: u64 = 8;

/// A signal's number, or 0 to find out whether one could be sent.
fn signal_or_none(number: u64) -> Result<Option<Signal>, Errno> {
    match number as u32 {
        0 => Ok(None),
        number => Signal::new(u64::from(number)).map(Some).ok_or(Errno::EINVAL),
    }
}

pub(super) fn kill(call: &mut Call<'_>) -> Answer {
    let signal = signal_or_none(call.argument::<1>())?;
    let own = call.task.process().id();
    let cause = Cause::process(SI_USER, own);
    match call.argument::<0>() as i32 {
        // There is one process group, and -1 is everybody but the sender.
        which @ (0 | -1) => {
            let mut any = false;
            PROCESSES.lock().find_map(|process, state| {
                if which == 0 || process.id() != own {
                    any = true;
                    if let Some(signal) = signal {
                        state.send(signal, cause);
                    }
                }
                None::<()>
            });
            if any { Ok(0) } else { Err(Errno::ESRCH) }
        }
        id => tree::send(u32::try_from(id).map_err(|_| Errno::ESRCH)?, signal, cause).map(|()| 0),
    }
}

pub(super) fn tkill(call: &mut Call<'_>) -> Answer {
    let (thread, signal) = (call.argument::<0>() as i32, signal_or_none(call.argument::<1>())?);
    let thread = u32::try_from(thread).ok().filter(|&thread| thread != 0).ok_or(Errno::EINVAL)?;
    let cause = Cause::process(SI_TKILL, call.task.process().id());
    let sent = PROCESSES.lock().find_map(|_, state| send_to_thread(state, thread, signal, cause));
    sent.map(|()| 0).ok_or(Errno::ESRCH)
}

pub(super) fn tgkill(call: &mut Call<'_>) -> Answer {
    let (process, thread) = (call.argument::<0>() as i32, call.argument::<1>() as i32);
    let signal = signal_or_none(call.argument::<2>())?;
    let number = |number: i32| u32::try_from(number).ok().filter(|&number| number != 0).ok_or(Errno::EINVAL);
    let (process, thread) = (number(process)?, number(thread)?);
    let cause = Cause::process(SI_TKILL, call.task.process().id());
    let mut tree = PROCESSES.lock();
    let (process, key) = tree.find(process).ok_or(Errno::ESRCH)?;
    send_to_thread(process.state(key), thread, signal, cause).map(|()| 0).ok_or(Errno::ESRCH)
}

/// Sends a signal to the thread with this number, if it is one of the process's.
fn send_to_thread(state: &State, thread: u32, signal: Option<Signal>, cause: Cause) -> Option<()> {
    let task = state.find_task(thread)?;
    if let Some(signal) = signal {
        state.send_to(task, signal, cause);
    }
    Some(())
}

pub(super) fn rt_sigaction(call: &mut Call<'_>) -> Answer {
    let (new, old) = (call.address::<1>(), call.address::<2>());
    if call.argument::<3>() != SET {
        return Err(Errno::EINVAL);
    }
    let signal = Signal::new(u64::from(call.argument::<0>() as u32)).ok_or(Errno::EINVAL)?;
    let action = match new.0 {
        0 => None,
        _ => {
            let [handler, flags, restorer, mask] = read_quads(new)?;
            Some(SigAction { handler, flags, restorer, mask })
        }
    };
    let before = {
        let mut tree = PROCESSES.lock();
        let state = call.task.process().state(&mut tree.key);
        match action {
            None => state.signals.actions.get(signal),
            Some(action) => {
                let before = state.signals.actions.set(signal, action)?;
                // What waits and is ignored now is gone (POSIX, sigaction).
                if state.signals.actions.effect(signal) == Effect::Ignored {
                    state.forget(signal);
                }
                before
            }
        }
    };
    if old.0 != 0 {
        write_quads(old, [before.handler, before.flags, before.restorer, before.mask])?;
    }
    Ok(0)
}

pub(super) fn rt_sigprocmask(call: &mut Call<'_>) -> Answer {
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
        let mut tree = PROCESSES.lock();
        call.task.process().state(&mut tree.key).set_blocked(call.task, after);
    }
    if old.0 != 0 {
        write_quads(old, [before.0])?;
    }
    Ok(0)
}

pub(super) fn rt_sigpending(call: &mut Call<'_>) -> Answer {
    let (to, size) = (call.address::<0>(), call.argument::<1>());
    if size > SET {
        return Err(Errno::EINVAL);
    }
    let waiting = {
        let mut tree = PROCESSES.lock();
        let state = call.task.process().state(&mut tree.key);
        let own = call.task.pending(state).set();
        own.with(state.signals.pending.set()).0 & call.task.blocked().0
    };
    crate::uaccess::copy_to_user(to, &waiting.to_le_bytes()[..size as usize])?;
    Ok(0)
}

pub(super) fn rt_sigreturn(call: &mut Call<'_>) -> Answer {
    deliver::sigreturn(call.task, call.thread, call.frame);
    Ok(call.argument::<0>())
}

pub(super) fn sigaltstack(call: &mut Call<'_>) -> Answer {
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
