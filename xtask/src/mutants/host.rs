//! Mutants under the tests on the host, and which of these tests reach a mutant's place.
//!
//! Reach: one build has a probe in the innermost block around each mutant's place, which prints the mutant's name and the
//! thread's once for each thread. A test's thread has the test's name, so one run of all tests tells which of them reach
//! which place. The others cannot see the mutant; what threads with other names reach is taken to be reached by all.
//!
//! That run also tells how long each test takes. Only programs with a test that reaches the place are built; in each, the
//! quick tests run first. The slow ones follow once every quick one has passed and the image's checks have, quickest first,
//! as far as the bound of time for a mutant goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::bounded::{self, End};
use super::draw::Mutant;
use super::record::{self, Spent, Verdict};
use super::table::{OTHERS, area_of};
use super::tree::Tree;
use crate::test::host::Program;
use crate::tools::Tools;

/// A build that takes longer hangs.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// And so do tests of a program without a mutant.
const BASELINE_LIMIT: Duration = Duration::from_secs(3600);
/// Address space of a program of tests, in KiB: the first in which all passes that passes in the last.
const MEMORY_KIB: [u64; 2] = [12 << 20, 24 << 20];
/// What the tests of a program may take longer than without a mutant: this often, and this long.
const SLOWER: u32 = 4;
const GRACE: Duration = Duration::from_secs(30);
/// A test that takes longer is slow: it runs once all others have passed.
const QUICK: f64 = 2.0;
/// What the slow tests of one mutant may take without it, in seconds; those beyond are left out, and counted. Most of
/// them try every order of some steps, so a mutant of an order gets more.
const BUDGET: f64 = 50.0;
const BUDGET_OF_ORDERS: f64 = 150.0;
/// What a probe prints before the mutant's name.
const MARK: &str = "@reached ";
/// So many tests share a process, at most: a test's machine lives until the process ends.
const TOGETHER: usize = 100;
/// The harness runs a single thread's tests on its own one, which has no name and keeps its locals.
const THREADS: &str = "--test-threads=2";

/// A program of tests.
#[derive(Clone, Debug)]
struct Suite {
    /// `package name`.
    name: String,
    executable: PathBuf,
    directory: PathBuf,
}

/// A test that takes long.
#[derive(Debug)]
pub(super) struct Slow {
    suite: Suite,
    test: String,
    /// Without a mutant.
    seconds: f64,
    memory_kib: u64,
}

/// What the quick tests say of a mutant.
#[derive(Debug)]
pub(super) enum Quick {
    Judged(Verdict),
    /// They pass; these are left, the shortest first.
    Passed(Vec<Slow>),
}

/// What the tests do without a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// What it was measured for.
    key: String,
    /// Packages of which all suites are there.
    measured: BTreeSet<String>,
    /// By package and suite.
    suites: BTreeMap<String, BTreeMap<String, Passed>>,
    /// Mutants that have a probe.
    probed: BTreeSet<String>,
}

/// What passes in a suite.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Passed {
    /// The tests, each with what it does.
    tests: BTreeMap<String, Test>,
    /// Reached outside every test.
    anywhere: BTreeSet<String>,
    memory_kib: u64,
}

/// A test without a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Test {
    /// The mutants whose places it reaches.
    reached: BTreeSet<String>,
    seconds: f64,
}

/// What a build came to.
enum Build {
    Suites(Vec<Suite>),
    /// The first error.
    Error(BuildError),
}

/// What the compiler refuses.
struct BuildError {
    why: String,
    /// From the root of the tree.
    file: Option<String>,
}

/// The tests on the host, in the copy.
#[derive(Debug)]
pub(super) struct Host<'a> {
    /// Of the copy.
    pub(super) tools: &'a Tools,
    pub(super) tree: &'a Tree,
    pub(super) seed: u64,
    /// The packages whose tests may see a mutant.
    pub(super) packages: fn(&Mutant) -> &'static [&'static str],
}

