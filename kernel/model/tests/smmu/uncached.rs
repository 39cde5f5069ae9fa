//! An SMMU that does not see the CPUs' caches (IHI 0070, 3.15 and 6.3.1, COHACC): its structures are Non-cacheable, and
//! page tables are cleaned.

use std::collections::BTreeSet;

use granule_arch::addr::VirtAddr;
use granule_model::smmu::{Access, Context, Hardware, Operation, Outcome, Pace, ReadAs, SmmuRule, View};
use granule_smmuv3::{Kind, Scope, Stream, registers::offset};

use crate::rig::{ASID, F_TRANSLATION, PAGE_RW, Rig, STREAM, Tables};

/// By its registers, by the machine's description, and one that takes commands late and has one level.
const MACHINES: [Hardware; 3] = [
    Hardware { coherent: false, ..Hardware::QEMU },
    Hardware { dma_coherent: false, ..Hardware::QEMU },
    Hardware { coherent: false, pace: Pace::PerLook(1), ..Hardware::PLAIN },
];
const FRAME: u64 = 0x1_0000_0000;
const ADDRESS: u64 = 0x3000;

/// With one page mapped.
fn mapped(hardware: Hardware) -> (Rig, Tables) {
    let mut rig = Rig::new(hardware);
    let tables = Tables::new(&rig);
    rig.translate(STREAM, &tables.context(ASID));
    rig.model.add_device(STREAM);
    rig.model.prefer_old();
    tables.map(&rig, 3, FRAME, PAGE_RW);
    (rig, tables)
}

#[test]
fn it_translates_forgets_and_leaves_events() {
    for hardware in MACHINES {
        let (mut rig, tables) = mapped(hardware);
        assert!(!rig.parts.smmu.features().coherent);
        assert_eq!(rig.outcomes(ADDRESS, Access::WRITE), BTreeSet::from([Outcome::Reaches(FRAME)]));
        tables.write(&rig, 3, 0);
        rig.invalidate_page(ADDRESS);
        rig.model.audit(STREAM, ADDRESS);
        assert_eq!(rig.model.transact(STREAM, ADDRESS, Access::WRITE), F_TRANSLATION);
        let mut kinds = Vec::new();
        rig.parts.events.drain(&rig.parts.smmu, |event| kinds.push(event.kind));
        assert_eq!(kinds, [Kind::Translation]);
        // Other tables, and none.
        let others = Tables::new(&rig);
        others.map(&rig, 3, 2 * FRAME, PAGE_RW);
        rig.translate(STREAM, &others.context(ASID + 1));
        assert_eq!(rig.outcomes(ADDRESS, Access::WRITE), BTreeSet::from([Outcome::Reaches(2 * FRAME)]));
        rig.set(STREAM, Stream::Abort);
        assert_eq!(rig.outcomes(ADDRESS, Access::WRITE), BTreeSet::from([Outcome::Refused { event: None }]));
        rig.model.assert_clean();
    }
}

/// Structures as the CPUs have them mapped, and tables from memory, to which they were cleaned: otherwise a cache of the
/// system could have what the CPUs do not see.
#[test]
fn it_reads_structures_and_tables_as_not_cacheable() {
    const UNCACHED: ReadAs = ReadAs { inner: 0, outer: 0, share: 2 };
    for (hardware, read_as) in
        MACHINES.map(|hardware| (hardware, UNCACHED)).into_iter().chain([(Hardware::QEMU, ReadAs::WRITE_BACK)])
    {
        let (rig, _) = mapped(hardware);
        let View::Translate { stage1, context: Context::Regime(regime) } = rig.model.view_now(STREAM) else {
            panic!("the stream is translated")
        };
        assert_eq!((stage1.read_as, regime.tables.unwrap().read_as), (read_as, read_as));
    }
}

/// In front of the invalidation, or the SMMU walks to the entry of before once more.
#[test]
fn an_entry_is_cleaned_before_its_invalidation_is_published() {
    for hardware in MACHINES {
        let (rig, tables) = mapped(hardware);
        let operations = rig.model.record(|| {
            tables.write(&rig, 3, 0);
            rig.invalidate_page(ADDRESS);
        });
        let at = |wanted: fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
        let cleaned = at(|operation| matches!(operation, Operation::Clean { bytes: 8, .. }));
        let published = at(|operation| matches!(operation, Operation::Write { offset: offset::CMDQ_PROD, .. }));
        assert!(matches!(operations[0], Operation::Store { .. }) && 0 < cleaned && cleaned < published);
    }
    let (rig, tables) = mapped(Hardware::QEMU);
    let operations = rig.model.record(|| tables.write(&rig, 3, 0));
    assert!(!operations.iter().any(|operation| matches!(operation, Operation::Clean { .. })), "{operations:x?}");
}

/// Of an entry, a cleared entry, a link.
#[test]
fn the_model_sees_each_clean_that_is_missing() {
    let change: [fn(&Rig, &Tables); 3] = [
        |rig, tables| tables.map(rig, 5, FRAME, PAGE_RW),
        |rig, tables| tables.write(rig, 3, 0),
        |rig, tables| tables.write_middle(rig, 0),
    ];
    for (number, change) in change.into_iter().enumerate() {
        for is_lost in [false, true] {
            let (rig, tables) = mapped(MACHINES[0]);
            if is_lost {
                rig.model.lose_clean(0);
            }
            change(&rig, &tables);
            rig.parts.smmu.invalidate(ASID, VirtAddr(0), VirtAddr(1 << 21), Scope::Tables);
            rig.model.audit(STREAM, 0x5000);
            rig.model.audit(STREAM, ADDRESS);
            let rules: BTreeSet<_> =
                rig.model.violations().iter().map(|violation| format!("{:?}", violation.rule)).collect();
            let expected = is_lost.then(|| format!("{:?}", SmmuRule::NotCleaned));
            assert_eq!(rules, expected.into_iter().collect(), "change {number}");
        }
    }
}
