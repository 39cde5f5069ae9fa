//! A device as its driver sees it: where it finds memory, and whether it got there.

use core::fmt;
use core::ops::Range;

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use thiserror::Error;

use crate::kernel;
use crate::mm::OutOfMemory;
use crate::mm::space::{Access, FaultError, SpaceRef};
use crate::smp::Cpu;

/// An address as a device puts it on the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DmaAddress(pub u64);

impl fmt::Display for DmaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The device reads memory.
    ToDevice,
    /// The device writes memory.
    FromDevice,
    /// Both.
    Both,
}

/// Why a device cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AttachError {
    /// There is no memory for its tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
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
    /// The device uses the addresses of a process.
    #[error("the device is bound to a process, and uses its addresses alone")]
    Bound,
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
}

/// What became of a transfer, once its device has said that it is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a transfer that met faults is not complete, whatever its device says"]
pub enum Resolution {
    /// It met no fault: it is complete.
    NoFault,
    /// It met faults, which have been served: it is to be submitted again.
    Resolved,
    /// Records of faults were lost: whatever is in flight may have met one, and is to be submitted again.
    Overflow,
    /// It met a fault that cannot be served.
    Failed(FaultError),
}

/// A page that a driver and its device have in common; zero at first.
///
/// Its address stays the same while the device is bound and unbound.
#[derive(Debug)]
#[must_use = "it stays taken until it is handed to `free_coherent`"]
pub struct Coherent {
    physical: PhysAddr,
    address: DmaAddress,
}

impl Coherent {
    /// Where the device finds it.
    pub const fn address(&self) -> DmaAddress {
        self.address
    }

    /// Where the driver does.
    pub fn virt(&self) -> VirtAddr {
        kernel().frames.linear().address(self.physical)
    }

    /// Bytes in it.
    pub const fn bytes(&self) -> usize {
        PAGE_SIZE
    }
}

/// A device that its driver has attached, and no other.
#[derive(Debug)]
pub struct DmaDevice {
    /// How the SMMU knows it.
    stream: Option<u32>,
}

/// Takes the device that the SMMU knows as `stream`; `None` for one in front of which there is none.
///
/// # Errors
/// [`AttachError`]; nothing has changed.
pub fn attach(_cpu: &Cpu, stream: Option<u32>) -> Result<DmaDevice, AttachError> {
    Ok(DmaDevice { stream })
}

impl DmaDevice {
    /// How the SMMU knows it.
    pub const fn stream(&self) -> Option<u32> {
        self.stream
    }

    /// Shows the device `bytes` bytes of memory from `physical` on, until [`Self::unmap`]. It sees whole pages.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is shown.
    pub fn map(
        &self,
        _cpu: &Cpu,
        physical: PhysAddr,
        _bytes: usize,
        _direction: Direction,
    ) -> Result<DmaAddress, DmaError> {
        Ok(DmaAddress(physical.0))
    }

    /// Takes back what [`Self::map`] has shown as `address`. On return the device does not reach it any more.
    pub fn unmap(&self, _cpu: &Cpu, _address: DmaAddress, _bytes: usize) {}

    /// A page for `bytes` bytes that driver and device have in common.
    ///
    /// # Errors
    /// [`DmaError::TooLarge`] beyond a page; [`DmaError::OutOfMemory`].
    pub fn alloc_coherent(&self, cpu: &Cpu, bytes: usize) -> Result<Coherent, DmaError> {
        if bytes > PAGE_SIZE {
            return Err(DmaError::TooLarge(bytes));
        }
        let physical = kernel().frames.alloc_zeroed(cpu)?;
        Ok(Coherent { physical, address: DmaAddress(physical.0) })
    }

    /// Gives back what [`Self::alloc_coherent`] has given. The device uses it no more.
    pub fn free_coherent(&self, cpu: &Cpu, page: Coherent) {
        kernel().frames.free(cpu, page.physical);
    }

    /// The address to which the device writes its messages, so that they reach `doorbell` (MSI): it stays the same
    /// while the device is bound and unbound.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is shown.
    pub fn message_address(&self, _cpu: &Cpu, doorbell: PhysAddr) -> Result<DmaAddress, DmaError> {
        Ok(DmaAddress(doorbell.0))
    }

    /// Has the device use the addresses of `space` from now on, until [`Self::unbind`]. The driver has nothing in
    /// flight. When the space ends the device is cut off, quietly, and stays bound to nothing.
    ///
    /// # Errors
    /// [`BindError`]; nothing has changed.
    pub fn bind(&self, _cpu: &Cpu, _space: &SpaceRef) -> Result<(), BindError> {
        Err(BindError::NoSmmu)
    }

    /// Ends [`Self::bind`]; the device has its own addresses again. The driver has nothing in flight.
    pub fn unbind(&self, _cpu: &Cpu) {}

    /// Whether the device is bound, perhaps to a space that has ended.
    pub fn is_bound(&self) -> bool {
        false
    }

    /// Looks what became of a transfer that `access`ed `range` and that its device calls complete; while the device is
    /// bound, serves the faults that it met.
    ///
    /// Sleeps: not from interrupts.
    pub fn resolve(&self, _cpu: &Cpu, _range: Range<u64>, _access: Access) -> Resolution {
        Resolution::NoFault
    }
}
