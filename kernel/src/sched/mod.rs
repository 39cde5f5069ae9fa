//! Threads: which run, which wait, and for what.
//!
//! - [`park`] and `unpark`: a thread sleeps until another wakes it. Everything that sleeps is built on the
//!   two: [`WaitQueue`], [`PollQueue`], [`sleep_until`], [`RwSem`].
//! - [`Thread`]: what there is of each; a user thread has the functions of a [`UserEntry`] for its exceptions.
//! - `queue`: what runs next on a CPU. `switch`: from one thread to another.
//!
//! **The token.** `unpark` of a thread that does not sleep leaves it a token, and its next `park` takes the token and
//! returns at once. So a thread may look at what it waits for, find nothing, and park, without a lock: a wake-up in
//! between is not lost. The other side of it: `park` may return for no reason that its caller knows of, so each caller
//! looks again.
//!
//! **Rule: a thread changes its CPU only between the kernel and EL0.** In the kernel it sleeps and wakes on one CPU, so
//! a reference to this CPU stays true over everything that sleeps. A CPU that idles may take a thread that is ready to
//! go on at EL0.

#[cfg(target_os = "none")]
mod fp;
mod fp_state;
#[cfg(not(target_os = "none"))]
mod host;
#[cfg_attr(not(debug_assertions), path = "unchecked.rs")]
pub(crate) mod order;
mod poll;
#[cfg(target_os = "none")]
mod queue;
pub(crate) mod replays;
mod rwsem;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod switch;
mod tag_check;
#[cfg(target_os = "none")]
mod thread;
#[cfg(target_os = "none")]
mod timeout;
pub mod token;
mod wait;

use core::cell::UnsafeCell;

#[cfg(target_os = "none")]
pub(crate) use fp::first_use as first_use_of_fp;
pub use fp_state::FpState;
#[cfg(not(target_os = "none"))]
pub use host::*;
pub use poll::{PollNode, PollNodes, PollQueue, poll};
#[cfg(target_os = "none")]
use queue::running;
#[cfg(target_os = "none")]
pub(crate) use queue::{PerCpu, give_way};
#[cfg(target_os = "none")]
pub use queue::{park, relax, yield_now};
pub use replays::Replays;
pub use rwsem::{BriefGuard, BriefSlot, ReadGuard, RwSem, WriteGuard};
#[cfg(target_os = "none")]
pub use start::{Stacks, Surroundings, idle, init, init_cpu, trim};
#[cfg(target_os = "none")]
pub use switch::{asid_generation, exit, set_space};
pub use tag_check::{TagChecks, TagFaults};
#[cfg(target_os = "none")]
pub(crate) use tag_check::{collect_tag_faults, deliver_with_checks};
#[cfg(all(target_os = "none", debug_assertions))]
use thread::with_held_ranks;
#[cfg(target_os = "none")]
pub use thread::{
    NewThread, NewUserThread, Thread, ThreadId, ThreadRef, UserEntry, Work, current, kept_frames, spawn_kernel,
    spawn_service, thread_count,
};
#[cfg(target_os = "none")]
pub(crate) use thread::{
    enlarge_shortage, is_interrupted, is_killed, note_replay, note_shortage, program_number, runs_program,
    take_replays, with_context,
};
#[cfg(target_os = "none")]
pub use timeout::{poll_until, sleep_until};
#[cfg(target_os = "none")]
pub(crate) use timeout::{sleep_briefly, sleep_through, with_timeout};
pub use token::Woken;
pub use wait::{WaitQueue, Waiters};

use crate::smp::CpuId;
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use crate::sync::rank::Sleeping;

/// Threads that are woken under one hold of a lock.
const WOKEN_AT_ONCE: usize = 16;

// For statics. Here, because loom's atomics and locks are not made at compile time.

impl token::Token {
    /// Of a thread that may run.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl<T> WaitQueue<T> {
    /// A queue without waiters.
    pub const fn new() -> Self {
        Self(IrqLock::new(wait::WaiterList::EMPTY))
    }
}

impl BriefSlot {
    /// Of this CPU, which reads under no lock.
    pub(crate) const fn new(id: CpuId) -> Self {
        Self { lock: AtomicUsize::new(0), bit: 1 << (rwsem::BRIEF_SHIFT + id.0) }
    }
}

impl<T> RwSem<T> {
    /// A free lock.
    pub const fn new(rank: Sleeping, value: T) -> Self {
        Self { rank, word: AtomicU64::new(0), waiters: WaitQueue::new(), value: UnsafeCell::new(value) }
    }
}

#[cfg(test)]
mod tests;
