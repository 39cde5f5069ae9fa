//! The common part of all disks: sectors of 512 bytes, and the size of a request.

use thiserror::Error;

/// Bytes of a sector.
pub const SECTOR: u32 = 512;
/// The most bytes of one request.
pub const MAX_BYTES: u32 = 1 << 20;

/// Why a disk cannot have such sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SectorError {
    /// There are no such sectors.
    #[error("{bytes} bytes from sector {sector} on are not on the disk, which has {sectors} sectors")]
    OutOfRange {
        /// The first.
        sector: u64,
        /// Bytes.
        bytes: u32,
        /// Sectors of the disk.
        sectors: u64,
    },
    /// Not a number of whole sectors, or too many at once.
    #[error("{0} bytes at once: a request is whole sectors of {SECTOR} bytes, {MAX_BYTES} bytes at most")]
    Size(u32),
}

/// Checks a request of `bytes` bytes from `sector` on against a disk of so many sectors.
///
/// # Errors
/// [`SectorError`].
pub fn check(sector: u64, bytes: u32, sectors: u64) -> Result<(), SectorError> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) || bytes > MAX_BYTES {
        return Err(SectorError::Size(bytes));
    }
    let end = sector.checked_add(u64::from(bytes / SECTOR));
    if end.is_none_or(|end| end > sectors) {
        return Err(SectorError::OutOfRange { sector, bytes, sectors });
    }
    Ok(())
}
