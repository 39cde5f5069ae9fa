//! Streams set up and changed by the driver, with the model looking on at every store.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use granule_model::smmu::{
    Access, Barrier, Context, Entry, Hardware, Operation, Outcome, Overflow, Pace, SmmuRule, View,
};
use granule_smmuv3::{
    Command, CommandError, ContextDescriptor, Privilege, Stream, StreamError, StreamTableEntry, Word,
};

use crate::rig::{ASID, F_TRANSLATION, PAGE_RW, Rig, SILENT, STREAM, Tables, command, set, update_context};

const MACHINES: [Hardware; 2] =
    [Hardware::QEMU, Hardware { overrides_privilege: true, overflow: Overflow::Flag, ..Hardware::PLAIN }];

fn views_of(rig: &Rig) -> BTreeSet<View> {
    rig.model.views(STREAM)
}

#[test]
fn each_kind_does_what_it_says() {
    for hardware in MACHINES {
        let mut rig = Rig::new(hardware);
        let tables = Tables::new(&rig);
        tables.map(&rig, 3, 0x1_2340_0000, PAGE_RW);
        rig.model.add_device(STREAM);
        assert!(matches!(rig.model.transact(STREAM, 0x3010, Access::WRITE), Outcome::Refused { .. }));
        rig.set(STREAM, Stream::Bypass);
        assert_eq!(rig.model.transact(STREAM, 0x3010, Access::WRITE), Outcome::Reaches(0x3010));
        rig.translate(STREAM, &tables.context(ASID));
        assert_eq!(rig.model.transact(STREAM, 0x3010, Access::WRITE), Outcome::Reaches(0x1_2340_0010));
        assert_eq!(rig.model.transact(STREAM, 0x4000, Access::WRITE), F_TRANSLATION);
        update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &tables.context(ASID).disabled()).unwrap();
        assert_eq!(rig.model.transact(STREAM, 0x3010, Access::WRITE), SILENT);
        rig.set(STREAM, Stream::Abort);
        assert_eq!(rig.model.transact(STREAM, 0x3010, Access::WRITE), SILENT);
        rig.model.audit(STREAM, 0x3000);
        rig.model.assert_clean();
    }
}

/// A page that EL0 must not see, as the doorbell of interrupts is, can be reached by a privileged stream alone.
#[test]
fn privilege_decides_about_pages_of_el1() {
    let mut rig = Rig::new(MACHINES[1]);
    let tables = Tables::new(&rig);
    tables.map(&rig, 3, 0x1_2340_0000, PAGE_RW & !(1 << 6));
    let context = tables.context(ASID);
    rig.translate(STREAM, &context);
    assert_eq!(rig.model.transact(STREAM, 0x3000, Access::WRITE), crate::rig::F_PERMISSION);
    assert_eq!(rig.model.transact(STREAM, 0x3000, Access::PRIVILEGED_WRITE), Outcome::Reaches(0x1_2340_0000));
    rig.set(STREAM, Stream::Translate { context: &context, privilege: Privilege::Privileged });
    assert_eq!(rig.model.transact(STREAM, 0x3000, Access::WRITE), Outcome::Reaches(0x1_2340_0000));
}

/// Where PRIVCFG is not looked at (IDR1.ATTR_PERMS_OVR is 0) the transaction's own privilege decides, or none, as on
/// QEMU's.
#[test]
fn privilege_that_cannot_be_overridden_is_the_transactions() {
    let decides = Hardware { overrides_privilege: false, ignores_privilege: false, ..Hardware::PLAIN };
    let (frame, refused) = (Outcome::Reaches(0x1_2340_0000), crate::rig::F_PERMISSION);
    for (hardware, incoming) in [(decides, refused), (Hardware::QEMU, frame)] {
        let mut rig = Rig::new(hardware);
        assert_eq!(rig.parts.smmu.features().ignores_privilege(), hardware.ignores_privilege);
        let tables = Tables::new(&rig);
        tables.map(&rig, 3, 0x1_2340_0000, PAGE_RW & !(1 << 6));
        let context = tables.context(ASID);
        for privilege in [Privilege::Incoming, Privilege::Privileged] {
            rig.set(STREAM, Stream::Translate { context: &context, privilege });
            assert_eq!(rig.model.transact(STREAM, 0x3000, Access::WRITE), incoming, "{privilege:?}");
            assert_eq!(rig.model.transact(STREAM, 0x3000, Access::PRIVILEGED_WRITE), frame, "{privilege:?}");
        }
        rig.model.assert_clean();
    }
}

