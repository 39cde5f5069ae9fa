//! NVMe disks (NVM Express Base Specification 2.0, NVM Command Set Specification 1.0): sectors of 512 bytes of
//! namespace 1, one command at a time, of two pages at most.
//!
//! **The status of a command is the controller's opinion and not the memory's.** As for every device here, what holds is
//! the look at the faults: a command that met some which were served is handed over again.

mod controller;
mod queue;
#[cfg(test)]
mod tests;

use core::time::Duration;

use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use thiserror::Error;

use self::controller::{Controller, NAMESPACE, PAGES};
pub use self::controller::{ControllerError, Identity};
pub use self::queue::Violation;
use self::queue::{NvmeCommand, SharedPage};
use super::disk::{self, SECTOR, SectorError};
use super::pci::{Claim, Class, Id, InterruptVector, MmioRegion};
use super::slot::{self, Arrivals, BindRefused, Driver, Slot, StartError};
use crate::chip::timer::Deadline;
use crate::iommu::{Coherent, DmaAddress, DmaDevice, DmaError, DmaMask, MAX_TRIES, Resolution};
use crate::kernel;
use crate::mm::space::{Access, FaultError};
use crate::sched::{RwSem, relax};
use crate::smp::{Cpu, this_cpu};
use crate::sync::rank;

static SLOTS: [Slot<Nvme>; 2] = [const { Slot::new(()) }; 2];

/// Opcodes of commands.
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;

/// After so long the controller is looked at though no interrupt has come.
const LOOK: Duration = Duration::from_secs(1);
/// And sooner where none can come.
const POLL: Duration = Duration::from_millis(1);
/// After so long a command is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A disk.
pub struct Nvme {
    /// Held during each command: there is one at a time.
    state: RwSem<QueueState>,
    identity: Identity,
    dma: DmaDevice,
    vector: Option<InterruptVector>,
    arrivals: &'static Arrivals,
    claim: Claim,
}

struct QueueState {
    controller: Controller<MmioRegion>,
    /// Whether it has answered all that it was asked; else it is started anew first.
    is_sound: bool,
}

/// Why sectors were not read or not written. The contents of the memory, or of the sectors, are not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NvmeError {
    /// No such sectors.
    #[error(transparent)]
    Sectors(#[from] SectorError),
    /// Not what a controller takes.
    #[error("address {0:#x}: the controller takes multiples of 4, and memory that does not wrap")]
    Address(u64),
    /// It met no faults, and reports an error of its own.
    #[error("the controller reports status {0:#x}")]
    Status(u16),
    /// It accessed what it cannot have.
    #[error("the device's access failed: {0}")]
    Fault(FaultError),
    /// Each time its faults were served, and it met new ones.
    #[error("the device met faults each of {0} times, though each was served")]
    TooManyFaults(u32),
    /// The process whose memory it was to access has ended.
    #[error("the device is bound to a process that has ended")]
    Ended,
    /// It did not answer in time. It was cut off from memory.
    #[error("the device does not answer")]
    TimedOut,
    /// It has failed, or does not come back.
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

/// The `index`-th of the machine, started if it was not.
///
/// # Errors
/// [`StartError`].
pub fn nvme(cpu: &Cpu, index: usize) -> Result<&'static Nvme, StartError> {
    slot::device(cpu, index)
}

impl Driver for Nvme {
    type Fixed = ();
    type Claim = Claim;
    const NAME: &'static str = "nvme";
    const IDS: &'static [Id] = &[Id { vendor: 0x1b36, device: 0x0010 }];
    /// An NVM Express controller, of whichever make (NVM Express over PCIe Transport Specification 1.0, 3.1.1).
    const CLASS: Option<Class> = Some(Class { base: 1, sub: 8, interface: 2 });
    const SLOTS: &'static [Slot<Self>] = &SLOTS;

