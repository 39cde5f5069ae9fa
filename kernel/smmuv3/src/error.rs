//! Errors of the driver, in words.

use core::fmt;

use thiserror::Error;

use crate::{Command, CommandError};

/// Why an SMMU cannot be used. It aborts what devices do, if it was reached at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProbeError {
    /// The architecture's major version.
    #[error("its architecture is SMMUv{0}, and this driver is for SMMUv3")]
    Version(u8),
    /// It does not walk stage 1 tables of VMSAv8-64.
    #[error("it does not translate by stage 1 tables of VMSAv8-64")]
    NoStage1,
    /// It walks tables of the other endianness.
    #[error("it reads big-endian tables alone")]
    BigEndian,
    /// A transaction that faults is never ended by it, and waits for a command of software.
    #[error("each transaction that faults waits in it (IDR0.STALL_MODEL is 2), and this driver answers none")]
    AlwaysStalls,
    /// Its queues or tables have fixed addresses.
    #[error("its queues or tables have fixed addresses (IDR1.{0} is set), which this driver does not support")]
    Preset(&'static str),
    /// Its queues are too short.
    #[error("its {what} holds 2^{bits} entries at most; 2^{needed} are needed")]
    ShortQueue {
        /// Which queue.
        what: &'static str,
        /// log2 of the entries that it has.
        bits: u8,
        /// log2 of the entries that are needed.
        needed: u8,
    },
    /// There is no memory for queues or tables.
    #[error("there is no memory for its {0}")]
    OutOfMemory(&'static str),
    /// A register did not take what was written.
    #[error("{register} did not become {wanted:#x} within {LIMIT_MS} ms: it is {found:#x}", LIMIT_MS = crate::LIMIT_MS)]
    NoAnswer {
        /// Which register was looked at.
        register: &'static str,
        /// The value that was waited for.
        wanted: u32,
        /// The value that it had at last.
        found: u32,
    },
    /// A command failed.
    #[error("it does not take commands: {0}")]
    Command(#[from] CommandError),
}

/// Why a stream is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StreamError {
    /// The SMMU has no such stream.
    #[error("stream {stream:#x} is none of this SMMU's: it has {bits} bits of stream")]
    NoSuchStream {
        /// The number.
        stream: u32,
        /// How many bits numbers have.
        bits: u8,
    },
    /// The stream is not translated by a context.
    #[error("stream {0:#x} is not translated, so it has no context")]
    NoContext(u32),
    /// There is no memory for its table.
    #[error("there is no memory for the table of stream {0:#x}")]
    OutOfMemory(u32),
    /// A command failed: the SMMU may still use what it had cached.
    #[error("the command failed: {0}")]
    Command(#[from] CommandError),
}

/// An event that is reported to the platform, because no caller gets it as an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// The SMMU found this command illegal; CMD_SYNC was put in its place.
    IllegalCommand(Command),
    /// It could not read its command queue, and tries again.
    CommandFetchAborted,
    /// A device did not answer CMD_ATC_INV.
    AtcTimeout,
    /// Global errors other than those of the command queue, by their bits in GERROR.
    GlobalErrors(u32),
    /// It takes no commands any more; from now on it lets nothing pass.
    Dead,
    /// It takes no commands any more, and did not take either that nothing is to pass.
    DeadAndOpen,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IllegalCommand(command) => write!(f, "illegal command, replaced by CMD_SYNC: {command}"),
            Self::CommandFetchAborted => f.write_str("the command queue could not be read; trying again"),
            Self::AtcTimeout => f.write_str("a device did not answer an invalidation of its own TLB"),
            Self::GlobalErrors(bits) => write!(f, "global errors {bits:#x}"),
            Self::Dead => f.write_str("commands are not taken any more; every stream is aborted"),
            Self::DeadAndOpen => f.write_str(
                "commands are not taken any more, nor is that nothing may pass: devices may reach what they could",
            ),
        }
    }
}
