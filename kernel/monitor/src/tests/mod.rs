//! Whole lines, as a session sees them: what is printed, what counts as a failure.

mod model;

extern crate std;
use std::io::Write as _;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::descriptor::{Attributes, MemoryType, bits};
use granule_pgtable::{Collapses, Step};
use proptest::prelude::{ProptestConfig, proptest};

use super::tables::write_counters;
use super::{Command, Session, complete};
use granule::bootargs::PARAMETERS;
use granule::chip::power::Status;
use granule::lab;
use granule::mm::kernel::split::SplitCounts;
use granule::mm::layout::VMALLOC_START;
use granule::mm::tag_storage::TagStorageStats;
use model::ModelMachine;

/// The pages of docs/ref about what the monitor has and prints.
const REFERENCE: &str = concat!(
    include_str!("../../../../docs/ref/monitor.md"),
    include_str!("../../../../docs/ref/lab.md"),
    include_str!("../../../../docs/ref/kernel-maps.md"),
    include_str!("../../../../docs/ref/tags.md"),
);

/// Entries of an archive with these names and modes.
pub(crate) fn entries(files: &[(&str, u32)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for &(name, mode) in files {
        let size = name.len() as u32;
        let mut entry = cpio::newc::Builder::new(name).mode(mode).write(&mut archive, size);
        entry.write_all(name.as_bytes()).unwrap();
        entry.finish().unwrap();
    }
    archive
}

/// An archive with a program, `bin/one`, among other files.
pub(crate) fn archive() -> Vec<u8> {
    let files = [(".", 0o040_755), ("./bin/one", 0o100_755), ("two", 0o100_644), ("link", 0o120_777)];
    cpio::newc::trailer(entries(&files)).unwrap()
}

/// Executes lines in one session: what was printed, and how many lines failed.
fn session(lines: &str) -> (String, u32) {
    session_with(&mut ModelMachine::default(), lines)
}

fn session_with(model: &mut ModelMachine, lines: &str) -> (String, u32) {
    let mut screen = String::new();
    let mut session = Session::new(&mut screen, model);
    lines.lines().for_each(|line| session.execute(line));
    let failures = session.failures;
    (screen, failures)
}

#[test]
fn blank_lines_and_comments_do_nothing() {
    assert_eq!(session("\n  \n# a comment\n   # another\n"), (String::new(), 0));
}

#[test]
fn an_unknown_command_fails_and_names_the_nearest() {
    let (screen, failures) = session("hlep\nxyzzy 1 2");
    assert_eq!(
        screen,
        "error: there is no command `hlep`; did you mean `help`?; `help` lists them\n\
         error: there is no command `xyzzy`; `help` lists them\n"
    );
    assert_eq!(failures, 2);
}

#[test]
fn a_wrong_argument_fails_with_the_commands_usage() {
    let (screen, failures) = session("help hepl\nhelp help more # too many");
    assert_eq!(
        screen,
        "error: COMMAND: `hepl` is none of the commands that `help` lists; did you mean `help`?\n\
         usage: help [COMMAND]\n\
         error: `more` is one argument too many\n\
         usage: help [COMMAND]\n"
    );
    assert_eq!(failures, 2);
}

#[test]
fn an_expected_refusal_that_does_not_come_is_a_failure() {
    let (screen, failures) = session("! help help");
    assert!(screen.ends_with("error: a refusal was expected, but the line succeeded\n"), "{screen}");
    assert_eq!(failures, 1);
}

#[test]
fn a_line_that_is_wrong_is_no_expected_refusal() {
    assert_eq!(session("! hlep").1, 1);
    assert_eq!(session("!help hepl").1, 1);
    assert_eq!(session("!").1, 1);
    assert_eq!(session("! # nothing").1, 1);
}

#[test]
fn poweroff_says_whether_all_was_as_expected() {
    for (lines, status) in [
        ("help\npoweroff", Status::Success),
        ("hlep\nhelp\npoweroff", Status::Failure),
        ("! help\npoweroff", Status::Failure),
    ] {
        let mut model = ModelMachine::default();
        session_with(&mut model, lines);
        assert_eq!(model.ended, Some(status), "{lines}");
    }
}

#[test]
fn reboot_and_poweroff_insist_on_no_words() {
    let mut model = ModelMachine::default();
    assert_eq!(session_with(&mut model, "poweroff now\nreboot now").1, 2);
    assert_eq!((model.ended, model.resets), (None, 0));
    assert_eq!(session_with(&mut model, "reboot").1, 0);
    assert_eq!(model.resets, 1);
}

#[test]
fn a_refused_write_is_a_decoded_fault_and_reads_go_on() {
    let (screen, failures) = session("vmalloc 4\npoke $ 0x1234\nset_memory ro $ 1\npoke $ 0x5678\npeek $\nvfree $");
    assert_eq!(
        screen,
        "0xffff800100001000 4 pages\n\
         fault: permission fault, level 3, on a write to 0xffff800100001000\n\
         0xffff800100001000 0x0000000000001234\n"
    );
    assert_eq!(failures, 1);
}

#[test]
fn the_scripts_do_what_they_say() {
    for (name, script) in [
        ("readonly", include_str!("../../../../tests-qemu/scripts/readonly.gran")),
        ("execute", include_str!("../../../../tests-qemu/scripts/execute.gran")),
        ("invalid", include_str!("../../../../tests-qemu/scripts/invalid.gran")),
        ("refused", include_str!("../../../../tests-qemu/scripts/refused.gran")),
        ("ring", include_str!("../../../../tests-qemu/scripts/ring.gran")),
    ] {
        let (screen, failures) = session(script);
        assert_eq!(failures, 0, "{name}:\n{screen}");
    }
}

#[test]
fn a_script_without_its_protection_fails() {
    let script = include_str!("../../../../tests-qemu/scripts/readonly.gran").replace("set_memory ro", "set_memory rw");
    assert_eq!(session(&script).1, 2, "the store went through, and the value is not the one before");
}

#[test]
fn what_is_printed_of_memory_can_be_pasted_back() {
    let (screen, failures) =
        session("vmalloc 1\npoke $ 0x1122334455667788\npeek $ b 9\npeek $ h\npeek $+4 w 5\npeek $ q 3");
    assert_eq!(
        screen,
        "0xffff800100001000 1 page\n\
         0xffff800100001000 0x88 0x77 0x66 0x55 0x44 0x33 0x22 0x11\n\
         0xffff800100001008 0x00\n\
         0xffff800100001000 0x7788\n\
         0xffff800100001004 0x11223344 0x00000000 0x00000000 0x00000000\n\
         0xffff800100001014 0x00000000\n\
         0xffff800100001000 0x1122334455667788 0x0000000000000000\n\
         0xffff800100001010 0x0000000000000000\n"
    );
    assert_eq!(failures, 0);
}

#[test]
fn a_fault_in_the_middle_of_a_peek_comes_after_what_could_be_read() {
    let (screen, failures) = session("vmalloc 1\npeek $+4080 q 3\npeek $+4088 q 3");
    assert_eq!(
        screen,
        "0xffff800100001000 1 page\n\
         0xffff800100001ff0 0x0000000000000000 0x0000000000000000\n\
         fault: translation fault, level 3, on a read of 0xffff800100002000\n\
         0xffff800100001ff8 0x0000000000000000\n\
         fault: translation fault, level 3, on a read of 0xffff800100002000\n"
    );
    assert_eq!(failures, 2);
}

#[test]
fn the_last_address_can_be_peeked_and_no_further() {
    let (screen, _) = session("peek 0xffffffffffffffff b\npeek 0xffffffffffffffff b 2");
    let mut lines = screen.lines();
    assert_eq!(lines.next(), Some("fault: translation fault, level 0, on a read of 0xffffffffffffffff"));
    assert_eq!(lines.next(), Some("error: COUNT: that many from 0xffffffffffffffff on run past the last address"));
}

#[test]
fn each_argument_is_checked_before_anything_is_done() {
    for (line, error) in [
        ("vmalloc", "error: PAGES is missing"),
        ("vmalloc 0", "error: PAGES: 0 is out of range, 1 to 1048576 is allowed"),
        ("vmalloc 4 4", "error: `4` is one argument too many"),
        ("vfree", "error: ADDR is missing"),
        ("vfree $", "error: ADDR: `$` is no number: $ is the address of the last vmalloc, and there was none"),
        ("vmap 4", "error: COPIES is missing"),
        ("vmap 0x100001 1", "error: PAGES: 1048577 is out of range, 1 to 1048576 is allowed"),
        ("vmap 1024 1025", "error: COPIES: 1025 is out of range, 1 to 1024 is allowed"),
        ("vmap 4 0", "error: COPIES: 0 is out of range, 1 to 262144 is allowed"),
        ("vmap 4 1 1", "error: `1` is one argument too many"),
        ("vunmap 0x1000 1", "error: `1` is one argument too many"),
        ("set_memory", "error: PERMISSION is missing"),
        (
            "set_memory invlid 0x1000 1",
            "error: PERMISSION: `invlid` is none of ro|rw|x|nx|rox|valid|invalid; did you mean `invalid`?",
        ),
        ("set_memory ro 0x1000", "error: PAGES is missing"),
        ("peek 0x1000 z", "error: COUNT: `z` is no number: unexpected `z`"),
        ("peek 0x1000 b 0", "error: COUNT: 0 is out of range, 1 to 4096 is allowed"),
        ("peek 0x1000 b = 0x100", "error: VALUE: 0x100 does not fit 1 bytes"),
        ("poke 0x1000", "error: VALUE is missing"),
        ("poke 0x1000 0x10000 h", "error: VALUE: 0x10000 does not fit 2 bytes"),
        ("poke 0x1000 1 z", "error: WIDTH: `z` is none of b|h|w|q"),
        ("poke 0x1000 1 b b", "error: `b` is one argument too many"),
        ("exec", "error: ADDR is missing"),
        ("walk", "error: ADDR is missing"),
        ("ptdump 0xffff800100001000 0xffff800100001000", "error: END: the range ends at"),
        ("ptdump --jsno", "error: --json: `--jsno` is none of --json; did you mean `--json`?"),
        ("ptdump 0xffff800100001000 --jsno", "error: --json: `--jsno` is none of --json"),
        ("ptdump --json 0xffff800100001000", "error: `0xffff800100001000` is one argument too many"),
        ("ptdump 0xffff800100001000 json", "error: END: `json` is no number: "),
        ("collapse --json", "error: `--json` is one argument too many"),
    ] {
        let (screen, failures) = session(line);
        let name = line.split(' ').next().unwrap_or_default();
        let usage = std::format!("usage: {}\n", Command::named(name).expect("a command"));
        assert!(screen.starts_with(error) && screen.ends_with(&usage), "{line}: {screen}");
        assert_eq!(failures, 1, "{line}");
    }
}

#[test]
fn a_walk_names_each_level_and_where_it_ends() {
    let (screen, failures) =
        session("vmalloc 1\nwalk $+8\nset_memory invalid $ 1\nwalk $\nwalk $-1\nwalk 0xffffffffffffffff");
    let lines: Vec<_> = screen.lines().collect();
    assert!(lines[1].starts_with("level 0  0x100000000[256]  0x1") && lines[1].ends_with(", UXNTable"), "{screen}");
    assert!(
        lines[4].contains("page 0x48000000, AP read/write at EL1, SH inner shareable, AF, DBM, PXN, UXN"),
        "{screen}"
    );
    assert_eq!(lines[5], "0xffff800100001008 is 0x48000008 in physical memory");
    assert_eq!(lines[6], "its alias in the linear map, 0xffff000048000008, is not mapped");
    assert!(lines[10].contains("present but invalid: page 0x48000000"), "{screen}");
    assert!(lines[11].starts_with("0xffff800100001000 was made invalid: translation fault, level 3"), "{screen}");
    assert_eq!(lines[17], "0xffff800100000fff is not mapped: translation fault, level 3");
    assert_eq!(lines[19], "0xffffffffffffffff is not mapped: translation fault, level 0");
    assert_eq!(failures, 0);
    assert_eq!(session("! walk 0x1000").1, 0);
}

#[test]
fn a_program_runs_to_its_end_and_only_success_is_one() {
    let (screen, failures) = session("run exits\n! run exits\n! run nowhere\nrun exits &\nps\n! wait 7\n! wait 7\nps");
    assert_eq!(
        screen,
        "error: process 7 exited with 1\n\
         refused: process 7 exited with 1 (as expected)\n\
         refused: there is no such file (as expected)\n\
         process 7\n\
         \u{20}  PID PARENT THREADS  NAME            STATE\n\
         \u{20}    7      0       1  exits           running\n\
         refused: process 7 exited with 1 (as expected)\n\
         refused: there is no process 7, or it has ended (as expected)\n\
         there are no processes\n"
    );
    assert_eq!(failures, 1);
}

#[test]
fn programs_are_listed_with_their_sizes() {
    assert_eq!(session("ls"), ("       9  bin/one\n".to_string(), 0));
    assert_eq!(session("ls bin").1, 1);
}

#[test]
fn a_process_is_looked_at_traced_and_ended() {
    let lines = "run exits &\nmaps 7\nmigrate 7 0x401000\n! migrate 7 0x500000\n! migrate 8 0x401000\nnotify trace 7\nnotify trace 7\nkill 7 11\n! wait 7\n! maps 7\n! walk 7 0x1000";
    let (screen, failures) = session(lines);
    assert_eq!(
        screen,
        "process 7\n\
         0x000000400000-0x000000403000 r-xp      12K\n\
         total 12K in 1 areas\n\
         4K at 0x401000 moved from 0x41000000 to 0x42000000\n\
         refused: no page is mapped there (as expected)\n\
         refused: there is no process 8, or it has ended (as expected)\n\
         the notifiers of process 7 are traced\n\
         the notifiers of process 7 are no longer traced\n\
         refused: process 7 killed by SIGSEGV (as expected)\n\
         refused: there is no process 7, or it has ended (as expected)\n\
         refused: there is no process 7, or it has ended (as expected)\n"
    );
    assert_eq!(failures, 0);
    for (line, said) in [
        ("kill", "PID is missing"),
        ("kill 7 65", "SIGNAL: 65 is out of range, 1 to 64 is allowed"),
        ("maps 0", "PID: 0 is out of range"),
        ("run", "FILE is missing"),
        ("run exits & more", "`more` is one argument too many"),
        ("notify 7", "TRACE"),
        ("! walk 7 0xffff800000000000", "is no address of a process's"),
        ("! migrate 7 0xffff800000000000", "is no address of a process's"),
        ("migrate 7", "ADDR is missing"),
        ("! walk 0x1000", "say whose with a PID before it"),
    ] {
        let (screen, _) = session(line);
        assert!(screen.to_lowercase().contains(&said.to_lowercase()), "{line}: {screen}");
    }
}

#[test]
fn ptdump_coalesces_and_totals() {
    let (screen, failures) = session("vmalloc 4\nset_memory ro $+4K 2\nptdump\nptdump $\nptdump $ $+4097\nptdump $-4K");
    let data = "RW NX SHD AF        UXN    MEM/NORMAL-TAGGED";
    let constant = "ro NX SHD AF        UXN    MEM/NORMAL-TAGGED";
    let line = |start: u64, pages: u64, columns: &str| {
        let start = 0xffff_8001_0000_1000 + start * 0x1000;
        let size = std::format!("{}K", 4 * pages);
        std::format!("{start:#018x}-{:#018x} {size:>8}    4K x {pages:<6}      {columns}\n", start + pages * 0x1000)
    };
    let expected = [
        "0xffff800100001000 4 pages\n---[ vmalloc ]---\n",
        &line(0, 1, data),
        &line(1, 2, constant),
        &line(3, 1, data),
        "total 16K: 4 x 4K\nfindings: none\n---[ vmalloc ]---\n",
        &line(0, 1, data),
        "total 4K: 1 x 4K\nfindings: none\n---[ vmalloc ]---\n",
        &line(0, 1, data),
        &line(1, 1, constant),
        "total 8K: 2 x 4K\nfindings: none\ntotal 0\nfindings: none\n",
    ];
    assert_eq!(screen, expected.concat());
    assert_eq!(failures, 0);
}

/// The block in docs/ref that begins so: what is shown there is what is printed.
fn shown_in_the_reference(begin: &str) -> &'static str {
    let blocks = REFERENCE.split("\n```").skip(1).step_by(2).filter_map(|block| block.strip_prefix('\n'));
    let found: Vec<_> = blocks.filter(|block| block.starts_with(begin)).collect();
    let [block] = found[..] else { panic!("blocks that begin with {begin:?}: {found:?}") };
    block
}

