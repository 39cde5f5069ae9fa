//! Open files (POSIX: open file descriptions): what a file is, how it was opened, and where in it reads go on.
//!
//! There are the files and directories of the initrd, which are only read, memory files, the console, devices, pipes,
//! event counters, references to processes, and files of `/proc`.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule_abi::file::{
    F_SEAL_SEAL, FASYNC, O_ACCMODE, O_APPEND, O_CREAT, O_DIRECT, O_DIRECTORY, O_DSYNC, O_EXCL, O_LARGEFILE, O_NOATIME,
    O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_SYNC, O_TMPFILE, O_TRUNC, O_WRONLY, POLLERR, POLLIN,
    POLLOUT, POLLRDNORM, POLLWRNORM, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, SEEK_CUR, SEEK_DATA,
    SEEK_END, SEEK_HOLE, SEEK_SET,
};
use granule_arch::addr::{PAGE, PAGE_SIZE};
use spin::Once;

use super::device::DeviceNumber;
use super::event::EventCounter;
use super::initrd::{self, Attributes, File, PathEntry, PathError};
use super::memfd::MemoryFile;
use super::pidfd::Pidfd;
use super::pipe::PipeEnd;
use super::proc::{Pagemap, ProcContents, ProcEntry, ProcId, ProcSubject};
use super::table::{Filed, Files, Pools};
use super::userfaultfd::UserfaultFile;
use crate::chip::console;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::mm::space::{LastTally, Met, Object, Seals, Sought, Tally};
use crate::sched::{IfNotReady, PollQueue, RwSem};
use crate::smp::this_cpu;
use crate::sync::rank;

/// An open file, and those who have it.
pub type FileRef = Counted<OpenFile>;

static FILES: Once<Pool<Inner<OpenFile>>> = Once::new();
static TABLES: Once<Pools<FileRef>> = Once::new();

/// Where descriptors are kept.
fn tables() -> &'static Pools<FileRef> {
    TABLES.call_once(|| Pools::new(kernel().frames))
}

