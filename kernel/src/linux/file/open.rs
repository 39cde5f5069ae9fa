//! Open files (POSIX: open file descriptions): what a file is, how it was opened, and where in it reads go on.
//!
//! There are nodes of the tree and memory files, the console, devices, pipes, event counters, timers, signals, epoll
//! sets, references to processes, and what `/proc` has.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule_abi::file::{
    FASYNC, O_ACCMODE, O_APPEND, O_CREAT, O_DIRECT, O_DIRECTORY, O_DSYNC, O_EXCL, O_LARGEFILE, O_NOATIME, O_NOCTTY,
    O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_SYNC, O_TMPFILE, O_TRUNC, O_WRONLY, POLLERR, POLLIN, POLLOUT,
    POLLRDNORM, POLLWRNORM, RWF_APPEND, RWF_DSYNC, RWF_HIPRI, RWF_NOAPPEND, RWF_NOSIGNAL, RWF_NOWAIT, RWF_SYNC,
    S_IFREG, SEEK_CUR, SEEK_DATA, SEEK_END, SEEK_HOLE, SEEK_SET,
};
use spin::Once;

use super::contents::{Contents, FileContents, Regular};
use super::device::{DeviceNumber, KernelDevice};
use super::epoll::{EpollFile, Watched};
use super::event::EventCounter;
use super::files::{self, FileNodeRef, FilePlace};
use super::locks::LockOwner;
use super::pidfd::Pidfd;
use super::pipe::PipeEnd;
use super::proc::{Pagemap, ProcContents, ProcEntry, ProcId, ProcSubject};
use super::signalfd::SignalFile;
use super::table::{Filed, Files, Pools};
use super::timerfd::TimerFile;
use super::tree::{self, NAME, NodeKind};
use super::userfaultfd::UserfaultFile;
use super::walk::{Follow, IsProcess, Last, Place};
use crate::chip::console;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::mm::space::{LastTally, Met, Object, Sought, Tally};
use crate::sched::{IfNotReady, PollQueue};

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
    /// First, so that no epoll set has it when the rest ends.
    watched: Watched,
    /// Before the node, so that its locks end before that may.
    locks: LockOwner,
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
        // A node may have locks.
        matches!(self.kind, Kind::Node(_) | Kind::Pipe(_) | Kind::Epoll(_))
    }

    fn subject(&self) -> u64 {
        self.node().map_or(0, |node| core::ptr::from_ref(&**node).addr() as u64)
    }
}

