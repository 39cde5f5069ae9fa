//! PCI Express: which functions there are, and their drivers (PCI Express Base Specification 5.0, 7; PCI-to-PCI Bridge
//! Architecture Specification 1.2; PCI Local Bus Specification 3.0, 6).
//!
//! [`init`] redoes all that firmware may have done: it numbers the buses, gives base address registers and bridges
//! their addresses, and makes the list [`functions`]; numbers and addresses stay only where the host's windows are not
//! known. A driver looks there for what it knows, takes it by [`Function::claim`], and has with the [`Claim`] what only
//! one may do: map registers, let the device reach memory, take its interrupts. The list also has the names of a
//! function at the SMMU and at what takes messages; of both this module knows no more than the name.
//!
//! **A device's configuration space may hold anything**: sizes and lists are bounded, and what makes no sense is left
//! out with a warning.
//!
//! - [`config`]: configuration space, in memory or in a test
//! - [`enumerate`]: the walk that finds everything
//! - [`bar`]: base address registers
//! - [`acs`]: whether a function's accesses can reach a peer past the host
//! - [`claim`]: what a driver may do
//! - [`interrupt`]: messages and pins
//! - [`mmio`]: registers of a device

mod acs;
mod bar;
mod claim;
mod config;
mod enumerate;
mod interrupt;
mod mmio;
#[cfg(test)]
pub(super) mod tests;

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use pci_types::capability::PciCapability;
use spin::Once;
use thiserror::Error;

pub use bar::{Bar, BarKind};
pub use claim::{Claim, InterruptVector};
pub use interrupt::messages_are_allowed;
pub use mmio::MmioRegion;
pub use pci_types::PciAddress;
pub use pci_types::capability;

use crate::chip::interrupt::InterruptError;
use crate::chip::message::MessageError;
use crate::mm::OutOfMemory;
use crate::mm::kernel::vmalloc::VmallocError;
use crate::platform::{Interrupt, MappedId, Pcie, Platform, Window, WindowKind};
use crate::sync::{IrqLock, rank};
use crate::trap::probe::ProbeFault;
use config::{ConfigSpace, Ecam};
use enumerate::Walk;

static FUNCTIONS: Once<&'static [Function]> = Once::new();

/// Every function that was found, a bridge before what is behind it. None where the machine has no PCI Express.
pub fn functions() -> &'static [Function] {
    FUNCTIONS.get().copied().unwrap_or(&[])
}

/// Finds the functions behind the platform's host bridge. `map` maps registers as device memory, for ever.
///
/// # Errors
/// There is no memory for the list.
#[allow(unsafe_code, reason = "configuration space at the addresses of the device tree")]
pub fn init(
    platform: &'static Platform,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<(), OutOfMemory> {
    static ECAM: Ecam = Ecam::new();
    static HOST: Once<Host> = Once::new();

    let Some(description) = &platform.pcie else {
        crate::log::info!("the machine has no PCI Express with its configuration space in memory");
        return Ok(());
    };
    let mut map_bus = |bus: u8| {
        let Some(start) = description.bus(bus).and_then(&mut *map) else { return false };
        // SAFETY: `map` has mapped it, for ever.
        unsafe { ECAM.add(bus, start) };
        true
    };
    let taken = taken(platform)?;
    let host = HOST.call_once(|| Host { config: &ECAM, description, taken });
    let functions = Walk::new(host, &mut map_bus).run()?;
    if let Some(fault) = ECAM.fault().filter(|_| functions.is_empty()) {
        crate::log::warn!("PCI: no configuration space at {}: {fault}; it is left out", description.ecam.start());
    }
    crate::log::debug!("{} functions on PCI Express", functions.len());
    FUNCTIONS.call_once(|| functions.leak());
    Ok(())
}

/// The functions behind one host bridge have this in common.
struct Host {
    config: &'static dyn ConfigSpace,
    description: &'static Pcie,
    /// Memory, and the registers of other devices, in whole pages: no function's.
    taken: Vec<PhysRange>,
}