/// Gives the entry of a walk's step another value, as no call does.
#[allow(unsafe_code, reason = "an entry of a table that stays")]
fn replace(model: &ModelMachine, step: &Step, value: u64) {
    // SAFETY: the cell is an atomic word, which the model keeps.
    unsafe { AtomicU64::from_ptr(model.tables.entry(step).as_ptr()) }.store(value, Ordering::Relaxed);
}

/// A model with pages that could be a group, one page that is writable and executable, and one with a contiguous bit.
fn model_with_findings() -> ModelMachine {
    let mut model = ModelMachine::default();
    session_with(&mut model, "vmalloc 48");
    for (page, flip) in [(1, bits::PXN), (2, bits::CONTIGUOUS)] {
        let step = model.tables.page_tables().walk(VMALLOC_START + page * 0x1000).last().unwrap();
        replace(&model, &step, step.descriptor.0 ^ flip);
    }
    // A guard page comes before the first page, so the frames have another alignment than their addresses.
    for page in 16..48 {
        let step = model.tables.page_tables().walk(VMALLOC_START + page * 0x1000).last().unwrap();
        replace(&model, &step, step.descriptor.0 + 0x1000);
    }
    model
}

#[test]
fn ptdump_lists_what_is_wrong_and_what_could_be_larger_after_the_leaves() {
    let mut model = model_with_findings();
    let (screen, failures) = session_with(&mut model, "ptdump");
    let lines: Vec<_> = screen.lines().collect();
    let (first, _) = lines.iter().enumerate().find(|(_, line)| line.starts_with("wrong")).expect("a finding");
    assert!(lines[1..first].iter().all(|line| line.starts_with("0x")), "{screen}");
    assert_eq!(lines[first..].join("\n"), shown_in_the_reference("wrong 0x"));
    assert_eq!(failures, 0);
}

