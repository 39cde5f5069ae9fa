//! Sessions from a script: those in `tests-qemu/scripts`, on every machine, and scripts that must go wrong.

use std::path::{Path, PathBuf};

use granule_host_tests::built;
use granule_host_tests::guest::some_boot;
use granule_host_tests::session::Session;
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;
use granule_runner::serial::Limit;

const LIMIT: Limit = Limit::work(60);

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts")
}

/// Runs a script: what went wrong, and the session.
fn run(machine: &Machine, append: &str, text: &str) -> (Vec<String>, String) {
    let bootargs = format!("{} {append}", script::BOOTARGS);
    let qemu = Qemu::new(machine, &built("granule.img"), Serial::Pipes, Reset::Ends, bootargs.trim(), &[]);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(text), LIMIT, &mut session).unwrap();
    (wrong, String::from_utf8_lossy(&session).replace('\r', ""))
}

/// Runs a script on the default machine.
fn run_default(append: &str, text: &str) -> (Vec<String>, String) {
    run(&machine::named("default").unwrap(), append, text)
}

#[test]
fn each_script_keeps_its_promise_on_each_machine() {
    let scripts: Vec<PathBuf> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gran"))
        .collect();
    assert!(!scripts.is_empty(), "no scripts in {}", directory().display());
    for machine in machine::all().unwrap().into_iter().filter(|machine| !machine.is_variant()) {
        for path in &scripts {
            let (wrong, session) = run(&machine, "", &std::fs::read_to_string(path).unwrap());
            assert!(wrong.is_empty(), "{} on {}: {wrong:?}\n{session}", path.display(), machine.name);
        }
    }
}

#[test]
fn a_refused_write_is_printed_as_a_decoded_fault() {
    let (wrong, session) = run_default("", "vmalloc 1\nset_memory ro $ 1\n! poke $ 1\npeek $");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    assert!(session.contains("fault: permission fault, level 3, on a write to 0xffff8001"), "{session}");
}

/// The alias of a page of vmalloc in the linear map follows `ro` and `rw`, unless the boot arguments keep it as it is.
#[test]
fn walk_prints_what_the_alias_in_the_linear_map_allows() {
    const TEXT: &str = "vmalloc 1\nwalk $\nset_memory ro $ 1\nwalk $\nset_memory rw $ 1\nwalk $";
    for (append, expected) in [("", ["writable", "read-only", "writable"]), ("rodata=noalias", ["writable"; 3])] {
        let (wrong, session) = run_default(append, TEXT);
        assert!(wrong.is_empty(), "{wrong:?}\n{session}");
        let lines = session.lines().filter(|line| line.starts_with("its alias in the linear map, 0xffff0"));
        let found: Vec<_> = lines.filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(found, expected, "{append}:\n{session}");
    }
}

/// The number in front of `word` in each line of the session that starts with `line`.
fn numbers(session: &str, line: &str, word: &str) -> Vec<u64> {
    let lines = session.lines().filter(|text| text.starts_with(line));
    lines.filter_map(|text| text.split(word).next()?.split_ascii_whitespace().last()?.parse().ok()).collect()
}

#[test]
fn the_frames_of_a_ring_are_free_again_and_registers_stay_as_they_are() {
    // The first time leaves tables and records behind.
    let (wrong, session) = run_default("", "vmap 300 3\nvunmap $\nmem\nvmap 300 3\nmem\nvunmap $\nmem");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let [before, mapped, after] = numbers(&session, "frames ", " in use")[..] else { panic!("{session}") };
    assert!(mapped >= before + 300 && after < before + 20, "{session}");

    let is_device = |line: &&str| line.starts_with("area ") && line.contains(" device, ");
    let device = session.lines().find(is_device).and_then(|line| line.split_ascii_whitespace().nth(1)).unwrap();
    let (wrong, session) = run_default("", &format!("! set_memory ro {device} 1\n! set_memory invalid {device} 1"));
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    assert_eq!(session.matches("its permissions are fixed (as expected)").count(), 2, "{session}");
}

// Fewer frames each time: the list of frames does not fit, then the tables, then all does.
#[test]
fn a_ring_that_does_not_fit_takes_nothing() {
    let small = machine::named("small").unwrap();
    let free = numbers(&run(&small, "", "mem").1, "frames ", " free")[0];
    let tries: String = (0..40).map(|less| format!("vmap {} 1\nvunmap $\n", free - 5 * less)).collect();
    let (wrong, session) = run(&small, "", &format!("vmap 2000 1\nvunmap $\nmem\n{tries}mem"));
    let [before, after] = numbers(&session, "frames ", " in use")[..] else { panic!("{session}") };
    assert!(after < before + 200, "{session}");
    let refused = wrong.iter().filter(|line| line.contains("vmap")).count();
    assert!((2..80).contains(&refused), "{wrong:?}\n{session}");
}

