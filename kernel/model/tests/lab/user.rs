//! The kernel's invalidation of user addresses on the model: under the space's own number, with every step needed.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use std::iter::once;

use granule::mm::asid::{AsidSlot, Asids};
use granule::mm::notifier::NotifierChain;
use granule::mm::tlb::user::{Leaf, UserTlb};
use granule::platform::features::branch;
use granule::smp::{Cpu, CpuId};
use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection};
use granule_arch::tlbi::{AddressOperand, Asid, Instruction, LevelHint, UserTlbToken};
use granule_model::{Access, Features, Model, ModelCpu, Rule, Sabotage, Step};
use granule_pgtable::{Granule4K, Invalidation, Lazy, Mmu, PageRange, Shape, Stores, Tables, Tlb};

use super::FRAME;

const PAGES: usize = 3;

fn writable() -> Attributes {
    Attributes::user(MemoryType::Normal, Protection::READ.and(Protection::WRITE))
}

/// A space whose pages two CPUs have used.
struct Rig {
    model: Model<Granule4K>,
    slot: AsidSlot,
    chain: NotifierChain,
    range: PageRange,
}

impl Rig {
    fn new(features: Features) -> Self {
        let model = Model::new(2, 8, features);
        let (asids, slot) = (Asids::new(), AsidSlot::new());
        model.run_under(asids.activate(&Cpu::new(CpuId(0)), &model.cpu(0), &slot));
        assert_ne!(slot.number(), 0);
        let range = PageRange::from_pages(model.base() + 0x20_3000, PAGES).unwrap();
        let cpu = model.cpu(0);
        let tables = cpu.page_tables();
        tables.map(&Lazy::new(&cpu), range, FRAME, writable(), Shape::PAGES, &mut model.frames()).unwrap();
        model.synchronise();
        Self { model, slot, chain: NotifierChain::default(), range }
    }

    fn tlb(&self) -> UserTlb<'_> {
        UserTlb::new(&self.slot, &self.chain)
    }

    fn page(&self, index: u64) -> VirtAddr {
        self.range.start() + (index << 12)
    }

    fn change(&self, cpu: ModelCpu<'_>, pages: core::ops::Range<u64>, change: impl Fn(Descriptor) -> Descriptor) {
        for page in pages {
            let cell = cpu.entry(self.page(page));
            let mut found = cpu.load(cell);
            // The hardware sets flags concurrently.
            while let Err(now) = cpu.compare_exchange(cell, found, change(found)) {
                found = now;
            }
        }
    }

    /// The model's reports for all pages, once every CPU has been to the kernel and back.
    fn said(&self) -> Vec<String> {
        self.model.synchronise();
        self.model.audit(0, self.range);
        self.model.violations().iter().map(ToString::to_string).collect()
    }
}

