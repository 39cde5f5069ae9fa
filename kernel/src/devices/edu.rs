//! QEMU's teaching device (docs/specs/edu.rst): a page of memory of its own, and a DMA engine between it and the
//! machine's.
//!
//! It performs its commands and nothing else, which makes it the check of what an SMMU lets through. A transfer takes
//! 100 ms of the machine's time, so volume is for virtio's devices. It reports no errors: whether a transfer has
//! arrived is asked of the faults, as for every device here.
//!
//! It cuts addresses to 28 bits, or to as many as QEMU's property `dma_mask` has, and no register tells how many: the
//! boot argument `edu.dma_bits` does.

use core::ops::Range;
use core::time::Duration;

use granule_arch::addr::PhysAddr;
use granule_arch::barrier;
use linkme::distributed_slice;
use thiserror::Error;

use super::pci::{Claim, Id, InterruptVector, MmioRegion};
use super::slot::{self, Arrivals, BindRefused, Driver, Slot, StartError};
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::chip::timer::Deadline;
use crate::iommu::{BindError, DmaAddress, DmaDevice, DmaError, DmaMask, MAX_TRIES, Resolution};
use crate::kernel;
use crate::mm::counted::Counted;
use crate::mm::space::{Access, FaultError, HasRegisters, Object, Space, SpaceRef};
use crate::sched::RwSem;
use crate::smp::{Cpu, this_cpu};
use crate::sync::rank;

#[cfg(test)]
mod tests;

static SLOTS: [Slot<Edu>; 2] = [const { Slot::new(()) }; 2];

/// Bits of an address that it puts on the bus, where no boot argument gives another number.
const USUAL_BITS: usize = 28;

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static DMA_BITS: Parameter = Parameter {
    name: "edu.dma_bits",
    help: "how many bits of an address edu puts on the bus, as QEMU's dma_mask for it has: 28 by default",
    check: |value| address_bits(value).map(drop),
};

fn address_bits(value: &str) -> Result<usize, Refused> {
    bootargs::number(value, 64)
}

/// The addresses that it puts on the bus.
fn dma_mask() -> DmaMask {
    let bits = bootargs::get(DMA_BITS.name).and_then(|value| address_bits(value).ok());
    DmaMask::of_bits(bits.unwrap_or(USUAL_BITS) as u32)
}

/// Its registers, in base address register 0.
mod register {
    pub(super) const IDENTIFICATION: u64 = 0x00;
    /// Reads as the inverse of what was written.
    pub(super) const LIVENESS: u64 = 0x04;
    pub(super) const INTERRUPT_STATUS: u64 = 0x24;
    pub(super) const INTERRUPT_RAISE: u64 = 0x60;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    pub(super) const DMA_SOURCE: u64 = 0x80;
    pub(super) const DMA_DESTINATION: u64 = 0x88;
    pub(super) const DMA_COUNT: u64 = 0x90;
    pub(super) const DMA_COMMAND: u64 = 0x98;
    /// Bytes up to here.
    pub(super) const BYTES: u64 = 0xa0;
}

/// INTERRUPT_STATUS has the value that was written to RAISE; a DMA sets a bit of its own there.
const DMA_START: u64 = 1;
const DMA_FROM_DEVICE: u64 = 2;
const DMA_INTERRUPT: u64 = 4;

/// Where the DMA engine knows the device's memory, and how much that is. **Beyond it QEMU ends the machine.**
const MEMORY: u64 = 0x4_0000;
/// Bytes of memory in the device.
pub const MEMORY_BYTES: u64 = 4096;

/// After so long the device is looked at though no interrupt has come.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks where no interrupt need come.
const POLL: Duration = Duration::from_millis(1);
/// After so long it is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The device.
pub struct Edu {
    registers: MmioRegion,
    /// Where the CPUs have them: a page that nothing else shares.
    page: PhysAddr,
    /// They, as the process may map them that the device is bound to.
    shown: RwSem<Option<Counted<Object>>>,
    dma: DmaDevice,
    vector: Option<InterruptVector>,
    arrivals: &'static Arrivals,
    /// Held during each use: it does one thing at a time.
    busy: RwSem<()>,
    claim: Claim,
}

/// Why a transfer has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum EduError {
    /// Not inside the device.
    #[error("{bytes} bytes at {offset:#x} are not in the device, which has {MEMORY_BYTES}")]
    OutOfRange {
        /// Where in the device.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// The device would put out another address.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The device accessed what it cannot have.
    #[error("the device's access failed: {0}")]
    Fault(FaultError),
    /// Each time its faults were served, and it met new ones.
    #[error("the device met faults each of {0} times, though each was served")]
    TooManyFaults(u32),
    /// It did not end in time. It may still begin, so it was cut off from memory.
    #[error("the device does not answer")]
    TimedOut,
}

