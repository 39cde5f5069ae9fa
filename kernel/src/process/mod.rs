//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`initrd`], [`elf`]: where programs come from
//! - [`stack`]: what a program starts with
//! - [`signal`]: signals

#![deny(clippy::disallowed_methods)]

pub mod elf;
pub mod initrd;
pub mod signal;
pub mod stack;
