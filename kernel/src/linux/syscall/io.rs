//! Calls for files: descriptors, reads and writes.

use granule_abi::file::{
    AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, F_ADD_SEALS, F_DUPFD, F_DUPFD_CLOEXEC, F_GET_SEALS, F_GETFD, F_GETFL,
    F_GETLK, F_GETPIPE_SZ, F_OFD_GETLK, F_OFD_SETLKW, F_SETFD, F_SETFL, F_SETLKW, F_SETPIPE_SZ, FD_CLOEXEC, FIOCLEX,
    FIONBIO, FIONCLEX, FIONREAD, O_APPEND, O_CLOEXEC, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_PATH,
};
use granule_abi::limits::{RLIMIT_FSIZE, RLIMIT_NOFILE};
use granule_abi::process::IoVec;
use granule_abi::signal::{SI_USER, SIGXFSZ};
use granule_arch::addr::{PAGE, VirtAddr};

use super::names::{umask, working_directory};
use super::process::{Path, read_path};
use super::{
    Answer, MOST_AT_ONCE, Syscall, locks, read_bytes, read_quads, scan, signal, streams, userfault, write_quads,
};
use crate::chip::console;
use crate::linux::errno::Errno;
use crate::linux::file::contents::Contents;
use crate::linux::file::files::FilePlace;
use crate::linux::file::open::{self, FileRef, Kind, OpenFile, Opened, Opening};
use crate::linux::file::proc::{ProcContents, ProcId, ProcSubject};
use crate::linux::file::table::OnExec;
use crate::linux::file::tree::NodeKind;
use crate::linux::file::walk::Follow;
use crate::linux::process::send::{self, Asked};
use crate::linux::process::signal::SignalCause;
use crate::linux::process::task::Task;
use crate::linux::process::timer::take_moments;
use crate::linux::process::{show, tree};
use crate::mm::space::WriteAt;
use crate::sched::{IfNotReady, Thread, Work, relax};
use crate::uaccess;

/// Pieces that `readv` and `writev` take.
pub(super) const PIECES: u64 = 1024;
/// Bytes that are copied at once: what is written in one call and is not longer comes in one piece.
pub(super) const PIECE: usize = 2048;

/// The file of a descriptor, also of one that is only a path.
#[inline(never)]
pub(super) fn any_file(call: &Syscall<'_>, descriptor: u64) -> Result<FileRef, Errno> {
    call.task.files().get(descriptor as u32).ok_or(Errno::EBADF)
}

/// The file of a descriptor, for reads and writes.
#[inline(never)]
pub(super) fn file(call: &Syscall<'_>, descriptor: u64) -> Result<FileRef, Errno> {
    call.task.files().get(descriptor as u32).filter(|file| !file.is_path()).ok_or(Errno::EBADF)
}

pub(super) fn write(call: &mut Syscall<'_>) -> Answer {
    let file = file(call, call.argument::<0>())?;
    file.check_writable()?;
    file.check_takes_bytes()?;
    let from = UserBytes::of_call(call)?;
    drain(call, &file, file.flags(), from.left.min(MOST_AT_ONCE), from)
}

/// Writes where the file is on, with these flags.
fn drain(call: &Syscall<'_>, file: &OpenFile, flags: u32, bytes: u64, mut from: UserBytes) -> Answer {
    if let Some(device) = file.kernel_device() {
        return streams::write_device(call, device, bytes, &mut from.fetching());
    }
    match file.kind() {
        Kind::Node(_) => {}
        Kind::Pipe(end) => return streams::write_pipe(call, flags, end, bytes, &mut from.fetching()),
        Kind::Timer(_) | Kind::Signals(_) => return Err(Errno::EINVAL),
        Kind::Event(counter) => return streams::write_event(flags, counter, bytes, &mut from),
        Kind::Proc(contents) => {
            let (written, end) = streams::write_proc(call, contents, file.position(), bytes, &mut from)?;
            file.set_position(end);
            return Ok(written);
        }
        _ => return print(call.thread, bytes, &mut from.fetching()),
    }
    if bytes == 0 {
        return Ok(0);
    }
    file.check_end(bytes)?;
    if flags & O_APPEND != 0 {
        let (end, written) = write_to(call, file, WriteAt::End, bytes, from.fetching())?;
        file.set_position(end);
        return Ok(written);
    }
    let at = file.advance(bytes);
    let written = write_to(call, file, WriteAt::Byte(at), bytes, from.fetching()).map(|(_, written)| written);
    let used = *written.as_ref().unwrap_or(&0);
    if used != bytes {
        file.move_position(at + bytes, at + used);
    }
    written
}

