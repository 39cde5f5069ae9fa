//! The protocol between the test and bench images and their runner.
//!
//! Each defined here once for both sides: the [`Record`] of a test or the [`BenchRecord`] of a bench, which the runner
//! reads from the image's ELF before anything boots, the [`Frame`], one line on the serial port by which the guest
//! reports its progress, and the [`Request`] that it answers where boot arguments select nothing. The rule behind
//! them: the runner never learns from the guest *what* there is to run, only how it went, and believes even that only
//! if sequence number, nonce and checksum fit. docs/TESTING.md has the whole protocol. An [`Expectation`] is output of
//! a test, held against what QEMU saw. A [`Load`] is a kernel that the loader on a board takes over the same line.

#![no_std]
#![forbid(unsafe_code)]

mod bench;
mod expectation;
mod frame;
mod load;
mod record;
mod request;
mod responder;
mod scale;
mod tlb;

/// The symbol of the test image in which `./x build` writes the checksum of the image without it.
pub const IDENTITY: &str = "granule_tests_identity";

pub use bench::{
    BENCH_BOOTARGS_BYTES, BENCH_MAGIC, BENCH_NAME_BYTES, BENCH_RECORD_BYTES, BENCH_SECTION, BENCH_WORD_BYTES,
    BenchCounter, BenchRecord, NULL_TURNS, REPETITIONS, windows_at_el0,
};
pub use expectation::{Access, Expectation};
pub use frame::{ASK, Event, Frame, MARKER, Nonce, NotAFrame, Port, checksum, checksum_of};
pub use load::{DATA_BYTES, ImageHeader, Incoming, Load, PARTS, Refusal};
pub use record::{
    FLAG_LOGS_ERRORS, FLAG_LONG, FLAG_SELFTEST, MACHINES_BYTES, NAME_BYTES, NEEDS_BYTES, RECORD_BYTES, RECORD_MAGIC,
    Record, SECTION, text,
};
pub use request::{Order, REQUEST_BYTES, Request};
pub use responder::{PATIENCE, Reply, Responder};
pub use scale::ScaleWindow;
pub use tlb::{TlbLeaf, TlbOrder, TlbPass};
