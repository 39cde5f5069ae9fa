//! Files: `linux/fcntl.h`, `linux/fs.h`, `linux/stat.h`, `asm/stat.h`.

/// openat: for reading.
pub const O_RDONLY: u32 = 0;
/// openat: for writing.
pub const O_WRONLY: u32 = 1;
/// openat: for both.
pub const O_RDWR: u32 = 2;
/// The bits of the three.
pub const O_ACCMODE: u32 = 3;
/// openat: a file that is not there is created.
pub const O_CREAT: u32 = 0o100;
/// openat: and one that is there is an error.
pub const O_EXCL: u32 = 0o200;
/// openat: a terminal does not become the controlling one.
pub const O_NOCTTY: u32 = 0o400;
/// openat: the file becomes empty.
pub const O_TRUNC: u32 = 0o1000;
/// openat: writes are at the end.
pub const O_APPEND: u32 = 0o2000;
/// openat: reads and writes do not wait.
pub const O_NONBLOCK: u32 = 0o4000;
/// openat: writes wait for the disk, for the contents.
pub const O_DSYNC: u32 = 0o1_0000;
/// openat: writes wait for the disk, for the contents and all that is known of the file.
pub const O_SYNC: u32 = 0o401_0000;
/// openat: a signal where input has come.
pub const FASYNC: u32 = 0o2_0000;
/// openat: directories only.
pub const O_DIRECTORY: u32 = 0o4_0000;
/// openat: not through a symbolic link at the end of the path.
pub const O_NOFOLLOW: u32 = 0o10_0000;
/// openat: past the page cache.
pub const O_DIRECT: u32 = 0o20_0000;
/// openat: more than 2 GiB; always.
pub const O_LARGEFILE: u32 = 0o40_0000;
/// openat: reads leave the time of the last access.
pub const O_NOATIME: u32 = 0o100_0000;
/// openat, dup3: an exec closes the descriptor.
pub const O_CLOEXEC: u32 = 0o200_0000;
/// openat: a place in the tree of files, not for reading or writing.
pub const O_PATH: u32 = 0o1000_0000;
/// openat: a file without a name; with [`O_DIRECTORY`].
pub const O_TMPFILE: u32 = 0o2000_0000 | O_DIRECTORY;

/// In a descriptor's place: the working directory.
pub const AT_FDCWD: i32 = -100;
/// newfstatat: a symbolic link itself.
pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
/// newfstatat: without a path, what the descriptor is of.
pub const AT_EMPTY_PATH: u32 = 0x1000;

/// unlinkat: a directory.
pub const AT_REMOVEDIR: u32 = 0x200;
/// faccessat2: with the effective user.
pub const AT_EACCESS: u32 = 0x200;
/// linkat: what a symbolic link leads to.
pub const AT_SYMLINK_FOLLOW: u32 = 0x400;
/// statx, newfstatat: nothing is mounted for it.
pub const AT_NO_AUTOMOUNT: u32 = 0x800;
/// statx: how fresh a network's answer must be.
pub const AT_STATX_SYNC_TYPE: u32 = 0x6000;
/// statx: the fields of a stat.
pub const STATX_BASIC_STATS: u32 = 0x7ff;
/// statx: a bit that no mask has.
pub const STATX_RESERVED: u32 = 1 << 31;
/// renameat2: not in place of another file.
pub const RENAME_NOREPLACE: u32 = 1;
/// renameat2: the two files change their names.
pub const RENAME_EXCHANGE: u32 = 2;
/// faccessat: may it be executed?
pub const X_OK: u32 = 1;
/// faccessat: may it be written?
pub const W_OK: u32 = 2;
/// faccessat: may it be read?
pub const R_OK: u32 = 4;
/// utimensat, in place of nanoseconds: now.
pub const UTIME_NOW: u64 = (1 << 30) - 1;
/// utimensat, in place of nanoseconds: the time stays.
pub const UTIME_OMIT: u64 = (1 << 30) - 2;
/// statfs: the kind of file system of files that are memory.
pub const TMPFS_MAGIC: u64 = 0x0102_1994;
/// statfs: the kind of `/proc`.
pub const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// fcntl: the lowest free descriptor from the argument on.
pub const F_DUPFD: u32 = 0;
/// fcntl: the flags of a descriptor.
pub const F_GETFD: u32 = 1;
/// fcntl: sets them.
pub const F_SETFD: u32 = 2;
/// fcntl: the flags of an open file.
pub const F_GETFL: u32 = 3;
/// fcntl: sets those that may change.
pub const F_SETFL: u32 = 4;
/// fcntl: a lock of another owner in the way of one of the process.
pub const F_GETLK: u32 = 5;
/// fcntl: sets a lock of the process, if none is in its way.
pub const F_SETLK: u32 = 6;
/// fcntl: waits until it can be set.
pub const F_SETLKW: u32 = 7;
/// fcntl: as [`F_GETLK`], for the open file.
pub const F_OFD_GETLK: u32 = 36;
/// fcntl: as [`F_SETLK`], for the open file.
pub const F_OFD_SETLK: u32 = 37;
/// fcntl: as [`F_SETLKW`], for the open file.
pub const F_OFD_SETLKW: u32 = 38;
/// A lock that owners may have together.
pub const F_RDLCK: u16 = 0;
/// A lock that one owner has alone.
pub const F_WRLCK: u16 = 1;
/// No lock.
pub const F_UNLCK: u16 = 2;
/// flock: the open file has a lock together with others.
pub const LOCK_SH: u32 = 1;
/// flock: it has one alone.
pub const LOCK_EX: u32 = 2;
/// flock: without waiting.
pub const LOCK_NB: u32 = 4;
/// flock: it has none.
pub const LOCK_UN: u32 = 8;
/// flock: for other systems. Such a call does nothing.
pub const LOCK_MAND: u32 = 32;