impl Host<'_> {
    /// Builds tests of a package: the programs of these names, all of them without any.
    fn build(&self, package: &str, names: &[&str]) -> Result<Build> {
        let mut cargo = self.tools.host_cargo("test", "host");
        cargo.args(["--no-run", "--message-format=json", "--package", package]);
        // No debugger follows these programs, and linking them is what takes the time.
        cargo.args(["--config", "profile.dev.debug=0", "--config", "profile.dev.package.\"*\".debug=2"]);
        if names.is_empty() {
            cargo.arg("--tests");
        }
        for name in names {
            // A library's program has the name of its crate.
            if package.replace('-', "_") == *name {
                cargo.arg("--lib")
            } else {
                cargo.args(["--test", name])
            };
        }
        let run = bounded::run(cargo, BUILD_LIMIT, |_| None)?;
        let messages = run.output.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let (mut suites, mut error) = (Vec::new(), None);
        for message in messages {
            if message["message"]["level"] == "error" && error.is_none() {
                let file = message["message"]["spans"][0]["file_name"].as_str().map(str::to_owned);
                let why = message["message"]["message"].as_str().unwrap_or_default().to_owned();
                error = Some(BuildError { why, file });
            }
            if let Some(Program { target, executable, directory, .. }) = Program::of(&message) {
                suites.push(Suite { name: format!("{package} {target}"), executable, directory });
            }
        }
        match run.end {
            End::Exit(status) if status.success() => Ok(Build::Suites(suites)),
            end => match error {
                Some(error) if matches!(end, End::Exit(_)) => Ok(Build::Error(error)),
                _ => bail!("building the tests of {package} failed ({end:?}):\n{}", run.output.join("\n")),
            },
        }
    }

    /// A run of a suite's tests.
    fn command(&self, suite: &Suite, tests: &[&str]) -> Command {
        let mut command = Command::new(&suite.executable);
        command.arg(THREADS).args(tests).current_dir(&suite.directory);
        command.env("PROPTEST_RNG_SEED", self.seed.to_string()).env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        command
    }

    /// What was measured before, in `path`, for the same sources and mutants; else nothing so far.
    pub(super) fn baseline(&self, key: &str, mutants: &[&Mutant], path: &Path) -> Baseline {
        let with_probe = mutants.iter().filter(|mutant| mutant.change.block.is_some());
        let probed = with_probe.map(|mutant| mutant.id.clone()).collect();
        let fresh = || Baseline { key: key.to_owned(), probed, ..Baseline::default() };
        load(path).filter(|earlier| earlier.key == key).unwrap_or_else(fresh)
    }

    /// Builds a package with a probe for each of the mutants, runs its tests, and notes which reach which: in `path`, a
    /// suite after another, so that a run which was ended continues there.
    ///
    /// # Errors
    /// When the sources do not build without a mutant.
    fn reach(&self, package: &str, mutants: &[&Mutant], path: &Path, baseline: &mut Baseline) -> Result<()> {
        println!("which tests of {package} reach the mutants' places: one run of all");
        let suites = loop {
            self.place(mutants, &baseline.probed)?;
            let BuildError { why, file } = match self.build(package, &[])? {
                Build::Suites(suites) => break suites,
                Build::Error(error) => error,
            };
            ensure!(!baseline.probed.is_empty(), "the sources do not build: {why}");
            // Code that takes no probe: a file that another crate includes, or that is evaluated at compile time.
            let all = baseline.probed.len();
            for mutant in mutants.iter().filter(|mutant| Some(&mutant.source.path) == file.as_ref()) {
                baseline.probed.remove(&mutant.id);
            }
            if baseline.probed.len() == all {
                baseline.probed.clear();
            }
            let place = file.as_deref().filter(|_| !baseline.probed.is_empty()).unwrap_or("all files");
            eprintln!("x: no probes in {place} ({why}): every test runs on their mutants");
        };
        for suite in suites {
            if baseline.suites.get(package).is_some_and(|measured| measured.contains_key(&suite.name)) {
                continue;
            }
            let passed = self.measure(&suite)?;
            let (tests, seconds) = (passed.tests.len(), passed.tests.values().map(|test| test.seconds).sum::<f64>());
            println!("{}: {tests} tests of {seconds:.0} s", suite.name);
            baseline.suites.entry(package.to_owned()).or_default().insert(suite.name, passed);
            store(baseline, path)?;
        }
        baseline.measured.insert(package.to_owned());
        store(baseline, path)?;
        self.place(mutants, &BTreeSet::new())
    }

    /// Puts probes into the files of `mutants`, for those of `probed`.
    fn place(&self, mutants: &[&Mutant], probed: &BTreeSet<String>) -> Result<()> {
        let files: BTreeMap<&str, &str> =
            mutants.iter().map(|mutant| (mutant.source.path.as_str(), mutant.source.text.as_str())).collect();
        for (path, text) in files {
            let mut places: Vec<(usize, &str)> = mutants
                .iter()
                .filter(|mutant| mutant.source.path == path && probed.contains(&mutant.id))
                .filter_map(|mutant| Some((mutant.change.block?, mutant.id.as_str())))
                .collect();
            places.sort_unstable();
            self.tree.write(path, &with_probes(text, &places))?;
        }
        Ok(())
    }

    /// What passes in a suite that has probes. Tests that do not pass within the first bound of memory have the second.
    fn measure(&self, suite: &Suite) -> Result<Passed> {
        let listed = bounded::run(self.command(suite, &["--list"]), BUILD_LIMIT, |_| None)?;
        let names: Vec<&str> = listed.output.iter().filter_map(|line| line.strip_suffix(": test")).collect();
        let mut passed = Passed::default();
        for memory_kib in MEMORY_KIB {
            let is_last = MEMORY_KIB.last() == Some(&memory_kib);
            let left: Vec<&str> = names.iter().copied().filter(|name| !passed.tests.contains_key(*name)).collect();
            if !left.is_empty() {
                passed.memory_kib = memory_kib;
            }
            for together in left.chunks(TOGETHER) {
                let options = ["--exact", "-Zunstable-options", "--report-time"];
                let mut command = self.command(suite, &[&options, together].concat());
                // The harness gives times away for this alone.
                command.env("RUSTC_BOOTSTRAP", "1");
                let run = bounded::run(bounded::with_memory(&command, memory_kib), BASELINE_LIMIT, |_| None)?;
                passed.add(read(&run.output));
                match run.end {
                    End::Exit(status) if status.code().is_some() || !is_last => {}
                    end => bail!("{} does not end within bounds without a mutant ({end:?})", suite.name),
                }
                for test in run.output.iter().filter_map(|line| failed(line)).filter(|_| is_last) {
                    eprintln!("x: {} {test} fails without a mutant: it is not counted", suite.name);
                }
            }
        }
        Ok(passed)
    }

    /// Runs the quick tests on a mutant. A package that may see it is measured with `others`, which may be tried too,
    /// when it is first needed.
    ///
    /// # Errors
    /// When something other than the mutant goes wrong.
    pub(super) fn judge(
        &self,
        mutant: &Mutant,
        others: &[&Mutant],
        path: &Path,
        baseline: &mut Baseline,
        spent: &mut Spent,
    ) -> Result<Quick> {
        let mut slow = Vec::new();
        let mut packages = (self.packages)(mutant).to_vec();
        packages.sort_by_key(|package| !baseline.measured.contains(*package));
        for package in packages {
            if !baseline.measured.contains(package) {
                self.reach(package, others, path, baseline)?;
            }
            self.tree.write(&mutant.source.path, &mutant.text())?;
            let seen = baseline.seen(package, mutant);
            let names: Vec<&str> = seen.keys().filter_map(|name| Some(name.split_once(' ')?.1)).collect();
            if names.is_empty() {
                continue;
            }
            let begin = Instant::now();
            let built = self.build(package, &names)?;
            spent.host_build += begin.elapsed();
            let built = match built {
                Build::Suites(suites) => suites,
                Build::Error(error) => return Ok(Quick::Judged(Verdict::Invalid(error.why))),
            };
            for suite in built {
                let Some(tests) = seen.get(suite.name.as_str()) else { continue };
                let (quick, late): (Vec<_>, Vec<_>) = tests.iter().copied().partition(|(_, seconds)| *seconds <= QUICK);
                let memory_kib = baseline.memory(package, &suite);
                slow.extend(late.into_iter().map(|(test, seconds)| {
                    let (suite, test) = (suite.clone(), test.to_owned());
                    Slow { suite, test, seconds, memory_kib }
                }));
                if let Some(killed) = self.run(&suite, &quick, memory_kib, spent)? {
                    return Ok(Quick::Judged(killed));
                }
            }
        }
        slow.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        Ok(Quick::Passed(slow))
    }

    /// Runs the slow tests on a mutant that the quick ones passed, as far as its time goes.
    ///
    /// # Errors
    /// When something other than the mutant goes wrong.
    pub(super) fn judge_slowly(&self, mutant: &Mutant, slow: Vec<Slow>, spent: &mut Spent) -> Result<Verdict> {
        let mut budget = if mutant.change.rule.is_of_order() { BUDGET_OF_ORDERS } else { BUDGET };
        for Slow { suite, test, seconds, memory_kib } in slow {
            budget -= seconds;
            if budget < 0.0 {
                spent.left_out += 1;
            } else if let Some(killed) = self.run(&suite, &[(&test, seconds)], memory_kib, spent)? {
                return Ok(killed);
            }
        }
        Ok(Verdict::Survived)
    }

    /// Runs tests of a suite, each with its time without a mutant; what killed the mutant, if one did.
    fn run(&self, suite: &Suite, tests: &[(&str, f64)], memory_kib: u64, spent: &mut Spent) -> Result<Option<Verdict>> {
        for together in tests.chunks(TOGETHER) {
            let killed = self.run_together(suite, together, memory_kib, spent)?;
            if killed.is_some() {
                return Ok(killed);
            }
        }
        Ok(None)
    }

    /// The same in one process.
    fn run_together(
        &self,
        suite: &Suite,
        tests: &[(&str, f64)],
        memory_kib: u64,
        spent: &mut Spent,
    ) -> Result<Option<Verdict>> {
        let seconds: f64 = tests.iter().map(|(_, seconds)| seconds).sum();
        let limit = Duration::from_secs_f64(seconds) * SLOWER + GRACE;
        let names: Vec<&str> = tests.iter().map(|(test, _)| *test).collect();
        let command = self.command(suite, &[&["--exact"], &names[..]].concat());
        let first = |line: &str| failed(line).map(str::to_owned);
        let begin = Instant::now();
        let run = bounded::run(bounded::with_memory(&command, memory_kib), limit, first)?;
        spent.host_tests += begin.elapsed();
        Ok(Some(Verdict::Killed(match &run.end {
            End::Stopped(test) => format!("{} {test}", suite.name),
            End::TimeLimit => format!("the time limit of {} s in {}", limit.as_secs(), suite.name),
            End::Exit(status) if status.success() => return Ok(None),
            End::Exit(_) if run.lacked_memory() => format!("the memory limit in {}", suite.name),
            End::Exit(status) => format!("a crash of {} ({status})", suite.name),
        })))
    }
}

