//! The registers of a virtio device behind PCI (Virtual I/O Device, version 1.2: 3.1, 4.1.4.3): status, features,
//! queues, interrupts, configuration.
//!
//! Generic over the way to the registers, so that it runs against a model of them on the host. Their values are not
//! relied on where they could do harm: sizes, vectors and offsets are checked, and nothing is waited for without end.

use thiserror::Error;

use super::queue::{Parts, VirtQueue};

/// VIRTIO_F_VERSION_1: not a legacy device.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM: the device reaches memory as the platform has it, through an SMMU where there is one.
/// Without it, it passes by and uses physical addresses.
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// A vector that is none (VIRTIO_MSI_NO_VECTOR): what a device that has no room for one reads back.
const NO_VECTOR: u16 = 0xffff;

/// How often the status of a device in reset is read: a read of a register takes about a microsecond.
const RESET_READS: u32 = 200_000;

/// The bits of the device status (2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 64;
    pub(super) const FAILED: u8 = 128;
}

/// Where the fields of struct virtio_pci_common_cfg are.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    /// Bytes up to here.
    pub(super) const BYTES: u64 = 0x38;
}

/// A group of registers, each somewhere in a BAR (4.1.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterGroup {
    /// Registers that all virtio devices have.
    Common,
    /// The register that a driver stores to so that the device looks at a queue.
    Notify,
    /// Why it interrupted; a read deasserts the line.
    Interrupt,
    /// Registers that devices of this kind have.
    Device,
}

/// How wide a register is. Each is accessed as a whole (4.1.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterWidth {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
}

/// The way to a device's registers.
pub trait Registers {
    /// Bytes in a window; 0 where the device has none.
    fn bytes(&self, window: RegisterGroup) -> u64;
    /// Reads a register inside the window.
    fn read(&self, window: RegisterGroup, offset: u64, width: RegisterWidth) -> u32;
    /// Writes a register inside the window.
    fn write(&self, window: RegisterGroup, offset: u64, width: RegisterWidth, value: u32);
    /// By how much the places for notifications of two queues differ, for each step of their offsets.
    fn notify_multiplier(&self) -> u32;
}

/// Why a device cannot be driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TransportError {
    /// Windows that are too small.
    #[error("the {0:?} registers are missing, or cut short")]
    NoRegisters(RegisterGroup),
    /// A device from before version 1.
    #[error("the device offers no VERSION_1: a legacy device, which is not driven")]
    Legacy,
    /// Its accesses would not be translated.
    #[error("the device offers no ACCESS_PLATFORM: its DMA would pass by the SMMU (QEMU: iommu_platform=on)")]
    PassesBy,
    /// It does not work with the features that this driver takes.
    #[error("the device refuses the features {0:#x}")]
    FeaturesRefused(u64),
    /// It stays in reset, or never comes to it.
    #[error("the device does not come out of its reset: its status is {0:#x}")]
    NoReset(u8),
    /// A queue that this kind of device has is not there.
    #[error("the device has no queue {0}")]
    NoQueue(u16),
    /// The place to notify a queue at is outside the window, or no place for 16 bits.
    #[error("queue {0} is to be notified where there is no register")]
    NotifyOutside(u16),
    /// It has no room for the interrupt.
    #[error("the device takes no interrupt vector {0}")]
    NoVector(u16),
    /// Its configuration changed each time that it was read, or is shorter than asked for.
    #[error("no configuration at {0:#x}: it is cut short, or changes all the time")]
    NoConfiguration(u64),
}

/// A device's registers, with the device on its way to work or at it.
pub struct Transport<R> {
    registers: R,
    features: u64,
}

/// Where a queue's notifications go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doorbell {
    queue: u16,
    offset: u64,
}

/// The device's relation to an SMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// One stands in front of it, and the device must not bypass it.
    Required,
    /// There is none: DMA addresses are physical.
    None,
}

