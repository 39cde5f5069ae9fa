//! The Interrupt Translation Service of a GICv3 (IHI 0069, 5): it makes interrupts of what devices write.
//!
//! A device writes an *event*'s number to one address for all, GITS_TRANSLATER ([`doorbell`]). The writer has a
//! *DeviceID*, and the two together are an interrupt of the kind LPI, numbers from 8192 on, in a *collection*, which is
//! a redistributor. All these are tables in memory that only the ITS writes; the kernel puts commands into a queue.
//!
//! To keep it small, an event has the same number for all devices as it has among LPIs: of [`EVENTS`] there is one of
//! each, each device's table has room for all, and a collection is a CPU. Nothing of it exists until the first interrupt
//! is asked for.
//!
//! - [`command`]: the commands
//! - [`metal`]: the machine's own ITS

mod command;
mod metal;
#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicU8, Ordering};

use granule_arch::addr::{PAGE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::barrier;
use heapless::Vec;
use thiserror::Error;
use tock_registers::{LocalRegisterCopy, register_bitfields};

use super::message::host::free_registers;
use crate::mm::OutOfMemory;
use crate::platform::Platform;
use crate::trap::probe::ProbeFault;
use command::{EventTable, ItsCommand};

pub(super) use metal::MachineIts;

/// Interrupts of devices that there can be at a time.
pub(super) const EVENTS: usize = 1 << EVENT_BITS;
const EVENT_BITS: u32 = 8;
/// The first number of an LPI.
pub(super) const FIRST: u32 = 8192;
/// Bits of the numbers of interrupts: the least that leaves room for LPIs.
const ID_BITS: u32 = 14;
/// Devices that can have interrupts.
const DEVICES: usize = 64;

/// The second frame of 64 KiB is what devices see, and in it the register that they write to.
const TRANSLATION_FRAME: u64 = 0x1_0000;
const TRANSLATER: u64 = TRANSLATION_FRAME + 0x40;

/// GITS_TRANSLATER; `None` where the machine has no ITS.
pub(super) fn doorbell(platform: &Platform) -> Option<PhysAddr> {
    frames(platform).ok()?.start().checked_add(TRANSLATER)
}

/// Bytes of memory that the ITS has for its tables, at a multiple of them.
pub const TABLES_SIZE: u64 = 2 << 20;

/// The two frames of the machine's ITS.
fn frames(platform: &Platform) -> Result<PhysRange, ItsError> {
    let registers = platform.its.ok_or(ItsError::None)?.registers;
    free_registers(platform, registers, 2 * TRANSLATION_FRAME).ok_or(ItsError::NotMapped)
}

/// Offsets of the registers of the first frame (12.18).
const CTLR: usize = 0x00;
const TYPER: usize = 0x08;
const CBASER: usize = 0x80;
const CWRITER: usize = 0x88;
const CREADR: usize = 0x90;
const BASER: usize = 0x100;
const BASERS: usize = 8;

register_bitfields! { u64,
    GITS_TYPER [
        PHYSICAL OFFSET(0) NUMBITS(1) [],
        /// Bytes of an event in a device's table, less one.
        EVENT_BYTES OFFSET(4) NUMBITS(4) [],
        EVENT_BITS OFFSET(8) NUMBITS(5) [],
        DEVICE_BITS OFFSET(13) NUMBITS(5) [],
        /// Redistributors are named by their addresses.
        BY_ADDRESS OFFSET(19) NUMBITS(1) [],
    ],
    GITS_BASER [
        /// Pages less one.
        PAGES OFFSET(0) NUMBITS(8) [],
        PAGE_SIZE OFFSET(8) NUMBITS(2) [Small = 0, Middle = 1, Large = 2],
        SHAREABILITY OFFSET(10) NUMBITS(2) [Inner = 1],
        ADDRESS OFFSET(12) NUMBITS(36) [],
        /// Bytes less one.
        ENTRY_SIZE OFFSET(48) NUMBITS(5) [],
        KIND OFFSET(56) NUMBITS(3) [Devices = 1, Collections = 4],
        CACHEABILITY OFFSET(59) NUMBITS(3) [WriteBack = 7],
        INDIRECT OFFSET(62) NUMBITS(1) [],
        VALID OFFSET(63) NUMBITS(1) [],
    ],
    GITS_CBASER [
        PAGES OFFSET(0) NUMBITS(8) [],
        SHAREABILITY OFFSET(10) NUMBITS(2) [Inner = 1],
        ADDRESS OFFSET(12) NUMBITS(40) [],
        CACHEABILITY OFFSET(59) NUMBITS(3) [WriteBack = 7],
        VALID OFFSET(63) NUMBITS(1) [],
    ],
}

const ENABLED: u32 = 1 << 0;
const QUIESCENT: u32 = 1 << 31;
/// CREADR: a command could not be done.
const STALLED: u64 = 1 << 0;
/// Looks at a register before the ITS counts as dead. It takes microseconds.
const PATIENCE: u32 = 1_000_000;

/// Bytes of the queue, the smallest that there can be, and of a command.
const QUEUE: u64 = 4096;
const COMMAND: u64 = size_of::<ItsCommand>() as u64;
/// Tables of pending interrupts, and the queue, begin at multiples of it.
const LARGE: u64 = 0x1_0000;
/// Bytes of such a table: a bit for each number.
const PENDING: u64 = (1 << ID_BITS) / 8;
/// The entry of an interrupt in the table of configurations: its priority, that of all others, and whether it is
/// enabled.
const PRIORITY: u8 = 0xa0;
const ON: u8 = 1 << 0;

/// Why devices cannot interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ItsError {
    /// There is none.
    #[error("the machine has no ITS")]
    None,
    /// Its registers could not be mapped.
    #[error("the registers of the ITS were not mapped: they have not two frames, or memory or the controller is there")]
    NotMapped,
    /// Nothing answers where its registers are to be.
    #[error("the ITS does not answer: {0}")]
    NoAnswer(ProbeFault),
    /// There is no memory for its tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// It cannot make interrupts of the kind LPI.
    #[error("the ITS or the redistributor of this CPU has no LPIs")]
    NoLpis,
    /// Firmware has given the redistributor tables, and it may not be given others.
    #[error("the redistributor of this CPU has tables for LPIs from before")]
    HasTables,
    /// The tables in memory would have to be kept out of the caches.
    #[error("the ITS does not see what is in the CPUs' caches")]
    NotCoherent,
    /// Its table of devices cannot be large enough.
    #[error("the ITS has no room for DeviceID {0:#x}")]
    NoSuchDevice(u32),
    /// There is no more room for interrupts.
    #[error("all {EVENTS} interrupts of devices, or of {DEVICES} devices, are in use")]
    Full,
    /// It has stopped, or does not stop.
    #[error("the ITS does not do its commands (the queue is at {read:#x} of {written:#x})")]
    Stuck {
        /// CREADR.
        read: u64,
        /// CWRITER.
        written: u64,
    },
}

