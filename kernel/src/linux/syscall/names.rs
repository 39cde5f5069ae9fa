//! Calls for the names and attributes of files, and for directories (Linux: `fs/namei.c`, `fs/open.c`, `fs/attr.c`).
//!
//! There is one user, root, so that permissions are kept, and what root may do is allowed.

use alloc::vec::Vec;

use granule_abi::file::{
    AT_EACCESS, AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT, AT_REMOVEDIR, AT_STATX_SYNC_TYPE, AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW, PROC_SUPER_MAGIC, RENAME_EXCHANGE, RENAME_NOREPLACE, S_IFDIR, S_IFLNK, S_IFMT,
    STATX_BASIC_STATS, STATX_RESERVED, TMPFS_MAGIC, UTIME_NOW, UTIME_OMIT, X_OK,
};
use granule_arch::addr::{PAGE, VirtAddr};

use super::io::{any_file, base_of, file, follow, place_of, read_path_or_none};
use super::memory_file::resize;
use super::process::read_path;
use super::{Answer, Syscall, read_quads, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::contents::FileContents;
use crate::linux::file::files::{self, FileNodeRef, FilePlace};
use crate::linux::file::open::{FileRef, Kind, OpenFile};
use crate::linux::file::proc::{ProcEntry, ProcId};
use crate::linux::file::stat::FileStat;
use crate::linux::file::tree::{Attributes, Moment, NAME, NameIn, NodeKind, Removal, Renaming};
use crate::linux::file::walk::{Follow, Found, Last, Place};
use crate::linux::process::tree;
use crate::sched::relax;
use crate::uaccess;

/// Permissions.
const PERMISSIONS: u32 = 0o7777;

/// The directory that relative paths begin in; none for the root.
pub(super) fn working_directory(call: &Syscall<'_>) -> Option<FilePlace> {
    call.task.surroundings()?.directory()
}

/// The permissions that a new file does not get.
pub(super) fn umask(call: &Syscall<'_>) -> u32 {
    call.task.surroundings().map_or(0o022, |own| own.umask())
}

/// Where a path leads, but for its last name.
fn walk(call: &Syscall<'_>, descriptor: u64, path: &[u8]) -> Result<Found<FileContents>, Errno> {
    files::walk(base_of(call, descriptor, path)?, path, Follow::Never, tree::is_process)
}

/// The directory and the name of what is to be made (Linux's `filename_create`).
fn new_name(found: &Found<FileContents>, may_have_slash: bool) -> Result<(&FileNodeRef, &[u8]), Errno> {
    match (&found.directory, &found.last, &found.place) {
        (_, Last::Name(_), None) if found.slash && !may_have_slash => Err(Errno::ENOENT),
        (Place::Node(directory), Last::Name(name), None) => Ok((directory, name)),
        (Place::Proc(_), Last::Name(_), None) => Err(Errno::ENOENT),
        (_, Last::TooLong, _) => Err(Errno::ENAMETOOLONG),
        _ => Err(Errno::EEXIST),
    }
}

pub(super) fn mkdirat(call: &mut Syscall<'_>) -> Answer {
    let path = read_path(call, call.address::<1>())?;
    let found = walk(call, call.argument::<0>(), &path)?;
    let (directory, name) = new_name(&found, true)?;
    let mode = call.argument::<2>() as u32 & 0o1777 & !umask(call);
    let tree = files::tree()?;
    let node = tree.node(NodeKind::Directory, directory.attributes_in(S_IFDIR | mode, files::now()))?;
    tree.link(directory, name, &node).map(|()| 0)
}

pub(super) fn symlinkat(call: &mut Syscall<'_>) -> Answer {
    let target = read_path(call, call.address::<0>())?;
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let path = read_path(call, call.address::<2>())?;
    let found = walk(call, call.argument::<1>(), &path)?;
    let (directory, name) = new_name(&found, false)?;
    let tree = files::tree()?;
    let node = tree.symbolic_link(&target, directory.attributes_in(S_IFLNK | 0o777, files::now()))?;
    tree.link(directory, name, &node).map(|()| 0)
}

pub(super) fn linkat(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<4>() as u32;
    if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let follow = if flags & AT_SYMLINK_FOLLOW != 0 { Follow::Always } else { Follow::BeforeSlash };
    let old = read_path(call, call.address::<1>())?;
    let file = place_of(call, call.argument::<0>(), &old, flags & AT_EMPTY_PATH != 0, follow)?;
    let path = read_path(call, call.address::<3>())?;
    let found = walk(call, call.argument::<2>(), &path)?;
    let (directory, name) = new_name(&found, false)?;
    let node = file.node().filter(|node| node.device == directory.device).ok_or(Errno::EXDEV)?;
    let tree = files::tree()?;
    if node.is_directory() && !directory.is_removed() {
        return Err(Errno::EPERM);
    }
    tree.link(directory, name, node).map(|()| 0)
}

pub(super) fn unlinkat(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<2>() as u32;
    if flags & !AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let removal = if flags & AT_REMOVEDIR != 0 { Removal::Directory } else { Removal::File };
    let path = read_path(call, call.address::<1>())?;
    let found = walk(call, call.argument::<0>(), &path)?;
    match (&found.last, removal) {
        (Last::Name(_), _) => {}
        (Last::TooLong, _) => return Err(Errno::ENAMETOOLONG),
        (_, Removal::File) => return Err(Errno::EISDIR),
        (Last::DotDot, _) => return Err(Errno::ENOTEMPTY),
        (Last::Dot, _) => return Err(Errno::EINVAL),
        (Last::Root, _) => return Err(Errno::EBUSY),
    }
    if found.place.is_none() {
        return Err(Errno::ENOENT);
    }
    let name = name_in(&found).ok_or(Errno::EPERM)?;
    files::tree()?.unlink(name, removal).map(|()| 0)
}

/// The name in the tree that a path ends with.
fn name_in(found: &Found<FileContents>) -> Option<NameIn<'_, FileContents>> {
    match (&found.directory, &found.last) {
        (Place::Node(directory), Last::Name(name)) => Some(NameIn { directory, name, slash: found.slash }),
        _ => None,
    }
}

