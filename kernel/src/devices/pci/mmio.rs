//! Registers of a device in memory.

#![allow(unsafe_code, reason = "registers of devices, mapped by the claim of a function")]

use core::fmt;

use granule_arch::addr::VirtAddr;

use super::Function;
use crate::mmio;

/// Registers of a device.
///
/// Having one proves: its bytes are mapped as device memory (nGnRE), for ever, and belong to the driver that claimed the
/// function: no other driver can claim it before the last region is dropped. Accesses are single and in order among each
/// other; what the device reads from memory afterwards needs a `barrier::dmb_oshst()` in between.
#[derive(Debug)]
pub struct MmioRegion {
    start: VirtAddr,
    bytes: u64,
    _hold: Option<Hold>,
}

/// Keeps a function its driver's.
pub(super) struct Hold(&'static Function);

impl Hold {
    /// One more of a function that the caller has claimed.
    pub(super) fn new(function: &'static Function) -> Self {
        function.hold();
        Self(function)
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::new(self.0)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hold of {}", self.0.address())
    }
}

/// An access of one size.
macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        #[doc = concat!("Reads the register of type `", stringify!($type), "` at `offset`.")]
        ///
        /// # Panics
        /// It is not inside, or not aligned. Offsets that a device names go through [`part`](Self::part) first.
        #[inline]
        pub fn $read(&self, offset: u64) -> $type {
            // SAFETY: mapped for ever (`new`), inside and aligned (`register`).
            unsafe { mmio::read(self.register::<$type>(offset)) }
        }

        #[doc = concat!("Writes the register of type `", stringify!($type), "` at `offset`.")]
        ///
        /// # Panics
        /// It is not inside, or not aligned. Offsets that a device names go through [`part`](Self::part) first.
        #[inline]
        pub fn $write(&self, offset: u64, value: $type) {
            // SAFETY: mapped for ever (`new`), inside and aligned (`register`). The effect is the driver's affair.
            unsafe { mmio::write(self.register::<$type>(offset), value) };
        }
    };
}

impl MmioRegion {
    /// The registers in the `bytes` from `start` on.
    ///
    /// # Safety
    /// They are mapped as device memory, for ever, and are no other driver's.
    pub unsafe fn new(start: VirtAddr, bytes: u64) -> Self {
        Self { start, bytes, _hold: None }
    }

    /// As [`Self::new`], for a function that the caller has claimed.
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    pub(super) unsafe fn of(function: &'static Function, start: VirtAddr, bytes: u64) -> Self {
        Self { start, bytes, _hold: Some(Hold::new(function)) }
    }

    /// Bytes in it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of it; `None` where it is not inside, or not aligned to a word.
    pub fn part(&self, offset: u64, bytes: u64) -> Option<Self> {
        let inside = offset.checked_add(bytes)? <= self.bytes && offset.is_multiple_of(4);
        inside.then(|| Self { start: self.start + offset, bytes, _hold: self._hold.clone() })
    }

    #[inline]
    fn register<T>(&self, offset: u64) -> VirtAddr {
        let size = size_of::<T>() as u64;
        let inside = offset < self.bytes && self.bytes - offset >= size;
        assert!(
            inside && (self.start.0 + offset).is_multiple_of(size),
            "register at {offset:#x} of {:#x} bytes",
            self.bytes
        );
        self.start + offset
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);
}
