//! How long the kernel keeps interrupts masked, and a CPU to itself: counted in instructions of each CPU by a plugin of
//! QEMU (`tests-qemu/plugin/stretches.c`), in the image that ships.
//!
//! With one CPU instructions are counted by QEMU's clock too (`-icount`), so that each run is like the last.

use std::path::Path;

use granule_host_tests::built;
use granule_runner::machine::{self, Machine};
use granule_runner::serial::Limit;
use granule_runner::stretches::{self, Counted, Kind, Stretch};

/// Of a stop, which is masked on all CPUs.
const MOST_STOPPED: u64 = 5_000;

/// Each `hog`.
const HOGS: [&str; 12] = [
    "run hog pages",
    "run hog forks",
    "run hog tables",
    "run hog threads",
    "run hog areas",
    "run hog signals",
    "run hog zombies",
    "run hog sparse",
    "run hog pipes",
    "run hog counters",
    "run hog pagers",
    "run hog polls",
];

/// The bound of a stretch on a machine; none for one in the kernel that waits for another CPU: handlers of interrupts belong
/// to it, and how many come is decided by the host, which runs more CPUs than it has.
fn most(stretch: &Stretch, machine: &Machine) -> Option<u64> {
    (stretch.kind == Kind::Masked || machine.smp == 1 || stretch.waits == 0).then_some(stretch.kind.most())
}

fn one_cpu(memory: &str) -> Machine {
    stretches::one_cpu(memory).unwrap()
}

fn several_cpus(memory: &str) -> Machine {
    Machine { memory: memory.into(), ..machine::named("default").unwrap() }
}

/// Runs each line at the monitor.
fn count(machine: &Machine, lines: &[&str], limit: u64) -> Counted {
    let (image, plugin) = (built("granule.img"), built("stretches.so"));
    let files = [&*image, &*plugin, Path::new(env!("CARGO_TARGET_TMPDIR"))];
    stretches::count(machine, files, lines, Limit::work(limit)).unwrap()
}

/// Those of [`HOGS`] that the kernel kills for want of memory.
const KILLED: [&str; 5] = ["run hog pages", "run hog sparse", "run hog pipes", "run hog pagers", "run hog polls"];

/// Nothing went wrong in a session, but that the kernel killed the programs of lines `killed` for want of memory.
fn ends_as_expected(wrong: &[String], session: &str, killed: &[&str]) {
    let mut expected: Vec<_> = killed.iter().map(|line| format!(" killed by SIGKILL in `{line}`")).collect();
    if !killed.is_empty() {
        // A command that fails has QEMU fail.
        expected.push("the machine ended with exit status: 1 in `poweroff`".into());
    }
    let is_right =
        wrong.len() == expected.len() && wrong.iter().zip(&expected).all(|(wrong, end)| wrong.ends_with(end));
    assert!(is_right, "{wrong:?}\n{session}");
}

/// Each CPU keeps the bounds in each line; all stretches that do not are named at once. `killed` is as in
/// [`ends_as_expected`].
fn check(machine: &Machine, lines: &[&str], killed: &[&str], limit: u64) {
    let Counted { wrong, session, records } = count(machine, lines, limit);
    ends_as_expected(&wrong, &session, killed);
    let mut too_long = Vec::new();
    for kind in Kind::ALL {
        let mut measured = vec![false; machine.smp as usize];
        for (line, record) in lines.iter().zip(&records) {
            let mut longest = 0;
            for stretch in record.iter().filter(|stretch| stretch.kind == kind && stretch.own > 0) {
                println!("{line}: {}", stretch.text);
                let length = stretch.length(machine);
                longest = longest.max(length);
                measured[stretch.cpu] |= stretch.waits == 0 && length > 100;
                if let Some(most) = most(stretch, machine)
                    && length > most
                {
                    too_long.push(format!("{line}: {}, {most} at most", stretch.text));
                }
            }
            // Else nothing was measured.
            assert!(longest > 100, "{kind:?}, {line}: {longest}\n{session}");
        }
        assert!(measured.iter().all(|it| *it), "{kind:?}: CPUs that were measured: {measured:?}\n{session}");
    }
    assert!(too_long.is_empty(), "{too_long:#?}\n{session}");
}

#[test]
fn latency_is_bounded_in_programs_that_stress_the_kernel() {
    check(
        &one_cpu("4G"),
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
        &[],
        240,
    );
}