/// The registers of the first frame: the metal's, or in tests a model's.
trait ItsRegisters {
    fn read32(&self, offset: usize) -> u32;
    fn write32(&self, offset: usize, value: u32);
    fn read64(&self, offset: usize) -> u64;
    fn write64(&self, offset: usize, value: u64);
}

/// Memory that tables are made of, from its start to its end; none is given back.
struct TableMemory {
    start: VirtAddr,
    physical: PhysAddr,
    bytes: u64,
    taken: u64,
}

/// A table in it.
#[derive(Clone, Copy)]
struct Part {
    start: VirtAddr,
    physical: PhysAddr,
}

impl TableMemory {
    /// # Safety
    /// The `bytes` at `start` are mapped, cacheable, at `physical`, and belong to this value for ever.
    #[allow(unsafe_code, reason = "memory that the ITS reads")]
    unsafe fn new(start: VirtAddr, physical: PhysAddr, bytes: u64) -> Self {
        Self { start, physical, bytes, taken: 0 }
    }

    /// The next `bytes` from a multiple of `align`, a power of two, on, filled with zeros.
    #[allow(unsafe_code, reason = "memory that the ITS reads")]
    fn take(&mut self, bytes: u64, align: u64) -> Result<Part, OutOfMemory> {
        let offset = (self.physical + self.taken).align_up(align).ok_or(OutOfMemory)? - self.physical;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes).ok_or(OutOfMemory)?;
        self.taken = end;
        let start = self.start + offset;
        // SAFETY: inside, and not handed out before; so it has no other user.
        unsafe { start.as_ptr::<u8>().write_bytes(0, bytes as usize) };
        Ok(Part { start, physical: self.physical + offset })
    }
}

/// An ITS at work.
struct ItsUnit<R> {
    registers: R,
    memory: TableMemory,
    kind: LocalRegisterCopy<u64, GITS_TYPER::Register>,
    queue: Part,
    /// Where the next command goes.
    written: u64,
    /// A byte for each LPI.
    configurations: Part,
    /// The target in commands of each CPU's redistributor; 0 bits in `connected` have none.
    targets: [u64; crate::smp::cpu::MAX_CPUS],
    connected: u32,
    last_device: u32,
    lists: &'static mut ItsLists,
}