#[test]
fn ptdump_prints_one_json_object() {
    let (screen, failures) = session_with(&mut model_with_findings(), "ptdump 0xffff800100001000 --json");
    let physical = 0x4800_0000_u64;
    let attributes = Attributes::kernel_data(MemoryType::NormalTagged).bits() & !bits::PXN | bits::TABLE;
    let expected = std::format!(
        "{{\"extents\":[\n\
         {{\"start\":\"0xffff800100001000\",\"size\":4096,\
         \"leaf_size\":4096,\"physical\":\"{physical:#x}\",\"physically_contiguous\":true,\
         \"valid\":true,\"writable\":true,\"executable\":true,\"attributes\":\"{attributes:#x}\"}}],\n\
         \"findings\":[\n\
         {{\"kind\":\"writable and executable at EL1\",\"start\":\"0xffff800100001000\",\
         \"size\":4096,\"leaf_size\":4096}},\n\
         {{\"kind\":\"contiguous in a part of the group only\",\"start\":\"0xffff800100000000\",\
         \"size\":65536,\"leaf_size\":65536}}],\n\
         \"leaves\":[\n\
         {{\"size\":4096,\"count\":1}}]}}\n"
    );
    assert_eq!((screen, failures), (expected, 0));
    // Empty lists are lists.
    assert_eq!(session("ptdump --json").0, "{\"extents\":[],\n\"findings\":[],\n\"leaves\":[]}\n");
}