/// Writes the bytes that `fetch` copies to a regular file; returns where the last of them ends, and how many were written before one could not
/// be read, there was no memory, or the thread must exit.
pub(super) fn write_to(
    call: &Syscall<'_>,
    file: &OpenFile,
    at: WriteAt,
    bytes: u64,
    mut fetch: impl FnMut(&mut [u8]) -> usize,
) -> Result<(u64, u64), Errno> {
    let regular = file.regular().ok_or(Errno::ESPIPE)?;
    let limit = call.task.process().limits.soft(RLIMIT_FSIZE);
    let mut buffer = [0; PIECE];
    let (mut at, mut end, mut done) = (at, 0, 0);
    let failed = loop {
        let wanted = buffer.get_mut(..(bytes - done).min(PIECE as u64) as usize).unwrap_or_default();
        if wanted.is_empty() {
            break None;
        }
        let count = fetch(wanted);
        let piece = wanted.get(..count).unwrap_or_default();
        let (start, written) = match regular.write(at, piece, bytes - done, limit) {
            // Other refusals come first, as on Linux.
            Ok(_) if count == 0 => break Some(Errno::EFAULT),
            Ok(written) => written,
            Err(error) => break Some(error),
        };
        (end, done) = (start + written as u64, done + written as u64);
        if let WriteAt::Byte(next) = &mut at {
            *next = end;
        }
        if written < wanted.len() || call.is_killed() {
            break None;
        }
        relax();
    };
    if done != 0 {
        // The missing frames are not this call's any more.
        call.thread.take_shortage();
    }
    match failed.filter(|_| done == 0) {
        Some(Errno::EFBIG) => {
            // Linux sends it for the limit, and not for the largest file.
            let start = if let WriteAt::Byte(at) = at { at } else { regular.contents().size() };
            check_file_limit(call, start.saturating_add(1)).and(Err(Errno::EFBIG))
        }
        Some(error) => Err(error),
        None => Ok((end, done)),
    }
}

/// Checks that a file may be `size` bytes long: a signal where the process has set a limit below.
#[inline(never)]
pub(super) fn check_file_limit(call: &Syscall<'_>, size: u64) -> Result<(), Errno> {
    if size <= call.task.process().limits.soft(RLIMIT_FSIZE) {
        return Ok(());
    }
    send_self(call, SIGXFSZ)?;
    Err(Errno::EFBIG)
}

/// Sends the calling thread a signal, as its own process would.
#[cold]
#[inline(never)]
pub(super) fn send_self(call: &Syscall<'_>, signal: u32) -> Result<(), Errno> {
    let (process, thread) = (call.task.process().id(), call.task.id());
    send::to_thread(call.task, Some(process), thread, Asked(signal), SignalCause::process(SI_USER, process))
}

pub(super) fn read(call: &mut Syscall<'_>) -> Answer {
    let file = file(call, call.argument::<0>())?;
    file.check_has_bytes_to_read()?;
    let to = UserBytes::of_call(call)?;
    fill(call, &file, file.flags(), to.left, to)
}

pub(super) fn pread64(call: &mut Syscall<'_>) -> Answer {
    let (file, position) = at_position(call)?;
    file.check_has_bytes_to_read()?;
    let to = UserBytes::of_call(call)?;
    fill_from(call, &file, position, to.left, to)
}

