//! The kernel's own interrupts that threads wait for.

use std::time::Duration;

#[allow(dead_code, reason = "no interrupt is missing here")]
#[path = "../../src/devices/arrivals.rs"]
mod arrivals;

pub use arrivals::Arrivals;

/// A replacement for `devices::slot`: no time passes.
mod slot {
    use crate::chip::timer::Deadline;
    use crate::sched::Waiters;

    pub(super) fn sleep(waiters: Waiters<'_, ()>, _: Deadline) -> bool {
        waiters.wait(());
        true
    }
}

impl Arrivals {
    /// The device's interrupt.
    pub fn interrupt(&self) {
        self.arrive();
    }

    /// A driver waits for the next one, as its wait for a request does.
    pub fn wait_beyond(&self, seen: u64) -> bool {
        self.wait(seen, Duration::ZERO)
    }
}
