//! The TLBs of all CPUs: a range by the fewest TLBIs that cover exactly it.
//!
//! Arm ARM D8.17: invalidations are broadcast to the inner-shareable domain. A range longer than those are worth is one
//! that takes everything. Where FEAT_TTL is on every CPU, the level goes along if all leaves are certain to be of one;
//! a wrong one may invalidate nothing.

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::{
    AddressOperand, Asid, Granule, Instruction, LevelHint, Operation, Plan, RangeOperand, RangeSupport,
};

use crate::flush::{Invalidation, Tables};
use crate::geometry::Geometry;
use crate::mmu::{Feature, Mmu, Tlb};

/// The TLBs of all CPUs, for kernel addresses: their entries are global, so the operations are those for every ASID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelTlb;

/// The TLBs of all CPUs, for the addresses of one ASID. Making an [`Asid`] takes the token of the module that also
/// notifies devices: see [`granule_arch::tlbi::UserTlbToken`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsidTlb(pub Asid);

impl<M: Mmu> Tlb<M> for KernelTlb {
    #[inline(always)]
    fn issue(&self, mmu: &M, what: &Invalidation<M::Geometry>) {
        issue(mmu, None, what);
    }
}

impl<M: Mmu> Tlb<M> for AsidTlb {
    #[inline(always)]
    fn issue(&self, mmu: &M, what: &Invalidation<M::Geometry>) {
        issue(mmu, Some(self.0), what);
    }
}

/// The level of the leaves for an operand, where the CPUs look at it.
#[inline(always)]
pub fn level_hint<M: Mmu>(mmu: &M, level: Option<LevelHint>) -> Option<LevelHint> {
    if mmu.has(Feature::Ttl) { level } else { None }
}

/// The instruction for a page, of `asid` or, for kernel addresses, of every ASID.
#[inline(always)]
fn page(at: VirtAddr, granule: Granule, asid: Option<Asid>, level: Option<LevelHint>, tables: Tables) -> Instruction {
    // Here, where it is used: the compiler keeps what is formed before, in seven instructions.
    let hint = level.map(|level| (granule, level));
    let operand = match asid {
        Some(asid) => AddressOperand::with_asid(at, asid, hint),
        None => AddressOperand::new(at, hint),
    };
    match (asid, tables) {
        // Only leaves changed: entries of upper levels in walk caches stay right, so they may stay.
        (None, Tables::Kept) => Instruction::Vaale1is(operand),
        (None, Tables::Unlinked) => Instruction::Vaae1is(operand),
        (Some(_), Tables::Kept) => Instruction::Vale1is(operand),
        (Some(_), Tables::Unlinked) => Instruction::Vae1is(operand),
    }
}

/// The same for a range.
#[inline(always)]
fn pages(operand: RangeOperand, asid: Option<Asid>, tables: Tables) -> Instruction {
    match (asid, tables) {
        (None, Tables::Kept) => Instruction::Rvaale1is(operand),
        (None, Tables::Unlinked) => Instruction::Rvaae1is(operand),
        (Some(_), Tables::Kept) => Instruction::Rvale1is(operand),
        (Some(_), Tables::Unlinked) => Instruction::Rvae1is(operand),
    }
}

/// Issues what takes `what`, of `asid` or, for kernel addresses, of every ASID.
#[inline(always)]
fn issue<M: Mmu>(mmu: &M, asid: Option<Asid>, what: &Invalidation<M::Geometry>) {
    let granule = M::Geometry::GRANULE;
    let level = level_hint(mmu, what.level);
    // One page, which is what most are: nothing to plan.
    if what.range.pages() == 1 && what.tables == Tables::Kept {
        return mmu.tlbi(page(what.range.start(), granule, asid, level, Tables::Kept));
    }
    let operand = |first, span| match asid {
        Some(asid) => RangeOperand::with_asid(first, granule, span, asid, level),
        None => RangeOperand::new(first, granule, span, level),
    };
    let support = if mmu.has(Feature::TlbRange) { RangeSupport::Yes } else { RangeSupport::No };
    for operation in Plan::new(what.range.start(), what.range.pages() as u64, granule, support) {
        // Each arm issues its own, so that none is looked at twice.
        match (operation, what.tables) {
            (Operation::Everything, _) => mmu.tlbi(asid.map_or(Instruction::Vmalle1is, Instruction::Aside1is)),
            (Operation::Page(at), Tables::Kept) => mmu.tlbi(page(at, granule, asid, level, Tables::Kept)),
            (Operation::Page(at), Tables::Unlinked) => mmu.tlbi(page(at, granule, asid, level, Tables::Unlinked)),
            (Operation::Pages(first, span), Tables::Kept) => mmu.tlbi(pages(operand(first, span), asid, Tables::Kept)),
            (Operation::Pages(first, span), Tables::Unlinked) => {
                mmu.tlbi(pages(operand(first, span), asid, Tables::Unlinked));
            }
        }
    }
}