/// Reads from `position` on.
fn fill_from(call: &Syscall<'_>, file: &OpenFile, position: u64, bytes: u64, mut to: UserBytes) -> Answer {
    if let Kind::Proc(contents) = file.kind() {
        let most = bytes.min(MOST_AT_ONCE);
        return streams::read_proc(call, contents, position, most, &mut to).map(|(read, _)| read);
    }
    fill_at(call, file, position, bytes, to)
}

/// Reads what has contents from `position` on.
fn fill_at(call: &Syscall<'_>, file: &OpenFile, position: u64, bytes: u64, to: UserBytes) -> Answer {
    store(call, &mut file.contents_at(position, bytes, MOST_AT_ONCE)?, to)
}

/// Reads from where the file is on, with these flags.
fn fill(call: &Syscall<'_>, file: &OpenFile, flags: u32, bytes: u64, mut to: UserBytes) -> Answer {
    let most = bytes.min(MOST_AT_ONCE);
    if file.kernel_device().is_some() {
        // They have no position.
        return fill_at(call, file, 0, most, to);
    }
    match file.kind() {
        Kind::Console => input(flags, reader(call), most, &mut to),
        Kind::Pipe(end) => streams::read_pipe(flags, end, most, &mut to),
        Kind::Event(counter) => streams::read_count(most, &mut to, || counter.read(open::if_not_ready(flags))),
        Kind::Timer(timer) => {
            streams::read_count(most, &mut to, || timer.read(open::if_not_ready(flags), take_moments))
        }
        Kind::Signals(signals) => signal::read_signals(call, flags, signals, most, &mut to),
        Kind::Userfault(pager) => userfault::read(call, flags, pager, bytes, &mut to),
        Kind::Proc(contents) => {
            let (read, end) = streams::read_proc(call, contents, file.position(), most, &mut to)?;
            file.set_position(end);
            Ok(read)
        }
        _ => fill_next(call, file, bytes, to),
    }
}

/// Reads what has contents from its position on.
fn fill_next(call: &Syscall<'_>, file: &OpenFile, bytes: u64, to: UserBytes) -> Answer {
    let (at, mut contents) = file.take(bytes, MOST_AT_ONCE)?;
    let end = at + contents.bytes();
    let stored = store(call, &mut contents, to);
    let used = *stored.as_ref().unwrap_or(&0);
    if at + used != end {
        file.move_position(end, at + used);
    }
    stored
}

/// Stores `contents`, up to the first byte that cannot be stored, or until the thread must exit. Its buffer is on no other
/// read's stack.
#[inline(never)]
pub(super) fn store(call: &Syscall<'_>, contents: &mut Contents<'_>, mut to: UserBytes) -> Answer {
    let mut buffer = [0; PIECE];
    let mut done = 0;
    loop {
        let piece = contents.next(&mut buffer);
        let stored = to.store(piece);
        done += stored as u64;
        if stored < piece.len() && done == 0 {
            return Err(Errno::EFAULT);
        }
        // As on Linux, only what has no end is cut short by a signal, at the end of a page.
        let is_cut = contents.is_endless() && done.is_multiple_of(PAGE) && call.thread.has(Work::SIGNAL);
        if piece.is_empty() || stored < piece.len() || call.is_killed() || is_cut {
            break;
        }
        relax();
    }
    Ok(done)
}

pub(super) fn pwrite64(call: &mut Syscall<'_>) -> Answer {
    let (file, position) = at_position(call)?;
    check_writable_at(&file)?;
    let from = UserBytes::of_call(call)?;
    drain_to(call, &file, file.flags(), position, from.left.min(MOST_AT_ONCE), from)
}

fn check_writable_at(file: &OpenFile) -> Result<(), Errno> {
    if matches!(file.kind(), Kind::Proc(ProcContents::Records(..))) {
        return Err(Errno::ESPIPE);
    }
    file.check_writable()?;
    file.check_has_bytes()
}

