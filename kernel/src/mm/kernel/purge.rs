//! Areas that are freed many at a time, with one invalidation for all.
//!
//! `vfree` of an area that is writable and not executable makes its entries invalid, and leaves the rest for later: no CPU
//! walks to the pages any more, but TLBs may still hold them. So the frames stay taken, and the addresses too, until one
//! invalidation of all areas that wait is complete ([`KernelSpace::purge`]). The frames of each are written down in its own
//! entries until then, as for [`super::vmalloc`] at any time.
//!
//! ```text
//!     vfree     entries invalid (and without VM_ALLOC: no change finds them); into the list of the window's part
//!     purge     take the list; DSB ISH; TLBI from the first area to the last; DSB ISH
//!               then for each: empty the entries, free the frames, give the addresses back
//! ```
//!
//! A part of the window is purged when more than [`Policy::lazy_pages`](super::policy::Policy::lazy_pages) pages wait
//! there, by the `vfree` that finds it so. All of them are where a request for frames or for addresses would fail, and by
//! the thread that makes room where frames are few. Linux has the same, and its limit for all CPUs
//! (`__purge_vmap_area_lazy`). Areas of which a page is read-only do not wait: their alias is read-only too, and what was
//! code must be gone before it becomes writable.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::bits;
use granule_arch::{interrupts, wait};
use granule_pgtable::{Leaf, PageRange};

use super::KernelSpace;
use super::area::{FreeingArea, UnmappedAreas};
use super::owners::RangeOwnerCheck;
use crate::lab;
use crate::smp::Cpu;

impl KernelSpace {
    /// Unmaps an area, which is all of `range`, and leaves the rest for [`Self::purge`]. It is given back, with nothing
    /// changed, where that is not to be: it is larger than what may wait, or a page is read-only.
    #[inline(never)]
    pub(super) fn free_lazily(&self, cpu: &Cpu, range: PageRange, area: FreeingArea) -> Option<FreeingArea> {
        let limit = self.policy().lazy_pages;
        if range.pages() as u64 > limit {
            return Some(area);
        }
        {
            let _owner = RangeOwnerCheck::new(range);
            let is_unmapped = self.tables().get().unmap_lazily(range, bits::RDONLY, bits::VM_ALLOC);
            if is_unmapped != Ok(true) {
                return Some(area);
            }
        }
        // Interrupts would wait for all that is freed: where they are masked, a later call does it.
        if u64::from(self.areas.add_unmapped(area)) > limit && interrupts::state().irqs_enabled() {
            self.purge_part(cpu, range.start());
        }
        None
    }

    /// Invalidates all areas that were freed and wait for it, and gives their frames and addresses back. Returns how many
    /// frames that were. On return no CPU can reach an area that was freed before, also where another CPU was doing this
    /// (which is not waited for with interrupts masked).
    ///
    /// Not from interrupt handlers: it takes locks of areas.
    pub fn purge(&self, cpu: &Cpu) -> usize {
        self.areas.parts(cpu).map(|part| self.purge_part(cpu, part)).sum()
    }

    /// The same where programs are short of frames: those on other CPUs find these too.
    pub fn purge_for_programs(&self, cpu: &Cpu) {
        if self.purge(cpu) != 0 {
            self.frames.drain_cpu(cpu);
        }
    }

    /// [`Self::purge`] of the part that `address` is in.
    #[cold]
    #[inline(never)]
    fn purge_part(&self, cpu: &Cpu, address: VirtAddr) -> usize {
        loop {
            if let Some(unmapped) = self.areas.begin_purge(address) {
                let freed = self.finish(cpu, unmapped);
                self.areas.end_purge(address);
                return freed;
            }
            if !interrupts::state().irqs_enabled() {
                return 0;
            }
            wait::relax();
        }
    }

    /// Pages of areas that were freed and wait for their invalidation.
    pub fn unmapped_pages(&self) -> u64 {
        self.areas.unmapped_pages()
    }

    /// Times that areas were purged.
    pub fn purges(&self) -> u64 {
        self.areas.purges()
    }

    /// The invalidation, and then the rest.
    fn finish(&self, cpu: &Cpu, mut unmapped: UnmappedAreas) -> usize {
        let Some(range) = unmapped.range() else { return 0 };
        // Other CPUs may have unmapped some.
        if !lab::is_on!(PURGE_NO_FLUSH) {
            self.flush_kernel_range(range);
        }
        let (mut frames, mut freed) = (self.frames.freeing(cpu), 0);
        while let Some(freeing) = unmapped.pop() {
            let Ok(range) = PageRange::from_pages(freeing.start(), freeing.pages() as usize) else { continue };
            {
                let _owner = RangeOwnerCheck::new(range);
                let released: &mut dyn FnMut(Leaf) = &mut |leaf| frames.add_run(leaf.physical, leaf.size);
                self.tables().get().release_unmapped(range, released);
            }
            freed += range.pages();
            self.areas.remove_seldom(freeing);
            self.reclaim_after(cpu, range);
        }
        freed
    }
}
