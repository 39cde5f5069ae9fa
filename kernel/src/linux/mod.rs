//! Linux's interface for programs: a client of the core.
//!
//! - [`mod@file`]: files and descriptors
//! - [`process`]: processes, threads, signals, from the initrd to their exit
//! - `syscall`: the calls, by number
//! - [`errno`]: the core's errors as a program sees them
//!
//! It imports neither the iommu nor a device.

pub mod errno;
pub mod file;
pub mod process;
#[cfg(target_os = "none")]
pub mod syscall;