/// Every pair of kinds: at every store the SMMU may only see the one before, the one after, or a refusal that is
/// allowed.
#[test]
fn every_change_is_seen_as_before_or_as_after() {
    for hardware in MACHINES {
        let kinds = 6;
        for (from, to) in (0..kinds).flat_map(|from| (0..kinds).map(move |to| (from, to))) {
            let mut rig = Rig::new(hardware);
            let tables = [Tables::new(&rig), Tables::new(&rig)];
            let contexts = [tables[0].context(ASID), tables[1].context(ASID + 1)];
            let stream = |which: usize| match which {
                0 => Stream::Abort,
                1 => Stream::Bypass,
                2 => Stream::Translate { context: &contexts[0], privilege: Privilege::Incoming },
                3 => Stream::Translate { context: &contexts[1], privilege: Privilege::Incoming },
                4 => Stream::Translate { context: &contexts[0], privilege: Privilege::Privileged },
                _ => Stream::Translate { context: &contexts[1], privilege: Privilege::Privileged },
            };
            rig.model.add_device(STREAM);
            rig.set(STREAM, stream(from));
            let before = rig.model.view_now(STREAM);
            assert_eq!(views_of(&rig), BTreeSet::from([before]));
            let seen = rig.model.views_during(STREAM, || {
                set(&mut rig.parts.streams, &rig.parts.smmu, STREAM, stream(to)).unwrap();
            });
            let after = rig.model.view_now(STREAM);
            assert_eq!(views_of(&rig), BTreeSet::from([after]), "nothing is cached of what was");
            let bad = View::Entry(Entry::Bad("STE.V is 0"));
            // Two words that count differ: privilege is in one, kind and place of the context are in the other.
            let may_break = from >= 1 && to >= 1 && (from < 4) != (to < 4);
            for view in seen {
                assert!(view == before || view == after || may_break && view == bad, "{from} to {to}: {view:x?}");
            }
            rig.model.assert_clean();
        }
    }
}

#[test]
fn a_context_goes_and_comes_back_unbroken() {
    let mut rig = Rig::new(Hardware::QEMU);
    let tables = Tables::new(&rig);
    let context = tables.context(ASID);
    rig.model.add_device(STREAM);
    rig.translate(STREAM, &context);
    for (to, syncs) in [(context.disabled(), 2), (context, 2)] {
        let before = rig.model.view_now(STREAM);
        let mut seen = BTreeSet::new();
        let done = rig.model.record(|| {
            seen = rig.model.views_during(STREAM, || {
                update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &to).unwrap();
            });
        });
        let after = rig.model.view_now(STREAM);
        assert!(seen.into_iter().all(|view| view == before || view == after));
        let issued = done.iter().filter(|operation| matches!(operation, Operation::Command([0x46, _])));
        assert_eq!(issued.count(), syncs);
    }
}

/// Without CMD_CFGI_STE or CMD_CFGI_CD the stream may be what it was.
#[test]
fn configuration_that_is_not_invalidated_is_stale() {
    for lost in [0x03, 0x05] {
        let mut rig = Rig::new(Hardware::QEMU);
        let tables = [Tables::new(&rig), Tables::new(&rig)];
        rig.model.add_device(STREAM);
        rig.translate(STREAM, &tables[0].context(ASID));
        rig.model.rewrite_commands(match lost {
            0x03 => |command| (command[0] & 0xff != 0x03).then_some(command),
            _ => |command| (command[0] & 0xff != 0x05).then_some(command),
        });
        if lost == 0x03 {
            rig.set(STREAM, Stream::Abort);
        } else {
            let context = tables[0].context(ASID + 1);
            update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &context).unwrap();
        }
        rig.model.audit(STREAM, 0x3000);
        assert_eq!(rig.model.expect_violation().rule, SmmuRule::StaleConfiguration);
    }
}

