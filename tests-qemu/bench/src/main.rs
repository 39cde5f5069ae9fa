//! The benches on the target: the kernel's own image, with a list of measurements in place of the monitor.
//!
//! [`harness`] measures what the boot arguments choose, or what is asked for over a wire, and reports each point in a
//! frame; `./x bench` boots it and makes a table. docs/BENCHMARKS.md describes how a number comes about. The other
//! modules are the rows, by what they measure.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

/// The benches, which are built for the target alone.
#[cfg(target_os = "none")]
#[path = ""]
mod rows {
    pub(crate) mod harness;
    pub(crate) mod heap;
    pub(crate) mod huge;
    pub(crate) mod linear;
    pub(crate) mod memory;
    pub(crate) mod mm;
    pub(crate) mod mte;
    pub(crate) mod peers;
    pub(crate) mod scale;
    pub(crate) mod set_memory;
    pub(crate) mod smmu;
    pub(crate) mod space;
    pub(crate) mod tlb;
    pub(crate) mod uffd;
    pub(crate) mod vmalloc;
    pub(crate) mod wire;
}
#[cfg(target_os = "none")]
#[allow(clippy::wildcard_imports, reason = "its modules lie beside this file, and are found there")]
use rows::*;

granule_boot::entry!(crate::harness::run);
