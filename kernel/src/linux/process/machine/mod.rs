//! Processes on the machine. On the host there are none: `host.rs`.
//!
//! - `exec`: how a program starts, by its first stack and registers
//! - `tree`: all processes, and their lookup
//! - `state`, `task`: one process, and one of its threads
//! - `clone`, `exit`: fork, clone, exit, wait
//! - `fault`: faults of programs
//! - `charge`, `oom`: what a process has, and the choice of one to end when memory is short
//! - `send`: signals from one process to others
//! - `jobs`: groups, sessions, and processes that are stopped
//! - `futex`, `robust`: how its threads wait for each other, and what a thread leaves that ends
//! - `rseq`: sequences of a thread that begin anew when it was interrupted
//! - `timer`: timers that send signals
//! - `clock`: the clock under its several numbers, and CPU time
//! - `show`: what the files of `/proc` have of a process
//! - `control`: the kernel's own use of processes

pub mod charge;
pub mod clock;
pub mod clone;
mod control;
pub mod exec;
pub mod exit;
mod fault;
pub mod futex;
pub mod jobs;
pub mod oom;
mod robust;
pub mod rseq;
pub mod send;
pub mod show;
pub mod state;
pub mod surroundings;
pub mod task;
pub mod timer;
pub mod tree;

pub use control::{family_of, for_each, kill, kill_family, space_of, wait, wait_with};

use crate::linux::process::stack::Words;
use crate::linux::process::status::ExecError;

/// The handlers of a program's exceptions.
static ENTRY: crate::sched::UserEntry = crate::sched::UserEntry {
    syscall: crate::linux::syscall::on_syscall,
    fault: fault::fault,
    exception: fault::exception,
    late_tag_fault: fault::late_tag_fault,
    signal: crate::linux::process::signal::deliver::deliver_signals,
    moved: rseq::moved,
    resolve: fault::resolve,
    is_killed: fault::is_killed,
    number: fault::number,
};

/// Starts a program of the initrd; returns the process's number. Its status is kept until [`wait`] collects it.
///
/// # Errors
/// [`ExecError`]; nothing stays allocated.
pub fn start(path: &str, words: Words) -> Result<u32, ExecError> {
    control::start(&ENTRY, path, words)
}

/// The pools of processes, tasks, open files and what else they have: for audits that count objects and frames by owner.
pub fn pools() -> [(&'static str, crate::mm::pool::PoolStats); 19] {
    let [files, tables] = crate::linux::file::open::pool_stats();
    let [nodes, names, memory_files] = crate::linux::file::files::pool_stats();
    let [epoll_sets, epoll_queues, epoll_items] = crate::linux::file::epoll::pool_stats();
    [
        files,
        tables,
        ("pipes", crate::linux::file::pipe::pool_stats()),
        ("timers of files", crate::linux::file::timerfd::pool_stats()),
        ("locks of files", crate::linux::file::locks::pool_stats()),
        ("texts of /proc", crate::linux::file::records::pool_stats()),
        epoll_sets,
        epoll_queues,
        epoll_items,
        ("pidfds", crate::linux::file::pidfd::pool_stats()),
        ("processes", tree::pool_stats()),
        ("tasks", task::pool_stats()),
        ("timers", timer::pool_stats()),
        ("tables of handlers", state::pool_stats()),
        ("vforks", clone::pool_stats()),
        ("surroundings", surroundings::pool_stats()),
        nodes,
        names,
        memory_files,
    ]
}