/// The `index`-th of the machine, started if it was not.
///
/// # Errors
/// [`StartError`].
pub fn edu(cpu: &Cpu, index: usize) -> Result<&'static Edu, StartError> {
    slot::device(cpu, index)
}

impl Driver for Edu {
    type Fixed = ();
    type Claim = Claim;
    const NAME: &'static str = "edu";
    const IDS: &'static [Id] = &[Id { vendor: 0x1234, device: 0x11e8 }];
    const SLOTS: &'static [Slot<Self>] = &SLOTS;

    fn start(cpu: &Cpu, claim: Claim, slot: &'static Slot<Self>) -> Result<Self, StartError> {
        /// Any number with both kinds of bits.
        const PROBE: u32 = 0x1234_5678;
        let registers = claim.map_bar(&kernel().space, cpu, 0)?;
        let page = claim.bar_address(0)?;
        let bytes = registers.bytes();
        let registers = registers.part(0, register::BYTES).ok_or(StartError::Short(bytes, register::BYTES))?;
        // 0xRRrr00ed, with the version in front.
        let identification = registers.read32(register::IDENTIFICATION);
        registers.write32(register::LIVENESS, PROBE);
        if identification & 0xffff != 0xed || registers.read32(register::LIVENESS) != !PROBE {
            return Err(StartError::Unknown(identification));
        }
        let dma = claim.attach(cpu, dma_mask())?;
        let doorbell = slot::doorbell(cpu, &claim, &dma)?;
        claim.set_bus_master(true);
        let vector = claim.set_interrupt(kernel(), cpu, 0, slot, doorbell);
        let vector = vector.inspect_err(|error| crate::log::warn!("{error}; it is polled")).ok();
        let shown = RwSem::new(rank::REGISTERS, None);
        Ok(Self {
            registers,
            page,
            shown,
            dma,
            vector,
            arrivals: &slot.arrivals,
            busy: RwSem::new(rank::REQUESTS, ()),
            claim,
        })
    }

    fn isolation(&self) -> Result<(), BindRefused> {
        Ok(self.claim.isolation()?)
    }

    fn acknowledge(&self) -> bool {
        let reasons = self.registers.read32(register::INTERRUPT_STATUS);
        self.registers.write32(register::INTERRUPT_ACKNOWLEDGE, reasons);
        reasons != 0
    }

    fn while_idle(&self, change: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>) -> Result<(), BindRefused> {
        let _alone = self.busy.write();
        change(&self.dma)
    }

    fn bind(&self, cpu: &Cpu, space: &SpaceRef) -> Result<(), BindRefused> {
        self.isolation()?;
        let registers = kernel().spaces.create_registers(cpu, self.page).map_err(BindError::from)?;
        self.while_idle(&mut |dma| {
            if self.is_transferring() {
                return Err(BindRefused::InFlight(1));
            }
            dma.bind(cpu, space)?;
            self.claim.set_bus_master(true);
            *self.shown.write() = Some(registers.clone());
            Ok(())
        })
    }

    fn unbind(&self, cpu: &Cpu) -> Result<(), BindRefused> {
        // Before the wait for a transfer of the driver's, which a process with registers can disturb.
        self.revoke(cpu);
        self.while_idle(&mut |dma| {
            if !dma.is_bound() {
                return Err(BindRefused::NotBound);
            }
            // Of a binding that was made since.
            self.revoke(cpu);
            self.end_transfer();
            dma.unbind(cpu);
            Ok(())
        })
    }
}

impl HasRegisters for Edu {
    fn registers(&self, space: &Space) -> Option<Counted<Object>> {
        let shown = self.shown.read();
        let bound = self.dma.space().filter(|bound| core::ptr::eq::<Space>(&**bound, space));
        bound.and_then(|_| shown.clone())
    }
}

impl Edu {
    /// Its way to memory.
    pub fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    /// How its interrupts arrive; `None` where it is polled.
    pub fn vector(&self) -> Option<InterruptVector> {
        self.vector
    }

