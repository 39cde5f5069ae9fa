//! A count with a limit, which CPUs take from at once.
//!
//! Look and count are one step: of two that take the last, one is refused. Nothing is published by it.
//!
//! `kernel/loom` compiles this file.

use crate::sync::atomic::{AtomicUsize, Ordering};

/// How many are taken.
pub(super) struct Quota(pub(super) AtomicUsize);

impl Quota {
    /// Takes one if fewer than `most` are taken; returns whether it has. [`Self::give_back`] returns it.
    pub(super) fn take(&self, most: u64) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            ((taken as u64) < most).then_some(taken.saturating_add(1))
        });
        taken.is_ok()
    }

    /// Returns one that was taken.
    pub(super) fn give_back(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are taken. Others may be concurrently.
    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
