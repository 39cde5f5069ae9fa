//! What a change of entries owes to the TLBs of the CPUs and to those of devices.

use super::Space;
use crate::mm::tlb::KernelTlb;
use granule_arch::addr::VirtAddr;
use granule_pgtable::{Invalidation, Mmu, PageRange, Tables, Tlb};

impl Space {
    pub(super) fn invalidate(&self, range: PageRange, tables: Tables) {
        KernelTlb.invalidate(self.mmu(), [Invalidation { range, tables, level: None }].into_iter());
    }
    pub(super) fn invalidate_page(&self, page: VirtAddr) {
        self.invalidate(PageRange::from_pages(page, 1).expect("a page"), Tables::Kept);
    }
    pub(super) fn invalidate_all(&self) {
        let mmu = self.mmu();
        mmu.dsb_ishst();
        mmu.tlbi(granule_arch::tlbi::Instruction::Vmalle1is);
        mmu.dsb_ish();
    }
    pub(super) fn tell_release(&self) {}

    pub(super) fn invalidate_upgraded(&self, page: VirtAddr) {
        self.invalidate_page(page);
    }
    pub(super) fn fix_spurious(&self, page: VirtAddr) {
        self.invalidate_page(page);
    }
    pub(super) fn tell_upgrade(&self, _page: VirtAddr) {}
}