impl<R: Registers> Transport<R> {
    /// Resets the device and agrees with it on features: [`VERSION_1`], [`ACCESS_PLATFORM`] where it is offered, and of
    /// `wanted` what is offered.
    ///
    /// # Errors
    /// [`TransportError`]; the device's FAILED status is set, where it was accessed.
    pub fn start(registers: R, translation: Translation, wanted: u64) -> Result<Self, TransportError> {
        for (window, bytes) in
            [(RegisterGroup::Common, common::BYTES), (RegisterGroup::Notify, 2), (RegisterGroup::Interrupt, 1)]
        {
            if registers.bytes(window) < bytes {
                return Err(TransportError::NoRegisters(window));
            }
        }
        let mut transport = Self { registers, features: 0 };
        transport.features = transport.agree(translation, wanted).inspect_err(|_| transport.fail())?;
        Ok(transport)
    }

    /// Once more, from a reset on, with the features that were agreed on. The queues are to be set up again.
    ///
    /// # Errors
    /// [`TransportError`], as for [`Self::start`].
    pub fn restart(&self) -> Result<(), TransportError> {
        let features = self.agree(Translation::None, self.features).inspect_err(|_| self.fail())?;
        if features == self.features { Ok(()) } else { Err(TransportError::FeaturesRefused(self.features)) }
    }

    fn agree(&self, translation: Translation, wanted: u64) -> Result<u64, TransportError> {
        self.reset()?;
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let offered = self.offered();
        if offered & VERSION_1 == 0 {
            return Err(TransportError::Legacy);
        }
        if translation == Translation::Required && offered & ACCESS_PLATFORM == 0 {
            return Err(TransportError::PassesBy);
        }
        let features = offered & (wanted | VERSION_1 | ACCESS_PLATFORM);
        for half in 0..2_u32 {
            self.write(common::DRIVER_FEATURE_SELECT, RegisterWidth::Word, half);
            self.write(common::DRIVER_FEATURE, RegisterWidth::Word, (features >> (32 * half)) as u32);
        }
        self.add_status(status::FEATURES_OK);
        if self.status() & status::FEATURES_OK == 0 {
            return Err(TransportError::FeaturesRefused(features));
        }
        Ok(features)
    }

    /// Has the device forget everything, and waits until it has (2.4.2).
    ///
    /// # Errors
    /// [`TransportError::NoReset`].
    pub fn reset(&self) -> Result<(), TransportError> {
        self.write(common::STATUS, RegisterWidth::Byte, 0);
        for _ in 0..RESET_READS {
            if self.status() == 0 {
                return Ok(());
            }
            granule_arch::wait::relax();
        }
        Err(TransportError::NoReset(self.status()))
    }

    /// The features on which both sides have agreed.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// How large queue `index` of the device is to be.
    ///
    /// # Errors
    /// [`TransportError::NoQueue`].
    pub fn queue_size(&self, index: u16) -> Result<u16, TransportError> {
        let none = TransportError::NoQueue(index);
        if u32::from(index) >= self.read(common::QUEUES, RegisterWidth::Half) {
            return Err(none);
        }
        self.write(common::QUEUE_SELECT, RegisterWidth::Half, index.into());
        VirtQueue::size_for(self.read(common::QUEUE_SIZE, RegisterWidth::Half) as u16).ok_or(none)
    }

