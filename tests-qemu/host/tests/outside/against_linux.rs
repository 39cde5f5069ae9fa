//! The programs of the initrd, the same bytes, on Linux and here: `./x test --against-linux`.
//!
//! Linux is the newest kernel that Debian has for arm64, as it was built; its first process is a shell that takes the
//! lines of the monitor, so one script drives both. A program prints each answer that is not the one it expects, so
//! its output is compared but for numbers; the random sequences of calls (`user/src/bin/sequences.rs`) as it is. Of a
//! sequence that differs the steps are left out one by one, as long as it differs without them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use cpio::newc;
use granule_host_tests::{built, own_file, skip_without_debians_tools};
use granule_runner::debian::{newest_kernel, shell};
use granule_runner::differences::{DIFFERENCES, Difference};
use granule_runner::machine;
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};
use granule_runner::script::{self, PROMPT};
use granule_runner::serial::Limit;

const LIMIT: Limit = Limit::work(300);

/// Programs that compare each answer with Linux's, or whose end tells that all was as they expect.
const PROGRAMS: [&str; 27] = [
    "accounts",
    "advice race",
    "bti exec",
    "exec",
    "files",
    "frames",
    "huge",
    "limits",
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
    "scan",
    "signals",
    "stress 1 4",
    "tasks",
    "threads",
    "userfault",
];

/// Linux's first process.
const INIT: &str = "#!/busybox sh
export PATH=/
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
/busybox stty -echo < /dev/console
while printf 'granule> '; read -r command words; do
    echo \"$command $words\"
    case $command in
    run) /$words || echo \"error: exited with $?\" ;;
    poweroff) /busybox poweroff -f ;;
    esac
done
";

/// Both kernels, which run the same programs.
struct Kernels {
    linux: PathBuf,
    /// The name of Linux's package.
    package: String,
}

impl Kernels {
    /// `None`: this host cannot have Linux, and the running test is skipped.
    fn new() -> Option<Self> {
        if skip_without_debians_tools("Debian's newest kernel") {
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("against-linux");
        // Each test has an initrd of its own beside the kernel.
        let own = folder.join(own_file("", "folder"));
        let (kernel, package) = newest_kernel(&folder).expect("the package can be taken");
        let shell = fs::read(shell(&folder).expect("the package can be taken")).expect("a shell");
        let mut archive = fs::read(initrd_of(&built("granule.img"))).expect("the initrd");
        archive.extend(around_the_programs(&shell));
        fs::create_dir_all(&own).expect("room");
        let linux = own.join("linux.img");
        fs::write(initrd_of(&linux), archive).and_then(|()| fs::copy(kernel, &linux)).expect("room");
        Some(Self { linux, package })
    }

    /// The text that each of the lines has printed: on Linux, and here.
    fn run(&self, lines: &[String]) -> [Vec<String>; 2] {
        [
            printed(&self.linux, "console=ttyAMA0 quiet loglevel=1 panic=-1", lines),
            printed(&built("granule.img"), script::BOOTARGS, lines),
        ]
    }
}

/// An archive with Linux's first process, its shell, and the folders that it wants.
fn around_the_programs(shell: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let files: [(&str, u32, &[u8]); 5] = [
        ("dev", 0o040_755, &[]),
        ("proc", 0o040_755, &[]),
        ("dev/console", 0o020_600, &[]),
        ("busybox", 0o100_755, shell),
        ("init", 0o100_755, INIT.as_bytes()),
    ];
    for (number, (name, mode, bytes)) in (0x1000..).zip(files) {
        let header = newc::Builder::new(name).ino(number).mode(mode).nlink(1).rdev_major(5).rdev_minor(1);
        let mut entry = header.write(&mut archive, bytes.len() as u32);
        entry.write_all(bytes).unwrap();
        entry.finish().unwrap();
    }
    newc::trailer(archive).unwrap()
}

/// The text that each of the lines has printed on the machine that runs `kernel`.
fn printed(kernel: &Path, bootargs: &str, lines: &[String]) -> Vec<String> {
    let mut machine = machine::named("default").unwrap();
    // Programs expect addresses of 48 bits: with FEAT_LPA2 this Linux has 52.
    machine.cpu.push_str(",lpa2=off");
    let qemu = Qemu::new(&machine, kernel, Serial::Pipes, Reset::Ends, bootargs, &[]);
    let mut session = Vec::new();
    let commands = script::commands(&lines.join("\n"));
    let wrong = script::run(&qemu, &commands, LIMIT, &mut session).unwrap();
    let session = String::from_utf8_lossy(&session).replace('\r', "");
    assert!(wrong.is_empty(), "{}: {wrong:?}\n{session}", kernel.display());
    let printed: Vec<_> = session.split(PROMPT).skip(1).take(lines.len()).map(str::to_owned).collect();
    assert_eq!(printed.len(), lines.len(), "{session}");
    printed
}

#[test]
#[ignore = "fetches Debian's newest kernel: ./x test --against-linux"]
fn programs_print_on_linux_what_they_print_here() {
    let Some(kernels) = Kernels::new() else { return };
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
    let Some(kernels) = Kernels::new() else { return };
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
