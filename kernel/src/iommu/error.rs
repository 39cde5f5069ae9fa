//! Why a device has no way to memory, or not the one that was asked for.

use granule_arch::addr::PhysAddr;
use granule_smmuv3::StreamError;
use thiserror::Error;

use super::sva::Unfit;
use crate::mm::OutOfMemory;
use crate::mm::kernel::vmalloc::VmallocError;
use crate::mm::notifier::SubscribeError;

/// Why a device is unavailable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AttachError {
    /// There is no memory for its tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// By the device tree there is an SMMU in front of it, which is not one in use here: of another kind, or one that
    /// could not be taken into use. The device may get no physical addresses.
    #[error("the SMMU in front of the device (phandle {0:#x}) is not driven, so the device gets no memory")]
    Unusable(u32),
    /// It does not put out addresses as large as it would have to.
    #[error("the device reaches addresses up to {mask:#x}, and {needed:#x} is needed")]
    Narrow {
        /// The largest address that it puts out.
        mask: u64,
        /// The largest that it would be given.
        needed: u64,
    },
    /// Without an SMMU, it would reach other memory than this by an address, or none.
    #[error("the buses above the device do not pass its accesses on to the memory at {0} as they are (dma-ranges)")]
    Elsewhere(PhysAddr),
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
    /// It is beyond the addresses that the device puts out.
    #[error("the device does not reach {0:#x}")]
    Unreachable(u64),
    /// The device does not see the CPUs' caches, and would write a part of a cache's line.
    #[error(
        "the device does not see the CPUs' caches: memory that it writes is whole lines of 128 bytes, and {0} is not"
    )]
    PartOfLine(PhysAddr),
    /// The device does not see the CPUs' caches, which hold lines of memory that no address of the kernel names.
    #[error("the device does not see the CPUs' caches, and no address of the kernel names {0}, to clean it")]
    NotShown(PhysAddr),
    /// It cannot be mapped for the driver.
    #[error(transparent)]
    Area(#[from] VmallocError),
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
    /// It would read memory that the process's stores have not reached.
    #[error("the device does not see the CPUs' caches, in which a process has its memory")]
    NotCoherent,
    /// Another device uses the space.
    #[error("a device is bound to the process: without PASIDs a second one would reach the first one's rings")]
    SpaceInUse,
    /// The SMMU cannot walk tables of processes.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The SMMU has no number left for its translations.
    #[error("the SMMU has no ASID left")]
    NoNumber,
    /// Programs have larger addresses than the device puts out.
    #[error("the device reaches addresses up to {0:#x} only, and programs have larger ones")]
    Narrow(u64),
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// The SMMU refused.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<SubscribeError> for BindError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::OutOfMemory(error) => error.into(),
            SubscribeError::Released => Self::Ended,
        }
    }
}