/// Writes from `position` on, with these flags.
fn drain_to(call: &Syscall<'_>, file: &OpenFile, flags: u32, position: u64, bytes: u64, mut from: UserBytes) -> Answer {
    if let Kind::Proc(contents) = file.kind() {
        return streams::write_proc(call, contents, position, bytes, &mut from).map(|(written, _)| written);
    }
    if let Some(device) = file.kernel_device() {
        open::check_end(position, bytes)?;
        return streams::write_device(call, device, bytes, &mut from.fetching());
    }
    if bytes == 0 {
        return Ok(0);
    }
    open::check_end(position, bytes)?;
    // As on Linux, wherever the caller says.
    let at = if flags & O_APPEND != 0 { WriteAt::End } else { WriteAt::Byte(position) };
    write_to(call, file, at, bytes, from.fetching()).map(|(_, written)| written)
}

/// The file and the position of a read or write that says where.
fn at_position(call: &Syscall<'_>) -> Result<(FileRef, u64), Errno> {
    let position = u64::try_from(call.argument::<3>() as i64).map_err(|_| Errno::EINVAL)?;
    let file = file(call, call.argument::<0>())?;
    file.check_seekable()?;
    Ok((file, position))
}

pub(super) fn lseek(call: &mut Syscall<'_>) -> Answer {
    file(call, call.argument::<0>())?.seek(call.argument::<1>() as i64, call.argument::<2>() as u32)
}

pub(super) fn fstat(call: &mut Syscall<'_>) -> Answer {
    let stat = any_file(call, call.argument::<0>())?.stat();
    write_quads(call.address::<1>(), stat.words()).map(|()| 0)
}

pub(super) fn openat(call: &mut Syscall<'_>) -> Answer {
    let (flags, end) = (call.argument::<2>() as u32, most_files(call));
    let checked = open::checked(flags)?;
    if !call.task.files().has_room(end) {
        return Err(Errno::EMFILE);
    }
    let path = read_path(call, call.address::<1>())?;
    let base = base_of(call, call.argument::<0>(), &path)?;
    let opening = Opening { flags: checked, mode: call.argument::<3>() as u32 & 0o7777 & !umask(call) };
    loop {
        let opened = open_at(call, base.clone(), &path, opening)?;
        let file = &opened.file;
        let descriptor = call.task.files().add(file.clone(), 0, end, OnExec::requested(flags & O_CLOEXEC))?;
        let finished = opened.finish().inspect_err(|_| call.task.files().take_back(descriptor, file));
        match finished {
            // Another has made it concurrently, and may remove it again.
            Err(Errno::EEXIST) if flags & O_EXCL == 0 && !call.is_killed() => relax(),
            finished => return finished.map(|()| descriptor.into()),
        }
    }
}

/// Opens what a path of the caller names.
#[inline(never)]
fn open_at(call: &Syscall<'_>, base: Option<FilePlace>, path: &[u8], opening: Opening) -> Result<Opened, Errno> {
    open::open(base, path, opening, |process| found(process, call.task), tree::is_process)
}

/// The process whose file a path of `task` names.
fn found(process: ProcId, task: &Task) -> Result<ProcSubject, Errno> {
    let id = if let ProcId::Number(number) = process { number } else { task.process().id() };
    show::find(id).ok_or(Errno::ENOENT)
}

/// The directory that a path begins in, by a descriptor; none for the root.
pub(super) fn base_of(call: &Syscall<'_>, descriptor: u64, path: &[u8]) -> Result<Option<FilePlace>, Errno> {
    match descriptor as i32 {
        _ if path.starts_with(b"/") || path.is_empty() => Ok(None),
        AT_FDCWD => Ok(working_directory(call)),
        _ => any_file(call, descriptor)?.directory().map(Some),
    }
}

/// The file that a descriptor and a path name, to be looked at: without a path and with [`AT_EMPTY_PATH`] that of the
/// descriptor. `follow` is for a link at the end of the path.
pub(super) fn place_of(
    call: &Syscall<'_>,
    descriptor: u64,
    path: &[u8],
    may_be_empty: bool,
    follow: Follow,
) -> Result<FileRef, Errno> {
    let follows = if follow == Follow::Always { 0 } else { O_NOFOLLOW };
    let opening = Opening { flags: O_PATH | follows, mode: 0 };
    if path.is_empty() && may_be_empty {
        if descriptor as i32 != AT_FDCWD {
            return any_file(call, descriptor);
        }
        return open_at(call, working_directory(call), b".", opening).map(|opened| opened.file);
    }
    let base = base_of(call, descriptor, path)?;
    open_at(call, base, path, opening).map(|opened| opened.file)
}

