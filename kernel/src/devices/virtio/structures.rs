//! Where a device behind PCI has its registers: vendor capabilities in configuration space (Virtual I/O Device, version
//! 1.2, 4.1.4).
//!
//! Their contents are input: a capability of a kind that is not known, or in a base address register that there cannot
//! be, is passed over, and of each kind the first counts (4.1.4.1).

use super::transport::RegisterWidth::{Byte, Half, Word};
use super::transport::{Notification, Register, RegisterGroup, RegisterLayout, RegisterWidth, Registers};
use crate::devices::pci::{Claim, MmioRegion, PciError, capability::PciCapability};
use crate::{kernel, smp::Cpu};

/// Where the fields of struct virtio_pci_common_cfg are (4.1.4.3).
pub(super) static LAYOUT: RegisterLayout = RegisterLayout {
    groups: &[(RegisterGroup::Common, 0x38), (RegisterGroup::Notify, 2), (RegisterGroup::Interrupt, 1)],
    device_feature_select: Register(0x00, Word),
    device_feature: Register(0x04, Word),
    driver_feature_select: Register(0x08, Word),
    driver_feature: Register(0x0c, Word),
    queues: Some(Register(0x12, Half)),
    status: Register(0x14, Byte),
    generation: Register(0x15, Byte),
    queue_select: Register(0x16, Half),
    // One register: the device's most until the driver writes it.
    queue_most: Register(0x18, Half),
    queue_size: Register(0x18, Half),
    queue_enable: Register(0x1c, Half),
    queue_parts: [0x20, 0x28, 0x30],
    vectors: Some([Register(0x1a, Half), Register(0x10, Half)]),
    notification: Notification::OfQueue(Register(0x1e, Half)),
};

/// A group of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Structure {
    /// The base address register.
    pub bar: u8,
    /// The offset in the memory behind it.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// The groups that a device has.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Structures {
    /// Registers that all virtio devices have.
    pub common: Option<Structure>,
    /// Where it is notified.
    pub notify: Option<Structure>,
    /// Why it interrupted.
    pub interrupt: Option<Structure>,
    /// Registers that devices of its kind have.
    pub device: Option<Structure>,
    /// Bytes between the places at which two queues are notified, for each step of their offsets.
    pub multiplier: u32,
}

impl Structures {
    /// Reads the vendor capabilities at these offsets; `read` reads a word of configuration space, or nothing where
    /// there is none.
    pub fn find(capabilities: impl Iterator<Item = u16>, read: impl Fn(u16) -> Option<u32>) -> Self {
        let mut found = Self::default();
        for at in capabilities {
            let word = |offset: u16| at.checked_add(offset).and_then(&read);
            // cap_vndr, cap_next, cap_len, cfg_type; bar, id, padding; offset; length.
            let (Some(header), Some(place), Some(offset), Some(bytes)) = (word(0), word(4), word(8), word(12)) else {
                continue;
            };
            let bar = place as u8;
            if bar > 5 {
                continue;
            }
            let slot = match header >> 24 {
                1 => &mut found.common,
                2 => &mut found.notify,
                3 => &mut found.interrupt,
                4 => &mut found.device,
                _ => continue,
            };
            if slot.is_none() {
                *slot = Some(Structure { bar, offset, bytes });
                if header >> 24 == 2 {
                    found.multiplier = word(16).unwrap_or(0);
                }
            }
        }
        found
    }
}

/// The registers of a device, mapped.
pub struct Windows {
    /// In the order of [`RegisterGroup`].
    regions: [Option<MmioRegion>; 4],
    multiplier: u32,
    layout: &'static RegisterLayout,
}

