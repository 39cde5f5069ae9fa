//! The argument of each test: checks that are counted, and numbers to draw.

use core::fmt::Debug;
use core::panic::Location;

/// The running test.
pub(crate) struct Test {
    checks: u32,
    failures: u32,
    random: u64,
}

impl Test {
    pub(super) fn new(seed: u64) -> Self {
        Self { checks: 0, failures: 0, random: seed }
    }

    /// Checks made, and how many did not hold.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.checks, self.failures)
    }

    /// Whether a check did not hold: then a test need not go on with rounds that show the same.
    pub(crate) fn has_failed(&self) -> bool {
        self.failures != 0
    }

    /// Checks that `holds`; the test continues either way. Returns it.
    #[track_caller]
    pub(crate) fn check(&mut self, what: &str, holds: bool) -> bool {
        self.checks += 1;
        if !holds {
            self.failures += 1;
            granule::println!("check failed at {}: {what}", Location::caller());
        }
        holds
    }

    /// Checks that two values are equal, and prints both where they are not.
    #[track_caller]
    pub(crate) fn equal<T: PartialEq + Debug>(&mut self, what: &str, found: T, wanted: T) -> bool {
        self.checks += 1;
        let holds = found == wanted;
        if !holds {
            self.failures += 1;
            granule::println!("check failed at {}: {what}: found {found:?}, wanted {wanted:?}", Location::caller());
        }
        holds
    }

    /// Checks that something worked, and hands out what it brought.
    #[track_caller]
    pub(crate) fn ok<T, E: Debug>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        self.checks += 1;
        result
            .inspect_err(|error| {
                self.failures += 1;
                granule::println!("check failed at {}: {what}: {error:?}", Location::caller());
            })
            .ok()
    }

    /// A number, the same for the same `--seed` and test (SplitMix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
