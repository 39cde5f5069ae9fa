//! Memory files: a name, an object, and the seals of it (`memfd_create(2)`).

use core::sync::atomic::{AtomicU64, Ordering};

use granule_abi::file::{
    F_SEAL_EXEC, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, MFD_ALLOW_SEALING,
    MFD_CLOEXEC, MFD_EXEC, MFD_HUGETLB, MFD_NOEXEC_SEAL, O_LARGEFILE, O_RDWR, S_IFREG,
};

use super::open::{FileRef, Kind, OpenFile};
use crate::chip::timer::uptime_nanoseconds;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::counted::Counted;
use crate::mm::space::{LARGEST_OBJECT, Object, ObjectError, Seals, SizeChoice, WriteAt};
use crate::smp::this_cpu;

const _: () = assert!(
    Seals::SEAL == F_SEAL_SEAL
        && Seals::SHRINK == F_SEAL_SHRINK
        && Seals::GROW == F_SEAL_GROW
        && Seals::WRITE == F_SEAL_WRITE
        && Seals::FUTURE_WRITE == F_SEAL_FUTURE_WRITE
        && Seals::EXEC == F_SEAL_EXEC
);

/// A file that is memory alone.
pub struct MemoryFile {
    object: Counted<Object>,
    mode: u32,
    /// When it was made or changed, in nanoseconds.
    changed: AtomicU64,
}

/// Makes a file, open for reading and writing. `flags` are [`checked`].
///
/// # Errors
/// `ENOMEM`.
pub fn create(flags: u32) -> Result<FileRef, Errno> {
    let is_executable = flags & MFD_NOEXEC_SEAL == 0;
    let seals = match flags & (MFD_NOEXEC_SEAL | MFD_ALLOW_SEALING) {
        0 => F_SEAL_SEAL,
        MFD_ALLOW_SEALING => 0,
        _ => F_SEAL_EXEC,
    };
    let object = kernel().spaces.create_object(this_cpu(), 0, Some(&[]), Seals(seals))?;
    let mode = S_IFREG | if is_executable { 0o777 } else { 0o666 };
    let file = MemoryFile { object, mode, changed: AtomicU64::new(uptime_nanoseconds()) };
    Ok(OpenFile::new(Kind::Memory(file), O_RDWR | O_LARGEFILE)?)
}

/// The flags of `memfd_create`.
///
/// # Errors
/// `EINVAL`. Of large pages there are none: `ENOSYS`, as on a Linux without them.
pub fn checked(flags: u32) -> Result<u32, Errno> {
    /// log2 of the size of large pages.
    const HUGE: u32 = 0x3f << 26;
    const ALL: u32 = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_NOEXEC_SEAL | MFD_EXEC;
    let known = if flags & MFD_HUGETLB != 0 { ALL | HUGE } else { ALL };
    if flags & !known != 0 || flags & (MFD_EXEC | MFD_NOEXEC_SEAL) == MFD_EXEC | MFD_NOEXEC_SEAL {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}

/// The error of a call on a file.
pub const fn errno(error: ObjectError) -> Errno {
    match error {
        ObjectError::Sealed => Errno::EPERM,
        ObjectError::TooLarge => Errno::EFBIG,
        ObjectError::Busy => Errno::EBUSY,
        ObjectError::Interrupted => Errno::EINTR,
        ObjectError::OutOfMemory => Errno::ENOMEM,
    }
}

impl MemoryFile {
    /// Its contents.
    pub const fn object(&self) -> &Counted<Object> {
        &self.object
    }

    /// The kind of file, and its permissions.
    pub const fn mode(&self) -> u32 {
        self.mode
    }

    /// When it was changed, in nanoseconds.
    pub fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }

    fn note_change(&self) {
        self.changed.store(uptime_nanoseconds(), Ordering::Relaxed);
    }

    /// Writes bytes, the first of `all`, and none of them at `limit` or after it; returns where, and how many.
    ///
    /// # Errors
    /// `EPERM`, `EFBIG`, `ENOMEM`.
    pub fn write(&self, at: WriteAt, bytes: &[u8], all: u64, limit: u64) -> Result<(u64, usize), Errno> {
        let written = self.object.write(this_cpu(), at, bytes, all, limit).map_err(errno)?;
        self.note_change();
        Ok(written)
    }

    /// `ftruncate`.
    ///
    /// # Errors
    /// `EPERM`, `EFBIG`.
    pub fn truncate(&self, size: u64) -> Result<(), Errno> {
        self.object.truncate(this_cpu(), size).map_err(errno)?;
        self.note_change();
        Ok(())
    }

    /// `fallocate` without a mode.
    ///
    /// # Errors
    /// `EPERM`, `EFBIG`, `ENOMEM`, `EINTR`.
    pub fn allocate(&self, start: u64, end: u64, size: SizeChoice, is_killed: &dyn Fn() -> bool) -> Result<(), Errno> {
        self.object.allocate(this_cpu(), start, end, size, is_killed).map_err(errno)?;
        self.note_change();
        Ok(())
    }

    /// `fallocate` with `FALLOC_FL_PUNCH_HOLE`.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn punch_hole(&self, start: u64, end: u64) -> Result<(), Errno> {
        let most = LARGEST_OBJECT;
        self.object.punch_hole(this_cpu(), start.min(most), end.min(most)).map_err(errno)?;
        self.note_change();
        Ok(())
    }

    /// `F_ADD_SEALS`.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`, `EBUSY`.
    pub fn add_seals(&self, seals: u32) -> Result<(), Errno> {
        const ALL: u32 = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;
        if seals & !ALL != 0 {
            return Err(Errno::EINVAL);
        }
        self.object.add_seals(seals, self.mode & 0o111 != 0).map_err(errno)
    }
}
