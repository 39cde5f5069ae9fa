//! What stands in the place of the kernel's `chip`.

/// A clock that stands still at 0; an interrupt of the timer brings the time with it.
pub mod timer {
    use std::time::Duration;

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
            self.0 == 0
        }
    }
}
