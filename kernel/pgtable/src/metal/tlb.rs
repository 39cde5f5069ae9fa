//! The TLBs of all CPUs: a range by the fewest TLBIs that cover exactly it.
//!
//! Arm ARM D8.17: invalidations are broadcast to the inner-shareable domain. A range longer than those are worth is one
//! that takes everything. Where FEAT_TTL is on every CPU, the level goes along if all leaves are certain to be of one;
//! a wrong one may invalidate nothing.

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::{
    AddressOperand, Asid, Granule, Instruction, LevelHint, Operation, Plan, RangeOperand, RangeSupport, Span,
};

use crate::flush::{Invalidation, Tables};
use crate::geometry::Geometry;
use crate::mmu::{Feature, Mmu, Tlb};
use crate::range::PageRange;

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
        if !issue_page(mmu, *self, what) {
            issue_range(mmu, *self, what.range, what.level, what.tables);
        }
    }
}

impl<M: Mmu> Tlb<M> for AsidTlb {
    #[inline(always)]
    fn issue(&self, mmu: &M, what: &Invalidation<M::Geometry>) {
        if !issue_page(mmu, *self, what) {
            issue_range(mmu, *self, what.range, what.level, what.tables);
        }
    }
}

/// The level of the leaves for an operand, where the CPUs look at it.
#[inline(always)]
pub fn level_hint<M: Mmu>(mmu: &M, level: Option<LevelHint>) -> Option<LevelHint> {
    if mmu.has(Feature::Ttl) { level } else { None }
}

/// The TLB entries that an operation invalidates, by the instructions that do it.
trait Scope: Copy {
    fn everything(self) -> Instruction;
    fn page(self, page: VirtAddr, hint: Option<(Granule, LevelHint)>, tables: Tables) -> Instruction;
    fn pages(
        self,
        first: VirtAddr,
        granule: Granule,
        span: Span,
        level: Option<LevelHint>,
        tables: Tables,
    ) -> Instruction;
}

impl Scope for KernelTlb {
    #[inline(always)]
    fn everything(self) -> Instruction {
        Instruction::Vmalle1is
    }

    #[inline(always)]
    fn page(self, page: VirtAddr, hint: Option<(Granule, LevelHint)>, tables: Tables) -> Instruction {
        let operand = AddressOperand::new(page, hint);
        match tables {
            // Only leaves changed: entries of upper levels in walk caches stay right, so they may stay.
            Tables::Kept => Instruction::Vaale1is(operand),
            Tables::Unlinked => Instruction::Vaae1is(operand),
        }
    }

    #[inline(always)]
    fn pages(
        self,
        first: VirtAddr,
        granule: Granule,
        span: Span,
        level: Option<LevelHint>,
        tables: Tables,
    ) -> Instruction {
        let operand = RangeOperand::new(first, granule, span, level);
        match tables {
            Tables::Kept => Instruction::Rvaale1is(operand),
            Tables::Unlinked => Instruction::Rvaae1is(operand),
        }
    }
}

impl Scope for AsidTlb {
    #[inline(always)]
    fn everything(self) -> Instruction {
        Instruction::Aside1is(self.0)
    }

    #[inline(always)]
    fn page(self, page: VirtAddr, hint: Option<(Granule, LevelHint)>, tables: Tables) -> Instruction {
        let operand = AddressOperand::with_asid(page, self.0, hint);
        match tables {
            Tables::Kept => Instruction::Vale1is(operand),
            Tables::Unlinked => Instruction::Vae1is(operand),
        }
    }

    #[inline(always)]
    fn pages(
        self,
        first: VirtAddr,
        granule: Granule,
        span: Span,
        level: Option<LevelHint>,
        tables: Tables,
    ) -> Instruction {
        let operand = RangeOperand::with_asid(first, granule, span, self.0, level);
        match tables {
            Tables::Kept => Instruction::Rvale1is(operand),
            Tables::Unlinked => Instruction::Rvae1is(operand),
        }
    }
}

/// One page, which is what most are: nothing to plan. Returns whether it is one.
#[inline(always)]
fn issue_page<M: Mmu, S: Scope>(mmu: &M, scope: S, what: &Invalidation<M::Geometry>) -> bool {
    let is_page = what.range.pages() == 1 && what.tables == Tables::Kept;
    if is_page {
        let hint = level_hint(mmu, what.level).map(|level| (M::Geometry::GRANULE, level));
        mmu.tlbi(scope.page(what.range.start(), hint, Tables::Kept));
    }
    is_page
}

/// Out of line: many changes end in it, and it is long.
#[inline(never)]
fn issue_range<M: Mmu, S: Scope>(
    mmu: &M,
    scope: S,
    range: PageRange<M::Geometry>,
    level: Option<LevelHint>,
    tables: Tables,
) {
    let level = level_hint(mmu, level);
    // Two loops, each of which knows whether there are range operations.
    if mmu.has(Feature::TlbRange) {
        issue_plan(mmu, scope, range, level, tables, RangeSupport::Yes);
    } else {
        issue_plan(mmu, scope, range, level, tables, RangeSupport::No);
    }
}

#[inline(always)]
fn issue_plan<M: Mmu, S: Scope>(
    mmu: &M,
    scope: S,
    range: PageRange<M::Geometry>,
    level: Option<LevelHint>,
    tables: Tables,
    support: RangeSupport,
) {
    let granule = M::Geometry::GRANULE;
    for operation in Plan::new(range.start(), range.pages() as u64, granule, support) {
        // Each arm issues its own, so that none is looked at twice.
        match (operation, tables) {
            (Operation::Everything, _) => mmu.tlbi(scope.everything()),
            (Operation::Page(page), Tables::Kept) => {
                mmu.tlbi(scope.page(page, level.map(|level| (granule, level)), Tables::Kept));
            }
            (Operation::Page(page), Tables::Unlinked) => {
                mmu.tlbi(scope.page(page, level.map(|level| (granule, level)), Tables::Unlinked));
            }
            (Operation::Pages(first, span), Tables::Kept) => {
                mmu.tlbi(scope.pages(first, granule, span, level, Tables::Kept));
            }
            (Operation::Pages(first, span), Tables::Unlinked) => {
                mmu.tlbi(scope.pages(first, granule, span, level, Tables::Unlinked));
            }
        }
    }
}
