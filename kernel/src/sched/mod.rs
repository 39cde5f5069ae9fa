//! Threads: who runs, who waits, and for what.
//!
//! - [`park`] and [`ThreadRef::unpark`]: a thread sleeps until another wakes it. Everything that sleeps is built on the
//!   two: [`WaitQueue`], [`crate::sync::RwSem`].
//!
//! **The token.** `unpark` of a thread that does not sleep leaves it a token, and its next `park` takes the token and
//! returns at once. So a thread may look at what it waits for, find nothing, and park, without a lock: a wake-up in
//! between is not lost. The other side of it: `park` may return for no reason that its caller knows of, so each caller
//! looks again.

#[cfg(not(target_os = "none"))]
mod host;
#[cfg(target_os = "none")]
mod thread;
mod wait;

#[cfg(not(target_os = "none"))]
pub use host::{ThreadRef, current, park};
#[cfg(target_os = "none")]
pub use thread::{ThreadRef, current, park};
pub use wait::{WaitQueue, Waiters};
