//! Pages of the kernel in a program's space, for the devices that share it: rings, and where messages are written to.
//!
//! A device that shares a program's tables has nothing else to find memory by. What its driver needs it to find lies
//! above all that programs may map, at addresses that no program can have, and is none of the program's business: EL0
//! has no access, no area shows it, a fork does not copy it, and its frames are not the space's to count. They belong
//! to one device at a time: a second one that used the same tables would reach the first one's rings.
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
use super::{PAGE, Space};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::smp::Cpu;

/// The first address that programs cannot have.
pub const RESERVED_START: VirtAddr = VirtAddr(RESERVED_END.0 - (2 << 20));
/// The end of the lower half.
pub const RESERVED_END: VirtAddr = VirtAddr(1 << 48);

impl Space {
    /// Takes the reserved pages for a device, until [`Self::disclaim_reserved`]; `false` where another has them.
    pub fn claim_reserved(&self) -> bool {
        !self.has_device.swap(true, Ordering::Acquire)
    }

    /// Ends [`Self::claim_reserved`]: the device shows nothing there any more and does not use the tables.
    pub fn disclaim_reserved(&self) {
        self.has_device.store(false, Ordering::Release);
    }

    /// Runs `work` while no change of the tables is announced and not yet over: a subscriber that joins in it gets
    /// every change whole. (Of an upgrade the event comes later than the change, and is whole by itself.)
    ///
    /// Sleeps: not from interrupts.
    pub fn between_changes<T>(&self, work: impl FnOnce() -> T) -> T {
        let _areas = self.areas.write();
        work()
    }

    /// Shows `frame` at `page`, a reserved one that shows nothing, to the kernel and to devices. The caller keeps the
    /// frame until [`Self::hide_reserved`] or the end of the space.
    ///
    /// Sleeps: not from interrupts.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing is shown.
    pub fn show_reserved(
        &self,
        cpu: &Cpu,
        page: VirtAddr,
        frame: PhysAddr,
        memory: MemoryType,
    ) -> Result<(), OutOfMemory> {
        assert!(page >= RESERVED_START && page < RESERVED_END && page.is_aligned(PAGE), "{page} is not reserved");
        // For writing: tables are unlinked where no page is left.
        let _areas = self.areas.write();
        let mmu = self.mmu();
        let ((table, cell), ()) =
            self.page_tables().ensure_cell::<_, OutOfMemory>(page, &mut self.table_source(cpu), || Ok(()))?;
        {
            let locked = self.lock_table(table);
            assert!(mmu.load(cell) == Descriptor::EMPTY, "{page} shows something already");
            locked.note_used(page);
            mmu.store(cell, Descriptor::page(frame, Attributes::reserved(memory)).special());
        }
        // A device that is given the page finds it: it takes no fault and tries again.
        mmu.dsb_ishst();
        self.reserved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ends [`Self::show_reserved`]. On return the frame cannot be reached by this address.
    pub fn hide_reserved(&self, cpu: &Cpu, page: VirtAddr) {
        let mut areas = self.areas.write();
        let range = pages(page, page + PAGE);
        let _change = self.notifiers.start(Range::page(Event::Unmap, page));
        let mut gather = Gather::without_faults(self, cpu, &mut areas);
        self.zap(&mut gather, range);
        if self.reserved.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.free_tables(&mut gather, &areas, range);
        }
    }

    /// From where to where there is no leaf around `range`, in which there is none either.
    pub(super) fn around(&self, areas: &Areas, range: PageRange) -> (VirtAddr, VirtAddr) {
        let (below, above) = areas.around(range);
        // Reserved pages are of no area: the tables above them all are needed while there is one.
        let unused = above >= RESERVED_START && self.reserved.load(Ordering::Relaxed) == 0;
        (below, if unused { RESERVED_END } else { above })
    }
}