pub(super) fn renameat(call: &mut Syscall<'_>) -> Answer {
    rename(call, Renaming::Replace)
}

pub(super) fn renameat2(call: &mut Syscall<'_>) -> Answer {
    match call.argument::<4>() as u32 {
        0 => rename(call, Renaming::Replace),
        RENAME_NOREPLACE => rename(call, Renaming::NoReplace),
        RENAME_EXCHANGE => rename(call, Renaming::Exchange),
        _ => Err(Errno::EINVAL),
    }
}

fn rename(call: &Syscall<'_>, renaming: Renaming) -> Answer {
    let old = read_path(call, call.address::<1>())?;
    let new = read_path(call, call.address::<3>())?;
    let from = walk(call, call.argument::<0>(), &old)?;
    let to = walk(call, call.argument::<2>(), &new)?;
    let is_in_tree = |found: &Found<FileContents>| matches!(found.directory, Place::Node(_));
    if is_in_tree(&from) != is_in_tree(&to) {
        return Err(Errno::EXDEV);
    }
    let is_name = |found: &Found<FileContents>| matches!(found.last, Last::Name(_) | Last::TooLong);
    if !is_name(&from) {
        return Err(Errno::EBUSY);
    }
    if !is_name(&to) {
        return Err(if renaming == Renaming::NoReplace { Errno::EEXIST } else { Errno::EBUSY });
    }
    match (&from.last, &to.last) {
        (Last::TooLong, _) => return Err(Errno::ENAMETOOLONG),
        (_, Last::TooLong) if from.place.is_some() => return Err(Errno::ENAMETOOLONG),
        (_, Last::TooLong) => return Err(Errno::ENOENT),
        _ => {}
    }
    if !is_in_tree(&from) {
        let are_there = from.place.is_some() && to.place.is_some();
        return Err(if are_there { Errno::EPERM } else { Errno::ENOENT });
    }
    let (from, to) = (name_in(&from).ok_or(Errno::EPERM)?, name_in(&to).ok_or(Errno::EPERM)?);
    files::tree()?.rename(from, to, renaming).map(|()| 0)
}

