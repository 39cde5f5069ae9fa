//! Each barrier of the driver, by the accesses that it stands between in the record. The model itself misses a barrier
//! only where what it orders was late.

use granule_arch::addr::VirtAddr;
use granule_model::smmu::{Barrier, Hardware, Operation, SmmuModel};
use granule_smmuv3::{CommandError, Privilege, Scope, Stream, probe};

use crate::rig::{ASID, Rig, STREAM, Tables, command, set, update_context};

/// Registers.
const CR0: usize = 0x20;
const GERROR: usize = 0x60;
const GERRORN: usize = 0x64;
const CMDQ_PROD: usize = 0x98;
const CMDQ_CONS: usize = 0x9c;
const EVENTQ_PROD: usize = 0x1_00a8;
const EVENTQ_CONS: usize = 0x1_00ac;

const fn is_read(operation: &Operation, of: usize) -> bool {
    matches!(operation, Operation::Read { offset, .. } if *offset == of)
}

const fn is_write(operation: &Operation, of: usize) -> bool {
    matches!(operation, Operation::Write { offset, .. } if *offset == of)
}

const fn is_store(operation: &Operation) -> bool {
    matches!(operation, Operation::Store { .. })
}

/// Asserts that a barrier of this kind is between the last operation of `before` and each of `behind`; there are some.
#[track_caller]
fn assert_between(
    operations: &[Operation],
    before: impl Fn(&Operation) -> bool,
    barrier: Barrier,
    behind: impl Fn(&Operation) -> bool,
) {
    let mut found = 0;
    for (at, _) in operations.iter().enumerate().filter(|(_, operation)| behind(operation)) {
        let Some(last) = operations[..at].iter().rposition(&before) else { continue };
        found += 1;
        assert!(operations[last..at].contains(&Operation::Barrier(barrier)), "{at}: {operations:x?}");
    }
    assert!(found > 0, "{operations:x?}");
}

/// Commands in front of CMDQ_PROD; and what follows the call, the reuse of a page, after the look at CMDQ_CONS that
/// found it complete.
#[test]
fn a_call_is_published_behind_its_commands_and_ends_behind_the_smmu() {
    let rig = Rig::new(Hardware::QEMU);
    let calls: [fn(&Rig); 2] = [
        |rig| rig.parts.smmu.invalidate(ASID, VirtAddr(0x1000), VirtAddr(0x9000), Scope::Leaves),
        |rig| rig.parts.smmu.invalidate_asid(ASID),
    ];
    for call in calls {
        let operations = rig.model.record(|| call(&rig));
        assert_between(&operations, is_store, Barrier::Store, |operation| is_write(operation, CMDQ_PROD));
        let looked = operations.iter().rposition(|operation| is_read(operation, CMDQ_CONS)).unwrap();
        assert_eq!(operations[looked + 1..], [Operation::Barrier(Barrier::Load)]);
    }
}

/// Slots are written again after the look at CMDQ_CONS that found room in the queue: the SMMU has read them.
#[test]
fn slots_are_filled_again_behind_the_look_that_found_room() {
    let rig = Rig::new(Hardware::QEMU);
    let mut waits = 0;
    // The queue is full, as far as the driver knows, after 256 commands.
    for _ in 0..400 {
        let operations = rig.model.record(|| rig.parts.smmu.invalidate_asid(ASID));
        let first = operations.iter().position(is_store).unwrap();
        let looked = operations[..first].iter().rposition(|operation| is_read(operation, CMDQ_CONS));
        if let Some(looked) = looked {
            assert_eq!(operations[looked + 1..first], [Operation::Barrier(Barrier::Load)]);
            waits += 1;
        }
    }
    assert!(waits >= 3, "{waits}");
}

/// The SMMU's writes before it raised an error are read after GERROR, and the command at which it has stopped after
/// CMDQ_CONS; the command that takes that one's place is there before GERRORN lets the SMMU go on.
#[test]
fn an_error_is_served_between_barriers() {
    let rig = Rig::new(Hardware::QEMU);
    let illegal = || assert_eq!(rig.parts.smmu.issue(&[command([0x7f, 0])]), Err(CommandError::Illegal));
    let operations = rig.model.record(illegal);
    let acknowledged = operations.iter().position(|operation| is_write(operation, GERRORN)).unwrap();
    let served = operations[..acknowledged].iter().rposition(|operation| is_read(operation, GERROR)).unwrap();
    let steps: Vec<&str> = operations[served..=acknowledged].iter().map(step).collect();
    let expected = [
        "GERROR",
        "GERRORN",
        "load barrier",
        "CONS",
        "CONS",
        "load barrier",
        "store",
        "store",
        "store barrier",
        "GERRORN",
        "write",
    ];
    assert_eq!(steps, expected);
}

