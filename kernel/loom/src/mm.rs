//! The kernel's own files of memory management that are not page tables.

pub mod asid;
pub mod frame;
pub mod page_block;
pub mod shmem;
pub mod space;
pub mod tag_storage;

pub(crate) use granule::mm::OutOfMemory;
