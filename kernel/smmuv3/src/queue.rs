//! The command queue (IHI 0070, 3.5 and 4.7): several CPUs insert at once.

use core::marker::PhantomData;

use thiserror::Error;

use crate::{Command, DmaMemory, Platform};

/// Why commands are not known to be complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CommandError {
    /// One of them, or another at the same time, was illegal, and was not executed.
    #[error("a command was illegal")]
    Illegal,
    /// The SMMU takes no commands any more.
    #[error("the SMMU did not complete them in time")]
    Timeout,
}

/// The queue of one SMMU.
#[derive(Debug)]
pub struct CommandQueue<P: Platform> {
    slots: DmaMemory,
    platform: PhantomData<fn(P)>,
}

impl<P: Platform> CommandQueue<P> {
    /// A queue in `slots`, zeroed memory of a power of two of commands, aligned to its size.
    pub fn new(slots: DmaMemory) -> Self {
        Self { slots, platform: PhantomData }
    }

    /// Inserts `commands` and a CMD_SYNC, and waits until they are complete. With interrupts masked.
    ///
    /// # Errors
    /// They may not be complete.
    pub fn issue(&self, platform: &P, commands: &[Command]) -> Result<(), CommandError> {
        let _ = (platform, commands, &self.slots);
        unimplemented!()
    }
}