/// An operation of the service of an error.
fn step(operation: &Operation) -> &'static str {
    match operation {
        Operation::Read { offset: GERROR, .. } => "GERROR",
        Operation::Read { offset: GERRORN, .. } => "GERRORN",
        Operation::Read { offset: CMDQ_CONS, .. } => "CONS",
        Operation::Barrier(Barrier::Load) => "load barrier",
        Operation::Barrier(Barrier::Store) => "store barrier",
        Operation::Store { .. } => "store",
        Operation::Write { offset: GERRORN, .. } => "write",
        other => panic!("{other:?}"),
    }
}

/// Records after EVENTQ_PROD, and EVENTQ_CONS after the records.
#[test]
fn events_are_taken_between_two_barriers() {
    let mut rig = Rig::new(Hardware::QEMU);
    rig.model.raise_event([0x10 | (STREAM as u64) << 32, 0, 0x1000, 0]);
    let model = rig.model;
    let operations = model.record(|| {
        assert_eq!(rig.parts.events.drain(&rig.parts.smmu, |_| ()).events, 1);
    });
    let produced = operations.iter().position(|operation| is_read(operation, EVENTQ_PROD)).unwrap();
    let consumed = operations.iter().position(|operation| is_write(operation, EVENTQ_CONS)).unwrap();
    let load = Operation::Barrier(Barrier::Load);
    assert_eq!(operations[produced + 1..consumed], [load, load], "the records are read between the two");
}

/// The caller's tables in front of what leads to them, whether that is the stream's entry or its context.
#[test]
fn what_the_caller_has_stored_comes_before_what_leads_there() {
    for hardware in [Hardware::QEMU, Hardware::PLAIN] {
        let mut rig = Rig::new(hardware);
        let [first, second] = [ASID, ASID + 1].map(|asid| Tables::new(&rig).context(asid));
        rig.translate(STREAM, &first);
        let model = rig.model;
        // From one context to another: the free one, and after a barrier the entry.
        let to = Stream::Translate { context: &second, privilege: Privilege::Incoming };
        let set = model.record(|| set(&mut rig.parts.streams, &rig.parts.smmu, STREAM, to).unwrap());
        let entry = model.stream_entry(STREAM).0;
        let is_entry = |operation: &Operation| matches!(operation, Operation::Store { address, .. } if (entry..entry + 64).contains(address));
        assert_between(&set, |operation| is_store(operation) && !is_entry(operation), Barrier::Store, is_entry);
        // In place.
        let update = || update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &second.disabled()).unwrap();
        let updated = model.record(update);
        assert_eq!(updated[0], Operation::Barrier(Barrier::Store));
        assert!(is_store(&updated[1]), "{updated:x?}");
    }
}

/// Tables and queues are in memory when a bit of CR0 has the SMMU read or write them.
#[test]
fn memory_is_stored_before_a_bit_of_cr0_gives_it_to_the_smmu() {
    for hardware in [Hardware::QEMU, Hardware::PLAIN] {
        let model = SmmuModel::new(hardware);
        let operations = model.record(|| _ = probe(model.platform()).expect("the model answers"));
        let enables =
            |operation: &Operation| matches!(operation, Operation::Write { offset: CR0, value } if *value != 0);
        assert!(operations.iter().filter(|operation| enables(operation)).count() >= 3);
        let first = operations.iter().position(enables).unwrap();
        // One of two levels has nothing in it yet: no store, and the barrier all the same, for what was zeroed.
        let last = operations[..first].iter().rposition(is_store).unwrap_or(0);
        assert!(operations[last..first].contains(&Operation::Barrier(Barrier::Store)), "{operations:x?}");
        if !hardware.two_levels {
            assert_between(&operations, is_store, Barrier::Store, enables);
        }
        model.assert_clean();
    }
}
