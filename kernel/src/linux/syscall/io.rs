//! The console, the only file: descriptors 0, 1 and 2.

use granule_abi::process::IoVec;
use granule_arch::addr::VirtAddr;

use super::{Answer, MOST_AT_ONCE, Syscall, read_quads};
use crate::chip::console;
use crate::linux::errno::Errno;
use crate::sched::{Thread, Work, relax};
use crate::uaccess;

/// Pieces that `readv` and `writev` take.
const PIECES: u64 = 1024;

fn check_descriptor(descriptor: u64) -> Result<(), Errno> {
    if descriptor as u32 <= 2 { Ok(()) } else { Err(Errno::EBADF) }
}

pub(super) fn write(call: &mut Syscall<'_>) -> Answer {
    check_descriptor(call.argument::<0>())?;
    let (base, length) = (call.address::<1>(), call.argument::<2>());
    check_range(base, length)?;
    let mut from = UserBytes { base: base.0, left: length, ..UserBytes::default() };
    print(call.thread, length.min(MOST_AT_ONCE), &mut from)
}

pub(super) fn read(call: &mut Syscall<'_>) -> Answer {
    check_descriptor(call.argument::<0>())?;
    check_range(call.address::<1>(), call.argument::<2>())?;
    input(call.address::<1>(), call.argument::<2>().min(MOST_AT_ONCE))
}

/// Checks that the range is of EL0, also if it is empty or longer than one call moves.
fn check_range(start: VirtAddr, bytes: u64) -> Result<(), Errno> {
    if uaccess::is_user_range(start, bytes as usize) { Ok(()) } else { Err(Errno::EFAULT) }
}

pub(super) fn writev(call: &mut Syscall<'_>) -> Answer {
    let bytes = check_pieces(call)?;
    let (array, count) = (call.address::<1>(), call.argument::<2>());
    print(call.thread, bytes.min(MOST_AT_ONCE), &mut UserBytes { array, count, ..UserBytes::default() })
}

/// Checks a list of pieces completely before any is moved: it can be read, no length is negative, and then all are of
/// EL0 (`import_iovec`). Returns the bytes of all.
fn check_pieces(call: &Syscall<'_>) -> Result<u64, Errno> {
    check_descriptor(call.argument::<0>())?;
    let (array, count) = (call.address::<1>(), call.argument::<2>());
    if count > PIECES {
        return Err(Errno::EINVAL);
    }
    let (mut bytes, mut of_el0) = (0_u64, Ok(()));
    // Of a single piece, Linux checks only the part that it moves.
    let most = if count == 1 { MOST_AT_ONCE } else { u64::MAX };
    for index in 0..count {
        let [base, length] = read_piece(array, index)?;
        if length > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        bytes = bytes.saturating_add(length);
        of_el0 = of_el0.and(check_range(VirtAddr(base), length.min(most)));
    }
    of_el0.map(|()| bytes)
}

fn read_piece(array: VirtAddr, index: u64) -> Result<[u64; 2], Errno> {
    read_quads(VirtAddr(array.0.wrapping_add(index.wrapping_mul(size_of::<IoVec>() as u64))))
}

/// Bytes of EL0's, one after the other: of one piece, then of those of a list.
#[derive(Default)]
struct UserBytes {
    base: u64,
    left: u64,
    array: VirtAddr,
    count: u64,
    next: u64,
}

impl UserBytes {
    /// Copies the next bytes.
    fn copy(&mut self, mut to: &mut [u8]) -> Result<(), Errno> {
        while !to.is_empty() {
            if self.left == 0 {
                // Read again: the memory may have changed since the check, and the list be shorter.
                if self.next == self.count {
                    return Err(Errno::EFAULT);
                }
                [self.base, self.left] = read_piece(self.array, self.next)?;
                self.next += 1;
                relax();
                continue;
            }
            let bytes = self.left.min(to.len() as u64);
            let (part, rest) = to.split_at_mut_checked(bytes as usize).unwrap_or_default();
            uaccess::copy_from_user(part, VirtAddr(self.base))?;
            (self.base, self.left) = (self.base.wrapping_add(bytes), self.left - bytes);
            to = rest;
        }
        Ok(())
    }
}

/// Reads piece after piece, until one is not filled.
pub(super) fn readv(call: &mut Syscall<'_>) -> Answer {
    check_pieces(call)?;
    let (array, count) = (call.address::<1>(), call.argument::<2>());
    let mut moved = 0;
    for index in 0..count {
        // A piece begins without a check for signals, and there are many.
        if moved != 0 && call.thread.has(Work::SIGNAL) {
            break;
        }
        // Read again: the memory may have changed since the check.
        let answer = read_piece(array, index).and_then(|[base, length]| match length {
            0 => Ok((0, 0)),
            length if length > i64::MAX as u64 => Err(Errno::EINVAL),
            length => input(VirtAddr(base), length.min(MOST_AT_ONCE - moved)).map(|done| (done, length)),
        });
        match answer {
            Ok((done, length)) => {
                moved += done;
                if done < length {
                    break;
                }
            }
            Err(errno) if moved == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(moved)
}

/// Writes to the console; returns how many bytes of EL0's were read and written before a signal came.
///
/// As Linux's terminal (`iterate_tty_write`), it copies 2048 bytes at once, of as many pieces as have them. If one of them
/// cannot be read, none of them is written.
fn print(thread: &Thread, bytes: u64, from: &mut UserBytes) -> Answer {
    const AT_ONCE: usize = 2048;
    /// Bytes written in one piece: other output comes before it or after it.
    const CHUNK: usize = 256;
    let mut buffer = [0; AT_ONCE];
    let mut done = 0;
    while done < bytes {
        let Some(taken) = buffer.get_mut(..(bytes - done).min(AT_ONCE as u64) as usize) else { break };
        if let Err(error) = from.copy(taken) {
            return if done == 0 { Err(error) } else { Ok(done) };
        }
        for chunk in taken.chunks(CHUNK) {
            if done != 0 && thread.has(Work::SIGNAL) {
                return Ok(done);
            }
            if !console::wait_for_room() {
                return if done == 0 { Err(Errno::ERESTARTSYS) } else { Ok(done) };
            }
            console::write_text(chunk);
            done += chunk.len() as u64;
            relax();
        }
    }
    Ok(done)
}

/// Waits for input, and reads what is available.
fn input(to: VirtAddr, bytes: u64) -> Answer {
    if bytes == 0 {
        return Ok(0);
    }
    check_range(to, bytes)?;
    let mut done = 0;
    let mut next = Some(console::wait_for_byte().ok_or(Errno::ERESTARTSYS)?);
    while let Some(byte) = next {
        uaccess::copy_to_user(VirtAddr(to.0.wrapping_add(done)), &[byte])?;
        relax();
        done += 1;
        next = if done < bytes { console::try_read_byte() } else { None };
    }
    Ok(done)
}

/// Without effect: the console stays open.
pub(super) fn close(call: &mut Syscall<'_>) -> Answer {
    check_descriptor(call.argument::<0>()).map(|()| 0)
}

/// The console has no settings: it is not a terminal for programs.
pub(super) fn ioctl(call: &mut Syscall<'_>) -> Answer {
    check_descriptor(call.argument::<0>())?;
    Err(Errno::ENOTTY)
}
