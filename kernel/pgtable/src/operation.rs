//! Operations of a machine, as values: for records and for counters.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;

use crate::flush::Invalidation;
use crate::geometry::{Geometry, Granule4K};

/// One thing that was done to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation<G: Geometry = Granule4K> {
    /// An entry was written, by store, compare-exchange or bit-clear.
    Write {
        /// Where the entry is.
        cell: PhysAddr,
        /// Its value before.
        old: Descriptor,
        /// Its value after.
        new: Descriptor,
    },
    /// DMB ISHST.
    DmbIshst,
    /// DSB ISHST.
    DsbIshst,
    /// DSB ISH.
    DsbIsh,
    /// DSB NSH.
    DsbNsh,
    /// ISB.
    Isb,
    /// An invalidation that the host's TLB was asked for, without barriers.
    Invalidate(Invalidation<G>),
    /// A TLBI instruction.
    Tlbi(Instruction),
    /// Cache maintenance for new code.
    Cache(CacheOperation),
}

/// Cache maintenance for new code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheOperation {
    /// DC CVAU, line by line.
    Clean {
        /// The first address.
        start: VirtAddr,
        /// How much.
        bytes: u64,
    },
    /// IC IVAU, line by line.
    Invalidate {
        /// The first address.
        start: VirtAddr,
        /// How much.
        bytes: u64,
    },
    /// IC IALLUIS.
    InvalidateAll,
}
