//! Interrupts of functions: by messages, MSI-X or MSI, where the machine has an ITS or a GICv2m; else by the pin, which
//! functions share (PCI Local Bus Specification 3.0, 6.8; PCI Express Base Specification, 6.1).

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use heapless::Vec;
use linkme::distributed_slice;
use pci_types::capability::{MsixCapability, PciCapability};

use super::claim::{Claim, InterruptVector};
use super::config::{self, ConfigSpace};
use super::enumerate::{COMMAND, NO_PIN};
use super::{Function, MmioRegion, PciAddress, PciError, functions};
use crate::Kernel;
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::chip::interrupt::{InterruptError, InterruptHandler};
use crate::chip::message::host::MessageHost;
use crate::chip::message::{self, Message, MessageError, TABLES_SIZE};
use crate::devices::lines::{self, InterruptSource, LineError};
use crate::mm::OutOfMemory;
use crate::mm::page_block::BLOCK_SIZE;
use crate::platform::Platform;
use crate::smp::Cpu;
use crate::sync::{IrqLock, rank};

/// In the status register, the upper half of the word at COMMAND: the pin is held.
const PIN_HELD: u32 = 1 << 19;
/// Message control, the second half of the first word of both capabilities.
const CONTROL: u16 = 2;
/// Of MSI: it is on; 64-bit addresses; how many messages are used, 0 being one.
const MSI_ON: u16 = 1 << 0;
const MSI_WIDE: u16 = 1 << 7;
const MSI_USED: u16 = 0b111 << 4;
/// Of MSI-X: it is on; no vector may send.
const MSIX_ON: u16 = 1 << 15;
const MSIX_MASKED: u16 = 1 << 14;
/// An entry of the table of MSI-X: address, data, and a word whose lowest bit keeps it silent.
const ENTRY: u64 = 16;
const SILENT: u32 = 1 << 0;

/// Connected vectors of all functions: as many as there are messages for them.
static MESSAGES: IrqLock<Vec<Connected, { message::MOST }>, { rank::DEVICE }> = IrqLock::new(Vec::new());

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static PCI: Parameter = Parameter {
    name: "pci",
    help: "pci=nomsi: functions interrupt by their pins, never by messages",
    check: |value| match value.split(',').all(|word| word == NO_MESSAGES) {
        true => Ok(()),
        false => Err(Refused::because("nomsi; the rest of Linux's list means nothing here")),
    },
};
const NO_MESSAGES: &str = "nomsi";

/// Whether functions may send messages, by the boot argument.
pub fn messages_are_allowed() -> bool {
    !bootargs::get(PCI.name).is_some_and(|value| value.split(',').any(|word| word == NO_MESSAGES))
}

/// Whether a function sends messages, if it can: something takes them, and they are allowed.
pub(super) fn may_send(function: &Function) -> bool {
    function.msi_device_id().is_some() && messages_are_allowed()
}

struct Connected {
    function: &'static Function,
    vector: u16,
    message: Message,
}

/// How a function can interrupt, the best that the machine can take.
enum Way {
    MsiX(MsixCapability, u16),
    Msi(u16),
    Pin,
}

impl Way {
    fn of(function: &Function) -> Option<Self> {
        let mut way = function.line().map(|_| Self::Pin);
        if !may_send(function) {
            return way;
        }
        for capability in function.capabilities() {
            match capability {
                PciCapability::MsiX(msix) => return Some(Self::MsiX(msix, capability.address().offset)),
                PciCapability::Msi(_) => way = Some(Self::Msi(capability.address().offset)),
                _ => {}
            }
        }
        way
    }

    fn vectors(&self) -> u16 {
        match self {
            // Its word has 11 bits, and 0 is one.
            Self::MsiX(msix, _) => msix.table_size(),
            Self::Msi(_) | Self::Pin => 1,
        }
    }
}

pub(super) fn vectors(function: &Function) -> u16 {
    Way::of(function).map_or(0, |way| way.vectors())
}

