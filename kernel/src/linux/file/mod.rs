//! Files: what programs open, and the descriptors under which they have it.
//!
//! - [`initrd`]: the files that there are; nothing changes them
//! - [`table`]: descriptors, and who shares them
//! - `open`: open files
//! - `memfd`: files that are memory alone
//! - `userfaultfd`: files by which pagers serve faults
//! - [`device`]: files of devices, whose registers are mapped

pub mod device;
pub mod initrd;
#[cfg(target_os = "none")]
pub mod memfd;
#[cfg(target_os = "none")]
pub mod open;
pub mod table;
#[cfg(target_os = "none")]
pub mod userfaultfd;
