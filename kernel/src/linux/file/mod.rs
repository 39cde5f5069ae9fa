//! Files: what programs open, and the descriptors under which they have it.
//!
//! - [`tree`]: nodes and their names; [`walk`]: paths
//! - [`initrd`]: the archives that the tree is made of
//! - `files`: that tree; `contents`: what regular files hold, also those that are memory alone
//! - [`table`]: descriptors, and who shares them
//! - `open`: open files, with what a `stat` shows of them
//! - [`locks`]: locks of files and of their bytes
//! - `userfaultfd`: files by which pagers serve faults
//! - `pipe`, with its pages in [`ring`], `event`, `timerfd` and `signalfd`: pipes, counters, timers and signals
//! - `epoll`: sets of files that are watched
//! - `pidfd`: files that refer to a process
//! - [`proc`]: the files of `/proc`
//! - `records`: those of them that are records of text
//! - [`device`]: files of devices, whose registers are mapped

#[cfg(target_os = "none")]
pub mod contents;
pub mod device;
#[cfg(target_os = "none")]
pub mod epoll;
#[cfg(target_os = "none")]
pub mod event;
#[cfg(target_os = "none")]
pub mod files;
pub mod initrd;
pub mod locks;
#[cfg(target_os = "none")]
pub mod open;
#[cfg(target_os = "none")]
pub mod pidfd;
#[cfg(target_os = "none")]
pub mod pipe;
pub mod proc;
pub mod records;
pub mod ring;
#[cfg(target_os = "none")]
pub mod signalfd;
#[cfg(target_os = "none")]
pub mod stat;
pub mod table;
#[cfg(target_os = "none")]
pub mod timerfd;
pub mod tree;
#[cfg(target_os = "none")]
pub mod userfaultfd;
pub mod walk;
