//! Programs that others wrote, as Debian has them for arm64 or built from its sources, on Linux and here:
//! `./x test --programs`.
//!
//! Both kernels run one script for each. It passes on Linux where it ends with status 0, and here where that is so too and
//! it prints the same text. `docs/PROGRAMS.md` is the outcome: another one fails, unless `--update` writes it there.

mod list;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use granule_host_tests::archive::Archive;
use granule_host_tests::skip_without_debians_tools;
use granule_runner::debian::once_of_packages;
use granule_runner::serial::Limit;

use super::kernels::{Kernels, Session};
use super::linux_selftests::built_tests;
use list::{Family, LEFT_OUT, PACKAGED, REASONS};

/// The CPU time of all programs of a family: minutes for a few of them.
const LIMIT: Limit = Limit::work(3600);
/// Seconds for each of them on the kernel's own clock: they take a few, and one that hangs ends the others no earlier.
const SECONDS: u32 = 240;
/// The status by which a test of Linux's says that it cannot run.
const SKIPPED: &str = "4";
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/PROGRAMS.md");

/// A program's name, and the script that runs it.
type Scripts = BTreeMap<String, String>;

/// A folder of this test's that is kept.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("others").join(name)
}

/// An archive with the programs of a family's packages.
fn packaged(family: &Family) -> Vec<u8> {
    let kept = folder(family.name);
    fs::create_dir_all(folder("")).expect("room");
    let file = kept.with_extension("cpio");
    once_of_packages(&kept, family.packages, |root| {
        let mut archive = Archive::default();
        archive.link("lib", "usr/lib");
        archive.link("bin", "usr/bin");
        archive.from_packages(root, family.files)?;
        fs::write(&file, archive.end()).map_err(|error| error.to_string())
    })
    .expect("the packages can be taken");
    fs::read(file).expect("the archive that is complete")
}

/// How a program went on a kernel: in a word, and the text before its status.
struct Outcome {
    word: String,
    text: String,
}

impl Outcome {
    fn of(printed: &str) -> Self {
        // The log's lines come when they come.
        let lines = printed.lines().skip(1).filter(|line| !is_of_the_log(line));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        let (text, status) = text.rsplit_once("status ").map_or((&*text, ""), |(text, status)| (text, status.trim()));
        let word = match status {
            "0" => "passes".to_owned(),
            SKIPPED => "skips".to_owned(),
            "137" => "does not end".to_owned(),
            "" => "stops the kernel".to_owned(),
            status => format!("fails ({status})"),
        };
        Self { word, text: text.to_owned() }
    }

    fn passes(&self) -> bool {
        self.word == "passes"
    }
}

/// Whether a line of the session is of the kernel's log: it begins with the time since the boot.
fn is_of_the_log(line: &str) -> bool {
    let time = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    time.is_some_and(|(time, _)| time.trim().parse::<f64>().is_ok())
}

/// Runs all scripts in turn: a kernel that one of them stops is started again for those after it.
fn run_all(run: impl Fn(&[String], Limit) -> Session, scripts: &Scripts) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::new();
    let mut left: Vec<_> = scripts.keys().collect();
    while !left.is_empty() {
        let lines: Vec<_> = left.iter().map(|name| format!("run busybox sh /others/{name}")).collect();
        let Session { printed, wrong } = run(&lines, LIMIT);
        assert!(!printed.is_empty(), "{wrong:?}");
        for (name, printed) in left.drain(..printed.len()).zip(&printed) {
            println!("{name}: {printed}");
            outcomes.insert(name.clone(), Outcome::of(printed));
        }
    }
    outcomes
}

