//! Signals: which wait, what they do, and how a handler comes to run.
//!
//! - [`set`]: numbers, sets, actions, what waits
//! - [`frame`]: what a handler finds on its stack

pub mod frame;
pub mod set;

pub use set::{Actions, Cause, Effect, Pending, Set, Signal};
