//! From whatever state to translating.

use granule_model::smmu::{Access, Hardware, Operation, Outcome, SmmuModel, SmmuRule, View};
use granule_smmuv3::{Features, Platform, ProbeError, Stall, Stream, probe, registers::offset};

use crate::rig::{ASID, PAGE_RW, Rig, STREAM, Tables};

const MACHINES: [Hardware; 3] =
    [Hardware::QEMU, Hardware::PLAIN, Hardware { lag: 0, stream_bits: 20, ..Hardware::QEMU }];

#[test]
fn every_stream_is_refused_after_it() {
    for hardware in MACHINES {
        let rig = Rig::new(hardware);
        let streams: &[u32] = &[0, 1, 8, 0xff, 0x100, 0xffff, 1 << 19];
        for &stream in streams.iter().filter(|&&stream| stream >> hardware.stream_bits == 0) {
            rig.model.add_device(stream);
            let outcome = rig.model.transact(stream, 0x4000_0000, Access::READ);
            assert!(matches!(outcome, Outcome::Refused { .. }), "stream {stream:#x} of {hardware:?}: {outcome:?}");
        }
    }
}

#[test]
fn nothing_passes_at_any_step_of_it() {
    for hardware in MACHINES {
        for model in [SmmuModel::new(hardware), SmmuModel::in_use(hardware)] {
            let was_open = model.view_now(STREAM) == View::OffPasses;
            let platform = model.platform();
            let done = model.record(|| drop(probe(platform).unwrap()));
            let closed = done.iter().position(|operation| {
                matches!(operation, Operation::Write { offset: offset::GBPA, value } if value & 1 << 20 != 0)
            });
            let first = done.iter().position(|operation| matches!(operation, Operation::Write { .. }));
            assert_eq!(first, closed, "the first write is GBPA.ABORT");
            assert!(was_open || closed.is_some());
            model.assert_clean();
        }
    }
}

#[test]
fn what_somebody_else_left_is_gone() {
    let rig = Rig::of(SmmuModel::in_use(Hardware::QEMU));
    let stats = rig.parts.smmu.stats();
    assert_eq!((stats.errors, stats.illegal), (0, 0), "the error of the past is acknowledged before the queue starts");
    assert!(rig.model.reports().is_empty());
}

#[test]
fn features_are_those_of_the_id_registers() {
    let features = Features::read(&SmmuModel::new(Hardware::QEMU).platform());
    assert!(features.stage1 && features.stage2 && features.aarch64 && features.coherent && features.two_levels);
    assert!(features.range_invalidation && !features.broadcast && !features.access_flag && !features.event);
    assert_eq!((features.stream_bits, features.substream_bits, features.asid_bits), (16, 0, 16));
    assert_eq!((features.output_bits, features.bbm_level, features.minor), (44, 2, 1));
    assert_eq!(features.stall, Stall::Never);
    let plain = Features::read(&SmmuModel::new(Hardware::PLAIN).platform());
    assert!(!plain.two_levels && !plain.range_invalidation);
    assert!(plain.privilege_override && !features.privilege_override);
    assert_eq!((plain.stall, plain.stream_bits, plain.minor), (Stall::ByContext, 8, 0));
}

#[test]
fn an_smmu_that_does_not_fit_is_refused_and_lets_nothing_pass() {
    for (hardware, why) in [
        (Hardware { command_bits: 4, ..Hardware::QEMU }, "command queue"),
        (Hardware { event_bits: 3, ..Hardware::QEMU }, "event queue"),
        (Hardware { stall_model: 2, ..Hardware::QEMU }, "STALL_MODEL"),
    ] {
        let model = SmmuModel::new(hardware);
        let error = probe(model.platform()).err().expect("it does not fit");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(model.view_now(STREAM), View::OffAborts);
    }
}

/// With IDR0.ATS a device may mark an address as translated already. No entry permits that.
#[test]
fn what_a_device_calls_translated_does_not_pass() {
    let forbidden = Outcome::Refused { event: Some(0x07) };
    for ats in [false, true] {
        let mut rig = Rig::new(Hardware { ats, ..Hardware::PLAIN });
        let tables = Tables::new(&rig);
        tables.map(&rig, 3, 0x1_0000_0000, PAGE_RW);
        assert_eq!(rig.model.translated(STREAM, 0x4000_0000), Outcome::Refused { event: None }, "nothing attached");
        rig.translate(STREAM, &tables.context(ASID));
        assert_eq!(rig.model.translated(STREAM, 0x4000_0000), forbidden, "ATS: {ats}");
        rig.set(STREAM, Stream::Bypass);
        assert_eq!(rig.model.translated(STREAM, 0x4000_0000), forbidden, "ATS: {ats}");
    }
    let model = SmmuModel::new(Hardware { ats: true, lag: 0, ..Hardware::QEMU });
    let platform = model.platform();
    drop(probe(model.platform()).unwrap());
    platform.write32(offset::CR0, platform.read32(offset::CR0) & !(1 << 4));
    assert!(model.expect_violation().text.contains("ATSCHK changes"));
    assert_eq!(model.translated(STREAM, 0x4000_0000), Outcome::Reaches(0x4000_0000), "without the check it passes");
}

