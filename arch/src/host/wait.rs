//! Waiting on the host, whose CPUs may be fewer than the threads of a test: others run.

extern crate std;

use std::thread::yield_now;

use core::sync::atomic::{AtomicU32, Ordering};

/// Lets others run.
pub fn relax() {
    yield_now();
}

/// Lets others run, and waits for no event.
pub fn wfe() {
    yield_now();
}

/// Wakes no other CPU.
pub fn sev() {
    crate::recorded::note("sev");
}

/// Lets others run, and waits for no interrupt.
pub fn wfi() {
    yield_now();
}

/// Stores `here` to `at`, and waits until `word` is no longer `value`.
pub fn park(at: &AtomicU32, here: u32, word: &AtomicU32, value: u32) {
    at.store(here, Ordering::Release);
    while word.load(Ordering::Acquire) == value {
        yield_now();
    }
}
