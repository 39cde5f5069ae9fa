//! Memory from the kernel.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use granule_abi::Errno;
use granule_abi::memory::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MS_INVALIDATE, PROT_MTE, PROT_READ, PROT_WRITE};
use granule_abi::number::{MADVISE, MINCORE, MMAP, MPROTECT, MSYNC, MUNMAP};

use crate::sys;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The protection of memory that is read and written.
pub const RW: u64 = PROT_READ | PROT_WRITE;
/// The flags of memory of a process's own, and of memory that it shares with its later children. Neither is of a file.
pub const PRIVATE: u64 = MAP_PRIVATE | MAP_ANONYMOUS;
/// As [`PRIVATE`] says.
pub const SHARED: u64 = MAP_SHARED | MAP_ANONYMOUS;
/// The protection of memory whose accesses check tags.
pub const TAGGED: u64 = RW | PROT_MTE;
/// Nothing is mapped here.
pub const NOWHERE: u64 = 0x1000;
/// Nothing is mapped here by itself, nor is anything near it.
pub const FAR: u64 = 0x7000_0000_0000;
/// The end of a process's addresses.
pub const TOP: u64 = 1 << 48;
/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;
/// A function that only returns: `ret`.
pub const RET: [u8; 4] = 0xd65f_03c0_u32.to_le_bytes();
/// An address in the kernel's half.
pub const KERNEL: u64 = 0xffff_8000_8000_0000;

/// Maps memory.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// With `MAP_FIXED`, the mappings that it replaces are the caller's.
pub unsafe fn mmap(address: u64, bytes: u64, protection: u64, flags: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's promise; without MAP_FIXED the kernel replaces no mapping.
    unsafe { sys::call(MMAP, [address, bytes, protection, flags, u64::MAX, 0]) }
}

/// Maps fresh memory of this process's own, wherever there is room.
///
/// # Errors
/// The kernel's.
pub fn map(bytes: u64, protection: u64) -> Result<u64, Errno> {
    // SAFETY: not at a fixed address.
    unsafe { mmap(0, bytes, protection, PRIVATE) }
}

/// A page of memory that this process and its later children share, zero, and mapped until the process ends.
///
/// # Panics
/// There is no memory.
pub fn shared<T: Sync>() -> &'static T {
    const { assert!(size_of::<T>() as u64 <= PAGE, "it fits a page") };
    // SAFETY: not at a fixed address.
    let page = unsafe { mmap(0, PAGE, RW, SHARED) };
    // SAFETY: fresh memory that stays, zero, and used as this alone: the callers have atomics.
    unsafe { &*(page.expect("a page") as *const T) }
}

/// Unmaps memory.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// It is the caller's, and there is no reference to it.
pub unsafe fn munmap(address: u64, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { sys::call(MUNMAP, [address, bytes, 0, 0, 0, 0]) }.map(drop)
}

/// Changes what may be done with memory.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// It is the caller's, and is accessed as permitted afterwards.
#[inline]
pub unsafe fn mprotect(address: u64, bytes: u64, protection: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { sys::call(MPROTECT, [address, bytes, protection, 0, 0, 0]) }.map(drop)
}

/// Advises on the use of memory.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// It is the caller's, and with `MADV_DONTNEED` there is no reference to it.
#[inline]
pub unsafe fn madvise(address: u64, bytes: u64, advice: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { sys::call(MADVISE, [address, bytes, advice, 0, 0, 0]) }.map(drop)
}

/// Which pages are present: a byte for each, whose lowest bit is set.
///
/// # Errors
/// The kernel's.
pub fn mincore(address: u64, pages: &mut [u8]) -> Result<(), Errno> {
    let arguments = [address, pages.len() as u64 * PAGE, pages.as_mut_ptr() as u64, 0, 0, 0];
    // SAFETY: it writes `pages`.
    unsafe { sys::call(MINCORE, arguments) }.map(drop)
}

/// Whether pages from an address on are locked.
pub fn locks<const N: usize>(at: u64) -> [bool; N] {
    core::array::from_fn(|page| {
        let arguments = [at + page as u64 * PAGE, PAGE, MS_INVALIDATE.into(), 0, 0, 0];
        // SAFETY: it changes nothing: locked pages are not invalidated, and others are written back first.
        let answer = unsafe { sys::call(MSYNC, arguments) };
        answer == Err(Errno::EBUSY)
    })
}
