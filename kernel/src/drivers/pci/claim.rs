//! What a driver may do with a function that it has claimed.

use core::ops::Deref;

use super::bar::BarKind;
use super::{Function, MmioRegion, PciError};
use crate::mm::kernel::KernelSpace;
use crate::smp::Cpu;

/// The command register, and what of it changes here.
const COMMAND: u16 = 0x04;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

/// A function that belongs to a driver.
///
/// Having one proves: nobody else has claimed the function. Dropping it gives the function back, with bus mastering off
/// and its interrupts disconnected.
#[must_use = "the function is given back at once"]
pub struct Claim {
    function: &'static Function,
}

/// Something that takes a function's interrupts.
pub trait InterruptHandler: Sync {
    /// Interrupt number `vector` of the function has arrived, on this CPU, `cpu`, with interrupts masked. A pin's
    /// interrupt arrives again until the device has been told to let go of it.
    fn interrupt(&self, cpu: &Cpu, vector: u16);
}

/// How an interrupt of a function reaches the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vector {
    /// A message by the table of MSI-X, number `intid` at the interrupt controller.
    MsiX {
        /// That number.
        intid: u32,
    },
    /// A message by the MSI capability.
    Msi {
        /// Its number at the interrupt controller.
        intid: u32,
    },
    /// The interrupt pin, which others may share.
    Pin {
        /// Its number at the interrupt controller.
        intid: u32,
    },
}

impl Deref for Claim {
    type Target = Function;
    fn deref(&self) -> &Function {
        self.function
    }
}

impl Claim {
    pub(super) fn new(function: &'static Function) -> Self {
        Self { function }
    }

    /// The function, for as long as the kernel runs.
    pub fn function(&self) -> &'static Function {
        self.function
    }

    /// Writes a byte of configuration space.
    ///
    /// # Errors
    /// There is none at this offset.
    pub fn write_config8(&self, offset: u16, value: u8) -> Result<(), PciError> {
        super::check_offset(offset, 1)?;
        self.host.config.write8(self.address, offset, value);
        Ok(())
    }

    /// Writes two bytes of configuration space.
    ///
    /// # Errors
    /// The offset is not even, or too large.
    pub fn write_config16(&self, offset: u16, value: u16) -> Result<(), PciError> {
        super::check_offset(offset, 2)?;
        self.host.config.write16(self.address, offset, value);
        Ok(())
    }

    /// Writes a word of configuration space.
    ///
    /// # Errors
    /// The offset is no multiple of four, or too large.
    pub fn write_config32(&self, offset: u16, value: u32) -> Result<(), PciError> {
        super::check_offset(offset, 4)?;
        self.host.config.write32(self.address, offset, value);
        Ok(())
    }

    /// Lets the device access memory and send messages, or no longer.
    pub fn set_bus_master(&self, on: bool) {
        let command = self.host.config.read32(self.address, COMMAND) as u16;
        let command = if on { command | BUS_MASTER } else { command & !BUS_MASTER };
        self.host.config.write16(self.address, COMMAND, command | MEMORY);
    }

    /// The registers behind base address register number `index`, mapped into `space` for ever. `cpu` is this CPU.
    ///
    /// # Errors
    /// There is none, it is not for memory, it got no addresses, or there is no memory for tables.
    pub fn map_bar(&self, space: &'static KernelSpace, cpu: &Cpu, index: usize) -> Result<MmioRegion, PciError> {
        let (function, bar) = (self.address, self.bar(index)?);
        if bar.kind == BarKind::Io {
            return Err(PciError::NotMemory { function, index });
        }
        let range = bar.range.ok_or(PciError::NoRoom { function, index, size: bar.size })?;
        let map = || space.map_device(cpu, range).map_err(|error| PciError::NotMapped(function, error));
        let start = *self.mapped[index].try_call_once(map)?;
        // SAFETY: just mapped, or by whoever had claimed it before; now it is this driver's.
        Ok(unsafe { MmioRegion::new(start, range.size()) })
    }

    /// Interrupt vectors that the function has and the machine can take.
    pub fn vectors(&self) -> u16 {
        0
    }

    /// Has `handler` run for interrupt number `vector`, on this CPU, which is `cpu`. `doorbell` is the address by which
    /// the device reaches the place that messages are written to, [`its::doorbell`](crate::drivers::its::doorbell):
    /// another one than the CPU's where an SMMU translates. Without one only the pin is left.
    ///
    /// # Errors
    /// There is no such vector, it is in use, or nothing leads from the function to the interrupt controller.
    pub fn set_interrupt(
        &self,
        _cpu: &Cpu,
        _vector: u16,
        _handler: &'static dyn InterruptHandler,
        _doorbell: Option<u64>,
    ) -> Result<Vector, PciError> {
        Err(PciError::NoInterrupt(self.address, "the machine takes neither messages nor pins"))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set_bus_master(false);
        *self.owner.lock() = None;
    }
}