/// Without a path it is fstat, which looks at no flags then, as on Linux.
pub(super) fn newfstatat(call: &mut Syscall<'_>) -> Answer {
    /// `AT_NO_AUTOMOUNT`, and how fresh a network's answer must be.
    const NO_MEANING: u32 = 0x800 | 0x6000;
    let (descriptor, flags) = (call.argument::<0>(), call.argument::<3>() as u32);
    let may_be_empty = flags & AT_EMPTY_PATH != 0;
    let path = read_path_or_none(call, call.address::<1>(), may_be_empty)?;
    let path = path.as_deref().unwrap_or_default();
    let is_fstat = path.is_empty() && may_be_empty && descriptor as i32 >= 0;
    if !is_fstat && flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | NO_MEANING) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = place_of(call, descriptor, path, may_be_empty, follow(flags))?;
    write_quads(call.address::<2>(), file.stat().words()).map(|()| 0)
}

/// A path; none where there may be none and the address is null.
pub(super) fn read_path_or_none(call: &Syscall<'_>, from: VirtAddr, may_be_empty: bool) -> Result<Option<Path>, Errno> {
    if may_be_empty && from.0 == 0 { Ok(None) } else { read_path(call, from).map(Some) }
}

/// Whether a call with these flags follows a link at the end of a path.
pub(super) const fn follow(flags: u32) -> Follow {
    if flags & AT_SYMLINK_NOFOLLOW != 0 { Follow::BeforeSlash } else { Follow::Always }
}

pub(super) fn readlinkat(call: &mut Syscall<'_>) -> Answer {
    let room = call.argument::<3>() as i32;
    if room <= 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(call, call.address::<1>())?;
    let file = place_of(call, call.argument::<0>(), &path, true, Follow::BeforeSlash)?;
    let target = match file.node().map(|node| &node.kind) {
        Some(NodeKind::Link(target)) => target,
        _ if path.is_empty() => return Err(Errno::ENOENT),
        _ => return Err(Errno::EINVAL),
    };
    let stored = target.get(..room as usize).unwrap_or(target);
    uaccess::copy_to_user(call.address::<2>(), stored)?;
    Ok(stored.len() as u64)
}

/// No descriptor of the process may be as high.
pub(super) fn most_files(call: &Syscall<'_>) -> u64 {
    call.task.process().limits.soft(RLIMIT_NOFILE)
}

pub(super) fn close(call: &mut Syscall<'_>) -> Answer {
    call.task.files().close(call.argument::<0>() as u32).map(|_| 0)
}

pub(super) fn dup(call: &mut Syscall<'_>) -> Answer {
    let file = any_file(call, call.argument::<0>())?;
    streams::add(call, file, OnExec::Keep)
}

pub(super) fn dup3(call: &mut Syscall<'_>) -> Answer {
    let (old, new, flags) = (call.argument::<0>() as u32, call.argument::<1>() as u32, call.argument::<2>() as u32);
    if flags & !O_CLOEXEC != 0 || old == new {
        return Err(Errno::EINVAL);
    }
    if u64::from(new) >= most_files(call) {
        return Err(Errno::EBADF);
    }
    call.task.files().duplicate(old, new, OnExec::requested(flags & O_CLOEXEC))?;
    Ok(u64::from(new))
}

