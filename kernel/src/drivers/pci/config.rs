//! Configuration space: 4 KiB for each function (PCI Express Base Specification, 7.2.2: ECAM).
//!
//! What is read there is input: a device may say anything. The crate `pci_types` walks lists of capabilities; what makes
//! such a walk end whatever the list says is [`Bounded`].

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysRange, VirtAddr};
use pci_types::{ConfigRegionAccess, PciAddress};

/// Bytes of the configuration space of one bus.
pub(super) const BUS: u64 = 1 << 20;
/// Bytes of that of one function.
pub(super) const FUNCTION: u16 = 4096;
/// The first capability may be here.
const FIRST_CAPABILITY: u16 = 0x40;
/// Words that a walk over all capabilities reads at most: 48 fit into 192 bytes, and no kind is read by more than three.
const MOST_READS: u32 = 48 * 3;

/// Where the kernel reads and writes configuration space: the metal's, or in tests one in memory.
///
/// Offsets are below 4096 and multiples of the access's size. A function that is not there reads as all ones.
pub trait ConfigSpace: Sync {
    /// Reads a word.
    fn read32(&self, function: PciAddress, offset: u16) -> u32;
    /// Writes a word.
    fn write32(&self, function: PciAddress, offset: u16, value: u32);
    /// Writes half a word and leaves its neighbour alone: among the status bits there are some that a one clears.
    fn write16(&self, function: PciAddress, offset: u16, value: u16);
    /// Writes a byte.
    fn write8(&self, function: PciAddress, offset: u16, value: u8);
}

/// Configuration space in memory, mapped bus by bus.
pub(super) struct Ecam {
    first_bus: u8,
    /// Where each bus is mapped; 0 where it is not.
    buses: [AtomicU64; 256],
}

impl Ecam {
    pub(super) const fn new(first_bus: u8) -> Self {
        Self { first_bus, buses: [const { AtomicU64::new(0) }; 256] }
    }

    /// The part of `ecam` that has the functions of `bus`; `None` where it does not reach so far.
    pub(super) fn registers(&self, ecam: PhysRange, bus: u8) -> Option<PhysRange> {
        let offset = u64::from(bus.checked_sub(self.first_bus)?) * BUS;
        let range = PhysRange::from_size(ecam.start().checked_add(offset)?, BUS)?;
        (range.end() <= ecam.end()).then_some(range)
    }

    /// Makes the functions of `bus` readable.
    ///
    /// # Safety
    /// `start` is where [`registers`](Self::registers) of it are mapped as device memory, for ever.
    pub(super) unsafe fn add(&self, bus: u8, start: VirtAddr) {
        self.buses[usize::from(bus)].store(start.0, Ordering::Release);
    }

    /// Where a register is; `None` for a bus that is not mapped.
    fn address(&self, function: PciAddress, offset: u16) -> Option<VirtAddr> {
        let start = self.buses[usize::from(function.bus())].load(Ordering::Acquire);
        let function = u64::from(function.device()) << 15 | u64::from(function.function()) << 12;
        (start != 0).then_some(VirtAddr(start + function + u64::from(offset % FUNCTION)))
    }

    fn write<T>(&self, function: PciAddress, offset: u16, value: T) {
        if let Some(address) = self.address(function, offset) {
            // SAFETY: `add` was promised that the whole bus is mapped. What a write does is the driver's affair.
            unsafe { address.as_ptr::<T>().write_volatile(value) };
        }
    }
}

impl ConfigSpace for Ecam {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        // SAFETY: `add` was promised that the whole bus is mapped.
        self.address(function, offset).map_or(!0, |address| unsafe { address.as_ptr::<u32>().read_volatile() })
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.write(function, offset, value);
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.write(function, offset, value);
    }

    fn write8(&self, function: PciAddress, offset: u16, value: u8) {
        self.write(function, offset, value);
    }
}

/// Configuration space as `pci_types` reads it, which follows a list of capabilities wherever it leads.
///
/// A list that leaves the place for capabilities, or that is longer than there is room for, reads as its end.
pub(super) struct Bounded<'a> {
    space: &'a dyn ConfigSpace,
    left: Cell<u32>,
}

impl<'a> Bounded<'a> {
    pub(super) fn new(space: &'a dyn ConfigSpace) -> Self {
        Self { space, left: Cell::new(MOST_READS) }
    }
}

impl ConfigRegionAccess for Bounded<'_> {
    unsafe fn read(&self, function: PciAddress, offset: u16) -> u32 {
        let left = self.left.get();
        let inside = offset < FIRST_CAPABILITY || offset <= 0xfc;
        if left == 0 || !offset.is_multiple_of(4) || !inside {
            return 0;
        }
        self.left.set(left - 1);
        self.space.read32(function, offset)
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        if offset.is_multiple_of(4) && offset < FUNCTION {
            self.space.write32(function, offset, value);
        }
    }
}