/// The devices and events of an ITS: too large for a stack on their way into it, so they have their place before.
struct ItsLists {
    /// Devices that have a table.
    devices: Vec<u32, DEVICES>,
    /// For each event whose it is.
    events: [Option<ItsEvent>; EVENTS],
}

impl ItsLists {
    const EMPTY: Self = Self { devices: Vec::new(), events: [None; EVENTS] };
}

/// An event in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ItsEvent {
    device: u32,
    /// The number of its CPU.
    cpu: u32,
}

impl<R: ItsRegisters> ItsUnit<R> {
    /// Resets it and gives it tables from `memory`, and `lists`, which are empty, for DeviceIDs up to `last_device`.
    fn new(
        registers: R,
        memory: TableMemory,
        lists: &'static mut ItsLists,
        last_device: u32,
    ) -> Result<Self, ItsError> {
        let kind = LocalRegisterCopy::new(registers.read64(TYPER));
        if !kind.is_set(GITS_TYPER::PHYSICAL) || kind.read(GITS_TYPER::EVENT_BITS) as u32 + 1 < EVENT_BITS {
            return Err(ItsError::NoLpis);
        }
        if last_device >> (kind.read(GITS_TYPER::DEVICE_BITS) as u32) >> 1 != 0 {
            return Err(ItsError::NoSuchDevice(last_device));
        }
        // Tables may only be changed while it is at rest.
        registers.write32(CTLR, 0);
        wait(|| registers.read32(CTLR) & QUIESCENT != 0).map_err(|()| stuck(&registers, 0))?;

        let mut memory = memory;
        for index in 0..BASERS {
            set_up_table(&registers, &mut memory, BASER + 8 * index, last_device)?;
        }
        let queue = memory.take(QUEUE, LARGE)?;
        let mut base = LocalRegisterCopy::<u64, GITS_CBASER::Register>::new(0);
        base.modify(GITS_CBASER::ADDRESS.val(queue.physical.0 >> 12) + GITS_CBASER::VALID::SET);
        base.modify(GITS_CBASER::SHAREABILITY::Inner + GITS_CBASER::CACHEABILITY::WriteBack);
        registers.write64(CBASER, base.get());
        base.set(registers.read64(CBASER));
        if !base.matches_all(GITS_CBASER::SHAREABILITY::Inner) {
            return Err(ItsError::NotCoherent);
        }
        registers.write64(CWRITER, 0);
        let configurations = memory.take((1 << ID_BITS) - u64::from(FIRST), PAGE)?;
        // The zeros of the tables come before the ITS looks at them.
        barrier::dsb_sy();
        registers.write32(CTLR, ENABLED);
        Ok(Self {
            registers,
            memory,
            kind,
            queue,
            written: 0,
            configurations,
            targets: [0; crate::smp::cpu::MAX_CPUS],
            connected: 0,
            last_device,
            lists,
        })
    }

    /// Whether redistributors are called by their addresses rather than by numbers.
    fn is_by_address(&self) -> bool {
        self.kind.is_set(GITS_TYPER::BY_ADDRESS)
    }

    fn is_cpu_connected(&self, cpu: u32) -> bool {
        self.connected & 1 << cpu != 0
    }

    /// A table of pending interrupts for a redistributor.
    fn pending_table(&mut self) -> Result<Part, OutOfMemory> {
        self.memory.take(PENDING.max(LARGE), LARGE)
    }

    /// Has interrupts of the collection of CPU number `cpu` go to the redistributor that is called `target`.
    fn connect_cpu(&mut self, cpu: u32, target: u64) -> Result<(), ItsError> {
        self.issue(&[ItsCommand::map_collection(cpu as u16, target), ItsCommand::sync(target)])?;
        *self.target(cpu) = target;
        self.connected |= 1 << cpu;
        Ok(())
    }

    /// The target in commands of the redistributor of CPU number `cpu`, once it is connected.
    fn target(&mut self, cpu: u32) -> &mut u64 {
        &mut self.targets[cpu as usize]
    }

    /// Makes an event of `device` an interrupt of CPU number `cpu`, which is connected. Returns the event.
    fn add(&mut self, device: u32, cpu: u32) -> Result<usize, ItsError> {
        let event = self.lists.events.iter().position(Option::is_none).ok_or(ItsError::Full)?;
        if !self.lists.devices.contains(&device) {
            if self.lists.devices.is_full() {
                return Err(ItsError::Full);
            }
            let bytes = (self.kind.read(GITS_TYPER::EVENT_BYTES) + 1) << EVENT_BITS;
            let table = self.memory.take(bytes, 256)?;
            let table = EventTable { address: table.physical.0, event_bits: EVENT_BITS };
            self.issue(&[ItsCommand::map_device(device, table)])?;
            // There is room: see above.
            let _ = self.lists.devices.push(device);
        }
        let (number, intid) = (event as u32, FIRST + event as u32);
        let target = *self.target(cpu);
        self.configure(event, PRIORITY | ON);
        let map = ItsCommand::map_event(device, number, intid, cpu as u16);
        self.issue(&[map, ItsCommand::invalidate(device, number), ItsCommand::sync(target)])?;
        self.lists.events[event] = Some(ItsEvent { device, cpu });
        Ok(event)
    }