/// The open files, and the tables of descriptors.
pub fn pool_stats() -> [(&'static str, PoolStats); 2] {
    [
        ("open files", FILES.get().map_or_else(PoolStats::default, Pool::stats)),
        ("tables of descriptors", TABLES.get().map_or_else(PoolStats::default, Pools::stats)),
    ]
}

/// The descriptors of a program that the kernel starts: 0, 1 and 2 are the console.
///
/// # Errors
/// [`OutOfMemory`].
#[inline(never)]
pub fn initial() -> Result<Files<FileRef>, OutOfMemory> {
    Files::new(tables(), &OpenFile::new(Kind::Console, O_RDWR)?)
}

/// An open file.
pub struct OpenFile {
    kind: Kind,
    /// Bits of `O_`.
    flags: AtomicU32,
    /// Where the next read begins; at most `i64::MAX`, but for the words of pages.
    position: AtomicU64,
    counted: LastTally,
}

impl Filed for FileRef {
    fn is(&self, other: &Self) -> bool {
        Counted::is(self, other)
    }

    fn has_memory(&self) -> bool {
        matches!(self.kind, Kind::Memory(_) | Kind::Pipe(_))
    }
}

/// The kind of an open file, with its state.
pub enum Kind {
    /// The console.
    Console,
    /// A file of the initrd; and its pages, once it was mapped.
    Regular(File<'static>, Attributes, RwSem<Option<Counted<Object>>>),
    /// A memory file.
    Memory(MemoryFile),
    /// A device whose registers are mapped. It is neither read nor written.
    Device(DeviceNumber),
    /// A userfaultfd.
    Userfault(UserfaultFile),
    /// With its path from the root.
    Directory(&'static str, Attributes),
    /// An end of a pipe.
    Pipe(PipeEnd),
    /// An event counter.
    Event(EventCounter),
    /// A reference to a process.
    Process(Counted<Pidfd>),
    /// A file of a process in `/proc`.
    Proc(ProcContents),
    /// Neither read nor written: a place alone.
    Other(Attributes),
}

/// The events that a poller finds at an open file, and the queue that it may join.
#[derive(Clone, Copy)]
pub struct PollState<'f> {
    /// Bits of `POLL`: all that hold now.
    pub events: u16,
    /// The queue that is woken when they change; `None` where they never do.
    pub queue: Option<&'f PollQueue>,
}

/// The longest file: an offset has 63 bits.
const LARGEST: u64 = i64::MAX as u64;

/// Opens what is at `path`. `base` is the directory that the path begins in, which then is not empty; the root if there
/// is none. `flags` are [`checked`]. `find` finds a process whose files in `/proc` are named.
///
/// # Errors
/// Those of `openat` on a file system that is mounted read-only, and of `find`.
pub fn open(
    base: Option<&OpenFile>,
    path: &[u8],
    flags: u32,
    find: impl FnOnce(ProcId) -> Result<ProcSubject, Errno>,
) -> Result<FileRef, Errno> {
    let base = base.map_or(Ok(""), OpenFile::directory)?;
    let may_be_new = flags & (O_CREAT | O_PATH) == O_CREAT && check_new_name(base, path)?;
    let kind = match initrd::look(base, path) {
        Ok(PathEntry::Console) => Kind::Console,
        Ok(PathEntry::Device(number)) => Kind::Device(number),
        Ok(PathEntry::File(file, attributes)) => Kind::Regular(file, attributes, RwSem::new(rank::FILE_PAGES, None)),
        Ok(PathEntry::Directory(path, attributes)) => Kind::Directory(path, attributes),
        Ok(PathEntry::Proc(ProcEntry::Root)) => Kind::Directory("proc", PROC),
        Ok(PathEntry::Proc(ProcEntry::Process(ProcId::Own))) => Kind::Directory("proc/self", PROC),
        // No file is looked up from there.
        Ok(PathEntry::Proc(ProcEntry::Process(ProcId::Number(_)))) => Kind::Other(PROC),
        Ok(PathEntry::Proc(ProcEntry::File(process, file))) => Kind::Proc(file.of(find(process)?)),
        Ok(PathEntry::Link(_, attributes) | PathEntry::Other(attributes)) => Kind::Other(attributes),
        // In a directory nothing is made.
        Err(PathError::NotFound) if may_be_new => return Err(Errno::EROFS),
        Err(error) => return Err(error.errno()),
    };
    check(&kind, flags)?;
    let kept = flags & !(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC);
    Ok(OpenFile::new(kind, if flags & O_PATH == 0 { kept | O_LARGEFILE } else { kept })?)
}

/// The directories of `/proc`.
const PROC: Attributes = Attributes { number: usize::MAX - 3, mode: S_IFDIR | 0o555, user: 0, group: 0, modified: 0 };

/// The target of the symbolic link at `path`, as [`open`] looks it up.
///
/// # Errors
/// `EINVAL`: no link. Those of a lookup.
pub fn read_link(base: Option<&OpenFile>, path: &[u8]) -> Result<&'static [u8], Errno> {
    let base = base.map_or(Ok(""), OpenFile::directory)?;
    match initrd::look(base, path).map_err(PathError::errno)? {
        PathEntry::Link(file, _) => Ok(file.contents),
        _ => Err(Errno::EINVAL),
    }
}

/// Checks the path of a file that is created where there is none, but for its last name; whether a file may have that
/// (Linux's `open_last_lookups`). In `/proc` there are no others.
fn check_new_name(base: &str, path: &[u8]) -> Result<bool, Errno> {
    let names = without_slashes(path);
    let start = names.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = names.split_at_checked(start).unwrap_or_default();
    if matches!(name, b"" | b"." | b"..") {
        return Ok(false);
    }
    let parent = initrd::look(base, if parent.is_empty() { b"." } else { parent }).map_err(PathError::errno)?;
    if !parent.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    // An open makes no directory.
    if names.len() == path.len() { Ok(!matches!(parent, PathEntry::Proc(_))) } else { Err(Errno::EISDIR) }
}

/// Checks what a file is against the flags, in Linux's order (`do_open`, `may_open`).
fn check(kind: &Kind, flags: u32) -> Result<(), Errno> {
    let (writes, is_place) = (flags & O_ACCMODE != O_RDONLY || flags & O_TRUNC != 0, flags & O_PATH != 0);
    let is_directory = matches!(kind, Kind::Directory(..));
    let is_link = matches!(kind, Kind::Other(attributes) if attributes.mode & S_IFMT == S_IFLNK);
    let must_be_new = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    if is_link && flags & O_NOFOLLOW == 0 && !must_be_new {
        return Err(Errno::ELOOP);
    }
    if !is_place && must_be_new {
        return Err(Errno::EEXIST);
    }
    if !is_place && is_directory && flags & O_CREAT != 0 {
        return Err(Errno::EISDIR);
    }
    if flags & O_DIRECTORY != 0 && !is_directory {
        return Err(Errno::ENOTDIR);
    }
    match kind {
        _ if is_place => Ok(()),
        _ if flags & O_TMPFILE == O_TMPFILE => Err(Errno::EROFS),
        Kind::Directory(..) if writes => Err(Errno::EISDIR),
        Kind::Regular(..) if writes => Err(Errno::EROFS),
        Kind::Regular(..) => Ok(()),
        _ if is_link => Err(Errno::ELOOP),
        Kind::Proc(contents) if contents.is_of_nothing() => Err(Errno::ESRCH),
        _ if flags & O_DIRECT != 0 => Err(Errno::EINVAL),
        // No such device.
        Kind::Other(_) => Err(Errno::ENXIO),
        Kind::Console | Kind::Directory(..) | Kind::Device(_) | Kind::Proc(_) => Ok(()),
        // Opened by no path.
        Kind::Memory(_) | Kind::Userfault(_) | Kind::Pipe(_) | Kind::Event(_) | Kind::Process(_) => Ok(()),
    }
}

/// The flags of openat that have a meaning, without [`O_CLOEXEC`](granule_abi::file::O_CLOEXEC), which is the
/// descriptor's.
///
/// # Errors
/// `EINVAL`: they exclude each other.
pub fn checked(flags: u32) -> Result<u32, Errno> {
    const UNNAMED: u32 = O_TMPFILE & !O_DIRECTORY;
    const OF_PATH: u32 = O_PATH | O_DIRECTORY | O_NOFOLLOW;
    const KNOWN: u32 = OF_PATH
        | O_ACCMODE
        | O_CREAT
        | O_EXCL
        | O_NOCTTY
        | O_TRUNC
        | O_APPEND
        | O_NONBLOCK
        | O_SYNC
        | FASYNC
        | O_DIRECT
        | O_LARGEFILE
        | O_NOATIME
        | O_TMPFILE;
    let known = flags & if flags & O_PATH != 0 { OF_PATH } else { KNOWN };
    let wrong = known & (O_DIRECTORY | O_CREAT) == O_DIRECTORY | O_CREAT
        || known & UNNAMED != 0 && (known & O_DIRECTORY == 0 || known & O_ACCMODE == O_RDONLY);
    // Linux's `O_SYNC` implies `O_DSYNC`.
    let contents = if known & O_SYNC & !O_DSYNC != 0 { O_DSYNC } else { 0 };
    if wrong { Err(Errno::EINVAL) } else { Ok(known | contents) }
}

/// Checks that the bytes from `at` on have positions.
///
/// # Errors
/// `EINVAL`.
pub fn check_end(at: u64, bytes: u64) -> Result<(), Errno> {
    if at.checked_add(bytes).is_none_or(|end| end > LARGEST) { Err(Errno::EINVAL) } else { Ok(()) }
}

/// A path without the slashes at its end.
fn without_slashes(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    path
}

/// The source of a read from a position on.
pub enum Contents<'f> {
    /// Bytes that nothing changes.
    Bytes(&'static [u8]),
    /// So many bytes of an object from a position on, as far as it has them.
    Object(&'f Object, u64, u64),
}

impl Contents<'_> {
    /// How many bytes there are, at most.
    pub const fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Object(_, _, bytes) => *bytes,
        }
    }

    /// Takes the first bytes, as many as `buffer` has or fewer; empty at the end. It need not hold them.
    pub fn next<'b>(&mut self, buffer: &'b mut [u8]) -> &'b [u8] {
        match self {
            Self::Bytes(bytes) => {
                let (first, rest) = bytes.split_at_checked(buffer.len().min(bytes.len())).unwrap_or_default();
                *bytes = rest;
                first
            }
            Self::Object(object, at, left) => {
                let wanted = buffer.len().min(*left as usize);
                let piece = buffer.get_mut(..wanted).unwrap_or_default();
                let read = object.read(*at, piece);
                (*at, *left) = (*at + read as u64, if read < wanted { 0 } else { *left - read as u64 });
                piece.get(..read).unwrap_or_default()
            }
        }
    }
}

