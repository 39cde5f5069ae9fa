//! The event queue (IHI 0070, 3.5.2 and 7.2).

use crate::{DmaMemory, Event, Platform, Smmu};

/// What a look at the event queue found.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Drained {
    /// Events.
    pub events: usize,
    /// Some were lost since the last look, because the queue was full or could not be written.
    pub lost: bool,
}

/// The event queue of one SMMU.
#[derive(Debug)]
pub struct Events {
    slots: DmaMemory,
}

impl Events {
    /// The queue in `slots`, zeroed memory of a power of two of events, aligned to its size.
    pub fn new(slots: DmaMemory) -> Self {
        Self { slots }
    }

    /// Hands every event that is there to `each`, oldest first, and makes room.
    pub fn drain<P: Platform>(&mut self, smmu: &Smmu<P>, each: impl FnMut(&Event)) -> Drained {
        let _ = (smmu, each, &self.slots);
        unimplemented!()
    }
}
