//! Calls for files without contents of their own: pipe2, eventfd2, and what read and write do with pipes, event
//! counters and the files of a process.

use granule_abi::file::{
    EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, O_CLOEXEC, O_DIRECT, O_NONBLOCK, O_NOTIFICATION_PIPE, O_RDONLY, O_RDWR,
    O_WRONLY, RNDGETENTCNT,
};
use granule_abi::signal::SIGPIPE;
use granule_abi::userfaultfd::USERFAULTFD_IOC_NEW;
use granule_arch::addr::{PAGE, VirtAddr};

use super::io::{UserBytes, most_files, send_self};
use super::remote::{self, Direction};
use super::{Answer, Syscall, userfault};
use crate::linux::errno::Errno;
use crate::linux::file::device::KernelDevice;
use crate::linux::file::event::EventCounter;
use crate::linux::file::open::{FileRef, Kind, NO_SIGNAL, OpenFile, if_not_ready};
use crate::linux::file::pipe::{self, PipeAccess, PipeEnd};
use crate::linux::file::proc::{self, ProcContents, ProcSubject};
use crate::linux::file::records::Record;
use crate::linux::file::table::OnExec;
use crate::linux::process::show;
use crate::random;
use crate::sched::{self, Work};
use crate::uaccess;

/// Bytes of a count.
const COUNT: u64 = size_of::<u64>() as u64;

/// As on Linux, nothing stays where a descriptor cannot be opened or stored.
pub(super) fn pipe2(call: &mut Syscall<'_>) -> Answer {
    let (to, flags) = (call.address::<0>(), call.argument::<1>() as u32);
    if flags & !(O_CLOEXEC | O_NONBLOCK | O_DIRECT | O_NOTIFICATION_PIPE) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & O_NOTIFICATION_PIPE != 0 {
        return Err(Errno::ENOPKG);
    }
    let [reader, writer] = pipe::create()?;
    let reader = OpenFile::new(Kind::Pipe(reader), O_RDONLY | flags & O_NONBLOCK)?;
    let writer = OpenFile::new(Kind::Pipe(writer), O_WRONLY | flags & (O_NONBLOCK | O_DIRECT))?;
    let on_exec = OnExec::requested(flags & O_CLOEXEC);
    let read = add(call, reader.clone(), on_exec)?;
    let added = add(call, writer.clone(), on_exec).and_then(|write| {
        let both = [read as u32, write as u32].map(u32::to_le_bytes);
        let stored = uaccess::copy_to_user(to, both.as_flattened());
        stored.inspect_err(|_| call.task.files().take_back(write as u32, &writer))?;
        Ok(0)
    });
    added.inspect_err(|_| call.task.files().take_back(read as u32, &reader))
}

