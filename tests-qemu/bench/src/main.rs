//! The benches on the target: the kernel's own image, with a list of measurements in place of the monitor.
//!
//! [`harness`] measures what the boot arguments choose and reports each point in a frame; `./x bench` boots it and
//! makes a table. docs/BENCHMARKS.md describes how a number comes about. The other modules are the rows, by what they
//! measure.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod harness;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod huge;
#[cfg(target_os = "none")]
mod linear;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod mm;
#[cfg(target_os = "none")]
mod mte;
#[cfg(target_os = "none")]
mod peers;
#[cfg(target_os = "none")]
mod scale;
#[cfg(target_os = "none")]
mod set_memory;
#[cfg(target_os = "none")]
mod smmu;
#[cfg(target_os = "none")]
mod space;
#[cfg(target_os = "none")]
mod tlb;
#[cfg(target_os = "none")]
mod uffd;
#[cfg(target_os = "none")]
mod vmalloc;

granule_boot::entry!(crate::harness::run);
