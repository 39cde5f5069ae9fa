//! Virtio devices that are no PCI functions: the device tree has their registers (Virtual I/O Device, version 1.2,
//! 4.2).
//!
//! A place in the tree may be empty, and QEMU's virt has 32 of them, so they are looked at once, at boot ([`init`]):
//! those with a device become [`nodes`], which drivers claim as they do functions. The registers are input like all
//! else: a place that is not one, or has a device of another version, is left out with a warning.
//!
//! The interrupt is acknowledged at the device before the handler ends, so a level does not arrive again. The line of a
//! device that interrupts all the same while it does nothing is disabled, and the device polled.

#![allow(unsafe_code, reason = "registers at the addresses of the device tree")]

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use spin::Once;
use thiserror::Error;

use super::structures::Windows;
use super::transport::RegisterWidth::Word;
use super::transport::{Notification, Register, RegisterGroup, RegisterLayout};
use crate::chip::interrupt::InterruptHandler;
use crate::devices::lines::{self, InterruptSource, LineError};
use crate::devices::pci::{self, Function, Id, InterruptVector, MmioRegion};
use crate::iommu::{self, AttachError, BusPath, DmaDevice, DmaMask, Mode};
use crate::mm::OutOfMemory;
use crate::platform::{MappedId, Platform, VIRTIO_REGISTERS, VirtioMmio};
use crate::smp::Cpu;
use crate::sync::{IrqLock, rank};
use crate::trap::probe::{self, ProbeFault};

/// "virt", from the lowest byte on.
const MAGIC: u32 = 0x7472_6976;
/// The version of devices that keep to version 1 of the specification and later.
const VERSION: u32 = 2;
/// The version of those before.
const LEGACY: u32 = 1;
/// The vendor of virtio's functions, and the first number of theirs: a device's type is added (4.1.2.1).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// The registers that are not in [`LAYOUT`] (4.2.2).
mod register {
    pub(super) const MAGIC: u64 = 0x00;
    pub(super) const VERSION: u64 = 0x04;
    pub(super) const DEVICE: u64 = 0x08;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    /// In all versions.
    pub(super) const STATUS: u64 = 0x70;
}

/// The reasons for an interrupt: used buffers, and a change of the configuration.
const REASONS: u32 = 0b11;
/// Interrupts of a device since a request of its driver came to a good end last, after which its line is disabled. A device
/// has one for each buffer at most, of which a queue has less than a hundredth.
const MOST_UNATTENDED: u32 = 10_000;

/// Where the registers are that all virtio devices have.
pub(super) static LAYOUT: RegisterLayout = RegisterLayout {
    groups: &[(RegisterGroup::Common, VIRTIO_REGISTERS)],
    device_feature_select: Register(0x14, Word),
    device_feature: Register(0x10, Word),
    driver_feature_select: Register(0x24, Word),
    driver_feature: Register(0x20, Word),
    queues: None,
    status: Register(register::STATUS, Word),
    generation: Register(0xfc, Word),
    queue_select: Register(0x30, Word),
    queue_most: Register(0x34, Word),
    queue_size: Register(0x38, Word),
    queue_enable: Register(0x44, Word),
    queue_parts: [0x80, 0x90, 0xa0],
    vectors: None,
    notification: Notification::At(Register(0x50, Word)),
};

/// Why there is no device to drive at a place that is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PlaceError {
    /// The access faults.
    #[error("nothing answers there: {0}")]
    NoAnswer(#[from] ProbeFault),
    /// No virtio device has such registers.
    #[error("its magic number is {0:#x}, and not {MAGIC:#x}")]
    Magic(u32),
    /// A device from before version 1 of the specification.
    #[error("version 1, a legacy device, is not driven; version 2 is (QEMU: -global virtio-mmio.force-legacy=false)")]
    Legacy,
    /// A later one, or none.
    #[error("version {0} is not known; version 2 is driven")]
    Version(u32),
    /// There is no such type.
    #[error("{0:#x} is no type of device")]
    Type(u32),
}

/// The device at a place, by its registers; `None` where the place is empty.
fn identify(read: impl Fn(u64) -> Result<u32, ProbeFault>) -> Result<Option<Id>, PlaceError> {
    let magic = read(register::MAGIC)?;
    if magic != MAGIC {
        return Err(PlaceError::Magic(magic));
    }
    // An empty place may be of any version.
    let kind = read(register::DEVICE)?;
    if kind == 0 {
        return Ok(None);
    }
    match read(register::VERSION)? {
        VERSION => {}
        LEGACY => return Err(PlaceError::Legacy),
        version => return Err(PlaceError::Version(version)),
    }
    let device = u16::try_from(kind).ok().and_then(|kind| FIRST_DEVICE.checked_add(kind));
    device.map(|device| Some(Id { vendor: VENDOR, device })).ok_or(PlaceError::Type(kind))
}