#[test]
fn counters_are_members_of_a_json_object() {
    let splits = SplitCounts { blocks: [0, 1, 2, 0], groups: [0, 0, 3, 4], ..SplitCounts::default() };
    let collapses = Collapses { blocks: [0, 8, 9, 0], groups: [0, 0, 10, 11], cancelled: 12 };
    let mut screen = String::new();
    write_counters(&mut screen, &splits, &collapses).unwrap();
    assert_eq!(screen, ",\n\"splits\":10,\"collapses\":38,\"cancelled\":12");
}

#[test]
fn help_tells_all_commands_and_each() {
    let (all, _) = session("help");
    for command in Command::all() {
        assert!(all.lines().any(|line| line.starts_with(&command.to_string())), "{command}");
        let (one, failures) = session(&std::format!("help {}", command.name));
        assert!(one.contains(command.help) && failures == 0, "{command}: {one}");
    }
    assert!(all.lines().all(|line| line.len() < 120), "{all}");
}

#[test]
fn devices_are_named_and_amounts_are_bounded() {
    for (line, error) in [
        ("bind 1", "DEVICE is missing"),
        ("bind blk 1", "PID: `blk` is no number: "),
        ("bind 1 bkl", "DEVICE: `bkl` is none of edu|rng|blk|nvme, perhaps with a number; did you mean `blk`?"),
        ("unbind blk9", "DEVICE: `blk9` is none of edu|rng|blk|nvme, perhaps with a number; did you mean `blk"),
        ("unbind blk now", "`now` is one argument too many"),
        ("blk", "read|write is missing"),
        ("blk erase 1 2", "read|write: `erase` is none of read|write"),
        ("blk nvme1 erase 1 2", "read|write: `erase` is none of read|write"),
        ("blk edu read 1 0x1000", "a disk is needed: blk or nvme"),
        ("blk read 1", "ADDR is missing"),
        ("blk read 1 0x1000 2M", "BYTES: 2097152 is out of range, 1 to 1048576 is allowed"),
        ("blk write 1 0xfffffffffffffff0", "BYTES: that many from "),
        ("rng 0x1000", "BYTES is missing"),
        ("rng 0x1000 0", "BYTES: 0 is out of range, 1 to 1048576 is allowed"),
        ("dma move 1 2 3", "copy: `move` is none of copy"),
        ("dma copy 1 2 4097", "BYTES: 4097 is out of range, 1 to 4096 is allowed"),
        // The host has no devices.
        ("blk read 1 0x1000", "the machine has no blk of number 0"),
        ("blk nvme1 write 1 0x1000", "the machine has no nvme of number 1"),
        ("dma copy 1 2 3", "the machine has no edu of number 0"),
        ("unbind rng1", "the machine has no rng of number 1"),
    ] {
        let (screen, failures) = session(line);
        assert!(screen.starts_with(&std::format!("error: {error}")) && failures == 1, "{line}: {screen}");
    }
    assert_eq!(session("! rng 0x1000 8").0, "refused: the machine has no rng of number 0 (as expected)\n");
}

