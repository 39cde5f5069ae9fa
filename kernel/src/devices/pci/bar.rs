//! Base address registers: what a function wants, and where it was put (PCI Local Bus Specification 3.0, 6.2.5.1).

use granule_arch::addr::PhysRange;
use pci_types::PciAddress;

use super::config::ConfigSpace;

/// The first of them in configuration space.
pub(super) const FIRST: u16 = 0x10;
/// How many an endpoint has; a bridge has two.
pub(super) const COUNT: usize = 6;

/// The kind and size of a base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// I/O ports or memory.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
    /// The addresses as the CPU has them; `None` where no window of the host had room.
    pub range: Option<PhysRange>,
}

/// The kind of addresses of a base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// I/O ports. They get no addresses: what has them has memory as well (7.5.1.2.1 of PCI Express).
    Io,
    /// Memory.
    Memory {
        /// It may lie above 4 GiB, and takes two registers.
        wide: bool,
        /// Reading has no effect there.
        prefetchable: bool,
    },
}

impl Bar {
    /// Registers that it takes.
    pub(super) fn registers(&self) -> usize {
        if matches!(self.kind, BarKind::Memory { wide: true, .. }) { 2 } else { 1 }
    }
}

/// The address in the register number `index`, and above it what the next register holds, which is its upper half if it has
/// one.
pub(super) fn address(space: &dyn ConfigSpace, function: PciAddress, index: usize) -> u64 {
    let read = |index: usize| u64::from(space.read32(function, FIRST + 4 * index as u16));
    // The word after the last is another register, and harmless: no last one has an upper half.
    read(index + 1) << 32 | read(index) & !0xf
}

/// Writes an address to the register number `index`, and to the next if it is `wide`; returns what they keep of it.
pub(super) fn set_address(space: &dyn ConfigSpace, function: PciAddress, index: usize, wide: bool, start: u64) -> u64 {
    let offset = FIRST + 4 * index as u16;
    space.write32(function, offset, start as u32);
    if wide {
        space.write32(function, offset + 4, (start >> 32) as u32);
    }
    let kept = address(space, function, index);
    if wide { kept } else { kept & u64::from(u32::MAX) }
}

/// Asks the register number `index` of `count` what it wants. `None`: there is none, or it makes no sense.
///
/// The function must not decode addresses during this: all ones are written to the register, and zero afterwards.
pub(super) fn size(space: &dyn ConfigSpace, function: PciAddress, index: usize, count: usize) -> Option<Bar> {
    let ask = |index: usize| {
        let offset = FIRST + 4 * index as u16;
        space.write32(function, offset, !0);
        let answer = space.read32(function, offset);
        space.write32(function, offset, 0);
        answer
    };
    let low = ask(index);
    if low & 1 != 0 {
        // Devices may leave the upper half of the register at zero.
        let mask = low & !3 | 0xffff_0000;
        let size = 1_u64 << mask.trailing_zeros();
        return (low & !3 != 0).then_some(Bar { kind: BarKind::Io, size, range: None });
    }
    let (wide, prefetchable) = (low >> 1 & 3 == 2, low & 8 != 0);
    // 1 and 3 are reserved.
    if low >> 1 & 1 != 0 || wide && index + 1 >= count {
        return None;
    }
    let high = if wide { ask(index + 1) } else { !0 };
    let mask = u64::from(high) << 32 | u64::from(low & !0xf);
    // Above the lowest bit that can be set all can be, or so it should be: an address written there reads back.
    let size = mask & mask.wrapping_neg();
    let there = low & !0xf != 0 || wide && mask != 0;
    there.then_some(Bar { kind: BarKind::Memory { wide, prefetchable }, size, range: None })
}
