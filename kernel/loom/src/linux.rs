//! The kernel's own count of tasks.

#[path = "../../src/linux/process/quota.rs"]
mod quota;

use quota::Quota;

use crate::sync::atomic::AtomicUsize;

/// The count of the tasks of all processes, with the limit of one.
pub struct Tasks {
    quota: Quota,
    most: u64,
}

impl Tasks {
    /// None, of at most so many.
    pub fn new(most: u64) -> Self {
        Self { quota: Quota(AtomicUsize::new(0)), most }
    }

    /// As `ProcessSlot::take`; whether there is one task more.
    pub fn begin(&self) -> bool {
        self.quota.take(self.most)
    }

    /// As the drop of a `ProcessSlot`.
    pub fn end(&self) {
        self.quota.give_back();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.quota.taken()
    }
}
