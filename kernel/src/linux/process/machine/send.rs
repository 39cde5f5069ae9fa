//! Signals that a program, or the kernel, sends to processes and threads by their numbers.
//!
//! As on Linux the receiver is looked up before the signal's number is checked.

use super::state::{Elsewhere, ProcessState, Visit};
use super::task::Task;
use super::tree::{PROCESSES, Process, Tree, next_where};
use crate::linux::errno::Errno;
use crate::linux::file::pidfd::Pidfd;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::mm::counted::Counted;

/// A signal's number as a program passes it; 0 checks whether one could be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked(pub u32);

impl Asked {
    fn signal(self) -> Result<Option<Signal>, Errno> {
        match self.0 {
            0 => Ok(None),
            number => Signal::new(u64::from(number)).map(Some).ok_or(Errno::EINVAL),
        }
    }
}

/// Sends a process a signal, if there is one.
fn send(state: &mut ProcessState, signal: Option<Signal>, cause: SignalCause) -> Visit {
    signal.map_or(Visit::NONE, |signal| state.send(signal, cause))
}

/// Sends one of its threads a signal, if there is one.
fn send_to(state: &mut ProcessState, thread: u32, signal: Option<Signal>, cause: SignalCause) -> Visit {
    signal.map_or(Visit::NONE, |signal| state.send_to(thread, signal, cause))
}

/// Sends a signal to the process with this number; `own` is the caller's process, if it has one.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn to_process(own: Option<&Process>, id: u32, signal: Asked, cause: SignalCause) -> Result<(), Errno> {
    if let Some(own) = own.filter(|own| own.id() == id) {
        let signal = signal.signal()?;
        let visit = send(&mut own.lock(), signal, cause);
        own.visit(visit);
        return Ok(());
    }
    to_found(|tree| tree.find(id), signal, cause, send)
}

/// Sends a signal to the process that `pidfd` refers to.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn to_referred(pidfd: &Counted<Pidfd>, signal: Asked, cause: SignalCause) -> Result<(), Errno> {
    to_found(|tree| tree.find_by(pidfd), signal, cause, send)
}

/// As [`to_referred`], to its first thread.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn to_first_thread(pidfd: &Counted<Pidfd>, signal: Asked, cause: SignalCause) -> Result<(), Errno> {
    to_found(|tree| tree.find_by(pidfd), signal, cause, |state, signal, cause| send_to(state, pidfd.id, signal, cause))
}

fn to_found(
    find: impl FnOnce(&Tree) -> Option<&Process>,
    signal: Asked,
    cause: SignalCause,
    send: impl FnOnce(&mut ProcessState, Option<Signal>, SignalCause) -> Visit,
) -> Result<(), Errno> {
    let elsewhere = {
        let tree = PROCESSES.lock();
        let process = find(&tree).ok_or(Errno::ESRCH)?;
        let signal = signal.signal()?;
        let visit = send(&mut process.lock(), signal, cause);
        Elsewhere::new(process, visit)
    };
    elsewhere.finish();
    Ok(())
}

/// Sends a signal to all processes that are `wanted`; each in turn, with no lock held in between. In the order of their
/// serial numbers, so that a child created concurrently, of a parent without the signal, gets it too.
///
/// # Errors
/// `ESRCH` (there is none), `EINVAL`.
pub fn to_all_where(signal: Asked, cause: SignalCause, wanted: impl Fn(&Process) -> bool) -> Result<(), Errno> {
    let (mut after, mut result) = (0, Err(Errno::ESRCH));
    let send_one = |process: &Process| {
        let signal = signal.signal()?;
        let visit = send(&mut process.lock(), signal, cause);
        Ok(Elsewhere::new(process, visit))
    };
    while let Some(sent) = next_where(&mut after, |_, process| wanted(process).then(|| send_one(process))) {
        result = sent.map(Elsewhere::finish);
        if result.is_err() {
            break;
        }
    }
    result
}

/// Sends a signal to all processes of a group, as [`to_all_where`] does.
///
/// # Errors
/// `ESRCH` (it has no members), `EINVAL`.
pub fn to_group(group: u32, signal: Asked, cause: SignalCause) -> Result<(), Errno> {
    to_all_where(signal, cause, |process| process.group() == group)
}

/// As [`to_group`], of the process that a pidfd refers to. It may have ended: no other process has its number then while
/// the group has members.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn to_group_of(pidfd: &Counted<Pidfd>, signal: Asked, cause: SignalCause) -> Result<(), Errno> {
    let is_another = {
        let tree = PROCESSES.lock();
        tree.find(pidfd.id).is_some() && tree.find_by(pidfd).is_none()
    };
    if is_another { Err(Errno::ESRCH) } else { to_group(pidfd.id, signal, cause) }
}

/// Sends a signal to the thread with this number, if it is one of `process`, or of any.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn to_thread(
    own: &Task,
    process: Option<u32>,
    thread: u32,
    signal: Asked,
    cause: SignalCause,
) -> Result<(), Errno> {
    let is_meant = |found: &Process| process.is_none_or(|id| id == found.id());
    if is_meant(own.process()) {
        let visit = {
            let mut state = own.process().lock();
            match state.find(thread) {
                Some(_) => Some(send_to(&mut state, thread, signal.signal()?, cause)),
                None => None,
            }
        };
        if let Some(visit) = visit {
            own.process().visit(visit);
            return Ok(());
        }
    }
    let elsewhere = {
        let tree = PROCESSES.lock();
        match tree.find_task(thread) {
            Some(task) if is_meant(task.process()) => {
                let signal = signal.signal()?;
                let visit = send_to(&mut task.process().lock(), thread, signal, cause);
                Elsewhere::new(task.process(), visit)
            }
            Some(_) => return Err(Errno::ESRCH),
            // The first thread's number stays that of a process until the process's status is collected.
            None => {
                tree.find(thread).filter(|found| is_meant(found)).ok_or(Errno::ESRCH)?;
                return signal.signal().map(drop);
            }
        }
    };
    elsewhere.finish();
    Ok(())
}
