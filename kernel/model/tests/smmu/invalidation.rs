//! Pages that a device may still reach after a change of its tables, and when memory may be given up.
//!
//! Each rule with its positive control: the stale translation is seen, then it is invalidated, then it is gone.

use std::collections::BTreeSet;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_model::smmu::{Access, Hardware, Operation, Outcome, Pace, SmmuRule};
use granule_smmuv3::{Scope, Step, Stream};
use proptest::prelude::*;

use crate::rig::{
    ASID, F_PERMISSION, F_TRANSLATION, PAGE_CLEAN, PAGE_RO, PAGE_RW, Rig, STREAM, Tables, update_context,
};

const FRAME: u64 = 0x1_2340_0000;
const LANDS: Outcome = Outcome::Reaches(FRAME);

/// A device that is translated by ASID 5, and page 3 mapped.
fn bound(hardware: Hardware, attributes: u64) -> (Rig, Tables) {
    let mut rig = Rig::new(hardware);
    let tables = Tables::new(&rig);
    rig.model.add_device(STREAM);
    tables.map(&rig, 3, FRAME, attributes);
    rig.translate(STREAM, &tables.context(ASID));
    (rig, tables)
}

const MACHINES: [Hardware; 2] = [Hardware::QEMU, Hardware::PLAIN];

#[track_caller]
fn only(rig: &Rig, access: Access, outcome: Outcome) {
    assert_eq!(rig.outcomes(0x3000, access), BTreeSet::from([outcome]));
    rig.model.audit(STREAM, 0x3000);
    rig.model.assert_clean();
}

#[track_caller]
fn either(rig: &Rig, access: Access, one: Outcome, other: Outcome) {
    assert_eq!(rig.outcomes(0x3000, access), BTreeSet::from([one, other]));
    rig.model.audit(STREAM, 0x3000);
    assert_eq!(rig.model.expect_violation().rule, SmmuRule::StaleTranslation);
}

#[test]
fn a_change_is_certain_when_it_is_invalidated() {
    for hardware in MACHINES {
        for (before, after, was, is) in [
            (PAGE_RW, PAGE_RO, LANDS, F_PERMISSION),
            (PAGE_RO, PAGE_RW, F_PERMISSION, LANDS),
            (PAGE_CLEAN, PAGE_CLEAN & !(1 << 7), F_PERMISSION, LANDS),
            (PAGE_RW, 0, LANDS, F_TRANSLATION),
        ] {
            let (rig, tables) = bound(hardware, before);
            only(&rig, Access::WRITE, was);
            tables.write(&rig, 3, if after == 0 { 0 } else { FRAME | after });
            either(&rig, Access::WRITE, was, is);
            rig.invalidate_page(0x3000);
            only(&rig, Access::WRITE, is);
        }
    }
}

/// The bug that upgrades had: the device read the page, so its read-only entry is kept, and writes go on faulting.
#[test]
fn an_upgrade_that_the_smmu_is_not_told_of_faults_for_ever() {
    let (rig, tables) = bound(Hardware::QEMU, PAGE_RO);
    rig.model.prefer_old();
    assert_eq!(rig.model.transact(STREAM, 0x3000, Access::READ), LANDS);
    tables.map(&rig, 3, FRAME, PAGE_RW);
    for _ in 0..100 {
        assert_eq!(rig.model.transact(STREAM, 0x3000, Access::WRITE), F_PERMISSION);
    }
    rig.invalidate_page(0x3000);
    assert_eq!(rig.model.transact(STREAM, 0x3000, Access::WRITE), LANDS);
}

#[test]
fn what_becomes_valid_or_young_needs_no_invalidation() {
    let (rig, tables) = bound(Hardware::QEMU, PAGE_RW);
    tables.map(&rig, 4, FRAME + 0x1000, PAGE_RW);
    assert_eq!(rig.outcomes(0x4000, Access::WRITE), BTreeSet::from([Outcome::Reaches(FRAME + 0x1000)]));
    // Not young: refused each time, and nothing is kept.
    tables.map(&rig, 5, FRAME, PAGE_RW & !(1 << 10));
    assert_eq!(rig.outcomes(0x5000, Access::READ), BTreeSet::from([Outcome::Refused { event: Some(0x12) }]));
    tables.map(&rig, 5, FRAME, PAGE_RW);
    assert_eq!(rig.outcomes(0x5000, Access::READ), BTreeSet::from([LANDS]));
}

