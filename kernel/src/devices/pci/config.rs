//! Configuration space: 4 KiB for each function (PCI Express Base Specification, 7.2.2: ECAM).
//!
//! Values read there are input: a device may have any value there. The crate `pci_types` walks lists of capabilities;
//! what makes such a walk end whatever the list holds is [`Listed`].

#![allow(unsafe_code, reason = "registers of devices, mapped by the claim of a function")]

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use granule_arch::addr::VirtAddr;
use pci_types::capability::PciCapability;
use pci_types::{ConfigRegionAccess, EndpointHeader, PciAddress, PciHeader};
use spin::Once;

use crate::chip::timer::Deadline;
use crate::trap::probe::{self, ProbeFault, Width};

/// Bytes of that of one function.
pub(super) const FUNCTION: u16 = 4096;
/// The bytes after it are the extended ones', which the list of capabilities does not have.
const END_OF_CAPABILITIES: u16 = 0x100;
/// From 0x40 on there is room for as many.
const MOST_CAPABILITIES: usize = 48;
/// More extended capabilities than any function has, and few enough for a list that goes round.
const MOST_EXTENDED: usize = 64;
/// Words that a walk over so many reads at most: three each, and the two with the start of the list.
const MOST_READS: u32 = MOST_CAPABILITIES as u32 * 3 + 2;

/// Where the kernel reads and writes configuration space: the metal's, or in tests one in memory.
///
/// Offsets are below 4096 and multiples of the access's size. A function that is not there reads as all ones.
pub(super) trait ConfigSpace: Sync {
    /// Reads a word.
    fn read32(&self, function: PciAddress, offset: u16) -> u32;
    /// Writes a word.
    fn write32(&self, function: PciAddress, offset: u16, value: u32);
    /// Writes half a word and leaves its neighbour alone: among the status bits there are some that a one clears.
    fn write16(&self, function: PciAddress, offset: u16, value: u16);
    /// Waits until that time has passed for the functions. None does in a space where nothing takes time.
    fn rest(&self, _time: Duration) {}
}

/// Configuration space in memory, mapped bus by bus.
///
/// A root complex may answer for a function that is not there by an abort: then reads are all ones, and writes have no
/// effect.
pub(super) struct Ecam {
    /// Where each bus is mapped; 0 where it is not.
    buses: [AtomicU64; 256],
    /// The first abort.
    fault: Once<ProbeFault>,
}

impl Ecam {
    pub(super) const fn new() -> Self {
        Self { buses: [const { AtomicU64::new(0) }; 256], fault: Once::new() }
    }

    /// The first abort that an access has met.
    pub(super) fn fault(&self) -> Option<ProbeFault> {
        self.fault.get().copied()
    }

    fn survive<T>(&self, outcome: Result<T, ProbeFault>) -> Option<T> {
        outcome.inspect_err(|fault| _ = self.fault.call_once(|| *fault)).ok()
    }

    /// Makes the functions of `bus` readable.
    ///
    /// # Safety
    /// Its configuration space is mapped at `start`, as device memory, for ever.
    pub(super) unsafe fn add(&self, bus: u8, start: VirtAddr) {
        self.buses[usize::from(bus)].store(start.0, Ordering::Release);
    }

    /// Where a register is; `None` for a bus that is not mapped.
    fn address(&self, function: PciAddress, offset: u16) -> Option<VirtAddr> {
        let start = self.buses[usize::from(function.bus())].load(Ordering::Acquire);
        let function = u64::from(function.device()) << 15 | u64::from(function.function()) << 12;
        (start != 0).then_some(VirtAddr(start + function + u64::from(offset % FUNCTION)))
    }

    fn write<T: Width>(&self, function: PciAddress, offset: u16, value: T) {
        if let Some(address) = self.address(function, offset) {
            // SAFETY: `add` was promised that the whole bus is mapped. The effect of a write is the driver's affair.
            _ = self.survive(unsafe { probe::write(address, value) });
        }
    }
}