/// A way to invalidate all pages of the rig, whose entries have changed.
type Way = fn(&Rig, ModelCpu<'_>);

const WAYS: [Way; 3] = [
    |rig, cpu| {
        let page = |page| PageRange::from_pages(rig.page(page), 1).unwrap();
        (0..PAGES as u64).for_each(|index| {
            rig.tlb().invalidate(
                &cpu,
                once(Invalidation { range: page(index), tables: Tables::Kept, level: LevelHint::new(3) }),
            )
        });
    },
    |rig, cpu| {
        rig.tlb()
            .invalidate(&cpu, once(Invalidation { range: rig.range, tables: Tables::Kept, level: LevelHint::new(3) }))
    },
    |rig, cpu| rig.tlb().flush_space(&cpu),
];

/// CPUs with everything optional and with nothing, and the branch sites that they take.
const CPUS: [(Features, &[u16]); 2] = [(Features::BASE, &[]), (Features::ALL, &[branch::TLB_RANGE, branch::TLB_LEVEL])];

#[test]
fn no_cpu_keeps_what_a_user_page_was() {
    for (features, sites) in CPUS {
        for (index, way) in WAYS.into_iter().enumerate() {
            host::with(sites, || {
                let rig = Rig::new(features);
                let cpu = rig.model.cpu(0);
                rig.change(cpu, 0..PAGES as u64, Descriptor::write_protected);
                way(&rig, cpu);
                assert_eq!(rig.said(), [""; 0], "way {index}");
                rig.change(cpu, 0..PAGES as u64, |_| Descriptor::EMPTY);
                way(&rig, cpu);
                assert_eq!(rig.said(), [""; 0], "way {index}");
            });
        }
    }
}

/// Each step of each way, one after the other, is missed when it is not there.
#[test]
fn every_step_is_needed() {
    /// The ASID after `number`.
    fn another(number: u16) -> Asid {
        // SAFETY: no device translates by the model's tables.
        Asid::new(number + 1, unsafe { UserTlbToken::new() })
    }
    fn another_asid(instruction: Instruction) -> Instruction {
        match instruction {
            Instruction::Aside1is(asid) => Instruction::Aside1is(another(asid.number())),
            Instruction::Vale1is(operand) => {
                // Bits 43:0 are the address above its low 12.
                let page = VirtAddr(operand.bits() << 20 >> 8 | 0xff << 56);
                let asid = another((operand.bits() >> 48) as u16);
                Instruction::Vale1is(AddressOperand::with_asid(page, asid, None))
            }
            other => panic!("{other:?} on CPUs with nothing optional"),
        }
    }
    let faults = [
        (Step::DsbIshst, Sabotage::Lost),
        (Step::DsbIshst, Sabotage::Becomes(Step::DsbNsh)),
        (Step::Tlbi, Sabotage::Lost),
        (Step::Tlbi, Sabotage::Rewritten(another_asid)),
        (Step::DsbIsh, Sabotage::Lost),
        (Step::DsbIsh, Sabotage::Becomes(Step::DsbNsh)),
    ];
    for (step, sabotage) in faults {
        for (index, way) in WAYS.into_iter().enumerate() {
            host::with(&[], || {
                let rig = Rig::new(Features::BASE);
                let cpu = rig.model.cpu(0);
                rig.change(cpu, 0..PAGES as u64, Descriptor::write_protected);
                rig.model.inject(step, 0, sabotage);
                way(&rig, cpu);
                assert!(rig.model.all_struck());
                rig.model.synchronise();
                rig.model.audit(0, rig.range);
                let violations = rig.model.violations();
                let stale = violations.iter().any(|violation| violation.rule == Rule::StaleTranslation);
                // With page after page, the barriers of the next one make up for those of the first.
                let made_up_for = index == 0 && step == Step::DsbIsh;
                assert_eq!(stale, !made_up_for, "way {index} and {sabotage:?} of {step:?}: {violations:#?}");
            });
        }
    }
}

/// Other CPUs keep the old permission: they take a fault and forget it themselves.
#[test]
fn a_page_that_became_writable_is_writable_here_and_by_a_fault_elsewhere() {
    host::with(&[], || {
        let rig = Rig::new(Features::BASE);
        let cpu = rig.model.cpu(0);
        rig.change(cpu, 0..1, Descriptor::dirty);
        rig.tlb().access_widened(&cpu, Leaf::page(rig.page(0)));
        rig.model.synchronise();
        let may = |cpu: usize| rig.model.cpu(cpu).may(rig.page(0), Access::Write);
        assert_eq!(may(0), [Ok(FRAME)]);
        assert_eq!(may(1).len(), 2, "it may fault: {:?}", may(1));
        rig.tlb().fix_spurious(&rig.model.cpu(1), Leaf::page(rig.page(0)));
        rig.model.synchronise();
        assert_eq!(may(1), [Ok(FRAME)]);
        assert_eq!(rig.said(), [""; 0]);
    });
}

/// A table that is taken away is in walk caches as well as its leaves are in TLBs.
#[test]
fn a_table_is_free_when_every_level_was_invalidated() {
    for (features, sites) in CPUS {
        for tables in [Tables::Unlinked, Tables::Kept] {
            host::with(sites, || {
                let rig = Rig::new(features);
                let cpu = rig.model.cpu(0);
                let steps: Vec<_> = cpu.page_tables().walk(rig.page(0)).collect();
                let [.., above, last] = &steps[..] else { panic!("the walk has four steps") };
                let table = last.table;
                rig.change(cpu, 0..PAGES as u64, |_| Descriptor::EMPTY);
                cpu.store(rig.model.cell(above.table + above.index as u64 * 8), Descriptor::EMPTY);
                rig.tlb().invalidate(&cpu, once(Invalidation { range: rig.range, tables, level: None }));
                rig.model.synchronise();
                rig.model.frame_freed(0, table);
                let violations = rig.model.violations();
                assert_eq!(violations.is_empty(), tables == Tables::Unlinked, "{tables:?}: {violations:#?}");
            });
        }
    }
}
