//! The tests on the target: the kernel's own image, with a list of tests in place of the monitor.
//!
//! [`harness`] runs the tests that the boot arguments select and reports to the runner on the host; docs/TESTING.md is
//! the whole story. The other modules are the tests, by the part of the kernel that they test; [`misbehaving`] holds
//! guests that lie, for the runner's own tests.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod compact;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod copy_on_write;
#[cfg(target_os = "none")]
mod demo;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod devices_bound;
#[cfg(target_os = "none")]
mod devices_nvme;
#[cfg(target_os = "none")]
mod direct_map;
#[cfg(target_os = "none")]
mod frames;
#[cfg(target_os = "none")]
mod guarded_heap;
#[cfg(target_os = "none")]
mod harness;
#[cfg(target_os = "none")]
mod heap_tags;
#[cfg(target_os = "none")]
mod interrupt;
#[cfg(target_os = "none")]
mod iommu;
#[cfg(target_os = "none")]
mod limits;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod misbehaving;
#[cfg(target_os = "none")]
mod mte;
#[cfg(target_os = "none")]
mod notifier;
#[cfg(target_os = "none")]
mod pagealloc;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod planted;
#[cfg(target_os = "none")]
mod process;
#[cfg(target_os = "none")]
mod reclaim;
#[cfg(target_os = "none")]
mod runs;
#[cfg(target_os = "none")]
mod sched;
#[cfg(target_os = "none")]
mod set_memory;
#[cfg(target_os = "none")]
mod smmu;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod split;
#[cfg(target_os = "none")]
mod storm;
#[cfg(target_os = "none")]
mod tag_storage;
#[cfg(target_os = "none")]
mod timer;
#[cfg(target_os = "none")]
mod trap;
#[cfg(target_os = "none")]
mod turns;
#[cfg(target_os = "none")]
mod uaccess;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod userfault;
#[cfg(target_os = "none")]
mod vmalloc;
#[cfg(target_os = "none")]
mod watched;
#[cfg(target_os = "none")]
mod words;
#[cfg(target_os = "none")]
mod work;

granule_boot::entry!(crate::harness::run);
