//! Calls that copy between the caller and another process: process_vm_readv, process_vm_writev.
//!
//! There is one user, root, which may do so with every process. Bytes go through a buffer of 2 KiB on the kernel's stack, a
//! page of the other process at a time, so that nothing of one space is locked over a fault of the other.

use granule_arch::addr::{PAGE, VirtAddr};

use super::io::{PIECE, PIECES, UserBytes, read_piece};
use super::{Answer, MOST_AT_ONCE, Syscall};
use crate::linux::errno::Errno;
use crate::linux::process::tree::space_of_thread;
use crate::mm::space::{FaultError, Space};
use crate::sched::relax;
use crate::smp::this_cpu;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    /// From the other process.
    Read,
    /// To it.
    Write,
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
        let (copied, ended) = copy(call, &space, VirtAddr(base), length.min(bytes - done), &mut own, direction);
        (done, outcome) = (done + copied, ended);
    }
    if done == 0 {
        return outcome.map(|()| 0);
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

/// Copies up to `length` bytes of the other process from `base` on; returns how many, and why no more.
fn copy(
    call: &Syscall<'_>,
    space: &Space,
    base: VirtAddr,
    length: u64,
    own: &mut UserBytes,
    direction: Direction,
) -> (u64, Result<(), Errno>) {
    let (cpu, is_killed) = (this_cpu(), || call.is_killed());
    let mut buffer = [0; PIECE];
    let mut done = 0;
    while done < length {
        // As on Linux, a tag of such an address is ignored.
        let Some(at) = base.untagged().checked_add(done) else { return (done, Err(Errno::EFAULT)) };
        let in_page = PAGE - at.0 % PAGE;
        let count = (length - done).min(in_page).min(PIECE as u64) as usize;
        let piece = buffer.get_mut(..count).unwrap_or_default();
        let moved = match direction {
            Direction::Read => space.read_bytes_unless(cpu, at, piece, &is_killed).map(|()| own.store(piece)),
            Direction::Write => {
                let copied = own.copy_up_to(piece);
                let piece = piece.get(..copied).unwrap_or_default();
                space.write_bytes_unless(cpu, at, piece, &is_killed).map(|()| copied)
            }
        };
        match moved {
            Ok(moved) => {
                done += moved as u64;
                if moved < count {
                    return (done, Err(Errno::EFAULT));
                }
            }
            Err(FaultError::OutOfMemory) => return (done, Err(Errno::ENOMEM)),
            Err(_) => return (done, Err(Errno::EFAULT)),
        }
        relax();
    }
    (done, Ok(()))
}