/// Runs the scripts on both kernels, whose initrds have `archive`, and compares the outcome with the page's.
fn compare(family: &str, archive: &[u8], scripts: &Scripts) {
    let mut files = Archive::default();
    files.directory("tmp");
    for (name, script) in scripts {
        files.file(&format!("others/{name}.sh"), format!("set -o pipefail\n{script}\n").as_bytes());
        let run = format!("/busybox timeout -s KILL {SECONDS} /busybox sh /others/{name}.sh\necho status $?\n");
        files.file(&format!("others/{name}"), run.as_bytes());
    }
    let Some(kernels) = Kernels::new(&[archive, &files.end()].concat()) else { return };
    let [there, here] = kernels.sessions();
    let (there, here) = (run_all(there, scripts), run_all(here, scripts));
    let mut table = String::from("| program | Linux | here | why not |\n|---|---|---|---|\n");
    let mut wrong = Vec::new();
    for (name, there) in &there {
        let here = &here[name];
        let differs = here.passes() && there.passes() && here.text != there.text;
        let word = if differs { "prints something else" } else { &here.word };
        let reason = REASONS.iter().find(|(of, _)| of == name).map(|(_, reason)| *reason);
        match (there.passes() && word != "passes", reason) {
            (true, None) => wrong.push(format!(
                "{name} {word} here, and no reason is listed; on Linux {:?}, here {:?}",
                there.text, here.text
            )),
            (false, Some(_)) => wrong.push(format!("{name}: the reason that is listed is none")),
            _ => {}
        }
        writeln!(table, "| `{name}` | {} | {word} | {} |", there.word, reason.unwrap_or_default()).unwrap();
    }
    println!("{}", kernels.package);
    assert!(wrong.is_empty(), "{wrong:?}\n{table}");
    let page = fs::read_to_string(PAGE).expect("the page");
    let heading = format!("## {family}\n");
    let (before, rest) = page.split_once(&heading).expect("a section for each family");
    let (text, rest) = rest.split_once("| program |").unwrap_or((rest, ""));
    let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
    let updated = format!("{before}{heading}{text}{table}{after}");
    if std::env::var_os("GRANULE_UPDATE").is_some() {
        fs::write(PAGE, updated).expect("the page");
    } else {
        assert!(page == updated, "docs/PROGRAMS.md is not so: `./x test --programs --update` writes it\n{table}");
    }
}

/// The family's programs, as packages have them.
fn of_packages(name: &str) {
    if skip_without_debians_tools("programs of others") {
        return;
    }
    let family = PACKAGED.iter().find(|family| family.name == name).expect("a family");
    let scripts = family.scripts.iter().map(|(name, script)| ((*name).to_owned(), (*script).to_owned())).collect();
    compare(name, &packaged(family), &scripts);
}

#[test]
#[ignore = "fetches packages: ./x test --programs"]
fn languages_and_shells() {
    of_packages("Shells and languages");
}

#[test]
#[ignore = "fetches packages: ./x test --programs"]
fn allocators() {
    of_packages("Allocators");
}

#[test]
#[ignore = "fetches packages: ./x test --programs"]
fn tests_of_memory() {
    of_packages("Tests of memory");
}

/// Those of Linux's own tests with such a path.
fn of_linux(name: &str, is_wanted: impl Fn(&str) -> bool) {
    let Some(built) = built_tests() else { return };
    let (mut archive, mut scripts) = (Archive::default(), Scripts::new());
    let list = fs::read_to_string(built.join("list")).expect("the programs that were built");
    for path in list.lines().filter(|path| is_wanted(path)) {
        let (folder, program) = path.rsplit_once('/').expect("a folder");
        archive.file(&format!("linux/{path}"), &fs::read(built.join("programs").join(path)).expect("a program"));
        if !LEFT_OUT.contains(&path) {
            // Addresses and times are in what they print: the status alone is compared.
            let script = format!("cd /linux/{folder}\n./{program} >/tmp/log 2>&1 </dev/null");
            scripts.insert(path.replace('/', "-"), script);
        }
    }
    compare(name, &archive.end(), &scripts);
}

fn is_of_arm64(path: &str) -> bool {
    path.starts_with("arm64/")
}

#[test]
#[ignore = "fetches and builds Linux's tests: ./x test --programs"]
fn tests_of_linux() {
    of_linux("Linux's own tests", |path| !is_of_arm64(path));
}

#[test]
#[ignore = "fetches and builds Linux's tests: ./x test --programs"]
fn tests_of_arm64() {
    of_linux("Linux's own tests of arm64", is_of_arm64);
}
