//! The kernel's own files of memory management that are not page tables.

pub mod asid;
pub mod frame;

pub(crate) use granule::mm::OutOfMemory;
