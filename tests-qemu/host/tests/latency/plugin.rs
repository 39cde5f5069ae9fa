//! The same on several CPUs, and by another measure: a plugin of QEMU counts the instructions of each CPU, whatever the
//! others do meanwhile (`tests-qemu/plugin/stretches.c`).

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{HOGS, MOST_IN_KERNEL, MOST_MASKED, ends_as_expected, lengths, measure};
use granule_host_tests::built;
use granule_runner::machine::{self, Machine};

/// The longest stretch of a kind on a CPU while a command ran.
struct Stretch {
    cpu: usize,
    kind: String,
    /// Instructions.
    own: u64,
    /// Instructions in loops that waited for another CPU or a device.
    waits: u64,
    /// All of it as the plugin has it: addresses of the first and the last block of code as well, and of the last wait.
    text: String,
}

/// Runs each line as [`measure`] does; what went wrong, the session, and for each line the longest stretches.
fn count(machine: &Machine, lines: &[&str], limit: u64) -> (Vec<String>, String, Vec<Vec<Stretch>>) {
    // Tests run side by side: a file for each run.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let name = format!("stretches-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let plugin = format!("{},out={}", built("stretches.so").display(), file.display());
    let (wrong, session) = measure("granule-latency.img", machine, lines, &["-plugin".into(), plugin.into()], limit);
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let records = text.split_terminator("\n\n").map(|record| record.lines().map(stretch).collect());
    // The first is that of the boot's end.
    (wrong, session, records.skip(1).collect())
}

fn stretch(text: &str) -> Stretch {
    let [cpu, kind, own, waits, ..] = *text.split(' ').collect::<Vec<_>>() else { panic!("{text}") };
    let number = |word: &str| word.parse::<u64>().unwrap();
    Stretch { cpu: number(cpu) as usize, kind: kind.into(), own: number(own), waits: number(waits), text: text.into() }
}

/// Each CPU keeps the bounds in each line, in the stretches in which it does not wait for another; all that do not are
/// named at once. `killed` is as in [`ends_as_expected`].
fn check(memory: &str, lines: &[&str], killed: Option<&str>, limit: u64) {
    let machine = Machine { memory: memory.into(), ..machine::named("default").unwrap() };
    let (wrong, session, records) = count(&machine, lines, limit);
    ends_as_expected(&wrong, &session, killed);
    assert_eq!(records.len(), lines.len(), "{session}");
    let mut too_long = Vec::new();
    // Those of masked stretches with a wait as well: what the wait delays cannot interrupt them.
    let kinds = [("masked", MOST_MASKED), ("masked-waits", MOST_MASKED), ("kernel", MOST_IN_KERNEL)];
    for (kind, most) in kinds {
        let mut measured = vec![false; machine.smp as usize];
        for (line, record) in lines.iter().zip(&records) {
            record.iter().filter(|stretch| stretch.own > 0).for_each(|stretch| println!("{line}: {}", stretch.text));
            for stretch in record.iter().filter(|stretch| stretch.kind == kind) {
                measured[stretch.cpu] |= stretch.own > 100;
                if stretch.own > most {
                    too_long.push(format!("{line}: {}, {most} at most", stretch.text));
                }
            }
        }
        let required = !kind.ends_with("-waits");
        assert!(
            !required || measured.iter().all(|measured| *measured),
            "{kind}: CPUs that were measured: {measured:?}\n{session}"
        );
    }
    assert!(too_long.is_empty(), "{too_long:#?}\n{session}");
}

#[test]
#[ignore = "takes a minute: ./x test --long"]
fn latency_is_bounded_on_each_of_several_cpus() {
    check(
        "4G",
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
        None,
        500,
    );
}

#[test]
#[ignore = "takes a minute: ./x test --long"]
fn latency_is_bounded_on_several_cpus_while_programs_take_all_they_can_get() {
    check("128M", &HOGS, Some(HOGS[0]), 500);
}

#[test]
fn latency_by_the_plugin_is_that_which_the_kernel_measures() {
    let lines = ["run stress 1 2", "run long processes 200", "run long memory 64"];
    let (wrong, session, records) = count(&machine::named("latency").unwrap(), &lines, 120);
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    for (kind, name) in [("masked", "masked"), ("kernel", "in the kernel")] {
        // Of both sorts, those in which the CPU waits and those in which it does not.
        let of_kind = |stretch: &&Stretch| stretch.kind.strip_suffix("-waits").unwrap_or(&stretch.kind) == kind;
        let longest = |record: &Vec<Stretch>| record.iter().filter(of_kind).map(|it| it.own + it.waits).max();
        let counted: Vec<_> = records.iter().filter_map(longest).collect();
        let measured = lengths(&session, name);
        assert_eq!((counted.len(), measured.len()), (lines.len(), lines.len()), "{session}");
        for (counted, measured) in counted.iter().zip(&measured) {
            // The kernel leaves out a few instructions at both ends, and its measure itself.
            let apart = counted.abs_diff(*measured);
            assert!(apart < 200 + measured / 20, "{kind}: {counted} counted, {measured} measured\n{session}");
        }
    }
}