impl ConfigSpace for Ecam {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let word = self.address(function, offset).and_then(|address| self.survive(probe::read(address)));
        word.unwrap_or(!0)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.write(function, offset, value);
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.write(function, offset, value);
    }

    fn rest(&self, time: Duration) {
        let end = Deadline::after(time);
        while !end.has_passed() {
            granule_arch::wait::relax();
        }
    }
}

/// Clears bits of a register of two bytes.
pub(super) fn clear_bits(config: &dyn ConfigSpace, function: PciAddress, offset: u16, bits: u16) {
    let value = (config.read32(function, offset & !3) >> (offset % 4 * 8)) as u16;
    if value & bits != 0 {
        config.write16(function, offset, value & !bits);
    }
}

/// Identifiers of extended capabilities (PCI Express Base Specification 5.0, 7.7 to 7.9).
pub(super) mod extended {
    /// Access Control Services.
    pub(in super::super) const ACS: u16 = 0x0d;
    /// Address Translation Services.
    pub(in super::super) const ATS: u16 = 0x0f;
    /// Single Root I/O Virtualization.
    pub(in super::super) const SR_IOV: u16 = 0x10;
    /// Page Request Interface.
    pub(in super::super) const PRI: u16 = 0x13;
    /// Process Address Space ID.
    pub(in super::super) const PASID: u16 = 0x1b;
}

/// The extended capabilities of a function, as identifier and offset, in the order of their list (7.6.3). The list ends
/// where it makes no sense.
pub(super) fn extended_capabilities(space: &dyn ConfigSpace, function: PciAddress) -> impl Iterator<Item = (u16, u16)> {
    let mut offset = END_OF_CAPABILITIES;
    let next = move || {
        // Eight bytes each at the least, so that none runs past the end; and what is not there reads as zeros or ones.
        let inside = (END_OF_CAPABILITIES..=FUNCTION - 8).contains(&offset) && offset.is_multiple_of(4);
        let word = if inside { space.read32(function, offset) } else { 0 };
        if word == 0 || word == !0 {
            return None;
        }
        let found = (word as u16, offset);
        offset = (word >> 20) as u16;
        Some(found)
    };
    core::iter::from_fn(next).take(MOST_EXTENDED)
}

/// The capabilities of a function in the order of their list. The list ends where it makes no sense.
pub(super) fn capabilities(space: &dyn ConfigSpace, function: PciAddress) -> impl Iterator<Item = PciCapability> {
    let header = EndpointHeader::from_header(PciHeader::new(function), Listed::new(space));
    let list = header.into_iter().flat_map(move |header| header.capabilities(Listed::new(space)));
    list.take(MOST_CAPABILITIES)
}

/// Configuration space as `pci_types` reads it, which follows a list of capabilities wherever it leads.
///
/// A list that leaves the place for capabilities, or goes round in it, reads as its end. And a bridge reads as an
/// endpoint, because the crate looks for capabilities there alone, and they are the same.
pub(super) struct Listed<'a> {
    space: &'a dyn ConfigSpace,
    left: Cell<u32>,
}

impl<'a> Listed<'a> {
    pub(super) fn new(space: &'a dyn ConfigSpace) -> Self {
        Self { space, left: Cell::new(MOST_READS) }
    }
}

impl ConfigRegionAccess for Listed<'_> {
    unsafe fn read(&self, function: PciAddress, offset: u16) -> u32 {
        const HEADER: u16 = 0x0c;
        const HEADER_KIND: u32 = 0x7f << 16;
        let left = self.left.get();
        if left == 0 || !offset.is_multiple_of(4) || offset >= END_OF_CAPABILITIES {
            return 0;
        }
        self.left.set(left - 1);
        let value = self.space.read32(function, offset);
        if offset == HEADER { value & !HEADER_KIND } else { value }
    }

    unsafe fn write(&self, function: PciAddress, offset: u16, value: u32) {
        self.space.write32(function, offset, value);
    }
}
