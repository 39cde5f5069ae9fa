//! Runs QEMU, feeds its serial port, judges what comes back.
//!
//! In the order of a test run: [`machine`] reads machines.toml, [`list`] the tests from the image's ELF, [`qemu`]
//! writes the one command line, and `tree` the device trees and [`acpi`] the tables that QEMU does not make itself,
//! [`serial`] starts it and cuts what it prints into lines, [`judge`] turns the lines of one boot into verdicts and
//! trusts none that does not add up, [`session`] boots again until every test has exactly one, and [`report`] writes
//! them down. [`wire`] asks a board for its tests over a serial line, whose image has an [`identity`], and [`load`]
//! gives its loader a kernel; [`noise`] is a bad line. [`script`] feeds the monitor instead, [`blocks`] does so and
//! records which blocks of the kernel are executed, or how long it keeps a CPU ([`stretches`]), [`demo`] runs one test
//! for its output, [`debian`] takes packages that tests want, [`usage`] notes what the processes take, [`trace_check`]
//! checks a test's account of the SMMU against QEMU's trace, [`gdb`] talks to QEMU's stub, and [`bench`](mod@bench)
//! measures.

#![forbid(unsafe_code)]

pub mod acpi;
pub mod bench;
pub mod blocks;
pub mod debian;
pub mod demo;
pub mod device;
pub mod differences;
pub mod gdb;
pub mod identity;
pub mod judge;
pub mod list;
pub mod load;
pub mod machine;
pub mod noise;
pub mod qemu;
pub mod report;
pub mod script;
pub mod serial;
pub mod session;
pub mod stretches;
pub mod trace_check;
mod tree;
pub mod usage;
pub mod wire;