/// The kind of an open file, with its state.
pub enum Kind {
    /// The console.
    Console,
    /// A node of the tree, or a memory file.
    Node(FileNodeRef),
    /// A device whose registers are mapped. It is neither read nor written.
    Device(DeviceNumber),
    /// A userfaultfd.
    Userfault(UserfaultFile),
    /// An end of a pipe.
    Pipe(PipeEnd),
    /// An event counter.
    Event(EventCounter),
    /// A timer.
    Timer(TimerFile),
    /// Signals of its reader.
    Signals(SignalFile),
    /// An epoll set.
    Epoll(EpollFile),
    /// A reference to a process.
    Process(Counted<Pidfd>),
    /// A file of a process in `/proc`.
    Proc(ProcContents),
    /// A directory in `/proc`.
    ProcDirectory(ProcEntry),
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

/// A flag of one write, beside those of `O_`: no SIGPIPE.
pub const NO_SIGNAL: u32 = 1 << 31;

/// How a file is opened.
#[derive(Clone, Copy)]
pub struct Opening {
    /// The flags, which are [`checked`].
    pub flags: u32,
    /// The permissions of a new file.
    pub mode: u32,
}

/// A file that was opened. Until [`Self::finish`], after which nothing may fail, one that is new has no name, and one that
/// is cut has its contents: a call that failed finds all as it was when it is repeated.
pub struct Opened {
    /// The file.
    pub file: FileRef,
    new_name: Option<(FileNodeRef, heapless::Vec<u8, NAME>)>,
    /// Whether it is cut (`O_TRUNC`), and is a file that can be.
    is_cut: bool,
}

impl Opened {
    /// Gives a new file its name, and cuts one that is to be cut.
    ///
    /// # Errors
    /// `EEXIST`: something else was given the name concurrently. `ENOENT`: the directory was removed. `ENOMEM`, `ENOSPC`.
    pub fn finish(&self) -> Result<(), Errno> {
        match (&self.new_name, self.file.node()) {
            (Some((directory, name)), Some(node)) => files::tree()?.link(directory, name, node),
            (None, Some(node)) if self.is_cut => Regular::of(node).map_or(Ok(()), |file| file.truncate(0)),
            _ => Ok(()),
        }
    }
}

impl From<FileRef> for Opened {
    fn from(file: FileRef) -> Self {
        Self { file, new_name: None, is_cut: false }
    }
}

/// Opens what is at `path`, from `base` on or the root. `find` finds a process whose files in `/proc` are named,
/// and `is_process` whether there is one.
///
/// # Errors
/// Those of `openat`, and of `find`.
pub fn open(
    base: Option<FilePlace>,
    path: &[u8],
    Opening { flags, mode }: Opening,
    find: impl FnOnce(ProcId) -> Result<ProcSubject, Errno>,
    is_process: IsProcess,
) -> Result<Opened, Errno> {
    if flags & O_TMPFILE == O_TMPFILE {
        return open_unnamed((base, path), flags, mode, is_process).map(Opened::from);
    }
    let creates = flags & O_CREAT != 0;
    let found = files::walk(base, path, follow(path, flags), is_process)?;
    if creates && found.slash && matches!(found.last, Last::Name(_) | Last::TooLong) {
        return Err(Errno::EISDIR);
    }
    if creates && let (Place::Node(directory), Last::Name(name), None) = (&found.directory, &found.last, &found.place) {
        // A file that is new needs no permission.
        let file = OpenFile::new(Kind::Node(new_file(directory, mode)?), kept(flags))?;
        return Ok(Opened { file, new_name: Some((directory.clone(), name.clone())), is_cut: false });
    }
    let place = found.existing()?;
    check(&place, flags)?;
    let kind = match place {
        Place::Node(node) => match &node.kind {
            NodeKind::Console => Kind::Console,
            NodeKind::Device(number) => Kind::Device(*number),
            NodeKind::File(contents) if flags & O_PATH == 0 => {
                // Nothing is kept of contents that are cut.
                if flags & O_ACCMODE != O_RDONLY && flags & O_TRUNC == 0 {
                    contents.to_write()?;
                }
                Kind::Node(node)
            }
            _ => Kind::Node(node),
        },
        Place::Proc(ProcEntry::File(process, file)) => Kind::Proc(file.of(find(process)?)),
        Place::Proc(entry) => Kind::ProcDirectory(entry),
    };
    match &kind {
        Kind::Proc(contents) if flags & O_PATH == 0 && contents.is_of_nothing() => return Err(Errno::ESRCH),
        Kind::Node(node) if Regular::of(node).is_some() => {}
        _ if flags & (O_PATH | O_DIRECT) == O_DIRECT => return Err(Errno::EINVAL),
        _ => {}
    }
    let (is_path, is_cut) = (flags & O_PATH != 0, flags & (O_PATH | O_TRUNC) == O_TRUNC);
    let file = OpenFile::new(kind, if is_path { flags } else { kept(flags) })?;
    Ok(Opened { is_cut, ..file.into() })
}

/// The flags that an open file keeps.
const fn kept(flags: u32) -> u32 {
    flags & !(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC) | O_LARGEFILE
}

/// Whether an open follows a link at the end of a path.
fn follow(path: &[u8], flags: u32) -> Follow {
    let creates = flags & O_CREAT != 0;
    match flags & (O_NOFOLLOW | O_EXCL) {
        _ if creates && path.ends_with(b"/") => Follow::Never,
        0 => Follow::Always,
        O_EXCL if !creates => Follow::Always,
        _ => Follow::BeforeSlash,
    }
}

fn new_file(directory: &FileNodeRef, mode: u32) -> Result<FileNodeRef, Errno> {
    let kind = NodeKind::File(FileContents::from([].as_slice()));
    files::tree()?.node(kind, directory.attributes_in(S_IFREG | mode & 0o7777, files::now()))
}

/// Opens a file without a name (`O_TMPFILE`).
fn open_unnamed(
    (base, path): (Option<FilePlace>, &[u8]),
    flags: u32,
    mode: u32,
    is_process: IsProcess,
) -> Result<FileRef, Errno> {
    let follow = if flags & O_NOFOLLOW == 0 { Follow::Always } else { Follow::BeforeSlash };
    let directory = match files::walk(base, path, follow, is_process)?.existing()? {
        Place::Node(node) if node.is_directory() => node,
        Place::Node(_) | Place::Proc(ProcEntry::File(..)) => return Err(Errno::ENOTDIR),
        Place::Proc(_) => return Err(Errno::ENOTSUP),
    };
    let node = new_file(&directory, mode)?;
    if flags & O_EXCL != 0 {
        node.forbid_names();
    }
    Ok(OpenFile::new(Kind::Node(node), kept(flags))?)
}

/// Checks what a file is against the flags, in Linux's order (`do_open`, `may_open`).
fn check(place: &FilePlace, flags: u32) -> Result<(), Errno> {
    let (writes, is_place) = (flags & O_ACCMODE != O_RDONLY || flags & O_TRUNC != 0, flags & O_PATH != 0);
    let is_directory = place.is_directory();
    if !is_place && flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
        return Err(Errno::EEXIST);
    }
    if !is_place && is_directory && flags & O_CREAT != 0 {
        return Err(Errno::EISDIR);
    }
    if flags & O_DIRECTORY != 0 && !is_directory {
        return Err(Errno::ENOTDIR);
    }
    match place {
        _ if is_place => Ok(()),
        _ if place.link().is_some() => Err(Errno::ELOOP),
        _ if is_directory && writes => Err(Errno::EISDIR),
        // No such device.
        Place::Node(node) if matches!(node.kind, NodeKind::Other) => Err(Errno::ENXIO),
        _ => Ok(()),
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

/// The effect of a read or write with these flags that has to wait.
pub const fn if_not_ready(flags: u32) -> IfNotReady {
    if flags & O_NONBLOCK == 0 { IfNotReady::Wait } else { IfNotReady::Fail }
}

impl OpenFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(kind: Kind, flags: u32) -> Result<FileRef, OutOfMemory> {
        let pool = FILES.call_once(|| Pool::new(kernel().frames));
        let (flags, position, counted) = (AtomicU32::new(flags), AtomicU64::new(0), LastTally::default());
        let (watched, locks) = (Watched::default(), LockOwner::new());
        Counted::try_new(pool, Self { watched, locks, kind, flags, position, counted })
    }

    /// Bytes of memory that go with it beside its record, once in each round: 0 where it was met in `tally`. But for those
    /// of a regular file, which are its [object](Self::unnamed)'s.
    pub fn footprint(&self, tally: Tally) -> usize {
        match &self.kind {
            _ if self.counted.meet(tally) == Met::Again => 0,
            Kind::Pipe(end) => end.footprint(),
            Kind::Proc(contents) => contents.footprint(),
            Kind::Epoll(set) => set.footprint(),
            _ => self.locks.footprint(),
        }
    }

    /// The directory that it is, for paths.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn directory(&self) -> Result<FilePlace, Errno> {
        match &self.kind {
            Kind::Node(node) if node.is_directory() => Ok(Place::Node(node.clone())),
            Kind::ProcDirectory(entry) => Ok(Place::Proc(*entry)),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The locks that are the open file's own.
    pub const fn locks(&self) -> &LockOwner {
        &self.locks
    }

    /// The node that it is.
    pub const fn node(&self) -> Option<&FileNodeRef> {
        if let Kind::Node(node) = &self.kind { Some(node) } else { None }
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
        let has_direct = match &self.kind {
            Kind::Node(node) => node.device == tree::DEVICE && Regular::of(node).is_some(),
            kind => matches!(kind, Kind::Pipe(_)),
        };
        if flags & O_DIRECT != 0 && !has_direct {
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
    /// `EINVAL`: a device without bytes, a process, or an epoll set.
    pub fn check_has_bytes(&self) -> Result<(), Errno> {
        let has_none = self.device().is_some() || self.kernel_device() == Some(KernelDevice::Userfaultfd);
        if has_none || self.process().is_some() || self.epoll().is_some() { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Checks that it is a file to which bytes can be written.
    ///
    /// # Errors
    /// `EINVAL`: as above, or it is only read.
    pub fn check_takes_bytes(&self) -> Result<(), Errno> {
        if matches!(self.kind, Kind::Timer(_) | Kind::Signals(_)) { Err(Errno::EINVAL) } else { self.check_has_bytes() }
    }

    /// Checks that reads and writes may say where.
    ///
    /// # Errors
    /// `ESPIPE`.
    pub fn check_seekable(&self) -> Result<(), Errno> {
        match self.kind {
            Kind::Console | Kind::Pipe(_) => Err(Errno::ESPIPE),
            _ if self.is_without_position() => Err(Errno::ESPIPE),
            _ => Ok(()),
        }
    }

    /// Whether it is one of the files without a name that are read, whose position is always 0.
    const fn is_without_position(&self) -> bool {
        matches!(self.kind, Kind::Event(_) | Kind::Timer(_) | Kind::Signals(_) | Kind::Epoll(_) | Kind::Userfault(_))
    }

    /// The kind of the open file.
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Before a thread polls it, or adds it to an epoll set, which keeps the queue that is returned.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn prepare_to_poll(&self) -> Result<Option<Counted<PollQueue>>, OutOfMemory> {
        if let Kind::Signals(signals) = &self.kind { signals.prepare().map(Some) } else { Ok(None) }
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
            Kind::Timer(timer) => timer.poll(),
            Kind::Signals(signals) => signals.poll(),
            Kind::Epoll(set) => set.poll(reader),
            Kind::Process(process) => process.poll(),
            // As on Linux, for a reader that does not wait: a fault may be served before it is read.
            Kind::Userfault(file) if !file.is_agreed() || self.if_not_ready() == IfNotReady::Wait => {
                PollState { events: POLLERR, queue: Some(file.pollers()) }
            }
            Kind::Userfault(file) => {
                let input = if file.has_message() { POLLIN } else { 0 };
                PollState { events: input, queue: Some(file.pollers()) }
            }
            Kind::Node(_) if self.kernel_device() == Some(KernelDevice::Random) => {
                PollState { events: POLLIN | POLLRDNORM, queue: None }
            }
            // As on Linux: what has no state to wait for is always ready.
            Kind::Node(_) | Kind::Device(_) | Kind::Proc(_) | Kind::ProcDirectory(_) => READY,
        }
    }

    /// Whether an epoll set watches it.
    pub const fn watched(&self) -> &Watched {
        &self.watched
    }

    /// The regular file that it is, if it is one.
    pub fn regular(&self) -> Option<Regular<'_>> {
        Regular::of(self.node()?)
    }

    /// The pages that end with the file, as it has no name.
    pub fn unnamed(&self) -> Option<&Counted<Object>> {
        let (_, links) = self.node()?.attributes();
        self.regular()?.contents().written().filter(|_| links == 0)
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

    /// The device of the kernel's own that it is, if it is one.
    pub fn kernel_device(&self) -> Option<KernelDevice> {
        if let NodeKind::Kernel(device) = self.node()?.kind { Some(device) } else { None }
    }

    /// The pages of the file, for a mapping.
    ///
    /// # Errors
    /// `ENODEV`: it has none. `ENOMEM`.
    pub fn pages(&self) -> Result<Counted<Object>, Errno> {
        Ok(self.regular().ok_or(Errno::ENODEV)?.contents().object()?.clone())
    }

    /// Moves the position over `bytes` bytes that are written next; where it was. Two that write at once write to
    /// different places.
    pub fn advance(&self, bytes: u64) -> u64 {
        let most = |at: u64| Some(at.saturating_add(bytes).min(LARGEST));
        // Relaxed: nothing is published by a position.
        self.position.fetch_update(Ordering::Relaxed, Ordering::Relaxed, most).unwrap_or_default()
    }

    /// Moves the position to `end`, unless another has moved it from `before` concurrently; returns whether it did.
    pub fn move_position(&self, before: u64, end: u64) -> bool {
        self.position.compare_exchange(before, end, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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

    /// The flags for a read, or a write (`writes`), that has flags of its own, bits of `RWF_`: its `O_` and
    /// [`NO_SIGNAL`]. No lock is taken.
    ///
    /// # Errors
    /// `ENOTSUP`: Linux's file of this kind does not support one of them. `EINVAL`: they exclude each other.
    pub fn flags_of_call(&self, asked: u32, writes: bool) -> Result<u32, Errno> {
        const ALL: u32 = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT | RWF_APPEND | RWF_NOAPPEND | RWF_NOSIGNAL;
        let is_full = self.kernel_device() == Some(KernelDevice::Full);
        let known = match &self.kind {
            Kind::Proc(_) | Kind::ProcDirectory(_) => RWF_HIPRI,
            Kind::Event(_) if writes => RWF_HIPRI,
            Kind::Node(node) if node.is_directory() || is_full && writes => RWF_HIPRI,
            Kind::Node(node) if is_full || Regular::of(node).is_some() => ALL & !RWF_NOWAIT,
            Kind::Console => ALL & !RWF_NOWAIT,
            _ => ALL,
        };
        if asked & !known != 0 {
            return Err(Errno::ENOTSUP);
        }
        if asked & RWF_APPEND != 0 && asked & RWF_NOAPPEND != 0 {
            return Err(Errno::EINVAL);
        }
        let with = |asked_for: u32, flag| if asked & asked_for != 0 { flag } else { 0 };
        let added = with(RWF_NOWAIT, O_NONBLOCK) | with(RWF_APPEND, O_APPEND) | with(RWF_NOSIGNAL, NO_SIGNAL);
        Ok(self.flags() & !with(RWF_NOAPPEND, O_APPEND) | added)
    }

    /// The effect of a wait for the file.
    pub fn if_not_ready(&self) -> IfNotReady {
        if_not_ready(self.flags())
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
        match self.kernel_device() {
            Some(KernelDevice::Zero | KernelDevice::Full) => return Ok(Contents::Zeros(bytes.min(most))),
            Some(device) if device.is_random() => {
                return Ok(Contents::random(bytes.min(most)));
            }
            Some(_) => return Ok(Contents::Bytes(&[])),
            None => {}
        }
        let bytes = bytes.min(most).min(self.size()?.saturating_sub(at));
        let regular = self.regular();
        let contents = regular.as_ref().map(Regular::contents);
        // In this order: what is not as in the initrd was written.
        Ok(match contents.map(|file| (file.bytes(), file.written())) {
            Some((None, Some(object))) => Contents::Object(object, at, bytes),
            Some((Some(file), _)) => {
                let rest = usize::try_from(at).ok().and_then(|at| file.get(at..)).unwrap_or_default();
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
            Kind::Node(node) => match &node.kind {
                NodeKind::File(contents) => Ok(contents.size()),
                NodeKind::Kernel(_) => Err(Errno::ESPIPE),
                _ => Err(Errno::EISDIR),
            },
            Kind::ProcDirectory(_) => Err(Errno::EISDIR),
            // Linux shows none.
            Kind::Proc(_) => Ok(0),
            Kind::Console
            | Kind::Device(_)
            | Kind::Userfault(_)
            | Kind::Pipe(_)
            | Kind::Event(_)
            | Kind::Timer(_)
            | Kind::Signals(_)
            | Kind::Epoll(_)
            | Kind::Process(_) => Err(Errno::ESPIPE),
        }
    }

    /// How many bytes of a file there are after the position; fewer than none where it is after the end.
    pub fn left(&self) -> Option<i64> {
        if let Kind::Pipe(end) = &self.kind {
            return Some(end.bytes() as i64);
        }
        Some((self.size().ok()? as i64).wrapping_sub(self.position.load(Ordering::Relaxed) as i64))
    }

    /// Moves the position, as `lseek`; returns it.
    ///
    /// # Errors
    /// `ESPIPE`, `EINVAL`, `ENXIO`.
    pub fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        if whence > SEEK_HOLE {
            return Err(Errno::EINVAL);
        }
        let regular = self.regular();
        let contents = regular.as_ref().map(Regular::contents);
        let size = match &self.kind {
            Kind::Console | Kind::Device(_) | Kind::Pipe(_) | Kind::Process(_) => return Err(Errno::ESPIPE),
            // As on Linux, its position stays where it is.
            _ if self.is_without_position() => return Ok(0),
            Kind::Node(_) if self.kernel_device().is_some() => return Ok(0),
            Kind::Proc(ProcContents::ClearRefs(_)) => return Ok(0),
            Kind::Proc(ProcContents::Pagemap(_) | ProcContents::Memory(_)) => {
                return self.seek_in_space(offset, whence);
            }
            _ => match contents {
                Some(contents) => contents.size() as i64,
                None if matches!(self.kind, Kind::ProcDirectory(_)) => 0,
                // They have no size that they could be measured by.
                None if matches!(whence, SEEK_SET | SEEK_CUR) => 0,
                None => return Err(Errno::EINVAL),
            },
        };
        let inside = (0..size).contains(&offset);
        let found = match (contents.and_then(|file| file.written()), whence) {
            (_, SEEK_DATA | SEEK_HOLE) if !inside => return Err(Errno::ENXIO),
            (Some(object), SEEK_DATA | SEEK_HOLE) => {
                let wanted = if whence == SEEK_HOLE { Sought::Hole } else { Sought::Data };
                let found = object.seek(offset as u64, wanted);
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
}
