//! Pages of the kernel in a program's space, for the devices that share it: rings, and the targets of their messages.
//!
//! A device that shares a program's tables has no other translation. The pages that its driver needs lie above all that
//! programs may map, so no program can have their addresses. EL0 has no access to them, no area has them, a fork does
//! not copy them, and the space does not count their frames. They belong to one device at a time: a second device with
//! the same tables would reach the rings of the first.
//!
//! All of it happens between two changes of a space that has not ended ([`Space::between_changes`]): in one that has,
//! no page is shown, and none is left to be hidden.
//!
//! ```text
//! USER_END        0xffff_ffe0_0000   ┐ what one last-level table translates: pages of the kernel
//! RESERVED_END  0x1_0000_0000_0000   ┘
//! ```

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType};
use granule_pgtable::{Mmu, PageRange, Stores};

use super::address_space::Space;
use super::area::tree::Areas;
use super::gather::Gather;
use super::range::{RESERVED_END, RESERVED_START, pages};
use super::zap::ZapFlags;
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::sched::WriteGuard;
use crate::smp::Cpu;

/// The reserved pages of a space, between two changes of it.
///
/// A value proves: the space has not ended, and no change by its areas is under way; neither begins before the value is
/// dropped. A subscriber that joins the space and is put into force in that time has its [release] still to come.
///
/// [release]: crate::mm::notifier::Subscriber::release
pub struct ReservedPages<'s> {
    space: &'s Space,
    areas: WriteGuard<'s, Areas>,
}

impl Space {
    /// Runs `work` between two changes of the space; `None` where it has ended. A subscriber that joins in it gets both
    /// events of every change. (An upgrade is one event, after the change. A change by an object's reverse map holds no
    /// areas: of one under way the subscriber gets the invalidation, which is all that such a change owes.)
    ///
    /// Sleeps: not from interrupts.
    pub fn between_changes<T>(&self, work: impl FnOnce(&mut ReservedPages<'_>) -> T) -> Option<T> {
        let mut pages = ReservedPages { space: self, areas: self.write_all_areas() };
        // Current: the end begins with the areas locked.
        (!self.notifiers.is_released()).then(|| work(&mut pages))
    }
}

impl ReservedPages<'_> {
    /// The root of the tables, for a walker that [`Space::release`] will take from them.
    pub fn root(&self) -> PhysAddr {
        self.space.root()
    }

    /// Claims the pages for a device, until [`Self::disclaim`]; `false` where another device has them.
    pub fn claim(&mut self) -> bool {
        // Relaxed: the areas' lock orders the claims.
        !self.space.has_device.swap(true, Ordering::Relaxed)
    }

    /// Ends [`Self::claim`]: the device has no pages there any more and does not use the tables.
    pub fn disclaim(&mut self) {
        self.space.has_device.store(false, Ordering::Relaxed);
    }

    /// Maps `frame` at `page`, a reserved page that is not mapped, for the kernel and devices. The caller keeps the
    /// frame until [`Self::hide`] or the end of the space.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing is mapped.
    pub fn show(&mut self, cpu: &Cpu, page: VirtAddr, frame: PhysAddr, memory: MemoryType) -> Result<(), OutOfMemory> {
        assert!(page >= RESERVED_START && page < RESERVED_END && page.is_aligned(PAGE), "{page} is not reserved");
        let (space, mmu) = (self.space, self.space.mmu());
        let ((table, cell), ()) =
            space.page_tables().ensure_cell::<_, OutOfMemory>(page, &mut space.table_source(cpu), || Ok(()))?;
        {
            let locked = space.lock_table(table);
            assert!(mmu.load(cell) == Descriptor::EMPTY, "{page} shows something already");
            locked.note_used(page);
            mmu.store(cell, Descriptor::page(frame, Attributes::reserved(memory)).special());
        }
        // The entry is visible before the device gets the address: it takes no fault.
        mmu.dsb_ishst();
        space.reserved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ends [`Self::show`]. On return no TLB has the translation.
    pub fn hide(&mut self, cpu: &Cpu, page: VirtAddr) {
        let (space, range) = (self.space, pages(page, page + PAGE));
        let _change = space.notifiers.start(Range::page(Event::Unmap, page));
        let mut gather = Gather::without_faults(space, cpu, &mut self.areas);
        space.zap(&mut gather, range, ZapFlags::UNMAP);
        if space.reserved.fetch_sub(1, Ordering::Relaxed) == 1 {
            space.free_tables(&mut gather, &self.areas, range);
        }
    }
}

impl Space {
    /// The free addresses around `range`, which has no leaf itself: no leaf is between the two.
    pub(super) fn around(&self, areas: &Areas, range: PageRange) -> (VirtAddr, VirtAddr) {
        let (below, above) = areas.around(range);
        // No area has the reserved pages, and the tables above are in use while one is mapped.
        let unused = above >= RESERVED_START && self.reserved.load(Ordering::Relaxed) == 0;
        (below, if unused { RESERVED_END } else { above })
    }
}
