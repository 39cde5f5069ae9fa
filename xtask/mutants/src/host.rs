//! Mutants under the tests on the host: one process a test, by the runner of `./x test`, until the first fails.
//!
//! One build has all mutants in it ([`placed`]): a probe at each one's place, and a copy of the block around it with the
//! change. One run of all tests without a choice tells which of them reach which place, and how long each takes; the
//! others cannot see the mutant. Then each mutant is chosen in turn, without another build. A mutant whose copy does
//! not compile, or that is in code which is evaluated at compile time, is built alone.
//!
//! Near tests come first: those whose names share modules with the mutant's file, then the others of its crate, then
//! those of crates that depend on it. Slow tests follow once every quick one has passed and the image's checks have,
//! quickest first, as far as the bound of time for a mutant goes.
//!
//! Where few mutants are tried, the nearest tests run first, on a build of the mutant alone. A test that fails must pass
//! without the mutant, in a program that is kept for this.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
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
use super::placed::{self, Placed, marks};
use super::record::{self, Spent, Verdict};
use super::table::{OTHERS, area_of};
use super::tree::Tree;

/// A build in which a process takes more hangs.
const BUILD: Bounds = Bounds { seconds: Some(900), memory_kib: None, resident_mib: None };
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
/// A run of so few mutants tries the nearest tests of each at once: no build of many pays.
const FEW: usize = 3;

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
    Bounds { seconds: Some(seconds), memory_kib: Some(MEMORY_KIB), resident_mib: None }
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
            End::Exit(_) | End::Unwanted | End::Memory(..) => match host::verdict(Ok(end), &self.output) {
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
    measured: BTreeMap<String, Measured>,
    /// The tests that pass, by package, program and test.
    passed: BTreeMap<String, BTreeMap<String, BTreeMap<String, Passed>>>,
    /// Mutants that have a probe.
    probed: BTreeSet<String>,
    /// The tests of crates without a mutant, by package.
    #[serde(skip)]
    sound: BTreeMap<String, Vec<Program>>,
}

/// The build of a package's tests with all mutants.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    /// Mutants that it can run.
    copied: BTreeSet<String>,
    programs: Vec<Program>,
}

/// A test that passes without a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Passed {
    /// The mutants whose places it reaches.
    reached: BTreeSet<String>,
    /// Of CPU time.
    seconds: f64,
}

/// The result of a build: its programs, or the errors of the compiler, one or more.
type Build = Result<Vec<Program>, Vec<BuildError>>;

/// An error of the compiler.
struct BuildError {
    why: String,
    /// The places that it names: files, as far as they can be found from the root of the tree, and bytes.
    places: Vec<(String, usize)>,
}

impl BuildError {
    /// The error in a message of cargo's for the tree at `root`, if that says of one.
    fn of(message: &serde_json::Value, root: &Path) -> Option<Self> {
        let message = &message["message"];
        let place = |span: &serde_json::Value| {
            // A crate may reach a file by way of another folder.
            let file = root.join(span["file_name"].as_str()?).canonicalize().ok()?;
            let file = file.strip_prefix(root.canonicalize().ok()?).ok()?.to_str()?.to_owned();
            Some((file, span["byte_start"].as_u64()? as usize))
        };
        (message["level"] == "error").then(|| Self {
            why: message["message"].as_str().unwrap_or_default().to_owned(),
            places: message["spans"].as_array().into_iter().flatten().filter_map(place).collect(),
        })
    }
}

/// The first error.
fn why(errors: Vec<BuildError>) -> String {
    errors.into_iter().next().map(|error| error.why).unwrap_or_default()
}

