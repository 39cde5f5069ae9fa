//! TLB maintenance, all of it. Who changes a table says what changed; which instructions that takes is decided here.
//!
//! Arm ARM D8.17: invalidations are broadcast to the inner-shareable domain. A range of kernel addresses takes the fewest
//! operations that cover exactly it ([`Plan`]), and where it is longer than those are worth, one that takes everything. Kernel
//! entries are global, so the operations are those for every ASID. No level hint is given.

use granule_arch::addr::PAGE_SIZE;
use granule_arch::patched_branch;
use granule_arch::tlbi::{AddressOperand, Granule, Instruction, Operation, Plan, RangeOperand, RangeSupport};
use granule_pgtable::{Granule4K, Invalidation, Mmu, Tables, Tlb};

use crate::lab;
use crate::platform::features::branch;

/// The TLBs of all CPUs, for kernel addresses.
#[derive(Clone, Copy, Debug)]
pub struct KernelTlb;

impl<M: Mmu<Geometry = Granule4K>> Tlb<M> for KernelTlb {
    #[inline]
    fn issue(&self, mmu: &M, what: &Invalidation) {
        if lab::is_on!(SKIP_TLBI) {
            return;
        }
        if lab::is_on!(LOCAL_TLBI) {
            // One by one: QEMU flushes more than a range, which would hide what this switch shows.
            for page in 0..what.range.pages() as u64 {
                let page = what.range.start() + page * PAGE_SIZE as u64;
                mmu.tlbi(Instruction::Vaale1(AddressOperand::new(page, None)));
            }
            return;
        }
        for operation in Plan::new(what.range.start(), what.range.pages() as u64, Granule::Size4K, range_support()) {
            mmu.tlbi(match (operation, what.tables) {
                (Operation::Everything, _) => Instruction::Vmalle1is,
                // Only leaves changed: entries of upper levels in walk caches stay right, so they may stay.
                (Operation::Page(page), Tables::Kept) => Instruction::Vaale1is(AddressOperand::new(page, None)),
                (Operation::Page(page), Tables::Unlinked) => Instruction::Vaae1is(AddressOperand::new(page, None)),
                (Operation::Pages(first, span), Tables::Kept) => {
                    Instruction::Rvaale1is(RangeOperand::new(first, Granule::Size4K, span, None))
                }
                (Operation::Pages(first, span), Tables::Unlinked) => {
                    Instruction::Rvaae1is(RangeOperand::new(first, Granule::Size4K, span, None))
                }
            });
        }
    }
}

#[inline(always)]
fn range_support() -> RangeSupport {
    if patched_branch!(branch::TLB_RANGE) { RangeSupport::Yes } else { RangeSupport::No }
}
