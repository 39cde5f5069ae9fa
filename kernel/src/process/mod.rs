//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`initrd`], [`elf`]: where programs come from
//! - [`stack`]: what a program starts with
//! - [`mod@signal`]: which wait, what they do, how a handler comes to run

#![deny(clippy::disallowed_methods)]

pub mod elf;
pub mod initrd;
pub mod signal;
pub mod stack;
