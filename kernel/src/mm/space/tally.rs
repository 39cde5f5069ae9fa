//! Frames, counted once however many spaces use them.

use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering};

/// Frames that a space uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Footprint {
    /// Mapped pages, shared ones included, and all of the memory files and the shared anonymous memory that it maps.
    pub pages: usize,
    /// Its tables, the root counted, and those of such memory.
    pub tables: usize,
    /// Records of its areas, rounded up.
    pub areas: usize,
}

impl Footprint {
    /// All of them.
    pub const fn frames(&self) -> usize {
        self.pages + self.tables + self.areas
    }
}

impl AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.tables += other.tables;
        self.areas += other.areas;
    }
}

/// A round in which each thing is met once, however often it is come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally(u64);

impl Tally {
    /// A round in which nothing was met yet.
    pub fn begin() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// The last round in which its owner was met.
#[derive(Debug, Default)]
pub struct LastTally(AtomicU64);

/// Whether something is met for the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Met {
    /// It is.
    First,
    /// The round has met it before.
    Again,
    /// A round that began later has met it in between.
    Unknown,
}

impl LastTally {
    /// Meets the owner in `tally`.
    pub fn meet(&self, tally: Tally) -> Met {
        match self.0.swap(tally.0, Ordering::Relaxed) {
            last if last < tally.0 => Met::First,
            last if last == tally.0 => Met::Again,
            _ => Met::Unknown,
        }
    }
}
