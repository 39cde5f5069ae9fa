//! The kernel's own files of memory management that are not page tables.

pub mod asid;
#[path = "../../src/mm/counted.rs"]
pub mod counted;
pub mod family;
pub mod frame;
pub mod free_frames;
pub mod heap;
pub mod kernel;
#[allow(dead_code, reason = "boot and the report are the kernel's alone")]
#[path = "../../src/mm/page_block/mod.rs"]
pub mod page_block;
#[allow(dead_code, reason = "pools for each CPU are the kernel's alone")]
#[path = "../../src/mm/pool.rs"]
pub mod pool;
pub mod shmem;
pub mod space;
pub mod table;
pub mod tag_storage;
pub mod userfault;

/// A replacement for the layout of the kernel's addresses: a window of two parts, which begins at 0.
mod layout {
    use granule_arch::addr::VirtAddr;

    pub(super) const LINEAR_SIZE: u64 = 1 << 47;
    pub(super) const VMALLOC_START: VirtAddr = VirtAddr(0);
    pub(super) const VMALLOC_END: VirtAddr = VirtAddr(2 << 42);
}

pub(crate) use crate::notifier;
pub(crate) use granule::mm::{OutOfMemory, early};

#[allow(dead_code, reason = "what a fault on the way to a table concludes is the kernel's alone")]
#[path = "../../src/mm/space/denied.rs"]
mod denied;
#[allow(dead_code, reason = "only what widens, replaces and copies an entry runs here")]
#[path = "../../src/mm/space/entry.rs"]
mod entry;
#[path = "../../src/mm/space/guard.rs"]
mod guard;
#[allow(dead_code, reason = "what tries an attempt without the lock is the kernel's alone")]
#[path = "../../src/mm/space/look.rs"]
mod look;
#[allow(dead_code, reason = "no two locks are held here")]
#[path = "../../src/mm/space/table_lock.rs"]
mod table_lock;

/// A stand-in for the areas of a space.
mod area {
    pub(super) struct Area;

    pub(super) mod tree {
        pub(in super::super) struct Areas;
    }
}

mod error {
    pub(super) use granule::mm::space::FaultError;
}
