//! Pages of the kernel in a program's space, for the devices that share it: rings, and the targets of their messages.
//!
//! A device that shares a program's tables has no other translation. The pages that its driver needs lie above all that
//! programs may map, so no program can have their addresses. EL0 has no access to them, no area has them, a fork does
//! not copy them, and the space does not count their frames. They belong to one device at a time: a second device with
//! the same tables would reach the rings of the first.
//!
//! ```text
//! USER_END        0xffff_ffe0_0000   ┐ what one last-level table translates: pages of the kernel
//! RESERVED_END  0x1_0000_0000_0000   ┘
//! ```

use core::sync::atomic::Ordering;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType};
use granule_pgtable::{Mmu, PageRange};

use super::area::Areas;
use super::gather::{Gather, pages};
use super::zap::ZapFlags;
use super::{PAGE, Space};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::smp::Cpu;

/// The first address that programs cannot map.
pub const RESERVED_START: VirtAddr = VirtAddr(RESERVED_END.0 - (2 << 20));
/// The end of the lower half.
pub const RESERVED_END: VirtAddr = VirtAddr(1 << 48);

impl Space {
    /// Claims the reserved pages for a device, until [`Self::disclaim_reserved`]; `false` where another device has
    /// them.
    pub fn claim_reserved(&self) -> bool {
        !self.has_device.swap(true, Ordering::Acquire)
    }

    /// Ends [`Self::claim_reserved`]: the device has no pages there any more and does not use the tables.
    pub fn disclaim_reserved(&self) {
        self.has_device.store(false, Ordering::Release);
    }

    /// Runs `work` while no change of the tables is under way: a subscriber that joins in it gets both events of every
    /// change. (An upgrade is one event, after the change.)
    ///
    /// Sleeps: not from interrupts.
    pub fn between_changes<T>(&self, work: impl FnOnce() -> T) -> T {
        let _areas = self.write_all_areas();
        work()
    }

    /// Maps `frame` at `page`, a reserved page that is not mapped, for the kernel and devices. The caller keeps the
    /// frame until [`Self::hide_reserved`] or the end of the space.
    ///
    /// Sleeps: not from interrupts.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing is mapped.
    pub fn show_reserved(
        &self,
        cpu: &Cpu,
        page: VirtAddr,
        frame: PhysAddr,
        memory: MemoryType,
    ) -> Result<(), OutOfMemory> {
        assert!(page >= RESERVED_START && page < RESERVED_END && page.is_aligned(PAGE), "{page} is not reserved");
        // For writing: empty tables are unlinked by other calls.
        let _areas = self.write_areas(pages(page, page + PAGE));
        let mmu = self.mmu();
        let ((table, cell), ()) =
            self.page_tables().ensure_cell::<_, OutOfMemory>(page, &mut self.table_source(cpu), || Ok(()))?;
        {
            let locked = self.lock_table(table);
            assert!(mmu.load(cell) == Descriptor::EMPTY, "{page} shows something already");
            locked.note_used(page);
            mmu.store(cell, Descriptor::page(frame, Attributes::reserved(memory)).special());
        }
        // The entry is visible before the device gets the address: it takes no fault.
        mmu.dsb_ishst();
        self.reserved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ends [`Self::show_reserved`]. On return no TLB has the translation.
    pub fn hide_reserved(&self, cpu: &Cpu, page: VirtAddr) {
        let range = pages(page, page + PAGE);
        let mut areas = self.write_areas(range);
        let _change = self.notifiers.start(Range::page(Event::Unmap, page));
        let mut gather = Gather::without_faults(self, cpu, &mut areas);
        self.zap(&mut gather, range, ZapFlags::UNMAP);
        if self.reserved.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.free_tables(&mut gather, &areas, range);
        }
    }

    /// The free addresses around `range`, which has no leaf itself: no leaf is between the two.
    pub(super) fn around(&self, areas: &Areas, range: PageRange) -> (VirtAddr, VirtAddr) {
        let (below, above) = areas.around(range);
        // No area has the reserved pages, and the tables above are in use while one is mapped.
        let unused = above >= RESERVED_START && self.reserved.load(Ordering::Relaxed) == 0;
        (below, if unused { RESERVED_END } else { above })
    }
}
