//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`elf`], [`script`]: what programs are
//! - [`layout`]: where its parts lie
//! - [`stack`]: a program's first stack
//! - [`clocks`]: the clocks that calls name
//! - [`capabilities`]: those of a thread
//! - [`clone_request`]: what `clone` is asked for
//! - [`numbers`]: their numbers, and the lookup by them
//! - [`mod@signal`][]: signals
//! - [`limits`]: the limits of a process
//! - [`registration`]: memory for restartable sequences
//! - `machine`: the processes themselves
//! - [`start`], `wait`, [`kill`], [`kill_family`], [`for_each`]: the kernel's own use of processes
//!
//! The system calls that all of this serves are in `crate::linux::syscall`.

#![deny(clippy::disallowed_methods)]

pub mod capabilities;
pub mod clocks;
pub mod clone_request;
pub mod elf;
pub mod layout;
pub mod limits;
#[cfg_attr(not(target_os = "none"), path = "host.rs")]
mod machine;
pub mod numbers;
mod quota;
pub mod registration;
pub mod retries;
pub mod script;
pub mod signal;
pub mod stack;
pub mod status;

pub use machine::*;
