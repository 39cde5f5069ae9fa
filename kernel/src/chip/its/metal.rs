//! The machine's ITS, started by the first request for an interrupt, and the handlers of its interrupts.

#![allow(unsafe_code, reason = "registers of the ITS, and tables that it reads")]

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::{EVENTS, FIRST, ItsError, ItsHost, ItsLists, ItsRegisters, ItsUnit, TABLES_SIZE, TableMemory, frames};
use crate::chip::interrupt::InterruptHandler;
use crate::mmio;
use crate::smp::cpu::Cpu;
use crate::sync::{IrqLock, rank};
use crate::trap::probe;

/// The control registers, mapped for ever.
struct Mmio(VirtAddr);

impl Mmio {
    fn register(&self, offset: usize) -> VirtAddr {
        self.0 + offset as u64
    }
}

impl ItsRegisters for Mmio {
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: a register of the frame, which is mapped for ever; it has no side effects.
        unsafe { mmio::read(self.register(offset)) }
    }
    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: a register of the frame, which is mapped for ever. The tables that it names are the ITS's alone.
        unsafe { mmio::write(self.register(offset), value) };
    }
    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: as for `read32`.
        unsafe { mmio::read(self.register(offset)) }
    }
    fn write64(&self, offset: usize, value: u64) {
        // SAFETY: as for `write32`.
        unsafe { mmio::write(self.register(offset), value) };
    }
}

/// The handler of an interrupt, and the vector that it gets.
type Handling = (&'static dyn InterruptHandler, u16);

type Locked = IrqLock<ItsUnit<Mmio>, { rank::DEVICE }>;

/// The ITS, or why there is none: it is tried once.
static ITS: Once<Result<Locked, ItsError>> = Once::new();
static LISTS: SpinMutex<ItsLists> = SpinMutex::new(ItsLists::EMPTY);
static HANDLERS: [IrqLock<Option<Handling>, { rank::INTERRUPT }>; EVENTS] = [const { IrqLock::new(None) }; EVENTS];

/// The value that a device writes to [`doorbell`](super::doorbell), and the interrupt that it raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// The value.
    pub event: u32,
    /// The interrupt's number at the controller.
    pub intid: u32,
}

/// Gives `device` a new event, which interrupts this CPU, `cpu`: then `handler` is called with `vector`. `last_device`
/// is the largest DeviceID that will ever ask.
///
/// # Errors
/// There is no ITS, or it cannot be used, or has no room.
pub fn connect(
    host: &dyn ItsHost,
    cpu: &Cpu,
    (device, last_device): (u32, u32),
    handler: &'static dyn InterruptHandler,
    vector: u16,
) -> Result<Message, ItsError> {
    let its = ITS.call_once(|| start(host, cpu, last_device)).as_ref().map_err(|error| *error)?;
    let mut its = its.lock();
    if device > last_device {
        return Err(ItsError::NoSuchDevice(device));
    }
    let number = cpu.id.0;
    if !its.is_cpu_connected(number) {
        let (pending, configurations) = (its.pending_table()?, its.configurations);
        let target = redistributor(cpu, [configurations.physical, pending.physical], its.is_by_address())?;
        its.connect_cpu(number, target)?;
    }
    let event = its.add(device, number)?;
    // The device knows nothing of it yet, so it has not arrived.
    *HANDLERS[event].lock() = Some((handler, vector));
    Ok(Message { event: event as u32, intid: FIRST + event as u32 })
}

/// Takes an event back: its interrupt arrives no more, but on another CPU its handler may still run.
pub fn disconnect(message: Message) {
    let Some(Ok(its)) = ITS.get() else { return };
    let Some(handler) = HANDLERS.get(message.event as usize) else { return };
    // Until the handler has gone: as soon as it can, the event has another owner and another handler.
    let mut its = its.lock();
    if let Err(error) = its.remove(message.event as usize) {
        crate::log::error!("interrupt {}: {error}", message.intid);
    }
    *handler.lock() = None;
}

/// Frames that the ITS keeps: for accounts of frames by owner.
pub fn kept_frames() -> usize {
    if let Some(Ok(_)) = ITS.get() { TABLES_SIZE as usize / PAGE_SIZE } else { 0 }
}

/// Messages that are connected: for accounts.
pub fn connections() -> usize {
    HANDLERS.iter().filter(|handler| handler.lock().is_some()).count()
}

/// Handles an LPI; false where it has no handler.
pub(in crate::chip) fn handle(cpu: &Cpu, intid: u32) -> bool {
    let slot = intid.checked_sub(FIRST).and_then(|event| HANDLERS.get(event as usize));
    let Some((handler, vector)) = slot.and_then(|slot| *slot.lock()) else { return false };
    handler.interrupt(cpu, vector);
    true
}

fn start(host: &dyn ItsHost, cpu: &Cpu, last_device: u32) -> Result<Locked, ItsError> {
    let registers = host.map_registers(cpu, frames(host.platform())?).ok_or(ItsError::NotMapped)?;
    probe::read::<u32>(registers).map_err(ItsError::NoAnswer)?;
    let (tables, mapped) = host.alloc_tables(cpu)?;
    // SAFETY: just allocated, all of it; it goes back only if the ITS was not enabled.
    let memory = unsafe { TableMemory::new(mapped, tables, TABLES_SIZE) };
    let its = ItsUnit::new(Mmio(registers), memory, SpinMutexGuard::leak(LISTS.lock()), last_device);
    its.map(IrqLock::new).inspect_err(|_| host.free_tables(cpu, tables))
}

/// Gives this CPU's redistributor its tables. Returns what the ITS calls it.
fn redistributor(cpu: &Cpu, tables: [PhysAddr; 2], by_address: bool) -> Result<u64, ItsError> {
    #[cfg(target_os = "none")]
    return crate::chip::gicv3::enable_lpis(cpu, tables, super::ID_BITS, by_address);
    // The host has none.
    #[cfg(not(target_os = "none"))]
    {
        let _ = (cpu, tables, by_address);
        Err(ItsError::None)
    }
}
