//! Mutants under the tests on the host: one process a test, by the runner of `./x test`, until the first fails.
//!
//! Near tests come first: those whose names share modules with the mutant's file, then the others of its crate, then
//! those of crates that depend on it. The nearest run at once. A test that fails must pass without the mutant, in a
//! program that is kept for this.
//!
//! Reach: for the rest, one build has a probe in the innermost block around each mutant's place, which prints the mutant's
//! name. So one run of all tests tells which of them reach which place, and how long each takes; the others cannot see
//! the mutant. Slow tests follow once every quick one has passed and the image's checks have, quickest first, as far as
//! the bound of time for a mutant goes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use granule_runner::report::Status;
use granule_suite::host::{self, Program};
use granule_suite::list::Jobs;
use granule_tools::bounded::{Bounds, End};
use granule_tools::{BUILDING, Tools};
use serde::{Deserialize, Serialize};

use super::draw::Mutant;
use super::record::{self, Spent, Verdict};
use super::table::{OTHERS, area_of};
use super::tree::Tree;

/// A build in which a process takes more hangs.
const BUILD: Bounds = Bounds { seconds: Some(900), memory_kib: None };
/// Address space of a test, in KiB.
const MEMORY_KIB: u64 = 4 << 20;
/// The bound of a test with a mutant, in CPU time: its time without one this often, and so many seconds more.
const SLOWER: f64 = 4.0;
const GRACE: f64 = 10.0;
/// CPU time that the nearest tests of a mutant have before it is known what others reach; one of them that takes longer
/// gets its verdict later.
const NEAREST: u64 = 20;
/// A test that takes longer is slow: it runs once all others have passed.
const QUICK: f64 = 2.0;
/// The time of one mutant's slow tests without it, in seconds; tests beyond it are left out, and counted. Most of
/// them try every order of some steps, so a mutant of an order gets more.
const BUDGET: f64 = 50.0;
const BUDGET_OF_ORDERS: f64 = 150.0;
/// The text that a probe prints before the mutant's name.
const MARK: &str = "@reached ";

/// A test that may see a mutant.
#[derive(Clone, Debug)]
pub(super) struct Test {
    program: Program,
    name: String,
    /// Of CPU time without a mutant.
    seconds: f64,
}

impl Test {
    /// As `./x test` names it.
    fn name(&self) -> String {
        format!("{}::{}", self.program.suite(), self.name)
    }

    /// The bounds of the test with a mutant.
    fn bounds(&self) -> Bounds {
        within((self.seconds * SLOWER + GRACE) as u64)
    }
}

/// So many seconds, and a test's memory.
fn within(seconds: u64) -> Bounds {
    Bounds { seconds: Some(seconds), memory_kib: Some(MEMORY_KIB) }
}

/// How a test ended.
struct Ended {
    end: Result<End>,
    output: String,
    work: Duration,
}

impl Ended {
    fn has_passed(self) -> bool {
        matches!(host::verdict(self.end, &self.output), Status::Passed)
    }

    /// The cause of the death of the mutant under `test`, if it died.
    fn killer(self, test: &Test) -> Result<Option<String>> {
        let (end, name) = (self.end?, test.name());
        let lacked = ["memory allocation of ", "Cannot allocate memory"].iter().any(|text| self.output.contains(text));
        Ok(Some(match end {
            End::Exit(status) if status.code() == Some(FAILED) => name,
            End::Exit(status) if !status.success() && lacked => format!("the memory limit in {name}"),
            End::Exit(status) if !status.success() => format!("a crash of {name} ({status})"),
            End::Work(seconds) | End::Still(seconds) => format!("the time limit of {seconds} s in {name}"),
            End::Exit(_) | End::Unwanted => match host::verdict(Ok(end), &self.output) {
                Status::Failed(why) => bail!("{name}: {why}"),
                Status::Passed | Status::Skipped(_) => return Ok(None),
            },
        }))
    }
}

/// The harness's exit status where a test failed.
const FAILED: i32 = 101;

/// The result of the quick tests of a mutant.
#[derive(Debug)]
pub(super) enum Quick {
    Judged(Verdict),
    /// They pass; these are left, the shortest first.
    Passed(Vec<Test>),
}

