//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`initrd`], [`elf`]: where programs come from
//! - [`stack`], `exec`: what a program starts with, and how it comes to run
//! - `tree`, `numbers`: all processes, and how they are found
//! - `state`, `task`: one process, and one of its threads
//! - `clone`, `exit`: fork, clone, exit, wait
//! - `fault`, [`mod@signal`]: what a program did that it may not do, and the signals for it
//! - [`limits`], `oom`: what a process may have, and which one ends when memory is gone
//! - `send`: signals from one process to others
//! - `futex`: how its threads wait for each other
//! - [`start`], [`wait`], [`kill`], [`interrupt`], [`for_each`]: what the kernel itself does with processes
//!
//! The system calls that all of this serves are in `crate::linux::syscall`.

#![deny(clippy::disallowed_methods)]

#[cfg(target_os = "none")]
pub mod clock;
#[cfg(target_os = "none")]
pub mod clone;
#[cfg(target_os = "none")]
mod control;
pub mod elf;
#[cfg(target_os = "none")]
pub mod exec;
#[cfg(target_os = "none")]
pub mod exit;
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
pub use control::{for_each, interrupt, kill, space_of, start, wait, wait_with};
#[cfg(not(target_os = "none"))]
pub use host::{for_each, interrupt, kill, space_of, start, wait_with};

/// What a program's exceptions do.
#[cfg(target_os = "none")]
static ENTRY: crate::sched::UserEntry = crate::sched::UserEntry {
    syscall: crate::linux::syscall::on_syscall,
    fault: fault::fault,
    exception: fault::exception,
    signal: signal::deliver_signals,
    resolve: fault::resolve,
};

/// Frames that are kept for processes and threads to come: for accounts of frames by owner.
#[cfg(target_os = "none")]
pub fn kept_frames() -> usize {
    task::kept_frames() + tree::kept_frames() + state::kept_frames() + clone::kept_frames()
}