#[test]
fn a_machine_without_an_smmu_says_so() {
    let (screen, failures) = session("smmu dump\n! smmu stats\nsmmu evnets");
    assert_eq!(
        screen,
        "error: this machine has no SMMU that can be used\n\
         refused: this machine has no SMMU that can be used (as expected)\n\
         error: WHAT: `evnets` is none of dump|events|stats; did you mean `events`?\n\
         usage: smmu dump|events|stats\n"
    );
    assert_eq!(failures, 2);
    assert_eq!(offered("smmu "), ["dump", "events", "stats"]);
}

#[test]
fn tag_storage_is_accounted_for_in_lines_and_as_json() {
    let stats = TagStorageStats {
        frames: 16384,
        reserved: 2,
        borrowed: 5,
        users: 33,
        reservations: 40,
        releases: 7,
        claims: 3,
        returns: 1,
        lent: 9,
        migrations: 4,
        moved_pages: 1,
        failures: [1, 2, 3, 4, 5, 6],
        replays: std::array::from_fn(|step| [30, 1, 0, 0, 2].get(step).copied().unwrap_or(0)),
        ticks: std::array::from_fn(|step| [(0, 30), (12, 3)].iter().find(|at| at.0 == step).map_or(0, |at| at.1)),
        instructions: std::array::from_fn(|step| {
            [(0, 30), (15, 2)].iter().find(|at| at.0 == step).map_or(0, |at| at.1)
        }),
    };
    let mut model = ModelMachine::default();
    model.tag_storage = Some(stats);
    let (screen, failures) = session_with(&mut model, "mte stats\nmte stats --json\nmte stats --jsno\nmte");
    let shown = shown_in_the_reference("tag storage ");
    let json = screen.find('{').expect("an object");
    assert_eq!(screen[..json].trim_end(), shown);
    assert_eq!(
        &screen[json..],
        "{\"frames\":16384,\"reserved\":2,\"borrowed\":5,\"users\":33,\"reservations\":40,\"releases\":7,\
         \"claims\":3,\"returns\":1,\"lent\":9,\"migrations\":4,\"moved_pages\":1,\"failures\":{\
         \"occupied\":1,\"claimed\":2,\"is_tag_storage\":3,\"isolated\":4,\"pinned\":5,\"out_of_memory\":6},\
         \"replays\":[30,1,0,0,2,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\
         \"ticks\":[30,0,0,0,0,0,0,0,0,0,0,0,3,0,0,0,0,0,0,0,0,0,0,0],\
         \"instructions\":[30,0,0,0,0,0,0,0,0,0,0,0,0,0,0,2,0,0,0,0,0,0,0,0]}\n\
         error: --json: `--jsno` is none of --json; did you mean `--json`?\n\
         usage: mte stats [--json]\n\
         error: stats is missing\n\
         usage: mte stats [--json]\n"
    );
    assert_eq!(failures, 2);
    assert_eq!(
        [offered("mte "), offered("mte stats "), offered("mte stats --json ")],
        [vec!["stats"], vec!["--json"], vec![]]
    );
}

