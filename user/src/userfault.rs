//! userfaultfd: a pager's calls.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use granule_abi::Errno;
use granule_abi::number::{CLOSE, IOCTL, READ, USERFAULTFD};
use granule_abi::userfaultfd::{
    Api, Copy, Fill, Message, Range, Register, UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_COPY,
    UFFDIO_MOVE, UFFDIO_POISON, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_WRITEPROTECT,
    UFFDIO_WRITEPROTECT_MODE_WP, UFFDIO_ZEROPAGE, WriteProtect,
};

use crate::sys;

/// The features by which all memory can be write-protected.
pub const WRITE_PROTECTION: u64 =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED;

/// A userfaultfd: its descriptor, which stays open when this is dropped.
#[derive(Clone, core::marker::Copy, PartialEq, Eq, Debug)]
pub struct Pager(pub u32);

impl Pager {
    /// One for the faults of this process, with `O_` flags, that has agreed upon `features`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(flags: u32, features: u64) -> Result<Self, Errno> {
        let pager = Self::open(flags)?;
        pager.agree(features)?;
        Ok(pager)
    }

    /// One that has agreed upon nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(flags: u32) -> Result<Self, Errno> {
        // SAFETY: it makes a descriptor.
        let descriptor = unsafe { sys::call(USERFAULTFD, [flags.into(), 0, 0, 0, 0, 0]) }?;
        Ok(Self(descriptor as u32))
    }

    /// Agrees upon `features`; returns what the kernel has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn agree(self, features: u64) -> Result<Api, Errno> {
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        self.call(UFFDIO_API, &mut api).map(|_| api)
    }

    /// A call on it with a structure.
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    pub fn call<T>(self, command: u32, structure: &mut T) -> Result<u64, Errno> {
        let at = core::ptr::from_mut(structure) as u64;
        // SAFETY: it reads and writes the structure. The caller intends its effect on the pages of the range.
        unsafe { sys::call(IOCTL, [self.0.into(), command.into(), at, 0, 0, 0]) }
    }

    /// Registers pages; returns the bits of the calls that they take.
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(self, start: u64, len: u64, mode: u64) -> Result<u64, Errno> {
        let mut register = Register { range: Range { start, len }, mode, ioctls: 0 };
        self.call(UFFDIO_REGISTER, &mut register).map(|_| register.ioctls)
    }

    /// Ends that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unregister(self, start: u64, len: u64) -> Result<(), Errno> {
        self.call(UFFDIO_UNREGISTER, &mut Range { start, len }).map(drop)
    }

    /// Wakes threads that wait for pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(self, start: u64, len: u64) -> Result<(), Errno> {
        self.call(UFFDIO_WAKE, &mut Range { start, len }).map(drop)
    }

    /// Brings copies of pages from `src` on; what the call has stored of its result.
    ///
    /// # Errors
    /// The kernel's, with the same.
    pub fn copy(self, dst: u64, src: u64, len: u64, mode: u64) -> Result<i64, (Errno, i64)> {
        self.bring(UFFDIO_COPY, Copy { dst, src, len, mode, copy: 0 })
    }

    /// Moves pages from `src` on, as [`Self::copy`].
    ///
    /// # Errors
    /// The kernel's, as there.
    pub fn move_pages(self, dst: u64, src: u64, len: u64, mode: u64) -> Result<i64, (Errno, i64)> {
        self.bring(UFFDIO_MOVE, Copy { dst, src, len, mode, copy: 0 })
    }

    fn bring(self, command: u32, mut copy: Copy) -> Result<i64, (Errno, i64)> {
        match self.call(command, &mut copy) {
            Ok(_) => Ok(copy.copy),
            Err(error) => Err((error, copy.copy)),
        }
    }

    fn fill(self, command: u32, start: u64, len: u64, mode: u64) -> Result<i64, (Errno, i64)> {
        let mut fill = Fill { range: Range { start, len }, mode, filled: 0 };
        match self.call(command, &mut fill) {
            Ok(_) => Ok(fill.filled),
            Err(error) => Err((error, fill.filled)),
        }
    }

    /// Brings pages of zeros, as [`Self::copy`].
    ///
    /// # Errors
    /// The kernel's, as there.
    pub fn zero(self, start: u64, len: u64, mode: u64) -> Result<i64, (Errno, i64)> {
        self.fill(UFFDIO_ZEROPAGE, start, len, mode)
    }

    /// Maps pages that the object has, as [`Self::copy`].
    ///
    /// # Errors
    /// The kernel's, as there.
    pub fn map_present(self, start: u64, len: u64, mode: u64) -> Result<i64, (Errno, i64)> {
        self.fill(UFFDIO_CONTINUE, start, len, mode)
    }

    /// Poisons pages, as [`Self::copy`].
    ///
    /// # Errors
    /// The kernel's, as there.
    pub fn poison(self, start: u64, len: u64, mode: u64) -> Result<i64, (Errno, i64)> {
        self.fill(UFFDIO_POISON, start, len, mode)
    }

    /// Write-protects pages.
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    pub fn protect(self, start: u64, len: u64) -> Result<(), Errno> {
        self.write_protect(start, len, UFFDIO_WRITEPROTECT_MODE_WP)
    }

    /// Ends that, and wakes the threads that wait for it.
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    pub fn unprotect(self, start: u64, len: u64) -> Result<(), Errno> {
        self.write_protect(start, len, 0)
    }

    /// Either of these, by the bits of `mode`.
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    pub fn write_protect(self, start: u64, len: u64, mode: u64) -> Result<(), Errno> {
        self.call(UFFDIO_WRITEPROTECT, &mut WriteProtect { range: Range { start, len }, mode }).map(drop)
    }

    /// Reads messages; returns how many.
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    pub fn read(self, messages: &mut [Message]) -> Result<usize, Errno> {
        let bytes = size_of_val(messages) as u64;
        // SAFETY: it writes the messages, which any bytes are.
        let read = unsafe { sys::call(READ, [self.0.into(), messages.as_mut_ptr() as u64, bytes, 0, 0, 0]) }?;
        Ok(read as usize / size_of::<Message>())
    }

    /// Reads one message.
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    pub fn read_one(self) -> Result<Message, Errno> {
        let mut message = Message::default();
        self.read(core::slice::from_mut(&mut message)).map(|_| message)
    }

    /// Closes it: its faults are served no more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn close(self) -> Result<(), Errno> {
        // SAFETY: the descriptor is this one's.
        unsafe { sys::call(CLOSE, [self.0.into(), 0, 0, 0, 0, 0]) }.map(drop)
    }
}
