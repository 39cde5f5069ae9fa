//! The TLB of any geometry, by the plan that the kernel's own follows.

use granule_arch::tlbi::{AddressOperand, Granule, Instruction, Operation, Plan, RangeOperand, RangeSupport};
use granule_pgtable::{Geometry, Invalidation, Mmu, Tables, Tlb};

/// Invalidates kernel addresses by the fewest broadcast operations, as the kernel does for its own granule.
#[derive(Clone, Copy, Debug)]
pub struct PlanTlb(pub RangeSupport);

/// The granule of `G`'s pages; [`granule_pgtable::Tiny`] has those of 4 KiB.
fn granule<G: Geometry>() -> Granule {
    match G::PAGE_SHIFT {
        12 => Granule::Size4K,
        14 => Granule::Size16K,
        16 => Granule::Size64K,
        other => unreachable!("no granule has pages of 2^{other} bytes"),
    }
}

impl<M: Mmu> Tlb<M> for PlanTlb {
    fn issue(&self, mmu: &M, what: &Invalidation<M::Geometry>) {
        let granule = granule::<M::Geometry>();
        for operation in Plan::new(what.range.start(), what.range.pages() as u64, granule, self.0) {
            mmu.tlbi(match (operation, what.tables) {
                (Operation::Everything, _) => Instruction::Vmalle1is,
                (Operation::Page(page), Tables::Kept) => Instruction::Vaale1is(AddressOperand::new(page, None)),
                (Operation::Page(page), Tables::Unlinked) => Instruction::Vaae1is(AddressOperand::new(page, None)),
                (Operation::Pages(first, span), Tables::Kept) => {
                    Instruction::Rvaale1is(RangeOperand::new(first, granule, span, None))
                }
                (Operation::Pages(first, span), Tables::Unlinked) => {
                    Instruction::Rvaae1is(RangeOperand::new(first, granule, span, None))
                }
            });
        }
    }
}