#[test]
fn a_machine_without_tag_storage_says_so() {
    let (screen, failures) = session("mte stats\n! mte stats --json");
    assert_eq!(
        screen,
        "error: no tag storage: the device tree describes no region that can be used\n\
         refused: no tag storage: the device tree describes no region that can be used (as expected)\n"
    );
    assert_eq!(failures, 1);
}

#[test]
fn names_are_typed_easily_and_once() {
    let mut names: Vec<_> = Command::all().map(|command| command.name).collect();
    for name in &names {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

fn offered(line: &str) -> Vec<&'static str> {
    let mut words = Vec::new();
    complete(line, &mut |word| words.push(word));
    words
}

#[test]
fn commands_and_their_keywords_are_offered() {
    assert!(offered("").contains(&"help"));
    assert_eq!(offered(" ! "), offered(""));
    assert_eq!(offered("help "), offered(""));
    assert_eq!(offered("help help "), [""; 0]);
    assert_eq!(offered("xyzzy "), [""; 0]);
    assert_eq!(offered("! set_memory "), ["ro", "rw", "x", "nx", "rox", "valid", "invalid"]);
    assert_eq!(offered("set_memory ro "), [""; 0]);
    assert_eq!(offered("peek $ "), ["b", "h", "w", "q"]);
    assert_eq!(offered("poke $ 1 "), ["b", "h", "w", "q"]);
    assert_eq!(offered("ptdump "), ["--json"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_line_has_an_outcome(line in "\\PC{0,40}") {
        session(&line);
        let _ = offered(&line);
    }

    #[test]
    fn any_arguments_have_an_outcome(
        name in proptest::sample::select(&["vmalloc", "vfree", "vmap", "vunmap", "set_memory", "peek", "poke", "exec", "walk", "ptdump"]),
        words in proptest::collection::vec("--json|[$]|[$][+-][0-9]{1,5}|0x[0-9a-f]{1,16}|[bhwq=]|r[ow]|nx|[0-9]{1,3}", 0..5),
    ) {
        session(&std::format!("vmalloc 2\n! {name} {}\n{name} {}", words.join(" "), words.join(" ")));
    }

    #[test]
    fn help_about_anything_has_an_outcome(line in "\\PC{0,40}") {
        session(&std::format!("help {line}"));
    }
}

/// docs/ref has each command with its words, each boot argument, and each switch of the lab with its witness.
#[test]
fn the_reference_has_what_can_be_typed() {
    let page = REFERENCE.replace("\\|", "|");
    let mut missing = Vec::new();
    for command in Command::all() {
        missing.extend((!page.contains(&std::format!("`{command}`"))).then(|| command.to_string()));
    }
    for parameter in PARAMETERS {
        let name = parameter.name;
        let forms = [std::format!("`{name}`"), std::format!("`{name}=")];
        missing.extend((!forms.iter().any(|form| page.contains(form))).then(|| name.to_string()));
    }
    for lab in lab::all() {
        let row = std::format!("| `{}` | {} |", lab.name, lab.witness);
        missing.extend((!page.contains(&row)).then_some(row));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
