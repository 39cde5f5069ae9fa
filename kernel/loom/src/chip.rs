//! A replacement for the kernel's `chip`, with the kernel's own order of interrupts and memory.

use crate::sync::atomic::{AtomicU32, Ordering};

#[path = "../../src/chip/order.rs"]
mod order;

/// An interrupt controller for one CPU: which interrupts are pending is all that it orders.
#[derive(Default)]
pub struct Controller {
    pending: AtomicU32,
}

impl Controller {
    /// `InterruptController::send`.
    pub fn send(&self, number: u32) {
        order::send(|| self.pending.fetch_or(1 << number, Ordering::Relaxed));
    }

    /// `InterruptController::acknowledge`.
    pub fn acknowledge(&self) -> Option<u32> {
        order::acknowledge(|| {
            let number = self.pending.load(Ordering::Relaxed).trailing_zeros();
            (number < u32::BITS).then(|| {
                self.pending.fetch_and(!(1 << number), Ordering::Relaxed);
                number
            })
        })
    }
}

/// Interrupts that CPUs send each other.
pub mod interrupt {
    use crate::remote::{self, Cpu};

    /// Sends the interrupt `number` to `cpu`.
    pub(crate) fn send(cpu: &Cpu, number: u32) -> Result<(), std::convert::Infallible> {
        remote::send(cpu, number);
        Ok(())
    }
}

/// A clock that stands still at 0; an interrupt of the timer brings the time with it.
pub mod timer {
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    use crate::smp::Cpu;
    use crate::sync::atomic::{Omitted, omits};

    /// The clock stands still.
    pub(crate) const fn uptime() -> Duration {
        Duration::ZERO
    }

    /// A moment.
    #[derive(Clone, Copy, Debug)]
    pub struct Deadline(u64);

    impl Deadline {
        /// `time` from now.
        pub fn after(time: Duration) -> Self {
            Self(time.as_nanos() as u64)
        }

        /// When the clock shows `count`.
        pub fn at(count: u64) -> Self {
            Self(count)
        }

        pub(crate) fn count(self) -> u64 {
            self.0
        }

        pub(crate) fn has_passed(self) -> bool {
            self.0 == 0 || omits(Omitted::Patience)
        }
    }

    /// The one purpose of the timer here: deadlines of threads.
    pub(crate) enum Purpose {
        Threads,
    }

    pub(crate) fn set(cpu: &Cpu, _: Purpose, deadline: Option<Deadline>, _: fn(&Cpu)) {
        if !omits(Omitted::Timer) {
            cpu.timer.set(deadline.map(Deadline::count));
        }
    }

    /// A CPU's timer: an interrupt is due then.
    #[derive(Default)]
    pub(crate) struct Timer(Mutex<Due>, Condvar);

    #[derive(Default, PartialEq)]
    enum Due {
        #[default]
        Never,
        At(u64),
        Stopped,
    }

    impl Timer {
        fn set(&self, count: Option<u64>) {
            let mut due = self.0.lock().unwrap();
            if *due != Due::Stopped {
                *due = count.map_or(Due::Never, Due::At);
                self.1.notify_one();
            }
        }

        /// Waits until it is due by `now`; `false` once it is stopped.
        pub(crate) fn wait(&self, now: u64) -> bool {
            let mut due = self.0.lock().unwrap();
            loop {
                match *due {
                    Due::At(count) if count <= now => {
                        *due = Due::Never;
                        return true;
                    }
                    Due::Stopped => return false,
                    _ => due = self.1.wait(due).unwrap(),
                }
            }
        }

        pub(crate) fn stop(&self) {
            *self.0.lock().unwrap() = Due::Stopped;
            self.1.notify_one();
        }
    }
}
