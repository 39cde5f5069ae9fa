//! The command queue on the model: around its end, full, in error, and not answered.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::{sync, thread};

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::{Granule, LevelHint};
use granule_model::smmu::{Barrier, Hardware, Operation, Pace, SmmuRule, View};
use granule_smmuv3::registers::offset;
use granule_smmuv3::{COMMAND_QUEUE_BITS, Command, CommandError, Scope, Span, Step, Word};

use crate::rig::{ASID, PAGE_RW, Rig, STREAM, Tables, command};

const SLOTS: u64 = 1 << COMMAND_QUEUE_BITS;

fn commands(done: &[Operation]) -> Vec<[u64; 2]> {
    let command = |operation: &Operation| match operation {
        Operation::Command(command) => Some(*command),
        _ => None,
    };
    done.iter().filter_map(command).collect()
}

/// Commands are taken once each and in order, however often the queue's end is passed and wherever calls straddle it.
#[test]
fn the_queue_goes_round() {
    for pace in [Pace::AtOnce, Pace::PerLook(1), Pace::PerLook(7)] {
        let rig = Rig::new(Hardware { pace, ..Hardware::QEMU });
        let mut expected = Vec::new();
        let done = rig.model.record(|| {
            for call in 0..5 * SLOTS / 8 {
                let batch: Vec<_> = (0..call % 17).map(|n| Command::tlbi_nh_asid((call * 32 + n) as u16)).collect();
                rig.parts.smmu.issue(&batch).unwrap();
                expected.extend(batch.iter().map(|command| command.words()));
                expected.push([0x46, 0]);
            }
        });
        assert!(expected.len() as u64 > 4 * SLOTS);
        assert_eq!(commands(&done), expected, "{pace:?}");
        rig.model.assert_clean();
    }
}

/// The whole of a call, as the cost of one depends on it: one barrier, one write of PROD, one look at CONS.
#[test]
fn a_call_is_this_and_no_more() {
    let rig = Rig::new(Hardware::QEMU);
    let done = rig.model.record(|| rig.invalidate_page(0x3000));
    let kinds: Vec<_> = done
        .iter()
        .map(|operation| match operation {
            Operation::Store { .. } => "store",
            Operation::Barrier(Barrier::Store) => "DMB OSHST",
            Operation::Barrier(Barrier::Load) => "DMB OSHLD",
            Operation::Write { offset: offset::CMDQ_PROD, .. } => "PROD",
            Operation::Read { offset: offset::CMDQ_CONS, .. } => "CONS",
            Operation::Command(_) => "command",
            other => panic!("{other:x?}"),
        })
        .collect();
    let stores = ["store"; 4];
    let rest = ["DMB OSHST", "PROD", "command", "command", "CONS", "DMB OSHLD"];
    assert_eq!(kinds, [&stores[..], &rest[..]].concat());
}

/// More than fits, by several CPUs at once, from an SMMU that takes its time. On a busy host the calls may come one after
/// the other, and each fits: then once more.
#[test]
fn a_full_queue_is_waited_for() {
    assert!((0..100).any(|_| calls_of_several_cpus_are_whole()), "the queue was never full");
}

/// Checks what is taken of calls by several CPUs at once; whether the queue was full in between.
fn calls_of_several_cpus_are_whole() -> bool {
    let rig = Rig::new(Hardware { range_invalidation: false, pace: Pace::PerLook(1), ..Hardware::QEMU });
    let (cpus, calls, pages) = (8, 12, 60);
    let smmu = &rig.parts.smmu;
    let begin = &sync::Barrier::new(cpus as usize);
    let done = rig.model.record(|| {
        thread::scope(|scope| {
            for cpu in 0..cpus {
                scope.spawn(move || {
                    begin.wait();
                    for call in 0..calls {
                        let start = VirtAddr((cpu * calls + call) * pages * 0x1000);
                        smmu.invalidate(ASID, start, start + pages * 0x1000, Scope::Leaves);
                    }
                });
            }
        });
    });
    let taken = commands(&done);
    assert_eq!(taken.len() as u64, cpus * calls * (pages + 1));
    let mut pages_seen: Vec<u64> =
        taken.iter().filter(|command| command[0] & 0xff == 0x12).map(|c| c[1] >> 12).collect();
    // Each call's commands follow one another, and then its own CMD_SYNC.
    for call in taken.chunks((pages + 1) as usize) {
        assert!(call.windows(2).take(pages as usize - 1).all(|pair| pair[1][1] == pair[0][1] + 0x1000));
        assert_eq!(call[pages as usize], [0x46, 0]);
    }
    pages_seen.sort_unstable();
    assert!(pages_seen.into_iter().eq(0..cpus * calls * pages), "each page once");
    rig.model.assert_clean();
    smmu.stats().full > 0
}

