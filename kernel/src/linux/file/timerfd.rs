//! Timers that are read (`timerfd_create(2)`), as files. Their times are kept with those of processes
//! (`linux::process::timer`), which knows these and not the other way round.

use core::sync::atomic::{AtomicU64, Ordering};

use granule_abi::file::{POLLIN, POLLRDNORM};
use spin::Once;

use super::event::attempt_until;
use super::open::PollState;
use crate::chip::timer::uptime_nanoseconds;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::sched::{IfNotReady, PollQueue};

static POLLERS: Once<Pool<Inner<Pollers>>> = Once::new();

/// Pollers of timers.
pub fn pool_stats() -> PoolStats {
    POLLERS.get().map_or_else(PoolStats::default, Pool::stats)
}

/// The pollers of a file's timer, which the timer and the file have.
pub struct Pollers {
    queue: PollQueue,
    due: AtomicU64,
}

impl Pollers {
    /// Of a timer that is stopped.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Counted<Self>, OutOfMemory> {
        let pool = POLLERS.call_once(|| Pool::new(kernel().frames));
        Counted::try_new(pool, Self { queue: PollQueue::new(), due: AtomicU64::new(u64::MAX) })
    }

    /// There is something to read from this moment on, by the clock of the uptime. Under the lock of all timers.
    pub fn set_due(&self, due: u64) {
        self.due.store(due, Ordering::Relaxed);
    }

    /// Wakes them. For threads, without a lock.
    pub fn wake(&self) {
        self.queue.wake(POLLIN | POLLRDNORM);
    }
}

/// A timer of a file, by its number.
pub struct TimerFile {
    /// The number.
    pub id: u32,
    pollers: Counted<Pollers>,
    delete: fn(u32),
}

impl TimerFile {
    /// Of the timer with this number and these pollers, which `delete` ends with the file.
    pub const fn new(id: u32, pollers: Counted<Pollers>, delete: fn(u32)) -> Self {
        Self { id, pollers, delete }
    }

    /// Takes the moments that have come since it was read or set, by `take`, when there is one.
    ///
    /// # Errors
    /// `EAGAIN`, `ERESTARTSYS`.
    pub fn read(&self, if_not_ready: IfNotReady, take: impl Fn(u32) -> Option<u64>) -> Result<u64, Errno> {
        let mut moments = None;
        attempt_until(&self.pollers.queue, if_not_ready, &mut || {
            moments = take(self.id);
            moments.is_some()
        })?;
        moments.ok_or(Errno::EAGAIN)
    }

    /// The events that a poller finds, under whatever lock.
    pub fn poll(&self) -> PollState<'_> {
        let is_over = self.pollers.due.load(Ordering::Relaxed) <= uptime_nanoseconds();
        PollState { events: if is_over { POLLIN | POLLRDNORM } else { 0 }, queue: Some(&self.pollers.queue) }
    }
}

impl Drop for TimerFile {
    fn drop(&mut self) {
        (self.delete)(self.id);
    }
}
