//! Random numbers from a virtio device (Virtual I/O Device, version 1.2, 5.4): one queue, and what the device writes.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

use spin::Once;

use super::pci::Id;
use super::slot::{self, BindRefused, Driver, Slot, StartError};
use super::virtio::claim::VirtioClaim;
use super::virtio::device::VirtioDevice;
use super::virtio::queue::{Flow, Segment};
use super::virtio::requests::{RequestError, RequestFrame, Requests};
use crate::iommu::{Coherent, DmaAddress, DmaDevice};
use crate::sched::RwSem;
use crate::smp::Cpu;
use crate::sync::rank;

static SLOTS: [Slot<VirtioRng>; 2] = [const { Slot::new(RwSem::new(rank::REQUESTS, Requests::NONE)) }; 2];

/// A source of random numbers.
pub struct VirtioRng {
    device: VirtioDevice,
}

/// The `index`-th of the machine, started if it was not.
///
/// # Errors
/// [`StartError`].
pub fn rng(cpu: &Cpu, index: usize) -> Result<&'static VirtioRng, StartError> {
    slot::device(cpu, index)
}

/// 32 random bytes of the machine's first generator, whatever space it is bound to; `None` where there is none, or it
/// does not answer. The thread sleeps while it waits; no other thread is in here.
///
/// The page that they arrive in stays the device's: what it has not completed it may still write.
pub fn seed(cpu: &Cpu) -> Option<[u8; 32]> {
    static PAGE: Once<Coherent> = Once::new();
    let source = rng(cpu, 0).ok()?;
    let page = PAGE.try_call_once(|| source.device.dma().alloc_coherent(cpu, 32)).ok()?;
    source.fill(page.address(), 32).ok()?;
    // SAFETY: the page is in memory for ever. The device may write it at any time, so the read is a volatile one, and
    // any bytes will do.
    Some(unsafe { page.virt().as_ptr::<[u8; 32]>().read_volatile() })
}

impl Driver for VirtioRng {
    type Fixed = RwSem<Requests>;
    type Claim = VirtioClaim;
    const NAME: &'static str = "rng";
    const IDS: &'static [Id] = &[Id { vendor: 0x1af4, device: 0x1044 }];
    const SLOTS: &'static [Slot<Self>] = &SLOTS;

    fn start(cpu: &Cpu, claim: VirtioClaim, slot: &'static Slot<Self>) -> Result<Self, StartError> {
        Ok(Self { device: VirtioDevice::start(cpu, claim, 0, slot, &slot.fixed, &slot.arrivals)? })
    }

    fn isolation(&self) -> Result<(), BindRefused> {
        self.device.isolation()
    }

    fn acknowledge(&self) -> bool {
        self.device.acknowledge()
    }

    fn while_idle(&self, change: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>) -> Result<(), BindRefused> {
        self.device.while_idle(change)
    }
}

impl VirtioRng {
    /// The virtio device that it is.
    pub fn device(&self) -> &VirtioDevice {
        &self.device
    }

    /// Has the device fill `bytes` bytes from `address` on with random numbers; returns how often it had to be asked,
    /// the pieces in which it gives them included.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn fill(&self, address: DmaAddress, bytes: u32) -> Result<u32, RequestError> {
        let (mut filled, mut tries) = (0, 0);
        while filled < bytes {
            let segment = Segment {
                address: address.0.saturating_add(filled.into()),
                bytes: bytes - filled,
                flow: Flow::FromDevice,
            };
            let transfer = self.device.perform(RequestFrame::None, &[segment])?;
            // It may give less than it was asked for, but not nothing (5.4.6.1).
            if transfer.written == 0 {
                return Err(RequestError::TimedOut);
            }
            filled += transfer.written;
            tries += transfer.tries;
        }
        Ok(tries)
    }
}
