//! How often a call or a fault is retried for which memory was short and then was not, though nothing was freed for it.
//!
//! Another program may take what the retry needs, and have given it back whenever the retry is asked for: forks that come
//! and go beside a call that needs all that is left. Each by itself looks as if memory had just become free.

use core::cell::Cell;

/// As many as Linux has (`MAX_RECLAIM_RETRIES`), before a process ends.
const MOST: u32 = 16;
/// Retries that are further apart, in milliseconds, have nothing to do with each other.
const APART: u64 = 10_000;

/// The retries of a thread.
#[derive(Debug, Default)]
pub struct Retries {
    count: Cell<u32>,
    last: Cell<u64>,
}

impl Retries {
    /// Whether one more may follow, `now` milliseconds after the boot. After [`MOST`] in a row it may not, once.
    pub fn may_follow(&self, now: u64) -> bool {
        let is_in_row = now.saturating_sub(self.last.replace(now)) < APART;
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
                assert!(retries.may_follow(start + u64::from(count)), "{count}");
            }
            assert!(!retries.may_follow(start + 1000));
        }
        for count in 0..10 * MOST {
            assert!(retries.may_follow(start + APART * u64::from(count + 1)), "{count}");
        }
    }
}
