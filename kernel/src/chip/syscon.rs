//! A register of a system controller (the binding `syscon`), of which some bits are changed.

#![allow(unsafe_code, reason = "registers of a system controller")]

use granule_arch::addr::{PhysRange, VirtAddr};

use crate::mmio;
use crate::platform::SysconWrite;
use crate::trap::probe;

/// A change that the device tree names, with its register mapped.
pub(super) struct Syscon {
    at: VirtAddr,
    change: SysconWrite,
}

impl Syscon {
    /// Maps the register; `None`, with a warning, where nothing answers.
    pub(super) fn new(change: SysconWrite, map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>) -> Option<Self> {
        let at = map(change.register)?;
        let read = match change.register.size() {
            1 => probe::read::<u8>(at).map(drop),
            2 => probe::read::<u16>(at).map(drop),
            _ => probe::read::<u32>(at).map(drop),
        };
        match read {
            Ok(()) => Some(Self { at, change }),
            Err(fault) => {
                crate::log::warn!("power: no register at {}: {fault}", change.register.start());
                None
            }
        }
    }

    /// Changes the register: what it does happens soon, or never.
    pub(super) fn apply(&self) {
        let SysconWrite { register, is_big_endian, mask, value } = self.change;
        let changed = |old: u32| old & !mask | value & mask;
        // SAFETY: `new` has read a register of this size here, mapped for ever; the tree says what the write is for.
        unsafe {
            match (register.size(), is_big_endian) {
                (1, _) => mmio::write(self.at, changed(mmio::read::<u8>(self.at).into()) as u8),
                (2, false) => mmio::write(self.at, changed(mmio::read::<u16>(self.at).into()) as u16),
                (2, true) => {
                    let old = mmio::read::<u16>(self.at).swap_bytes();
                    mmio::write(self.at, (changed(old.into()) as u16).swap_bytes());
                }
                (_, false) => mmio::write(self.at, changed(mmio::read(self.at))),
                (_, true) => {
                    let old = mmio::read::<u32>(self.at).swap_bytes();
                    mmio::write(self.at, changed(old).swap_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};

    use super::Syscon;
    use crate::platform::SysconWrite;

    /// The bytes of a register, and of what lies after it, after the change.
    fn after(bytes: [u8; 8], width: u64, is_big_endian: bool, mask: u32, value: u32) -> [u8; 8] {
        #[repr(align(8))]
        struct Register([u8; 8]);
        let mut register = Register(bytes);
        let at = VirtAddr::from_ptr(&raw mut register.0);
        let place = PhysRange::from_size(PhysAddr(0x1000), width).unwrap();
        let syscon = Syscon { at, change: SysconWrite { register: place, is_big_endian, mask, value } };
        syscon.apply();
        register.0
    }

    #[test]
    fn the_masked_bits_change_in_registers_of_each_width_and_order() {
        const BYTES: [u8; 8] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        let low = |first: [u8; 4]| [&first[..], &BYTES[4..]].concat();
        assert_eq!(after(BYTES, 4, false, 0xff00_00ff, 0xaa12_34bb)[..], low([0xbb, 0x22, 0x33, 0xaa]));
        assert_eq!(after(BYTES, 4, true, 0xff00_00ff, 0xaa12_34bb)[..], low([0xaa, 0x22, 0x33, 0xbb]));
        assert_eq!(after(BYTES, 2, false, 0x0f00, 0xffff)[..], low([0x11, 0x2f, 0x33, 0x44]));
        assert_eq!(after(BYTES, 2, true, 0x0f00, 0xffff)[..], low([0x1f, 0x22, 0x33, 0x44]));
        assert_eq!(after(BYTES, 1, false, !0, 0x1ff)[..], low([0xff, 0x22, 0x33, 0x44]));
        assert_eq!(after(BYTES, 4, false, 0, !0)[..], BYTES);
    }
}