#[test]
fn another_asid_or_another_page_does_not_help() {
    for rewrite in [
        |[low, high]: [u64; 2]| Some([if low & 0xff == 0x12 { low ^ 1 << 48 } else { low }, high]),
        |[low, high]: [u64; 2]| Some([low, if low & 0xff == 0x12 { high + 0x1000 } else { high }]),
        |command: [u64; 2]| (command[0] & 0xff != 0x12).then_some(command),
    ] {
        let (rig, tables) = bound(Hardware::QEMU, PAGE_RW);
        tables.write(&rig, 3, 0);
        rig.model.rewrite_commands(rewrite);
        rig.invalidate_page(0x3000);
        either(&rig, Access::WRITE, LANDS, F_TRANSLATION);
        rig.model.rewrite_commands(Some);
        rig.invalidate_page(0x3000);
        only(&rig, Access::WRITE, F_TRANSLATION);
    }
}

/// The driver with one step left out, and the same with it: only the latter may give the frame up.
#[test]
fn a_frame_may_be_reused_when_the_sync_was_taken() {
    let slow = Hardware { pace: Pace::PerLook(1), ..Hardware::QEMU };
    let lagging = Hardware { pace: Pace::ByHand, ..Hardware::QEMU };
    for (hardware, step, expected) in [
        (Hardware::QEMU, Some(Step::Sync), "no CMD_SYNC has completed"),
        (slow, Some(Step::Sync), "no CMD_SYNC has completed"),
        (slow, Some(Step::Wait), "no CMD_TLBI covers it"),
        (lagging, Some(Step::Wait), "no CMD_TLBI covers it"),
        (Hardware::QEMU, None, ""),
        (slow, None, ""),
    ] {
        // Setting up needs an SMMU that answers.
        let (rig, tables) = bound(Hardware { pace: Pace::AtOnce, ..hardware }, PAGE_RW);
        rig.model.set_pace(hardware.pace);
        tables.write(&rig, 3, 0);
        step.into_iter().for_each(|step| rig.model.leave_out(step));
        rig.invalidate_page(0x3000);
        rig.model.freed(PhysAddr(FRAME), 0x1000);
        if step.is_none() {
            rig.model.assert_clean();
            continue;
        }
        let violation = rig.model.expect_violation();
        assert!(violation.rule == SmmuRule::MemoryInUse && violation.text.contains(expected), "{violation}");
    }
}

/// The commands are in the queue, and PROD is written before they are certain to be seen: the SMMU takes what the slots
/// were.
#[test]
fn commands_come_before_prod() {
    let (rig, tables) = bound(Hardware::QEMU, PAGE_RW);
    tables.write(&rig, 3, 0);
    rig.model.leave_out(Step::DmbBeforeProd);
    rig.invalidate_page(0x3000);
    let violations = rig.model.violations();
    assert!(violations.iter().any(|violation| violation.rule == SmmuRule::UnorderedCommand), "{violations:?}");
    let (rig, tables) = bound(Hardware::QEMU, PAGE_RW);
    tables.write(&rig, 3, 0);
    rig.invalidate_page(0x3000);
    rig.model.assert_clean();
}

#[test]
fn a_table_is_given_up_by_an_invalidation_of_tables() {
    for (scope, is_enough) in [(Scope::Leaves, false), (Scope::Tables, true)] {
        let (rig, tables) = bound(Hardware::QEMU, PAGE_RW);
        tables.write_middle(&rig, 0);
        rig.parts.smmu.invalidate(ASID, VirtAddr(0x3000), VirtAddr(0x4000), scope);
        rig.model.freed(tables.last(), 0x1000);
        assert_eq!(rig.model.violations().is_empty(), is_enough, "{scope:?}");
    }
}

