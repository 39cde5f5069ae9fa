//! The address spaces of user programs.
//!
//! A [`Space`] is a tree of tables for the lower half, the areas that define what may be mapped in it, and the two
//! kinds of TLB that each change invalidates: those of the CPUs, by ASID, and those of devices, by notifiers. A
//! fault: [`fault`] finds the area, [`cow`] copies a shared page. A call: [`calls`] cuts and merges areas,
//! [`protect`] and [`zap`] change the entries, [`block`] those of 2 MiB, [`group`] those of 64 KiB, [`gather`]
//! frees frames and tables after the invalidation. [`folio`] is the frames of a leaf. [`populate`] installs pages
//! before the first access, [`shmem`] holds pages that several spaces map, [`used`] records which parts of a table
//! are in use, [`reserved`] holds pages that the kernel maps for devices, [`seal`] refuses changes for good,
//! [`userfault`] has a program serve faults. `docs/ref/user-spaces.md` draws the types.
//!
//! The types lie below the operations: addresses and entries ([`range`], [`cells`], [`entry`]), what has them
//! ([`address_space`], [`area`], [`shmem`], [`family`]), and what a fault comes to ([`access`], [`outcome`]). A file
//! here imports from the one that defines; what this one exports is for other modules.
//!
//! # Locks
//! [`rank`](crate::sync::rank) has their order. The areas are in [`parts`], each with a lock of its own (`AREAS`); a call
//! or a fault locks the one that it concerns. Under that lock, for reading too, the tables of its addresses stay: they
//! are linked at any time and unlinked only under the lock for writing. Software changes an entry under the lock of its
//! table (`TABLE`). The hardware changes entries without any lock: it sets the access flag, or makes a writable-clean
//! entry dirty. [`entry`] explains when a plain store could lose that.
//!
//! Between a valid entry and another one in its place, an invalidation completes; [`gather`] explains where.
//!
//! Nothing is allocated under a table lock, and everything that can fail happens before the first change.

mod access;
mod address_space;
mod advise;
mod area;
mod block;
mod calls;
mod cells;
mod code;
mod compact;
mod cow;
mod denied;
mod device;
mod entry;
mod error;
mod family;
mod fault;
mod fault_on_access;
mod folio;
mod footprint;
mod fork;
mod gather;
mod group;
mod guard;
mod limits;
mod look;
mod migrate;
mod migrations;
mod mlock;
mod node_policy;
mod nodes;
mod outcome;
pub mod pagemap;
mod part_pools;
mod parts;
mod populate;
mod protect;
mod range;
mod reclaim;
mod remap;
mod reserved;
pub mod scan;
mod seal;
mod shmem;
mod smaps;
mod spaces;
mod table_lock;
mod tags;
mod tally;
#[cfg(test)]
mod tests;
mod used;
mod user;
mod userfault;
mod zap;

pub use access::Access;
pub use address_space::{Made, ProgramHeap, Settings, Space, SpaceHandle, SpaceRef, SpaceTables};
pub use advise::{AreaAdvice, Discard, Unneeded};
pub use area::{Area, Commitment, Sharing};
pub use calls::{MapRequest, Placement, Populate};
pub use device::HasRegisters;
pub use error::{FaultError, ObjectError, SpaceError};
pub use fault::handle_fault;
pub use limits::{MappedFile, SpaceLimits, Terms};
pub use migrate::{Moved, Unmovable};
pub use mlock::Locking;
pub use node_policy::NodePolicy;
pub use nodes::Residence;
pub use populate::Patience;
pub use range::{RESERVED_END, RESERVED_START, USER_END, USER_START};
pub use reclaim::{Aged, Used};
pub use remap::{Move, Remap, SharedMapping};
pub use reserved::ReservedPages;
pub use shmem::file::{SizeChoice, Sought, WriteAt};
pub use shmem::{LARGEST_OBJECT, Object, Seals};
pub use smaps::{AreaShown, Resident, SHARE_SHIFT, Totals};
pub use spaces::Spaces;
pub use tally::{Footprint, LastTally, Met, Tally};
pub use user::SpaceUser;
pub use userfault::events::PendingEvents;
pub use userfault::fault::FaultMode;
pub use userfault::fill::Content;
pub use userfault::queue::{ReadError, Reading};
pub use userfault::transfer::{Holes, Transfer};
pub use userfault::{Enrolment, Features, FillError, Mark, Message, PageFault, Reason, UserfaultError, Userfaultfd};
