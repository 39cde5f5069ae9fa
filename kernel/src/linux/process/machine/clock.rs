//! Clocks: the one that counts from the boot, under its several numbers, and CPU time of processes and threads.
//!
//! There is one measure of CPU time: how long threads had a CPU, at EL0 and in the kernel. Linux's older two (`PROF`,
//! `VIRT` in a clock's number) return the same here.

use core::time::Duration;

use granule_abi::time::{
    CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM, CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW,
    CLOCK_PROCESS_CPUTIME_ID, CLOCK_REALTIME, CLOCK_REALTIME_ALARM, CLOCK_REALTIME_COARSE, CLOCK_TAI,
    CLOCK_THREAD_CPUTIME_ID,
};

use super::task::Task;
use super::tree::PROCESSES;
use crate::chip::timer::{self, Deadline};
use crate::linux::errno::Errno;
use crate::linux::process::clocks::Clock;
use crate::sched::{self, Woken};
use crate::smp;

impl Clock {
    /// The clock with this number, for `task`. Negative numbers are a process's or a thread's, inverted, with the kind
    /// of clock in the lowest three bits.
    ///
    /// # Errors
    /// `EINVAL`: there is no such kind of clock.
    pub fn new(number: u64, task: &Task) -> Result<Self, Errno> {
        const THREAD: i32 = 0b100;
        let number = number as u32;
        let signed = number as i32;
        if signed >= 0 {
            return match u64::from(number) {
                CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME | CLOCK_TAI | CLOCK_REALTIME_ALARM
                | CLOCK_BOOTTIME_ALARM => Ok(Self::Uptime),
                CLOCK_MONOTONIC_RAW | CLOCK_REALTIME_COARSE | CLOCK_MONOTONIC_COARSE => Ok(Self::UptimeToRead),
                CLOCK_PROCESS_CPUTIME_ID => Ok(Self::Process(task.process().id())),
                CLOCK_THREAD_CPUTIME_ID => Ok(Self::ThreadToRead),
                _ => Err(Errno::EINVAL),
            };
        }
        let of = !(signed >> 3) as u32;
        Ok(match (signed & 0b111, of) {
            (0b011, _) => Self::File,
            (0b111, _) => Self::NotCounted,
            (kind, 0) if kind & THREAD != 0 => Self::Thread(task.id()),
            (kind, of) if kind & THREAD != 0 => Self::Thread(of),
            (_, 0) => Self::Process(task.process().id()),
            (_, of) => Self::Process(of),
        })
    }

    /// Its time, in nanoseconds.
    ///
    /// # Errors
    /// `EINVAL`: there is no such process or thread, or the clock cannot be read.
    pub fn now(self, task: &Task) -> Result<u64, Errno> {
        let counts = match self {
            Self::Uptime | Self::UptimeToRead => return Ok(timer::uptime_nanoseconds()),
            Self::Process(id) => Self::process_time(id, task),
            Self::Thread(id) => task.process().lock().find(id).map(|task| task.thread().cpu_time()),
            Self::ThreadToRead => Some(task.thread().cpu_time()),
            Self::File | Self::NotCounted => None,
        };
        counts.map(|counts| timer::duration_of(counts).as_nanos() as u64).ok_or(Errno::EINVAL)
    }

    /// As Linux, a thread's own number stands for its process here.
    fn process_time(id: u32, task: &Task) -> Option<u64> {
        let own = task.process();
        let is_own = id == task.id() || id == own.id();
        let mut begun = false;
        loop {
            let time = if is_own {
                own.lock().add_time(&mut begun)
            } else {
                PROCESSES.lock().find(id)?.lock().add_time(&mut begun)
            };
            if time.is_some() {
                return time;
            }
            // Also where the caller is killed: the sum lies in the process, others wait for it, and it ends with the threads.
            sched::relax();
        }
    }

    /// Sleeps until the clock shows this time.
    ///
    /// # Errors
    /// `EINTR`; `EINVAL`, as [`Self::now`].
    pub fn sleep_until(self, task: &Task, until: u64) -> Result<(), Errno> {
        /// The longest time between two readings of CPU time: it advances while the sleeper does not run.
        const LEAST: Duration = Duration::from_millis(1);
        loop {
            let rest = Duration::from_nanos(until.saturating_sub(self.now(task)?));
            if rest.is_zero() {
                return Ok(());
            }
            let least = match self {
                Self::Uptime | Self::UptimeToRead => rest,
                // A process uses no more time than all CPUs together.
                _ => (rest / smp::online().iter().count().max(1) as u32).max(LEAST),
            };
            if sched::sleep_until(Deadline::after(least)) == Woken::Interrupted {
                return Err(Errno::EINTR);
            }
        }
    }
}