/// Room that is not waited for is seen.
#[test]
fn a_full_queue_that_is_not_waited_for_runs_over() {
    let rig = Rig::new(Hardware::QEMU);
    rig.model.set_pace(Pace::ByHand);
    for step in [Step::Wait, Step::Room] {
        rig.model.leave_out(step);
    }
    for _ in 0..SLOTS {
        rig.parts.smmu.issue(&[Command::tlbi_nh_asid(1)]).unwrap();
    }
    assert_eq!(rig.model.expect_violation().rule, SmmuRule::Index);
}

#[test]
fn an_illegal_command_is_shown_and_stops_nothing() {
    for pace in [Pace::AtOnce, Pace::PerLook(1)] {
        let rig = Rig::new(Hardware { pace, ..Hardware::QEMU });
        let illegal = command([0x7f, 0x1234]);
        let done = rig.model.record(|| {
            let batch = [Command::tlbi_nh_asid(1), illegal, Command::tlbi_nh_asid(2)];
            assert_eq!(rig.parts.smmu.issue(&batch), Err(CommandError::Illegal));
        });
        let opcodes: Vec<u64> = commands(&done).iter().map(|command| command[0] & 0xff).collect();
        assert_eq!(opcodes, [0x11, 0x7f, 0x46, 0x11, 0x46], "a CMD_SYNC stands in its place, and the rest is executed");
        let reports = rig.model.reports();
        assert_eq!(reports.len(), 1);
        assert!(reports[0].contains("illegal command") && reports[0].contains("0x7f"), "{}", reports[0]);
        assert_eq!(rig.parts.smmu.stats().illegal, 1);
        assert_eq!(rig.parts.smmu.issue(&[Command::tlbi_nh_asid(3)]), Ok(()), "the next call is well");
        rig.model.assert_clean();
    }
}

/// Several CPUs, and one of them makes a mistake from time to time: the others' calls succeed, and nothing more is
/// invalidated for them.
///
/// Between two mistakes each of the others has ended a call: of more than a few during one call the log does not tell
/// whose they were ([`CommandError::Illegal`]).
#[test]
fn an_illegal_command_among_those_of_others() {
    const PAGES: u64 = 100;
    let rig = Rig::new(Hardware { pace: Pace::PerLook(2), ..Hardware::QEMU });
    let smmu = &rig.parts.smmu;
    let done = &[const { AtomicU64::new(0) }; 3];
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..20 {
                let before = done.each_ref().map(|pages| pages.load(Relaxed));
                assert_eq!(smmu.issue(&[command([0x7f, 0])]), Err(CommandError::Illegal));
                for (pages, before) in done.iter().zip(before) {
                    while before < PAGES && pages.load(Relaxed) == before {
                        thread::yield_now();
                    }
                }
            }
        });
        for (cpu, done) in (0..3u16).zip(done) {
            scope.spawn(move || {
                for page in 0..PAGES {
                    let start = VirtAddr(u64::from(cpu) << 30 | page << 12);
                    smmu.invalidate(ASID, start, start + 0x1000, Scope::Leaves);
                    let result = smmu.issue(&[Command::tlbi_nh_asid(cpu)]);
                    // Also of a thread that is about to fail: the other does not wait for it.
                    done.store(if result.is_ok() { page + 1 } else { PAGES }, Relaxed);
                    assert_eq!(result, Ok(()));
                }
            });
        }
    });
    assert_ne!(rig.model.view_now(STREAM), View::OffAborts, "it is not shut");
    assert_eq!(smmu.stats().illegal, 20);
    assert_eq!(rig.model.reports().len(), 20);
    rig.model.assert_clean();
}

#[test]
fn a_queue_that_could_not_be_read_is_read_again() {
    for pace in [Pace::AtOnce, Pace::PerLook(1)] {
        let rig = Rig::new(Hardware { pace, ..Hardware::QEMU });
        rig.model.fail_fetches(5);
        assert_eq!(rig.parts.smmu.issue(&[Command::tlbi_nh_asid(1)]), Ok(()));
        let reports = rig.model.reports();
        assert!(
            !reports.is_empty() && reports.iter().all(|report| report.contains("could not be read")),
            "{reports:?}"
        );
        assert!(reports.len() < 5, "not each time");
        rig.model.assert_clean();
    }
}

