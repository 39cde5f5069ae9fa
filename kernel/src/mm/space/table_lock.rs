//! The lock of a table, in the record of the table's frame; and of a block's frames, in that of the first.
//!
//! It spins and masks no interrupts: no interrupt handler acquires one.
//!
//! `kernel/loom` compiles this file.

use crate::mm::frame::Frame;
#[cfg(debug_assertions)]
use crate::smp::this_cpu;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::rank::{self, Rank};
use crate::sync::spin;

/// The lock, held. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub(super) struct TableGuard<'a, const RANK: Rank = { rank::TABLE }>(&'a Frame);

impl<'a, const RANK: Rank> TableGuard<'a, RANK> {
    /// Acquires the lock in a frame's record.
    #[inline(always)]
    pub(super) fn lock(frame: &'a Frame) -> Self {
        #[cfg(test)]
        crate::sync::meeting::moment();
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().check(RANK);
        let lock = &frame.table_lock;
        if lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            wait(lock);
        }
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().add(RANK);
        TableGuard(frame)
    }

    /// The record of the table's frame.
    #[inline(always)]
    pub(super) fn frame(&self) -> &Frame {
        self.0
    }
}

#[cold]
fn wait(lock: &AtomicU32) {
    while lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        spin();
    }
}

impl<const RANK: Rank> Drop for TableGuard<'_, RANK> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().remove(RANK);
        self.0.table_lock.store(0, Ordering::Release);
        #[cfg(test)]
        crate::sync::meeting::released();
    }
}
