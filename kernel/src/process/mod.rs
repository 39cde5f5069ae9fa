//! Processes: programs at EL0, from the initrd to their exit.
//!
//! - [`initrd`], [`elf`]: where programs come from

#![deny(clippy::disallowed_methods)]

pub mod elf;
pub mod initrd;