pub(super) fn set(
    claim: &Claim,
    kernel: &'static Kernel,
    cpu: &Cpu,
    vector: u16,
    handler: &'static dyn InterruptHandler,
    doorbell: Option<u64>,
) -> Result<InterruptVector, PciError> {
    let function = claim.function();
    let Some(way) = Way::of(function) else {
        return Err(PciError::NoInterrupt(function.address, "it has no pin, or nothing takes what it sends"));
    };
    let count = way.vectors();
    if vector >= count {
        return Err(PciError::NoVector { function: function.address, vector, count });
    }
    let connected = match way {
        Way::MsiX(msix, offset) => set_msix(claim, kernel, cpu, (msix, offset), vector, handler, doorbell),
        Way::Msi(offset) => set_msi(claim, kernel, cpu, offset, handler, doorbell),
        Way::Pin => set_pin(function, cpu, handler),
    };
    match connected {
        Err(error @ PciError::NoMessage(..)) if vector == 0 && function.line().is_some() => {
            crate::log::warn!("{error}; it interrupts by its pin");
            set_pin(function, cpu, handler)
        }
        connected => connected,
    }
}

/// Whether `vector` of a function has a message.
pub(super) fn is_connected(function: &'static Function, vector: u16) -> bool {
    MESSAGES.lock().iter().any(|other| core::ptr::eq(other.function, function) && other.vector == vector)
}

/// Gives a function's vector a message, which it sends to `doorbell` or, without one, to the receiver's own: the caller
/// has it do so by [`start_sending`].
fn connect(
    function: &'static Function,
    kernel: &'static Kernel,
    cpu: &Cpu,
    vector: u16,
    handler: &'static dyn InterruptHandler,
    doorbell: Option<u64>,
) -> Result<(u64, Message), PciError> {
    let address = function.address;
    if is_connected(function, vector) {
        return Err(PciError::VectorInUse(address, vector));
    }
    let none = || PciError::NoMessage(address, MessageError::None);
    let own = message::doorbell(kernel.platform).ok_or_else(none)?;
    let device = function.msi_device_id().ok_or_else(none)?;
    let last = functions().iter().filter_map(Function::msi_device_id).max().unwrap_or(device);
    let message = message::connect(kernel, cpu, (device, last), handler, vector)
        .map_err(|error| PciError::NoMessage(address, error))?;
    Ok((doorbell.unwrap_or(own.0), message))
}

impl MessageHost for Kernel {
    fn platform(&self) -> &Platform {
        self.platform
    }

    fn map_registers(&self, cpu: &Cpu, registers: PhysRange) -> Option<VirtAddr> {
        self.space.map_device(cpu, registers).ok()
    }

    fn alloc_tables(&self, cpu: &Cpu) -> Result<(PhysAddr, VirtAddr), OutOfMemory> {
        const _: () = assert!(TABLES_SIZE == BLOCK_SIZE);
        let block = self.frames.alloc_blocks(cpu, 0)?;
        Ok((block, self.frames.linear().address(block)))
    }

    fn free_tables(&self, cpu: &Cpu, tables: PhysAddr) {
        self.frames.free_blocks(cpu, tables, 0);
    }
}

/// Has `write` make `vector` of a function send `message`. Where that fails the message goes back, and no other.
pub(super) fn start_sending(
    function: &'static Function,
    vector: u16,
    message: Message,
    write: impl FnOnce() -> Result<(), PciError>,
) -> Result<(), PciError> {
    // There is room for each message, and each is there once.
    let _ = MESSAGES.lock().push(Connected { function, vector, message });
    write().inspect_err(|_| disconnect(function, |other| other == vector))
}

/// Gives back the messages of those vectors of a function that `is_meant` holds for.
fn disconnect(function: &'static Function, is_meant: impl Fn(u16) -> bool) {
    loop {
        let mut messages = MESSAGES.lock();
        let is_one = |other: &Connected| core::ptr::eq(other.function, function) && is_meant(other.vector);
        let Some(index) = messages.iter().position(is_one) else { return };
        let Connected { message, .. } = messages.swap_remove(index);
        drop(messages);
        message::disconnect(message);
    }
}

fn set_msix(
    claim: &Claim,
    kernel: &'static Kernel,
    cpu: &Cpu,
    (msix, offset): (MsixCapability, u16),
    vector: u16,
    handler: &'static dyn InterruptHandler,
    doorbell: Option<u64>,
) -> Result<InterruptVector, PciError> {
    let function = claim.function();
    let bytes = u64::from(msix.table_size()) * ENTRY;
    let table = claim.map_bar(&kernel.space, cpu, usize::from(msix.table_bar()))?;
    let outside = PciError::NoInterrupt(function.address, "its table of messages is not inside its registers");
    let table = table.part(u64::from(msix.table_offset()), bytes).ok_or(outside)?;
    let (doorbell, message) = connect(function, kernel, cpu, vector, handler, doorbell)?;
    let write = || write_msix(claim, offset, (&table, msix.table_size()), vector, (doorbell, message.data));
    start_sending(function, vector, message, write)?;
    Ok(InterruptVector::MsiX { intid: message.intid })
}