pub(super) fn faccessat(call: &mut Syscall<'_>) -> Answer {
    access(call, 0)
}

pub(super) fn faccessat2(call: &mut Syscall<'_>) -> Answer {
    access(call, call.argument::<3>() as u32)
}

fn access(call: &Syscall<'_>, flags: u32) -> Answer {
    let mode = call.argument::<2>() as u32;
    if mode & !0o7 != 0 || flags & !(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = place(call, flags)?;
    let has = file.node().map_or_else(|| file.stat().attributes.mode, |node| node.attributes().0.mode);
    if mode & X_OK != 0 && has & S_IFMT != S_IFDIR && has & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(0)
}

/// The file that the first two arguments name, with these flags.
fn place(call: &Syscall<'_>, flags: u32) -> Result<FileRef, Errno> {
    let may_be_empty = flags & AT_EMPTY_PATH != 0;
    let path = read_path(call, call.address::<1>())?;
    place_of(call, call.argument::<0>(), &path, may_be_empty, follow(flags))
}

pub(super) fn fchmod(call: &mut Syscall<'_>) -> Answer {
    change_mode(&*file(call, call.argument::<0>())?, call.argument::<1>() as u32)
}

pub(super) fn fchmodat(call: &mut Syscall<'_>) -> Answer {
    change_mode(&*place(call, 0)?, call.argument::<2>() as u32)
}

pub(super) fn fchmodat2(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<3>() as u32;
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    change_mode(&*place(call, flags)?, call.argument::<2>() as u32)
}

/// The node whose attributes change. Those of the others stay, and of some Linux refuses to change them.
fn to_change(file: &OpenFile) -> Result<Option<&FileNodeRef>, Errno> {
    match file.kind() {
        Kind::Event(_) | Kind::Timer(_) | Kind::Signals(_) | Kind::Epoll(_) | Kind::Process(_) | Kind::Userfault(_) => {
            Err(Errno::ENOTSUP)
        }
        _ => Ok(file.node()),
    }
}

fn change_mode(file: &OpenFile, mode: u32) -> Answer {
    if matches!(file.kind(), Kind::Proc(_) | Kind::ProcDirectory(ProcEntry::Process(_))) {
        return Err(Errno::EPERM);
    }
    let Some(node) = to_change(file)? else { return Ok(0) };
    if let NodeKind::Link(_) = node.kind {
        return Err(Errno::ENOTSUP);
    }
    let change = |is_sealed: bool| {
        let mut answer = Ok(0);
        node.change(|attributes| {
            if is_sealed && (attributes.mode ^ mode) & 0o111 != 0 {
                answer = Err(Errno::EPERM);
                return;
            }
            attributes.mode = attributes.mode & S_IFMT | mode & PERMISSIONS;
            attributes.changed = files::now();
        });
        answer
    };
    match file.regular() {
        Some(file) => file.with_mode(change),
        None => change(false),
    }
}

pub(super) fn fchown(call: &mut Syscall<'_>) -> Answer {
    change_owner(&*file(call, call.argument::<0>())?, call.argument::<1>() as u32, call.argument::<2>() as u32)
}

pub(super) fn fchownat(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<4>() as u32;
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    change_owner(&*place(call, flags)?, call.argument::<2>() as u32, call.argument::<3>() as u32)
}

fn change_owner(file: &OpenFile, user: u32, group: u32) -> Answer {
    const KEEP: u32 = u32::MAX;
    const SET_USER: u32 = 0o4000;
    const SET_GROUP: u32 = 0o2000;
    const OF_GROUP: u32 = 0o010;
    let Some(node) = to_change(file)? else { return Ok(0) };
    node.change(|attributes| {
        if user != KEEP {
            attributes.user = user;
        }
        if group != KEEP {
            attributes.group = group;
        }
        if !node.is_directory() {
            attributes.mode &= !SET_USER;
            if attributes.mode & OF_GROUP != 0 {
                attributes.mode &= !SET_GROUP;
            }
        }
        attributes.changed = files::now();
    });
    Ok(0)
}

pub(super) fn utimensat(call: &mut Syscall<'_>) -> Answer {
    /// Nanoseconds.
    const SECOND: u32 = 1_000_000_000;
    let (descriptor, flags, at) = (call.argument::<0>(), call.argument::<3>() as u32, call.address::<2>());
    let now = files::now();
    let mut times = [Some(now); 2];
    if at.0 != 0 {
        let words: [u64; 4] = read_quads(at)?;
        for (time, pair) in times.iter_mut().zip(words.as_chunks().0) {
            let &[seconds, nanoseconds]: &[u64; 2] = pair;
            *time = match nanoseconds {
                UTIME_NOW => Some(now),
                UTIME_OMIT => None,
                // Too many are refused once there is a file, as on Linux.
                _ => Some(Moment { seconds: seconds as i64, nanoseconds: nanoseconds.min(SECOND.into()) as u32 }),
            };
        }
        if times == [None; 2] {
            return Ok(0);
        }
    }
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = if call.argument::<1>() == 0 && descriptor as i32 != AT_FDCWD {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        file(call, descriptor)?
    } else {
        place(call, flags)?
    };
    if times.iter().flatten().any(|time| time.nanoseconds >= SECOND) {
        return Err(Errno::EINVAL);
    }
    if let Some(node) = to_change(&file)? {
        node.change(|attributes| {
            let [accessed, modified] = times;
            attributes.accessed = accessed.unwrap_or(attributes.accessed);
            attributes.modified = modified.unwrap_or(attributes.modified);
            attributes.changed = now;
        });
    }
    Ok(0)
}

pub(super) fn truncate(call: &mut Syscall<'_>) -> Answer {
    let size = u64::try_from(call.argument::<1>() as i64).map_err(|_| Errno::EINVAL)?;
    let path = read_path(call, call.address::<0>())?;
    let file = place_of(call, AT_FDCWD as u64, &path, false, Follow::Always)?;
    if let Kind::Proc(_) = file.kind() {
        // As on Linux, without an effect.
        return Ok(0);
    }
    let is_directory = file.directory().is_ok();
    let regular = file.regular().ok_or(if is_directory { Errno::EISDIR } else { Errno::EINVAL })?;
    resize(call, &regular, size)
}

pub(super) fn statfs(call: &mut Syscall<'_>) -> Answer {
    let path = read_path(call, call.address::<0>())?;
    let file = place_of(call, AT_FDCWD as u64, &path, false, Follow::Always)?;
    write_statfs(call.address::<1>(), &file)
}

pub(super) fn fstatfs(call: &mut Syscall<'_>) -> Answer {
    write_statfs(call.address::<1>(), &*any_file(call, call.argument::<0>())?)
}

/// `struct statfs`: that of the tree for all that is not in `/proc`.
fn write_statfs(to: VirtAddr, file: &OpenFile) -> Answer {
    let mut words = [0; 15];
    let is_proc = matches!(file.kind(), Kind::Proc(_) | Kind::ProcDirectory(_));
    words[0] = if is_proc { PROC_SUPER_MAGIC } else { TMPFS_MAGIC };
    (words[1], words[8], words[9]) = (PAGE, NAME as u64, PAGE);
    if !is_proc {
        let (nodes, most) = files::tree()?.nodes();
        let (taken, most_frames) = files::limit().frames();
        let free = (most_frames - taken) as u64;
        (words[2], words[3], words[4]) = (most_frames as u64, free, free);
        (words[5], words[6]) = (most as u64, most.saturating_sub(nodes) as u64);
    }
    write_quads(to, words).map(|()| 0)
}

/// As on Linux with fields of a `struct statx` that a file system without more has.
pub(super) fn statx(call: &mut Syscall<'_>) -> Answer {
    let (flags, mask) = (call.argument::<2>() as u32, call.argument::<3>() as u32);
    const KNOWN: u32 = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_SYNC_TYPE;
    if mask & STATX_RESERVED != 0 || flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE || flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let may_be_empty = flags & AT_EMPTY_PATH != 0;
    let path = read_path_or_none(call, call.address::<1>(), may_be_empty)?;
    let path = path.as_deref().unwrap_or_default();
    let file = place_of(call, call.argument::<0>(), path, may_be_empty, follow(flags))?;
    write_quads(call.address::<4>(), statx_words(&file.stat())).map(|()| 0)
}

/// `struct statx`, in words of 8 bytes.
const fn statx_words(stat: &FileStat) -> [u64; 32] {
    const fn pair(low: u32, high: u32) -> u64 {
        (high as u64) << 32 | low as u64
    }
    const fn device(number: u64) -> u64 {
        pair((number >> 8) as u32, number as u32 & 0xff)
    }
    let Attributes { mode, user, group, accessed, modified, changed } = stat.attributes;
    let mut words = [0; 32];
    words[0] = pair(STATX_BASIC_STATS, PAGE as u32);
    words[2] = pair(stat.links, user);
    words[3] = pair(group, mode & 0xffff);
    words[4] = stat.number;
    words[5] = stat.size;
    words[6] = stat.pages * (PAGE / 512);
    (words[8], words[9]) = (accessed.seconds as u64, accessed.nanoseconds as u64);
    (words[12], words[13]) = (changed.seconds as u64, changed.nanoseconds as u64);
    (words[14], words[15]) = (modified.seconds as u64, modified.nanoseconds as u64);
    words[16] = device(stat.represented);
    words[17] = device(stat.device);
    words
}

pub(super) fn getcwd(call: &mut Syscall<'_>) -> Answer {
    let mut path = match working_directory(call) {
        None => files::tree()?.path(files::tree()?.root())?,
        Some(Place::Node(node)) => files::tree()?.path(&node)?,
        Some(Place::Proc(entry)) => path_in_proc(entry, call.task.process().id())?,
    };
    crate::bytes::append(&mut path, &[0])?;
    if path.len() as u64 > call.argument::<1>() {
        return Err(Errno::ERANGE);
    }
    uaccess::copy_to_user(call.address::<0>(), &path)?;
    Ok(path.len() as u64)
}

fn path_in_proc(entry: ProcEntry, own: u32) -> Result<Vec<u8>, Errno> {
    use core::fmt::Write;
    let mut path = heapless::String::<32>::new();
    let written = match entry {
        ProcEntry::Root => write!(path, "/proc"),
        ProcEntry::Process(ProcId::Own) | ProcEntry::File(ProcId::Own, _) => write!(path, "/proc/{own}"),
        ProcEntry::Process(ProcId::Number(id)) | ProcEntry::File(ProcId::Number(id), _) => write!(path, "/proc/{id}"),
    };
    written.map_err(|_| Errno::ENAMETOOLONG)?;
    let mut bytes = Vec::new();
    crate::bytes::append(&mut bytes, path.as_bytes())?;
    Ok(bytes)
}

pub(super) fn chdir(call: &mut Syscall<'_>) -> Answer {
    let path = read_path(call, call.address::<0>())?;
    let base = base_of(call, AT_FDCWD as u64, &path)?;
    let place = files::walk(base, &path, Follow::Always, tree::is_process)?.existing()?;
    enter(call, place)
}

pub(super) fn fchdir(call: &mut Syscall<'_>) -> Answer {
    enter(call, any_file(call, call.argument::<0>())?.directory()?)
}

fn enter(call: &Syscall<'_>, place: FilePlace) -> Answer {
    if !place.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    call.task.own_surroundings()?.enter(place);
    Ok(0)
}

pub(super) fn set_umask(call: &mut Syscall<'_>) -> Answer {
    let mask = call.argument::<0>() as u32 & 0o777;
    if mask == umask(call) {
        return Ok(mask.into());
    }
    Ok(call.task.own_surroundings()?.set_umask(mask).into())
}

/// Stores names of a directory, each as a `struct linux_dirent64`.
pub(super) fn getdents64(call: &mut Syscall<'_>) -> Answer {
    let (to, room) = (call.address::<1>(), u64::from(call.argument::<2>() as u32));
    let file = file(call, call.argument::<0>())?;
    let directory = file.directory()?;
    if let Place::Node(node) = &directory
        && node.is_removed()
    {
        return Err(Errno::ENOENT);
    }
    let mut done = 0;
    let outcome = loop {
        let position = file.position();
        let Some(listed) = listed(&directory, position)? else { break Ok(()) };
        let bytes = listed.bytes();
        if done + bytes.len() as u64 > room {
            break Err(Errno::EINVAL);
        }
        // Of readers at once each has names of its own.
        if file.move_position(position, listed.next) {
            if let Err(error) = uaccess::copy_to_user(VirtAddr(to.0.wrapping_add(done)), &bytes) {
                file.move_position(listed.next, position);
                break Err(error.into());
            }
            done += bytes.len() as u64;
        }
        if call.is_killed() {
            break Ok(());
        }
        relax();
    };
    if done == 0 { outcome.map(|()| 0) } else { Ok(done) }
}

/// A name in a directory, as a reader gets it.
struct Listed {
    number: u64,
    /// Where the next name is sought.
    next: u64,
    kind: u32,
    name: heapless::Vec<u8, NAME>,
}

impl Listed {
    fn new(number: u64, next: u64, kind: u32, name: &[u8]) -> Self {
        Self { number, next, kind, name: heapless::Vec::from_slice(name).unwrap_or_default() }
    }

    fn bytes(&self) -> heapless::Vec<u8, { 24 + NAME + 1 }> {
        /// Bytes before the name.
        const HEADER: usize = 19;
        let length = (HEADER + self.name.len() + 1).next_multiple_of(8);
        let mut bytes = heapless::Vec::new();
        // There is room for the longest name.
        let _ = bytes.extend_from_slice(&self.number.to_le_bytes());
        let _ = bytes.extend_from_slice(&self.next.to_le_bytes());
        let _ = bytes.extend_from_slice(&(length as u16).to_le_bytes());
        let _ = bytes.push((self.kind >> 12) as u8);
        let _ = bytes.extend_from_slice(&self.name);
        let _ = bytes.resize(length, 0);
        bytes
    }
}

/// The first name of a directory at a position or after it.
fn listed(directory: &FilePlace, position: u64) -> Result<Option<Listed>, Errno> {
    let tree = files::tree()?;
    let dots = |own, above| match position {
        0 => Some(Listed::new(own, 1, S_IFDIR, b".")),
        1 => Some(Listed::new(above, 2, S_IFDIR, b"..")),
        _ => None,
    };
    Ok(match directory {
        Place::Node(node) => dots(node.number, tree.parent(node).number).or_else(|| {
            let found = tree.next(node, position)?;
            Some(Listed::new(found.number, found.place, found.kind, &found.name))
        }),
        Place::Proc(entry) => dots(1, 1).or_else(|| {
            let (name, kind) = entry.name(position as usize - 2)?;
            Some(Listed::new(position, position + 1, kind, name))
        }),
    })
}
