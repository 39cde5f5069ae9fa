//! Time.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use granule_abi::Errno;
use granule_abi::number::{CLOCK_GETTIME, NANOSLEEP};
use granule_abi::time::{CLOCK_MONOTONIC, Timespec};

use crate::sys;

/// Nanoseconds of a millisecond.
pub const MILLISECOND: u64 = 1_000_000;

/// Nanoseconds of the monotonic clock.
///
/// # Panics
/// When the kernel has no such clock.
pub fn now() -> u64 {
    let mut time = Timespec::default();
    // SAFETY: it writes `time`.
    unsafe { sys::call(CLOCK_GETTIME, [CLOCK_MONOTONIC, &raw mut time as u64, 0, 0, 0, 0]) }
        .expect("a monotonic clock");
    time.to_nanoseconds().expect("a time that is one")
}

/// Sleeps for this many nanoseconds.
///
/// # Errors
/// A signal interrupted it.
pub fn sleep(nanoseconds: u64) -> Result<(), Errno> {
    let time = Timespec::from_nanoseconds(nanoseconds);
    // SAFETY: it reads `time`.
    unsafe { sys::call(NANOSLEEP, [&raw const time as u64, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Sleeps until the thread ends, whatever handlers run.
pub fn sleep_for_ever() -> ! {
    loop {
        let _ = sleep(u64::MAX >> 2);
    }
}
