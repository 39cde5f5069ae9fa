//! userfaultfd: the structures of its calls. The space ([`Userfaultfd`]) does their work.

use granule_abi::file::{O_CLOEXEC, O_NONBLOCK, O_RDONLY};
use granule_abi::userfaultfd::{
    UFFD_API, UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP,
    UFFD_PAGEFAULT_FLAG_MINOR, UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, UFFD_USER_MODE_ONLY, UFFDIO_API,
    UFFDIO_CONTINUE, UFFDIO_CONTINUE_MODE_DONTWAKE, UFFDIO_CONTINUE_MODE_WP, UFFDIO_COPY, UFFDIO_COPY_MODE_DONTWAKE,
    UFFDIO_COPY_MODE_WP, UFFDIO_MOVE, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, UFFDIO_MOVE_MODE_DONTWAKE, UFFDIO_POISON,
    UFFDIO_REGISTER, UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
    UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_WRITEPROTECT, UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
    UFFDIO_WRITEPROTECT_MODE_WP, UFFDIO_ZEROPAGE, UFFDIO_ZEROPAGE_MODE_DONTWAKE, ioctl_bit,
};
use granule_arch::addr::{PAGE, VirtAddr};

use super::io::{UserBytes, most_files};
use super::{Answer, Syscall, read_quads, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::open::{Kind, OpenFile, if_not_ready};
use crate::linux::file::table::OnExec;
use crate::linux::file::userfaultfd::UserfaultFile;
use crate::mm::counted::Counted;
use crate::mm::space::{
    Content, Enrolment, Features, FillError, Holes, Mark, Message, ReadError, Reason, Space, Transfer, UserfaultError,
    Userfaultfd,
};
use crate::sched::IfNotReady;
use crate::smp::this_cpu;
use crate::uaccess;

/// Bytes of a message.
const MESSAGE: u64 = 32;

impl From<UserfaultError> for Errno {
    #[cold]
    fn from(error: UserfaultError) -> Self {
        match error {
            UserfaultError::Invalid => Self::EINVAL,
            UserfaultError::NotPermitted => Self::EPERM,
            UserfaultError::Busy => Self::EBUSY,
            UserfaultError::NotRegistered => Self::ENOENT,
            UserfaultError::Changing => Self::EAGAIN,
            UserfaultError::Ended => Self::ESRCH,
            UserfaultError::OutOfMemory => Self::ENOMEM,
        }
    }
}

impl From<FillError> for Errno {
    #[cold]
    fn from(error: FillError) -> Self {
        match error {
            FillError::Call(error) => error.into(),
            FillError::Exists => Self::EEXIST,
            FillError::Fault => Self::EFAULT,
            FillError::Hole => Self::ENOENT,
            FillError::Shared => Self::EBUSY,
            FillError::Interrupted => Self::EINTR,
        }
    }
}

pub(super) fn userfaultfd(call: &mut Syscall<'_>) -> Answer {
    create(call, call.argument::<0>() as u32)
}

/// A new userfaultfd with these flags: of the call, or of `/dev/userfaultfd`.
pub(super) fn create(call: &Syscall<'_>, flags: u32) -> Answer {
    if flags & !(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY) != 0 {
        return Err(Errno::EINVAL);
    }
    let pager = Userfaultfd::new(&call.task.space_ref(), flags & UFFD_USER_MODE_ONLY != 0, flags)?;
    add(call, pager, flags)
}

/// A descriptor for `pager`, with the `O_` flags of `flags`.
fn add(call: &Syscall<'_>, pager: Counted<Userfaultfd>, flags: u32) -> Answer {
    let file = OpenFile::new(Kind::Userfault(UserfaultFile::new(pager)), O_RDONLY | flags & O_NONBLOCK)?;
    let descriptor = call.task.files().add(file.clone(), 0, most_files(call), OnExec::requested(flags & O_CLOEXEC))?;
    if let Kind::Userfault(file) = file.kind() {
        file.open();
    }
    Ok(descriptor.into())
}

/// Reads as many messages as `bytes` has room for: waits for the first, if the file is waited for.
#[cold]
pub(super) fn read(call: &Syscall<'_>, flags: u32, pager: &Userfaultfd, bytes: u64, to: &mut UserBytes) -> Answer {
    if !pager.is_agreed() {
        return Err(Errno::EINVAL);
    }
    let mut done = 0;
    while bytes - done >= MESSAGE {
        let reading = match pager.read(if done == 0 { if_not_ready(flags) } else { IfNotReady::Fail }) {
            Ok(reading) => reading,
            Err(_) if done != 0 => return Ok(done),
            Err(ReadError::NotAgreed) => return Err(Errno::EINVAL),
            Err(ReadError::Nothing) => return Err(Errno::EAGAIN),
            Err(ReadError::Interrupted) => return Err(Errno::ERESTARTSYS),
        };
        let words = match words_of(call, reading.message()) {
            Ok(words) => words,
            // The event is there to be read again.
            Err(error) if done == 0 => return Err(error),
            Err(_) => return Ok(done),
        };
        // As on Linux, what cannot be stored is lost.
        reading.done();
        let mut bytes = [0; MESSAGE as usize];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        if to.store(&bytes) < bytes.len() {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        done += MESSAGE;
    }
    if done == 0 { Err(Errno::EINVAL) } else { Ok(done) }
}

/// `struct uffd_msg`, in words. The message of a fork has a new descriptor.
fn words_of(call: &Syscall<'_>, message: &Message) -> Result<[u64; 4], Errno> {
    Ok(match message {
        Message::Fault(fault) => {
            let write = if fault.is_write { UFFD_PAGEFAULT_FLAG_WRITE } else { 0 };
            let reason = match fault.reason {
                Reason::Missing => 0,
                Reason::Minor => UFFD_PAGEFAULT_FLAG_MINOR,
                Reason::WriteProtected => UFFD_PAGEFAULT_FLAG_WP,
            };
            let thread = fault.thread.unwrap_or(0);
            [UFFD_EVENT_PAGEFAULT.into(), write | reason, fault.address.0, thread.into()]
        }
        Message::Fork(pager) => {
            let descriptor = add(call, pager.clone(), pager.open_flags())?;
            [UFFD_EVENT_FORK.into(), descriptor, 0, 0]
        }
        Message::Remap { from, to, bytes } => [UFFD_EVENT_REMAP.into(), from.0, to.0, *bytes],
        Message::Remove(range) => [UFFD_EVENT_REMOVE.into(), range.start().0, range.end().0, 0],
        Message::Unmap(range) => [UFFD_EVENT_UNMAP.into(), range.start().0, range.end().0, 0],
    })
}

/// The calls on a userfaultfd.
#[cold]
#[inline(never)]
pub(super) fn ioctl(pager: &Counted<Userfaultfd>, own: &Space, command: u32, at: VirtAddr) -> Answer {
    if !pager.is_agreed() {
        return if command == UFFDIO_API { api(pager, at) } else { Err(Errno::EINVAL) };
    }
    match command {
        UFFDIO_WRITEPROTECT => write_protect(pager, own, at),
        UFFDIO_COPY => copy(pager, own, at),
        UFFDIO_ZEROPAGE => fill(pager, own, at, UFFDIO_ZEROPAGE_MODE_DONTWAKE, |_| Content::Zeros),
        UFFDIO_POISON => fill(pager, own, at, UFFDIO_ZEROPAGE_MODE_DONTWAKE, |_| Content::Poison),
        UFFDIO_CONTINUE => {
            let modes = UFFDIO_CONTINUE_MODE_DONTWAKE | UFFDIO_CONTINUE_MODE_WP;
            fill(pager, own, at, modes, |mode| Content::Present(mode & UFFDIO_CONTINUE_MODE_WP != 0))
        }
        UFFDIO_MOVE => transfer(pager, own, at),
        UFFDIO_WAKE => {
            let [start, bytes] = read_quads(at)?;
            Ok(pager.wake(VirtAddr(start), bytes).map(|()| 0)?)
        }
        UFFDIO_REGISTER => register(pager, at),
        UFFDIO_UNREGISTER => {
            let [start, bytes] = read_quads(at)?;
            Ok(pager.unregister(this_cpu(), VirtAddr(start), bytes).map(|()| 0)?)
        }
        UFFDIO_API => api(pager, at),
        _ => Err(Errno::EINVAL),
    }
}

/// Checks a range as Linux's `validate_range`; returns its start.
fn checked(start: u64, bytes: u64) -> Result<VirtAddr, Errno> {
    if start.is_multiple_of(PAGE) { checked_bytes(start, bytes) } else { Err(Errno::EINVAL) }
}

/// As [`checked`], where the start need not be a page's.
fn checked_bytes(start: u64, bytes: u64) -> Result<VirtAddr, Errno> {
    let is_in_space = uaccess::END.0.checked_sub(start).is_some_and(|most| bytes <= most);
    let are_pages = bytes != 0 && bytes.is_multiple_of(PAGE);
    if are_pages && is_in_space { Ok(VirtAddr(start)) } else { Err(Errno::EINVAL) }
}

/// `UFFDIO_API`.
fn api(pager: &Userfaultfd, at: VirtAddr) -> Answer {
    let [version, features, _] = read_quads(at)?;
    let agreed = if version == UFFD_API && features & !Features::ALL.0 == 0 {
        let calls = [UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_API].map(ioctl_bit);
        write_quads(at, [UFFD_API, Features::ALL.0, calls.iter().sum()])?;
        pager.agree(Features(features)).map_err(Errno::from)
    } else {
        Err(Errno::EINVAL)
    };
    if agreed.is_err() {
        write_quads(at, [0; 3])?;
    }
    agreed.map(|()| 0)
}

/// `UFFDIO_REGISTER`.
fn register(pager: &Counted<Userfaultfd>, at: VirtAddr) -> Answer {
    let [start, bytes, mode] = read_quads(at)?;
    if mode == 0 || mode & !(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR) != 0 {
        return Err(Errno::EINVAL);
    }
    let enrolment = Enrolment {
        missing: mode & UFFDIO_REGISTER_MODE_MISSING != 0,
        minor: mode & UFFDIO_REGISTER_MODE_MINOR != 0,
        write_protected: mode & UFFDIO_REGISTER_MODE_WP != 0,
    };
    Userfaultfd::register(pager, this_cpu(), VirtAddr(start), bytes, enrolment)?;
    let calls = [UFFDIO_WAKE, UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_MOVE, UFFDIO_POISON].map(ioctl_bit);
    let protection = if enrolment.write_protected { ioctl_bit(UFFDIO_WRITEPROTECT) } else { 0 };
    let present = if enrolment.minor { ioctl_bit(UFFDIO_CONTINUE) } else { 0 };
    write_quads(VirtAddr(at.0.wrapping_add(24)), [calls.iter().sum::<u64>() | protection | present])?;
    Ok(0)
}

/// `UFFDIO_WRITEPROTECT`.
fn write_protect(pager: &Userfaultfd, own: &Space, at: VirtAddr) -> Answer {
    if pager.is_changing() {
        return Err(Errno::EAGAIN);
    }
    let [start, bytes, mode] = read_quads(at)?;
    let start = VirtAddr(start);
    let (protects, is_quiet) = (mode & UFFDIO_WRITEPROTECT_MODE_WP != 0, mode & UFFDIO_WRITEPROTECT_MODE_DONTWAKE != 0);
    let is_known = mode & !(UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE) == 0;
    if !is_known || protects && is_quiet {
        return Err(Errno::EINVAL);
    }
    pager.write_protect(this_cpu(), Some(own), start, bytes, if protects { Mark::Set } else { Mark::Clear })?;
    if !protects && !is_quiet {
        pager.wake(start, bytes)?;
    }
    Ok(0)
}

/// `UFFDIO_COPY`.
fn copy(pager: &Userfaultfd, own: &Space, at: VirtAddr) -> Answer {
    let result = VirtAddr(at.0.wrapping_add(32));
    refuse_changes(pager, result)?;
    let [to, from, bytes, mode] = read_quads(at)?;
    let from = checked_bytes(from, bytes)?;
    let to = checked(to, bytes)?;
    if mode & !(UFFDIO_COPY_MODE_DONTWAKE | UFFDIO_COPY_MODE_WP) != 0 {
        return Err(Errno::EINVAL);
    }
    let content = Content::Copy(from, mode & UFFDIO_COPY_MODE_WP != 0);
    fill_range(pager, own, result, to, bytes, content, mode & UFFDIO_COPY_MODE_DONTWAKE == 0)
}

/// `UFFDIO_MOVE`.
#[cold]
#[inline(never)]
fn transfer(pager: &Userfaultfd, own: &Space, at: VirtAddr) -> Answer {
    let result = VirtAddr(at.0.wrapping_add(32));
    refuse_changes(pager, result)?;
    let [to, from, bytes, mode] = read_quads(at)?;
    let (to, from) = (checked(to, bytes)?, checked(from, bytes)?);
    if !pager.is_of(own) || mode & !(UFFDIO_MOVE_MODE_DONTWAKE | UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES) != 0 {
        return Err(Errno::EINVAL);
    }
    let holes = if mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES != 0 { Holes::Skipped } else { Holes::Refused };
    let moved = pager.transfer(this_cpu(), own, &Transfer { to, from, bytes, holes });
    stored(pager, result, to, bytes, moved, mode & UFFDIO_MOVE_MODE_DONTWAKE == 0)
}

/// `UFFDIO_ZEROPAGE`, `UFFDIO_CONTINUE` and `UFFDIO_POISON`, with a mode of these `modes`, of which one does not wake.
fn fill(pager: &Userfaultfd, own: &Space, at: VirtAddr, modes: u64, content: impl FnOnce(u64) -> Content) -> Answer {
    let result = VirtAddr(at.0.wrapping_add(24));
    refuse_changes(pager, result)?;
    let [start, bytes, mode] = read_quads(at)?;
    let start = checked(start, bytes)?;
    if mode & !modes != 0 {
        return Err(Errno::EINVAL);
    }
    fill_range(pager, own, result, start, bytes, content(mode), mode & UFFDIO_ZEROPAGE_MODE_DONTWAKE == 0)
}

/// Fails with `EAGAIN`, at `result` too, while an event is not read.
fn refuse_changes(pager: &Userfaultfd, result: VirtAddr) -> Result<(), Errno> {
    if pager.is_changing() {
        write_quads(result, [Errno::EAGAIN.returned()])?;
        return Err(Errno::EAGAIN);
    }
    Ok(())
}

/// Fills pages, stores at `result` how many bytes that were or why none, and wakes the threads that wait for them.
fn fill_range(
    pager: &Userfaultfd,
    own: &Space,
    result: VirtAddr,
    start: VirtAddr,
    bytes: u64,
    content: Content,
    wakes: bool,
) -> Answer {
    stored(pager, result, start, bytes, pager.fill(this_cpu(), Some(own), start, bytes, content), wakes)
}

/// Stores at `result` how many bytes from `start` on are `done`, of as many as were asked for, or why none, and wakes the
/// threads that wait for them.
#[inline(always)]
fn stored(
    pager: &Userfaultfd,
    result: VirtAddr,
    start: VirtAddr,
    bytes: u64,
    (done, filled): (u64, Result<(), FillError>),
    wakes: bool,
) -> Answer {
    let filled = match filled {
        // Nothing is stored.
        Err(FillError::Call(UserfaultError::Ended)) if done == 0 => return Err(Errno::ESRCH),
        Err(error) if done == 0 => Err(Errno::from(error)),
        _ => Ok(done),
    };
    let stored = filled.unwrap_or_else(Errno::returned);
    write_quads(result, [stored])?;
    let done = filled?;
    if wakes {
        pager.wake(start, done)?;
    }
    if done == bytes { Ok(0) } else { Err(Errno::EAGAIN) }
}
