//! The memory that would be freed if a space ended, but for what others have of it as well.

use granule_arch::addr::PAGE_SIZE;

use super::address_space::Space;
use super::area::Area;
use super::tally::{Footprint, Tally};
use crate::sched::relax;

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
        self.look_at_each(area.range(), |seen| {
            if seen.descriptor().is_present() && !seen.descriptor().is_special() {
                pages += seen.pages;
            }
        });
        pages
    }
}
