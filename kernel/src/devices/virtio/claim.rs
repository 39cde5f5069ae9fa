//! A virtio device that its driver has claimed, whichever transport it is behind.

use core::fmt;

use super::mmio::{self, NodeClaim};
use super::structures::Windows;
use crate::chip::interrupt::InterruptHandler;
use crate::devices::pci::{self, InterruptVector};
use crate::devices::slot::{self, BindRefused, DeviceClaim, Known, StartError};
use crate::iommu::{AttachError, DmaDevice, DmaMask};
use crate::kernel;
use crate::smp::Cpu;

/// A virtio device that belongs to a driver. Dropping it ends its interrupts.
#[must_use = "the device is given back at once"]
pub enum VirtioClaim {
    /// A function.
    Function(pci::Claim),
    /// None: the device tree has its registers.
    Node(NodeClaim),
}

/// Functions come first.
impl DeviceClaim for VirtioClaim {
    fn count(known: &Known) -> usize {
        pci::Claim::count(known) + mmio::nodes().iter().filter(|node| known.has(node.id())).count()
    }

    fn claim(known: &Known, index: usize, name: &'static str) -> Option<Result<Self, StartError>> {
        let Some(index) = index.checked_sub(pci::Claim::count(known)) else {
            return pci::Claim::claim(known, index, name).map(|claim| Ok(Self::Function(claim?)));
        };
        let node = mmio::nodes().iter().filter(|node| known.has(node.id())).nth(index)?;
        Some(node.claim(name).map(Self::Node).map_err(StartError::from))
    }
}

impl VirtioClaim {
    /// Its registers.
    ///
    /// # Errors
    /// They cannot be mapped.
    pub(super) fn windows(&self, cpu: &Cpu) -> Result<Windows, StartError> {
        match self {
            Self::Function(claim) => Ok(Windows::map(claim, cpu)?),
            Self::Node(claim) => Ok(claim.windows()),
        }
    }

    /// Its way to memory, which its driver alone has. Sleeps.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub(super) fn attach(&self, cpu: &Cpu) -> Result<DmaDevice, AttachError> {
        match self {
            Self::Function(claim) => claim.attach(cpu, DmaMask::ALL),
            Self::Node(claim) => claim.attach(cpu, DmaMask::ALL),
        }
    }

    /// Lets the device access memory, or no longer; `dma` is its way there.
    pub(super) fn set_reaches_memory(&self, cpu: &Cpu, dma: &DmaDevice, on: bool) {
        match self {
            Self::Function(claim) => claim.set_bus_master(on),
            Self::Node(claim) => claim.set_reaches_memory(cpu, dma, on),
        }
    }

    /// Whether its SMMU keeps it from memory, which a binding would end.
    pub(super) fn is_cut_off(&self) -> bool {
        matches!(self, Self::Node(claim) if claim.is_cut_off())
    }

    /// Whether [`Self::set_reaches_memory`] keeps a device from memory that does not obey a reset.
    pub(super) fn can_be_cut_off(&self, dma: &DmaDevice) -> bool {
        matches!(self, Self::Function(_)) || dma.stream().is_some()
    }

    /// Has `handler` run for its interrupts, on this CPU, which is `cpu`; `None`, after a warning, where it is polled.
    ///
    /// # Errors
    /// Its messages do not reach their receiver.
    pub(super) fn set_interrupt(
        &self,
        cpu: &Cpu,
        dma: &DmaDevice,
        handler: &'static dyn InterruptHandler,
    ) -> Result<Option<InterruptVector>, StartError> {
        let claim = match self {
            Self::Function(claim) => claim,
            Self::Node(claim) => return Ok(claim.set_interrupt(cpu, handler)),
        };
        let doorbell = slot::doorbell(cpu, claim, dma)?;
        claim.set_bus_master(true);
        let vector = claim.set_interrupt(kernel(), cpu, 0, handler, doorbell);
        Ok(vector.inspect_err(|error| crate::log::warn!("{error}; it is polled")).ok())
    }

    /// A request has come to a good end.
    #[inline]
    pub(super) fn attended(&self) {
        if let Self::Node(claim) = self {
            claim.attended();
        }
    }

    /// Whether the device can be given addresses of its own.
    ///
    /// # Errors
    /// [`BindRefused`].
    pub(super) fn isolation(&self) -> Result<(), BindRefused> {
        match self {
            Self::Function(claim) => Ok(claim.isolation()?),
            Self::Node(claim) => {
                claim.shared_stream().map_or(Ok(()), |stream| Err(BindRefused::SharedStream(stream.id)))
            }
        }
    }
}

impl fmt::Display for VirtioClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(claim) => write!(f, "virtio device {}", claim.address()),
            Self::Node(claim) => fmt::Display::fmt(&**claim, f),
        }
    }
}