// A sector of the disk holds its number.
#[test]
fn a_disk_serves_the_kernel_and_a_process_until_its_end() {
    let (wrong, session) = run_default(
        "",
        "lspci\nvmalloc 1\nblk read 4096 $\npeek $\nrun spin &\nbind 1 blk\n! bind 1 blk\nsmmu dump\n\
         blk read 4097 0x405000\nkill 1\n! wait 1\n! blk read 4096 0x405000\nunbind blk\nblk read 4098 $\npeek $\n\
         ! blk read 8192 $\nsmmu stats",
    );
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    for text in ["StreamID 0x20", " 0x0000000000001000\n", "; bound: asid 2\n", " 0x0000000000001002\n"] {
        assert!(session.contains(text), "{text}:\n{session}");
    }
    assert!(session.contains("refused: the device is bound to a process that has ended (as expected)"), "{session}");
}

/// A trace is no user of the space: the bound device is refused as soon as the process has ended.
#[test]
fn a_traced_process_ends_for_its_device_too() {
    let (wrong, session) = run_default(
        "",
        "vmalloc 1\nrun spin &\nnotify trace 1\nbind 1 blk\nblk read 4097 0x405000\nkill 1\n! wait 1\n\
         ! blk read 4096 0x405000\nunbind blk\nblk read 4098 $",
    );
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    assert!(session.contains("refused: the device is bound to a process that has ended (as expected)"), "{session}");
    assert!(session.contains("notify 1: release") && !session.contains("zero sized"), "{session}");
}

/// All frames of storage are accounted for in lines and JSON alike, and a machine without any states why.
#[test]
fn tag_storage_has_numbers_where_there_is_some() {
    let (wrong, session) = run(&machine::named("mte").unwrap(), "", "mte stats\nmte stats --json");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    // 2 GiB / 32.
    for text in [
        "tag storage  16384 frames: ",
        "\nfailures     ",
        "\nticks        ",
        "\ninstructions ",
        "{\"frames\":16384,\"reserved\":",
    ] {
        assert!(session.contains(text), "{text}:\n{session}");
    }
    for (machine, why) in [("default", "the device tree describes no region"), ("a53", "a CPU is without FEAT_MTE2")] {
        let (wrong, session) = run(&machine::named(machine).unwrap(), "", "! mte stats");
        assert!(wrong.is_empty() && session.contains(why), "{machine}: {wrong:?}\n{session}");
    }
}

#[test]
fn ctrl_c_ends_the_program_in_the_foreground_and_its_descendants() {
    let mut session = Session::start(&machine::named("default").unwrap(), &built("granule.img"), "", &[]).unwrap();
    session.prompt().unwrap();
    for (command, ready) in
        [("! run spin", ""), ("! run spin compute", ""), ("! run spin family", "the family is there\n")]
    {
        session.send(&format!("{command}\n"));
        session.wait_for(&format!("{command}\n")).unwrap();
        session.wait_for(ready).unwrap();
        session.send("\x03");
        let heard = session.prompt().unwrap();
        assert!(heard.starts_with("^C\n") && heard.contains(" killed by SIGINT (as expected)\n"), "{heard}");
    }
    // The descendants end a little later. The machine runs during each look, however busy the host is.
    let mut looks = 0..1000;
    assert!(looks.any(|_| session.command("ps").unwrap() == "there are no processes\n"), "a descendant is running");
    // Ctrl-C interrupts a program in the background while the monitor waits for it, also if it was typed ahead.
    let started = session.command("run spin &").unwrap();
    let id = started.trim().strip_prefix("process ").unwrap();
    session.send(&format!("! wait {id}\n\x03"));
    assert!(session.prompt().unwrap().contains(" killed by SIGINT (as expected)\n"));
    assert_eq!(session.power_off().unwrap(), Some(0));
}