/// Each stop, with all other CPUs parked and interrupts masked, splits or collapses little.
#[test]
fn latency_is_bounded_where_the_machine_is_stopped_for_splits() {
    let machine = Machine { bootargs: "split=stop-machine rodata=off".into(), ..one_cpu("1G") };
    let lines =
        ["vmalloc 2000", "set_memory ro $+0x5000 700", "set_memory rw $ 2000", "collapse", "vfree $", "collapse"];
    let Counted { wrong, session, records } = count(&machine, &lines, 60);
    ends_as_expected(&wrong, &session, &[]);
    assert!(session.contains("to 0 of 1 GiB, 2 of 2 MiB"), "the leaves that were cut were split: {session}");
    for (line, record) in lines.iter().zip(&records) {
        let masked =
            record.iter().filter(|stretch| stretch.kind == Kind::Masked).map(|stretch| stretch.length(&machine));
        let longest = masked.max().unwrap_or_default();
        println!("{line}: {longest}");
        assert!((100..=MOST_STOPPED).contains(&longest), "{line}: {longest}\n{session}");
    }
}

#[test]
fn latency_is_bounded_while_programs_take_all_they_can_get() {
    check(&one_cpu("128M"), &HOGS, &KILLED, 240);
}

#[test]
#[ignore = "takes half a minute: ./x test --long"]
fn latency_is_bounded_with_ten_thousand_processes() {
    check(&one_cpu("4G"), &["run long processes 10000"], &[], 300);
}

#[test]
#[ignore = "takes a minute: ./x test --long"]
fn latency_is_bounded_on_each_of_several_cpus() {
    check(
        &several_cpus("4G"),
        &[
            "run stress 1 10",
            "run long processes 1000",
            "run long sleepers 2000",
            "run long waiters 1000",
            "run long readers 500",
            "run fuzz 1 3000",
            "run signals",
            "run calls",
            "log",
        ],
        &[],
        500,
    );
}

#[test]
#[ignore = "takes a minute: ./x test --long"]
fn latency_is_bounded_on_several_cpus_while_programs_take_all_they_can_get() {
    check(&several_cpus("128M"), &HOGS, &KILLED, 500);
}

/// Loops of a known length in the kernel are counted, those that break the bounds included.
#[test]
fn latency_of_a_loop_of_known_length_is_counted() {
    const MASK: u32 = 0xd503_43df;
    const UNMASK: u32 = 0xd503_43ff;
    // MOVZ X0, #1, LSL #16: 2 * 65,536 instructions; MOVZ X0, #0x3000: 2 * 12,288.
    const LONG: u32 = 0xd2a0_0020;
    const SHORT: u32 = 0xd286_0000;
    // SUBS X0, X0, #1; B.NE to it.
    const LOOP: [u32; 2] = [0xf100_0400, 0x54ff_ffe1];
    const NOP: u32 = 0xd503_201f;
    const RET: u32 = 0xd65f_03c0;
    for (first, load, last, length, kinds) in [
        (MASK, SHORT, UNMASK, 2 * 0x3000, Kind::ALL.as_slice()),
        (MASK, LONG, UNMASK, 2 << 16, &Kind::ALL),
        (NOP, LONG, NOP, 2 << 16, &[Kind::Kernel]),
    ] {
        let mut lines = vec!["vmalloc 1".to_owned()];
        let code = [first, load, LOOP[0], LOOP[1], last, RET];
        lines.extend(code.iter().enumerate().map(|(index, word)| format!("poke $+{} {word:#x} w", 4 * index)));
        lines.extend(["set_memory rox $ 1".into(), "exec $".into()]);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let Counted { wrong, session, records } = count(&one_cpu("1G"), &lines, 60);
        assert!(wrong.is_empty(), "{wrong:?}\n{session}");
        for kind in Kind::ALL {
            let of_kind = records.last().unwrap().iter().filter(|stretch| stretch.kind == kind);
            let longest = of_kind.map(|stretch| stretch.own + stretch.waits).max().unwrap();
            let expected = if kinds.contains(&kind) { length..=length + 20_000 } else { 100..=20_000 };
            assert!(expected.contains(&longest), "{kind:?}: {longest} counted, {length} in the loop\n{session}");
        }
    }
}
