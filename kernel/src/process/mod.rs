//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`initrd`], [`elf`]: where programs come from
//! - [`stack`], `exec`: what a program starts with, and how it comes to run
//! - `tree`, `numbers`: all processes, and how they are found
//! - `state`, `task`: one process, and one of its threads
//! - `birth`, `death`: fork, clone, exit, wait
//! - `fault`, [`mod@signal`]: what a program did that it may not do, and what it is told
//! - [`limits`], `oom`: what a process may have, and which one ends when memory is gone
//! - `send`: signals from one process to others
//! - `futex`: how its threads wait for each other
//! - [`start`], [`wait`], [`kill`], [`for_each`]: what the kernel itself does with processes
//!
//! The system calls that all of this serves are in `crate::syscall`.

#![deny(clippy::disallowed_methods)]

#[cfg(target_os = "none")]
pub mod birth;
#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
mod control;
pub mod counted;
#[cfg(target_os = "none")]
pub mod death;
pub mod elf;
#[cfg(target_os = "none")]
pub mod exec;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
pub mod futex;
#[cfg(not(target_os = "none"))]
mod host;
pub mod initrd;
pub mod limits;
pub mod numbers;
#[cfg(target_os = "none")]
pub mod oom;
#[cfg(target_os = "none")]
pub mod send;
pub mod signal;
pub mod stack;
#[cfg(target_os = "none")]
pub mod state;
pub mod status;
#[cfg(target_os = "none")]
pub mod task;
#[cfg(target_os = "none")]
pub mod tree;

#[cfg(target_os = "none")]
pub use control::{for_each, kill, space_of, start, wait};
#[cfg(not(target_os = "none"))]
pub use host::{for_each, kill, space_of, start, wait};

/// What a program's exceptions do.
#[cfg(target_os = "none")]
static ENTRY: crate::sched::UserEntry = crate::sched::UserEntry {
    syscall: crate::syscall::on_syscall,
    fault: fault::fault,
    exception: fault::exception,
    signal: signal::see_to_signals,
    resolve: fault::resolve,
};

/// Frames that are kept for processes and threads to come: for accounts of who has which frames.
#[cfg(target_os = "none")]
pub fn kept_frames() -> usize {
    task::kept_frames() + tree::kept_frames() + state::kept_frames() + birth::kept_frames()
}
