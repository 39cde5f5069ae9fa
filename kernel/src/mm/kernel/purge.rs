//! Areas that are freed many at a time, with one invalidation for all.
//!
//! `vfree` of an area that is writable and not executable makes its entries invalid, and leaves the rest for later: TLBs may
//! still hold its pages. So the frames stay taken, and the addresses too, until one invalidation of all areas that wait is
//! complete ([`KernelSpace::purge`]). The frames of each are written down in its own entries until then, as for
//! [`super::vmalloc`] at any time.
//!
//! ```text
//!     vfree     entries invalid (and without VM_ALLOC: no change finds them); into the list of the window's part
//!     purge     take the list; DSB ISH; TLBI from the first area to the last; DSB ISH; ISB
//!               then for each: empty the entries, free the frames, give the addresses back
//! ```
//!
//! A part of the window is purged when more than [`Policy::lazy_pages`](super::policy::Policy::lazy_pages) pages wait
//! there, by the `vfree` that finds it so; all parts are where `vmalloc` finds no frames or no addresses, and by the
//! threads that make room for programs. Nothing waits where hardly more than that is free: for tables of splits, the heap
//! and others that allocate where no area can be purged. With interrupts masked none is purged, for they would wait for
//! all that is freed.
//!
//! In Linux only the addresses of an area wait, and its pages are freed at once (`__purge_vmap_area_lazy`): a stale access
//! there reaches their next owner. So `set_memory_*` begins with `vm_unmap_aliases` there, and with nothing here. An area
//! of which a page is read-only does not wait, as with Linux's `VM_FLUSH_RESET_PERMS`: its alias is read-only too, and what
//! was code must be gone before it becomes writable.
//!
//! `kernel/loom` compiles this file, with the window and its areas.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;
use granule_arch::interrupts;
use granule_pgtable::PageRange;

use super::KernelSpace;
use super::area::{FreeingArea, UnmappedAreas};
use super::owners::RangeOwnerCheck;
use super::vmalloc::add_to;
use crate::lab;
use crate::smp::Cpu;
use crate::sync::spin;

impl KernelSpace {
    /// Unmaps an area, which is all of `range`, and leaves the rest for [`Self::purge`]. It is given back, with nothing
    /// changed, where it is larger than what may wait, frames are few, or a page is read-only.
    #[inline(never)]
    pub(super) fn free_lazily(&self, cpu: &Cpu, range: PageRange, area: FreeingArea) -> Option<FreeingArea> {
        let (limit, frames) = (self.policy().lazy_pages, self.frames);
        if range.pages() as u64 > limit || !frames.has_room_for(limit as usize + frames.high_watermark()) {
            return Some(area);
        }
        {
            let _owner = RangeOwnerCheck::new(range);
            let is_unmapped = self.tables().get().unmap_lazily(range, bits::RDONLY, bits::VM_ALLOC);
            if is_unmapped != Ok(true) {
                return Some(area);
            }
        }
        if u64::from(self.areas.add_unmapped(area)) > limit && interrupts::state().irqs_enabled() {
            // Where another CPU purges the part now, the next call does what is left.
            self.try_purge_part(cpu, range.start());
        }
        None
    }

    /// Invalidates all areas that were freed and wait for it, and gives their frames and addresses back. Returns how many
    /// frames this call freed. On return no CPU can reach an area that was freed before, and what it had is free, also where
    /// another CPU does this at the same time: then this one waits for it.
    ///
    /// Does nothing with interrupts masked. Not from interrupt handlers, inside a walk ([`Self::tables`]) or with a lock
    /// held: it takes locks of areas.
    #[cold]
    #[inline(never)]
    pub fn purge(&self, cpu: &Cpu) -> usize {
        if !interrupts::state().irqs_enabled() {
            return 0;
        }
        let purge = |part| {
            loop {
                if let Some(freed) = self.try_purge_part(cpu, part) {
                    break freed;
                }
                spin();
            }
        };
        self.areas.parts(cpu).map(purge).sum()
    }

    /// [`Self::purge`] of the part that `address` is in; `None` where another CPU does that.
    #[cold]
    #[inline(never)]
    fn try_purge_part(&self, cpu: &Cpu, address: VirtAddr) -> Option<usize> {
        let unmapped = self.areas.begin_purge(address)?;
        let Some(range) = unmapped.range() else { return Some(0) };
        let freed = self.finish(cpu, range, unmapped);
        self.areas.end_purge(address);
        Some(freed)
    }

    /// Pages of areas that were freed and wait for their invalidation.
    pub fn unmapped_pages(&self) -> u64 {
        self.areas.unmapped_pages()
    }

    /// Times that areas were purged.
    pub fn purges(&self) -> u64 {
        self.areas.purges()
    }

    /// The invalidation of `range`, and then the rest.
    #[allow(unsafe_code, reason = "releases what it has invalidated")]
    fn finish(&self, cpu: &Cpu, range: PageRange, mut unmapped: UnmappedAreas) -> usize {
        // Other CPUs may have unmapped some.
        if !lab::is_on!(PURGE_NO_FLUSH) {
            self.flush_kernel_range(range);
        }
        let (mut frames, mut freed) = (self.frames.freeing(cpu), 0);
        while let Some(freeing) = unmapped.pop() {
            let Ok(range) = PageRange::from_pages(freeing.start(), freeing.pages() as usize) else { continue };
            {
                let _owner = RangeOwnerCheck::new(range);
                // SAFETY: each area in the list was unmapped once, before the invalidation, and keeps its addresses until
                // it is removed below; or a lab shows what is lost.
                unsafe { self.tables().get().release_unmapped(range, add_to(Some(&mut frames))) };
            }
            freed += range.pages();
            self.areas.remove_seldom(freeing);
            self.reclaim_after(cpu, range);
        }
        freed
    }
}
