//! A timer that stands still.

use crate::timer::USUAL_FREQUENCY;

/// Always zero.
pub fn count_unordered() -> u64 {
    0
}

/// Always zero.
pub fn count() -> u64 {
    0
}

/// The usual one.
pub fn own_frequency() -> u64 {
    USUAL_FREQUENCY
}

/// Nothing fires.
pub fn set_deadline(_: u64) {}

/// Nothing is stopped.
pub fn stop() {}
