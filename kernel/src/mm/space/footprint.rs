//! The memory that would be freed if a space ended, except what it shares.

use granule_arch::addr::PAGE_SIZE;
use granule_pgtable::CellsOrBlock;

use super::Space;
use super::area::Area;
use super::block::{is_block, pages_of_block};
use crate::sched::relax;

/// Frames that a space uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// Mapped pages, shared ones included, and those of its shared anonymous memory.
    pub pages: usize,
    /// Its tables, the root counted.
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

impl Space {
    /// Counts the frames of the space. Visits every entry and sleeps: other threads may change what was counted
    /// already.
    pub fn footprint(&self) -> Footprint {
        let (mut pages, mut count) = (0, 0);
        self.for_each_area(|area| {
            relax();
            count += 1;
            // What a file has beyond its mappings is no program's, as on Linux.
            pages += match area.object().filter(|object| !object.is_file()) {
                None => self.own_pages(area),
                Some(object) => object.pages_in(area.page_at(area.start()), area.pages()),
            };
        });
        let areas = (count * size_of::<Area>()).div_ceil(PAGE_SIZE);
        Footprint { pages, tables: self.table_frames(), areas }
    }

    fn own_pages(&self, area: &Area) -> usize {
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
