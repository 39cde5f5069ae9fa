//! The memory that would be freed if a space ended, but for what others have of it as well.

use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::PAGE_SIZE;
use granule_pgtable::CellsOrBlock;

use super::Space;
use super::area::Area;
use super::block::{is_block, pages_of_block};
use crate::sched::relax;

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

impl Space {
    /// Counts the frames of the space, and in `tally` what it maps that others may have as well. Visits every entry and
    /// sleeps: other threads may change what was counted already.
    pub fn footprint(&self, tally: Tally) -> Footprint {
        let mut sum = Footprint { tables: self.table_frames(), ..Footprint::default() };
        let mut count = 0;
        self.for_each_area(|area| {
            relax();
            count += 1;
            // Pages of the initrd's files can be had again.
            let memory = area.object().filter(|object| !object.can_be_had_again());
            if let Some(object) = memory {
                sum += object.footprint(tally);
            }
            if memory.is_none() || !area.is_shared() {
                sum.pages += self.own_pages(area);
            }
        });
        sum.areas = (count * size_of::<Area>()).div_ceil(PAGE_SIZE);
        sum
    }

    /// Pages that are mapped in `area`, in entries of tables and in blocks.
    pub(super) fn own_pages(&self, area: &Area) -> usize {
        let mut pages = 0;
        let mut walk = self.page_tables().walk_cells(area.range());
        while let Some(met) = walk.next() {
            match met {
                CellsOrBlock::Cells(found) => self.for_each_locked(&found, |seen| {
                    let entry = seen.descriptor();
                    pages += usize::from(entry.is_present() && !entry.is_special());
                }),
                CellsOrBlock::Block(at) => {
                    let visited = self.look_at_block(at, |seen| {
                        // Not the marker of one.
                        pages += if is_block(seen.descriptor()) { pages_of_block(area.range(), at) } else { 0 };
                    });
                    walk.go_on(at, visited);
                }
            }
            relax();
        }
        pages
    }
}