/// A block goes with any page of it.
#[test]
fn a_block_is_invalidated_by_any_address_in_it() {
    let (rig, tables) = bound(Hardware::QEMU, PAGE_RW);
    tables.write_middle(&rig, 0);
    rig.parts.smmu.invalidate_asid(ASID);
    tables.write_middle(&rig, 0x8000_0000 | PAGE_RW & !0b10);
    assert_eq!(rig.outcomes(0x12_3456, Access::WRITE), BTreeSet::from([Outcome::Reaches(0x8012_3456)]));
    tables.write_middle(&rig, 0);
    rig.invalidate_page(0x1f_f000);
    assert_eq!(rig.outcomes(0x12_3456, Access::WRITE), BTreeSet::from([F_TRANSLATION]));
}

/// A number that comes back without having been invalidated brings the last owner's translations along.
#[test]
fn an_asid_is_invalidated_before_it_is_given_again() {
    for flush in [false, true] {
        let (mut rig, _old) = bound(Hardware::QEMU, PAGE_RW);
        rig.set(STREAM, Stream::Abort);
        if flush {
            rig.parts.smmu.invalidate_asid(ASID);
        }
        let new = Tables::new(&rig);
        rig.translate(STREAM, &new.context(ASID));
        if flush {
            only(&rig, Access::WRITE, F_TRANSLATION);
        } else {
            either(&rig, Access::WRITE, LANDS, F_TRANSLATION);
        }
    }
}

/// Entries that are not of an ASID outlive an invalidation of one, and not of their address.
#[test]
fn global_entries_are_of_no_asid() {
    let (rig, tables) = bound(Hardware::QEMU, PAGE_RW & !(1 << 11));
    tables.write(&rig, 3, 0);
    rig.parts.smmu.invalidate_asid(ASID);
    either(&rig, Access::WRITE, LANDS, F_TRANSLATION);
    rig.invalidate_page(0x3000);
    only(&rig, Access::WRITE, F_TRANSLATION);
}

/// A process that exits while its device is at work: translation ends first, then its translations are forgotten, then
/// its tables may go; and the transactions in between are not reported.
#[test]
fn a_space_can_die_while_its_device_works() {
    let (mut rig, tables) = bound(Hardware::QEMU, PAGE_RW);
    rig.model.prefer_old();
    let context = tables.context(ASID);
    update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &context.disabled()).unwrap();
    assert_ne!(rig.model.transact(STREAM, 0x4000, Access::WRITE), F_TRANSLATION, "no event");
    rig.parts.smmu.invalidate_asid(ASID);
    rig.model.freed(PhysAddr(FRAME), 0x1000);
    rig.model.freed(tables.last(), 0x1000);
    assert_eq!(rig.parts.events.drain(&rig.parts.smmu, |event| panic!("{event}")).events, 0);
    rig.model.assert_clean();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Exactly the pages that have a byte in the range, by at most two commands where there are range commands.
    #[test]
    fn a_range_is_covered_and_nothing_else(first in 0u64..96, count in 1u64..96, spare in 0u64..0x1000, ranges: bool) {
        let hardware = Hardware { range_invalidation: ranges, ..Hardware::QEMU };
        let (rig, tables) = bound(hardware, PAGE_RW);
        let pages = 200;
        (0..pages).for_each(|page| tables.map(&rig, page, FRAME + page * 0x1000, PAGE_RW));
        (0..pages).for_each(|page| tables.write(&rig, page, 0));
        let (start, end) = (first * 0x1000 + spare, (first + count) * 0x1000);
        let done = rig.model.record(|| {
            rig.parts.smmu.invalidate(ASID, VirtAddr(start), VirtAddr(end), Scope::Leaves);
        });
        let commands: Vec<_> = done.iter().filter_map(|operation| match operation {
            Operation::Command(command) => Some(command[0] & 0xff),
            _ => None,
        }).collect();
        prop_assert_eq!(commands.iter().filter(|&&opcode| opcode == 0x46).count(), 1);
        let whole_asid = commands[0] == 0x11;
        prop_assert!(!ranges || commands.len() <= 3);
        for page in 0..pages {
            let gone = rig.outcomes(page * 0x1000, Access::READ) == BTreeSet::from([F_TRANSLATION]);
            prop_assert_eq!(gone, whole_asid || (first..first + count).contains(&page), "page {}", page);
        }
        rig.model.assert_clean();
    }
}
