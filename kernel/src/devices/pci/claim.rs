//! A driver's operations on a function that it has claimed.

#![allow(unsafe_code, reason = "registers of devices, mapped by the claim of a function")]

use core::ops::Deref;

use granule_arch::addr::{PAGE, PhysAddr, PhysRange};

use super::bar::BarKind;
use super::enumerate::BUS_MASTER;
use super::mmio::Hold;
use super::{Function, MmioRegion, PciError, interrupt};
use crate::Kernel;
use crate::chip::interrupt::InterruptHandler;
use crate::iommu::{self, AttachError, BusPath, DmaDevice, DmaMask};
use crate::mm::kernel::KernelSpace;
use crate::smp::Cpu;
use crate::trap::probe;

/// A function that belongs to a driver.
///
/// Having one proves: no other driver has claimed the function. Dropping it turns bus mastering off and disconnects the
/// interrupts; the function is given back with it and with the last [`MmioRegion`].
#[must_use = "the function is given back at once"]
pub struct Claim {
    function: &'static Function,
    /// Dropped last: the function is quiet when another driver can have it.
    _hold: Hold,
}

/// How an interrupt of a device reaches the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptVector {
    /// A message by the table of MSI-X, number `intid` at the interrupt controller.
    MsiX {
        /// Its number at the interrupt controller.
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
    /// The line of a device that is no function.
    Line {
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
        Self { function, _hold: Hold::new(function) }
    }

    /// The function, for as long as the kernel runs.
    pub fn function(&self) -> &'static Function {
        self.function
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
        self.function.change_command(BUS_MASTER, on);
    }

    /// The function's way to memory, which its driver alone has. The device puts out the addresses of `mask`, of which
    /// the host bridge passes some on, and sees the CPUs' caches if the bridge does. Sleeps.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn attach(&self, cpu: &Cpu, mask: DmaMask) -> Result<DmaDevice, AttachError> {
        let bridge = self.host.description;
        iommu::attach_behind(
            cpu,
            &BusPath { stream: self.stream_id(), dma: &bridge.dma, coherent: bridge.coherent },
            mask,
        )
    }

    /// The registers behind base address register number `index`, mapped into `space` for ever, of which the first word
    /// is read: the window that the device tree names may lead nowhere. `cpu` is this CPU.
    ///
    /// # Errors
    /// There is none, it is not for memory, it got no addresses, there is no memory for tables, or nothing answers.
    pub fn map_bar(&self, space: &'static KernelSpace, cpu: &Cpu, index: usize) -> Result<MmioRegion, PciError> {
        let (function, bar) = (self.address, self.bar(index)?);
        if bar.kind == BarKind::Io {
            return Err(PciError::NotMemory { function, index });
        }
        let range = bar.range.ok_or(PciError::NoRoom { function, index, size: bar.size })?;
        let map = || space.map_device(cpu, range).map_err(|error| PciError::NotMapped(function, error));
        let start = *self.mapped[index].try_call_once(map)?;
        probe::read::<u32>(start).map_err(|fault| PciError::NoAnswer(function, index, fault))?;
        // SAFETY: just mapped, or by an earlier claim; now it is this driver's.
        Ok(unsafe { MmioRegion::of(self.function, start, range.size()) })
    }

    /// Where the CPUs have the memory of a base address register: of whole pages.
    ///
    /// # Errors
    /// As for [`Self::map_bar`].
    pub fn bar_address(&self, index: usize) -> Result<PhysAddr, PciError> {
        let (function, bar) = (self.address, self.bar(index)?);
        let is_of_pages = |range: &PhysRange| range.start().is_aligned(PAGE) && range.size().is_multiple_of(PAGE);
        bar.range.filter(is_of_pages).map(|range| range.start()).ok_or(PciError::NoRoom {
            function,
            index,
            size: bar.size,
        })
    }

    /// Interrupt vectors that the function has and the machine can take: 0 where it has none.
    pub fn vectors(&self) -> u16 {
        interrupt::vectors(self.function)
    }

    /// Whether it interrupts by messages, if it can send any.
    pub fn may_send(&self) -> bool {
        interrupt::may_send(self.function)
    }

    /// Has `handler` run for interrupt number `vector`, on this CPU, which is `cpu`. A message needs bus mastering, and
    /// goes to `doorbell`: the address by which the device reaches
    /// [`message::doorbell`](crate::chip::message::doorbell), which is another than the CPU's where an SMMU translates.
    /// `None`: the same.
    ///
    /// # Errors
    /// There is no such vector, it is in use, or nothing leads from the function to the interrupt controller.
    pub fn set_interrupt(
        &self,
        kernel: &'static Kernel,
        cpu: &Cpu,
        vector: u16,
        handler: &'static dyn InterruptHandler,
        doorbell: Option<u64>,
    ) -> Result<InterruptVector, PciError> {
        interrupt::set(self, kernel, cpu, vector, handler, doorbell)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set_bus_master(false);
        interrupt::clear(self.function);
    }
}
