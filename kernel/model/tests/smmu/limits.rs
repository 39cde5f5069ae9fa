//! Runs without end come to a verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use granule_model::smmu::{Hardware, SmmuRule};
use granule_smmuv3::registers::offset;
use granule_smmuv3::{Platform, Word};

use crate::rig::{ASID, PAGE_RW, Rig, STREAM, Tables};

/// 512 entries of a table that each lead to the table itself: 512³ leaves. Later stores are not followed.
#[test]
fn tables_that_lead_to_themselves_are_a_violation() {
    let mut rig = Rig::new(Hardware::QEMU);
    let tables = Tables::new(&rig);
    rig.model.add_device(STREAM);
    let root = tables.root();
    for entry in 0..512 {
        rig.model.word(root + entry * 8).store(root.0 | 0b11, Relaxed);
    }
    rig.platform.dmb_oshst();
    rig.translate(STREAM, &tables.context(ASID));
    tables.map(&rig, 3, 0x1_2340_0000, PAGE_RW);
    let violation = rig.model.expect_violation();
    assert!(violation.rule == SmmuRule::Endless && violation.text.contains("entries and more"), "{violation}");
}

/// A driver that waits for what never comes.
#[test]
fn a_wait_without_end_is_a_panic() {
    let rig = Rig::new(Hardware::QEMU);
    let waits = || while rig.platform.read32(offset::CR0ACK) != 0 {};
    let panic = catch_unwind(AssertUnwindSafe(waits)).expect_err("it waits for ever");
    let text = panic.downcast_ref::<String>().expect("a message");
    assert!(text.contains("does not come to an end") && text.contains("Read"), "{text}");
    rig.model.forget();
    assert_ne!(rig.platform.read32(offset::CR0ACK), 0, "it goes on");
}
