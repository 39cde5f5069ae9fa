//! The tests that the boot arguments select.

use granule::bootargs::{self, Refused};
/// The tests to run, and their seed.
pub(crate) struct Plan {
    /// For tests that draw numbers.
    pub(crate) seed: u64,
    /// The ranges, as text that has been checked: a list of them would take its place on the stack of every test.
    ranges: &'static str,
}

impl Plan {
    /// The plan, if there is a sound one.
    pub(crate) fn from_bootargs() -> Option<Self> {
        Some(Self {
            seed: bootargs::get("test.seed").map_or(Some(0), |seed| seed.parse().ok())?,
            ranges: bootargs::get("test.run").filter(|text| ranges(text).all(|range| range.is_some()))?,
        })
    }

    /// The tests, in the order in which they run.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        ranges(self.ranges).flatten().flat_map(|(first, last)| first..=last)
    }
}

/// First and last index of each range; `None` for an invalid range.
fn ranges(text: &str) -> impl Iterator<Item = Option<(u32, u32)>> {
    text.split(',').map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

pub(super) fn run(value: &str) -> Result<(), Refused> {
    let sound = ranges(value).all(|range| range.is_some());
    sound.then_some(()).ok_or_else(|| Refused::because("it is a list of ranges, as 0-3,7"))
}

pub(super) fn seed(value: &str) -> Result<(), Refused> {
    value.parse::<u64>().map(|_| ()).map_err(|_| Refused::because("it is a decimal number below 2^64"))
}
