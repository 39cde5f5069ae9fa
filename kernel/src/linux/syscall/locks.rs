//! Calls for the locks of files: those of fcntl, and flock. The locks are in `file::locks`.

use granule_abi::file::{
    F_GETLK, F_OFD_GETLK, F_OFD_SETLKW, F_RDLCK, F_SETLKW, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_MAND, LOCK_NB, LOCK_SH,
    LOCK_UN, O_ACCMODE, SEEK_CUR, SEEK_END, SEEK_SET,
};

use super::{Answer, Syscall, io, read_quads, write_quads};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::contents::Regular;
use crate::linux::file::locks::{self, LAST, Lock, LockOwner, Mode, OwnerKind, SPARES, Spares, WAITING, WHOLE};
use crate::linux::file::open::FileRef;
use crate::linux::file::table::Filed;
use crate::mm::OutOfMemory;
use crate::sched::{IfNotReady, PollNode, Woken, poll_until};

/// The first and the last byte of a `struct flock`.
///
/// # Errors
/// `EINVAL`: there is no such range, or the file has no locks. `EOVERFLOW`: it ends too late.
fn range(file: &FileRef, whence: u16, start: u64, length: u64) -> Result<(u64, u64), Errno> {
    let node = file.node().ok_or(Errno::EINVAL)?;
    let base = match whence.into() {
        SEEK_SET => 0,
        SEEK_CUR => file.position(),
        SEEK_END => Regular::of(node).map_or_else(|| node.size(), |file| file.contents().size()),
        _ => return Err(Errno::EINVAL),
    };
    let start = (base as i64).checked_add(start as i64).ok_or(Errno::EOVERFLOW)?;
    let first = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    match length as i64 {
        0 => Ok((first, LAST)),
        1.. if length - 1 > LAST - first => Err(Errno::EOVERFLOW),
        1.. => Ok((first, first + (length - 1))),
        before => Ok((first.checked_add_signed(before).ok_or(Errno::EINVAL)?, first.wrapping_sub(1))),
    }
}

/// Has `act` act for the owner of a file's locks: the open file, or the table with its descriptor.
///
/// # Errors
/// `EBADF`: the descriptor was closed concurrently. Those of `act`.
fn with_owner<R>(
    call: &Syscall<'_>,
    descriptor: u32,
    file: &FileRef,
    kind: OwnerKind,
    act: impl FnOnce(&LockOwner) -> Result<R, Errno>,
) -> Result<R, Errno> {
    match kind {
        OwnerKind::File => act(file.locks()),
        OwnerKind::Table => call.task.files().lock(descriptor, file, act).unwrap_or(Err(Errno::EBADF)),
    }
}

/// The commands of fcntl, in Linux's order of refusals.
pub(super) fn fcntl(call: &Syscall<'_>, descriptor: u32, file: &FileRef, command: u32) -> Answer {
    const HALF: u64 = 0xffff_ffff;
    let at = call.address::<2>();
    let [head, start, length, tail] = read_quads(at)?;
    let mode = match head as u16 {
        F_RDLCK => Some(Mode::Shared),
        F_WRLCK => Some(Mode::Exclusive),
        _ => None,
    };
    if command == F_GETLK && mode.is_none() {
        return Err(Errno::EINVAL);
    }
    let (first, last) = range(file, (head >> 16) as u16, start, length)?;
    if mode.is_none() && head as u16 != F_UNLCK {
        return Err(Errno::EINVAL);
    }
    let is_request = !matches!(command, F_GETLK | F_OFD_GETLK);
    match mode {
        Some(Mode::Shared) if is_request => file.check_readable()?,
        Some(Mode::Exclusive) if is_request => file.check_writable()?,
        _ => {}
    }
    let (kind, pid) = match (command, tail & HALF) {
        (..F_OFD_GETLK, _) => (OwnerKind::Table, call.task.process().id()),
        // As on Linux, a lock of an open file is process -1's.
        (_, 0) => (OwnerKind::File, u32::MAX),
        _ => return Err(Errno::EINVAL),
    };
    let mut lock = Lock { subject: file.subject(), owner: 0, first, last, mode, pid };
    if is_request {
        return acquire(call, descriptor, file, lock, kind, matches!(command, F_SETLKW | F_OFD_SETLKW));
    }
    lock.owner = with_owner(call, descriptor, file, kind, |owner| Ok(owner.number(kind)))?;
    let answer = match locks::find(&lock) {
        None => [head & !0xffff | u64::from(F_UNLCK), start, length, tail],
        Some(Lock { first, last, mode, pid, .. }) => {
            let kind = if mode == Some(Mode::Exclusive) { F_WRLCK } else { F_RDLCK };
            let length = if last == LAST { 0 } else { last - first + 1 };
            [head & !HALF | u64::from(kind), first, length, tail & !HALF | u64::from(pid)]
        }
    };
    write_quads(at, answer).map(|()| 0)
}

pub(super) fn flock(call: &mut Syscall<'_>) -> Answer {
    let (descriptor, operation) = (call.argument::<0>(), call.argument::<1>() as u32);
    if operation & LOCK_MAND != 0 {
        return Ok(0);
    }
    let mode = match operation & !LOCK_NB {
        LOCK_SH => Some(Mode::Shared),
        LOCK_EX => Some(Mode::Exclusive),
        LOCK_UN => None,
        _ => return Err(Errno::EINVAL),
    };
    let file = io::file(call, descriptor)?;
    if mode.is_some() && file.flags() & O_ACCMODE == O_ACCMODE {
        return Err(Errno::EBADF);
    }
    file.node().ok_or(Errno::EINVAL)?;
    let lock = Lock { subject: file.subject() | WHOLE, last: LAST, mode, ..Lock::default() };
    acquire(call, descriptor as u32, &file, lock, OwnerKind::File, operation & LOCK_NB == 0)
}

/// Sets a lock, when nothing is in its way.
fn acquire(
    call: &Syscall<'_>,
    descriptor: u32,
    file: &FileRef,
    mut lock: Lock,
    kind: OwnerKind,
    waits: bool,
) -> Answer {
    let mut spares = Spares::new();
    while lock.needs_records() && spares.len() < SPARES {
        let added = locks::add_spare(&mut spares, kernel().frames);
        if added == Err(OutOfMemory) && !call.is_relieved() {
            return Err(Errno::ENOLCK);
        }
    }
    let (thread, if_not_ready) = (call.task.id().into(), if waits { IfNotReady::Wait } else { IfNotReady::Fail });
    let mut outcome = Ok(false);
    let mut attempt = || {
        outcome = with_owner(call, descriptor, file, kind, |owner| {
            lock.owner = owner.number(kind);
            locks::change(|locks| locks.attempt(&lock, owner, thread, &mut spares, if_not_ready))
        });
        outcome != Ok(false)
    };
    if !attempt() && poll_until(&mut [PollNode::new(&WAITING)], None, &mut attempt) != Woken::ByAnother {
        outcome = Err(Errno::ERESTARTSYS);
    }
    if waits && outcome.is_err() {
        locks::change(|locks| locks.end_wait(thread, &mut spares));
    }
    outcome.map(|_| 0)
}
