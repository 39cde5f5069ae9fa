//! Virtio disks (Virtual I/O Device, version 1.2, 5.2): sectors of 512 bytes, read and written through one queue.
//!
//! A request is a header, the data, and a status byte of the device. **The status is the device's view and not the
//! memory's**: where an access was refused on its way to memory it still reports success. The answer that holds is
//! [`super::virtio::requests`]'s look at the faults.

use thiserror::Error;

use super::disk::{self, SectorError};
use super::pci::Id;
use super::slot::{self, BindRefused, Driver, Slot, StartError};
use super::virtio::claim::VirtioClaim;
use super::virtio::device::VirtioDevice;
use super::virtio::queue::{Flow, Segment};
use super::virtio::requests::{RequestError, RequestFrame, Requests, Ticket, Transfer};
use crate::iommu::{DmaAddress, DmaDevice};
use crate::sched::RwSem;
use crate::smp::Cpu;
use crate::sync::rank;

static SLOTS: [Slot<VirtioBlk>; 4] = [const { Slot::new(RwSem::new(rank::REQUESTS, Requests::NONE)) }; 4];

/// VIRTIO_BLK_F_RO: it cannot be written.
const READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_T_IN and VIRTIO_BLK_T_OUT.
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Where its configuration has the number of sectors.
const CAPACITY: u64 = 0;
/// VIRTIO_BLK_S_OK and VIRTIO_BLK_S_IOERR.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;

/// A disk.
pub struct VirtioBlk {
    device: VirtioDevice,
    sectors: u64,
}

/// Why sectors were not read or not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BlkError {
    /// No such sectors.
    #[error(transparent)]
    Sectors(#[from] SectorError),
    /// VIRTIO_BLK_F_RO.
    #[error("the disk is read-only")]
    ReadOnly,
    /// VIRTIO_BLK_S_IOERR.
    #[error("the disk reports an I/O error")]
    Failed,
    /// VIRTIO_BLK_S_UNSUPP, or a status that no disk has.
    #[error("the disk does no such requests: it reports status {0}")]
    Unsupported(u8),
    /// The device did not answer.
    #[error("the disk has not answered")]
    NoStatus,
    /// The request failed on its way.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// The `index`-th disk of the machine, started if it was not.
///
/// # Errors
/// [`StartError`].
pub fn blk(cpu: &Cpu, index: usize) -> Result<&'static VirtioBlk, StartError> {
    slot::device(cpu, index)
}

impl Driver for VirtioBlk {
    type Fixed = RwSem<Requests>;
    type Claim = VirtioClaim;
    const NAME: &'static str = "blk";
    const IDS: &'static [Id] = &[Id { vendor: 0x1af4, device: 0x1042 }];
    const SLOTS: &'static [Slot<Self>] = &SLOTS;

    fn start(cpu: &Cpu, claim: VirtioClaim, slot: &'static Slot<Self>) -> Result<Self, StartError> {
        let device = VirtioDevice::start(cpu, claim, READ_ONLY, slot, &slot.fixed, &slot.arrivals)?;
        match device.transport().configuration_64(CAPACITY) {
            Ok(sectors) => Ok(Self { device, sectors }),
            Err(error) => Err(device.end(cpu, error).into()),
        }
    }

    fn isolation(&self) -> Result<(), BindRefused> {
        self.device.isolation()
    }

    fn acknowledge(&self) -> bool {
        self.device.acknowledge()
    }

    fn while_idle(&self, change: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>) -> Result<(), BindRefused> {
        self.device.while_idle(change)
    }
}

impl VirtioBlk {
    /// The virtio device that it is.
    pub fn device(&self) -> &VirtioDevice {
        &self.device
    }

    /// Its sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Reads sectors from `sector` on into the `bytes` bytes at `address`, as the device knows it. Sleeps.
    ///
    /// # Errors
    /// [`BlkError`]: what the memory holds is not known.
    pub fn read(&self, sector: u64, address: DmaAddress, bytes: u32) -> Result<Transfer, BlkError> {
        self.finish(self.start_read(sector, address, bytes)?)
    }

    /// Writes sectors from `sector` on with the `bytes` bytes at `address`, as the device knows it. Sleeps.
    ///
    /// # Errors
    /// [`BlkError`]: what the sectors hold is not known.
    pub fn write(&self, sector: u64, address: DmaAddress, bytes: u32) -> Result<Transfer, BlkError> {
        self.finish(self.start_write(sector, address, bytes)?)
    }

    /// Begins what [`Self::read`] does; [`Self::finish`] ends it.
    ///
    /// # Errors
    /// [`BlkError`]; nothing has begun.
    pub fn start_read(&self, sector: u64, address: DmaAddress, bytes: u32) -> Result<Ticket, BlkError> {
        self.begin(READ, sector, Segment { address: address.0, bytes, flow: Flow::FromDevice })
    }

    /// Begins what [`Self::write`] does; [`Self::finish`] ends it.
    ///
    /// # Errors
    /// [`BlkError`]; nothing has begun.
    pub fn start_write(&self, sector: u64, address: DmaAddress, bytes: u32) -> Result<Ticket, BlkError> {
        if self.device.features() & READ_ONLY != 0 {
            return Err(BlkError::ReadOnly);
        }
        self.begin(WRITE, sector, Segment { address: address.0, bytes, flow: Flow::ToDevice })
    }

    /// Waits for the end of what was begun. Sleeps.
    ///
    /// # Errors
    /// [`BlkError`].
    pub fn finish(&self, ticket: Ticket) -> Result<Transfer, BlkError> {
        outcome(self.device.wait(ticket)?)
    }

    fn begin(&self, what: u32, sector: u64, data: Segment) -> Result<Ticket, BlkError> {
        disk::check(sector, data.bytes, self.sectors)?;
        Ok(self.device.submit(RequestFrame::Header(header(what, sector)), &[data])?)
    }
}

/// struct virtio_blk_req in front of the data: type, reserved, sector.
fn header(what: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&what.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// The outcome of a request, by the disk's answer.
fn outcome(transfer: Transfer) -> Result<Transfer, BlkError> {
    match transfer.status {
        OK => Ok(transfer),
        u8::MAX => Err(BlkError::NoStatus),
        IO_ERROR => Err(BlkError::Failed),
        status => Err(BlkError::Unsupported(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::{BlkError, READ, READ_ONLY, Transfer, WRITE, header, outcome};

    /// Virtual I/O Device 1.2, 5.2.6: VIRTIO_BLK_T_IN is 0, T_OUT 1; 5.2.3: VIRTIO_BLK_F_RO is bit 5.
    #[test]
    fn a_header_is_type_zeros_and_sector_from_the_lowest_byte_on() {
        let sector = 0x8877_6655_4433_2211;
        let of = |what: u8| [what, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        assert_eq!([header(READ, sector), header(WRITE, sector)], [of(0), of(1)]);
        assert_eq!(READ_ONLY, 0x20);
    }

    #[test]
    fn each_status_is_an_answer_of_its_own() {
        for (status, error) in [
            (0, None),
            (1, Some(BlkError::Failed)),
            (2, Some(BlkError::Unsupported(2))),
            (3, Some(BlkError::Unsupported(3))),
            (254, Some(BlkError::Unsupported(254))),
            (255, Some(BlkError::NoStatus)),
        ] {
            let transfer = Transfer { written: 513, status, tries: 1 };
            assert_eq!(outcome(transfer), error.map_or(Ok(transfer), Err), "{status}");
        }
    }
}