/// An SMMU that takes no commands is shut: what it has cached is of no use.
#[test]
fn an_smmu_that_stops_answering_lets_nothing_pass() {
    let of_a_page = |rig: &Rig| rig.invalidate_page(0x3000);
    let of_a_space = |rig: &Rig| rig.parts.smmu.invalidate_asid(ASID);
    for invalidate in [of_a_page, of_a_space] as [fn(&Rig); 2] {
        let rig = Rig::new(Hardware::QEMU);
        rig.model.answer(false);
        assert_eq!(rig.parts.smmu.issue(&[Command::tlbi_nh_asid(1)]), Err(CommandError::Timeout));
        assert_ne!(rig.model.view_now(STREAM), View::OffAborts, "`issue` leaves that to its caller");
        invalidate(&rig);
        assert_eq!(rig.model.view_now(STREAM), View::OffAborts);
        assert_eq!(rig.model.reports().len(), 1);
        assert_eq!(rig.parts.smmu.issue(&[Command::tlbi_nh_asid(1)]), Err(CommandError::Timeout), "and waits no more");
        rig.model.assert_clean();
    }
}

/// A CMD_SYNC that also stores: to the word that it names, and nowhere else.
#[test]
#[allow(unsafe_code, reason = "the model's memory is words of an arena")]
fn a_sync_can_store() {
    let rig = Rig::new(Hardware::QEMU);
    let memory = rig.model.allocate(64);
    for at in 0..4 {
        // SAFETY: the word is the test's.
        let store = unsafe { Command::sync_with_store(memory.phys() + at * 4, 0x1111_1111 * (at as u32 + 1)) };
        rig.parts.smmu.issue(&[store]).unwrap();
    }
    assert_eq!(
        [0, 8, 16].map(|at| rig.model.word(memory.phys() + at).load(Relaxed)),
        [0x2222_2222_1111_1111, 0x4444_4444_3333_3333, 0]
    );
}

/// The model reports a command that this SMMU does not define.
#[test]
fn the_model_sees_commands_that_are_not_defined() {
    let range = |pages, hint| {
        let span = Span::exact(pages).unwrap();
        Command::tlbi_nh_va_range(ASID, VirtAddr(0x3000), span, Granule::Size4K, hint, Scope::Leaves)
    };
    let plain = Hardware { range_invalidation: false, ..Hardware::QEMU };
    for (hardware, command, why) in [
        (plain, range(4, None), "where there are none"),
        (plain, range(1, LevelHint::new(3)), "where there are none"),
        (Hardware::QEMU, command([0x12 | 5 << 48, 0x3000 | 1 << 10]), "TG without NUM, SCALE and TTL"),
        (Hardware::QEMU, command([0x12 | 5 << 48 | 3 << 12, 0x3000]), "where there are none"),
        (Hardware::QEMU, command([0x12 | 3 << 12, 0x3000 | 3 << 10]), "no multiple of the granule"),
        (Hardware::QEMU, command([0x46 | 3 << 12, 0]), "reserved CS"),
    ] {
        let rig = Rig::new(hardware);
        rig.parts.smmu.issue(&[command]).unwrap();
        let violation = rig.model.expect_violation();
        assert!(violation.rule == SmmuRule::Undefined && violation.text.contains(why), "{command}: {violation}");
    }
    for command in [range(4, None), range(1, LevelHint::new(3)), range(1, None)] {
        let rig = Rig::new(Hardware::QEMU);
        rig.parts.smmu.issue(&[command]).unwrap();
        rig.model.assert_clean();
    }
}

/// A hint of a level that the leaves are not at may invalidate nothing.
#[test]
fn a_wrong_hint_invalidates_nothing() {
    for (level, is_right) in [(2, false), (3, true)] {
        let mut rig = Rig::new(Hardware::QEMU);
        let tables = Tables::new(&rig);
        rig.model.add_device(STREAM);
        tables.map(&rig, 3, 0x1_0000_0000, PAGE_RW);
        rig.translate(STREAM, &tables.context(ASID));
        tables.write(&rig, 3, 0);
        let hint = LevelHint::new(level);
        let command =
            Command::tlbi_nh_va_range(ASID, VirtAddr(0x3000), Span::ONE, Granule::Size4K, hint, Scope::Leaves);
        rig.parts.smmu.issue(&[command]).unwrap();
        rig.model.audit(STREAM, 0x3000);
        assert_eq!(rig.model.violations().is_empty(), is_right, "level {level}");
    }
}
