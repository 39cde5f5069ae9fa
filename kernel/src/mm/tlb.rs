//! TLB maintenance, all of it. The caller passes what changed in a table; [`metal`] has the TLBIs for it, and what comes
//! around them is decided here.

pub mod user;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::patched_branch;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_pgtable::{Granule4K, Invalidation, Mmu, Tlb, metal};

use crate::lab;
use crate::platform::features::branch;

/// The TLBs of all CPUs, for kernel addresses.
#[derive(Clone, Copy, Debug)]
pub struct KernelTlb;

impl<M: Mmu<Geometry = Granule4K>> Tlb<M> for KernelTlb {
    /// The sequence of [`Tlb::invalidate`], for the reasons given there, step by step so that the lab can take one
    /// away.
    #[inline(always)]
    fn invalidate(&self, mmu: &M, whats: impl Iterator<Item = Invalidation>) {
        begin(mmu);
        for what in whats {
            self.issue(mmu, &what);
        }
        end(mmu);
    }

    #[inline(always)]
    fn invalidate_with_pages(
        &self,
        mmu: &M,
        whats: impl Iterator<Item = Invalidation>,
        pages: impl Iterator<Item = VirtAddr>,
    ) {
        begin(mmu);
        for what in whats {
            self.issue(mmu, &what);
        }
        // One switch of the lab for all of them, and then nothing but their addresses.
        if lab::is_on!(ANY) {
            pages.for_each(|page| self.issue(mmu, &Invalidation::page(page)));
        } else {
            pages.for_each(|page| mmu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None))));
        }
        end(mmu);
    }

    #[inline(always)]
    fn issue(&self, mmu: &M, what: &Invalidation) {
        if lab::is_on!(ANY) && issued_in_the_lab(mmu, *what) {
            return;
        }
        metal::KernelTlb.issue(mmu, what);
    }
}

impl KernelTlb {
    /// [`Tlb::invalidate`] of what another CPU may have changed.
    ///
    /// DSB ISHST orders this CPU's stores alone, and not the load by which it learned of the change: where nothing
    /// depends on that load, a walk after the TLBI could still read the old entry. So the first barrier is a DSB ISH.
    #[inline(always)]
    pub fn invalidate_for_others<M: Mmu<Geometry = Granule4K>>(&self, mmu: &M, what: &Invalidation) {
        if !lab::is_on!(SKIP_DSB_BEFORE_TLBI) {
            mmu.dsb_ish();
        }
        self.issue(mmu, what);
        end(mmu);
    }
}

#[inline(always)]
fn begin<M: Mmu>(mmu: &M) {
    if !lab::is_on!(SKIP_DSB_BEFORE_TLBI) {
        mmu.dsb_ishst();
    }
}

#[inline(always)]
fn end<M: Mmu>(mmu: &M) {
    if lab::is_on!(ANY) || patched_branch!(branch::REPEAT_TLBI) {
        return end_otherwise(mmu);
    }
    mmu.dsb_ish();
    mmu.isb();
}

/// The end of the sequence where a switch of the lab takes a step of it away, or an erratum asks for one more.
#[cold]
#[inline(never)]
fn end_otherwise<M: Mmu>(mmu: &M) {
    if !lab::is_on!(SKIP_DSB_AFTER_TLBI) {
        mmu.dsb_ish();
    }
    if patched_branch!(branch::REPEAT_TLBI) {
        // The address does not matter: completion of this TLBI implies that of the first ones.
        mmu.tlbi(Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None)));
        mmu.dsb_ish();
    }
    if !lab::is_on!(SKIP_ISB) {
        mmu.isb();
    }
}

/// Issues what a switch of the lab leaves of an invalidation; `false` where none of these is on.
#[cold]
#[inline(never)]
fn issued_in_the_lab<M: Mmu<Geometry = Granule4K>>(mmu: &M, what: Invalidation) -> bool {
    if lab::is_on!(SKIP_TLBI) {
        return true;
    }
    // One by one: QEMU flushes more than a range, which would hide what these two show.
    let pages = (0..what.range.pages() as u64).map(|page| what.range.start() + page * PAGE);
    if lab::is_on!(LOCAL_TLBI) {
        pages.for_each(|page| mmu.tlbi(Instruction::Vaale1(AddressOperand::new(page, None))));
        return true;
    }
    if lab::is_on!(SHORT_TLBI) {
        let all_but_the_last = pages.take(what.range.pages() - 1);
        all_but_the_last.for_each(|page| mmu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None))));
        return true;
    }
    false
}
