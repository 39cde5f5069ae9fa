//! The tests on the target: the kernel's own image, with a list of tests in place of the monitor.
//!
//! [`harness`] runs the tests that the boot arguments select and reports to the runner on the host; docs/TESTING.md is
//! the whole story. The other modules are the tests, by the part of the kernel that they test; [`misbehaving`] holds
//! guests that lie, for the runner's own tests.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

/// The tests, which are built for the target alone.
#[cfg(target_os = "none")]
#[path = ""]
mod tests {
    pub(crate) mod boot;
    pub(crate) mod compact;
    pub(crate) mod console;
    pub(crate) mod copy_on_write;
    pub(crate) mod demo;
    pub(crate) mod devices;
    pub(crate) mod devices_bound;
    pub(crate) mod devices_nvme;
    pub(crate) mod direct_map;
    pub(crate) mod frames;
    pub(crate) mod guarded_heap;
    pub(crate) mod harness;
    pub(crate) mod heap_tags;
    pub(crate) mod interrupt;
    pub(crate) mod iommu;
    pub(crate) mod limits;
    pub(crate) mod machine;
    pub(crate) mod memory;
    pub(crate) mod misbehaving;
    pub(crate) mod mte;
    pub(crate) mod notifier;
    pub(crate) mod pagealloc;
    pub(crate) mod pci;
    pub(crate) mod planted;
    pub(crate) mod process;
    pub(crate) mod reclaim;
    pub(crate) mod runs;
    pub(crate) mod sched;
    pub(crate) mod set_memory;
    pub(crate) mod smmu;
    pub(crate) mod smp;
    pub(crate) mod split;
    pub(crate) mod storm;
    pub(crate) mod tag_storage;
    pub(crate) mod timer;
    pub(crate) mod trap;
    pub(crate) mod turns;
    pub(crate) mod uaccess;
    pub(crate) mod user;
    pub(crate) mod userfault;
    pub(crate) mod vmalloc;
    pub(crate) mod watched;
    pub(crate) mod words;
    pub(crate) mod work;
}
#[cfg(target_os = "none")]
#[allow(clippy::wildcard_imports, reason = "its modules lie beside this file, and are found there")]
use tests::*;

granule_boot::entry!(crate::harness::run);
