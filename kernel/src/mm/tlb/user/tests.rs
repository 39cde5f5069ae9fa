//! Every function here, by what it does to the machine and its calls to the subscriber, in order and complete: a row
//! each.

use std::boxed::Box;
use std::iter::once;
use std::vec;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::tlbi::{AddressOperand, Asid, Granule, Instruction, LevelHint, RangeOperand, RangeSupport};
use granule_arch::tlbi::{Operation as Planned, Plan};
use granule_pgtable::host::Operation;
use granule_pgtable::{Invalidation, PageRange, Tables, Tlb};

use super::{Leaf, UserTlb};
use crate::mm::asid::{AsidSlot, Asids};
use crate::mm::kernel::Machine;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::mm::notifier::recording::{Notified, RecordedStep, Recording};
use crate::mm::notifier::{NotifierChain, Subscription};
use crate::platform::features::branch;
use crate::smp::{Cpu, CpuId};

const ASID: Asid = Asid::new(7, super::TOKEN);
const START: VirtAddr = VirtAddr(0x40_0000);

fn machine() -> Machine {
    Metal(LinearView { offset: 0 })
}

/// A space as its TLB functions see it, with a subscriber.
struct Space {
    slot: AsidSlot,
    chain: &'static NotifierChain,
    listener: Subscription<Recording, &'static NotifierChain>,
}

impl Space {
    /// The `number`th space to run, which gives it this number.
    fn new(number: u16) -> Self {
        let (asids, cpu) = (Asids::new(), Cpu::new(CpuId(0)));
        let slots: Vec<_> = (0..number).map(|_| AsidSlot::new()).collect();
        slots.iter().for_each(|slot| _ = asids.activate(&cpu, &machine(), slot));
        let slot = slots.into_iter().next_back().unwrap();
        assert_eq!(slot.number(), number);
        let chain: &NotifierChain = Box::leak(Box::default());
        Self { slot, chain, listener: Subscription::new(chain, Recording::default(), 0).unwrap() }
    }

    fn tlb(&self) -> UserTlb<'_> {
        UserTlb::new(&self.slot, self.chain)
    }

    fn stream(&self, work: impl FnOnce(UserTlb<'_>, &Machine)) -> Vec<RecordedStep> {
        self.listener.stream(|| work(self.tlb(), &machine()))
    }
}

fn pages(pages: usize) -> PageRange {
    PageRange::from_pages(START, pages).unwrap()
}

fn tlbi(instruction: Instruction) -> RecordedStep {
    RecordedStep::Machine(Operation::Tlbi(instruction))
}

fn at(page: VirtAddr) -> AddressOperand {
    AddressOperand::with_asid(page, ASID, None)
}

fn notified(start: u64, end: u64) -> RecordedStep {
    RecordedStep::Notified(Notified::SecondaryTlbs, (start, end))
}

const BEFORE: RecordedStep = RecordedStep::Machine(Operation::DsbIshst);
const COMPLETE: RecordedStep = RecordedStep::Machine(Operation::DsbIsh);
const COMPLETE_HERE: RecordedStep = RecordedStep::Machine(Operation::DsbNsh);
const ONE_PAGE: (u64, u64) = (START.0, START.0 + 0x1000);

/// A function, and all that it does to a space whose number is 7 on CPUs with nothing optional.
type Row = (&'static str, fn(UserTlb<'_>, &Machine), Vec<RecordedStep>);