pub(super) fn fcntl(call: &mut Syscall<'_>) -> Answer {
    let (descriptor, command, argument) =
        (call.argument::<0>() as u32, call.argument::<1>() as u32, call.argument::<2>() as u32);
    let files = call.task.files();
    let (file, on_exec) = files.get_with_on_exec(descriptor).ok_or(Errno::EBADF)?;
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let on_exec = if command == F_DUPFD_CLOEXEC { OnExec::Close } else { OnExec::Keep };
            let end = most_files(call);
            if u64::from(argument) >= end {
                return Err(Errno::EINVAL);
            }
            files.add(file, argument, end, on_exec).map(u64::from)
        }
        F_GETFD => Ok(if on_exec == OnExec::Close { FD_CLOEXEC.into() } else { 0 }),
        F_SETFD => files.set_on_exec(descriptor, OnExec::requested(argument & FD_CLOEXEC)).map(|()| 0),
        F_GETFL => Ok(file.flags().into()),
        _ if file.is_path() => Err(Errno::EBADF),
        F_SETFL => file.set_flags(argument).map(|()| 0),
        F_GETLK..=F_SETLKW | F_OFD_GETLK..=F_OFD_SETLKW => locks::fcntl(call, descriptor, &file, command),
        F_ADD_SEALS => {
            file.check_writable().map_err(|_| Errno::EPERM)?;
            file.regular().ok_or(Errno::EINVAL)?.add_seals(argument).map(|()| 0)
        }
        F_GETPIPE_SZ | F_SETPIPE_SZ => {
            let Kind::Pipe(end) = file.kind() else { return Err(Errno::EBADF) };
            let size = if command == F_SETPIPE_SZ { end.set_size(argument)? } else { end.size() };
            Ok(size as u64)
        }
        F_GET_SEALS => Ok(file.regular().ok_or(Errno::EINVAL)?.seals()?.0.into()),
        _ => Err(Errno::EINVAL),
    }
}

/// Checks that the range is of EL0, also if it is empty or longer than one call moves.
fn check_range(start: VirtAddr, bytes: u64) -> Result<(), Errno> {
    if uaccess::is_user_range(start, bytes as usize) { Ok(()) } else { Err(Errno::EFAULT) }
}

pub(super) fn writev(call: &mut Syscall<'_>) -> Answer {
    write_list(call, ListPlace::OfFile, 0)
}

pub(super) fn pwritev(call: &mut Syscall<'_>) -> Answer {
    write_list(call, ListPlace::OfCall, 0)
}

pub(super) fn pwritev2(call: &mut Syscall<'_>) -> Answer {
    write_list(call, ListPlace::of(call), call.argument::<5>() as u32)
}

/// Where a list of pieces is read or written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListPlace {
    /// Where the file is on.
    OfFile,
    /// At the position that the call has.
    OfCall,
}

impl ListPlace {
    /// Of a call with flags, for which −1 is where the file is on.
    const fn of(call: &Syscall<'_>) -> Self {
        if call.argument::<3>() == u64::MAX { Self::OfFile } else { Self::OfCall }
    }

    /// The file of a call, and the position if it has one.
    fn file(self, call: &Syscall<'_>) -> Result<(FileRef, Option<u64>), Errno> {
        match self {
            Self::OfFile => file(call, call.argument::<0>()).map(|file| (file, None)),
            Self::OfCall => at_position(call).map(|(file, position)| (file, Some(position))),
        }
    }
}

fn write_list(call: &Syscall<'_>, place: ListPlace, asked: u32) -> Answer {
    let (file, position) = place.file(call)?;
    match position {
        None => file.check_writable().and_then(|()| file.check_takes_bytes()),
        Some(_) => check_writable_at(&file),
    }?;
    let bytes = check_pieces(call)?.min(MOST_AT_ONCE);
    if bytes == 0 {
        return Ok(0);
    }
    let (flags, from) = (file.flags_of_call(asked, true)?, UserBytes::of_pieces(call));
    match position {
        None => drain(call, &file, flags, bytes, from),
        Some(position) => drain_to(call, &file, flags, position, bytes, from),
    }
}

/// Checks the list of a call, as [`UserBytes::check`]. A list without bytes reads and writes nothing, whatever the file.
fn check_pieces(call: &Syscall<'_>) -> Result<u64, Errno> {
    UserBytes::of_pieces(call).check()
}

pub(super) fn read_piece(array: VirtAddr, index: u64) -> Result<[u64; 2], Errno> {
    Ok(read_quads(VirtAddr(array.0.wrapping_add(index.wrapping_mul(size_of::<IoVec>() as u64))))?)
}