impl Baseline {
    /// The suites of a package that may see a mutant, each with the tests that do and their times.
    fn seen(&self, package: &str, mutant: &Mutant) -> BTreeMap<&str, Vec<(&str, f64)>> {
        let is_probed = self.probed.contains(&mutant.id);
        let suites = self.suites.get(package).into_iter().flatten();
        let seen = suites.map(|(name, passed)| (name.as_str(), passed.see(mutant, is_probed)));
        seen.filter(|(_, tests)| !tests.is_empty()).collect()
    }

    /// The address space that a suite needs.
    fn memory(&self, package: &str, suite: &Suite) -> u64 {
        let passed = self.suites.get(package).and_then(|suites| suites.get(&suite.name));
        passed.map_or(MEMORY_KIB[0], |passed| passed.memory_kib)
    }
}

impl Passed {
    /// What passes in a further run.
    fn add(&mut self, other: Self) {
        self.tests.extend(other.tests);
        self.anywhere.extend(other.anywhere);
    }

    /// The tests that may see a mutant, each with its time.
    fn see(&self, mutant: &Mutant, is_probed: bool) -> Vec<(&str, f64)> {
        let all = !is_probed || self.anywhere.contains(&mutant.id);
        self.tests
            .iter()
            .filter(|(_, test)| all || test.reached.contains(&mutant.id))
            .map(|(name, test)| (name.as_str(), test.seconds))
            .collect()
    }
}

