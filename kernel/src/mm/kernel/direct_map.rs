//! `set_direct_map_*`: single pages of the linear map, made invalid and valid by the owners of their frames.
//!
//! Linux's contracts (`arch/arm64/mm/pageattr.c`). None of these ever invalidates a TLB: the caller changes as many
//! pages as it has to, and then calls [`KernelSpace::flush_kernel_range`] once for all of them. An entry that was made
//! invalid needs no barrier either, because that invalidation begins with one; one that was made valid is there when
//! the call returns.
//!
//! A page that is read-only here is of an area, or of the image, whose owner may have made its frame executable there:
//! none of these makes it writable.
//!
//! Where permissions in the linear map are not managed ([`super::policy::Policy::direct_map`]), they succeed and do
//! nothing: it may be made of leaves that cannot be split.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::patched_branch;
use granule_pgtable::{Change, Flush, Invalidation, Lazy, PageRange, RefuseSplits, Tables};

use super::KernelSpace;
use super::owners::RangeOwnerCheck;
use super::set_memory::{SetMemoryError, Validity, page_range};
use crate::mm::layout;
use crate::platform::features::branch;

impl KernelSpace {
    /// Makes the linear address of `frame` fault, once no TLB holds it any more.
    ///
    /// # Errors
    /// [`SetMemoryError`]; the page is as it was.
    pub fn set_direct_map_invalid_noflush(&self, frame: PhysAddr) -> Result<(), SetMemoryError> {
        self.set_direct_map_page(frame, &Change::INVALID)
    }

    /// Makes the linear address of `frame` what it is by default: valid, writable and not executable.
    ///
    /// # Errors
    /// As [`Self::set_direct_map_invalid_noflush`]; [`SetMemoryError::ReadOnly`] where it is read-only, valid or not.
    /// (Linux makes it writable, which the owner of executable memory has to rule out.) The state holds for any frame
    /// whose owner changes nothing at the same time.
    pub fn set_direct_map_default_noflush(&self, frame: PhysAddr) -> Result<(), SetMemoryError> {
        self.set_direct_map_page(frame, const { &Change::VALID.of_writable() })
    }

    /// Makes the linear addresses of `pages` frames from `frame` on valid, or invalid, and leaves all else of them as
    /// it is.
    ///
    /// # Errors
    /// As [`Self::set_direct_map_invalid_noflush`]; every page is as it was.
    pub fn set_direct_map_valid_noflush(
        &self,
        frame: PhysAddr,
        pages: u64,
        validity: Validity,
    ) -> Result<(), SetMemoryError> {
        self.set_direct_map(frame, pages, &validity.change())
    }

    /// Whether the table entry of the linear address of `frame` is valid. The TLB of another CPU may still hold an
    /// older entry.
    pub fn kernel_page_present(&self, frame: PhysAddr) -> bool {
        frame.0 < layout::LINEAR_SIZE && self.tables().translate(layout::linear(frame)).is_some_and(|found| found.valid)
    }

    /// Invalidates the kernel addresses of `range` in the TLBs of all CPUs: what the `noflush` calls leave to do. The
    /// entries may have been changed by other CPUs, from which this one has learned of it in whatever way. Takes no lock;
    /// from any context.
    pub fn flush_kernel_range(&self, range: PageRange) {
        // No level: a leaf may have been split since the TLBs have read it.
        let what = Invalidation { range, tables: Tables::Kept, level: None };
        self.tlb.invalidate_for_others(&self.mmu, &what);
    }

    /// The change is one that the compiler knows; what is out of the ordinary is done out of line.
    #[inline(always)]
    fn set_direct_map_page(&self, frame: PhysAddr, change: &'static Change) -> Result<(), SetMemoryError> {
        if !patched_branch!(branch::DIRECT_MAP) {
            return Ok(());
        }
        let linear_map = PageRange::new(layout::LINEAR_BASE, layout::LINEAR_SIZE).map_err(SetMemoryError::Range)?;
        if let Some(page) = linear_map.part(VirtAddr(layout::LINEAR_BASE.0.wrapping_add(frame.0)), 1) {
            let _owner = RangeOwnerCheck::new(page);
            let (lazy, tables) = (Lazy::new(&self.mmu), self.tables());
            if let Some(ready) = tables.get().look(page, change, &mut RefuseSplits) {
                ready.commit(&lazy).defer();
                return Ok(());
            }
        }
        self.set_direct_map(frame, 1, change)
    }

    #[inline(never)]
    fn set_direct_map(&self, frame: PhysAddr, pages: u64, change: &Change) -> Result<(), SetMemoryError> {
        if !patched_branch!(branch::DIRECT_MAP) || pages == 0 {
            return Ok(());
        }
        let range = page_range(VirtAddr(layout::LINEAR_BASE.0.wrapping_add(frame.0)), pages)?;
        if !(layout::is_linear(range.start()) && layout::is_linear(range.last())) {
            // The kernel's image and areas lie after the linear map.
            return Err(SetMemoryError::Hole(range.start()));
        }
        let lazy = Lazy::new(&self.mmu);
        self.update_linear(&lazy, range, *change).map(Flush::defer)
    }
}
