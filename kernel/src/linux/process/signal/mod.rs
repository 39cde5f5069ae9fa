//! Signals: pending ones, their actions, and the entry to handlers.
//!
//! - [`set`]: numbers, sets, actions, pending signals
//! - [`frame`]: the frame on a handler's stack
//! - [`record`]: a signal that is read from a file
//! - [`deliver`]: the entry to a handler, and the return

#[cfg(target_os = "none")]
pub mod deliver;
pub mod frame;
pub mod record;
pub mod set;

pub use set::{Actions, Effect, Pending, Set, Signal, SignalCause};