/// Input goes to the monitor, or to the program that it waits for; and the second Ctrl-C ends any program.
#[test]
fn only_the_foreground_reads_what_is_typed_and_it_can_be_ended() {
    let mut session = Session::start(&machine::named("default").unwrap(), &built("granule.img"), "", &[]).unwrap();
    session.prompt().unwrap();
    let mut background = |program: &str, ready: &str| {
        session.send(&format!("run console {program} &\n"));
        let heard = session.prompt().unwrap();
        if !heard.contains(ready) {
            session.wait_for(ready).unwrap();
        }
    };
    background("takes", "taking\n");
    background("waits", "waiting\n");
    for _ in 0..30 {
        assert!(session.command("ls").unwrap().contains("  hello\n"), "all of the line is the monitor's");
    }
    session.send("wait 2\n!");
    let heard = session.prompt().unwrap();
    assert!(!heard.contains("error"), "{heard}");
    session.send("kill 1\n! wait 1\n");
    let heard = [session.prompt().unwrap(), session.prompt().unwrap()].concat();
    assert!(heard.contains("killed by SIGKILL (as expected)\n") && !heard.contains("taken"), "{heard}");
    session.send("! run console stubborn\n");
    session.wait_for("not interrupted\n").unwrap();
    // After more than the queue has room for, of which the program reads nothing; the monitor runs each line later.
    let ahead = |line: usize| format!("! run absent-{line}\n");
    session.send(&(0..100).map(ahead).collect::<String>());
    session.send("\x03");
    session.wait_for("^C\n").unwrap();
    session.send("\x03");
    let heard = session.prompt().unwrap();
    assert!(heard.contains("killed by SIGKILL (as expected)\n"), "{heard}");
    for line in 0..100 {
        let heard = session.prompt().unwrap();
        assert!(heard.starts_with(&ahead(line)), "{line}: {heard}");
    }
    assert_eq!(session.power_off().unwrap(), Some(0));
}

/// Without the boot argument `script`: as a person at a terminal sees it.
#[test]
fn a_line_is_completed_and_stays_whole_below_what_a_program_prints() {
    let machine = machine::named("default").unwrap();
    let qemu = Qemu::new(&machine, &built("granule.img"), Serial::Pipes, Reset::Ends, "semihosting", &[]);
    let mut session = Session::of(&qemu).unwrap();
    session.prompt().unwrap();
    session.send("run spi\t");
    session.wait_for("run spin ").unwrap();
    session.send("print &\rme");
    // The line is erased, and drawn again below what was printed.
    session.wait_for("\x1b[Kstill here\ngranule> me\x1b[K").unwrap();
    session.send("m\r");
    session.wait_for("frames").unwrap();
    session.send("kill 1\rls\r");
    assert!(session.wait_for("  spin\n").unwrap().contains("  hello\n"));
    assert_eq!(session.power_off().unwrap(), Some(0));
}

#[test]
fn a_script_does_not_wait_while_a_program_prints() {
    let (wrong, session) = run_default("", "run spin print &\nuptime\nmem\nuptime\nkill 1\n! wait 1\nps");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    assert!(session.ends_with("there are no processes\ngranule> poweroff\n") && !session.contains('\x1b'), "{session}");
}

#[test]
fn protection_that_does_not_reach_the_tlb_fails_the_script() {
    // Of several pages: QEMU's TLB keeps one for each number of low bits, and what comes between may need that place.
    const PAGES: u64 = 16;
    let pokes = |prefix: &str| (0..PAGES).map(|page| format!("{prefix}poke $+{}K 1\n", 4 * page)).collect::<String>();
    let text = format!("vmalloc {PAGES}\n{}set_memory ro $ {PAGES}\n{}", pokes(""), pokes("! "));
    let (wrong, session) = run_default("", &text);
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    // Where none of the entries has stayed there is nothing to see.
    let is_caught = some_boot(|| {
        let (wrong, _) = run_default("lab=skip-tlbi", &text);
        wrong.iter().any(|line| line.contains("a refusal was expected, but the line succeeded"))
    });
    assert!(is_caught, "each poke was refused without an invalidation");
}

#[test]
fn a_line_that_does_not_go_well_fails_the_script() {
    for line in ["hlep", "vmalloc", "peek 0x1000", "! mem", "vfree 0x1000", "walk 0xzz"] {
        let (wrong, session) = run_default("", &format!("{line}\nmem"));
        assert!(!wrong.is_empty(), "{line}:\n{session}");
        assert!(session.contains("frames"), "the script continues after {line}:\n{session}");
    }
}

