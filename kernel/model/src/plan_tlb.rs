//! The TLB of any geometry, by the plan that the kernel's own follows.

use granule_arch::tlbi::{AddressOperand, Granule, Instruction, Operation, Plan, RangeOperand, RangeSupport};
use granule_pgtable::{Geometry, Invalidation, Mmu, Tables, Tlb};

use crate::features::Features;

/// Invalidates kernel addresses by the fewest broadcast operations, as the kernel does for its own granule.
#[derive(Clone, Copy, Debug)]
pub struct PlanTlb(Features);

impl PlanTlb {
    /// With range operations and level hints where CPUs with `features` have them.
    pub const fn of(features: Features) -> Self {
        Self(features)
    }
}

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
        let support = if self.0.tlb_range { RangeSupport::Yes } else { RangeSupport::No };
        let level = what.level.filter(|_| self.0.ttl);
        let single = |page| AddressOperand::new(page, level.map(|level| (granule, level)));
        let several = |first, span| RangeOperand::new(first, granule, span, level);
        for operation in Plan::new(what.range.start(), what.range.pages() as u64, granule, support) {
            mmu.tlbi(match (operation, what.tables) {
                (Operation::Everything, _) => Instruction::Vmalle1is,
                (Operation::Page(page), Tables::Kept) => Instruction::Vaale1is(single(page)),
                (Operation::Page(page), Tables::Unlinked) => Instruction::Vaae1is(single(page)),
                (Operation::Pages(first, span), Tables::Kept) => Instruction::Rvaale1is(several(first, span)),
                (Operation::Pages(first, span), Tables::Unlinked) => Instruction::Rvaae1is(several(first, span)),
            });
        }
    }
}
