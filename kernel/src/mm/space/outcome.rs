//! A fault that its area permits, and the outcome of a fault.

use granule_arch::addr::{PhysAddr, VirtAddr};

use super::access::Access;
use super::address_space::Space;
use super::area::Area;
use super::cells::EntryCell;
use super::denied::Denied;
use crate::smp::Cpu;

/// The outcome of a fault in one byte, where a `Result` of the first two would take two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FaultOutcome {
    /// Served. All events for it were sent on the way.
    Served,
    /// Served: the entry was read-only or old, and became writable or young. An upgrade event is due.
    Upgraded,
    /// The page is on its way to another frame: the access is tried again when it has arrived.
    Migrating,
    /// Of a block, and no lock may be held for the rest.
    OfBlock(OfBlock),
    /// Storage for tags is needed, and what lies there has to migrate first.
    TagStorage,
    /// A marker of userfaultfd is there: a page is mapped over it.
    Marker,
    /// A pager may have to serve it.
    Userfault,
    /// The object gets its page, which is mapped before other faults find it there.
    New,
    /// It cannot be served.
    Failed(Denied),
}

/// The rest of a fault of a block, for which no lock may be held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OfBlock {
    /// As [`FaultOutcome::Upgraded`].
    Upgraded,
    /// As [`FaultOutcome::Upgraded`], of a group.
    UpgradedGroup,
    /// It has to be copied: others use it.
    Shared,
    /// It waits for tag storage.
    TagStorage,
}

/// A fault that an area permits, and its entry. Functions that are not inlined take it by value, so that it is stored
/// to memory only before their calls.
#[derive(Clone, Copy)]
pub(super) struct AllowedFault<'a> {
    pub(super) space: &'a Space,
    pub(super) cpu: &'a Cpu,
    pub(super) area: &'a Area,
    /// The first address of the page.
    pub(super) page: VirtAddr,
    /// The last-level table.
    pub(super) table: PhysAddr,
    /// The entry in it.
    pub(super) cell: &'a EntryCell,
    pub(super) access: Access,
}
