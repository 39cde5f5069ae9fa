//! Events (IHI 0070, 7.3): what the SMMU says of a transaction that it ended.

/// One record of the event queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event(pub [u64; 4]);
