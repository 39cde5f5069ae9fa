//! The lock of a last-level table, in the record of the table's frame.
//!
//! It spins and masks no interrupts: no interrupt handler acquires one.

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::PhysAddr;

use super::Space;
use crate::mm::frame::Frame;
#[cfg(debug_assertions)]
use crate::smp::this_cpu;
#[cfg(debug_assertions)]
use crate::sync::rank;
use crate::sync::spin;

/// The lock, held. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub(super) struct TableGuard<'a>(&'a Frame);

impl Space {
    /// Acquires the lock of `table`, which is one of this space.
    #[inline(always)]
    pub(super) fn lock_table(&self, table: PhysAddr) -> TableGuard<'_> {
        #[cfg(debug_assertions)]
        this_cpu().held_ranks.check(rank::TABLE);
        let frame = self.common.record(table);
        let lock = &frame.table_lock;
        if lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            wait(lock);
        }
        #[cfg(debug_assertions)]
        this_cpu().held_ranks.add(rank::TABLE);
        TableGuard(frame)
    }
}

impl TableGuard<'_> {
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

impl Drop for TableGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        this_cpu().held_ranks.remove(rank::TABLE);
        self.0.table_lock.store(0, Ordering::Release);
    }
}
