//! The part of an SMMU that all CPUs share: invalidation, errors, counters.

use granule_arch::addr::VirtAddr;

use crate::{Command, CommandError, CommandQueue, Features, Platform, Scope};

/// One SMMU.
pub struct Smmu<P: Platform> {
    platform: P,
    features: Features,
    commands: CommandQueue<P>,
}

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Commands, CMD_SYNC included.
    pub commands: u64,
    /// CMD_SYNCs: one for each call.
    pub syncs: u64,
    /// Waits for room in the queue.
    pub full: u64,
    /// Commands that the SMMU found illegal.
    pub illegal: u64,
    /// Global errors.
    pub errors: u64,
}

impl<P: Platform> Smmu<P> {
    /// What it has.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Its registers.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Issues `commands` and one CMD_SYNC, and returns when they are complete. With interrupts masked.
    ///
    /// # Errors
    /// They may not be complete.
    pub fn issue(&self, commands: &[Command]) -> Result<(), CommandError> {
        self.commands.issue(&self.platform, commands)
    }

    /// When this returns no TLB of the SMMU has what the 4 KiB pages of `start..end` were in `asid`, and no walk that
    /// began before uses it. The caller has completed its stores to the tables (DSB ISHST), and has interrupts masked.
    ///
    /// Everything, where `end` is the last address. It does not fail: an SMMU that cannot be told is shut, so that what
    /// it has cached is of no use to anybody.
    pub fn invalidate(&self, asid: u16, start: VirtAddr, end: VirtAddr, scope: Scope) {
        let _ = (asid, start, end, scope);
        unimplemented!()
    }

    /// The same of everything in `asid`.
    pub fn invalidate_asid(&self, asid: u16) {
        let _ = asid;
        unimplemented!()
    }

    /// Serves and acknowledges global errors; whether there were any. From the interrupt of that name, or at any time,
    /// with interrupts masked.
    pub fn acknowledge_errors(&self) -> bool {
        unimplemented!()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
}
