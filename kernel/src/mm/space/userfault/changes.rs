//! Changes of the mappings whose events are not read yet. While there are any, the pager's calls fail: what it has read
//! before may not be true any more.
//!
//! `kernel/loom` compiles this file on loom's atomics.

use crate::sync::atomic::{AtomicU32, Ordering};

/// How many there are.
#[derive(Default)]
pub(super) struct Changes(AtomicU32);

impl Changes {
    /// One begins. Before its event is read [`Self::end`] is not called for it.
    pub(super) fn begin(&self) {
        // Relaxed: a pager that has read the event before finds a change by the lock of the queue.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The event of one is read, or its change is not made.
    pub(super) fn end(&self) {
        // Release: what the change did comes before a call that finds no change.
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Whether an event is not read yet.
    pub(super) fn are_there(&self) -> bool {
        // Acquire: as above.
        self.0.load(Ordering::Acquire) != 0
    }
}
