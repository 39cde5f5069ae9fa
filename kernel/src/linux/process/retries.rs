//! How often a call or a fault is retried for which memory was short and then was not, though nothing was freed for it.
//!
//! Another program may take what the retry needs, and have given it back whenever the retry is asked for: forks that come
//! and go beside a call that needs all that is left. Each by itself looks as if memory had just become free.

use core::cell::Cell;

/// As many as Linux has (`MAX_RECLAIM_RETRIES`), before a process ends.
const MOST: u32 = 16;
/// Retries that are further apart, in milliseconds, have nothing to do with each other.
const APART: u64 = 10_000;

/// Names the call or fault that is retried: a call by the place where it is made and its
/// first argument, a fault by the address and 0.
pub type Attempt = [u64; 2];

/// The retries of a thread.
#[derive(Debug, Default)]
pub struct Retries {
    of: Cell<Attempt>,
    count: Cell<u32>,
    last: Cell<u64>,
}

impl Retries {
    /// Whether one more of `attempt` may follow, `now` milliseconds after the boot. After [`MOST`] in a row it may not,
    /// once. Another attempt begins a new row: the one before has succeeded, or was given up.
    pub fn may_follow(&self, attempt: Attempt, now: u64) -> bool {
        let is_same = self.of.replace(attempt) == attempt;
        let is_in_row = now.saturating_sub(self.last.replace(now)) < APART && is_same;
        let count = if is_in_row { self.count.get() } else { 0 };
        self.count.set(if count < MOST { count + 1 } else { 0 });
        count < MOST
    }
}

#[cfg(test)]
mod tests {
    use super::{APART, MOST, Retries};

    #[test]
    fn retries_in_a_row_end_and_others_do_not() {
        let (retries, start) = (Retries::default(), 100_000);
        for _ in 0..2 {
            for count in 0..MOST {
                assert!(retries.may_follow([1, 2], start + u64::from(count)), "{count}");
            }
            assert!(!retries.may_follow([1, 2], start + 1000));
        }
        for count in 0..10 * MOST {
            assert!(retries.may_follow([1, 2], start + APART * u64::from(count + 1)), "{count}");
        }
        for count in 0..10 * MOST {
            assert!(retries.may_follow([1, u64::from(count)], start), "another attempt, {count}");
            assert!(retries.may_follow([u64::from(count), 2], start), "another attempt, {count}");
        }
    }
}
