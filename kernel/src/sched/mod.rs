//! Threads: which run, which wait, and for what.
//!
//! - [`park`] and `unpark`: a thread sleeps until another wakes it. Everything that sleeps is built on the
//!   two: [`WaitQueue`], [`PollQueue`], [`sleep_until`], [`RwSem`].
//! - [`Thread`]: what there is of each; a user thread has the functions of a [`UserEntry`] for its exceptions.
//! - `machine/queue.rs`: what runs next on a CPU. `machine/switch.rs`: from one thread to another.
//!
//! **The token.** `unpark` of a thread that does not sleep leaves it a token, and its next `park` takes the token and
//! returns at once. So a thread may look at what it waits for, find nothing, and park, without a lock: a wake-up in
//! between is not lost. The other side of it: `park` may return for no reason that its caller knows of, so each caller
//! looks again.
//!
//! **Rule: a thread changes its CPU only between the kernel and EL0.** In the kernel it sleeps and wakes on one CPU, so
//! a reference to this CPU stays true over everything that sleeps. A CPU that idles may take a thread that is ready to
//! go on at EL0; a thread that is bound to some CPUs goes to one of them by itself.

mod fp_state;
#[cfg_attr(not(target_os = "none"), path = "host.rs")]
mod machine;
#[cfg_attr(not(debug_assertions), path = "unchecked.rs")]
pub(crate) mod order;
mod poll;
pub(crate) mod replays;
mod rwsem;
mod tag_check;
pub mod token;
mod wait;

use core::cell::UnsafeCell;

pub use fp_state::FpState;
pub use machine::*;
pub use poll::{PollNode, PollNodes, PollQueue, Watcher, poll};
pub use replays::Replays;
pub use rwsem::{BriefGuard, BriefSlot, ReadGuard, RwSem, WriteGuard};
pub use tag_check::{TagChecks, TagFaults};
pub use token::{IfNotReady, Woken};
pub use wait::{WaitQueue, Waiters};

use crate::smp::CpuId;
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use crate::sync::rank::Sleeping;

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