#[test]
fn an_smmu_that_does_not_answer_is_an_error() {
    let model = SmmuModel::new(Hardware { lag: u32::MAX, ..Hardware::QEMU });
    let error = probe(model.platform()).err().expect("it never answers");
    assert!(matches!(error, ProbeError::NoAnswer { .. }), "{error}");

    let model = SmmuModel::new(Hardware::QEMU);
    model.answer(false);
    let error = probe(model.platform()).err().expect("it takes no commands");
    assert!(matches!(error, ProbeError::Command(_)), "{error}");
    assert_eq!(model.view_now(STREAM), View::OffAborts);
    model.assert_clean();
}

#[test]
fn memory_may_run_out_at_any_step_of_it() {
    for allocations in 0.. {
        let model = SmmuModel::new(Hardware::QEMU);
        model.limit_allocations(allocations);
        match probe(model.platform()) {
            Ok(_) => {
                assert!(allocations > 2);
                break;
            }
            Err(error) => assert!(matches!(error, ProbeError::OutOfMemory(_)), "{error}"),
        }
        assert_eq!(model.view_now(STREAM), View::OffAborts);
        assert_eq!(model.memory_in_use(), 0, "after {allocations} allocations");
    }
}

/// The rules of the model, each broken by hand.
#[test]
fn the_model_sees_a_reset_in_the_wrong_order() {
    let broken = |what: fn(&dyn Fn(usize, u32))| {
        let model = SmmuModel::new(Hardware { lag: 0, ..Hardware::QEMU });
        let platform = model.platform();
        what(&|offset, value| platform.write32(offset, value));
        model.expect_violation().to_string()
    };
    let open = broken(|write| write(offset::CR0, 0));
    assert!(open.contains("GBPA.ABORT comes first"), "{open}");
    let cold = broken(|write| {
        write(offset::GBPA, 1 << 31 | 1 << 20);
        // The lag of GBPA is none: the next look shows it done.
        write(offset::GBPA, 1 << 31 | 1 << 20);
    });
    assert!(cold.contains("update of it is under way"), "{cold}");

    let model = SmmuModel::new(Hardware::QEMU);
    let platform = model.platform();
    platform.write32(offset::GBPA, 1 << 31 | 1 << 20);
    while platform.read32(offset::GBPA) & 1 << 31 != 0 {}
    platform.write32(offset::CR1, 0xd75 ^ 0x800);
    platform.write32(offset::CR2, !(1 << 2));
    platform.write32(offset::CR0, 1);
    let rules: Vec<_> = model.violations();
    for missing in ["CMD_CFGI_ALL", "CMD_TLBI_NSNH_ALL", "EVENTQEN", "CR1 is 0x575", "(PTM)"] {
        assert!(rules.iter().any(|violation| violation.text.contains(missing)), "{missing}: {rules:?}");
    }
    assert!(rules.iter().any(|violation| violation.rule == SmmuRule::Misaligned));
    platform.write32(offset::CR1, 0);
    assert!(model.expect_violation().text.contains("CR0ACK"));
    platform.write32(offset::CR0, 0);
    assert!(model.expect_violation().text.contains("before CR0ACK answered"));
}

/// A base that is not aligned to the size is cut off by the SMMU, which then works elsewhere: QEMU does not report it.
#[test]
fn the_model_sees_a_queue_that_is_not_aligned_to_its_size() {
    for (base, enable) in [(offset::CMDQ_BASE, 1 << 3), (offset::EVENTQ_BASE, 1 << 2)] {
        for (shift, is_right) in [(0, true), (0x40, false)] {
            let model = SmmuModel::new(Hardware { lag: 0, ..Hardware::QEMU });
            let platform = model.platform();
            let memory = model.allocate(0x4000);
            platform.write32(offset::GBPA, 1 << 31 | 1 << 20);
            while platform.read32(offset::GBPA) & 1 << 31 != 0 {}
            platform.write64(base, (memory.phys().0 + shift) | 7);
            platform.write32(offset::CR0, enable);
            let violations = model.violations();
            assert_eq!(violations.is_empty(), is_right, "{violations:?}");
            assert!(violations.iter().all(|violation| violation.rule == SmmuRule::Misaligned));
        }
    }
}

/// More events than there are cannot be given back.
#[test]
fn the_model_sees_events_taken_that_nobody_recorded() {
    let rig = Rig::new(Hardware::QEMU);
    rig.platform.write32(offset::EVENTQ_CONS, 1);
    assert!(rig.model.violations().iter().any(|violation| violation.rule == SmmuRule::Index));
}