/// All addresses that the platform describes.
#[inline(never)]
fn taken(platform: &Platform) -> Result<Vec<PhysRange>, OutOfMemory> {
    let mut taken = Vec::new();
    for range in platform.memory_and_registers() {
        taken.try_reserve(1).map_err(|_| OutOfMemory)?;
        taken.push(range);
    }
    Ok(taken)
}

/// A function's vendor and device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Id {
    /// Its vendor.
    pub vendor: u16,
    /// Its number among the vendor's devices.
    pub device: u16,
}

/// The kind of a function, by the class codes that all vendors share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// The kind: 1 mass storage, 2 network, 6 bridge, …
    pub base: u8,
    /// The kind within `base`.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

/// One function of a device.
pub struct Function {
    host: &'static Host,
    address: PciAddress,
    id: Id,
    class: Class,
    /// The requester number of its accesses: that of its bridge behind a conventional bus.
    requester: u16,
    /// Where its interrupt pin leads, as device and pin on the host's own bus.
    pin: Option<(u16, u8)>,
    /// The first port on the way that may send its accesses to a peer, past the host.
    leak: Option<PciAddress>,
    /// It may reach the other functions of its device past the host.
    reaches_siblings: bool,
    bridge: Option<Buses>,
    bars: [Option<Bar>; bar::COUNT],
    mapped: [Once<VirtAddr>; bar::COUNT],
    owner: IrqLock<Option<&'static str>, { rank::DEVICE }>,
    /// The claim, and regions of its registers. The function is its owner's while there is one.
    holds: AtomicU32,
}

/// The buses behind a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buses {
    /// The one directly behind it.
    pub secondary: u8,
    /// The last one.
    pub subordinate: u8,
}

/// Why a function cannot provide something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PciError {
    /// Another driver has it.
    #[error("{0} is in use by {1}")]
    Claimed(PciAddress, &'static str),
    /// Functions behind a bridge depend on it, so no driver may claim it.
    #[error("{0} is a bridge, and has no driver")]
    Bridge(PciAddress),
    /// It has no base address register of that number.
    #[error("{function} has no base address register {index}")]
    NoBar {
        /// The function.
        function: PciAddress,
        /// The register.
        index: usize,
    },
    /// The register is for I/O ports.
    #[error("base address register {index} of {function} is for I/O ports, and memory is wanted")]
    NotMemory {
        /// The function.
        function: PciAddress,
        /// The register.
        index: usize,
    },
    /// The host's windows have no room for it.
    #[error("the host bridge had no room for the {size:#x} bytes of base address register {index} of {function}")]
    NoRoom {
        /// The function.
        function: PciAddress,
        /// The register.
        index: usize,
        /// Bytes.
        size: u64,
    },
    /// The registers could not be mapped.
    #[error("registers of {0} not mapped: {1}")]
    NotMapped(PciAddress, VmallocError),
    /// Nothing answers where the registers are.
    #[error("base address register {1} of {0}: nothing answers there: {2}")]
    NoAnswer(PciAddress, usize, ProbeFault),
    /// Configuration space has 4096 bytes.
    #[error("{0:#x} is no offset in configuration space for {1} bytes")]
    BadOffset(u16, u16),
    /// The function has fewer interrupts than that.
    #[error("{function} has {count} interrupt vectors, there is none of number {vector}")]
    NoVector {
        /// The function.
        function: PciAddress,
        /// The vector that was asked for.
        vector: u16,
        /// How many it has.
        count: u16,
    },
    /// The vector has a handler.
    #[error("interrupt vector {1} of {0} is in use")]
    VectorInUse(PciAddress, u16),
    /// It can send messages, and they are unavailable.
    #[error("no messages from {0}: {1}")]
    NoMessage(PciAddress, MessageError),
    /// It has a pin, and the interrupt that it leads to is unavailable.
    #[error("no interrupt by the pin of {0}: {1}")]
    NoPin(PciAddress, InterruptError),
    /// Neither messages nor a pin lead from the function to the interrupt controller.
    #[error("{0} has no interrupt: {1}")]
    NoInterrupt(PciAddress, &'static str),
}

/// Why a function cannot be given addresses of its own: what it accesses may be another's, or go to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NotIsolated {
    /// The host cannot distinguish the two: a conventional bus has one requester ID for all.
    #[error("the host cannot distinguish {0} from {1}: they have one requester ID")]
    SameRequester(PciAddress, PciAddress),
    /// Nothing keeps the functions of a device from each other.
    #[error("{0} may reach {1}, another function of its device, past the SMMU (no ACS)")]
    SameDevice(PciAddress, PciAddress),
    /// A port without ACS is on the way.
    #[error("{0} may reach other devices past the SMMU: the port {1} has no ACS, or not all of it")]
    Port(PciAddress, PciAddress),
}

