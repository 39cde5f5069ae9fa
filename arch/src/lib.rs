//! The arm64 vocabulary of Granule.
//!
//! Barriers, TLB maintenance, descriptors, system registers, caches, timer, PSCI: each file is one
//! part of the Arm Architecture Reference Manual (DDI 0487) in Rust. There is no policy here, no allocation
//! and no global state. The crate builds on the host as well, where what touches the hardware does
//! nothing, so that everything above it can be tested there.

#![no_std]

pub mod addr;
pub mod alternative;
pub mod barrier;
pub mod cache;
pub mod descriptor;
#[cfg(target_os = "none")]
pub mod el2;
pub mod esr;
pub mod features;
pub mod interrupts;
#[cfg_attr(not(target_os = "none"), path = "host/mod.rs")]
mod machine;
pub mod memory;
pub mod mmu;
pub mod mte;
pub mod psci;
pub mod random;
#[cfg(not(target_os = "none"))]
pub mod recorded;
pub mod speculation;
pub mod sysreg;
pub mod tag_check;
pub mod timer;
pub mod tlbi;
pub mod translate;
pub mod wait;

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
