//! The event queue on the model: what records mean, in which order they come, what is lost.

use granule_arch::addr::VirtAddr;
use granule_model::smmu::{Access, Barrier, Hardware, Overflow, SmmuRule};
use granule_smmuv3::{Access as Wanted, Class, Drained, EVENT_QUEUE_BITS, Event, Kind, Stream};
use proptest::prelude::{ProptestConfig, any, prop, prop_assert_eq, proptest};

use crate::rig::{ASID, PAGE_RO, PAGE_RW, Rig, STREAM, Tables};

const CAPACITY: usize = 1 << EVENT_QUEUE_BITS;

/// Events that are numbered by their address.
fn raise(rig: &Rig, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| rig.model.raise_event([0x10 | 8 << 32, 0x0208_0000_0000, number as u64 * 0x1000, 0]));
}

fn drain(rig: &mut Rig) -> (Vec<usize>, Drained) {
    let mut numbers = Vec::new();
    let number = |event: &Event| (event.address.expect("it has one").0 / 0x1000) as usize;
    let drained = rig.parts.events.drain(&rig.parts.smmu, |event| numbers.push(number(event)));
    assert_eq!(drained.events, numbers.len());
    (numbers, drained)
}

#[test]
fn events_come_once_and_in_order() {
    let mut rig = Rig::new(Hardware::QEMU);
    let mut next = 0;
    for batch in [0, 1, 5, CAPACITY, 0, CAPACITY - 1, 3, CAPACITY, 77, CAPACITY, CAPACITY] {
        raise(&rig, next..next + batch);
        let (numbers, drained) = drain(&mut rig);
        assert!(numbers.into_iter().eq(next..next + batch));
        assert!(!drained.lost, "a queue that is just full has lost nothing");
        next += batch;
    }
    rig.model.assert_clean();
}

#[test]
fn an_overflow_is_told_once_and_survived() {
    for overflow in [Overflow::Flag, Overflow::GlobalError] {
        let mut rig = Rig::new(Hardware { overflow, ..Hardware::QEMU });
        for round in 0..3 {
            let first = round * 1000;
            raise(&rig, first..first + CAPACITY + 9);
            let (numbers, drained) = drain(&mut rig);
            assert!(numbers.into_iter().eq(first..first + CAPACITY), "the oldest are kept");
            assert!(drained.lost);
            // The interrupt of global errors, at any time.
            assert_eq!(rig.parts.smmu.acknowledge_errors(), overflow == Overflow::GlobalError);
            drain(&mut rig);
            assert_eq!(drain(&mut rig), (Vec::new(), Drained::default()), "{overflow:?}, round {round}");
            raise(&rig, first + 500..first + 502);
            assert_eq!(drain(&mut rig), (vec![first + 500, first + 501], Drained { events: 2, lost: false }));
        }
        rig.model.assert_clean();
    }
}

/// An acknowledgement of the global error does not hide it from the drain.
#[test]
fn a_loss_is_told_after_its_error_was_acknowledged() {
    let mut rig = Rig::new(Hardware { overflow: Overflow::GlobalError, ..Hardware::QEMU });
    raise(&rig, 0..CAPACITY + 1);
    assert!(rig.parts.smmu.acknowledge_errors());
    assert!(drain(&mut rig).1.lost);
    assert!(!drain(&mut rig).1.lost);
}

/// Each barrier is needed: without the first the records are read ahead of the index, without the second they are given
/// back before they were read.
#[test]
fn records_are_read_between_two_barriers() {
    for (lost, expected) in [(0, "before PROD"), (1, "before their records are certain")] {
        let mut rig = Rig::new(Hardware::QEMU);
        raise(&rig, 0..1);
        rig.model.lose_barrier(Barrier::Load, lost);
        rig.parts.events.drain(&rig.parts.smmu, |event| {
            // The slot before the record.
            assert_eq!(event.record == [0; 4], lost == 0);
        });
        let violation = rig.model.expect_violation();
        assert!(violation.rule == SmmuRule::UnorderedEvent, "{violation}");
        assert!(lost == 0 || violation.text.contains(expected), "{violation}");
    }
}

