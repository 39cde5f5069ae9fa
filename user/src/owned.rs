//! Descriptors and memory that a program owns: they go where their owner is dropped, which is compared with success.
//!
//! Each dereferences to the number that calls take, so that a part of a test names it as it names any other.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use core::ffi::CStr;
use core::ops::Deref;

use granule_abi::Errno;
use granule_abi::file::{AT_FDCWD, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, Stat};
use granule_abi::memory::{MAP_ANONYMOUS, MAP_FIXED};
use granule_abi::number::{
    CLOSE, EVENTFD2, FALLOCATE, FCNTL, FSTAT, FTRUNCATE, LSEEK, MEMFD_CREATE, MMAP, OPENAT, PIPE2, PREAD64, PWRITE64,
    READ, WRITE,
};

use crate::answers::equal;
use crate::memory::{PAGE, munmap};
use crate::probe::{self, Fault};
use crate::sys;

/// The directory from which calls with a path begin, in a register.
pub const HERE: u64 = AT_FDCWD as u64;
/// The mode by which `fallocate` takes pages away.
pub const PUNCH_HOLE: u32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

/// An open descriptor, which is closed where this is dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct File(pub u64);

impl File {
    /// A file in memory with this name, as `memfd_create` makes it.
    ///
    /// # Errors
    /// The call's.
    pub fn memory(name: &CStr, flags: u32) -> Result<Self, Errno> {
        // SAFETY: it reads the name.
        unsafe { sys::call(MEMFD_CREATE, [name.as_ptr() as u64, flags.into(), 0, 0, 0, 0]) }.map(Self)
    }

    /// The file at a path.
    ///
    /// # Errors
    /// The call's.
    pub fn open(path: &CStr, flags: u32) -> Result<Self, Errno> {
        // SAFETY: it reads the path.
        unsafe { sys::call(OPENAT, [HERE, path.as_ptr() as u64, flags.into(), 0, 0, 0]) }.map(Self)
    }

    /// A pipe: the end that reads, and the one that writes.
    ///
    /// # Errors
    /// The call's.
    pub fn pipe(flags: u32) -> Result<[Self; 2], Errno> {
        let mut ends = [-1_i32; 2];
        // SAFETY: it writes the two descriptors.
        unsafe { sys::call(PIPE2, [ends.as_mut_ptr() as u64, flags.into(), 0, 0, 0, 0]) }?;
        Ok(ends.map(|end| Self(end as u64)))
    }

    /// An event counter, with `EFD_` flags.
    ///
    /// # Errors
    /// The call's.
    pub fn counter(count: u32, flags: u32) -> Result<Self, Errno> {
        // SAFETY: it makes a descriptor.
        unsafe { sys::call(EVENTFD2, [count.into(), flags.into(), 0, 0, 0, 0]) }.map(Self)
    }

    /// A call on the descriptor with up to three more arguments, which are the program's own memory or numbers.
    fn call<const N: usize>(&self, number: usize, more: [u64; N]) -> Result<u64, Errno> {
        let mut arguments = [self.0, 0, 0, 0, 0, 0];
        arguments[1..=N].copy_from_slice(&more);
        // SAFETY: the callers pass memory that the call may read, or write.
        unsafe { sys::call(number, arguments) }
    }

    /// Writes at the position; how many bytes.
    ///
    /// # Errors
    /// The call's.
    pub fn write(&self, bytes: &[u8]) -> Result<u64, Errno> {
        self.call(WRITE, [bytes.as_ptr() as u64, bytes.len() as u64])
    }

    /// Reads at the position; how many bytes.
    ///
    /// # Errors
    /// The call's.
    pub fn read(&self, bytes: &mut [u8]) -> Result<u64, Errno> {
        self.call(READ, [bytes.as_mut_ptr() as u64, bytes.len() as u64])
    }