/// The way of a stream's leaf: made once, refused until then, and never half seen.
#[test]
fn leaves_are_made_when_they_are_needed() {
    let mut rig = Rig::new(Hardware::QEMU);
    let before = rig.model.memory_in_use();
    for stream in [0x0100, 0x01ff, 0x0108, 0xff00] {
        rig.model.add_device(stream);
        assert_eq!(
            rig.model.views(stream),
            match stream {
                0x0100 | 0xff00 => BTreeSet::from([View::NoStream]),
                _ => BTreeSet::from([View::Entry(Entry::Abort)]),
            }
        );
        rig.set(stream, Stream::Bypass);
        assert_eq!(rig.model.views(stream), BTreeSet::from([rig.model.view_now(stream)]));
        assert_eq!(rig.model.transact(stream, 0x1234, Access::READ), Outcome::Reaches(0x1234));
    }
    assert_eq!(rig.model.memory_in_use() - before, 2 * 0x4000, "a leaf for each bus");
    let in_use: Vec<u32> = rig.parts.streams.in_use().map(|(stream, _)| stream).collect();
    assert_eq!(in_use, [0x0100, 0x0108, 0x01ff, 0xff00]);
    rig.model.assert_clean();
}

#[test]
fn a_table_of_one_level_ends_where_it_ends() {
    let mut rig = Rig::new(Hardware { stream_bits: 16, ..Hardware::PLAIN });
    assert_eq!(rig.parts.streams.count(), 1 << 12, "an array for 65,536 would be 4 MiB");
    rig.set(0xfff, Stream::Bypass);
    rig.model.add_device(0xfff);
    assert_eq!(rig.model.transact(0xfff, 0x1234, Access::READ), Outcome::Reaches(0x1234));
    let error = set(&mut rig.parts.streams, &rig.parts.smmu, 0x1000, Stream::Bypass).unwrap_err();
    assert!(matches!(error, StreamError::NoSuchStream { stream: 0x1000, bits: 12 }), "{error}");
    assert_eq!(rig.model.view_now(0x1000), View::NoStream);
    assert_eq!(rig.parts.streams.entry(0x1000), None);
}

#[test]
fn a_stream_without_a_context_has_none_to_change() {
    let mut rig = Rig::new(Hardware::QEMU);
    let context = Tables::new(&rig).context(ASID);
    for to in [None, Some(Stream::Abort), Some(Stream::Bypass)] {
        if let Some(to) = to {
            rig.set(STREAM, to);
        }
        let error = update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &context).unwrap_err();
        assert_eq!(error, StreamError::NoContext(STREAM));
        assert_eq!(rig.parts.streams.context(STREAM), None);
    }
    rig.translate(STREAM, &context);
    assert_eq!(rig.parts.streams.context(STREAM), Some(context));
    assert!(rig.parts.streams.entry(STREAM).is_some_and(|entry| entry.context().is_some()));
}

/// Out of memory is an error, and nothing has changed.
#[test]
fn memory_may_run_out_at_any_step() {
    for allocations in 0..3 {
        let mut rig = Rig::new(Hardware::QEMU);
        let context = Tables::new(&rig).context(ASID);
        rig.model.add_device(STREAM);
        rig.model.limit_allocations(allocations);
        let to = Stream::Translate { context: &context, privilege: Privilege::Incoming };
        let result = set(&mut rig.parts.streams, &rig.parts.smmu, STREAM, to);
        if allocations < 2 {
            assert_eq!(result, Err(StreamError::OutOfMemory(STREAM)));
            assert!(matches!(rig.model.view_now(STREAM), View::NoStream | View::Entry(Entry::Abort)));
            rig.model.limit_allocations(10);
            set(&mut rig.parts.streams, &rig.parts.smmu, STREAM, to).expect("the same succeeds when there is memory");
        } else {
            assert_eq!(result, Ok(()));
        }
        assert!(matches!(rig.model.view_now(STREAM), View::Translate { context: Context::Regime(_), .. }));
        rig.model.assert_clean();
    }
}