/// Operations of CPU 0 for `command`, in the columns of `stats`: DSB, ISB, TLBI by page, range, everything, local.
fn issued(machine: &str, append: &str, command: &str) -> [u64; 6] {
    let text = format!("vmalloc 8\nstats\n{command}\nstats");
    let (wrong, session) = run(&machine::named(machine).unwrap(), append, &text);
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let lines: Vec<&str> = session.lines().collect();
    let counters = |heading: usize| {
        let columns = lines[heading + 1].split_ascii_whitespace().skip(1);
        let numbers: Vec<u64> = columns.map(|number| number.parse().unwrap()).collect();
        <[u64; 6]>::try_from(numbers).unwrap()
    };
    let headings: Vec<usize> = (0..lines.len()).filter(|&line| lines[line].contains("tlbi range")).collect();
    let [before, after] = headings[..] else { panic!("counted twice: {session}") };
    let (before, after) = (counters(before), counters(after));
    core::array::from_fn(|column| after[column] - before[column])
}

#[test]
fn what_a_call_issues_is_counted_by_kind() {
    // Two DSBs and one ISB; three pages are a range of two and a single one.
    assert_eq!(issued("default", "count", "set_memory invalid $ 3"), [2, 1, 1, 1, 0, 0]);
    assert_eq!(issued("default", "count", "set_memory rw $ 3"), [0; 6]);
    // The alias goes along, under the same barriers.
    assert_eq!(issued("default", "count", "set_memory ro $ 3")[..2], [2, 1]);
    assert_eq!(issued("default", "count rodata=noalias", "set_memory ro $ 3"), [2, 1, 1, 1, 0, 0]);
    assert_eq!(issued("a53", "count", "set_memory invalid $ 3"), [2, 1, 3, 0, 0, 0]);
    assert_eq!(issued("default", "count lab=local-tlbi", "set_memory invalid $ 3"), [2, 1, 0, 0, 0, 3]);
    let made_valid = "set_memory invalid $ 8\nset_memory valid $ 8";
    assert_eq!(issued("default", "count", made_valid), [3, 2, 0, 1, 0, 0]);
}

#[test]
fn an_erratum_costs_one_more_invalidation_a_call() {
    assert_eq!(issued("default", "count repeat-tlbi", "set_memory invalid $ 8"), [3, 1, 1, 1, 0, 0]);
    // Its one CPU is on no list.
    assert_eq!(issued("a53", "count", "set_memory invalid $ 1"), [2, 1, 1, 0, 0, 0]);
    // Neoverse-N1 is on the list, and has no range operations.
    assert_eq!(issued("el2", "count", "set_memory invalid $ 8"), [3, 1, 9, 0, 0, 0]);
}

#[test]
fn a_part_of_a_leaf_is_refused_each_time_where_leaves_are_not_split_and_warned_of_once() {
    let text = "! set_memory invalid 0xffff000050000000 1\n! set_memory invalid 0xffff000050010000 16\nstats";
    let (wrong, session) = run(&machine::named("refuse").unwrap(), "", text);
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let count = |what: &str| session.lines().filter(|line| line.contains(what)).count();
    assert_eq!(
        (count("refused: the leaf of 0x2000000 bytes at 0xffff000050000000"), count("warning")),
        (2, 1),
        "{session}"
    );
    assert!(session.contains("; 2 refused\n"), "{session}");
}

#[test]
fn every_lab_switch_names_its_checker_and_each_of_the_target_has_its_test() {
    let (wrong, session) = run_default("lab=skip-isb", "lab");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let words = session.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let switches: Vec<_> = words.filter(|words| words.len() > 3 && matches!(words[1], "on" | "off")).collect();
    let on: Vec<_> = switches.iter().filter(|words| words[1] == "on").map(|words| words[0]).collect();
    assert_eq!(on, ["skip-isb"]);
    assert!(switches.iter().all(|words| ["target", "model", "stream", "meeting"].contains(&words[2])), "{session}");
    let files = [include_str!("lab.rs"), include_str!("page_tables.rs")];
    let code = files.iter().flat_map(|file| file.lines()).filter(|line| !line.trim_start().starts_with("//"));
    let tests: Vec<&str> = code.collect();
    for words in switches.iter().filter(|words| words[2] == "target") {
        // With other boot arguments after it, where it needs them.
        let named = ["\"{}\"", "\"{} ", "\"lab={}\""].map(|form| form.replace("{}", words[0]));
        assert!(tests.iter().any(|line| named.iter().any(|name| line.contains(name.as_str()))), "{words:?}");
    }
}