/// The results of the tests without a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// The sources and mutants that it was measured for.
    key: String,
    /// Packages of which all programs are there.
    measured: BTreeSet<String>,
    /// The tests that pass, by package, program and test.
    passed: BTreeMap<String, BTreeMap<String, BTreeMap<String, Passed>>>,
    /// Mutants that have a probe.
    probed: BTreeSet<String>,
    /// The tests of crates without a mutant, by package.
    #[serde(skip)]
    sound: BTreeMap<String, Vec<Program>>,
}

/// A test that passes without a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Passed {
    /// The mutants whose places it reaches.
    reached: BTreeSet<String>,
    /// Of CPU time.
    seconds: f64,
}

/// The result of a build.
enum Build {
    Programs(Vec<Program>),
    /// The first error.
    Error(BuildError),
}

/// An error of the compiler.
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
    /// The packages whose tests may see a mutant, its own first.
    pub(super) packages: fn(&Mutant) -> &'static [&'static str],
}

impl Host<'_> {
    /// Builds tests of a package: the programs of these names, all of them without any.
    fn build(&self, package: &str, names: &[String], spent: &mut Spent) -> Result<Build> {
        let mut cargo = self.tools.host_cargo("test", "host");
        cargo.args(["--no-run", "--message-format=json", "--package", package]);
        // No debugger follows these programs, and linking them is what takes the time.
        cargo.args(["--config", "profile.dev.debug=0", "--config", "profile.dev.package.\"*\".debug=2"]);
        if names.is_empty() {
            cargo.arg("--tests");
        }
        for name in names {
            if library(package) == *name {
                cargo.arg("--lib")
            } else {
                cargo.args(["--test", name])
            };
        }
        let (mut programs, mut error, mut output) = (Vec::new(), None, String::new());
        let (end, work) = BUILD.run(
            BUILDING,
            &cargo,
            true,
            || true,
            |line| {
                output.extend([line, "\n"]);
                let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { return };
                if message["message"]["level"] == "error" && error.is_none() {
                    let file = message["message"]["spans"][0]["file_name"].as_str().map(str::to_owned);
                    let why = message["message"]["message"].as_str().unwrap_or_default().to_owned();
                    error = Some(BuildError { why, file });
                }
                programs.extend(Program::of(&message));
            },
        )?;
        spent.host_build += work;
        match (end.failure(), error) {
            (None, _) => Ok(Build::Programs(programs)),
            (Some(_), Some(error)) => Ok(Build::Error(error)),
            (Some(why), None) => bail!("building the tests of {package} failed ({why}):\n{output}"),
        }
    }

    /// A run of a test.
    fn command(&self, program: &Program, test: &str) -> Command {
        let mut command = program.test(test, self.seed);
        command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        command
    }

    /// Runs tests in their order, as `./x test` does. `judge` gets each once it has ended, and stops the others by `false`.
    fn run(
        &self,
        tests: &[Test],
        bounds: impl Fn(&Test) -> Bounds,
        mut judge: impl FnMut(&Test, Ended) -> Result<bool>,
    ) -> Result<()> {
        let (jobs, (sender, ended)) = (Jobs::default(), channel());
        for (at, test) in tests.iter().enumerate() {
            let (sender, others) = (sender.clone(), jobs.clone());
            let (suite, command, bounds) =
                (test.program.suite(), self.command(&test.program, &test.name), bounds(test));
            jobs.add(host::MEMORY_MIB, move || {
                let (end, output, work) = host::run(&suite, &command, bounds, || !others.are_stopped());
                // It is received until the last has ended.
                let _ = sender.send((at, Ended { end, output, work }));
            });
        }
        drop(sender);
        jobs.start();
        let mut result = Ok(true);
        for (at, ended) in ended {
            if matches!(result, Ok(true)) {
                result = judge(&tests[at], ended);
            }
            if !matches!(result, Ok(true)) {
                jobs.stop();
            }
        }
        result.map(drop)
    }

    /// The first of some tests that kills a mutant.
    fn first_killer(&self, tests: &[Test], spent: &mut Spent) -> Result<Option<Verdict>> {
        let mut killer = None;
        self.run(tests, Test::bounds, |test, ended| {
            spent.host_tests += ended.work;
            killer = ended.killer(test)?;
            Ok(killer.is_none())
        })?;
        Ok(killer.map(Verdict::Killed))
    }

    /// The baseline of an earlier run, in `path`, for the same sources and mutants; else an empty one.
    pub(super) fn baseline(&self, key: &str, mutants: &[&Mutant], path: &Path) -> Baseline {
        let with_probe = mutants.iter().filter(|mutant| mutant.change.block.is_some());
        let probed = with_probe.map(|mutant| mutant.id.clone()).collect();
        let fresh = || Baseline { key: key.to_owned(), probed, ..Baseline::default() };
        load(path).filter(|earlier| earlier.key == key).unwrap_or_else(fresh)
    }

    /// Builds a package with a probe for each of the mutants, runs its tests, and notes which reach which: in `path`, a
    /// program after another, so that a run which was ended continues there.
    ///
    /// # Errors
    /// When the sources do not build without a mutant.
    fn reach(&self, package: &str, mutants: &[&Mutant], path: &Path, baseline: &mut Baseline) -> Result<()> {
        println!("which tests of {package} reach the mutants' places: one run of all");
        let programs = loop {
            self.place(mutants, &baseline.probed)?;
            let BuildError { why, file } = match self.build(package, &[], &mut Spent::default())? {
                Build::Programs(programs) => break programs,
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
        for program in programs {
            if baseline.passed.get(package).is_some_and(|measured| measured.contains_key(&program.target)) {
                continue;
            }
            let passed = self.measure(&program)?;
            let seconds = passed.values().map(|test| test.seconds).sum::<f64>();
            println!("{}: {} tests of {seconds:.0} s", program.suite(), passed.len());
            baseline.passed.entry(package.to_owned()).or_default().insert(program.target, passed);
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

    /// The tests that pass in a program that has probes, each with the probes that it reaches.
    fn measure(&self, program: &Program) -> Result<BTreeMap<String, Passed>> {
        let mut passed = BTreeMap::new();
        self.run(
            &tests(program)?,
            |_| within(host::SECONDS),
            |test, ended| {
                let (reached, seconds) = (marks(&ended.output), ended.work.as_secs_f64());
                if ended.has_passed() {
                    passed.insert(test.name.clone(), Passed { reached, seconds });
                } else {
                    eprintln!("x: {} does not pass without a mutant: it is not counted", test.name());
                }
                Ok(true)
            },
        )?;
        Ok(passed)
    }

    /// Runs the quick tests on a mutant, the nearest first. A package that may see it is measured with `others`, which may
    /// be tried too, when it is first needed.
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
        let mut packages = (self.packages)(mutant).to_vec();
        let mut near = BTreeSet::new();
        if let Some(own) = packages.first().filter(|own| !baseline.measured.contains(**own)) {
            match self.judge_nearest(mutant, own, path, baseline, spent)? {
                Quick::Passed(passed) => near.extend(passed.iter().map(Test::name)),
                judged @ Quick::Judged(_) => return Ok(judged),
            }
        }
        let mut slow = Vec::new();
        packages.sort_by_key(|package| !baseline.measured.contains(*package));
        for package in packages {
            if !baseline.measured.contains(package) {
                self.reach(package, others, path, baseline)?;
            }
            let seen = baseline.seen(package, mutant);
            let names: Vec<String> = seen.keys().map(|name| (*name).to_owned()).collect();
            if names.is_empty() {
                continue;
            }
            self.tree.write(&mutant.source.path, &mutant.text())?;
            let programs = match self.build(package, &names, spent)? {
                Build::Programs(programs) => programs,
                Build::Error(error) => return Ok(Quick::Judged(Verdict::Invalid(error.why))),
            };
            let test = |program: &Program, (name, seconds): &(&str, f64)| Test {
                program: program.clone(),
                name: (*name).to_owned(),
                seconds: *seconds,
            };
            let tests = programs.iter().flat_map(|program| {
                seen.get(program.target.as_str()).into_iter().flatten().map(move |one| test(program, one))
            });
            let (mut quick, late): (Vec<Test>, Vec<Test>) =
                tests.filter(|test| !near.contains(&test.name())).partition(|test| test.seconds <= QUICK);
            slow.extend(late);
            quick.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
            quick.sort_by_key(|test| Reverse(shared(&mutant.source.path, &test.name)));
            if let Some(killed) = self.first_killer(&quick, spent)? {
                return Ok(Quick::Judged(killed));
            }
        }
        slow.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        Ok(Quick::Passed(slow))
    }

    /// Runs the tests of a mutant's own crate, the nearest first, as far as [`NEAREST`] goes; those that passed.
    fn judge_nearest(
        &self,
        mutant: &Mutant,
        package: &str,
        path: &Path,
        baseline: &mut Baseline,
        spent: &mut Spent,
    ) -> Result<Quick> {
        if !baseline.sound.contains_key(package) {
            let sound = self.sound(mutant, package, path)?;
            baseline.sound.insert(package.to_owned(), sound);
        }
        self.tree.write(&mutant.source.path, &mutant.text())?;
        let programs = match self.build(package, &nearest(package), spent)? {
            Build::Programs(programs) => programs,
            Build::Error(error) => return Ok(Quick::Judged(Verdict::Invalid(error.why))),
        };
        let sound = |program: &Program| {
            let sound = baseline.sound[package].iter().find(|sound| sound.target == program.target);
            sound.with_context(|| format!("{} without a mutant has no such tests", program.suite()))
        };
        let mut near = Vec::new();
        for program in &programs {
            // The programs are equal where the host compiles nothing of the place.
            if read(program)? != read(sound(program)?)? {
                near.extend(tests(program)?);
            }
        }
        near.sort_by_key(|test| Reverse(shared(&mutant.source.path, &test.name)));
        let (mut passed, mut killer, mut work) = (Vec::new(), None, Duration::ZERO);
        self.run(
            &near,
            |_| within(NEAREST),
            |test, ended| {
                work += ended.work;
                let is_late = !matches!(ended.end, Ok(End::Exit(_)));
                killer = ended.killer(test)?.map(|by| (by, test.clone(), is_late));
                passed.extend(killer.is_none().then(|| test.clone()));
                Ok(killer.is_none() && work < Duration::from_secs(NEAREST))
            },
        )?;
        spent.host_tests += work;
        let Some((by, test, is_late)) = killer else { return Ok(Quick::Passed(passed)) };
        let (command, bounds) = (self.command(sound(&test.program)?, &test.name), within(NEAREST));
        let (end, output, work) = host::run(&test.program.suite(), &command, bounds, || true);
        spent.host_tests += work;
        let without = Test { seconds: work.as_secs_f64(), ..test };
        let is_sure = !is_late || without.bounds().seconds <= bounds.seconds;
        let has_passed = Ended { end, output, work }.has_passed();
        Ok(if has_passed && is_sure { Quick::Judged(Verdict::Killed(by)) } else { Quick::Passed(passed) })
    }

    /// Builds the nearest tests of a crate without the mutant, and keeps their programs.
    fn sound(&self, mutant: &Mutant, package: &str, path: &Path) -> Result<Vec<Program>> {
        self.tree.write(&mutant.source.path, &mutant.source.text)?;
        let mut programs = match self.build(package, &nearest(package), &mut Spent::default())? {
            Build::Programs(programs) => programs,
            Build::Error(BuildError { why, .. }) => bail!("the sources do not build: {why}"),
        };
        for program in &mut programs {
            let kept = path.with_file_name(format!("{}.sound", program.suite()));
            fs::copy(&program.executable, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
            program.executable = kept;
        }
        Ok(programs)
    }

    /// Runs the slow tests on a mutant that the quick ones passed, as far as its time goes.
    ///
    /// # Errors
    /// When something other than the mutant goes wrong.
    pub(super) fn judge_slowly(&self, mutant: &Mutant, slow: Vec<Test>, spent: &mut Spent) -> Result<Verdict> {
        let mut budget = if mutant.change.rule.is_of_order() { BUDGET_OF_ORDERS } else { BUDGET };
        let (affordable, left_out): (Vec<Test>, Vec<Test>) = slow.into_iter().partition(|test| {
            budget -= test.seconds;
            budget >= 0.0
        });
        let killed = self.first_killer(&affordable, spent)?;
        if killed.is_none() {
            spent.left_out += left_out.len();
        }
        Ok(killed.unwrap_or(Verdict::Survived))
    }
}

impl Baseline {
    /// The programs of a package that may see a mutant, each with the tests that do and their times.
    fn seen(&self, package: &str, mutant: &Mutant) -> BTreeMap<&str, Vec<(&str, f64)>> {
        let all = !self.probed.contains(&mutant.id);
        let programs = self.passed.get(package).into_iter().flatten();
        let seen = programs.map(|(program, tests)| {
            let seen = tests.iter().filter(|(_, test)| all || test.reached.contains(&mutant.id));
            (program.as_str(), seen.map(|(name, test)| (name.as_str(), test.seconds)).collect::<Vec<_>>())
        });
        seen.filter(|(_, tests)| !tests.is_empty()).collect()
    }
}

/// The bytes of a program.
fn read(program: &Program) -> Result<Vec<u8>> {
    fs::read(&program.executable).with_context(|| format!("cannot read {}", program.executable.display()))
}

/// The name of a package's library, which the program of its own tests has too.
fn library(package: &str) -> String {
    package.replace('-', "_")
}

/// The programs with most of a package's own tests.
fn nearest(package: &str) -> Vec<String> {
    let beside = (package == "granule-pgtable").then(|| "host".to_owned());
    [library(package)].into_iter().chain(beside).collect()
}

/// The tests of a program that are not long ones.
fn tests(program: &Program) -> Result<Vec<Test>> {
    let long: BTreeSet<String> = program.list(&["--ignored"])?.into_iter().collect();
    let names = program.list(&[])?.into_iter().filter(|name| !long.contains(name));
    Ok(names.map(|name| Test { program: program.clone(), name, seconds: 0.0 }).collect())
}

/// How many modules a test's name shares with a file.
fn shared(path: &str, test: &str) -> usize {
    let path = path.rsplit_once("src/").map_or("", |(_, path)| path);
    let modules = path.trim_end_matches(".rs").trim_end_matches("/mod").split('/');
    modules.zip(test.split("::")).take_while(|(module, part)| module == part).count()
}

/// The mutants whose probes printed something.
fn marks(output: &str) -> BTreeSet<String> {
    output.lines().filter_map(|line| line.strip_prefix(MARK)).map(str::to_owned).collect()
}

/// The packages whose tests may see a mutant, by the table.
pub(super) fn packages(mutant: &Mutant) -> &'static [&'static str] {
    area_of(&mutant.source.path).unwrap_or(&OTHERS).host
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
            " {{ extern crate std as probe_std; use probe_std::sync::atomic::{{AtomicBool, Ordering}}; \
             static SEEN: AtomicBool = AtomicBool::new(false); if !SEEN.swap(true, Ordering::Relaxed) {{ \
             let _ = probe_std::io::Write::write_all(&mut probe_std::io::stderr(), b\"\\n{MARK}{id}\\n\"); }} }}"
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::path::PathBuf;
    use std::process::ExitStatus;
    use std::time::Duration;

    use super::{Ended, Test, shared};
    use granule_suite::host::Program;
    use granule_tools::bounded::End;

    #[test]
    fn tests_are_near_that_share_modules_with_the_file() {
        let near = |test| shared("kernel/src/mm/space/gather.rs", test);
        let tests =
            ["mm::space::gather::tests::a", "mm::space::tests::b", "mm::tests::c", "sched::tests::d", "gather::e"];
        assert_eq!(tests.map(near), [3, 2, 1, 0, 0]);
        assert_eq!(shared("kernel/src/mm/space/mod.rs", "mm::space::tests::b"), 2);
        assert_eq!(shared("arch/src/lib.rs", "tests::a"), 0);
    }

    #[test]
    fn the_end_of_a_test_names_what_killed_the_mutant() {
        let program = Program {
            package: "granule-arch".into(),
            target: "granule_arch".into(),
            is_integration: false,
            executable: PathBuf::new(),
            directory: PathBuf::new(),
        };
        let test = Test { program, name: "a::b".into(), seconds: 0.0 };
        let killer = |end, output: &str| {
            let work = Duration::ZERO;
            Ended { end: Ok(end), output: output.into(), work }.killer(&test).map_err(|error| error.to_string())
        };
        let by = |text: &str| Ok(Some(text.to_owned()));
        let exit = |code: i32| End::Exit(ExitStatus::from_raw(code << 8));
        let abort = End::Exit(ExitStatus::from_raw(6));
        assert_eq!(killer(exit(0), "test result: ok. 1 passed"), Ok(None));
        assert_eq!(killer(exit(101), ""), by("granule_arch::a::b"));
        assert_eq!(killer(abort, "memory allocation of 8 bytes failed"), by("the memory limit in granule_arch::a::b"));
        assert_eq!(killer(abort, ""), by("a crash of granule_arch::a::b (signal: 6 (SIGABRT))"));
        assert_eq!(killer(End::Work(20), ""), by("the time limit of 20 s in granule_arch::a::b"));
        assert_eq!(killer(End::Still(20), ""), by("the time limit of 20 s in granule_arch::a::b"));
        assert!(killer(exit(0), "test result: ok. 0 passed").is_err(), "no such test");
    }
}
