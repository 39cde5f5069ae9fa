//! The machine's own ITS.

#![allow(unsafe_code, reason = "registers of the ITS, and tables that it reads")]

use granule_arch::addr::{PhysAddr, VirtAddr};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::{ItsError, ItsLists, ItsRegisters, ItsUnit, TABLES_SIZE, TableMemory, frames};
use crate::chip::message::host::MessageHost;
use crate::mmio;
use crate::smp::cpu::Cpu;
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

/// The machine's ITS at work.
pub(in crate::chip) struct MachineIts(ItsUnit<Mmio>);

static LISTS: SpinMutex<ItsLists> = SpinMutex::new(ItsLists::EMPTY);

impl MachineIts {
    /// Starts it. `last_device` is the largest DeviceID that will ever ask for an interrupt. Called once.
    pub(in crate::chip) fn start(host: &dyn MessageHost, cpu: &Cpu, last_device: u32) -> Result<Self, ItsError> {
        let registers = host.map_registers(cpu, frames(host.platform())?).ok_or(ItsError::NotMapped)?;
        probe::read::<u32>(registers).map_err(ItsError::NoAnswer)?;
        let (tables, mapped) = host.alloc_tables(cpu)?;
        // SAFETY: just allocated, all of it; it goes back only if the ITS was not enabled.
        let memory = unsafe { TableMemory::new(mapped, tables, TABLES_SIZE) };
        let its = ItsUnit::new(Mmio(registers), memory, SpinMutexGuard::leak(LISTS.lock()), last_device);
        its.map(Self).inspect_err(|_| host.free_tables(cpu, tables))
    }

    /// Gives `device` a new event, which interrupts this CPU, `cpu`; returns it.
    pub(in crate::chip) fn connect(&mut self, cpu: &Cpu, device: u32) -> Result<usize, ItsError> {
        let Self(its) = self;
        if device > its.last_device {
            return Err(ItsError::NoSuchDevice(device));
        }
        let number = cpu.id.0;
        if !its.is_cpu_connected(number) {
            let (pending, configurations) = (its.pending_table()?, its.configurations);
            let target = redistributor(cpu, [configurations.physical, pending.physical], its.is_by_address())?;
            its.connect_cpu(number, target)?;
        }
        its.add(device, number)
    }

    /// Takes an event back.
    pub(in crate::chip) fn disconnect(&mut self, event: usize) -> Result<(), ItsError> {
        self.0.remove(event)
    }
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