    /// Writes at an offset; how many bytes.
    ///
    /// # Errors
    /// The call's.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<u64, Errno> {
        self.call(PWRITE64, [bytes.as_ptr() as u64, bytes.len() as u64, offset])
    }

    /// The byte at an offset, if there is one.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn byte(&self, offset: u64) -> Option<u8> {
        let mut byte = [77];
        let read = self.call(PREAD64, [byte.as_mut_ptr() as u64, 1, offset]).expect("a byte, or the end");
        (read == 1).then_some(byte[0])
    }

    /// Moves the position; `whence` is one of the `SEEK_` numbers.
    ///
    /// # Errors
    /// The call's.
    pub fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        self.call(LSEEK, [offset as u64, whence.into()])
    }

    /// `fcntl`.
    ///
    /// # Errors
    /// The call's.
    pub fn fcntl(&self, command: u32, argument: u32) -> Result<u64, Errno> {
        self.call(FCNTL, [command.into(), argument.into()])
    }

    /// The file's status, the call's result compared with success.
    pub fn stat(&self) -> Stat {
        let mut stat = Stat::default();
        equal("fstat", self.call(FSTAT, [&raw mut stat as u64]), Ok(0));
        stat
    }

    /// Makes it this long.
    ///
    /// # Errors
    /// The call's.
    pub fn resize(&self, size: u64) -> Result<u64, Errno> {
        self.call(FTRUNCATE, [size])
    }

    /// `fallocate`.
    ///
    /// # Errors
    /// The call's.
    pub fn allocate(&self, mode: u32, offset: u64, length: u64) -> Result<u64, Errno> {
        self.call(FALLOCATE, [mode.into(), offset, length])
    }

    /// Takes a part of its contents away.
    ///
    /// # Errors
    /// The call's.
    pub fn punch(&self, offset: u64, length: u64) -> Result<u64, Errno> {
        self.allocate(PUNCH_HOLE, offset, length)
    }

    /// Maps `pages` pages of it from page `first` on, wherever there is room.
    ///
    /// # Errors
    /// The call's.
    ///
    /// # Panics
    /// With `MAP_FIXED`.
    #[track_caller]
    pub fn map(&self, first: u64, pages: u64, protection: u64, flags: u64) -> Result<Pages, Errno> {
        Pages::of(self.0, first, pages, protection, flags)
    }
}

impl Deref for File {
    type Target = u64;

    fn deref(&self) -> &u64 {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this one's.
        equal("closed", unsafe { sys::call(CLOSE, [self.0, 0, 0, 0, 0, 0]) }, Ok(0));
    }
}

/// Pages from an address on, which are unmapped where this is dropped: the whole range.
///
/// A part of them may be unmapped before. As the kernel may map other memory into that hole, no memory that outlives this is
/// mapped from then on ([`crate::memory::shared`] is called before).
#[derive(Debug, PartialEq, Eq)]
pub struct Pages {
    start: u64,
    pages: u64,
}

impl Pages {
    /// Fresh memory that belongs to no file.
    ///
    /// # Errors
    /// The call's.
    ///
    /// # Panics
    /// With `MAP_FIXED`.
    #[track_caller]
    pub fn map(pages: u64, protection: u64, flags: u64) -> Result<Self, Errno> {
        Self::of(u64::MAX, 0, pages, protection, flags | MAP_ANONYMOUS)
    }

    /// `pages` pages of a file from page `first` on.
    ///
    /// # Errors
    /// The call's.
    ///
    /// # Panics
    /// With `MAP_FIXED`.
    #[track_caller]
    pub fn of(file: u64, first: u64, pages: u64, protection: u64, flags: u64) -> Result<Self, Errno> {
        assert_eq!(flags & MAP_FIXED, 0, "wherever there is room");
        // SAFETY: not at a fixed address.
        let start = unsafe { sys::call(MMAP, [0, pages * PAGE, protection, flags, file, first * PAGE]) }?;
        Ok(Self { start, pages })
    }

    /// Loads the byte at an offset.
    ///
    /// # Errors
    /// The access faulted.
    pub fn read(&self, offset: u64) -> Result<u8, Fault> {
        probe::read(self.start + offset)
    }

    /// Stores a byte at an offset.
    ///
    /// # Errors
    /// The access faulted.
    pub fn put(&self, offset: u64, value: u8) -> Result<(), Fault> {
        // SAFETY: the pages are the program's own, without references to them.
        unsafe { probe::write(self.start + offset, value) }
    }

    /// These pages.
    ///
    /// # Safety
    /// They are the program's own, as above, and there are no references to them at the end.
    pub const unsafe fn new(start: u64, pages: u64) -> Self {
        Self { start, pages }
    }
}

impl Deref for Pages {
    type Target = u64;

    fn deref(&self) -> &u64 {
        &self.start
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: as `new` has them.
        equal("unmapped", unsafe { munmap(self.start, self.pages * PAGE) }, Ok(()));
    }
}