/// A device that faults again for each event that is handled does not keep the CPU.
#[test]
fn draining_ends() {
    for waiting in [1, CAPACITY / 2] {
        let mut rig = Rig::new(Hardware::QEMU);
        raise(&rig, 0..waiting);
        let model = &rig.model;
        let mut handled = 0;
        let drained = rig.parts.events.drain(&rig.parts.smmu, |_| {
            handled += 1;
            assert!(handled <= 2 * CAPACITY, "it goes on for ever");
            model.raise_event([0x10 | 8 << 32, 0, 0, 0]);
        });
        assert_eq!((drained.events, drained.lost), (handled, false));
        assert!(handled >= CAPACITY);
    }
}

/// An index that no queue of this size can have: the records mean nothing, and something was lost.
#[test]
fn an_index_that_is_none_is_not_believed() {
    let mut rig = Rig::new(Hardware::QEMU);
    raise(&rig, 0..3);
    rig.model.corrupt_event_prod(CAPACITY as u32 + 17);
    let drained = rig.parts.events.drain(&rig.parts.smmu, |event| panic!("{event}"));
    assert_eq!(drained, Drained { events: 0, lost: true });
    rig.model.assert_clean();
    // It continues from there.
    raise(&rig, 7..9);
    assert_eq!(drain(&mut rig), (vec![7, 8], Drained { events: 2, lost: false }));
}

/// The device's access, the model's record, and the event that the driver reads.
#[test]
fn faults_are_told_as_they_were() {
    let mut rig = Rig::new(Hardware::QEMU);
    let tables = Tables::new(&rig);
    tables.map(&rig, 3, 0x4000_0000, PAGE_RO);
    tables.map(&rig, 4, 0x4000_0000, PAGE_RW & !(1 << 10));
    rig.translate(STREAM, &tables.context(ASID));
    for (address, access, kind, wanted) in [
        (0x3123, Access::WRITE, Kind::Permission, Wanted::Write),
        (0x4000, Access::READ, Kind::AccessFlag, Wanted::Read),
        (0x5ff8, Access::READ, Kind::Translation, Wanted::Read),
        (1 << 40, Access::PRIVILEGED_WRITE, Kind::Translation, Wanted::Write),
    ] {
        rig.model.transact(STREAM, address, access);
        let mut events = Vec::new();
        rig.parts.events.drain(&rig.parts.smmu, |event| events.push(*event));
        let [event] = events[..] else { panic!("{events:?}") };
        assert_eq!((event.kind, event.stream, event.address), (kind, STREAM, Some(VirtAddr(address))));
        assert_eq!((event.access, event.privileged), (Some(wanted), access.privileged));
        assert!(event.is_page_fault() && event.class == Some(Class::Input));
        assert_eq!((event.substream, event.stalled, event.fetched, event.stage2), (None, None, None, false));
    }
    rig.set(STREAM, Stream::Abort);
    rig.model.transact(STREAM, 0x3000, Access::READ);
    assert_eq!(drain(&mut rig).0, [], "an aborted stream leaves no event");
    rig.model.transact(0x100, 0x3000, Access::READ);
    let mut text = String::new();
    rig.parts.events.drain(&rig.parts.smmu, |event| text = event.to_string());
    assert_eq!(text, "stream 0x100: C_BAD_STREAMID: the stream table has no entry");
    rig.model.assert_clean();
}

