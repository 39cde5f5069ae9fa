//! Single accesses to registers of devices.
//!
//! Each is one load or store instruction without writeback and of one register. A volatile access need not be: the
//! compiler may choose a post-indexed or paired form, for which a data abort carries no syndrome (ESR_EL2.ISV = 0), so
//! that a hypervisor cannot emulate it and ends the guest (Arm ARM D24.2, ESR_ELx for data aborts). `safe-mmio` has the
//! instructions; where registers are fields of a structure, its pointers are used directly.

#![allow(unsafe_code, reason = "single accesses to registers of devices")]

use core::ops::Range;
use core::ptr::NonNull;

use granule_arch::addr::VirtAddr;
use safe_mmio::UniqueMmioPointer;
use safe_mmio::fields::ReadPureWrite;

#[cfg(test)]
pub mod watched;

mod sealed {
    pub trait Sealed {}
}

/// An integer that one instruction loads or stores: `u8`, `u16`, `u32`, `u64`.
pub trait Register: Copy + Into<u64> + sealed::Sealed {
    #[doc(hidden)]
    unsafe fn load(at: NonNull<Self>) -> Self;
    #[doc(hidden)]
    unsafe fn store(at: NonNull<Self>, value: Self);
}

macro_rules! register {
    ($($type:ty)*) => {$(
        impl sealed::Sealed for $type {}

        impl Register for $type {
            #[inline(always)]
            unsafe fn load(at: NonNull<Self>) -> Self {
                // SAFETY: the caller's promise, passed on; the pointer lives for this access.
                unsafe { UniqueMmioPointer::new(at).read_unsafe() }
            }

            #[inline(always)]
            unsafe fn store(at: NonNull<Self>, value: Self) {
                // SAFETY: as above.
                unsafe { UniqueMmioPointer::new(at).write_unsafe(value) };
            }
        }
    )*};
}
register!(u8 u16 u32 u64);

/// Reads the register at `address`.
///
/// # Safety
/// A register of this size is mapped there as device memory, and whatever a read of it does may be done.
#[inline(always)]
pub unsafe fn read<T: Register>(address: VirtAddr) -> T {
    #[cfg(test)]
    watched::note(watched::MmioAccess::Read(address));
    // SAFETY: what is mapped is not at address zero; the rest is the caller's promise.
    unsafe { T::load(NonNull::new_unchecked(address.as_ptr())) }
}

/// Writes `value` to these of some registers that follow one another; what is beyond the last one is left out.
pub fn fill<const N: usize>(
    mut registers: UniqueMmioPointer<'_, [ReadPureWrite<u32>; N]>,
    which: Range<usize>,
    value: u32,
) {
    for index in which {
        if let Some(mut register) = registers.get(index) {
            register.write(value);
        }
    }
}

/// Writes the register at `address`.
///
/// # Safety
/// A register of this size is mapped there as device memory, and whatever a write of `value` does may be done.
#[inline(always)]
pub unsafe fn write<T: Register>(address: VirtAddr, value: T) {
    // SAFETY: as for `read`.
    unsafe { T::store(NonNull::new_unchecked(address.as_ptr()), value) };
    #[cfg(test)]
    watched::note(watched::MmioAccess::Write(address, value.into()));
}
