//! A controller: its registers (NVM Express Base Specification 2.0, 3.1.3), how it is started (3.5.1), its identity
//! (5.17), and its two pairs of queues.

#![allow(missing_docs, reason = "the names are the specification's, and the macro writes items that take no comment")]
#![allow(unsafe_code, reason = "queues that the device reads and writes")]

use granule_arch::addr::PAGE_SIZE;
use granule_arch::barrier;
use thiserror::Error;
use tock_registers::LocalRegisterCopy;
use tock_registers::register_bitfields;

use super::queue::{ENTRIES, NvmeCommand, QueuePair, SharedPage, Violation};
use crate::devices::disk::SECTOR;
use crate::devices::pci::MmioRegion;

/// Pages that a controller and its driver have in common: four queues, and its identity.
pub(super) const PAGES: usize = 5;
/// The namespace that is driven.
pub(super) const NAMESPACE: u32 = 1;

/// Offsets of registers.
mod offset {
    /// 64 bits.
    pub(super) const CAP: u64 = 0x00;
    pub(super) const INTMS: u64 = 0x0c;
    pub(super) const CC: u64 = 0x14;
    pub(super) const CSTS: u64 = 0x1c;
    pub(super) const AQA: u64 = 0x24;
    /// 64 bits.
    pub(super) const ASQ: u64 = 0x28;
    /// 64 bits.
    pub(super) const ACQ: u64 = 0x30;
    /// Of the admin submission queue; the others follow.
    pub(super) const DOORBELLS: u64 = 0x1000;
}

register_bitfields! { u64,
    CAP [
        /// In units of 500 ms.
        TO OFFSET(24) NUMBITS(8) [],
        DSTRD OFFSET(32) NUMBITS(4) [],
        CSS_NVM OFFSET(37) NUMBITS(1) [],
        /// 4 KiB, shifted.
        MPSMIN OFFSET(48) NUMBITS(4) []
    ],
}

register_bitfields! { u32,
    CC [
        EN OFFSET(0) NUMBITS(1) [],
        IOSQES OFFSET(16) NUMBITS(4) [ BYTES_64 = 6 ],
        IOCQES OFFSET(20) NUMBITS(4) [ BYTES_16 = 4 ]
    ],
    CSTS [
        RDY OFFSET(0) NUMBITS(1) [],
        CFS OFFSET(1) NUMBITS(1) []
    ],
    AQA [
        ASQS OFFSET(0) NUMBITS(12) [],
        ACQS OFFSET(16) NUMBITS(12) []
    ],
    /// Word 10 of the commands that make queues.
    QUEUE [
        NUMBER OFFSET(0) NUMBITS(16) [],
        ENTRIES_LESS_ONE OFFSET(16) NUMBITS(16) []
    ],
    /// Word 11 of those commands; the vector is 0.
    KIND [
        CONTIGUOUS OFFSET(0) NUMBITS(1) [],
        INTERRUPTS OFFSET(1) NUMBITS(1) [],
        COMPLETION_QUEUE OFFSET(16) NUMBITS(16) []
    ],
}

/// Admin commands, and which structure IDENTIFY is to give.
const CREATE_SUBMISSION: u8 = 0x01;
const CREATE_COMPLETION: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const OF_NAMESPACE: u32 = 0;
const OF_CONTROLLER: u32 = 1;

/// Bytes of a serial number, and where it is.
const SERIAL_BYTES: usize = 20;
const SERIAL: usize = 4;

/// Registers of a controller.
pub(super) trait NvmeRegisters {
    fn bytes(&self) -> u64;
    fn read32(&self, offset: u64) -> u32;
    fn read64(&self, offset: u64) -> u64;
    fn write32(&self, offset: u64, value: u32);
    fn write64(&self, offset: u64, value: u64);
}

impl NvmeRegisters for MmioRegion {
    fn bytes(&self) -> u64 {
        MmioRegion::bytes(self)
    }
    fn read32(&self, offset: u64) -> u32 {
        MmioRegion::read32(self, offset)
    }
    fn read64(&self, offset: u64) -> u64 {
        MmioRegion::read64(self, offset)
    }
    fn write32(&self, offset: u64, value: u32) {
        MmioRegion::write32(self, offset, value);
    }
    fn write64(&self, offset: u64, value: u64) {
        MmioRegion::write64(self, offset, value);
    }
}