/// The tests on the host, in the copy.
#[derive(Debug)]
pub(super) struct Host<'a> {
    /// Of the copy.
    pub(super) tools: &'a Tools,
    pub(super) tree: &'a Tree,
    pub(super) seed: u64,
    /// How many mutants get a verdict.
    pub(super) count: usize,
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
        let (mut programs, mut errors, mut output) = (Vec::new(), Vec::new(), String::new());
        let (end, work) = BUILD.run(
            BUILDING,
            &cargo,
            true,
            || true,
            |line| {
                output.extend([line, "\n"]);
                let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { return };
                errors.extend(BuildError::of(&message, &self.tree.root));
                programs.extend(Program::of(&message));
            },
        )?;
        spent.host_build += work;
        match end.failure() {
            None => Ok(Ok(programs)),
            Some(_) if !errors.is_empty() => Ok(Err(errors)),
            Some(why) => bail!("building the tests of {package} failed ({why}):\n{output}"),
        }
    }

    /// Builds these programs of a package with one mutant.
    fn build_alone(&self, mutant: &Mutant, package: &str, names: &[String], spent: &mut Spent) -> Result<Build> {
        self.tree.write(&mutant.source.path, &mutant.text())?;
        self.build(package, names, spent)
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
    fn first_killer(&self, mutant: &Mutant, tests: &[Test], spent: &mut Spent) -> Result<Option<Verdict>> {
        let mut killer = None;
        self.choose(Some(mutant))?;
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
        let mut copied = baseline.probed.clone();
        let mut programs = loop {
            let placed = self.place(mutants, &baseline.probed, &copied)?;
            let errors = match self.build(package, &[], &mut Spent::default())? {
                Ok(programs) => break programs,
                Err(errors) => errors,
            };
            ensure!(!baseline.probed.is_empty(), "the sources do not build: {}", why(errors));
            let places = || errors.iter().flat_map(|error| &error.places);
            let wrong: BTreeSet<&str> = places().filter_map(|(file, byte)| placed.get(file)?.copy_at(*byte)).collect();
            if !wrong.is_empty() {
                copied.retain(|id| !wrong.contains(id.as_str()));
                continue;
            }
            // Code that takes no probe: a file that another crate includes, or that is evaluated at compile time.
            let files: BTreeSet<&str> = places().map(|(file, _)| file.as_str()).collect();
            let all = baseline.probed.len();
            for mutant in mutants.iter().filter(|mutant| files.contains(mutant.source.path.as_str())) {
                baseline.probed.remove(&mutant.id);
            }
            if baseline.probed.len() == all {
                baseline.probed.clear();
            }
            copied.retain(|id| baseline.probed.contains(id));
            let place = if baseline.probed.is_empty() { "all files".to_owned() } else { format!("{files:?}") };
            eprintln!("x: no probes in {place} ({}): every test runs on their mutants", why(errors));
        };
        for program in &mut programs {
            keep(program, path, "all")?;
            if baseline.passed.get(package).is_some_and(|measured| measured.contains_key(&program.target)) {
                continue;
            }
            let passed = self.measure(program)?;
            let seconds = passed.values().map(|test| test.seconds).sum::<f64>();
            println!("{}: {} tests of {seconds:.0} s", program.suite(), passed.len());
            baseline.passed.entry(package.to_owned()).or_default().insert(program.target.clone(), passed);
            store(baseline, path)?;
        }
        println!("{package}: {} of {} mutants need no build of their own", copied.len(), mutants.len());
        baseline.measured.insert(package.to_owned(), Measured { copied, programs });
        store(baseline, path)?;
        self.place(mutants, &BTreeSet::new(), &BTreeSet::new())?;
        Ok(())
    }

    /// Writes the files of `mutants`, with probes and copies for these; what is in them, by file.
    fn place(
        &self,
        mutants: &[&Mutant],
        probed: &BTreeSet<String>,
        copied: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Placed>> {
        let mut files: BTreeMap<&str, Vec<&Mutant>> = BTreeMap::new();
        for mutant in mutants {
            files.entry(&mutant.source.path).or_default().push(mutant);
        }
        let chosen = self.chosen();
        let placed = files.into_iter().map(|(path, mutants)| {
            let placed = placed::place(&mutants[0].source.text, &mutants, probed, copied, &chosen);
            self.tree.write(path, &placed.text)?;
            Ok((path.to_owned(), placed))
        });
        placed.collect()
    }

    /// The file with the name of the mutant that runs, for programs that have many.
    fn chosen(&self) -> PathBuf {
        self.tree.root.with_extension("chosen")
    }

    /// Has such programs run this mutant from now on; none without one.
    fn choose(&self, mutant: Option<&Mutant>) -> Result<()> {
        let (path, name) = (self.chosen(), mutant.map_or("", |mutant| mutant.id.as_str()));
        fs::write(&path, name).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The tests that pass in a program that has probes, each with the probes that it reaches.
    fn measure(&self, program: &Program) -> Result<BTreeMap<String, Passed>> {
        let mut passed = BTreeMap::new();
        self.choose(None)?;
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
        let is_one_of_few = self.count <= FEW;
        if let Some(own) = packages.first().filter(|own| is_one_of_few && !baseline.measured.contains_key(**own)) {
            match self.judge_nearest(mutant, own, path, baseline, spent)? {
                Quick::Passed(passed) => near.extend(passed.iter().map(Test::name)),
                judged @ Quick::Judged(_) => return Ok(judged),
            }
        }
        let mut slow = Vec::new();
        packages.sort_by_key(|package| !baseline.measured.contains_key(*package));
        for package in packages {
            if !baseline.measured.contains_key(package) {
                self.reach(package, others, path, baseline)?;
            }
            let seen = baseline.seen(package, mutant);
            let names: Vec<String> = seen.keys().map(|name| (*name).to_owned()).collect();
            if names.is_empty() {
                continue;
            }
            let built = match baseline.measured.get(package).filter(|measured| measured.copied.contains(&mutant.id)) {
                Some(measured) => Ok(measured.programs.clone()),
                None => self.build_alone(mutant, package, &names, spent)?,
            };
            let programs = match built {
                Ok(programs) => programs,
                Err(errors) => return Ok(Quick::Judged(Verdict::Invalid(why(errors)))),
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
            if let Some(killed) = self.first_killer(mutant, &quick, spent)? {
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
        let programs = match self.build_alone(mutant, package, &nearest(package), spent)? {
            Ok(programs) => programs,
            Err(errors) => return Ok(Quick::Judged(Verdict::Invalid(why(errors)))),
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
            Ok(programs) => programs,
            Err(errors) => bail!("the sources do not build: {}", why(errors)),
        };
        programs.iter_mut().try_for_each(|program| keep(program, path, "sound"))?;
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
        let killed = self.first_killer(mutant, &affordable, spent)?;
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

/// Copies a program's file to a place beside `path` that no build overwrites.
fn keep(program: &mut Program, path: &Path, what: &str) -> Result<()> {
    let kept = path.with_file_name(format!("{}.{what}", program.suite()));
    fs::copy(&program.executable, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    program.executable = kept;
    Ok(())
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

/// The packages whose tests may see a mutant, by the table.
pub(super) fn packages(mutant: &Mutant) -> &'static [&'static str] {
    area_of(&mutant.source.path).unwrap_or(&OTHERS).host
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