/// A device.
pub struct Node {
    place: &'static VirtioMmio,
    registers: VirtAddr,
    id: Id,
    owner: IrqLock<Option<&'static str>, { rank::DEVICE }>,
    /// Interrupts since its driver had something from it last.
    unattended: AtomicU32,
}

static NODES: Once<&'static [Node]> = Once::new();

/// Every such device, in the order of the device tree.
pub fn nodes() -> &'static [Node] {
    NODES.get().copied().unwrap_or(&[])
}

/// Looks at each place that the platform has, and has its device forget what firmware used it for. `map` maps registers
/// as device memory, for ever.
///
/// # Errors
/// There is no memory for the list.
pub fn init(
    platform: &'static Platform,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<(), OutOfMemory> {
    let nodes = find(platform, map, &probe::read)?;
    if !nodes.is_empty() {
        NODES.call_once(|| nodes.leak());
    }
    Ok(())
}

/// The devices at the places that the platform has; `read` reads a register, which may not be there.
fn find(
    platform: &'static Platform,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
    read: &dyn Fn(VirtAddr) -> Result<u32, ProbeFault>,
) -> Result<Vec<Node>, OutOfMemory> {
    let mut nodes = Vec::new();
    for pages in platform.virtio_registers() {
        let Some(start) = map(pages) else { continue };
        let inside = |place: &&VirtioMmio| pages.contains(place.registers.start());
        for place in platform.virtio.iter().filter(inside) {
            let registers = start + (place.registers.start() - pages.start());
            let found = identify(|offset| read(registers + offset));
            if matches!(found, Ok(Some(_)) | Err(PlaceError::Legacy)) {
                // SAFETY: registers of a virtio device, just mapped for ever; it has no driver.
                let region = unsafe { MmioRegion::new(registers, VIRTIO_REGISTERS) };
                region.write32(register::STATUS, 0);
            }
            match found {
                Ok(None) => {}
                Ok(Some(id)) => {
                    nodes.try_reserve(1).map_err(|_| OutOfMemory)?;
                    nodes.push(Node::new(place, registers, id));
                }
                Err(error) => crate::log::warn!("virtio device at {}: {error}", place.registers.start()),
            }
        }
    }
    Ok(nodes)
}

/// A driver has the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the virtio device at {0} is in use by {1}")]
pub struct NodeClaimed(pub PhysAddr, pub &'static str);

/// Why a device's interrupt is unavailable.
#[derive(Debug, Error)]
enum NoLine {
    #[error("the device tree has none")]
    None,
    #[error(transparent)]
    Line(#[from] LineError),
}

impl Node {
    fn new(place: &'static VirtioMmio, registers: VirtAddr, id: Id) -> Self {
        Self { place, registers, id, owner: IrqLock::new(None), unattended: AtomicU32::new(0) }
    }

    /// Its place in the device tree.
    pub fn place(&self) -> &'static VirtioMmio {
        self.place
    }

    /// The device's identity, by the numbers of functions.
    pub fn id(&self) -> Id {
        self.id
    }

    /// The driver that has claimed it.
    pub fn owner(&self) -> Option<&'static str> {
        *self.owner.lock()
    }

    /// Takes the device for the driver `name`. It is the driver's until the claim is dropped.
    ///
    /// # Errors
    /// Another driver has it.
    pub fn claim(&'static self, name: &'static str) -> Result<NodeClaim, NodeClaimed> {
        let mut owner = self.owner.lock();
        match *owner {
            Some(other) => Err(NodeClaimed(self.place.registers.start(), other)),
            None => {
                *owner = Some(name);
                self.unattended.store(0, Ordering::Relaxed);
                Ok(NodeClaim { node: self, is_cut_off: AtomicBool::new(false) })
            }
        }
    }

    fn region(&self) -> MmioRegion {
        // SAFETY: mapped for ever by `init`. Drivers get it by their claim; else it is used for the registers of the
        // interrupt alone.
        unsafe { MmioRegion::new(self.registers, self.place.registers.size()) }
    }

    /// Its stream, where the SMMU cannot tell another device from this one by it.
    pub fn shared_stream(&self) -> Option<MappedId> {
        let others = nodes().iter().filter(|other| !core::ptr::eq(*other, self)).map(|other| other.place.stream);
        let mut streams = others.chain(pci::functions().iter().map(Function::stream_id));
        self.place.stream.filter(|_| streams.any(|other| other == self.place.stream))
    }
}

