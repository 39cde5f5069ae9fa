//! Physical and virtual addresses, and the 4 KiB page that the kernel maps with.

use core::fmt;
use core::ops::{Add, Sub};

/// log2 of the size of a page of the kernel's own tables (4 KiB granule).
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page of the kernel's own tables.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// [`PAGE_SIZE`] as addresses are counted.
pub const PAGE: u64 = PAGE_SIZE as u64;

/// A physical address: what a descriptor holds, what a device is given. At most 52 bits are used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

/// A virtual address, of either half of the address space. Any 64-bit value is representable; whether
/// it is canonical is asked where it matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(pub u64);

macro_rules! address {
    ($name:ident) => {
        impl $name {
            /// Whether the address is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                debug_assert!(align.is_power_of_two());
                self.0 & (align - 1) == 0
            }

            /// The next lower multiple of `align`, a power of two.
            #[must_use]
            pub const fn align_down(self, align: u64) -> Self {
                debug_assert!(align.is_power_of_two());
                Self(self.0 & !(align - 1))
            }

            /// The next higher multiple of `align`, a power of two; `None` where that is past the last address.
            #[must_use]
            pub const fn align_up(self, align: u64) -> Option<Self> {
                match self.0.checked_add(align - 1) {
                    Some(sum) => Some(Self(sum & !(align - 1))),
                    None => None,
                }
            }

            /// The address `bytes` further on; `None` on overflow.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl Sub<u64> for $name {
            type Output = Self;
            fn sub(self, bytes: u64) -> Self {
                Self(self.0 - bytes)
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, other: Self) -> u64 {
                self.0 - other.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#018x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(PhysAddr);
address!(VirtAddr);

impl PhysAddr {
    /// The number of the 4 KiB frame that holds the address.
    pub const fn frame_number(self) -> usize {
        (self.0 >> PAGE_SHIFT) as usize
    }

    /// The first address of the 4 KiB frame with this number.
    pub const fn from_frame_number(number: usize) -> Self {
        Self((number as u64) << PAGE_SHIFT)
    }
}

impl VirtAddr {
    /// Without the tag that the hardware ignores in the lower half (TCR_EL1.TBI0): bits 63 to 56 are zero where bit 55
    /// is. Addresses of the upper half stay as they are.
    #[inline(always)]
    #[must_use]
    pub const fn untagged(self) -> Self {
        Self(self.0 & ((self.0 << 8).cast_signed() >> 8).cast_unsigned())
    }

    /// The address that tables translate where the hardware ignores the top byte: bits 63 to 56 are what bit 55 is, in
    /// either half. The logical tag of a kernel address ([`crate::mte`]) is gone.
    #[inline(always)]
    #[must_use]
    pub const fn canonical(self) -> Self {
        Self(((self.0 << 8).cast_signed() >> 8).cast_unsigned())
    }

    /// The address as a pointer. Making one proves nothing; using it is the caller's `unsafe`.
    pub fn as_ptr<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.0 as usize)
    }

    /// The address of what `pointer` points to, [canonical](Self::canonical): an object of the kernel's heap has a tag
    /// in its pointer, and an address is translated, compared and given to devices without.
    #[inline(always)]
    pub fn from_ptr<T: ?Sized>(pointer: *const T) -> Self {
        Self(pointer.cast::<u8>().expose_provenance() as u64).canonical()
    }
}

/// A range of physical memory, `start` inclusive, `end` exclusive. Empty where both are equal; `start <= end` always.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

impl PhysRange {
    /// The range from `start` up to `end`; `None` where it would run backwards.
    pub const fn new(start: PhysAddr, end: PhysAddr) -> Option<Self> {
        if start.0 <= end.0 { Some(Self { start, end }) } else { None }
    }

    /// The `size` bytes from `start` on; `None` where they run past the last address.
    pub const fn from_size(start: PhysAddr, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The first address.
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// The address after the last.
    pub const fn end(self) -> PhysAddr {
        self.end
    }

    /// Bytes in it.
    pub const fn size(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `address` is in it.
    pub const fn contains(self, address: PhysAddr) -> bool {
        self.start.0 <= address.0 && address.0 < self.end.0
    }

    /// Whether some byte is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}