    #[allow(unsafe_code, reason = "queues that the device reads and writes")]
    fn start(cpu: &Cpu, claim: Claim, slot: &'static Slot<Self>) -> Result<Self, StartError> {
        let registers = claim.map_bar(&kernel().space, cpu, 0)?;
        let dma = claim.attach(cpu, DmaMask::ALL)?;
        let doorbell = slot::doorbell(cpu, &claim, &dma)?;
        let mut pages = heapless::Vec::new();
        let started = allocate(cpu, &dma, &mut pages).map_err(StartError::Dma).and_then(|common| {
            let vector = claim.set_interrupt(kernel(), cpu, 0, slot, doorbell);
            let vector = vector.inspect_err(|error| crate::log::warn!("{error}; it is polled")).ok().filter(is_message);
            // SAFETY: they were just made, and are given back when the device has lost its way to memory.
            let mut controller = unsafe { Controller::new(registers, common)? };
            restart(&mut controller, &claim, vector.is_some())?;
            let identity = controller.identify(&mut patience(controller.patience()))?;
            Ok((controller, vector, identity))
        });
        match started {
            Ok((controller, vector, identity)) => {
                crate::log::debug!("nvme: serial number {}, {} sectors", identity.serial(), identity.sectors);
                let state = RwSem::new(rank::REQUESTS, QueueState { controller, is_sound: true });
                Ok(Self { state, identity, dma, vector, arrivals: &slot.arrivals, claim })
            }
            Err(error) => {
                claim.set_bus_master(false);
                pages.into_iter().for_each(|page| dma.free_coherent(cpu, page));
                Err(error)
            }
        }
    }

    fn isolation(&self) -> Result<(), BindRefused> {
        Ok(self.claim.isolation()?)
    }

    fn acknowledge(&self) -> bool {
        // A message is this device's alone, and its pin is masked.
        self.vector.is_some()
    }

    fn while_idle(&self, change: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>) -> Result<(), BindRefused> {
        let _alone = self.state.write();
        change(&self.dma)
    }
}

/// The pages that the controller and its driver have in common; `pages` keeps them.
fn allocate(
    cpu: &Cpu,
    dma: &DmaDevice,
    pages: &mut heapless::Vec<Coherent, PAGES>,
) -> Result<[SharedPage; PAGES], DmaError> {
    let mut common = [SharedPage { memory: VirtAddr(0), address: DmaAddress(0) }; PAGES];
    for entry in &mut common {
        let page = dma.alloc_coherent(cpu, PAGE_SIZE)?;
        *entry = SharedPage { memory: page.virt(), address: page.address() };
        let pushed = pages.push(page);
        debug_assert!(pushed.is_ok(), "there was room");
    }
    Ok(common)
}

/// A pin stays up until the completions are taken, which an interrupt does not do: it is masked at the controller.
fn is_message(vector: &InterruptVector) -> bool {
    !matches!(vector, InterruptVector::Pin { .. })
}

/// Restarts the controller; it reaches memory only after it has dropped what it had, and not where that fails.
fn restart(controller: &mut Controller<MmioRegion>, claim: &Claim, messages: bool) -> Result<(), ControllerError> {
    let mut patience = patience(controller.patience());
    controller.disable(&mut patience)?;
    claim.set_bus_master(true);
    controller.enable(messages, &mut patience).inspect_err(|_| claim.set_bus_master(false))
}

/// For so many milliseconds, which the controller chooses: up to two minutes, with other threads in between.
fn patience(milliseconds: u64) -> impl FnMut() -> bool {
    let until = Deadline::after(Duration::from_millis(milliseconds));
    move || {
        granule_arch::wait::relax();
        relax();
        !until.has_passed()
    }
}

impl Nvme {
    /// Its identity.
    pub fn identity(&self) -> Identity {
        self.identity
    }

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

    /// Reads sectors from `sector` on into the `bytes` bytes at `address`, as the device knows it; returns how many
    /// commands that took. Sleeps.
    ///
    /// # Errors
    /// [`NvmeError`].
    pub fn read(&self, sector: u64, address: DmaAddress, bytes: u32) -> Result<u32, NvmeError> {
        self.transfer(READ, sector, address, bytes)
    }

    /// Writes sectors from `sector` on with the `bytes` bytes at `address`, as the device knows it; returns how many
    /// commands that took. Sleeps.
    ///
    /// # Errors
    /// [`NvmeError`].
    pub fn write(&self, sector: u64, address: DmaAddress, bytes: u32) -> Result<u32, NvmeError> {
        self.transfer(WRITE, sector, address, bytes)
    }

