//! Calls that move bytes from one file to another: sendfile, copy_file_range.
//!
//! The write of the second file fetches what the read of the first has, piece by piece: only the buffer of that write is
//! the kernel's. As there, threads run between two pieces, and only a signal that ends the process ends a step of 16
//! pages of a regular file; a pipe or console waits interruptibly.

use granule_abi::file::{O_APPEND, O_NONBLOCK};
use granule_abi::limits::RLIMIT_FSIZE;
use granule_arch::addr::{PAGE, VirtAddr};

use super::io::{check_file_limit, file, print, write_to};
use super::streams::{write_device, write_pipe};
use super::{Answer, MOST_AT_ONCE, Syscall, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::device::KernelDevice;
use crate::linux::file::open::{self, FileRef, Kind, NO_SIGNAL, OpenFile};
use crate::linux::file::pipe::PipeEnd;
use crate::mm::space::WriteAt;
use crate::sched::Work;
use crate::uaccess::read_quads;

/// The position at an address of the caller's; none at 0.
fn position_at(at: VirtAddr) -> Result<Option<u64>, Errno> {
    Ok(if at.0 == 0 { None } else { Some(read_quads::<1>(at)?[0]) })
}

/// Moves a position after so many bytes: the file's own, where the caller has none. A device stays where it is.
fn advance(file: &OpenFile, at: VirtAddr, position: u64, bytes: u64) -> Result<(), Errno> {
    match (file.kernel_device(), at.0) {
        (Some(_), _) => {}
        (None, 0) => file.set_position(position + bytes),
        _ => write_quads(at, [position + bytes])?,
    }
    Ok(())
}

pub(super) fn sendfile(call: &mut Syscall<'_>) -> Answer {
    let (at, count) = (call.address::<2>(), call.argument::<3>());
    let asked = position_at(at)?;
    let input = file(call, call.argument::<1>())?;
    input.check_readable()?;
    if asked.is_some() {
        input.check_seekable()?;
    }
    let position = asked.unwrap_or_else(|| input.position());
    open::check_end(position, count)?;
    let output = file(call, call.argument::<0>())?;
    output.check_writable()?;
    // As on Linux: only a pipe takes bytes of what has no positions.
    let is_seekable =
        matches!(output.kind(), Kind::Pipe(_)) || input.check_seekable().is_ok() && output.flags() & O_APPEND == 0;
    if !is_seekable {
        return Err(Errno::EINVAL);
    }
    let to = output.position();
    let moved = transfer(call, (&input, position), (&output, to), count)?;
    if moved != 0 {
        advance(&output, VirtAddr(0), to, moved)?;
        advance(&input, at, position, moved)?;
    }
    Ok(moved)
}

/// Moves up to `count` bytes between positions of two files; returns how many.
fn transfer(call: &Syscall<'_>, (input, from): (&OpenFile, u64), (output, to): (&OpenFile, u64), count: u64) -> Answer {
    if count == 0 {
        return Ok(0);
    }
    input.check_has_bytes()?;
    output.check_has_bytes()?;
    match input.kernel_device() {
        Some(KernelDevice::Null) => return Err(Errno::EINVAL),
        None if input.regular().is_none() => return Err(Errno::EINVAL),
        _ => {}
    }
    let mut contents = input.contents_at(from, count, MOST_AT_ONCE)?;
    let bytes = contents.bytes();
    let mut fetch = |piece: &mut [u8]| contents.copy(piece);
    let moved = match (output.kind(), output.kernel_device()) {
        _ if bytes == 0 => Ok(0),
        (_, Some(KernelDevice::Full)) => Err(Errno::EINVAL),
        (_, Some(device)) => write_device(call, device, bytes, &mut fetch),
        (Kind::Node(_), _) => {
            open::check_end(to, bytes)?;
            send_to_file(call, output, to, bytes, &mut fetch)
        }
        (Kind::Pipe(end), _) => send_to_pipe(call, output.flags() & O_NONBLOCK, end, bytes, &mut fetch),
        (Kind::Console, _) => print(call.thread, bytes, &mut fetch),
        _ => Err(Errno::EINVAL),
    };
    match moved {
        // The file has become shorter.
        Err(Errno::EFAULT) => Ok(0),
        moved => moved,
    }
}

/// As on Linux, 16 pages at a time, and no more where a signal is pending.
fn send_to_file(
    call: &Syscall<'_>,
    output: &OpenFile,
    to: u64,
    bytes: u64,
    fetch: &mut dyn FnMut(&mut [u8]) -> usize,
) -> Answer {
    let mut done = 0;
    while done < bytes {
        let step = (bytes - done).min(16 * PAGE);
        let sent = if call.thread.has(Work::SIGNAL) {
            Err(Errno::ERESTARTSYS)
        } else {
            write_to(call, output, WriteAt::Byte(to + done), step, &mut *fetch)
        };
        match sent {
            Ok((_, written)) if written == step => done += written,
            Ok((_, written)) => return Ok(done + written),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// As on Linux, waits for room once, and moves what there is room for then.
fn send_to_pipe(
    call: &Syscall<'_>,
    flags: u32,
    end: &PipeEnd,
    bytes: u64,
    fetch: &mut dyn FnMut(&mut [u8]) -> usize,
) -> Answer {
    let first = write_pipe(call, flags, end, bytes.min(PAGE), fetch)?;
    let room = (end.size() as u64).saturating_sub(first);
    let rest = if first < PAGE { 0 } else { (bytes - first).min(room) };
    let more = write_pipe(call, O_NONBLOCK | NO_SIGNAL, end, rest, fetch).unwrap_or(0);
    // The call has an answer, also where it was short of memory for more.
    call.thread.take_shortage();
    Ok(first + more)
}

pub(super) fn copy_file_range(call: &mut Syscall<'_>) -> Answer {
    let (input, output) = (file(call, call.argument::<0>())?, file(call, call.argument::<2>())?);
    let (from_at, to_at) = (call.address::<1>(), call.address::<3>());
    let from = position_at(from_at)?.unwrap_or_else(|| input.position());
    let to = position_at(to_at)?.unwrap_or_else(|| output.position());
    if call.argument::<5>() as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    check_copy(&input, &output)?;
    let count = call.argument::<4>();
    if from.checked_add(count).is_none() || to.checked_add(count).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    let Some(regular) = input.regular() else { return Ok(0) };
    let limit = call.task.process().limits.soft(RLIMIT_FSIZE);
    check_file_limit(call, to.saturating_add(1))?;
    let count = count.min(regular.contents().size().saturating_sub(from)).min(limit.saturating_sub(to));
    open::check_end(from, count)?;
    open::check_end(to, count)?;
    if is_one(&input, &output) && to + count > from && to < from + count {
        return Err(Errno::EINVAL);
    }
    let moved = transfer(call, (&input, from), (&output, to), count)?;
    if moved != 0 {
        advance(&input, from_at, from, moved)?;
        advance(&output, to_at, to, moved)?;
    }
    Ok(moved)
}

/// Whether both are open at one node.
fn is_one(input: &FileRef, output: &FileRef) -> bool {
    input.node().zip(output.node()).is_some_and(|(one, other)| core::ptr::eq(&raw const **one, &raw const **other))
}

/// The checks of two files (`generic_copy_file_checks`).
fn check_copy(input: &OpenFile, output: &OpenFile) -> Result<(), Errno> {
    let has_contents = |file: &OpenFile| file.regular().is_some() || matches!(file.kind(), Kind::Proc(_));
    if input.directory().is_ok() || output.directory().is_ok() {
        return Err(Errno::EISDIR);
    }
    if !has_contents(input) || !has_contents(output) {
        return Err(Errno::EINVAL);
    }
    input.check_readable()?;
    output.check_writable()?;
    if output.flags() & O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    let device = |file: &OpenFile| file.node().map(|node| node.device);
    if device(input) == device(output) { Ok(()) } else { Err(Errno::EXDEV) }
}