    /// Its interrupts.
    pub fn arrivals(&self) -> &'static Arrivals {
        self.arrivals
    }

    /// Copies `bytes` bytes from `address`, as the device knows it, to `offset` in the device; returns how many tries
    /// it took. Sleeps.
    ///
    /// # Errors
    /// [`EduError`].
    pub fn copy_in(&self, address: DmaAddress, offset: u64, bytes: u64) -> Result<u32, EduError> {
        self.copy(address, offset, bytes, Access::Read)
    }

    /// Copies `bytes` bytes from `offset` in the device to `address`, as the device knows it; returns how many tries it
    /// took. Sleeps.
    ///
    /// # Errors
    /// [`EduError`].
    pub fn copy_out(&self, offset: u64, address: DmaAddress, bytes: u64) -> Result<u32, EduError> {
        self.copy(address, offset, bytes, Access::Write)
    }

    /// Until the transfer has met no fault. `access` is what the device does with memory.
    fn copy(&self, address: DmaAddress, offset: u64, bytes: u64, access: Access) -> Result<u32, EduError> {
        let inside = offset.checked_add(bytes).is_some_and(|end| bytes > 0 && end <= MEMORY_BYTES);
        if !inside {
            return Err(EduError::OutOfRange { offset, bytes });
        }
        let _alone = self.busy.write();
        let range = address.0..address.0.saturating_add(bytes);
        self.dma.reaches(&range)?;
        self.dma.admit(&range, access).map_err(EduError::Fault)?;
        // Of a transfer that was given up, or that a process began.
        self.dma.forget_refusals();
        for tries in 1..=MAX_TRIES {
            match self.transfer(&range, offset, access)? {
                Resolution::NoFault => return Ok(tries),
                // The device has one transfer in flight: this one.
                Resolution::Resolved | Resolution::Overflow => {}
                Resolution::Failed(error) => return Err(EduError::Fault(error)),
            }
        }
        Err(EduError::TooManyFaults(MAX_TRIES))
    }

    /// Runs the transfer once, and resolves it. **Its completion proves nothing.**
    fn transfer(&self, range: &Range<u64>, offset: u64, access: Access) -> Result<Resolution, EduError> {
        let (source, destination, direction) = match access {
            Access::Write => (MEMORY + offset, range.start, DMA_FROM_DEVICE),
            _ => (range.start, MEMORY + offset, 0),
        };
        // A transfer that was given up may still run: the device ignores commands until it ends.
        if self.is_transferring() {
            return Err(EduError::TimedOut);
        }
        self.claim.set_bus_master(true);
        self.registers.write64(register::DMA_SOURCE, source);
        self.registers.write64(register::DMA_DESTINATION, destination);
        self.registers.write64(register::DMA_COUNT, range.end - range.start);
        // Orders the stores to the buffer before the command that has the device read it.
        barrier::dmb_oshst();
        self.registers.write64(register::DMA_COMMAND, DMA_START | direction | DMA_INTERRUPT);
        let patience = Deadline::after(PATIENCE);
        loop {
            let seen = self.arrivals.count();
            if !self.is_transferring() {
                break;
            }
            if patience.has_passed() {
                self.claim.set_bus_master(false);
                return Err(EduError::TimedOut);
            }
            let arrived = self.arrivals.wait(seen, LOOK);
            if !arrived && self.vector.is_some() && !self.is_transferring() {
                self.arrivals.note_missing();
            }
        }
        // Orders the look at the register before the reads of the data that the device wrote.
        barrier::dmb_oshld();
        Ok(self.dma.resolve(this_cpu(), range.clone(), access, &|_| false))
    }

    /// Takes the registers away from the process that has them, while its subscribers still listen.
    fn revoke(&self, cpu: &Cpu) {
        let shown = self.shown.write().take();
        if let Some(registers) = shown {
            registers.revoke(cpu);
        }
    }

    /// Waits for a transfer that a process has begun, which would go on in the memory that the device has next.
    fn end_transfer(&self) {
        let patience = Deadline::after(PATIENCE);
        while self.is_transferring() {
            if patience.has_passed() {
                self.claim.set_bus_master(false);
                return;
            }
            self.arrivals.wait(self.arrivals.count(), POLL);
        }
    }

    fn is_transferring(&self) -> bool {
        self.registers.read64(register::DMA_COMMAND) & DMA_START != 0
    }

    /// Has the device interrupt for the reasons `reasons`, each a bit, and waits for it; whether the interrupt came.
    pub fn interrupt(&self, reasons: u32) -> bool {
        let _alone = self.busy.write();
        let seen = self.arrivals.count();
        self.registers.write32(register::INTERRUPT_RAISE, reasons);
        self.arrivals.wait(seen, LOOK)
    }
}