    fn transfer(&self, opcode: u8, sector: u64, address: DmaAddress, bytes: u32) -> Result<u32, NvmeError> {
        disk::check(sector, bytes, self.identity.sectors)?;
        if !address.0.is_multiple_of(4) || address.0.checked_add(bytes.into()).is_none() {
            return Err(NvmeError::Address(address.0));
        }
        let mut state = self.state.write();
        let (mut done, mut tries) = (0, 0);
        while done < bytes {
            let at = address.0 + u64::from(done);
            let piece = piece(at, bytes - done);
            tries += self.perform(&mut state, &command(opcode, sector + u64::from(done / SECTOR), at, piece), piece)?;
            done += piece;
        }
        Ok(tries)
    }

    /// Until the command has met no fault.
    fn perform(&self, state: &mut QueueState, command: &NvmeCommand, bytes: u32) -> Result<u32, NvmeError> {
        let access = if command.opcode == READ { Access::Write } else { Access::Read };
        let start = command.data[0];
        let range = start..start + u64::from(bytes);
        self.dma.admit(&range, access).map_err(NvmeError::Fault)?;
        for tries in 1..=MAX_TRIES {
            let status = self.attempt(state, command)?;
            match self.dma.resolve(this_cpu(), range.clone(), access, &|_| false) {
                Resolution::NoFault if status == 0 => return Ok(tries),
                Resolution::NoFault => return Err(NvmeError::Status(status)),
                // The device has one command: this one.
                Resolution::Resolved | Resolution::Overflow => {}
                Resolution::Failed(error) => return Err(NvmeError::Fault(error)),
            }
        }
        Err(NvmeError::TooManyFaults(MAX_TRIES))
    }

    /// Has the controller do it once; the status. Where it does not answer it is cut off from memory, and restarted by
    /// the next command.
    fn attempt(&self, state: &mut QueueState, command: &NvmeCommand) -> Result<u16, NvmeError> {
        if self.is_cut_off() {
            return Err(NvmeError::Ended);
        }
        let controller = &mut state.controller;
        if !state.is_sound {
            restart(controller, &self.claim, self.vector.is_some())?;
            // Of commands that were given up.
            self.dma.forget_refusals();
        }
        controller.submit(command);
        let answer = self.wait(controller);
        state.is_sound = answer.is_ok();
        if !state.is_sound {
            self.claim.set_bus_master(false);
        }
        answer
    }

    fn wait(&self, controller: &mut Controller<MmioRegion>) -> Result<u16, NvmeError> {
        let until = Deadline::after(PATIENCE);
        loop {
            let seen = self.arrivals.count();
            match controller.take() {
                Ok(Some(status)) => return Ok(status),
                // It does not reach its queues any more.
                Ok(None) | Err(_) if self.is_cut_off() => return Err(NvmeError::Ended),
                Ok(None) if until.has_passed() => return Err(NvmeError::TimedOut),
                Ok(None) => {}
                Err(error) => return Err(error.into()),
            }
            let at_most = if self.vector.is_some() { LOOK } else { POLL };
            if !self.arrivals.wait(seen, at_most) && self.vector.is_some() && controller.has_some() {
                self.arrivals.note_missing();
            }
        }
    }

    /// Whether it is bound to a process that has ended.
    fn is_cut_off(&self) -> bool {
        self.dma.is_bound() && self.dma.space().is_none()
    }
}

/// How many of `bytes` bytes at `address` a command takes: whole sectors, in two pages at most.
fn piece(address: u64, bytes: u32) -> u32 {
    let most = 2 * PAGE_SIZE as u32 - (address % PAGE) as u32;
    bytes.min(most - most % SECTOR)
}

/// Reads or writes the sectors from `sector` on, with the `bytes` bytes at `address`, which are a [`piece`].
fn command(opcode: u8, sector: u64, address: u64, bytes: u32) -> NvmeCommand {
    let second = address - address % PAGE + PAGE;
    let more = address + u64::from(bytes) > second;
    let words = [sector as u32, (sector >> 32) as u32, bytes / SECTOR - 1];
    NvmeCommand { opcode, namespace: NAMESPACE, data: [address, if more { second } else { 0 }], words }
}