/// The barrier that keeps a leaf's entries in front of the descriptor that leads to them is needed: what the SMMU may
/// read is judged by the order of stores, so the test looks at the order.
#[test]
fn what_is_pointed_to_is_ordered_before_the_pointer() {
    let mut rig = Rig::new(Hardware::QEMU);
    let context = Tables::new(&rig).context(ASID);
    rig.model.add_device(STREAM);
    rig.translate(STREAM, &context);
    rig.model.assert_clean();
    // The leaf and its descriptor; then, from one context to another, the context and the entry.
    for (earlier, expected) in [(false, "a stream table entry"), (true, "a context descriptor")] {
        let mut rig = Rig::new(Hardware::QEMU);
        let tables = [Tables::new(&rig), Tables::new(&rig)];
        rig.model.add_device(STREAM);
        if earlier {
            rig.translate(STREAM, &tables[0].context(ASID));
        }
        rig.model.lose_barrier(Barrier::Store, 0);
        rig.translate(STREAM, &tables[1].context(ASID + 1));
        let violation = rig.model.expect_violation();
        assert!(violation.rule == SmmuRule::UnorderedStructure && violation.text.contains(expected), "{violation}");
    }
}

/// An entry that another kernel wrote is replaced like any other.
#[test]
fn an_entry_of_somebody_elses_is_replaced() {
    let mut rig = Rig::new(Hardware::PLAIN);
    let context: ContextDescriptor = Tables::new(&rig).context(ASID);
    rig.model.add_device(STREAM);
    rig.set(STREAM, Stream::Bypass);
    let place = rig.model.stream_entry(STREAM);
    for (word, value) in (0..).zip([0b1101u64, 1 << 44, 7 | 25 << 32, 0x9_8765_4000]) {
        rig.model.word(place + word * 8).store(value, Relaxed);
    }
    rig.translate(STREAM, &context);
    assert!(matches!(rig.model.view_now(STREAM), View::Translate { .. }));
    rig.set(STREAM, Stream::Abort);
    assert_eq!(rig.parts.streams.entry(STREAM), Some(StreamTableEntry::ABORT));
    rig.model.assert_clean();
}

/// An SMMU that takes no commands may go on as before a change: so all its streams are aborted.
#[test]
fn an_smmu_that_stops_answering_is_shut() {
    for bound in [false, true] {
        let mut rig = Rig::new(Hardware::QEMU);
        let tables = Tables::new(&rig);
        rig.translate(STREAM, &tables.context(ASID));
        rig.model.answer(false);
        let error = match bound {
            true => update_context(&mut rig.parts.streams, &rig.parts.smmu, STREAM, &tables.context(ASID).disabled()),
            false => set(&mut rig.parts.streams, &rig.parts.smmu, STREAM, Stream::Abort),
        };
        assert_eq!(error, Err(StreamError::Command(CommandError::Timeout)));
        assert_eq!(rig.model.view_now(STREAM), View::OffAborts);
        rig.model.assert_clean();
    }
}

/// Illegal commands of another kernel neither fail a change nor leave it half done.
#[test]
fn changes_go_on_among_illegal_commands() {
    let mut rig = Rig::new(Hardware { pace: Pace::PerLook(1), ..Hardware::QEMU });
    let context = Tables::new(&rig).context(ASID);
    rig.model.add_device(STREAM);
    let (streams, smmu, model) = (&mut rig.parts.streams, &rig.parts.smmu, &rig.model);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Fewer than the driver bears in a row: each makes one attempt of it uncertain at most.
            for _ in 0..12 {
                assert_eq!(smmu.issue(&[command([0x7f, 0])]), Err(CommandError::Illegal));
                for _ in 0..20 {
                    assert_eq!(smmu.issue(&[Command::tlbi_nh_asid(1)]), Ok(()));
                }
            }
        });
        for _ in 0..40 {
            for to in [Stream::Translate { context: &context, privilege: Privilege::Incoming }, Stream::Abort] {
                set(streams, smmu, STREAM, to).expect("others' mistakes are not this call's");
                assert_eq!(model.views(STREAM).len(), 1);
            }
        }
    });
    assert_eq!(smmu.stats().illegal, 12);
    rig.model.assert_clean();
}
