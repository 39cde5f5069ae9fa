//! Threads: which run, which wait, and for what.
//!
//! - [`park`] and `unpark`: a thread sleeps until another wakes it. Everything that sleeps is built on the
//!   two: [`WaitQueue`], [`sleep_until`], [`RwSem`].
//! - [`Thread`]: what there is of each; a user thread has the functions of a [`UserEntry`] behind its exceptions.
//! - `queue`: what runs next on a CPU. `switch`: from one thread to another.
//!
//! **The token.** `unpark` of a thread that does not sleep leaves it a token, and its next `park` takes the token and
//! returns at once. So a thread may look at what it waits for, find nothing, and park, without a lock: a wake-up in
//! between is not lost. The other side of it: `park` may return for no reason that its caller knows of, so each caller
//! looks again.
//!
//! **Rule: a thread changes its CPU only between the kernel and EL0.** In the kernel it sleeps and wakes on one CPU, so
//! a reference to this CPU stays true over everything that sleeps. What waits to go on at EL0 may be taken by a CPU that
//! idles.

#[cfg(target_os = "none")]
mod fp;
mod fp_state;
#[cfg(not(target_os = "none"))]
mod host;
pub mod primitives;
#[cfg(target_os = "none")]
mod queue;
mod rwsem;
#[cfg(target_os = "none")]
mod switch;
#[cfg(target_os = "none")]
mod thread;
#[cfg(target_os = "none")]
mod timeout;
pub mod token;
mod wait;

#[cfg(target_os = "none")]
pub(crate) use fp::first_use as first_use_of_fp;
pub use fp_state::FpState;
#[cfg(not(target_os = "none"))]
pub use host::{ThreadRef, current, park, relax};
#[cfg(not(target_os = "none"))]
pub(crate) use host::{enlarge_shortage, note_shortage, works_for_program};
#[cfg(target_os = "none")]
pub(crate) use queue::{PerCpu, give_way};
#[cfg(target_os = "none")]
pub use queue::{init, init_cpu, prepare_to_idle, relax, run_ready, trim, yield_now};
pub use rwsem::{ReadGuard, RwSem, WriteGuard};
#[cfg(target_os = "none")]
pub use switch::{asid_generation, exit, park, set_space};
#[cfg(target_os = "none")]
pub use thread::{
    NewUserThread, Thread, ThreadId, ThreadRef, UserEntry, Work, current, kept_frames, spawn_kernel, spawn_service,
    thread_count,
};
#[cfg(target_os = "none")]
pub(crate) use thread::{enlarge_shortage, note_shortage, works_for_program};
#[cfg(target_os = "none")]
pub(crate) use timeout::with_timeout;
#[cfg(target_os = "none")]
pub use timeout::{sleep_through, sleep_until};
pub use wait::{WaitQueue, Waiters, Woken};
