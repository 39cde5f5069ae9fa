//! Copies between the caller and another process: process_vm_readv, process_vm_writev, and reads and writes of
//! `/proc/PID/mem`.
//!
//! There is one user, root, which may do so with every process, as the protection of the memory permits. Bytes go
//! through a buffer of 2 KiB on the kernel's stack, a page of the other process at a time, so that nothing of one space is
//! locked over a fault of the other.

use granule_arch::addr::{PAGE, VirtAddr};

use super::io::{PIECE, PIECES, UserBytes, read_piece};
use super::{Answer, MOST_AT_ONCE, Syscall};
use crate::linux::errno::Errno;
use crate::linux::process::tree::space_of_thread;
use crate::mm::space::{FaultError, Patience, Space, SpaceHandle};
use crate::sched::relax;
use crate::smp::this_cpu;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From the other process.
    Read,
    /// To it.
    Write,
}

/// Why no more is copied.
enum Stop {
    /// The caller's bytes.
    Own,
    /// The other process's.
    Other(FaultError),
}

impl From<FaultError> for Stop {
    fn from(error: FaultError) -> Self {
        Self::Other(error)
    }
}

pub(super) fn process_vm_readv(call: &mut Syscall<'_>) -> Answer {
    transfer(call, Direction::Read)
}

pub(super) fn process_vm_writev(call: &mut Syscall<'_>) -> Answer {
    transfer(call, Direction::Write)
}

/// In Linux's order of refusals (`process_vm_rw`).
#[inline(never)]
fn transfer(call: &Syscall<'_>, direction: Direction) -> Answer {
    if call.argument::<5>() != 0 {
        return Err(Errno::EINVAL);
    }
    let mut own = UserBytes::of_pieces(call);
    let bytes = own.check()?.min(MOST_AT_ONCE);
    if bytes == 0 {
        return Ok(0);
    }
    let (array, count) = (call.address::<3>(), call.argument::<4>());
    if !check_others(array, count)? {
        return Ok(0);
    }
    let id = u32::try_from(call.argument::<0>() as i32).map_err(|_| Errno::ESRCH)?;
    let space = space_of_thread(id).flatten().ok_or(Errno::ESRCH)?;
    let (mut done, mut outcome) = (0, Ok(()));
    for index in 0..count {
        if done == bytes || outcome.is_err() || call.is_killed() {
            break;
        }
        // It was checked, and may have changed since.
        let Ok([base, length]) = read_piece(array, index) else { break };
        // As on Linux, a tag of such an address is ignored.
        let at = VirtAddr(base).untagged();
        let (is_killed, length) = (|| call.is_killed(), length.min(bytes - done));
        let (copied, ended) = copy(&space, at, length, &mut own, direction, Patience::WithPager(&is_killed));
        (done, outcome) = (done + copied, ended);
    }
    if done == 0 {
        return match outcome {
            Ok(()) => Ok(0),
            Err(Stop::Other(FaultError::OutOfMemory)) => Err(Errno::ENOMEM),
            Err(_) => Err(Errno::EFAULT),
        };
    }
    // The missing frames are not this call's any more.
    call.thread.take_shortage();
    Ok(done)
}

/// Checks the list of the other process's pieces; whether one of them has bytes. Their addresses are not looked at.
fn check_others(array: VirtAddr, count: u64) -> Result<bool, Errno> {
    if count > PIECES {
        return Err(Errno::EINVAL);
    }
    let mut has_bytes = false;
    for index in 0..count {
        let [_, length] = read_piece(array, index)?;
        if length > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        has_bytes |= length != 0;
    }
    Ok(has_bytes)
}

/// Reads or writes the memory of an open `/proc/PID/mem` from `at` on, in one piece of the caller's (Linux: `mem_rw`).
/// No pager is asked for a page, a stack grows wherever a byte is below it, and where a byte of the caller's is missing
/// nothing counts.
///
/// # Errors
/// `EIO`: there is no byte. `EFAULT`: one of the caller's. `ENOMEM`.
pub(super) fn access_memory(
    call: &Syscall<'_>,
    space: Option<&SpaceHandle>,
    at: u64,
    length: u64,
    own: &mut UserBytes,
    direction: Direction,
) -> Answer {
    let Some(space) = space.and_then(SpaceHandle::upgrade) else { return Ok(0) };
    let (at, is_killed) = (VirtAddr(at).untagged(), || call.is_killed());
    let patience = Patience::WithoutPager(&is_killed);
    let grow = |at| space.grow_stack(at, &call.task.process().limits.of_space()).is_ok();
    let (mut done, mut has_grown) = (0, false);
    let ended = loop {
        let (copied, ended) = copy(&space, at + done, length - done, own, direction, patience);
        done += copied;
        // A stack that has grown, and is unmapped again, does not grow a second time for one byte.
        has_grown &= copied == 0;
        let Err(Stop::Other(FaultError::NotMapped)) = ended else { break ended };
        if has_grown || !grow(at + done) {
            break ended;
        }
        has_grown = true;
    };
    match (done, ended) {
        (_, Err(Stop::Own)) => Err(Errno::EFAULT),
        (0, Err(Stop::Other(FaultError::OutOfMemory))) => Err(Errno::ENOMEM),
        (0, Err(_)) => Err(Errno::EIO),
        (done, _) => Ok(done),
    }
}

/// Copies up to `length` bytes of the other process from `base` on; returns how many, and why no more. `own` is then after
/// these.
fn copy(
    space: &Space,
    base: VirtAddr,
    length: u64,
    own: &mut UserBytes,
    direction: Direction,
    patience: Patience<'_>,
) -> (u64, Result<(), Stop>) {
    let cpu = this_cpu();
    let mut buffer = [0; PIECE];
    let mut done = 0;
    while done < length {
        let Some(at) = base.checked_add(done) else { return (done, Err(FaultError::NotMapped.into())) };
        let in_page = PAGE - at.0 % PAGE;
        let count = (length - done).min(in_page).min(PIECE as u64) as usize;
        let piece = buffer.get_mut(..count).unwrap_or_default();
        let before = own.clone();
        let moved = match direction {
            Direction::Read => space.read_bytes_within(cpu, at, piece, patience).map(|()| own.store(piece)),
            Direction::Write => {
                let copied = own.copy_up_to(piece);
                let piece = piece.get(..copied).unwrap_or_default();
                space.write_bytes_within(cpu, at, piece, patience).map(|()| copied)
            }
        };
        match moved {
            Ok(moved) => {
                done += moved as u64;
                if moved < count {
                    return (done, Err(Stop::Own));
                }
            }
            Err(error) => {
                *own = before;
                return (done, Err(error.into()));
            }
        }
        relax();
        if patience.is_over() {
            return (done, Err(FaultError::Unusable.into()));
        }
    }
    (done, Ok(()))
}