/// Why a controller is not driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ControllerError {
    /// Its registers are not all there.
    #[error("the controller's doorbells are not in its {0:#x} bytes of registers")]
    Doorbells(u64),
    /// CAP.CSS.
    #[error("the controller has no NVM commands: its capabilities are {0:#x}")]
    NoCommands(u64),
    /// CAP.MPSMIN.
    #[error("the controller takes no pages of 4 KiB: its capabilities are {0:#x}")]
    PageSize(u64),
    /// CSTS.RDY, within CAP.TO.
    #[error("the controller has not become ready, or not idle, in time: its status is {0:#x}")]
    NotReady(u32),
    /// CSTS.CFS.
    #[error("the controller reports that it has failed: its status is {0:#x}")]
    Fatal(u32),
    /// An admin command.
    #[error("the controller refuses admin command {0:#x} with status {1:#x}")]
    Refused(u8, u16),
    /// An admin command has no answer.
    #[error("the controller does not answer admin command {0:#x}")]
    Silent(u8),
    /// It broke the rules.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It has nothing to read or write.
    #[error("the controller has no namespace {NAMESPACE}")]
    NoNamespace,
    /// Of another size than is driven.
    #[error("the namespace has sectors of 2^{0} bytes: {SECTOR} can be had")]
    SectorSize(u8),
    /// A transfer would have more bytes than its sectors, or access memory at the metadata pointer, which is 0.
    #[error("the namespace has {0} bytes of metadata in each sector: the driver transfers none")]
    Metadata(u16),
}

/// A controller's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    serial: [u8; SERIAL_BYTES],
    /// Sectors of the namespace.
    pub sectors: u64,
}

impl Identity {
    /// The serial number, without the spaces after it.
    pub fn serial(&self) -> &str {
        str::from_utf8(&self.serial).unwrap_or("?").trim_end()
    }
}

/// Whether to go on waiting, after a moment.
pub(super) type ReadyWait<'a> = dyn FnMut() -> bool + 'a;

/// A controller, from when its registers were found.
pub(super) struct Controller<R> {
    registers: R,
    capabilities: LocalRegisterCopy<u64, CAP::Register>,
    admin: QueuePair,
    io: QueuePair,
    identity: SharedPage,
}

impl<R: NvmeRegisters> Controller<R> {
    /// # Errors
    /// [`ControllerError`]: it cannot be driven.
    ///
    /// # Safety
    /// The pages are the controller's and this driver's alone, for as long as this is used.
    pub(super) unsafe fn new(registers: R, pages: [SharedPage; PAGES]) -> Result<Self, ControllerError> {
        let bytes = registers.bytes();
        if bytes <= offset::DOORBELLS {
            return Err(ControllerError::Doorbells(bytes));
        }
        let value = registers.read64(offset::CAP);
        let [submissions, completions, io_submissions, io_completions, identity] = pages;
        // SAFETY: the caller's promise; each page is in one place.
        let (admin, io) =
            unsafe { (QueuePair::new(0, submissions, completions), QueuePair::new(1, io_submissions, io_completions)) };
        let controller = Self { registers, capabilities: LocalRegisterCopy::new(value), admin, io, identity };
        if controller.doorbell(2, 0) > bytes {
            return Err(ControllerError::Doorbells(bytes));
        }
        if !controller.capabilities.is_set(CAP::CSS_NVM) {
            return Err(ControllerError::NoCommands(value));
        }
        if controller.capabilities.read(CAP::MPSMIN) != 0 {
            return Err(ControllerError::PageSize(value));
        }
        Ok(controller)
    }

    /// How long it may take to become ready or idle, in milliseconds.
    pub(super) fn patience(&self) -> u64 {
        500 * self.capabilities.read(CAP::TO).max(1)
    }

    /// Makes it drop all queues and commands.
    ///
    /// # Errors
    /// [`ControllerError::NotReady`].
    pub(super) fn disable(&self, patience: &mut ReadyWait<'_>) -> Result<(), ControllerError> {
        self.registers.write32(offset::CC, 0);
        self.await_ready(false, patience)
    }

    /// Starts it, which is disabled, with empty queues; without `interrupts` it sends none for commands.
    ///
    /// # Errors
    /// [`ControllerError`]; it is to be disabled.
    pub(super) fn enable(&mut self, interrupts: bool, patience: &mut ReadyWait<'_>) -> Result<(), ControllerError> {
        self.admin.begin();
        self.io.begin();
        barrier::dmb_oshst();
        if !interrupts {
            // The pin is not waited for. With messages this register must not be written.
            self.registers.write32(offset::INTMS, u32::MAX);
        }
        let last = u32::from(ENTRIES - 1);
        let [submissions, completions] = self.admin.addresses();
        self.registers.write32(offset::AQA, (AQA::ASQS.val(last) + AQA::ACQS.val(last)).value);
        self.registers.write64(offset::ASQ, submissions);
        self.registers.write64(offset::ACQ, completions);
        let configuration = CC::EN::SET + CC::IOSQES::BYTES_64 + CC::IOCQES::BYTES_16;
        self.registers.write32(offset::CC, configuration.value);
        self.await_ready(true, patience)?;

        let [submissions, completions] = self.io.addresses();
        let number = u32::from(self.io.number());
        let queue = (QUEUE::NUMBER.val(number) + QUEUE::ENTRIES_LESS_ONE.val(last)).value;
        let kind = (KIND::CONTIGUOUS::SET + KIND::INTERRUPTS.val(interrupts.into())).value;
        let command =
            NvmeCommand { opcode: CREATE_COMPLETION, data: [completions, 0], words: [queue, kind, 0], ..IDLE };
        self.administer(&command, patience)?;
        let kind = (KIND::CONTIGUOUS::SET + KIND::COMPLETION_QUEUE.val(number)).value;
        let command =
            NvmeCommand { opcode: CREATE_SUBMISSION, data: [submissions, 0], words: [queue, kind, 0], ..IDLE };
        self.administer(&command, patience)
    }

