//! Why a call was refused. No variant leaves anything changed.

use granule_arch::addr::{PhysAddr, VirtAddr};
use thiserror::Error;

/// Every reason for which a call of this crate is refused, with the value that was at fault.
///
/// All checks come before the first store: on any of these, every page is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// A range of no pages.
    #[error("the range at {0} is empty")]
    Empty(VirtAddr),
    /// An address or size that is not a multiple of the page size.
    #[error("{0:#x} is not a multiple of the page size")]
    Unaligned(u64),
    /// A range that runs past the last address.
    #[error("{size:#x} bytes from {start} on run past the last address")]
    Wraps {
        /// Its first address.
        start: VirtAddr,
        /// Its size in bytes.
        size: u64,
    },
    /// A range that is not wholly inside one half of the address space: bits above the translated ones differ.
    #[error("{size:#x} bytes from {start} on are not inside one half of the address space")]
    NotCanonical {
        /// Its first address.
        start: VirtAddr,
        /// Its size in bytes.
        size: u64,
    },
    /// A physical range that descriptors cannot hold (48 bits).
    #[error("physical address {0} is beyond 48 bits")]
    PhysicalTooHigh(PhysAddr),
    /// A page of the range is mapped already.
    #[error("{0} is mapped already")]
    AlreadyMapped(VirtAddr),
    /// A page of the range is not mapped: the first such hole.
    #[error("nothing is mapped at {0}")]
    NotMapped(VirtAddr),
    /// A page whose leaf lacks the mark that the change was limited to ([`crate::Change::require_bits`]).
    #[error("the page at {0} is not one that may be changed")]
    NotMarked(VirtAddr),
    /// A block or contiguous group that is partly inside the range.
    #[error("a leaf of {size:#x} bytes at {leaf} is only partly in the range")]
    Straddles {
        /// The first address that the leaf translates.
        leaf: VirtAddr,
        /// Its bytes; a contiguous group counts as one leaf.
        size: u64,
    },
    /// The change would make this page writable and executable.
    #[error("{0} would be writable and executable")]
    WritableAndExecutable(VirtAddr),
    /// The leaf of this page is read-only, and the change is one of writable leaves ([`crate::Change::of_writable`]).
    #[error("the page at {0} is read-only")]
    ReadOnly(VirtAddr),
    /// Code was asked for below a table descriptor that forbids execution (PXNTable).
    #[error("{0} is below a table that forbids execution")]
    ExecutionForbidden(VirtAddr),
    /// The table source had fewer frames than the mapping needs. Those taken have been given back.
    #[error("{needed} tables are needed, only {available} were available")]
    OutOfTables {
        /// Tables that the mapping needs.
        needed: usize,
        /// Tables that the source gave before it ran dry.
        available: usize,
    },
}