/// A lock of bytes of a file: `struct flock`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flock {
    /// [`F_RDLCK`], [`F_WRLCK`] or [`F_UNLCK`].
    pub l_type: u16,
    /// The place from which the start counts.
    pub l_whence: u16,
    /// The first byte.
    pub l_start: i64,
    /// How many bytes: 0 for all, and fewer than 0 for those before the start.
    pub l_len: i64,
    /// The process that has the lock; -1 for an open file.
    pub l_pid: i32,
}

/// fcntl: as [`F_DUPFD`], and an exec closes the new descriptor.
pub const F_DUPFD_CLOEXEC: u32 = 1030;
/// fcntl: adds seals to a file.
pub const F_ADD_SEALS: u32 = 1033;
/// fcntl: the seals of a file.
pub const F_GET_SEALS: u32 = 1034;

/// fcntl: sets the size of a pipe.
pub const F_SETPIPE_SZ: u32 = 1031;
/// fcntl: the size of a pipe.
pub const F_GETPIPE_SZ: u32 = 1032;
/// pipe2: for notifications of the kernel (`O_NOTIFICATION_PIPE`).
pub const O_NOTIFICATION_PIPE: u32 = O_EXCL;
/// Bytes that a write to a pipe keeps together.
pub const PIPE_BUF: usize = 4096;

/// eventfd2: each read takes 1.
pub const EFD_SEMAPHORE: u32 = 1;
/// eventfd2: an exec closes the descriptor.
pub const EFD_CLOEXEC: u32 = O_CLOEXEC;
/// eventfd2: reads and writes do not wait.
pub const EFD_NONBLOCK: u32 = O_NONBLOCK;

/// signalfd4: an exec closes the descriptor.
pub const SFD_CLOEXEC: u32 = O_CLOEXEC;
/// signalfd4: reads do not wait.
pub const SFD_NONBLOCK: u32 = O_NONBLOCK;

/// timerfd_create: an exec closes the descriptor.
pub const TFD_CLOEXEC: u32 = O_CLOEXEC;
/// timerfd_create: reads do not wait.
pub const TFD_NONBLOCK: u32 = O_NONBLOCK;
/// timerfd_settime: the time is a moment, not a length.
pub const TFD_TIMER_ABSTIME: u32 = 1;
/// timerfd_settime: reads end where the clock is set.
pub const TFD_TIMER_CANCEL_ON_SET: u32 = 2;

/// ppoll: there is input.
pub const POLLIN: u16 = 1;
/// ppoll: there is urgent input.
pub const POLLPRI: u16 = 2;
/// ppoll: there is room for output.
pub const POLLOUT: u16 = 4;
/// ppoll: an error, whether it was asked for or not.
pub const POLLERR: u16 = 8;
/// ppoll: the other end is closed, whether it was asked for or not.
pub const POLLHUP: u16 = 0x10;
/// ppoll: no such descriptor.
pub const POLLNVAL: u16 = 0x20;
/// ppoll: as [`POLLIN`].
pub const POLLRDNORM: u16 = 0x40;
/// ppoll: as [`POLLOUT`].
pub const POLLWRNORM: u16 = 0x100;

/// One descriptor of ppoll, and the events to wait for: `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PollFd {
    /// The descriptor; a negative one is left out.
    pub fd: i32,
    /// The events to wait for, bits of `POLL`.
    pub events: u16,
    /// The events that were found.
    pub revents: u16,
}

/// epoll_create1: an exec closes the descriptor.
pub const EPOLL_CLOEXEC: u32 = O_CLOEXEC;
/// epoll_ctl: adds a file.
pub const EPOLL_CTL_ADD: u32 = 1;
/// epoll_ctl: removes a file.
pub const EPOLL_CTL_DEL: u32 = 2;
/// epoll_ctl: changes the events of a file.
pub const EPOLL_CTL_MOD: u32 = 3;
/// epoll: as [`POLLIN`], and so are the next ones as those of poll.
pub const EPOLLIN: u32 = POLLIN as u32;
/// epoll: there is room for output.
pub const EPOLLOUT: u32 = POLLOUT as u32;
/// epoll: an error, whether it was asked for or not.
pub const EPOLLERR: u32 = POLLERR as u32;
/// epoll: the other end is closed, whether it was asked for or not.
pub const EPOLLHUP: u32 = POLLHUP as u32;
/// epoll: as [`EPOLLIN`].
pub const EPOLLRDNORM: u32 = POLLRDNORM as u32;
/// epoll: as [`EPOLLOUT`].
pub const EPOLLWRNORM: u32 = POLLWRNORM as u32;
/// epoll: the other end writes no more. Sockets alone have it.
pub const EPOLLRDHUP: u32 = 0x2000;
/// epoll: of several sets one at least is woken.
pub const EPOLLEXCLUSIVE: u32 = 1 << 28;
/// epoll: the system does not sleep while the event is handled.
pub const EPOLLWAKEUP: u32 = 1 << 29;
/// epoll: after one event the file is not looked at any more.
pub const EPOLLONESHOT: u32 = 1 << 30;
/// epoll: an event for each change.
pub const EPOLLET: u32 = 1 << 31;