    /// Asks it what it is.
    ///
    /// # Errors
    /// [`ControllerError`].
    pub(super) fn identify(&mut self, patience: &mut ReadyWait<'_>) -> Result<Identity, ControllerError> {
        let data = [self.identity.address.0, 0];
        let command = NvmeCommand { opcode: IDENTIFY, data, words: [OF_CONTROLLER, 0, 0], ..IDLE };
        self.administer(&command, patience)?;
        let serial = core::array::from_fn(|index| self.identity_byte(SERIAL + index));
        let words = [OF_NAMESPACE, 0, 0];
        self.administer(&NvmeCommand { opcode: IDENTIFY, namespace: NAMESPACE, data, words }, patience)?;
        // NSZE; one that is not there is all zeros. FLBAS has its index in the formats at 128: MS in two bytes, then
        // LBADS.
        let sectors = u64::from_le_bytes(core::array::from_fn(|index| self.identity_byte(index)));
        let format = 128 + 4 * usize::from(self.identity_byte(26) & 0xf);
        let metadata = u16::from_le_bytes([self.identity_byte(format), self.identity_byte(format + 1)]);
        match self.identity_byte(format + 2) {
            _ if sectors == 0 => Err(ControllerError::NoNamespace),
            _ if metadata != 0 => Err(ControllerError::Metadata(metadata)),
            size if 1_u32.checked_shl(size.into()) == Some(SECTOR) => Ok(Identity { serial, sectors }),
            size => Err(ControllerError::SectorSize(size)),
        }
    }

    /// Hands it a command for its namespace. It has none now.
    pub(super) fn submit(&mut self, command: &NvmeCommand) {
        let tail = self.io.submit(command);
        self.registers.write32(self.doorbell(self.io.number(), 0), tail.into());
    }

    /// Whether the completion is there.
    pub(super) fn has_some(&self) -> bool {
        self.io.has_some()
    }

    /// The status of that command, once it is complete.
    ///
    /// # Errors
    /// [`ControllerError::Violation`], [`ControllerError::Fatal`]: it is to be disabled.
    pub(super) fn take(&mut self) -> Result<Option<u16>, ControllerError> {
        if let Some((status, head)) = self.io.take()? {
            self.registers.write32(self.doorbell(self.io.number(), 1), head.into());
            return Ok(Some(status));
        }
        self.status().map(|_| None)
    }

    /// Has an admin command done.
    fn administer(&mut self, command: &NvmeCommand, patience: &mut ReadyWait<'_>) -> Result<(), ControllerError> {
        let tail = self.admin.submit(command);
        self.registers.write32(self.doorbell(0, 0), tail.into());
        loop {
            if let Some((status, head)) = self.admin.take()? {
                self.registers.write32(self.doorbell(0, 1), head.into());
                return if status == 0 { Ok(()) } else { Err(ControllerError::Refused(command.opcode, status)) };
            }
            self.status()?;
            if !patience() {
                return Err(ControllerError::Silent(command.opcode));
            }
        }
    }

    fn await_ready(&self, ready: bool, patience: &mut ReadyWait<'_>) -> Result<(), ControllerError> {
        loop {
            // One that is being disabled may have failed: that is what it is disabled for.
            let value = if ready { self.status()? } else { self.registers.read32(offset::CSTS) };
            if LocalRegisterCopy::<u32, CSTS::Register>::new(value).is_set(CSTS::RDY) == ready {
                return Ok(());
            }
            if !patience() {
                return Err(ControllerError::NotReady(value));
            }
        }
    }

    /// CSTS, of one that has not failed.
    fn status(&self) -> Result<u32, ControllerError> {
        let value = self.registers.read32(offset::CSTS);
        let failed = LocalRegisterCopy::<u32, CSTS::Register>::new(value).is_set(CSTS::CFS);
        if failed { Err(ControllerError::Fatal(value)) } else { Ok(value) }
    }

    /// The doorbell of queue `number` for its tail; with `completion` 1, for its head.
    fn doorbell(&self, number: u16, completion: u64) -> u64 {
        let stride = 4 << self.capabilities.read(CAP::DSTRD);
        offset::DOORBELLS + (2 * u64::from(number) + completion) * stride
    }

    fn identity_byte(&self, index: usize) -> u8 {
        debug_assert!(index < PAGE_SIZE);
        // SAFETY: inside the page, which is this driver's (`new`); the controller is done with it.
        unsafe { self.identity.memory.as_ptr::<u8>().add(index).read_volatile() }
    }
}

/// An empty command.
const IDLE: NvmeCommand = NvmeCommand { opcode: 0, namespace: 0, data: [0; 2], words: [0; 3] };
