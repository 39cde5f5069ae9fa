//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`elf`], [`script`]: what programs are
//! - [`layout`]: where its parts lie
//! - [`stack`], `exec`: a program's first stack and registers, and how it starts
//! - `tree`, `numbers`: all processes, and their lookup
//! - `state`, `task`: one process, and one of its threads
//! - `clone`, `exit`: fork, clone, exit, wait
//! - `fault`, [`mod@signal`]: faults of programs, and their signals
//! - [`limits`], `charge`, `oom`: the limits of a process, what it has, and the choice of one to end when memory is short
//! - `send`: signals from one process to others
//! - `futex`, `robust`: how its threads wait for each other, and what a thread leaves that ends
//! - [`start`], [`wait`], [`kill`], [`kill_family`], [`for_each`]: the kernel's own use of processes
//!
//! The system calls that all of this serves are in `crate::linux::syscall`.

#![deny(clippy::disallowed_methods)]

#[cfg(target_os = "none")]
pub mod charge;
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
pub mod layout;
pub mod limits;
pub mod numbers;
#[cfg(target_os = "none")]
pub mod oom;
pub mod retries;
#[cfg(target_os = "none")]
mod robust;
pub mod script;
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
pub use control::{family_of, for_each, kill, kill_family, space_of, wait, wait_with};
#[cfg(not(target_os = "none"))]
pub use host::{family_of, for_each, kill, kill_family, space_of, start, wait_with};

/// The handlers of a program's exceptions.
#[cfg(target_os = "none")]
static ENTRY: crate::sched::UserEntry = crate::sched::UserEntry {
    syscall: crate::linux::syscall::on_syscall,
    fault: fault::fault,
    exception: fault::exception,
    late_tag_fault: fault::late_tag_fault,
    signal: signal::deliver::deliver_signals,
    resolve: fault::resolve,
    is_killed: fault::is_killed,
    number: fault::number,
};

/// Starts a program of the initrd; returns the process's number. Its status is kept until [`wait`] collects it.
///
/// # Errors
/// [`ExecError`](status::ExecError); nothing stays allocated.
#[cfg(target_os = "none")]
pub fn start(path: &str, words: stack::Words) -> Result<u32, status::ExecError> {
    control::start(&ENTRY, path, words)
}

/// The pools of processes, tasks, open files and what else they have: for audits that count objects and frames by owner.
#[cfg(target_os = "none")]
pub fn pools() -> [(&'static str, crate::mm::pool::PoolStats); 7] {
    let [files, tables] = crate::linux::file::open::pool_stats();
    [
        files,
        tables,
        ("pipes", crate::linux::file::pipe::pool_stats()),
        ("processes", tree::pool_stats()),
        ("tasks", task::pool_stats()),
        ("tables of handlers", state::pool_stats()),
        ("vforks", clone::pool_stats()),
    ]
}