/// Has `vector` of the capability at `offset`, whose `table` has so many entries, send `message`: an address, and what
/// it writes there. No entry is ever on with half of a message in it.
pub(super) fn write_msix(
    claim: &Claim,
    offset: u16,
    (table, entries): (&MmioRegion, u16),
    vector: u16,
    message: (u64, u32),
) -> Result<(), PciError> {
    let control = claim.read_config16(offset + CONTROL)?;
    if control & MSIX_ON == 0 {
        // Messages that were there before must not be sent; while all are masked none is.
        claim.write_config16(offset + CONTROL, control | MSIX_ON | MSIX_MASKED)?;
        for entry in 0..u64::from(entries) {
            table.write32(entry * ENTRY + 12, SILENT);
        }
    }
    let (entry, (doorbell, data)) = (u64::from(vector) * ENTRY, message);
    table.write32(entry, doorbell as u32);
    table.write32(entry + 4, (doorbell >> 32) as u32);
    table.write32(entry + 8, data);
    table.write32(entry + 12, 0);
    claim.write_config16(offset + CONTROL, (control | MSIX_ON) & !MSIX_MASKED)
}

fn set_msi(
    claim: &Claim,
    kernel: &'static Kernel,
    cpu: &Cpu,
    offset: u16,
    handler: &'static dyn InterruptHandler,
    doorbell: Option<u64>,
) -> Result<InterruptVector, PciError> {
    let (doorbell, message) = connect(claim.function(), kernel, cpu, 0, handler, doorbell)?;
    start_sending(claim.function(), 0, message, || write_msi(claim, offset, (doorbell, message.data)))?;
    Ok(InterruptVector::Msi { intid: message.intid })
}

/// Has the capability at `offset` send `message`: an address, and what it writes there. It is on when that is whole.
pub(super) fn write_msi(claim: &Claim, offset: u16, (doorbell, value): (u64, u32)) -> Result<(), PciError> {
    let control = claim.read_config16(offset + CONTROL)?;
    claim.write_config32(offset + 4, doorbell as u32)?;
    let data = if control & MSI_WIDE != 0 {
        claim.write_config32(offset + 8, (doorbell >> 32) as u32)?;
        12
    } else if doorbell >> 32 == 0 {
        8
    } else {
        return Err(PciError::NoInterrupt(claim.address, "its messages go below 4 GiB, and their receiver is above"));
    };
    claim.write_config16(offset + data, value as u16)?;
    claim.write_config16(offset + CONTROL, control & !MSI_USED | MSI_ON)
}

fn set_pin(
    function: &'static Function,
    cpu: &Cpu,
    handler: &'static dyn InterruptHandler,
) -> Result<InterruptVector, PciError> {
    let no_pin = |error| PciError::NoPin(function.address, error);
    let line = function.line().ok_or(no_pin(InterruptError::NoController))?;
    lines::listen(function, line, cpu, handler).map_err(|error| match error {
        LineError::InUse => PciError::VectorInUse(function.address, 0),
        LineError::Full => PciError::NoInterrupt(function.address, "too many pins are in use"),
        LineError::Interrupt(error) => no_pin(error),
    })?;
    function.change_command(NO_PIN, false);
    Ok(InterruptVector::Pin { intid: line.intid })
}

impl InterruptSource for Function {
    fn has_interrupted(&self) -> bool {
        self.host.config.read32(self.address, COMMAND) & PIN_HELD != 0
    }
}

/// Has a function send no messages.
pub(super) fn stop_messages(config: &dyn ConfigSpace, function: PciAddress) {
    for capability in config::capabilities(config, function) {
        let on = match capability {
            PciCapability::MsiX(_) => MSIX_ON,
            PciCapability::Msi(_) => MSI_ON,
            _ => continue,
        };
        config::clear_bits(config, function, capability.address().offset + CONTROL, on);
    }
}

/// Disconnects all interrupts of a function without a driver.
pub(super) fn clear(function: &'static Function) {
    function.change_command(NO_PIN, true);
    lines::ignore(function);
    stop_messages(function.host.config, function.address);
    disconnect(function, |_| true);
}