/// `struct epoll_event`, as arm64 has it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EpollEvent {
    /// Bits of `EPOLL`.
    pub events: u32,
    /// A word of the program's own.
    pub data: u64,
}

/// A seal: there are no more seals.
pub const F_SEAL_SEAL: u32 = 1;
/// A seal: the file becomes no shorter.
pub const F_SEAL_SHRINK: u32 = 2;
/// A seal: the file becomes no longer.
pub const F_SEAL_GROW: u32 = 4;
/// A seal: the file is not written.
pub const F_SEAL_WRITE: u32 = 8;
/// A seal: the file is not written but through the mappings that there are.
pub const F_SEAL_FUTURE_WRITE: u32 = 16;
/// A seal: whether the file may be executed does not change.
pub const F_SEAL_EXEC: u32 = 32;

/// memfd_create: an exec closes the descriptor.
pub const MFD_CLOEXEC: u32 = 1;
/// memfd_create: the file may be sealed.
pub const MFD_ALLOW_SEALING: u32 = 2;
/// memfd_create: of large pages.
pub const MFD_HUGETLB: u32 = 4;
/// memfd_create: the file may be sealed, and never executed.
pub const MFD_NOEXEC_SEAL: u32 = 8;
/// memfd_create: the file may be executed.
pub const MFD_EXEC: u32 = 16;

/// fallocate: the size stays.
pub const FALLOC_FL_KEEP_SIZE: u32 = 1;
/// fallocate: the bytes are taken away.
pub const FALLOC_FL_PUNCH_HOLE: u32 = 2;
/// The flag of a descriptor that an exec closes.
pub const FD_CLOEXEC: u32 = 1;

/// ioctl: no exec closes the descriptor.
pub const FIONCLEX: u32 = 0x5450;
/// ioctl: an exec closes the descriptor.
pub const FIOCLEX: u32 = 0x5451;
/// ioctl: sets [`O_NONBLOCK`] by the number at an address.
pub const FIONBIO: u32 = 0x5421;
/// ioctl: stores how many bytes there are to be read.
pub const FIONREAD: u32 = 0x541b;
/// ioctl: stores how many bits of randomness there are.
pub const RNDGETENTCNT: u32 = 0x8004_5200;

/// lseek: from the beginning.
pub const SEEK_SET: u32 = 0;
/// lseek: from the position.
pub const SEEK_CUR: u32 = 1;
/// lseek: from the end.
pub const SEEK_END: u32 = 2;
/// lseek: to the next contents.
pub const SEEK_DATA: u32 = 3;
/// lseek: to the next hole.
pub const SEEK_HOLE: u32 = 4;

/// The bits of `st_mode` that are the kind of file.
pub const S_IFMT: u32 = 0o170_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A directory.
pub const S_IFDIR: u32 = 0o040_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// A pipe.
pub const S_IFIFO: u32 = 0o010_000;
/// A character device.
pub const S_IFCHR: u32 = 0o020_000;

/// A flag of one read or write: of high priority.
pub const RWF_HIPRI: u32 = 1;
/// [`O_DSYNC`] for it.
pub const RWF_DSYNC: u32 = 2;
/// [`O_SYNC`] for it.
pub const RWF_SYNC: u32 = 4;
/// [`O_NONBLOCK`] for it.
pub const RWF_NOWAIT: u32 = 8;
/// [`O_APPEND`] for it.
pub const RWF_APPEND: u32 = 0x10;
/// Not at the end, in spite of [`O_APPEND`].
pub const RWF_NOAPPEND: u32 = 0x20;
/// No signal where a pipe has no reader.
pub const RWF_NOSIGNAL: u32 = 0x100;

/// `struct stat`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[allow(missing_docs, reason = "the names of the manual page stat(3type)")]
pub struct Stat {
    pub st_dev: u64,
    pub st_ino: u64,
    pub st_mode: u32,
    pub st_nlink: u32,
    pub st_uid: u32,
    pub st_gid: u32,
    pub st_rdev: u64,
    pub __pad1: u64,
    pub st_size: i64,
    pub st_blksize: i32,
    pub __pad2: i32,
    pub st_blocks: i64,
    pub st_atime: i64,
    pub st_atime_nsec: u64,
    pub st_mtime: i64,
    pub st_mtime_nsec: u64,
    pub st_ctime: i64,
    pub st_ctime_nsec: u64,
    pub __unused: [u32; 2],
}