#[test]
fn each_function_tells_its_range_between_its_tlbi_and_its_dsb() {
    let one = || notified(ONE_PAGE.0, ONE_PAGE.1);
    let replaced = RecordedStep::Notified(Notified::Range, ONE_PAGE);
    let rows: [Row; 9] = [
        (
            "invalidate of one page",
            |tlb, mmu| tlb.invalidate(mmu, once(Invalidation { range: pages(1), tables: Tables::Kept, level: None })),
            vec![BEFORE, tlbi(Instruction::Vale1is(at(START))), one(), COMPLETE],
        ),
        (
            "flush_replaced",
            |tlb, mmu| tlb.flush_replaced(mmu, Leaf::page(START)),
            vec![BEFORE, tlbi(Instruction::Vale1is(at(START))), one(), replaced, COMPLETE],
        ),
        (
            "invalidate of leaves",
            |tlb, mmu| tlb.invalidate(mmu, once(Invalidation { range: pages(2), tables: Tables::Kept, level: None })),
            vec![
                BEFORE,
                tlbi(Instruction::Vale1is(at(START))),
                tlbi(Instruction::Vale1is(at(START + 0x1000))),
                notified(START.0, START.0 + 0x2000),
                COMPLETE,
            ],
        ),
        (
            "invalidate of a table",
            |tlb, mmu| {
                tlb.invalidate(mmu, once(Invalidation { range: pages(1), tables: Tables::Unlinked, level: None }))
            },
            vec![BEFORE, tlbi(Instruction::Vae1is(at(START))), one(), COMPLETE],
        ),
        (
            "invalidate of more than is named page by page",
            |tlb, mmu| tlb.invalidate(mmu, once(Invalidation { range: pages(512), tables: Tables::Kept, level: None })),
            vec![BEFORE, tlbi(Instruction::Aside1is(ASID)), notified(START.0, START.0 + 0x20_0000), COMPLETE],
        ),
        (
            "flush_space",
            |tlb, mmu| tlb.flush_space(mmu),
            vec![BEFORE, tlbi(Instruction::Aside1is(ASID)), notified(0, u64::MAX), COMPLETE],
        ),
        (
            "Tlb::invalidate of two ranges",
            |tlb, mmu| {
                let what = |start| {
                    let range = PageRange::from_pages(start, 1).unwrap();
                    Invalidation { range, tables: Tables::Kept, level: None }
                };
                tlb.invalidate(mmu, [what(START), what(START + 0x5000)].into_iter());
            },
            vec![
                BEFORE,
                tlbi(Instruction::Vale1is(at(START))),
                one(),
                tlbi(Instruction::Vale1is(at(START + 0x5000))),
                notified(START.0 + 0x5000, START.0 + 0x6000),
                COMPLETE,
            ],
        ),
        (
            "access_widened",
            |tlb, mmu| tlb.access_widened(mmu, Leaf::page(START)),
            vec![BEFORE, tlbi(Instruction::Vale1(at(START))), one(), COMPLETE_HERE],
        ),
        (
            "fix_spurious",
            |tlb, mmu| tlb.fix_spurious(mmu, Leaf::page(START)),
            vec![tlbi(Instruction::Vale1(at(START))), COMPLETE_HERE],
        ),
    ];
    let space = Space::new(7);
    for (name, function, expected) in rows {
        assert_eq!(host::with(&[], || space.stream(function)), expected, "{name}");
    }
}

#[test]
fn ranges_and_levels_are_named_where_all_cpus_have_them() {
    let space = Space::new(7);
    let level = LevelHint::new(3);
    for tables in [Tables::Kept, Tables::Unlinked] {
        for count in [1, 2, 3, 64, 100, 513] {
            let stream = host::with(&[branch::TLB_RANGE, branch::TLB_LEVEL], || {
                space.stream(|tlb, mmu| tlb.invalidate(mmu, once(Invalidation { range: pages(count), tables, level })))
            });
            let plan = Plan::new(START, count as u64, Granule::Size4K, RangeSupport::Yes);
            let expected = plan.map(|operation| {
                let single = |page| AddressOperand::with_asid(page, ASID, level.map(|level| (Granule::Size4K, level)));
                let several = |first, span| RangeOperand::with_asid(first, Granule::Size4K, span, ASID, level);
                tlbi(match (operation, tables) {
                    (Planned::Page(page), Tables::Kept) => Instruction::Vale1is(single(page)),
                    (Planned::Page(page), Tables::Unlinked) => Instruction::Vae1is(single(page)),
                    (Planned::Pages(first, span), Tables::Kept) => Instruction::Rvale1is(several(first, span)),
                    (Planned::Pages(first, span), Tables::Unlinked) => Instruction::Rvae1is(several(first, span)),
                    (Planned::Everything, _) => panic!("{count} pages are not everything"),
                })
            });
            let end = [notified(START.0, pages(count).end().0), COMPLETE];
            let expected: Vec<_> = [BEFORE].into_iter().chain(expected).chain(end).collect();
            assert_eq!(stream, expected, "{count} pages, tables {tables:?}");
        }
    }
}

#[test]
fn an_erratum_gets_one_more_invalidation() {
    let space = Space::new(7);
    let stream = host::with(&[branch::REPEAT_TLBI], || {
        space.stream(|tlb, mmu| {
            tlb.invalidate(mmu, once(Invalidation { range: pages(1), tables: Tables::Kept, level: None }))
        })
    });
    let repeated = tlbi(Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None)));
    assert_eq!(stream[2..], [notified(ONE_PAGE.0, ONE_PAGE.1), COMPLETE, repeated, COMPLETE]);
}

/// A space that never ran has no number, but devices may use its tables all the same.
#[test]
fn devices_are_told_of_a_space_that_no_cpu_has_run() {
    let chain: &NotifierChain = Box::leak(Box::default());
    let listener = Subscription::new(chain, Recording::default(), 0).unwrap();
    UserTlb::new(&AsidSlot::new(), chain)
        .invalidate(&machine(), once(Invalidation { range: pages(1), tables: Tables::Kept, level: None }));
    assert_eq!(listener.take().len(), 1);
}