impl OpenFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(kind: Kind, flags: u32) -> Result<FileRef, OutOfMemory> {
        let pool = FILES.call_once(|| Pool::new(kernel().frames));
        let (flags, position, counted) = (AtomicU32::new(flags), AtomicU64::new(0), LastTally::default());
        Counted::try_new(pool, Self { kind, flags, position, counted })
    }

    /// Bytes of memory that go with it beside its record, once in each round: 0 where it was met in `tally`. But for those
    /// of a memory file, which are its [object](MemoryFile::object)'s.
    pub fn footprint(&self, tally: Tally) -> usize {
        match &self.kind {
            _ if self.counted.meet(tally) == Met::Again => 0,
            Kind::Pipe(end) => end.footprint(),
            Kind::Proc(contents) => contents.footprint(),
            _ => 0,
        }
    }

    /// The directory that it is, from the root.
    fn directory(&self) -> Result<&'static str, Errno> {
        if let Kind::Directory(here, _) = self.kind { Ok(here) } else { Err(Errno::ENOTDIR) }
    }

    /// Bits of `O_`, as `F_GETFL` has them.
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Whether it is only a place in the tree of files.
    pub fn is_path(&self) -> bool {
        self.flags() & O_PATH != 0
    }

    /// Changes the flags that may change, as `F_SETFL`.
    ///
    /// # Errors
    /// `EINVAL`: the file has no I/O past a cache.
    pub fn set_flags(&self, flags: u32) -> Result<(), Errno> {
        const CHANGE: u32 = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
        if flags & O_DIRECT != 0 && !matches!(self.kind, Kind::Regular(..) | Kind::Pipe(_)) {
            return Err(Errno::EINVAL);
        }
        let update = |before: u32| Some(before & !CHANGE | flags & CHANGE);
        // Relaxed: each read and write looks once.
        let _ = self.flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        Ok(())
    }

    /// Checks that it may be read.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn check_readable(&self) -> Result<(), Errno> {
        if matches!(self.flags() & O_ACCMODE, O_RDONLY | O_RDWR) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// Checks that it may be read, and has bytes for that.
    ///
    /// # Errors
    /// `EBADF`; `EINVAL`: what has none, or is written alone.
    pub fn check_has_bytes_to_read(&self) -> Result<(), Errno> {
        self.check_readable()?;
        self.check_has_bytes()?;
        if matches!(self.kind, Kind::Proc(ProcContents::ClearRefs(_))) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Checks that it may be written.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if matches!(self.flags() & O_ACCMODE, O_WRONLY | O_RDWR) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// Checks that it may be read or written at all.
    ///
    /// # Errors
    /// `EINVAL`: a device, or a process.
    pub fn check_has_bytes(&self) -> Result<(), Errno> {
        if self.device().is_some() || self.process().is_some() { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Checks that reads and writes may say where.
    ///
    /// # Errors
    /// `ESPIPE`.
    pub fn check_seekable(&self) -> Result<(), Errno> {
        match self.kind {
            Kind::Console | Kind::Pipe(_) | Kind::Event(_) | Kind::Userfault(_) => Err(Errno::ESPIPE),
            _ => Ok(()),
        }
    }

    /// The kind of the open file.
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The events for a poller; `reader` reads the console. A poller that finds nothing it waits for joins the
    /// queue and looks again.
    pub fn poll(&self, reader: console::Reader) -> PollState<'_> {
        const READY: PollState<'_> = PollState { events: POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM, queue: None };
        match &self.kind {
            Kind::Console => {
                let input = if console::has_input(reader) { POLLIN | POLLRDNORM } else { 0 };
                PollState { events: input | POLLOUT | POLLWRNORM, queue: Some(console::pollers()) }
            }
            Kind::Pipe(end) => end.poll(),
            Kind::Event(counter) => counter.poll(),
            Kind::Process(process) => process.poll(),
            // As on Linux, for a reader that does not wait: a fault may be served before it is read.
            Kind::Userfault(file) if !file.is_agreed() || self.if_not_ready() == IfNotReady::Wait => {
                PollState { events: POLLERR, queue: Some(file.pollers()) }
            }
            Kind::Userfault(file) => {
                let input = if file.has_message() { POLLIN } else { 0 };
                PollState { events: input, queue: Some(file.pollers()) }
            }
            // As on Linux: what has no state to wait for is always ready.
            Kind::Regular(..)
            | Kind::Memory(_)
            | Kind::Device(_)
            | Kind::Directory(..)
            | Kind::Proc(_)
            | Kind::Other(_) => READY,
        }
    }

    /// The memory file that it is, if it is one.
    pub const fn memory(&self) -> Option<&MemoryFile> {
        if let Kind::Memory(file) = &self.kind { Some(file) } else { None }
    }

    /// The userfaultfd that it is, if it is one.
    #[inline(always)]
    pub const fn userfaultfd(&self) -> Option<&UserfaultFile> {
        if let Kind::Userfault(file) = &self.kind { Some(file) } else { None }
    }

    /// The pages of a space, if it shows those.
    pub const fn pagemap(&self) -> Option<&Pagemap> {
        if let Kind::Proc(ProcContents::Pagemap(pages)) = &self.kind { Some(pages) } else { None }
    }

    /// The process that it refers to, if it is a pidfd.
    pub const fn process(&self) -> Option<&Counted<Pidfd>> {
        if let Kind::Process(process) = &self.kind { Some(process) } else { None }
    }

    /// The device that it is, if it is one.
    pub const fn device(&self) -> Option<DeviceNumber> {
        if let Kind::Device(device) = self.kind { Some(device) } else { None }
    }

    /// The pages of the file, for a mapping.
    ///
    /// # Errors
    /// `ENODEV`: it has none. `ENOMEM`.
    pub fn pages(&self) -> Result<Counted<Object>, Errno> {
        match &self.kind {
            Kind::Memory(file) => Ok(file.object().clone()),
            Kind::Regular(file, _, pages) => {
                let mut pages = pages.write();
                if let Some(pages) = &*pages {
                    return Ok(pages.clone());
                }
                let size = file.contents.len() as u64;
                let new = kernel().spaces.create_object(this_cpu(), size, Some(file.contents), Seals(F_SEAL_SEAL))?;
                Ok(pages.insert(new).clone())
            }
            Kind::Console
            | Kind::Device(_)
            | Kind::Userfault(_)
            | Kind::Directory(..)
            | Kind::Pipe(_)
            | Kind::Event(_)
            | Kind::Process(_)
            | Kind::Proc(_)
            | Kind::Other(_) => Err(Errno::ENODEV),
        }
    }

    /// Moves the position over `bytes` bytes that are written next; where it was. Two that write at once write to
    /// different places.
    pub fn advance(&self, bytes: u64) -> u64 {
        let most = |at: u64| Some(at.saturating_add(bytes).min(LARGEST));
        // Relaxed: nothing is published by a position.
        self.position.fetch_update(Ordering::Relaxed, Ordering::Relaxed, most).unwrap_or_default()
    }

    /// Moves the position to `end`, unless another has moved it from `before` concurrently.
    pub fn move_position(&self, before: u64, end: u64) {
        let _ = self.position.compare_exchange(before, end, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Checks that `bytes` bytes from the position on have positions.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn check_end(&self, bytes: u64) -> Result<(), Errno> {
        check_end(self.position.load(Ordering::Relaxed), bytes)
    }

    /// Sets the position: after what was added at the end.
    pub fn set_position(&self, to: u64) {
        self.position.store(to, Ordering::Relaxed);
    }

    /// Whether each write is at the end.
    pub fn appends(&self) -> bool {
        self.flags() & O_APPEND != 0
    }

    /// The effect of a read or write that has to wait.
    pub fn if_not_ready(&self) -> IfNotReady {
        if self.flags() & O_NONBLOCK == 0 { IfNotReady::Wait } else { IfNotReady::Fail }
    }

    /// Up to `bytes` bytes from the position on, and the position, which is moved after them; no more than `most`. Two
    /// that read at once have different bytes.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL`: a file is not so long.
    pub fn take(&self, bytes: u64, most: u64) -> Result<(u64, Contents<'_>), Errno> {
        // Relaxed: nothing is published by a position.
        let mut at = self.position.load(Ordering::Relaxed);
        loop {
            let contents = self.contents_at(at, bytes, most)?;
            let end = at + contents.bytes();
            match self.position.compare_exchange_weak(at, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok((at, contents)),
                Err(other) => at = other,
            }
        }
    }

    /// Up to `bytes` bytes from `at` on; no more than `most`.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub fn contents_at(&self, at: u64, bytes: u64, most: u64) -> Result<Contents<'_>, Errno> {
        check_end(at, bytes)?;
        let bytes = bytes.min(most).min(self.size()?.saturating_sub(at));
        Ok(match &self.kind {
            Kind::Memory(file) => Contents::Object(file.object(), at, bytes),
            Kind::Regular(file, ..) => {
                let rest = usize::try_from(at).ok().and_then(|at| file.contents.get(at..)).unwrap_or_default();
                Contents::Bytes(rest.get(..bytes as usize).unwrap_or(rest))
            }
            _ => Contents::Bytes(&[]),
        })
    }

    /// Bytes that can be read at positions.
    ///
    /// # Errors
    /// `EISDIR`, `ESPIPE`.
    fn size(&self) -> Result<u64, Errno> {
        match &self.kind {
            Kind::Regular(file, ..) => Ok(file.contents.len() as u64),
            Kind::Memory(file) => Ok(file.object().size()),
            Kind::Directory(..) => Err(Errno::EISDIR),
            // Linux shows none.
            Kind::Proc(_) => Ok(0),
            Kind::Console
            | Kind::Device(_)
            | Kind::Userfault(_)
            | Kind::Pipe(_)
            | Kind::Event(_)
            | Kind::Process(_)
            | Kind::Other(_) => Err(Errno::ESPIPE),
        }
    }

    /// How many bytes of a file there are after the position; fewer than none where it is after the end.
    pub fn left(&self) -> Option<i64> {
        if let Kind::Pipe(end) = &self.kind {
            return Some(end.bytes() as i64);
        }
        Some(self.size().ok()? as i64 - self.position.load(Ordering::Relaxed) as i64)
    }

    /// Moves the position, as `lseek`; returns it.
    ///
    /// # Errors
    /// `ESPIPE`, `EINVAL`, `ENXIO`.
    pub fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        if whence > SEEK_HOLE {
            return Err(Errno::EINVAL);
        }
        let size = match &self.kind {
            Kind::Console | Kind::Device(_) | Kind::Pipe(_) | Kind::Process(_) | Kind::Other(_) => {
                return Err(Errno::ESPIPE);
            }
            // As on Linux, its position stays where it is.
            Kind::Event(_) | Kind::Userfault(_) => return Ok(0),
            Kind::Proc(ProcContents::ClearRefs(_)) => return Ok(0),
            Kind::Proc(ProcContents::Pagemap(_) | ProcContents::Memory(_)) => {
                return self.seek_in_space(offset, whence);
            }
            Kind::Regular(file, ..) => file.contents.len() as i64,
            Kind::Memory(file) => file.object().size() as i64,
            // They have no size that they could be measured by.
            Kind::Directory(..) | Kind::Proc(_) if matches!(whence, SEEK_SET | SEEK_CUR) => 0,
            Kind::Directory(..) | Kind::Proc(_) => return Err(Errno::EINVAL),
        };
        let inside = (0..size).contains(&offset);
        let found = match (&self.kind, whence) {
            (_, SEEK_DATA | SEEK_HOLE) if !inside => return Err(Errno::ENXIO),
            (Kind::Memory(file), SEEK_DATA | SEEK_HOLE) => {
                let wanted = if whence == SEEK_HOLE { Sought::Hole } else { Sought::Data };
                let found = file.object().seek(offset as u64, wanted);
                found.ok_or(Errno::ENXIO)? as i64
            }
            // The contents have no holes but the one after them.
            (_, SEEK_HOLE) => size,
            _ => offset,
        };
        let target = |before: u64| match whence {
            SEEK_CUR => offset.checked_add(before as i64),
            SEEK_END => offset.checked_add(size),
            _ => Some(found),
        };
        let target = |before| target(before).and_then(|to| u64::try_from(to).ok());
        let moved = self.position.fetch_update(Ordering::Relaxed, Ordering::Relaxed, target);
        moved.ok().and_then(target).ok_or(Errno::EINVAL)
    }

    /// As [`Self::seek`], for a file without an end (Linux's `mem_lseek`): any position, also an unreadable one.
    fn seek_in_space(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        let to = match whence {
            SEEK_SET => offset as u64,
            SEEK_CUR => self.position.load(Ordering::Relaxed).wrapping_add(offset as u64),
            _ => return Err(Errno::EINVAL),
        };
        self.set_position(to);
        Ok(to)
    }

    /// The position.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// `struct stat`, in words of 8 bytes.
    pub fn stat(&self) -> [u64; 16] {
        const SECOND: u64 = 1_000_000_000;
        let special = |number| Attributes { number, mode: S_IFCHR | 0o600, user: 0, group: 0, modified: 0 };
        let (attributes, size) = match &self.kind {
            Kind::Console => (special(usize::MAX - 2), 0),
            Kind::Device(number) => (special(usize::MAX - number.of_stat() as usize), 0),
            Kind::Userfault(_) => (Attributes { mode: 0o600, ..special(usize::MAX - 3) }, 0),
            Kind::Regular(file, attributes, _) => (*attributes, file.contents.len() as u64),
            Kind::Memory(file) => {
                let number = file.object().identity();
                (Attributes { number, mode: file.mode(), user: 0, group: 0, modified: 0 }, file.object().size())
            }
            Kind::Pipe(end) => (Attributes { mode: S_IFIFO | 0o600, ..special(end.identity().0) }, 0),
            // As on Linux, of no kind.
            Kind::Event(_) => (Attributes { mode: 0o600, ..special(1) }, 0),
            Kind::Process(process) => (Attributes { mode: 0o700, ..special(process.serial as usize) }, 0),
            Kind::Proc(file) => (Attributes { mode: S_IFREG | file.mode(), ..PROC }, 0),
            Kind::Directory(_, attributes) | Kind::Other(attributes) => (*attributes, 0),
        };
        let memory = self.memory();
        let links = match attributes.mode & S_IFMT {
            S_IFDIR => 2,
            // It has no name in a directory.
            _ if memory.is_some() => 0,
            _ => 1,
        };
        let pages = memory.map_or(size.div_ceil(PAGE), |file| file.object().pages() as u64);
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let time = match &self.kind {
            Kind::Memory(file) => file.changed(),
            Kind::Pipe(end) => end.identity().1,
            _ => u64::from(attributes.modified) * SECOND,
        };
        let (seconds, rest) = (time / SECOND, time % SECOND);
        [
            self.kind.device(),
            attributes.number as u64,
            pair(attributes.mode, links),
            pair(attributes.user, attributes.group),
            self.kind.represented(),
            0,
            size,
            PAGE,
            // In pages, as memory has them.
            pages * (PAGE_SIZE / 512) as u64,
            seconds,
            rest,
            seconds,
            rest,
            seconds,
            rest,
            0,
        ]
    }
}

impl Kind {
    /// The device that files of the kind are on, a number for each.
    const fn device(&self) -> u64 {
        match self {
            Self::Memory(_) => 1,
            Self::Pipe(_) => 3,
            Self::Event(_) => 4,
            Self::Proc(_) => 5,
            Self::Process(_) => 6,
            _ => 2,
        }
    }

    /// The device that the file is; 0 for none.
    fn represented(&self) -> u64 {
        match self {
            Self::Console => 5 << 8 | 1,
            Self::Device(number) => number.of_stat(),
            _ => 0,
        }
    }
}
