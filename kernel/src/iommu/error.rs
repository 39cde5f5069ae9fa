//! Why a device has no way to memory, or not the one that was asked for.

use granule_smmuv3::StreamError;
use thiserror::Error;

use super::sva::Unfit;
use crate::mm::OutOfMemory;

/// Why a device cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AttachError {
    /// There is no memory for its tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// There is an SMMU in front of it, which could not be taken into use.
    #[error("the SMMU in front of the device cannot be used, and lets nothing pass")]
    Unusable,
    /// Another driver has it.
    #[error("stream {0:#x} is attached already")]
    InUse(u32),
    /// As many as there can be are attached.
    #[error("{0} devices are attached, and no more can be")]
    TooMany(usize),
    /// The SMMU has no number left for its translations.
    #[error("the SMMU has no ASID left")]
    NoNumber,
    /// The SMMU refused.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Why memory cannot be shown to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DmaError {
    /// There is no memory for tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// More in one piece than there is.
    #[error("{0} bytes are more than a device gets in one piece")]
    TooLarge(usize),
    /// Nothing translates what the device puts on the bus.
    #[error("there is no SMMU in front of the device")]
    NoSmmu,
    /// The device uses the addresses of a process.
    #[error("the device is bound to a process, and uses its addresses alone")]
    Bound,
    /// All addresses are in use.
    #[error("the device has no addresses left for {0} pages")]
    NoAddresses(usize),
    /// It is no memory, or too much.
    #[error(transparent)]
    Range(#[from] granule_pgtable::Error),
    /// The SMMU refused.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Why a device cannot use the addresses of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BindError {
    /// There is no memory for the binding.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// Nothing translates what it puts on the bus.
    #[error("there is no SMMU in front of the device")]
    NoSmmu,
    /// It is bound already.
    #[error("the device is bound already")]
    Bound,
    /// The SMMU cannot walk tables of processes.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The SMMU has no number left for its translations.
    #[error("the SMMU has no ASID left")]
    NoNumber,
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// The SMMU refused.
    #[error(transparent)]
    Stream(#[from] StreamError),
}