impl Function {
    /// Where it is: bus, device and function. Also its name.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its vendor.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Its kind, by its class codes.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The buses behind it, if it is a bridge.
    pub fn bridge(&self) -> Option<Buses> {
        self.bridge
    }

    /// Whether the host sees all that it accesses, and knows it from every other endpoint: what translating for it alone
    /// stands on.
    ///
    /// # Errors
    /// The first function or port that prevents it.
    pub fn isolation(&self) -> Result<(), NotIsolated> {
        let others = functions().iter().filter(|other| other.address != self.address && other.bridge.is_none());
        self.isolation_among(others)
    }

    /// [`Self::isolation`] among these endpoints.
    fn isolation_among<'f>(&self, mut others: impl Iterator<Item = &'f Function>) -> Result<(), NotIsolated> {
        if let Some(port) = self.leak {
            return Err(NotIsolated::Port(self.address, port));
        }
        let same = |a: PciAddress, b: PciAddress| (a.bus(), a.device()) == (b.bus(), b.device());
        let found = others.find_map(|other| {
            if other.requester == self.requester {
                Some(NotIsolated::SameRequester(self.address, other.address))
            } else if self.reaches_siblings && same(self.address, other.address) {
                Some(NotIsolated::SameDevice(self.address, other.address))
            } else {
                None
            }
        });
        found.map_or(Ok(()), Err)
    }

    /// The SMMU in front of it and what that calls it (`iommu-map`); `None` where no SMMU sees its accesses.
    pub fn stream_id(&self) -> Option<MappedId> {
        self.host.description.streams.find(self.requester)
    }

    /// Its number at the receiver of messages (`msi-map`); `None` where nothing takes its messages.
    pub fn msi_device_id(&self) -> Option<u32> {
        self.host.description.devices.find(self.requester).map(|device| device.id)
    }

    /// The interrupt that its pin raises, if it has one and `interrupt-map` has its parent. Others may share it.
    pub fn line(&self) -> Option<Interrupt> {
        let (device, pin) = self.pin?;
        self.host.description.lines.find(device, pin)
    }

    /// Of a bridge: the memory that it forwards to what is behind it, as the CPU has the addresses.
    pub fn window(&self) -> Option<PhysRange> {
        let window = self.bridge.and(Some(self.host.config.read32(self.address, enumerate::MEMORY_WINDOW)))?;
        self.forwarded(window, 0, 0)
    }

    /// As [`window`](Self::window), of memory that may lie above 4 GiB and in which reading has no effect.
    pub fn prefetchable_window(&self) -> Option<PhysRange> {
        let read = |offset| self.host.config.read32(self.address, offset);
        let window = self.bridge.and(Some(read(enumerate::PREFETCHABLE_WINDOW)))?;
        self.forwarded(window, read(enumerate::PREFETCHABLE_BASE_UPPER), read(enumerate::PREFETCHABLE_LIMIT_UPPER))
    }

    /// Both ends are multiples of a mebibyte, and the last one is inside.
    fn forwarded(&self, window: u32, base_upper: u32, last_upper: u32) -> Option<PhysRange> {
        let base = u64::from(base_upper) << 32 | u64::from(window & 0xfff0) << 16;
        let last = u64::from(last_upper) << 32 | u64::from(window & 0xfff0_0000);
        if last < base {
            return None;
        }
        let size = (last - base).checked_add(1 << 20)?;
        let Some(windows) = &self.host.description.windows else { return PhysRange::from_size(PhysAddr(base), size) };
        let inside = |window: &&Window| base >= window.bus && base - window.bus < window.cpu.size();
        let window = windows.iter().filter(|window| window.kind != WindowKind::Io).find(inside)?;
        PhysRange::from_size(window.cpu.start() + (base - window.bus), size)
    }

    /// Base address register number `index`, 0 to 5.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn bar(&self, index: usize) -> Result<Bar, PciError> {
        let bar = self.bars.get(index).copied().flatten();
        bar.ok_or(PciError::NoBar { function: self.address, index })
    }

    /// The base address registers that there are, with their numbers.
    pub fn bars(&self) -> impl Iterator<Item = (usize, Bar)> {
        self.bars.iter().enumerate().filter_map(|(index, bar)| Some((index, (*bar)?)))
    }

    /// Reads two bytes of configuration space.
    ///
    /// # Errors
    /// The offset is not even, or too large.
    pub fn read_config16(&self, offset: u16) -> Result<u16, PciError> {
        check_offset(offset, 2)?;
        Ok((self.host.config.read32(self.address, offset & !3) >> (offset % 4 * 8)) as u16)
    }

    /// Reads a word of configuration space.
    ///
    /// # Errors
    /// The offset is no multiple of four, or too large.
    pub fn read_config32(&self, offset: u16) -> Result<u32, PciError> {
        check_offset(offset, 4)?;
        Ok(self.host.config.read32(self.address, offset))
    }

    /// Its capabilities in the order of their list. The list ends where it makes no sense.
    pub fn capabilities(&self) -> impl Iterator<Item = PciCapability> {
        config::capabilities(self.host.config, self.address)
    }

    /// Takes the function for the driver `name`. It is the driver's until the claim is dropped.
    ///
    /// # Errors
    /// Another driver has it, or it is a bridge.
    pub fn claim(&'static self, name: &'static str) -> Result<Claim, PciError> {
        if self.bridge.is_some() {
            return Err(PciError::Bridge(self.address));
        }
        let mut owner = self.owner.lock();
        match *owner {
            Some(other) => Err(PciError::Claimed(self.address, other)),
            None => {
                *owner = Some(name);
                Ok(Claim::new(self))
            }
        }
    }

    /// Sets or clears bits of the command register.
    fn change_command(&self, bits: u16, on: bool) {
        let command = self.host.config.read32(self.address, enumerate::COMMAND) as u16;
        let command = if on { command | bits } else { command & !bits };
        self.host.config.write16(self.address, enumerate::COMMAND, command);
    }

    /// One hold more: see [`mmio::Hold`].
    fn hold(&self) {
        // Relaxed: the first hold is made under the owner's lock, a later one by the holder of another.
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// One hold less. With the last one the function is no driver's.
    fn release(&self) {
        let mut owner = self.owner.lock();
        if self.holds.fetch_sub(1, Ordering::Relaxed) == 1 {
            *owner = None;
        }
    }

    /// The driver that has claimed it.
    pub fn owner(&self) -> Option<&'static str> {
        *self.owner.lock()
    }
}

fn check_offset(offset: u16, size: u16) -> Result<(), PciError> {
    let inside = offset < config::FUNCTION && offset.is_multiple_of(size);
    if inside { Ok(()) } else { Err(PciError::BadOffset(offset, size)) }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}
