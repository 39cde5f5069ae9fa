//! The page tables of two other crates, and what the benches have them do.
//!
//! A crate of its own, because generic code is compiled where it is given its types: this one is compiled as users of
//! those crates compile them, with `opt-level = 3`, and the kernel and its benches as they are shipped. So nothing here
//! is generic.
//!
//! Four levels of 4 KiB, in frames of the kernel that are seen through its linear map. The tables are in no TTBR, which
//! neither crate knows: both take them for live, and issue the barriers and invalidations of a live change.

#![cfg(target_os = "none")]
#![no_std]

pub mod aarch64_paging;
pub mod page_table_multiarch;

/// The first physical address that the tables map; it is never read.
const MEMORY: usize = 0x4000_0000;

/// A zeroed frame.
fn table() -> granule_arch::addr::PhysAddr {
    granule::kernel().frames.alloc_zeroed(granule::smp::this_cpu()).expect("memory for a table")
}
