//! The registers of a virtio device (Virtual I/O Device, version 1.2: 3.1): status, features, queues, interrupts,
//! configuration.
//!
//! All transports have the registers, each at places of its own: its [`RegisterLayout`]. Generic over the way to them,
//! so that it runs against models of them on the host. Their values are not relied on where they could do harm: sizes,
//! vectors and offsets are checked, and nothing is waited for without end.

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

/// A register: where it is in its group, and how wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register(pub u64, pub RegisterWidth);

/// Where a transport has the registers that all virtio devices have: those without a group in
/// [`RegisterGroup::Common`].
#[derive(Debug)]
pub struct RegisterLayout {
    /// The groups that it cannot do without, and bytes in each.
    pub groups: &'static [(RegisterGroup, u64)],
    /// Which half of the device's features is read.
    pub device_feature_select: Register,
    /// A half of the device's features.
    pub device_feature: Register,
    /// Which half of the driver's features is written.
    pub driver_feature_select: Register,
    /// A half of the driver's features.
    pub driver_feature: Register,
    /// How many queues there are, where a register has it.
    pub queues: Option<Register>,
    /// The device status.
    pub status: Register,
    /// Changes with the configuration.
    pub generation: Register,
    /// The queue that the further ones are of.
    pub queue_select: Register,
    /// Reads as the most descriptors that it may have; 0 for no queue.
    pub queue_most: Register,
    /// How many it has.
    pub queue_size: Register,
    /// Whether it is in use.
    pub queue_enable: Register,
    /// Where its three parts are: the lower half of each, which the upper one follows.
    pub queue_parts: [u64; 3],
    /// The vectors of MSI-X for queues and for changes of the configuration, where there are any.
    pub vectors: Option<[Register; 2]>,
    /// Where the device is notified.
    pub notification: Notification,
}

/// Where a device is notified of a queue, by the queue's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notification {
    /// At an offset in [`RegisterGroup::Notify`] that this register has for each queue (4.1.4.4).
    OfQueue(Register),
    /// In this register, for all.
    At(Register),
}

/// A group of registers. Of PCI each is somewhere in a BAR (4.1.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterGroup {
    /// Registers that all virtio devices have.
    Common,
    /// The register that a driver stores to so that the device looks at a queue.
    Notify,
    /// Of PCI: why it interrupted; a read deasserts the line.
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
    /// Where they are.
    fn layout(&self) -> &'static RegisterLayout;
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
    /// A reset did not take it out of use.
    #[error("queue {0} of the device is in use after the device's reset")]
    QueueInUse(u16),
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
    layout: &'static RegisterLayout,
    features: u64,
}

/// Where a queue's notifications go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doorbell {
    queue: u16,
    group: RegisterGroup,
    register: Register,
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
        let layout = registers.layout();
        if let Some(&(group, _)) = layout.groups.iter().find(|(group, bytes)| registers.bytes(*group) < *bytes) {
            return Err(TransportError::NoRegisters(group));
        }
        let mut transport = Self { registers, layout, features: 0 };
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
            self.write(self.layout.driver_feature_select, half);
            self.write(self.layout.driver_feature, (features >> (32 * half)) as u32);
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
        self.write(self.layout.status, 0);
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
        let (none, layout) = (TransportError::NoQueue(index), self.layout);
        if layout.queues.is_some_and(|queues| u32::from(index) >= self.read(queues)) {
            return Err(none);
        }
        self.write(layout.queue_select, index.into());
        if self.read(layout.queue_enable) != 0 {
            return Err(TransportError::QueueInUse(index));
        }
        let most = u16::try_from(self.read(layout.queue_most)).unwrap_or(u16::MAX);
        VirtQueue::size_for(most).ok_or(none)
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
        let layout = self.layout;
        self.write(layout.queue_select, index.into());
        let doorbell = self.doorbell(index)?;
        let Parts { descriptors, driver, device } = Parts::at(page);
        self.write(layout.queue_size, size.into());
        for (offset, part) in layout.queue_parts.into_iter().zip([descriptors, driver, device]) {
            self.write_64(offset, part);
        }
        if let Some(vector) = vector {
            for register in layout.vectors.ok_or(TransportError::NoVector(vector))? {
                self.write(register, vector.into());
                if self.read(register) as u16 == NO_VECTOR {
                    return Err(TransportError::NoVector(vector));
                }
            }
        }
        self.write(layout.queue_enable, 1);
        Ok(doorbell)
    }

    /// Where to notify the device of queue `index`, which is selected.
    fn doorbell(&self, index: u16) -> Result<Doorbell, TransportError> {
        let steps = match self.layout.notification {
            Notification::At(register) => {
                return Ok(Doorbell { queue: index, group: RegisterGroup::Common, register });
            }
            Notification::OfQueue(offset) => u64::from(self.read(offset) as u16),
        };
        let offset = steps * u64::from(self.registers.notify_multiplier());
        if !offset.is_multiple_of(2) || offset + 2 > self.registers.bytes(RegisterGroup::Notify) {
            return Err(TransportError::NotifyOutside(index));
        }
        let register = Register(offset, RegisterWidth::Half);
        Ok(Doorbell { queue: index, group: RegisterGroup::Notify, register })
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
        let Doorbell { queue, group, register: Register(offset, width) } = doorbell;
        self.registers.write(group, offset, width, queue.into());
    }

    /// Of PCI: why the device interrupted by its pin, which it deasserts: 0 where it was another's.
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
        let generation = || self.read(self.layout.generation);
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
            self.write(self.layout.device_feature_select, half);
            u64::from(self.read(self.layout.device_feature))
        };
        half(0) | half(1) << 32
    }

    fn status(&self) -> u8 {
        self.read(self.layout.status) as u8
    }

    fn add_status(&self, bits: u8) {
        self.write(self.layout.status, u32::from(self.status() | bits));
    }

    fn read(&self, Register(offset, width): Register) -> u32 {
        self.registers.read(RegisterGroup::Common, offset, width)
    }

    fn write(&self, Register(offset, width): Register, value: u32) {
        self.registers.write(RegisterGroup::Common, offset, width, value);
    }

    /// The 64-bit registers are written in two halves (4.1.3.1, 4.2.2).
    fn write_64(&self, offset: u64, value: u64) {
        self.write(Register(offset, RegisterWidth::Word), value as u32);
        self.write(Register(offset + 4, RegisterWidth::Word), (value >> 32) as u32);
    }
}