impl Windows {
    /// Maps what the capabilities of `claim`, a function's, name. A group that is not inside its base address register
    /// is left out, as if there were none.
    ///
    /// # Errors
    /// A base address register cannot be mapped.
    pub(super) fn map(claim: &Claim, cpu: &Cpu) -> Result<Self, PciError> {
        let vendor = claim.capabilities().filter_map(|capability| match capability {
            PciCapability::Vendor(at) => Some(at.offset),
            _ => None,
        });
        let Structures { common, notify, interrupt, device, multiplier } =
            Structures::find(vendor, |offset| claim.read_config32(offset).ok());
        let mut regions = [const { None }; 4];
        for (region, structure) in regions.iter_mut().zip([common, notify, interrupt, device]) {
            if let Some(Structure { bar, offset, bytes }) = structure {
                let all = claim.map_bar(&kernel().space, cpu, bar.into())?;
                *region = all.part(offset.into(), bytes.into());
            }
        }
        Ok(Self { regions, multiplier, layout: &LAYOUT })
    }

    /// Those of a device without capabilities: `common`, of `layout`, with the place to notify it at, and `device`.
    pub(super) fn of(common: Option<MmioRegion>, device: Option<MmioRegion>, layout: &'static RegisterLayout) -> Self {
        Self { regions: [common, None, None, device], multiplier: 0, layout }
    }

    fn region(&self, window: RegisterGroup) -> Option<&MmioRegion> {
        self.regions.get(window as usize)?.as_ref()
    }
}

impl Registers for Windows {
    fn layout(&self) -> &'static RegisterLayout {
        self.layout
    }

    fn bytes(&self, window: RegisterGroup) -> u64 {
        self.region(window).map_or(0, MmioRegion::bytes)
    }

    fn read(&self, window: RegisterGroup, offset: u64, width: RegisterWidth) -> u32 {
        let Some(region) = self.region(window) else { return 0 };
        match width {
            Byte => region.read8(offset).into(),
            Half => region.read16(offset).into(),
            Word => region.read32(offset),
        }
    }

    fn write(&self, window: RegisterGroup, offset: u64, width: RegisterWidth, value: u32) {
        let Some(region) = self.region(window) else { return };
        match width {
            Byte => region.write8(offset, value as u8),
            Half => region.write16(offset, value as u16),
            Word => region.write32(offset, value),
        }
    }

    fn notify_multiplier(&self) -> u32 {
        self.multiplier
    }
}

#[cfg(test)]
mod tests {
    use super::{Structure, Structures};

    /// Configuration space with capabilities at these offsets: kind, register, offset, bytes, multiplier.
    fn find(capabilities: &[(u16, [u32; 5])]) -> Structures {
        Structures::find(capabilities.iter().map(|(at, _)| *at), |offset| {
            let (at, [kind, bar, place, bytes, multiplier]) =
                capabilities.iter().find(|(at, _)| (*at..at + 20).contains(&offset))?;
            Some(
                [kind << 24 | 0x0010_0009, *bar | 0xabcd_ef00, *place, *bytes, *multiplier]
                    [usize::from(offset - at) / 4],
            )
        })
    }

    #[test]
    fn the_first_of_each_kind_counts() {
        let found = find(&[
            (0x98, [1, 4, 0, 0x1000, 0]),
            (0x84, [3, 4, 0x1000, 0x1000, 0]),
            (0x70, [4, 4, 0x2000, 0x1000, 0]),
            (0x5c, [2, 4, 0x3000, 0x1000, 4]),
            (0x40, [2, 1, 0x5000, 0x10, 8]),
            // PCI configuration access, and one of a later version.
            (0xb0, [5, 0, 0, 0, 0]),
            (0xc4, [9, 0, 0, 0, 0]),
        ]);
        let at = |offset| Some(Structure { bar: 4, offset, bytes: 0x1000 });
        assert_eq!((found.common, found.interrupt), (at(0), at(0x1000)));
        assert_eq!((found.device, found.notify, found.multiplier), (at(0x2000), at(0x3000), 4));
    }

    #[test]
    fn what_cannot_be_is_passed_over() {
        assert_eq!(find(&[(0x40, [1, 6, 0, 0x1000, 0]), (0x60, [2, 255, 0, 4, 4])]), Structures::default());
        // A list that leads to the end of configuration space.
        let reads_nothing = Structures::find([0x40, 0xffc, u16::MAX].into_iter(), |_| None);
        assert_eq!(reads_nothing, Structures::default());
    }
}
