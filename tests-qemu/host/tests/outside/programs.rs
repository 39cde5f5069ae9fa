//! Programs of the initrd, run by the monitor: they test the kernel from EL0, and report by their exit status.

use granule_host_tests::built;
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;
use granule_runner::serial::Limit;

const LIMIT: Limit = Limit::work(120);

/// Runs lines at the monitor: what went wrong, and the session.
fn run(machine: &Machine, text: &str) -> (Vec<String>, String) {
    let qemu = Qemu::new(machine, &built("granule.img"), Serial::Pipes, Reset::Ends, script::BOOTARGS, &[]);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(text), LIMIT, &mut session).unwrap();
    (wrong, String::from_utf8_lossy(&session).replace('\r', ""))
}

fn run_default(text: &str) -> (Vec<String>, String) {
    run(&machine::named("default").unwrap(), text)
}

/// Of so many variants one is booted in each run; which ones, its seed decides.
const VARIANTS: usize = 8;

#[test]
fn programs_that_test_themselves_succeed_on_each_machine() {
    let (variants, mut machines): (Vec<_>, Vec<_>) = machine::all().unwrap().into_iter().partition(Machine::is_variant);
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok());
    machines.extend(variants.into_iter().skip(seed.unwrap_or(0) % VARIANTS).step_by(VARIANTS));
    succeed_on(&machines);
}

#[test]
#[ignore = "takes a minute: ./x test --long"]
fn programs_that_test_themselves_succeed_on_each_variant() {
    succeed_on(&machine::all().unwrap());
}

fn succeed_on(machines: &[Machine]) {
    for machine in machines {
        let (wrong, session) = run(machine, "run lifecycle\nrun threads\nrun signals\nrun calls\nrun pie\nlog");
        assert!(wrong.is_empty(), "{}: {wrong:?}\n{session}", machine.name);
        for program in ["lifecycle", "threads", "signals", "calls"] {
            assert!(session.contains(&format!("\n{program}: ok\n")), "{}: {program}\n{session}", machine.name);
        }
        let log = session.split("granule> log").nth(1).unwrap_or_default();
        assert_eq!(log.matches("made system call 1000").count(), 1, "once, however often:\n{session}");
    }
}

#[test]
fn a_program_gets_its_words_and_its_auxiliary_vector() {
    let (wrong, session) = run_default("run /hello one two");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let expected = "argument \"/hello\"\nargument \"one\"\nargument \"two\"\npage size 0x1000\n";
    assert!(session.contains(expected), "{session}");
    assert!(session.contains("hwcap 0x103\n"), "floating point, SIMD and atomics, and no SVE:\n{session}");
}

#[test]
fn programs_lie_alike_where_the_boot_says_so() {
    let machine = machine::named("default").unwrap();
    for (bootargs, lines) in [("norandmaps", "run layout fixed\n! run layout"), ("", "! run layout fixed\nrun layout")]
    {
        let (wrong, session) = run(&Machine { bootargs: bootargs.into(), ..machine.clone() }, lines);
        assert!(wrong.is_empty(), "{bootargs}: {wrong:?}\n{session}");
    }
}

#[test]
fn what_does_not_succeed_fails_the_line() {
    for (line, said) in [
        ("run nosuch", "error: there is no such file"),
        ("run lifecycle nonsense", "error: process 1 exited with 2"),
        ("wait 7", "error: there is no process 7, or it has ended"),
        ("kill 7", "error: there is no process 7, or it has ended"),
        ("maps 7", "error: there is no process 7, or it has ended"),
    ] {
        let (wrong, session) = run_default(line);
        assert!(!wrong.is_empty() && session.contains(said), "{line}:\n{session}");
    }
}

#[test]
fn the_monitor_works_while_programs_run() {
    let lines = "run spin &\nrun spin computes &\nps\nmaps 1\nptdump 1\nwalk 1 0x400000\n! walk 1 0x1000000000000\n\
                 notify trace 1\nnotify trace 1\nkill 1\n! wait 1\nkill 2 15\n! wait 2\nps\nrun hello";
    let (wrong, session) = run_default(lines);
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    for said in [
        "     1      0       1  spin            running\n     2      0       1  spin            running\n",
        "0x000000401000-0x00000040",
        "USR ro NX SHD AF NG",
        "level 3",
        // Ended again, since what is printed from elsewhere while the prompt is there would hide the prompt.
        "the notifiers of process 1 are traced\n",
        "the notifiers of process 1 are no longer traced\n",
        "process 1 killed by SIGKILL (as expected)",
        "process 2 killed by SIGTERM (as expected)",
        "there are no processes\n",
    ] {
        assert!(session.contains(said), "{said:?} is not in\n{session}");
    }
}

/// Frames in use, and bytes of the heap, as `mem` prints them, each time that it did.
fn in_use(session: &str) -> Vec<(i64, i64)> {
    let number = |line: &str, word: &str| {
        let before = line.split(word).next().unwrap().split_ascii_whitespace().next_back().unwrap();
        before.parse().unwrap()
    };
    let lines = |start: &'static str| session.lines().filter(move |line| line.starts_with(start));
    lines("frames ")
        .zip(lines("heap "))
        .map(|(frames, heap)| (number(frames, "in use"), number(heap, "bytes")))
        .collect()
}

/// Each round is two forks, an exec, an exec that fails, and two exits. On one CPU: each keeps up to four kernel stacks
/// where threads ended, and how many others have by then is chance.
#[test]
fn nothing_is_left_behind_by_fork_exec_and_exit() {
    let one_cpu = machine::named("a53").unwrap();
    let (wrong, session) = run(&one_cpu, "run lifecycle rounds 200\nmem\nrun lifecycle rounds 300\nmem");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    let [before, after] = in_use(&session)[..] else { panic!("{session}") };
    assert_eq!(before, after, "frames and bytes of the heap");
}
