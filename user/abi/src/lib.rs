//! Linux's system-call interface for arm64, as far as Granule has it.
//!
//! One definition for the kernel and for the programs of `user/`. It is checked against Linux's where it is built for
//! arm64: `user/` compares each number with the kernel headers' own (crate `linux-raw-sys`).
//!
//! - [`number`]: the calls
//! - [`errno`]: how they fail
//! - [`mod@file`], [`limits`], [`memory`], [`process`], [`signal`], [`time`], [`userfaultfd`]: flags and structures, by
//!   subject

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod errno;
pub mod file;
pub mod limits;
pub mod memory;
pub mod number;
pub mod process;
pub mod signal;
pub mod time;
pub mod userfaultfd;

pub use errno::Errno;

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