/// Records as they were seen from QEMU, and as the specification's tables have them (7.3), in words.
#[test]
fn records_in_words() {
    for (record, text) in [
        (
            [0x8_0000_0013, 0x200_0000_0000, 0x1_0000_0000, 0],
            "stream 0x8: F_PERMISSION: the page does not allow it, write at 0x100000000",
        ),
        (
            [0x8_0000_0010, 0x208_0000_0000, 0x1_0000_0000, 0],
            "stream 0x8: F_TRANSLATION: nothing is mapped, read at 0x100000000",
        ),
        (
            [0x8_0000_0012, 0x20e_0000_0000, 0x1000, 0],
            "stream 0x8: F_ACCESS: the page is not marked young, privileged fetch at 0x1000",
        ),
        ([0x8_0000_0004, u64::MAX, u64::MAX, 0], "stream 0x8: C_BAD_STE: the stream table entry is invalid or illegal"),
        ([0x18_0000_000a, 0, 0, 0], "stream 0x18: C_BAD_CD: the context descriptor is invalid or illegal"),
        (
            [0x8_0012_3811, 0x128_8000_0077, 0x2000, 0],
            "stream 0x8 substream 0x123: F_ADDR_SIZE: an address is too large, read at 0x2000, on the way to a table, \
             stalled with tag 119",
        ),
        (
            [0x8_0000_000b, 0x188_0000_0000, 0x3000, 0x8_1234_5678],
            "stream 0x8: F_WALK_EABT: a table could not be read, read at 0x3000, on the way to a table, at stage 2, \
             reading 0x812345678",
        ),
        (
            [0x8_0000_0009, 0, 0, 0x9_0000_0040],
            "stream 0x8: F_CD_FETCH: the context descriptor could not be read, reading 0x900000040",
        ),
        ([0x8_0000_00e5, 1, 2, 3], "stream 0x8: event 0xe5: not in the specification, record [8000000e5, 1, 2, 3]"),
    ] {
        assert_eq!(Event::decode(record).to_string(), text);
    }
}

/// Numbers and names, from the specification's list.
#[test]
fn every_kind_has_its_number() {
    let list = [
        (0x01, "F_UUT"),
        (0x02, "C_BAD_STREAMID"),
        (0x03, "F_STE_FETCH"),
        (0x04, "C_BAD_STE"),
        (0x05, "F_BAD_ATS_TREQ"),
        (0x06, "F_STREAM_DISABLED"),
        (0x07, "F_TRANSL_FORBIDDEN"),
        (0x08, "C_BAD_SUBSTREAMID"),
        (0x09, "F_CD_FETCH"),
        (0x0a, "C_BAD_CD"),
        (0x0b, "F_WALK_EABT"),
        (0x10, "F_TRANSLATION"),
        (0x11, "F_ADDR_SIZE"),
        (0x12, "F_ACCESS"),
        (0x13, "F_PERMISSION"),
        (0x20, "F_TLB_CONFLICT"),
        (0x21, "F_CFG_CONFLICT"),
        (0x24, "E_PAGE_REQUEST"),
        (0x25, "F_VMS_FETCH"),
    ];
    for number in 0..=u8::MAX {
        let event = Event::decode([number.into(), 0, 0, 0]);
        match list.iter().find(|(known, _)| *known == number) {
            Some((_, name)) => assert_eq!(event.kind.name(), *name),
            None => assert_eq!(event.kind, Kind::Other(number)),
        }
        // Stage 1 faults on what was asked for, and nothing else, are page faults of the bound space.
        let class_input = Event::decode([number.into(), 0b10 << 40, 0, 0]);
        assert_eq!(class_input.is_page_fault(), matches!(number, 0x10 | 0x12 | 0x13));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Records of any kind, stream and address, in any number, with a queue that overflows: as many come out as the
    /// queue held, in order, each as it was written, and each can be printed.
    #[test]
    fn records_that_say_anything_come_out_as_they_are(
        records in prop::collection::vec(any::<[u64; 4]>(), 0..2 * CAPACITY), known: bool
    ) {
        let mut rig = Rig::new(Hardware::QEMU);
        let records = records.into_iter().map(|[first, second, third, fourth]| {
            // Of random kinds most are not in the specification.
            let kind = if known { first & 0x33 } else { first & 0xff };
            [first & !0xff | kind, second, third, fourth]
        });
        let records: Vec<[u64; 4]> = records.collect();
        records.iter().for_each(|&record| rig.model.raise_event(record));
        let mut seen = Vec::new();
        let drained = rig.parts.events.drain(&rig.parts.smmu, |event| {
            assert!(event.to_string().starts_with(&format!("stream {:#x}", event.record[0] >> 32)));
            seen.push(event.record);
        });
        prop_assert_eq!(&seen[..], &records[..records.len().min(CAPACITY)]);
        prop_assert_eq!((drained.events, drained.lost), (seen.len(), records.len() > CAPACITY));
    }
}
