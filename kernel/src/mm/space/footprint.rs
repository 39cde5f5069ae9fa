//! How much memory a space keeps from others: what would come back if it ended, but for what it shares.

use granule_arch::addr::PAGE_SIZE;
use granule_pgtable::Mmu;

use super::area::{Area, Backing};
use super::{PAGE, Space};
use crate::sched::relax;

/// Frames that a space keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// Pages that it shows, shared ones included, and those of shared objects that it may.
    pub pages: usize,
    /// Its tables, the root counted.
    pub tables: usize,
    /// What its areas take, rounded up.
    pub areas: usize,
}

impl Footprint {
    /// All of them.
    pub const fn frames(&self) -> usize {
        self.pages + self.tables + self.areas
    }
}

impl Space {
    /// How much memory the space keeps. Looks at every entry, and sleeps: other threads may change what was counted.
    pub fn footprint(&self) -> Footprint {
        let areas = self.areas.read();
        let (mut pages, mut count) = (0, 0);
        for area in areas.iter() {
            count += 1;
            relax();
            pages += match area.backing() {
                Backing::Private => self.own_pages(area),
                Backing::Shared { object, first_page } => object.pages_in(first_page, area.size() / PAGE),
            };
        }
        Footprint { pages, tables: self.table_frames(), areas: (count * size_of::<Area>()).div_ceil(PAGE_SIZE) }
    }

    fn own_pages(&self, area: &Area) -> usize {
        let mut pages = 0;
        self.page_tables().for_each_cells(area.range(), |found| {
            let entries = found.cells.iter().map(|cell| self.mmu().load(cell));
            pages += entries.filter(|entry| entry.is_present() && !entry.is_special()).count();
            relax();
        });
        pages
    }
}
