//! The programs of the initrd, the same bytes, on Linux and here: `./x test --against-linux`.
//!
//! Linux is the newest kernel that Debian has for arm64, as it was built; its first process is a shell that takes the
//! lines of the monitor, so one script drives both. A program prints each answer that is not the one it expects, so
//! its output is compared but for numbers; the random sequences of calls (`user/src/bin/sequences.rs`) as it is. Of a
//! sequence that differs the steps are left out one by one, as long as it differs without them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use granule_runner::differences::{DIFFERENCES, Difference};

use super::kernels::Kernels;

/// Programs that compare each answer with Linux's, or whose end tells that all was as they expect.
const PROGRAMS: [&str; 38] = [
    "accounts",
    "advice race",
    "affinity",
    "bti exec",
    "collapse",
    "collapse race",
    "epoll",
    "exec",
    "files",
    "frames",
    "futexes",
    "huge",
    "limits",
    "locks",
    "maps",
    "mappings execute-only",
    "memfd",
    "memfd race",
    "minor",
    "moved",
    "names",
    "peek",
    "pidfds",
    "polls",
    "refusals",
    "remap",
    "remap race",
    "rseq",
    "scan",
    "signalfd",
    "signals",
    "stops",
    "stress 1 4",
    "tasks",
    "threads",
    "timers",
    "transfers",
    "userfault",
];

#[test]
#[ignore = "fetches Debian's newest kernel: ./x test --against-linux"]
fn programs_print_on_linux_what_they_print_here() {
    let Some(kernels) = Kernels::new(&[]) else { return };
    let lines = PROGRAMS.map(|program| format!("run {program}"));
    let [there, here] = kernels.run(&lines);
    let mut different = String::new();
    for ((line, here), there) in lines.iter().zip(&here).zip(&there) {
        // Nor is a line of a kernel's log.
        let words = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('['));
            lines.flat_map(|line| line.split(|sign: char| sign.is_ascii_digit()).chain(["\n"])).collect::<String>()
        };
        if words(here) != words(there) {
            writeln!(different, "{line}\n-- {}\n{there}\n-- here\n{here}", kernels.package).unwrap();
        }
    }
    assert!(different.is_empty(), "{different}");
    println!("{} programs print on {} what they print here", lines.len(), kernels.package);
}

/// A sequence, or a part of it: its seed, and a bit for each step that is made.
type Steps = (u64, u64);

const ALL_STEPS: u64 = (1 << 40) - 1;

impl Kernels {
    /// The sequences of so many seeds whose numbers are not the same on both.
    fn different(&self, first: u64, count: u64) -> Vec<Steps> {
        let [there, here] = self.run(&[format!("run sequences {first} {count}")]);
        let numbers = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        let (there, here) = (numbers(&there[0]), numbers(&here[0]));
        assert_eq!((there.len() as u64, here.len() as u64), (count, count), "{there:?} {here:?}");
        let pairs = (first..).zip(there.iter().zip(&here));
        pairs.filter(|(_, (there, here))| there != here).map(|(seed, _)| (seed, ALL_STEPS)).collect()
    }

    /// Which of these are not answered alike.
    fn still_different(&self, steps: &[Steps]) -> Vec<bool> {
        let lines: Vec<_> = steps.iter().map(|(seed, steps)| format!("run sequences {seed} 1 {steps}")).collect();
        let [there, here] = self.run(&lines);
        there.iter().zip(&here).map(|(there, here)| there != here).collect()
    }

    /// The answers to each: on Linux, and here.
    fn answers(&self, steps: &[Steps]) -> Vec<[String; 2]> {
        let lines: Vec<_> = steps.iter().map(|(seed, steps)| format!("run sequences {seed} 1 {steps} 1")).collect();
        let [there, here] = self.run(&lines);
        there.into_iter().zip(here).map(|(there, here)| [there, here]).collect()
    }

    /// Leaves steps out of sequences that differ, as long as they differ without them.
    fn reduced(&self, mut steps: Vec<Steps>) -> Vec<Steps> {
        loop {
            let bits = |steps: u64| (0..40).map(|bit| 1 << bit).filter(move |bit| steps & bit != 0);
            let tries: Vec<_> =
                steps.iter().flat_map(|&(seed, all)| bits(all).map(move |bit| (seed, all, bit))).collect();
            let parts: Vec<Steps> = tries.iter().map(|(seed, all, bit)| (*seed, all & !bit)).collect();
            let mut superfluous = BTreeMap::<u64, Vec<u64>>::new();
            for ((seed, _, bit), is_different) in tries.iter().zip(self.still_different(&parts)) {
                superfluous.entry(*seed).or_default().extend(is_different.then_some(*bit));
            }
            if superfluous.values().all(Vec::is_empty) {
                return steps;
            }
            // All at once where it differs then, else the last one of them.
            let all = |&(seed, all): &Steps| (seed, superfluous[&seed].iter().fold(all, |steps, bit| steps & !bit));
            let together: Vec<Steps> = steps.iter().map(all).collect();
            let holds = self.still_different(&together);
            for ((step, together), is_different) in steps.iter_mut().zip(together).zip(holds) {
                let last = superfluous[&step.0].last().copied().unwrap_or(0);
                *step = if is_different { together } else { (step.0, step.1 & !last) };
            }
        }
    }
}

/// The first line that differs: on Linux, and here.
fn first_difference([there, here]: &[String; 2]) -> [String; 2] {
    let mut lines = there.lines().chain([""]).zip(here.lines().chain([""]));
    let (there, here) = lines.find(|(there, here)| there != here).unwrap_or_default();
    [there.to_owned(), here.to_owned()]
}

/// Compares so many sequences; those that differ in what has a row in the list are counted.
fn compare(count: u64) {
    let Some(kernels) = Kernels::new(&[]) else { return };
    let first = std::env::var("PROPTEST_RNG_SEED").map_or(1, |seed| seed.parse().expect("a seed")) % (1 << 32);
    let mut counted = BTreeMap::new();
    for begin in (0..count).step_by(2000) {
        let different = kernels.different(first + begin, (count - begin).min(2000));
        let mut unknown = Vec::new();
        for (steps, answers) in different.iter().zip(kernels.answers(&different)) {
            match DIFFERENCES.iter().find(|known| known.is(&first_difference(&answers))) {
                Some(Difference { name, .. }) => *counted.entry(name).or_insert(0) += 1,
                None => unknown.push(*steps),
            }
        }
        if !unknown.is_empty() {
            unknown.truncate(4);
            let mut text = String::new();
            let reduced = kernels.reduced(unknown);
            for ((seed, steps), [there, here]) in reduced.iter().zip(kernels.answers(&reduced)) {
                let package = &kernels.package;
                writeln!(text, "run sequences {seed} 1 {steps} 1\n-- {package}\n{there}\n-- here\n{here}").unwrap();
            }
            panic!("answers that differ and have no row in docs/DIFFERENCES.md, with the least steps:\n{text}");
        }
    }
    println!("{count} sequences from {first} on, {}; differences that have a row: {counted:?}", kernels.package);
}

#[test]
#[ignore = "fetches Debian's newest kernel: ./x test --against-linux"]
fn random_sequences_are_answered_as_on_linux() {
    compare(300);
}

#[test]
#[ignore = "takes an hour"]
fn random_sequences_are_answered_as_on_linux_for_long() {
    compare(100_000);
}
