//! Calls for memory files: memfd_create, ftruncate, fallocate.

use granule_abi::file::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, MFD_CLOEXEC, MFD_HUGETLB};

use super::io::{check_file_limit, file, most_files};
use super::process::string_length;
use super::{Answer, Syscall};
use crate::linux::errno::Errno;
use crate::linux::file::contents::{self, Regular};
use crate::linux::file::open::Kind;
use crate::linux::file::table::OnExec;
use crate::mm::space::SizeChoice;

pub(super) fn memfd_create(call: &mut Syscall<'_>) -> Answer {
    /// The longest name, with `memfd:` before it (`NAME_MAX`).
    const NAME: usize = 255 - "memfd:".len();
    let flags = contents::checked(call.argument::<1>() as u32)?;
    // The name is for /proc, which there is not.
    string_length(call.address::<0>(), NAME + 1)?.ok_or(Errno::EINVAL)?;
    let end = most_files(call);
    if !call.task.files().has_room(end) {
        return Err(Errno::EMFILE);
    }
    if flags & MFD_HUGETLB != 0 {
        // There are no large pages.
        return Err(Errno::ENOSYS);
    }
    let file = contents::create_memory_file(flags)?;
    call.task.files().add(file, 0, end, OnExec::requested(flags & MFD_CLOEXEC)).map(u64::from)
}

pub(super) fn ftruncate(call: &mut Syscall<'_>) -> Answer {
    let size = u64::try_from(call.argument::<1>() as i64).map_err(|_| Errno::EINVAL)?;
    let file = file(call, call.argument::<0>())?;
    if matches!(file.kind(), Kind::Proc(_)) && file.check_writable().is_ok() {
        // As on Linux, without an effect.
        return Ok(0);
    }
    let regular = file.regular().filter(|_| file.check_writable().is_ok());
    let regular = regular.ok_or(if file.process().is_some() { Errno::ENOTSUP } else { Errno::EINVAL })?;
    resize(call, &regular, size)
}

/// Makes a file so long.
pub(super) fn resize(call: &Syscall<'_>, file: &Regular<'_>, size: u64) -> Answer {
    if size > file.contents().size() {
        check_file_limit(call, size)?;
    }
    file.truncate(size).map(|()| 0)
}

/// fsync and fdatasync: what is in memory alone is nowhere else.
pub(super) fn fsync(call: &mut Syscall<'_>) -> Answer {
    let file = file(call, call.argument::<0>())?;
    match file.kind() {
        Kind::Node(_) if file.kernel_device().is_none() => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// The checks of Linux's `vfs_fallocate`, in its order.
pub(super) fn fallocate(call: &mut Syscall<'_>) -> Answer {
    /// Modes that other file systems have: one at most, with or without `FALLOC_FL_KEEP_SIZE`.
    const UNSHARE: u32 = 0x40;
    const ZERO: u32 = 0x10;
    let mode = call.argument::<1>() as u32;
    let (offset, length) = (call.argument::<2>() as i64, call.argument::<3>() as i64);
    let file = file(call, call.argument::<0>())?;
    if offset < 0 || length <= 0 {
        return Err(Errno::EINVAL);
    }
    let (kind, keeps_size) = (mode & !FALLOC_FL_KEEP_SIZE, mode & FALLOC_FL_KEEP_SIZE != 0);
    let is_known = match kind {
        0 | UNSHARE | ZERO => true,
        FALLOC_FL_PUNCH_HOLE => keeps_size,
        // FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_WRITE_ZEROES
        0x08 | 0x20 | 0x80 => !keeps_size,
        _ => false,
    };
    if !is_known {
        return Err(Errno::ENOTSUP);
    }
    file.check_writable()?;
    let regular = match file.kind() {
        Kind::Node(_) if file.kernel_device().is_some() => return Err(Errno::ENODEV),
        Kind::Node(node) => Regular::of(node).ok_or(Errno::EISDIR)?,
        Kind::Pipe(_) => return Err(Errno::ESPIPE),
        Kind::Proc(_) => return Err(Errno::ENOTSUP),
        _ => return Err(Errno::ENODEV),
    };
    let end = offset.checked_add(length).ok_or(Errno::EFBIG)? as u64;
    match kind {
        0 => {
            if end > regular.contents().size() {
                check_file_limit(call, end)?;
            }
            let size = if keeps_size { SizeChoice::Keep } else { SizeChoice::Grow };
            let is_killed = || call.is_killed();
            regular.allocate(offset as u64, end, size, &is_killed)?;
        }
        FALLOC_FL_PUNCH_HOLE => regular.punch_hole(offset as u64, end)?,
        _ => return Err(Errno::ENOTSUP),
    }
    Ok(0)
}
