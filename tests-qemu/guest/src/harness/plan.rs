//! What the boot arguments ask for.

use granule::bootargs::{self, Refused};
use granule_protocol::Nonce;

/// The most ranges that `test.run=` may have: as many as fit in the boot arguments' length, by far.
const MAX_RANGES: usize = 512;

/// What to run.
pub(crate) struct Plan {
    /// What frames of this boot carry.
    pub(crate) nonce: Nonce,
    /// For tests that draw numbers.
    pub(crate) seed: u64,
    /// First and last index of each range.
    ranges: heapless::Vec<(u32, u32), MAX_RANGES>,
}

impl Plan {
    /// The plan, if there is a sound one.
    pub(crate) fn from_bootargs() -> Option<Self> {
        Some(Self {
            nonce: parse_nonce(bootargs::get("test.nonce")?)?,
            seed: bootargs::get("test.seed").map_or(Some(0), |seed| seed.parse().ok())?,
            ranges: parse_ranges(bootargs::get("test.run")?)?,
        })
    }

    /// The tests, in the order in which they run.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        self.ranges.iter().flat_map(|&(first, last)| first..=last)
    }
}

fn parse_nonce(text: &str) -> Option<Nonce> {
    u32::from_str_radix(text, 16).ok().map(Nonce)
}

fn parse_ranges(text: &str) -> Option<heapless::Vec<(u32, u32), MAX_RANGES>> {
    let mut ranges = heapless::Vec::new();
    for word in text.split(',') {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        ranges.push((first.parse().ok()?, last.parse().ok()?)).ok()?;
    }
    Some(ranges)
}

pub(super) fn nonce(value: &str) -> Result<(), Refused> {
    parse_nonce(value).map(|_| ()).ok_or_else(|| Refused::because("it is a hexadecimal number of up to 8 digits"))
}

pub(super) fn run(value: &str) -> Result<(), Refused> {
    parse_ranges(value).map(|_| ()).ok_or_else(|| Refused::because("it is a list of ranges, as 0-3,7"))
}

pub(super) fn seed(value: &str) -> Result<(), Refused> {
    value.parse::<u64>().map(|_| ()).map_err(|_| Refused::because("it is a decimal number below 2^64"))
}
