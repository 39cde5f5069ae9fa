//! The clocks of programs, and sleeps on them: `clock` has what they show.

use granule_arch::addr::VirtAddr;

/// A clock that a call names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// Time since the boot.
    Uptime,
    /// As [`Self::Uptime`], under a number that cannot be slept on.
    UptimeToRead,
    /// CPU time of a process, by its number.
    Process(u32),
    /// CPU time of a thread of the caller's process, by its number.
    Thread(u32),
    /// CPU time of the calling thread, under a number that cannot be slept on.
    ThreadToRead,
    /// A file that is a clock: there is none.
    File,
    /// CPU time that is not counted.
    NotCounted,
}

/// A sleep that a signal interrupted.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// The clock.
    pub clock: Clock,
    /// The end.
    pub until: u64,
    /// Where the rest is stored if it is interrupted; 0 for nowhere.
    pub rest: VirtAddr,
}