impl InterruptSource for Node {
    fn has_interrupted(&self) -> bool {
        // An edge comes when the device has had no reason before: none may be left. And a read comes after the
        // acknowledgement, so a level is down before the interrupt ends.
        const MOST_LOOKS: usize = 4;
        let registers = self.region();
        let mut has_reason = false;
        for _ in 0..MOST_LOOKS {
            let reasons = registers.read32(register::INTERRUPT_STATUS) & REASONS;
            if reasons == 0 {
                break;
            }
            registers.write32(register::INTERRUPT_ACKNOWLEDGE, reasons);
            has_reason = true;
        }
        if has_reason && self.unattended.fetch_add(1, Ordering::Relaxed) >= MOST_UNATTENDED {
            self.silence();
        }
        has_reason
    }
}

impl Node {
    #[cold]
    fn silence(&self) {
        self.unattended.store(0, Ordering::Relaxed);
        if let Some(interrupt) = self.place.interrupt {
            crate::log::error!("{self}: it interrupts without end; interrupt {} is disabled", interrupt.intid);
            lines::disable(interrupt.intid);
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtio device at {}", self.place.registers.start())
    }
}

/// A device that belongs to a driver.
///
/// Having one proves: no other driver has claimed the device. Dropping it disconnects the interrupt.
#[must_use = "the device is given back at once"]
pub struct NodeClaim {
    node: &'static Node,
    /// It was kept from memory, as it did not come back from a reset.
    is_cut_off: AtomicBool,
}

impl Deref for NodeClaim {
    type Target = Node;
    fn deref(&self) -> &Node {
        self.node
    }
}

impl NodeClaim {
    /// Its registers.
    pub(super) fn windows(&self) -> Windows {
        let region = self.region();
        let device = region.part(VIRTIO_REGISTERS, region.bytes() - VIRTIO_REGISTERS);
        Windows::of(region.part(0, VIRTIO_REGISTERS), device, &LAYOUT)
    }

    /// The device's way to memory, which its driver alone has. Sleeps.
    pub(super) fn attach(&self, cpu: &Cpu, mask: DmaMask) -> Result<DmaDevice, AttachError> {
        let VirtioMmio { stream, coherent, dma, .. } = *self.place;
        iommu::attach_behind(cpu, &BusPath { stream, dma: &[dma], coherent }, mask)
    }

    /// Lets the device access memory, or no longer: then it is bound to no process any more. **Nothing keeps it from
    /// memory where there is no SMMU**: the caller resets it first.
    pub(super) fn set_reaches_memory(&self, cpu: &Cpu, dma: &DmaDevice, on: bool) {
        if self.is_cut_off.swap(!on, Ordering::Relaxed) != on || dma.stream().is_none() && on {
            return;
        }
        if let Err(error) = dma.set_mode(if on { Mode::Translated } else { Mode::Abort }) {
            crate::log::error!("{}: {error}: it is not kept from memory", self.node);
        }
        if !on {
            dma.unbind(cpu);
        }
    }

    /// Whether it is kept from memory.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Relaxed)
    }

    /// Has `handler` run for its interrupts, on this CPU, which is `cpu`; `None`, after a warning, where it has none.
    pub(super) fn set_interrupt(&self, cpu: &Cpu, handler: &'static dyn InterruptHandler) -> Option<InterruptVector> {
        let line = self.place.interrupt.ok_or(NoLine::None);
        let listening = line.and_then(|line| {
            lines::listen(self.node, line, cpu, handler)?;
            Ok(InterruptVector::Line { intid: line.intid })
        });
        listening.inspect_err(|error| crate::log::warn!("{}: no interrupt: {error}; it is polled", self.node)).ok()
    }

    /// A request of its driver has come to a good end.
    pub(super) fn attended(&self) {
        if self.unattended.load(Ordering::Relaxed) != 0 {
            self.unattended.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for NodeClaim {
    fn drop(&mut self) {
        lines::ignore(self.node);
        *self.owner.lock() = None;
    }
}

#[cfg(test)]
mod tests;
