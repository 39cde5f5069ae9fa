//! Calls that name a process by a file: `pidfd_open`, `pidfd_send_signal`, `process_mrelease`, and which space
//! `process_madvise` means.
//!
//! There are none of threads (`PIDFD_THREAD`): a process is meant by each.

use granule_abi::file::O_RDWR;
use granule_abi::process::{
    PIDFD_NONBLOCK, PIDFD_SELF_THREAD, PIDFD_SELF_THREAD_GROUP, PIDFD_SIGNAL_PROCESS_GROUP, PIDFD_SIGNAL_THREAD,
    PIDFD_SIGNAL_THREAD_GROUP,
};
use granule_abi::signal::{SI_TKILL, SI_USER, SigInfo};
use granule_arch::addr::VirtAddr;

use super::io;
use super::{Answer, Syscall, read_quads, streams};
use crate::linux::errno::Errno;
use crate::linux::file::open::{Kind, OpenFile};
use crate::linux::file::pidfd::Pidfd;
use crate::linux::file::table::OnExec;
use crate::linux::process::send::{self, Asked};
use crate::linux::process::signal::SignalCause;
use crate::linux::process::status::Life;
use crate::linux::process::tree;
use crate::mm::counted::Counted;
use crate::mm::space::SpaceRef;

pub(super) fn pidfd_open(call: &mut Syscall<'_>) -> Answer {
    let (id, flags) = (call.argument::<0>() as i32, u64::from(call.argument::<1>() as u32));
    let id = u32::try_from(id).ok().filter(|&id| id != 0 && flags & !PIDFD_NONBLOCK == 0).ok_or(Errno::EINVAL)?;
    let file = OpenFile::new(Kind::Process(tree::pidfd_of(id)?), O_RDWR | flags as u32)?;
    streams::add(call, file, OnExec::Close)
}

/// The process that the first argument names: a descriptor, or a number for the caller's own process.
fn referred(call: &Syscall<'_>) -> Result<Counted<Pidfd>, Errno> {
    match call.argument::<0>() as i32 {
        PIDFD_SELF_THREAD | PIDFD_SELF_THREAD_GROUP => tree::pidfd_of(call.task.process().id()),
        _ => io::file(call, call.argument::<0>())?.process().cloned().ok_or(Errno::EBADF),
    }
}

/// The space of the process that the first argument names.
pub(super) fn space(call: &Syscall<'_>) -> Result<SpaceRef, Errno> {
    let pidfd = referred(call)?;
    tree::space_of(|tree| tree.find_by(&pidfd)).flatten().ok_or(Errno::ESRCH)
}

pub(super) fn pidfd_send_signal(call: &mut Syscall<'_>) -> Answer {
    const SCOPES: [u64; 4] = [0, PIDFD_SIGNAL_THREAD, PIDFD_SIGNAL_THREAD_GROUP, PIDFD_SIGNAL_PROCESS_GROUP];
    let (number, from, scope) =
        (call.argument::<1>() as u32, call.address::<2>(), u64::from(call.argument::<3>() as u32));
    if !SCOPES.contains(&scope) {
        return Err(Errno::EINVAL);
    }
    let (pidfd, own) = (referred(call)?, call.task.process().id());
    let is_own_thread = call.argument::<0>() as i32 == PIDFD_SELF_THREAD;
    let to_thread = scope == PIDFD_SIGNAL_THREAD || scope == 0 && is_own_thread;
    // As on Linux, a process is itself for its first thread alone.
    let to_itself = scope != PIDFD_SIGNAL_PROCESS_GROUP && (is_own_thread || pidfd.id == call.task.id());
    let cause = if from.0 == 0 {
        SignalCause::process(if to_thread { SI_TKILL } else { SI_USER }, own)
    } else {
        let (same, cause) = given(from)?;
        if same != number {
            return Err(Errno::EINVAL);
        }
        cause
    };
    if from.0 != 0 {
        permit(&cause, to_itself)?;
    }
    match scope {
        PIDFD_SIGNAL_PROCESS_GROUP => send::to_group_of(&pidfd, Asked(number), cause),
        _ if to_thread && is_own_thread => send::to_thread(call.task, Some(own), call.task.id(), Asked(number), cause),
        _ if to_thread => send::to_first_thread(&pidfd, Asked(number), cause),
        _ => send::to_referred(&pidfd, Asked(number), cause),
    }
    .map(|()| 0)
}

/// Waits until a process that is about to end has ended. Linux takes its pages from it; here nothing holds up its threads,
/// and the pages go with the last one, or with the last other process that has the space.
pub(super) fn process_mrelease(call: &mut Syscall<'_>) -> Answer {
    if call.argument::<1>() as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    let pidfd = referred(call)?;
    match tree::life_of(&pidfd).ok_or(Errno::ESRCH)? {
        Life::Running => Err(Errno::EINVAL),
        Life::Ending(_) => pidfd.wait().map(|()| 0),
        Life::Ended(_) => Err(Errno::ESRCH),
    }
}

/// The signal's number and the cause that the caller gives.
pub(super) fn given(from: VirtAddr) -> Result<(u32, SignalCause), Errno> {
    const WORDS: usize = size_of::<SigInfo>() / size_of::<u64>();
    let [first, second, field, next, ..]: [u64; WORDS] = read_quads(from)?;
    let cause = SignalCause { code: second as u32 as i32, fields: [field, next] };
    Ok((first as u32, cause))
}

/// Of the kernel's causes and of kill's a program may give those alone that it sends to itself.
pub(super) fn permit(cause: &SignalCause, to_itself: bool) -> Result<(), Errno> {
    let is_reserved = cause.code >= 0 || cause.code == SI_TKILL;
    if is_reserved && !to_itself { Err(Errno::EPERM) } else { Ok(()) }
}