pub(super) fn eventfd2(call: &mut Syscall<'_>) -> Answer {
    let (count, flags) = (call.argument::<0>() as u32, call.argument::<1>() as u32);
    if flags & !(EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let counter = EventCounter::new(count.into(), flags);
    let file = OpenFile::new(Kind::Event(counter), O_RDWR | flags & EFD_NONBLOCK)?;
    add(call, file, OnExec::requested(flags & EFD_CLOEXEC))
}

/// Opens the file under the lowest free descriptor.
pub(super) fn add(call: &Syscall<'_>, file: FileRef, on_exec: OnExec) -> Answer {
    call.task.files().add(file, 0, most_files(call), on_exec).map(u64::from)
}

fn access(flags: u32, bytes: u64) -> PipeAccess {
    PipeAccess { bytes, if_not_ready: if_not_ready(flags), is_packets: flags & O_DIRECT != 0 }
}

#[inline(never)]
pub(super) fn read_pipe(flags: u32, end: &PipeEnd, bytes: u64, to: &mut UserBytes) -> Answer {
    end.read(access(flags, bytes), &mut |piece| to.store(piece))
}

#[inline(never)]
pub(super) fn write_pipe(
    call: &Syscall<'_>,
    flags: u32,
    end: &PipeEnd,
    bytes: u64,
    fetch: &mut dyn FnMut(&mut [u8]) -> usize,
) -> Answer {
    let (written, outcome) = end.write(access(flags, bytes), fetch);
    if outcome == Err(Errno::EPIPE) && flags & NO_SIGNAL == 0 {
        send_self(call, SIGPIPE)?;
    }
    if written != 0 {
        // The missing frames are not this call's any more.
        call.thread.take_shortage();
        return Ok(written);
    }
    outcome.map(|()| 0)
}

/// Takes the count, which is lost where it cannot be stored, as on Linux.
#[inline(never)]
pub(super) fn read_count(bytes: u64, to: &mut UserBytes, read: impl FnOnce() -> Result<u64, Errno>) -> Answer {
    if bytes < COUNT {
        return Err(Errno::EINVAL);
    }
    let count = read()?;
    if to.store(&count.to_le_bytes()) as u64 == COUNT { Ok(COUNT) } else { Err(Errno::EFAULT) }
}

/// Each piece is a write of its own, as on Linux, and has the size of a count.
#[inline(never)]
pub(super) fn write_event(flags: u32, counter: &EventCounter, bytes: u64, from: &mut UserBytes) -> Answer {
    let mut done = 0;
    let outcome = loop {
        if let Err(error) = write_count(flags, counter, bytes - done, from) {
            break Err(error);
        }
        done += COUNT;
        if done >= bytes {
            break Ok(());
        }
    };
    if done == 0 { outcome.map(|()| 0) } else { Ok(done) }
}

/// Adds the count that the next piece is; there are `left` bytes in all.
fn write_count(flags: u32, counter: &EventCounter, left: u64, from: &mut UserBytes) -> Result<(), Errno> {
    if left < COUNT {
        return Err(Errno::EINVAL);
    }
    from.advance()?;
    if from.left != COUNT {
        return Err(Errno::EINVAL);
    }
    let mut count = [0; COUNT as usize];
    if from.copy_up_to(&mut count) < count.len() {
        return Err(Errno::EFAULT);
    }
    counter.write(u64::from_le_bytes(count), if_not_ready(flags))
}

/// Writes to a device of the kernel's own. Only what is to be mixed into random numbers is read.
#[inline(never)]
pub(super) fn write_device(
    call: &Syscall<'_>,
    device: KernelDevice,
    bytes: u64,
    fetch: &mut dyn FnMut(&mut [u8]) -> usize,
) -> Answer {
    match device {
        KernelDevice::Null | KernelDevice::Zero => return Ok(bytes),
        KernelDevice::Full => return Err(Errno::ENOSPC),
        _ => {}
    }
    let (mut done, mut buffer) = (0, [0; 256]);
    while done < bytes {
        let wanted = buffer.get_mut(..(bytes - done).min(256) as usize).unwrap_or_default();
        let copied = fetch(wanted);
        random::mix(wanted.get(..copied).unwrap_or_default());
        done += copied as u64;
        if copied < wanted.len() {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        sched::relax();
        // As on Linux: at the end of each page.
        if done.is_multiple_of(PAGE) && call.thread.has(Work::SIGNAL) {
            break;
        }
    }
    Ok(done)
}

/// The commands of a device of the kernel's own.
pub(super) fn device_ioctl(call: &Syscall<'_>, device: KernelDevice, command: u32, at: VirtAddr) -> Answer {
    /// Bits of randomness once the numbers are seeded, which Linux counts so.
    const ENTROPY: u32 = 256;
    match (device, command) {
        (KernelDevice::Userfaultfd, USERFAULTFD_IOC_NEW) => userfault::create(call, at.0 as u32),
        (device, RNDGETENTCNT) if device.is_random() => {
            uaccess::copy_to_user(at, &ENTROPY.to_le_bytes())?;
            Ok(0)
        }
        (KernelDevice::Null | KernelDevice::Zero | KernelDevice::Full, _) => Err(Errno::ENOTTY),
        _ => Err(Errno::EINVAL),
    }
}

/// Reads a file of a process from `position` on; returns how many bytes there were, and the position after them.
#[inline(never)]
pub(super) fn read_proc(
    call: &Syscall<'_>,
    contents: &ProcContents,
    position: u64,
    bytes: u64,
    to: &mut UserBytes,
) -> Result<(u64, u64), Errno> {
    let following =
        |of: &ProcSubject, file, from, record: &mut Record| show::following(call.task, of, file, from, record);
    in_pieces(call, contents, position, bytes, to, |at, length, to| match contents {
        ProcContents::Memory(space) => remote::access_memory(call, space.as_ref(), at, length, to, Direction::Read),
        _ => {
            // Where nothing more is stored, the call ends.
            let mut store = |piece: &[u8]| if sched::is_killed() { 0 } else { to.store(piece) };
            contents.read(at, length, &following, &mut store)
        }
    })
}

/// Writes to a file of a process from `position` on; returns how many bytes, and the position after them.
#[inline(never)]
pub(super) fn write_proc(
    call: &Syscall<'_>,
    contents: &ProcContents,
    position: u64,
    bytes: u64,
    from: &mut UserBytes,
) -> Result<(u64, u64), Errno> {
    let written = in_pieces(call, contents, position, bytes, from, |at, length, from| match contents {
        ProcContents::Memory(space) => remote::access_memory(call, space.as_ref(), at, length, from, Direction::Write),
        ProcContents::ClearRefs(of) => age(of, length, from),
        ProcContents::Pagemap(_) | ProcContents::Records(..) => Err(Errno::EINVAL),
    })?;
    // An order is at no position.
    Ok(if let ProcContents::ClearRefs(_) = contents { (written.0, position) } else { written })
}

/// Makes pages of a process old by an order of `length` bytes; returns how many of them were read.
fn age(of: &ProcSubject, length: u64, from: &mut UserBytes) -> Answer {
    let mut order = [0; proc::ORDER];
    let order = order.get_mut(..length.min(proc::ORDER as u64) as usize).unwrap_or_default();
    if from.copy_up_to(order) < order.len() {
        return Err(Errno::EFAULT);
    }
    show::age(of, proc::order(order)?)?;
    Ok(order.len() as u64)
}

/// Has `transfer` transfer each piece of the caller's, which is a read or write of its own, as on Linux, until one is
/// shorter; returns how many bytes there were, and the position after them.
fn in_pieces(
    call: &Syscall<'_>,
    contents: &ProcContents,
    position: u64,
    bytes: u64,
    own: &mut UserBytes,
    mut transfer: impl FnMut(u64, u64, &mut UserBytes) -> Answer,
) -> Result<(u64, u64), Errno> {
    contents.check_end(position, bytes)?;
    let (mut done, mut is_first) = (0, true);
    loop {
        // The first piece is transferred also if it is empty, and the position is checked.
        let found = if is_first { own.begin() } else { own.advance() };
        is_first = false;
        let length = found.map(|()| own.left.min(bytes - done));
        let moved = length.and_then(|length| Ok((transfer(position.wrapping_add(done), length, own)?, length)));
        match moved {
            Ok((moved, length)) => {
                done += moved;
                if moved < length || done >= bytes {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    if done != 0 {
        // The missing frames are not this call's any more.
        call.thread.take_shortage();
    }
    Ok((done, position.wrapping_add(done)))
}
