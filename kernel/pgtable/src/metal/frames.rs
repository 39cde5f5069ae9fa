//! A first source of tables: the frames of a range, in order.

use granule_arch::addr::{PhysAddr, PhysRange};
use granule_arch::descriptor::Descriptor;

use crate::geometry::Geometry;
use crate::mmu::Stores;
use crate::source::TableSource;
use crate::table_list::TableList;

/// The frames of a range of memory, zeroed when they are taken. A frame given back is taken first the next time.
#[derive(Debug)]
pub struct FrameRange<'m, M: Stores> {
    mmu: &'m M,
    left: PhysRange,
    returned: TableList,
}

impl<'m, M: Stores> FrameRange<'m, M> {
    /// The whole frames in `range`.
    ///
    /// # Safety
    /// Nothing else uses the memory, and [`crate::Mmu::table`] of `mmu` reaches it, for as long as a table of it is used.
    pub const unsafe fn new(mmu: &'m M, range: PhysRange) -> Self {
        Self { mmu, left: range, returned: TableList::EMPTY }
    }

    /// The part that was never taken: for the allocator that comes next.
    pub const fn left(&self) -> PhysRange {
        self.left
    }
}

// SAFETY: a frame is in `left`, in `returned` or with its taker, by the contract of `new` alone; one from `left` is
// zeroed here, and one that came back is as it was taken, but for the link that `pop` clears.
unsafe impl<M: Stores> TableSource for FrameRange<'_, M> {
    fn take(&mut self) -> Option<PhysAddr> {
        if let Some(table) = self.returned.pop(self.mmu) {
            return Some(table);
        }
        let start = self.left.start().align_up(M::Geometry::PAGE_SIZE)?;
        self.left = PhysRange::new(start.checked_add(M::Geometry::PAGE_SIZE)?, self.left.end())?;
        self.mmu.fill(TableList::cells(self.mmu, start), Descriptor::EMPTY, 0);
        Some(start)
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        self.returned.push(self.mmu, table);
    }
}
