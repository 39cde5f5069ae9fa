//! Timers that are read (`timerfd_create(2)`).

use granule_abi::file::{POLLIN, POLLRDNORM};
use spin::Once;

use super::event::attempt_until;
use super::open::PollState;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::process::timer::{self, FILES, Pollers, Times};
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::sched::IfNotReady;

static POLLERS: Once<Pool<Inner<Pollers>>> = Once::new();

/// Pollers of timers.
pub fn pool_stats() -> PoolStats {
    POLLERS.get().map_or_else(PoolStats::default, Pool::stats)
}

/// A timer of a file. The timer wakes the pollers, so these have two owners.
pub struct TimerFile {
    id: u32,
    pollers: Counted<Pollers>,
}

impl TimerFile {
    /// One that is stopped.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> Result<Self, Errno> {
        let pollers = Counted::try_new(POLLERS.call_once(|| Pool::new(kernel().frames)), Pollers::new())?;
        let id = timer::create_for_file(pollers.clone())?;
        Ok(Self { id, pollers })
    }

    /// The times that are left. It has the `new` ones from now on, if there are some; their value may be a moment.
    ///
    /// # Errors
    /// None: the timer is there as long as its file.
    pub fn exchange(&self, new: Option<Times>, is_moment: bool) -> Result<Times, Errno> {
        timer::exchange(FILES, self.id, new, is_moment)
    }

    /// Takes the moments that have come since it was read or set, when there is one.
    ///
    /// # Errors
    /// `EAGAIN`, `ERESTARTSYS`.
    pub fn read(&self, if_not_ready: IfNotReady) -> Result<u64, Errno> {
        let mut moments = 0;
        attempt_until(&self.pollers.queue, if_not_ready, &mut || {
            moments = timer::take_moments(self.id).unwrap_or(0);
            moments != 0
        })?;
        Ok(moments)
    }

    /// The events that a poller finds.
    pub fn poll(&self) -> PollState<'_> {
        let events = if self.pollers.is_over() { POLLIN | POLLRDNORM } else { 0 };
        PollState { events, queue: Some(&self.pollers.queue) }
    }
}

impl Drop for TimerFile {
    fn drop(&mut self) {
        // It is there.
        let _ = timer::delete(FILES, self.id);
    }
}