    /// Gives the device queue `index`, of `size` descriptors, whose page it finds at `page`, and has it interrupt by
    /// `vector` of MSI-X, or by its line where there is none; returns where to notify it.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn set_up_queue(
        &self,
        index: u16,
        size: u16,
        page: u64,
        vector: Option<u16>,
    ) -> Result<Doorbell, TransportError> {
        self.write(common::QUEUE_SELECT, RegisterWidth::Half, index.into());
        let steps = u64::from(self.read(common::QUEUE_NOTIFY_OFFSET, RegisterWidth::Half) as u16);
        let offset = steps * u64::from(self.registers.notify_multiplier());
        if !offset.is_multiple_of(2) || offset + 2 > self.registers.bytes(RegisterGroup::Notify) {
            return Err(TransportError::NotifyOutside(index));
        }
        let Parts { descriptors, driver, device } = Parts::at(page);
        self.write(common::QUEUE_SIZE, RegisterWidth::Half, size.into());
        self.write_64(common::QUEUE_DESCRIPTORS, descriptors);
        self.write_64(common::QUEUE_DRIVER, driver);
        self.write_64(common::QUEUE_DEVICE, device);
        if let Some(vector) = vector {
            for register in [common::QUEUE_VECTOR, common::CONFIG_VECTOR] {
                self.write(register, RegisterWidth::Half, vector.into());
                if self.read(register, RegisterWidth::Half) as u16 == NO_VECTOR {
                    return Err(TransportError::NoVector(vector));
                }
            }
        }
        self.write(common::QUEUE_ENABLE, RegisterWidth::Half, 1);
        Ok(Doorbell { queue: index, offset })
    }

    /// Lets the device begin: its queues are set up.
    pub fn driver_ok(&self) {
        self.add_status(status::DRIVER_OK);
    }

    /// Sets FAILED: the driver has given the device up.
    pub fn fail(&self) {
        self.add_status(status::FAILED);
    }

    /// Whether the device has given up, and is to be reset (2.1).
    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// Has the device look at its queue. It sees all earlier stores: [`VirtQueue::submit`] has seen to that.
    pub fn notify(&self, doorbell: Doorbell) {
        self.registers.write(RegisterGroup::Notify, doorbell.offset, RegisterWidth::Half, doorbell.queue.into());
    }

    /// Why the device interrupted by its line, which it deasserts: 0 where it was another's.
    pub fn interrupt_reason(&self) -> u8 {
        self.registers.read(RegisterGroup::Interrupt, 0, RegisterWidth::Byte) as u8
    }

    /// Eight bytes of the configuration of this kind of device, from a moment at which it did not change (2.5.3).
    ///
    /// # Errors
    /// [`TransportError::NoConfiguration`].
    pub fn configuration_64(&self, offset: u64) -> Result<u64, TransportError> {
        const TRIES: usize = 100;
        if offset.checked_add(8).is_none_or(|end| end > self.registers.bytes(RegisterGroup::Device)) {
            return Err(TransportError::NoConfiguration(offset));
        }
        let generation = || self.read(common::GENERATION, RegisterWidth::Byte);
        let read = |at| u64::from(self.registers.read(RegisterGroup::Device, at, RegisterWidth::Word));
        for _ in 0..TRIES {
            let before = generation();
            let value = read(offset) | read(offset + 4) << 32;
            if generation() == before {
                return Ok(value);
            }
        }
        Err(TransportError::NoConfiguration(offset))
    }

    fn offered(&self) -> u64 {
        let half = |half: u32| {
            self.write(common::DEVICE_FEATURE_SELECT, RegisterWidth::Word, half);
            u64::from(self.read(common::DEVICE_FEATURE, RegisterWidth::Word))
        };
        half(0) | half(1) << 32
    }

    fn status(&self) -> u8 {
        self.read(common::STATUS, RegisterWidth::Byte) as u8
    }

    fn add_status(&self, bits: u8) {
        self.write(common::STATUS, RegisterWidth::Byte, u32::from(self.status() | bits));
    }

    fn read(&self, offset: u64, width: RegisterWidth) -> u32 {
        self.registers.read(RegisterGroup::Common, offset, width)
    }

    fn write(&self, offset: u64, width: RegisterWidth, value: u32) {
        self.registers.write(RegisterGroup::Common, offset, width, value);
    }

    /// The 64-bit registers are written in two halves (4.1.3.1).
    fn write_64(&self, offset: u64, value: u64) {
        self.write(offset, RegisterWidth::Word, value as u32);
        self.write(offset + 4, RegisterWidth::Word, (value >> 32) as u32);
    }
}
