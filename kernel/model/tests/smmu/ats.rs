//! Devices that translate ahead (ATS): what they keep goes by CMD_ATC_INV alone, after the CMD_SYNC of the CMD_TLBI.
//!
//! The driver sets no EATS. A test sets it by hand, and issues the commands.

use std::sync::atomic::Ordering::Relaxed;

use granule_model::smmu::{Hardware, Outcome, SmmuRule};
use granule_smmuv3::{Command, CommandError, Platform, Scope, Word};

use crate::rig::{ASID, PAGE_RW, Rig, STREAM, Tables, command, update_context};

const ATS: Hardware = Hardware { ats: true, ..Hardware::PLAIN };
const FRAME: u64 = 0x1_2340_0000;
const FORBIDDEN: Outcome = Outcome::Refused { event: Some(0x07) };

/// CMD_ATC_INV of `2^size` pages of 4 KiB.
fn atc_inv(stream: u32, address: u64, size: u64) -> Command {
    command([0x40 | u64::from(stream) << 32, address | size])
}

/// A device with ATS that has asked for page 3.
fn asked(hardware: Hardware) -> (Rig, Tables) {
    let mut rig = Rig::new(hardware);
    let tables = Tables::new(&rig);
    rig.model.add_device(STREAM);
    tables.map(&rig, 3, FRAME, PAGE_RW);
    rig.translate(STREAM, &tables.context(ASID));
    set_eats(&rig, 0b01);
    (rig, tables)
}

fn set_eats(rig: &Rig, value: u64) {
    let second = rig.model.stream_entry(STREAM) + 8;
    let before = rig.parts.streams.entry(STREAM).unwrap().0[1];
    rig.model.word(second).store(before & !(0b11 << 28) | value << 28, Relaxed);
    rig.platform.dmb_oshst();
    rig.parts.smmu.issue(&[Command::cfgi_ste(STREAM, Scope::Leaves)]).unwrap();
}

#[track_caller]
fn kept(rig: &Rig) {
    rig.model.audit(STREAM, 0x3000);
    let violation = rig.model.expect_violation();
    assert!(violation.rule == SmmuRule::StaleTranslation && violation.text.contains("CMD_ATC_INV"), "{violation}");
}

#[track_caller]
fn gone(rig: &Rig) {
    rig.model.audit(STREAM, 0x3000);
    rig.model.freed(granule_arch::addr::PhysAddr(FRAME), 0x1000);
    rig.model.assert_clean();
}

#[test]
fn what_a_device_keeps_goes_by_its_own_command() {
    let (rig, tables) = asked(ATS);
    rig.model.audit(STREAM, 0x3000);
    rig.model.assert_clean();
    tables.write(&rig, 3, 0);
    rig.invalidate_page(0x3000);
    kept(&rig);
    rig.model.freed(granule_arch::addr::PhysAddr(FRAME), 0x1000);
    assert_eq!(rig.model.expect_violation().rule, SmmuRule::MemoryInUse);
    rig.parts.smmu.issue(&[atc_inv(STREAM, 0x3000, 0)]).unwrap();
    gone(&rig);
}

/// Of another stream, of other pages, too early, or after the CMD_TLBI and not after its CMD_SYNC.
#[test]
fn a_command_that_does_not_cover_it_or_comes_too_early_does_not_count() {
    let tlbi = || Command::tlbi_nh_asid(ASID);
    for commands in [vec![tlbi()], vec![atc_inv(STREAM, 0x3000, 0), tlbi()], vec![tlbi(), atc_inv(STREAM, 0x3000, 0)]] {
        let (rig, tables) = asked(ATS);
        tables.write(&rig, 3, 0);
        rig.parts.smmu.issue(&commands).unwrap();
        kept(&rig);
    }
    for (command, takes) in [
        (atc_inv(STREAM + 1, 0x3000, 0), false),
        (atc_inv(STREAM, 0x2000, 0), false),
        (atc_inv(STREAM, 0x4000, 1), false),
        (atc_inv(STREAM, 0x2000, 1), true),
        (atc_inv(STREAM, 0, 52), true),
    ] {
        let (rig, tables) = asked(ATS);
        tables.write(&rig, 3, 0);
        rig.parts.smmu.issue(&[tlbi()]).unwrap();
        rig.parts.smmu.issue(&[command]).unwrap();
        if takes { gone(&rig) } else { kept(&rig) }
    }
    let (rig, _) = asked(ATS);
    rig.parts.smmu.issue(&[atc_inv(STREAM, 0x3000, 1)]).unwrap();
    assert_eq!(rig.model.expect_violation().rule, SmmuRule::Undefined, "not aligned to its size");
}

/// The tables of another space: the device may still have those of the first.
#[test]
fn a_stream_with_other_tables_needs_it_too() {
    let (mut rig, _tables) = asked(ATS);
    let others = Tables::new(&rig);
    update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &others.context(ASID + 1)).unwrap();
    rig.parts.smmu.invalidate_asid(ASID);
    kept(&rig);
    rig.parts.smmu.issue(&[atc_inv(STREAM, 0, 52)]).unwrap();
    gone(&rig);
}

#[test]
fn without_eats_or_without_ats_nothing_is_translated_ahead() {
    let (rig, tables) = asked(ATS);
    assert_eq!(rig.model.translated(STREAM, FRAME), Outcome::Reaches(FRAME));
    // Off, and the reserved values.
    for eats in [0b00, 0b10, 0b11] {
        set_eats(&rig, eats);
        assert_eq!(rig.model.translated(STREAM, FRAME), FORBIDDEN, "{eats:#b}");
    }
    tables.write(&rig, 3, 0);
    rig.invalidate_page(0x3000);
    gone(&rig);
    assert_eq!(rig.parts.smmu.issue(&[atc_inv(STREAM, 0x3000, 0)]), Ok(()));

    let (rig, tables) = asked(Hardware::PLAIN);
    assert_eq!(rig.model.translated(STREAM, FRAME), FORBIDDEN);
    tables.write(&rig, 3, 0);
    rig.invalidate_page(0x3000);
    gone(&rig);
    assert_eq!(rig.parts.smmu.issue(&[atc_inv(STREAM, 0x3000, 0)]), Err(CommandError::Illegal));
}
