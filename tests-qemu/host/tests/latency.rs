//! How long the kernel keeps interrupts masked, and a CPU to itself: measured in the image that is made for it, on one
//! CPU whose instructions are counted, so that each run is like the last.

#[path = "latency/plugin.rs"]
mod plugin;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use granule_host_tests::built;
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;

/// Instructions.
const MOST_MASKED: u64 = 20_000;
const MOST_IN_KERNEL: u64 = 200_000;

/// Runs each line at the monitor of `image` and asks for the longest stretches behind it; what went wrong, and the
/// session.
fn measure(image: &str, machine: &Machine, lines: &[&str], extra: &[OsString], limit: u64) -> (Vec<String>, String) {
    let mut text = String::from("stats latency\n");
    lines.iter().for_each(|line| writeln!(text, "{line}\nstats latency").unwrap());
    let qemu = Qemu::new(machine, &built(image), Serial::Pipes, Reset::Ends, script::BOOTARGS, extra);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(&text), Duration::from_secs(limit), &mut session).unwrap();
    (wrong, String::from_utf8_lossy(&session).replace(['\r', '\0'], ""))
}

/// The lengths of one kind in the order in which they were shown, the one of the boot's end left out.
fn lengths(session: &str, kind: &str) -> Vec<u64> {
    let start = format!("cpu 0 longest {kind}: ");
    let lengths = session.lines().filter_map(|line| line.strip_prefix(&start)?.strip_suffix(" instructions"));
    lengths.map(|length| length.parse().unwrap()).skip(1).collect()
}

/// Each `hog`; the first is killed for want of memory.
const HOGS: [&str; 7] = [
    "run hog pages",
    "run hog forks",
    "run hog tables",
    "run hog threads",
    "run hog areas",
    "run hog signals",
    "run hog zombies",
];

/// Nothing went wrong in a session, but that the kernel killed the program of line `killed` for want of memory.
fn ends_as_expected(wrong: &[String], session: &str, killed: Option<&str>) {
    let Some(line) = killed else { return assert!(wrong.is_empty(), "{wrong:?}\n{session}") };
    // A command that fails has QEMU fail.
    let (command, end) =
        (format!(" killed by SIGKILL in `{line}`"), "the machine ended with exit status: 1 in `poweroff`");
    assert!(wrong.len() == 2 && wrong[0].ends_with(&command) && wrong[1] == end, "{wrong:?}\n{session}");
}

/// Each line keeps the bounds; all that do not are named at once. `killed` is as in [`ends_as_expected`].
fn check(memory: &str, lines: &[&str], killed: Option<&str>, limit: u64) {
    let machine = Machine { memory: memory.into(), ..machine::named("latency").unwrap() };
    let (wrong, session) = measure("granule-latency.img", &machine, lines, &[], limit);
    ends_as_expected(&wrong, &session, killed);
    let mut too_long = String::new();
    for (kind, most) in [("masked", MOST_MASKED), ("in the kernel", MOST_IN_KERNEL)] {
        let lengths = lengths(&session, kind);
        assert_eq!(lengths.len(), lines.len(), "{session}");
        // Else nothing was measured.
        assert!(lengths.iter().all(|length| *length > 100), "{lengths:?}");
        for (line, length) in lines.iter().zip(lengths) {
            println!("{line}: {length} instructions {kind}");
            if length <= most {
                continue;
            }
            writeln!(too_long, "{line}: {length} instructions {kind}, {most} at most").unwrap();
        }
    }
    assert!(too_long.is_empty(), "{too_long}\n{session}");
}

#[test]
fn latency_is_bounded_in_programs_that_stress_the_kernel() {
    check(
        "4G",
        &[
            "run stress 1 20",
            "run fuzz 1 5000",
            "run calls",
            "run signals",
            "run long sleepers 10000",
            "run long waiters 2000",
            "run long readers 1000",
            "run long processes 1000",
            "run long memory 1024",
            "run long killed 256",
            "run long fork 256",
            "run long random 2",
            "run long write",
            "log",
            "help",
        ],
        None,
        240,
    );
}

#[test]
fn latency_is_bounded_while_programs_take_all_they_can_get() {
    check("128M", &HOGS, Some(HOGS[0]), 240);
}

#[test]
#[ignore = "takes half a minute: ./x test --long"]
fn latency_is_bounded_with_ten_thousand_processes() {
    check("4G", &["run long processes 10000"], None, 300);
}

#[test]
fn latency_is_not_measured_in_other_images() {
    let machine = machine::named("latency").unwrap();
    let (wrong, session) = measure("granule.img", &machine, &[], &[], 60);
    assert!(!wrong.is_empty(), "{session}");
    assert!(session.contains("error: this image does not measure that; granule-latency does"), "{session}");
}
