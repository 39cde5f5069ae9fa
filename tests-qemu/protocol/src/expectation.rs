//! The steps of a guest that concern translations of a device: lines of a test's output, which the runner compares
//! with QEMU's trace of the SMMU.
//!
//! ```text
//! expectation: bound 0x10
//! expectation: reached 0x10 read 0x400000 0x4c1e000
//! expectation: changed 0x400000 0x403000
//! expectation: refused 0x10 write 0x400000
//! ```

use core::fmt;

/// The beginning of a line with an expectation.
const MARKER: &str = "expectation: ";

/// Which way a device accessed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It read.
    Read,
    /// It wrote.
    Write,
}

/// One step of a test, in the order in which they were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expectation {
    /// The stream was bound to a space: what the SMMU has cached of its configuration is to be forgotten.
    Bound {
        /// The device, as the SMMU knows it.
        stream: u32,
    },
    /// A device accessed a page and got there.
    Reached {
        /// The device.
        stream: u32,
        /// How.
        access: Access,
        /// The page, as the device knows it.
        page: u64,
        /// The page's address by the CPU's tables.
        physical: u64,
    },
    /// A device accessed a page, and the SMMU rejected it.
    Refused {
        /// The device.
        stream: u32,
        /// How.
        access: Access,
        /// The page.
        page: u64,
    },
    /// Entries of these pages were changed such that what is cached of them must be forgotten.
    Changed {
        /// The first page.
        start: u64,
        /// After the last page.
        end: u64,
    },
    /// The stream is bound no longer.
    Unbound {
        /// The device.
        stream: u32,
    },
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// The line.
impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARKER)?;
        match self {
            Self::Bound { stream } => write!(f, "bound {stream:#x}"),
            Self::Reached { stream, access, page, physical } => {
                write!(f, "reached {stream:#x} {access} {page:#x} {physical:#x}")
            }
            Self::Refused { stream, access, page } => write!(f, "refused {stream:#x} {access} {page:#x}"),
            Self::Changed { start, end } => write!(f, "changed {start:#x} {end:#x}"),
            Self::Unbound { stream } => write!(f, "unbound {stream:#x}"),
        }
    }
}

impl Expectation {
    /// Reads a line; `None` where it is another line, `Some(None)` where it is one and cannot be read.
    pub fn read(line: &str) -> Option<Option<Self>> {
        let words = line.strip_prefix(MARKER)?;
        Some(Self::of(&mut words.split(' ')))
    }

    fn of<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let what = words.next()?;
        let expectation = match what {
            "bound" => Self::Bound { stream: stream(words)? },
            "unbound" => Self::Unbound { stream: stream(words)? },
            "reached" => {
                let (stream, access) = (stream(words)?, access(words)?);
                Self::Reached { stream, access, page: number(words)?, physical: number(words)? }
            }
            "refused" => Self::Refused { stream: stream(words)?, access: access(words)?, page: number(words)? },
            "changed" => Self::Changed { start: number(words)?, end: number(words)? },
            _ => return None,
        };
        words.next().is_none().then_some(expectation)
    }
}

fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u64> {
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

fn stream<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u32> {
    number(words)?.try_into().ok()
}

fn access<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Access> {
    match words.next()? {
        "read" => Some(Access::Read),
        "write" => Some(Access::Write),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::{Access, Expectation};

    #[test]
    fn what_is_written_is_read() {
        let (stream, page, physical) = (0x18, 0x40_0000, 0x4c1_e000);
        for expectation in [
            Expectation::Bound { stream },
            Expectation::Reached { stream, access: Access::Read, page, physical },
            Expectation::Refused { stream, access: Access::Write, page },
            Expectation::Changed { start: page, end: page + 0x3000 },
            Expectation::Unbound { stream },
        ] {
            assert_eq!(Expectation::read(&expectation.to_string()), Some(Some(expectation)));
        }
    }

    #[test]
    fn other_lines_are_none_and_damaged_ones_are_noticed() {
        assert_eq!(Expectation::read("reached the end"), None);
        for line in [
            "expectation: bound",
            "expectation: bound 12",
            "expectation: bound 0x1 0x2",
            "expectation: sold 0x1",
            "expectation: refused 0x1 0x2",
        ] {
            assert_eq!(Expectation::read(line), Some(None), "{line}");
        }
    }
}
