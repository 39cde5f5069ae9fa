//! The Granule kernel: everything that decides.

#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod bootargs;
pub mod drivers;
pub mod lab;
pub mod mm;
pub mod monitor;
pub mod nearest;
pub mod panic;
pub mod platform;
pub mod smp;
pub mod start;
pub mod symbols;
pub mod sync;
pub mod trap;