    /// Takes back what [`add`](Self::add) made.
    fn remove(&mut self, event: usize) -> Result<(), ItsError> {
        let Some(ItsEvent { device, cpu }) = self.lists.events.get(event).copied().flatten() else { return Ok(()) };
        self.configure(event, PRIORITY);
        let number = event as u32;
        let target = *self.target(cpu);
        self.issue(&[
            ItsCommand::invalidate(device, number),
            ItsCommand::sync(target),
            ItsCommand::discard(device, number),
            ItsCommand::sync(target),
        ])?;
        self.lists.events[event] = None;
        Ok(())
    }

    #[allow(unsafe_code, reason = "memory that the ITS reads")]
    fn configure(&self, event: usize, value: u8) {
        let byte = (self.configurations.start + event as u64).as_ptr::<AtomicU8>();
        // SAFETY: in the table, which is this value's for ever, and atomic since redistributors read it.
        unsafe { &*byte }.store(value, Ordering::Relaxed);
    }

    /// Has these commands done, and waits for that. They are fewer than the queue has room for, and it is empty.
    #[allow(unsafe_code, reason = "memory that the ITS reads")]
    fn issue(&mut self, commands: &[ItsCommand]) -> Result<(), ItsError> {
        for command in commands {
            let slot = (self.queue.start + self.written).as_ptr::<[u64; 4]>();
            // SAFETY: in the queue, which is this value's for ever; the ITS has done all that was there before.
            unsafe { slot.write_volatile(command.0) };
            self.written = (self.written + COMMAND) % QUEUE;
        }
        // The commands and the tables that they name are in memory before the ITS reads them.
        barrier::dsb_sy();
        self.registers.write64(CWRITER, self.written);
        let (registers, written) = (&self.registers, self.written);
        let done = wait(|| matches!(registers.read64(CREADR), read if read == written || read & STALLED != 0));
        if done.is_ok() && registers.read64(CREADR) == written { Ok(()) } else { Err(stuck(registers, written)) }
    }
}

/// Gives the ITS the table that this register is for, if it is of a kind that there must be one of.
fn set_up_table(
    registers: &impl ItsRegisters,
    memory: &mut TableMemory,
    offset: usize,
    last_device: u32,
) -> Result<(), ItsError> {
    const SMALL: u64 = 4096;
    let read = || LocalRegisterCopy::<u64, GITS_BASER::Register>::new(registers.read64(offset));
    // An earlier stage's table is out of use from here on. Not every ITS has pages of each size: the field then keeps
    // another value than this one, of small pages.
    registers.write64(offset, 0);
    let mut table = read();
    let entries = match table.read_as_enum::<GITS_BASER::KIND::Value>(GITS_BASER::KIND) {
        Some(GITS_BASER::KIND::Value::Devices) => u64::from(last_device) + 1,
        Some(GITS_BASER::KIND::Value::Collections) => crate::smp::cpu::MAX_CPUS as u64,
        None => return Ok(()),
    };
    let bytes = entries * (table.read(GITS_BASER::ENTRY_SIZE) + 1);
    let page = SMALL << (2 * table.read(GITS_BASER::PAGE_SIZE));
    let pages = bytes.div_ceil(page);
    if pages > 256 {
        return Err(ItsError::NoSuchDevice(last_device));
    }
    let part = memory.take(pages * page, page)?;
    table.modify(GITS_BASER::PAGES.val(pages - 1) + GITS_BASER::ADDRESS.val(part.physical.0 >> 12));
    table.modify(GITS_BASER::SHAREABILITY::Inner + GITS_BASER::CACHEABILITY::WriteBack + GITS_BASER::VALID::SET);
    registers.write64(offset, table.get());
    if read().matches_all(GITS_BASER::SHAREABILITY::Inner) { Ok(()) } else { Err(ItsError::NotCoherent) }
}

fn stuck(registers: &impl ItsRegisters, written: u64) -> ItsError {
    ItsError::Stuck { read: registers.read64(CREADR), written }
}

fn wait(mut done: impl FnMut() -> bool) -> Result<(), ()> {
    for _ in 0..PATIENCE {
        if done() {
            return Ok(());
        }
        granule_arch::wait::relax();
    }
    Err(())
}
