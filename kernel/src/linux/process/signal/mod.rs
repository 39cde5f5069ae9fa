//! Signals: which wait, what they do, and how a handler comes to run.
//!
//! - [`set`]: numbers, sets, actions, what waits
//! - [`frame`]: what a handler finds on its stack
//! - [`deliver`]: the way into a handler and back

#[cfg(target_os = "none")]
pub mod deliver;
pub mod frame;
pub mod set;

#[cfg(target_os = "none")]
pub(super) use deliver::deliver_signals;
pub use set::{Actions, Effect, Pending, Set, Signal, SignalCause};
