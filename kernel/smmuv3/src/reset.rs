//! From whatever state the SMMU is in to one in which every stream aborts and both queues work (IHI 0070, 3.11, 6.3).

use crate::{Asids, Events, Memory, Platform, ProbeError, Smmu, Streams};

/// How long a register may take to answer.
pub(crate) const LIMIT_MS: u64 = 1000;

/// An SMMU in use: the part that all CPUs share, and those that have one user at a time.
pub struct Probed<P: Platform + Memory> {
    /// Commands and invalidation.
    pub smmu: Smmu<P>,
    /// What becomes of each stream: all abort.
    pub streams: Streams<P>,
    /// The event queue.
    pub events: Events,
    /// Numbers for address spaces.
    pub asids: Asids,
}

/// Takes the SMMU of `platform` into use: all streams abort, nothing is cached, interrupts are on.
///
/// # Errors
/// It cannot be used, and aborts what devices do.
pub fn probe<P: Platform + Memory>(platform: P) -> Result<Probed<P>, ProbeError> {
    let _ = platform;
    unimplemented!()
}
