//! The interrupts of a device that threads wait for.
//!
//! A driver reads the count, looks at what the device has written, and waits where it finds nothing: an interrupt that
//! comes in between has changed the count.
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

use core::time::Duration;

use super::slot::sleep;
use crate::chip::timer::Deadline;
use crate::sched::WaitQueue;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Interrupts of a device, counted for threads that wait for the next.
#[derive(Default)]
pub struct Arrivals {
    pub(super) count: AtomicU64,
    pub(super) waiters: WaitQueue<()>,
    /// How often a device was found to be done that had not interrupted.
    pub(super) missed: AtomicU64,
}

impl Arrivals {
    /// How many there were. Acquire: what a waiter reads after this was written before the interrupt, or the next one
    /// comes later than this count.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// How many were missing.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// The device is done, and its interrupt was waited for in vain.
    pub(super) fn note_missing(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn arrive(&self) {
        let mut waiters = self.waiters.lock();
        // Release: read without the lock, too.
        self.count.fetch_add(1, Ordering::Release);
        waiters.wake_all();
    }

    /// Sleeps until there are more than `seen`, at most so long; whether there are.
    pub(super) fn wait(&self, seen: u64, at_most: Duration) -> bool {
        let waiters = self.waiters.lock();
        // Under the lock: what arrives after this look finds this thread in the queue.
        self.count() != seen || sleep(waiters, Deadline::after(at_most))
    }
}