/// Bytes of EL0's, one after the other: of one piece, then of those of a list.
#[derive(Clone, Default)]
pub(super) struct UserBytes {
    base: u64,
    /// Bytes of the piece at `base`.
    pub(super) left: u64,
    array: VirtAddr,
    count: u64,
    next: u64,
}

impl UserBytes {
    /// The one piece of a call, which is of EL0.
    fn of_call(call: &Syscall<'_>) -> Result<Self, Errno> {
        Self::new(call.address::<1>(), call.argument::<2>())
    }

    /// One piece, which is of EL0.
    pub(super) fn new(base: VirtAddr, left: u64) -> Result<Self, Errno> {
        check_range(base, left)?;
        Ok(Self { base: base.0, left, ..Self::default() })
    }

    /// The list of a call, whose count is of 32 bits.
    pub(super) fn of_pieces(call: &Syscall<'_>) -> Self {
        Self { array: call.address::<1>(), count: u64::from(call.argument::<2>() as u32), ..Self::default() }
    }

    /// Checks a list of pieces completely before any is moved: it can be read, no length is negative, and then all are of
    /// EL0 (`import_iovec`). Returns the bytes of all.
    pub(super) fn check(&self) -> Result<u64, Errno> {
        let &Self { array, count, .. } = self;
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

    /// Takes the next piece, also if it has no bytes, where there is one.
    pub(super) fn begin(&mut self) -> Result<(), Errno> {
        if self.next < self.count {
            [self.base, self.left] = read_piece(self.array, self.next)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Advances to a piece with bytes left. It is read again: the memory may have changed since the check, and the list
    /// be shorter.
    pub(super) fn advance(&mut self) -> Result<(), Errno> {
        while self.left == 0 {
            if self.next == self.count {
                return Err(Errno::EFAULT);
            }
            self.begin()?;
            relax();
        }
        Ok(())
    }

    /// Stores the next bytes, up to the first that cannot be stored; returns how many were.
    pub(super) fn store(&mut self, mut from: &[u8]) -> usize {
        let mut done = 0;
        while !from.is_empty() && self.advance().is_ok() {
            let (part, rest) = from.split_at_checked(from.len().min(self.left as usize)).unwrap_or_default();
            let stored = uaccess::copy_to_user_up_to(VirtAddr(self.base), part);
            (self.base, self.left, done) =
                (self.base.wrapping_add(stored as u64), self.left - stored as u64, done + stored);
            if stored < part.len() {
                break;
            }
            from = rest;
        }
        done
    }

    /// The function that copies the next bytes, as [`Self::copy_up_to`].
    fn fetching(mut self) -> impl FnMut(&mut [u8]) -> usize {
        move |to| self.copy_up_to(to)
    }

    /// Copies the next bytes, up to a page or granule of tags that cannot be read; returns how many were.
    pub(super) fn copy_up_to(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() && self.advance().is_ok() {
            let page = PAGE - self.base % PAGE;
            let bytes = self.left.min(page).min((to.len() - done) as u64) as usize;
            let Some(part) = to.get_mut(done..done + bytes) else { break };
            let copied = uaccess::copy_from_user_up_to(part, VirtAddr(self.base));
            (self.base, self.left, done) =
                (self.base.wrapping_add(copied as u64), self.left - copied as u64, done + copied);
            if copied < bytes {
                break;
            }
        }
        done
    }
}

pub(super) fn readv(call: &mut Syscall<'_>) -> Answer {
    read_list(call, ListPlace::OfFile, 0)
}

pub(super) fn preadv(call: &mut Syscall<'_>) -> Answer {
    read_list(call, ListPlace::OfCall, 0)
}

pub(super) fn preadv2(call: &mut Syscall<'_>) -> Answer {
    read_list(call, ListPlace::of(call), call.argument::<5>() as u32)
}

fn read_list(call: &Syscall<'_>, place: ListPlace, asked: u32) -> Answer {
    let (file, position) = place.file(call)?;
    file.check_has_bytes_to_read()?;
    let bytes = check_pieces(call)?;
    if bytes == 0 {
        return Ok(0);
    }
    let (flags, to) = (file.flags_of_call(asked, false)?, UserBytes::of_pieces(call));
    match position {
        None => fill(call, &file, flags, bytes, to),
        Some(position) => fill_from(call, &file, position, bytes, to),
    }
}

/// Writes the bytes that `fetch` copies to the console; returns how many were read and written before a signal came.
///
/// As Linux's terminal (`iterate_tty_write`), it copies 2048 bytes at once, of as many pieces as have them. If one of them
/// cannot be read, none of them is written.
///
/// Out of line: no other write has its buffer on the stack.
#[inline(never)]
pub(super) fn print(thread: &Thread, bytes: u64, fetch: &mut dyn FnMut(&mut [u8]) -> usize) -> Answer {
    const AT_ONCE: usize = 2048;
    /// Bytes written in one piece: other output comes before it or after it.
    const CHUNK: usize = 256;
    let mut buffer = [0; AT_ONCE];
    let mut done = 0;
    while done < bytes {
        let Some(taken) = buffer.get_mut(..(bytes - done).min(AT_ONCE as u64) as usize) else { break };
        if fetch(taken) < taken.len() {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
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

/// As what the caller reads the console.
pub(super) fn reader(call: &Syscall<'_>) -> console::Reader {
    console::Reader::Program(call.task.process().family_serial())
}

/// Waits for input, and reads what is available. A program in the background waits until it is in the foreground: Linux
/// would stop it by SIGTTIN, and its read would begin anew after the SIGCONT of a shell that brings it there.
fn input(flags: u32, reader: console::Reader, bytes: u64, to: &mut UserBytes) -> Answer {
    if bytes == 0 {
        return Ok(0);
    }
    let mut done = 0;
    let mut next = Some(first_byte(flags, reader)?);
    while let Some(byte) = next {
        if to.store(&[byte]) == 0 {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        relax();
        done += 1;
        next = if done < bytes { console::try_read_byte(reader) } else { None };
    }
    Ok(done)
}

/// Waits for a byte of the console's input, unless the file is not waited for.
///
/// # Errors
/// `ERESTARTSYS`, `EAGAIN`.
fn first_byte(flags: u32, reader: console::Reader) -> Result<u8, Errno> {
    match open::if_not_ready(flags) {
        IfNotReady::Wait => console::wait_for_byte(reader).ok_or(Errno::ERESTARTSYS),
        IfNotReady::Fail => console::try_read_byte(reader).ok_or(Errno::EAGAIN),
    }
}

/// The commands of every file, and the number of bytes left to read; the console is not a terminal for programs.
pub(super) fn ioctl(call: &mut Syscall<'_>) -> Answer {
    let (descriptor, at) = (call.argument::<0>() as u32, call.address::<2>());
    let file = file(call, descriptor.into())?;
    match call.argument::<1>() as u32 {
        FIOCLEX => call.task.files().set_on_exec(descriptor, OnExec::Close)?,
        FIONCLEX => call.task.files().set_on_exec(descriptor, OnExec::Keep)?,
        FIONBIO => {
            let is_on = i32::from_le_bytes(read_bytes(at)?) != 0;
            file.set_flags(file.flags() & !O_NONBLOCK | if is_on { O_NONBLOCK } else { 0 })?;
        }
        _ if file.epoll().is_some() => return Err(Errno::EINVAL),
        FIONREAD if file.userfaultfd().is_none() && file.kernel_device().is_none() => {
            let left = file.left().ok_or(Errno::ENOTTY)?;
            uaccess::copy_to_user(at, &(left as u32).to_le_bytes())?;
        }
        command => match (file.userfaultfd(), file.pagemap(), file.kernel_device()) {
            (Some(pager), ..) => return userfault::ioctl(pager, call.task.space(), command, at),
            (_, Some(pages), _) => return scan::ioctl(call, pages, command, at),
            (.., Some(device)) => return streams::device_ioctl(call, device, command, at),
            _ => return Err(Errno::ENOTTY),
        },
    }
    Ok(0)
}
