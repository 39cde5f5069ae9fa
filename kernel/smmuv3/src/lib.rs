//! A driver for Arm's SMMUv3 (IHI 0070): devices reach memory by tables that the caller makes.
//!
//! - the registers are read and printed ([`Features`]), the SMMU is brought from any state to a known one ([`probe`]),
//!   and nothing passes during that
//! - streams are aborted, bypass, or are translated by a context (stage 1), changed while they are in use ([`Streams`])
//! - several CPUs insert commands at once ([`CommandQueue`]); an illegal command is shown and does not stop the others
//! - a range is invalidated by at most two commands, where the SMMU has range invalidation ([`Smmu::invalidate`])
//! - events are decoded ([`Events`]), global errors acknowledged ([`Smmu::acknowledge_errors`])
//! - it knows nothing of processes, page tables or PCI, allocates by its [`Platform`] alone, and has no statics
//!
//! # Concurrency
//! [`Smmu`] is shared: any CPU invalidates at any time, **with its interrupts masked**, because an interrupt handler
//! that issues commands would wait for the slots that its own CPU has reserved and not filled. [`Streams`], [`Events`]
//! and [`Asids`] have one user at a time, by `&mut`.

#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

mod asid;
mod command;
mod context;
mod error;
mod event;
mod event_queue;
mod features;
mod gerror;
pub mod hitless;
mod invalidate;
mod platform;
mod queue;
pub mod registers;
mod reset;
mod smmu;
mod stream_entry;
mod stream_table;

pub use asid::Asids;
pub use command::{COMMAND0, COMMAND1, Command, Scope, Span};
pub use context::{CD0, CD1, ContextDescriptor, OutputSize, Translation};
pub use error::{ProbeError, Report, StreamError};
pub use event::{Access, Class, EVENT0, EVENT1, Event, Kind, RECORD_BYTES, Record};
pub use event_queue::{Drained, Events};
pub use features::{Features, Stall};
pub use invalidate::MOST_PAGES;
pub use platform::{DmaMemory, Memory, PAGE1, Platform, Step, Word};
pub use queue::{COMMAND_QUEUE_BITS, CommandError, CommandQueue};
pub use reset::{EVENT_QUEUE_BITS, LIMIT_MS, Probed, probe};
pub use smmu::{Smmu, Stats};
pub use stream_entry::{EntryFormat, Privilege, STE0, STE1, STE2, StreamTableEntry};
pub use stream_table::{Stream, Streams};

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
