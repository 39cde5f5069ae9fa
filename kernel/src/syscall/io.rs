//! The console, which is all that descriptors 0, 1 and 2 can be: there are no files.

use granule_abi::process::IoVec;
use granule_arch::addr::VirtAddr;

use super::{Answer, Call, read_quads};
use crate::drivers::console;
use crate::errno::Errno;
use crate::sched::{Thread, Work};
use crate::uaccess;

/// The most that one call moves (Linux's MAX_RW_COUNT), and pieces that `readv` and `writev` take.
const MOST: u64 = 0x7fff_f000;
const PIECES: u64 = 1024;

fn check_descriptor(descriptor: u64) -> Result<(), Errno> {
    if descriptor as u32 <= 2 { Ok(()) } else { Err(Errno::EBADF) }
}

pub(super) fn write(call: &mut Call<'_>) -> Answer {
    check_descriptor(call.argument::<0>())?;
    print(call.thread, call.address::<1>(), call.argument::<2>().min(MOST))
}

pub(super) fn read(call: &mut Call<'_>) -> Answer {
    check_descriptor(call.argument::<0>())?;
    input(call.address::<1>(), call.argument::<2>().min(MOST))
}

pub(super) fn writev(call: &mut Call<'_>) -> Answer {
    let thread = call.thread;
    each_piece(call, |from, bytes| print(thread, from, bytes))
}

pub(super) fn readv(call: &mut Call<'_>) -> Answer {
    each_piece(call, input)
}

/// Moves piece after piece, until one is not moved whole.
fn each_piece(call: &Call<'_>, transfer: impl Fn(VirtAddr, u64) -> Answer) -> Answer {
    check_descriptor(call.argument::<0>())?;
    let (array, count) = (call.address::<1>(), call.argument::<2>());
    if count > PIECES {
        return Err(Errno::EINVAL);
    }
    let mut moved = 0;
    for index in 0..count {
        let at = VirtAddr(array.0.wrapping_add(index * size_of::<IoVec>() as u64));
        let answer = read_quads(at).and_then(|[base, length]| match length {
            0 => Ok((0, 0)),
            length if length > i64::MAX as u64 => Err(Errno::EINVAL),
            length => transfer(VirtAddr(base), length.min(MOST - moved)).map(|done| (done, length)),
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

/// Writes to the console; how many bytes of EL0's could be read, and were written before a signal came.
fn print(thread: &Thread, from: VirtAddr, bytes: u64) -> Answer {
    /// What is written in one piece: others' output comes before it or behind it.
    const CHUNK: usize = 256;
    let mut buffer = [0; CHUNK];
    let mut done = 0;
    while done < bytes && (done == 0 || !thread.has(Work::SIGNAL)) {
        let chunk = &mut buffer[..(bytes - done).min(CHUNK as u64) as usize];
        if let Err(errno) = uaccess::copy_from_user(chunk, VirtAddr(from.0.wrapping_add(done))) {
            return if done == 0 { Err(errno) } else { Ok(done) };
        }
        console::write_text(chunk);
        done += chunk.len() as u64;
    }
    Ok(done)
}

/// Waits for input, and takes what there is.
fn input(to: VirtAddr, bytes: u64) -> Answer {
    if bytes == 0 {
        return Ok(0);
    }
    if !uaccess::is_user_range(to, bytes as usize) {
        return Err(Errno::EFAULT);
    }
    let mut done = 0;
    let mut next = Some(console::wait_for_byte().ok_or(Errno::ERESTARTSYS)?);
    while let Some(byte) = next {
        uaccess::copy_to_user(VirtAddr(to.0 + done), &[byte])?;
        done += 1;
        next = if done < bytes { console::try_read_byte() } else { None };
    }
    Ok(done)
}

/// Nothing stays open or closed: the console is always there.
pub(super) fn close(call: &mut Call<'_>) -> Answer {
    check_descriptor(call.argument::<0>()).map(|()| 0)
}

/// The console has no settings that a program could ask for: it is no terminal by that.
pub(super) fn ioctl(call: &mut Call<'_>) -> Answer {
    check_descriptor(call.argument::<0>())?;
    Err(Errno::ENOTTY)
}
