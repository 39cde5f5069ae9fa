//! Files: what programs open, and the descriptors under which they have it.
//!
//! - [`initrd`]: the files that there are; nothing changes them
//! - [`table`]: descriptors, and who shares them
//! - `open`: open files
//! - `memfd`: files that are memory alone
//! - `userfaultfd`: files by which pagers serve faults
//! - `pipe`, with its pages in [`ring`], and `event`: pipes, and counters
//! - `pidfd`: files that refer to a process
//! - [`proc`]: the files of `/proc`
//! - `records`: those of them that are records of text
//! - [`device`]: files of devices, whose registers are mapped

pub mod device;
#[cfg(target_os = "none")]
pub mod event;
pub mod initrd;
#[cfg(target_os = "none")]
pub mod memfd;
#[cfg(target_os = "none")]
pub mod open;
#[cfg(target_os = "none")]
pub mod pidfd;
#[cfg(target_os = "none")]
pub mod pipe;
pub mod proc;
pub mod records;
pub mod ring;
pub mod table;
#[cfg(target_os = "none")]
pub mod userfaultfd;
