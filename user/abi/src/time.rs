//! Time: `linux/time.h`, `linux/time_types.h`.

/// Wall-clock time; Granule's starts at the boot.
pub const CLOCK_REALTIME: u64 = 0;
/// Time since the boot.
pub const CLOCK_MONOTONIC: u64 = 1;
/// CPU time of the process.
pub const CLOCK_PROCESS_CPUTIME_ID: u64 = 2;
/// CPU time of the thread.
pub const CLOCK_THREAD_CPUTIME_ID: u64 = 3;
/// Time since the boot that nothing adjusts.
pub const CLOCK_MONOTONIC_RAW: u64 = 4;
/// Wall-clock time, of the last tick.
pub const CLOCK_REALTIME_COARSE: u64 = 5;
/// Time since the boot, of the last tick.
pub const CLOCK_MONOTONIC_COARSE: u64 = 6;
/// Time since the boot, suspension included.
pub const CLOCK_BOOTTIME: u64 = 7;
/// As [`CLOCK_REALTIME`], and a sleep by it wakes the machine.
pub const CLOCK_REALTIME_ALARM: u64 = 8;
/// As [`CLOCK_BOOTTIME`], and a sleep by it wakes the machine.
pub const CLOCK_BOOTTIME_ALARM: u64 = 9;
/// International atomic time; here the same as wall-clock time.
pub const CLOCK_TAI: u64 = 11;

/// setitimer: the timer that counts time, and sends SIGALRM.
pub const ITIMER_REAL: u32 = 0;
/// setitimer: the timer that counts CPU time at EL0.
pub const ITIMER_VIRTUAL: u32 = 1;

/// clock_nanosleep and timer_settime: the time is a moment, not a length.
pub const TIMER_ABSTIME: u64 = 1;

/// `struct __kernel_timespec`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timespec {
    /// Whole seconds.
    pub seconds: i64,
    /// The rest, 0 to 999,999,999.
    pub nanoseconds: i64,
}

/// In a second.
pub const NANOSECONDS: u64 = 1_000_000_000;

impl Timespec {
    /// This many nanoseconds.
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self { seconds: (nanoseconds / NANOSECONDS) as i64, nanoseconds: (nanoseconds % NANOSECONDS) as i64 }
    }

    /// In nanoseconds: `None` for an invalid time by Linux's rule. A time that does not fit is cut to the longest.
    pub const fn to_nanoseconds(self) -> Option<u64> {
        if self.seconds < 0 || self.nanoseconds < 0 || self.nanoseconds as u64 >= NANOSECONDS {
            return None;
        }
        Some((self.seconds as u64).saturating_mul(NANOSECONDS).saturating_add(self.nanoseconds as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::Timespec;

    #[test]
    fn nanoseconds_round_trip_and_bad_times_are_none() {
        let time = Timespec::from_nanoseconds(3_000_000_007);
        assert_eq!((time.seconds, time.nanoseconds), (3, 7));
        assert_eq!(time.to_nanoseconds(), Some(3_000_000_007));
        assert_eq!(Timespec { seconds: 0, nanoseconds: 1_000_000_000 }.to_nanoseconds(), None);
        assert_eq!(Timespec { seconds: -1, nanoseconds: 0 }.to_nanoseconds(), None);
        assert_eq!(Timespec { seconds: i64::MAX, nanoseconds: 0 }.to_nanoseconds(), Some(u64::MAX));
    }
}
