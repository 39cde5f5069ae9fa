//! The way of a device to memory by the description of the machine: the SMMU in front of it, and the buses above it.

use granule_arch::addr::PhysRange;

use super::{AttachError, DmaDevice, DmaMask, attach};
use crate::kernel;
use crate::platform::{DmaRange, MappedId, dma_reach};
use crate::smp::Cpu;

/// A device's accesses, by the machine's description.
pub struct BusPath<'p> {
    /// The SMMU in front of it and what that calls it; `None` where no SMMU sees its accesses.
    pub stream: Option<MappedId>,
    /// Where the buses pass its accesses on to; others go nowhere.
    pub dma: &'p [DmaRange],
    /// Whether it sees what is in the CPUs' caches.
    pub coherent: bool,
}

/// Takes the device with this path, which puts out the addresses of `mask`, of which the buses pass some on. Sleeps.
///
/// # Errors
/// [`AttachError`]; nothing has changed.
pub fn attach_behind(cpu: &Cpu, path: &BusPath<'_>, mask: DmaMask) -> Result<DmaDevice, AttachError> {
    let device = if path.stream.is_some() {
        // The SMMU's input addresses lie anywhere from zero on.
        attach(cpu, path.stream, mask.up_to(dma_reach(path.dma, 0, false).unwrap_or(0)))?
    } else {
        let is_reached = |bank: &&PhysRange| dma_reach(path.dma, bank.start().0, true) >= Some(bank.end().0 - 1);
        match kernel().platform.memory.iter().find(|bank| !is_reached(bank)) {
            Some(bank) => return Err(AttachError::Elsewhere(bank.start())),
            None => attach(cpu, None, mask)?,
        }
    };
    Ok(if path.coherent { device } else { device.without_caches() })
}