/// The packages whose tests may see a mutant, by the table.
pub(super) fn packages(mutant: &Mutant) -> &'static [&'static str] {
    area_of(&mutant.source.path).unwrap_or(&OTHERS).host
}

/// A test of cargo's that failed, in a line of its output.
fn failed(line: &str) -> Option<&str> {
    let (test, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    // Behind it the time may stand.
    verdict.starts_with("FAILED").then_some(test)
}

/// Tests that passed, how long each took and what it reached, in the output of a run with `--report-time`.
fn read(output: &[String]) -> Passed {
    let mut passed = Passed::default();
    let mut names = BTreeSet::new();
    let mut reached: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in output {
        let verdict = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        if let Some((test, verdict)) = verdict {
            let test = test.strip_suffix(" - should panic").unwrap_or(test);
            names.insert(test);
            if let Some(time) = verdict.strip_prefix("ok") {
                let seconds = time.trim().strip_prefix('<').and_then(|time| time.strip_suffix("s>")?.parse().ok());
                let seconds = seconds.unwrap_or_default();
                passed.tests.insert(test.to_owned(), Test { seconds, ..Test::default() });
            }
        } else if let Some((id, thread)) = line.strip_prefix(MARK).and_then(|rest| rest.split_once(' ')) {
            reached.entry(thread).or_default().insert(id.to_owned());
        }
    }
    for (thread, ids) in reached {
        match passed.tests.get_mut(thread) {
            Some(test) => test.reached.extend(ids),
            None if names.contains(thread) => {}
            None => passed.anywhere.extend(ids),
        }
    }
    passed
}

/// A source with probes behind the given places, which are sorted; its lines keep their numbers.
///
/// A probe takes no memory, since it may be where there is none or where another allocator serves, and writes its line in
/// one piece.
fn with_probes(text: &str, places: &[(usize, &str)]) -> String {
    let (mut result, mut from) = (String::new(), 0);
    for (place, id) in places {
        result += &text[from..*place];
        result += &format!(
            " {{ extern crate std as probe_std; probe_std::thread_local! {{ static SEEN: ::core::cell::Cell<bool> = \
             const {{ ::core::cell::Cell::new(false) }}; }} if !SEEN.replace(true) {{ \
             use probe_std::io::Write as _; let mut line = [0u8; 256]; let room = line.len(); \
             let mut rest = &mut line[..]; let thread = probe_std::thread::current(); \
             let _ = probe_std::write!(rest, \"\\n{MARK}{id} {{}}\\n\", thread.name().unwrap_or(\"?\")); \
             let written = room - rest.len(); let _ = probe_std::io::stderr().write_all(&line[..written]); }} }}"
        );
        from = *place;
    }
    result + &text[from..]
}

/// Reads what an earlier run measured.
fn load(path: &Path) -> Option<Baseline> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Keeps it for a later one.
///
/// # Errors
/// When it cannot be written.
fn store(baseline: &Baseline, path: &Path) -> Result<()> {
    record::replace(path, &serde_json::to_string(baseline).context("cannot write what tests reach")?)
}
