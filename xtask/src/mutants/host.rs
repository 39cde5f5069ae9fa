//! Mutants under the tests on the host, and which of these tests reach a mutant's place.
//!
//! Reach: one build has a probe in the innermost block around each mutant's place, which prints the mutant's name and the
//! thread's once for each thread. A test's thread has the test's name, so one run of all tests tells which of them reach
//! which place. The others cannot see the mutant; what threads with other names reach is taken to be reached by all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::bounded::{self, End};
use super::draw::Mutant;
use super::record::Verdict;
use super::table::area_of;
use super::tree::Tree;
use crate::tools::Tools;

/// A build that takes longer hangs.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// Address space of a program of tests, in KiB: the first in which all passes that passes in the last.
const MEMORY_KIB: [u64; 2] = [8 << 20, 24 << 20];
/// What the tests of a program may take longer than without a mutant: this often, and this long.
const SLOWER: u32 = 4;
const GRACE: Duration = Duration::from_secs(30);
/// What a probe prints before the mutant's name.
const MARK: &str = "@reached ";
/// The harness runs a single thread's tests on its own one, which has no name and keeps its locals.
const THREADS: &str = "--test-threads=2";

/// A program of tests.
#[derive(Debug)]
struct Suite {
    /// `package name`.
    name: String,
    executable: PathBuf,
    directory: PathBuf,
}

/// What the tests do without a mutant.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// What it was measured for.
    key: String,
    /// By package and suite.
    suites: BTreeMap<String, BTreeMap<String, Passed>>,
    /// Mutants that have a probe.
    probed: BTreeSet<String>,
}

/// What passes in a suite.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Passed {
    /// The tests, each with the mutants whose places it reaches.
    tests: BTreeMap<String, BTreeSet<String>>,
    /// Reached outside every test.
    anywhere: BTreeSet<String>,
    seconds: u64,
    memory_kib: u64,
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
    /// Builds the tests of a package.
    fn build(&self, package: &str) -> Result<Build> {
        let mut cargo = self.tools.host_cargo("test", "host");
        cargo.args(["--no-run", "--lib", "--tests", "--message-format=json", "--package", package]);
        let run = bounded::run(cargo, BUILD_LIMIT, |_| None)?;
        let messages = run.output.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let (mut suites, mut error) = (Vec::new(), None);
        for message in messages {
            if message["message"]["level"] == "error" && error.is_none() {
                let file = message["message"]["spans"][0]["file_name"].as_str().map(str::to_owned);
                let why = message["message"]["message"].as_str().unwrap_or_default().to_owned();
                error = Some(BuildError { why, file });
            }
            let directory =
                message["manifest_path"].as_str().and_then(|path| PathBuf::from(path).parent().map(PathBuf::from));
            if let (true, Some(executable), Some(directory)) =
                (message["profile"]["test"] == true, message["executable"].as_str(), directory)
            {
                let name = format!("{package} {}", message["target"]["name"].as_str().unwrap_or_default());
                suites.push(Suite { name, executable: executable.into(), directory });
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

    /// Builds with a probe for each mutant, runs all tests that may see one, and notes which reach which.
    ///
    /// # Errors
    /// When the sources do not build without a mutant.
    pub(super) fn baseline(&self, key: &str, mutants: &[&Mutant]) -> Result<Baseline> {
        let mut baseline = Baseline { key: key.to_owned(), ..Baseline::default() };
        let packages: BTreeSet<&str> = mutants.iter().flat_map(|mutant| (self.packages)(mutant)).copied().collect();
        let mut probed: Vec<&Mutant> = mutants.iter().copied().filter(|mutant| mutant.change.block.is_some()).collect();
        self.place(mutants, &probed)?;
        let mut built = self.build_all(&packages)?;
        while let Err(BuildError { why, file }) = &built
            && !probed.is_empty()
        {
            // Code that takes no probe: a file that another crate includes, or that is evaluated at compile time.
            let (all, in_file) = (probed.len(), |mutant: &&Mutant| Some(&mutant.source.path) == file.as_ref());
            probed.retain(|mutant| !in_file(mutant));
            if probed.len() == all {
                probed.clear();
            }
            let place = file.as_deref().filter(|_| !probed.is_empty()).unwrap_or("all files");
            eprintln!("x: no probes in {place} ({why}): every test runs on their mutants");
            self.place(mutants, &probed)?;
            built = self.build_all(&packages)?;
        }
        let suites = built.map_err(|error| anyhow::anyhow!("the sources do not build: {}", error.why))?;
        for (package, suites) in suites {
            for suite in suites {
                let passed = self.measure(&suite)?;
                baseline.suites.entry(package.clone()).or_default().insert(suite.name, passed);
            }
        }
        baseline.probed = probed.iter().map(|mutant| mutant.id.clone()).collect();
        self.place(mutants, &[])?;
        Ok(baseline)
    }

    fn build_all(&self, packages: &BTreeSet<&str>) -> Result<Result<BTreeMap<String, Vec<Suite>>, BuildError>> {
        let mut all = BTreeMap::new();
        for package in packages {
            match self.build(package)? {
                Build::Suites(suites) => drop(all.insert((*package).to_owned(), suites)),
                Build::Error(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(all))
    }

    /// Puts probes into the files of `mutants`, for those of `probed`.
    fn place(&self, mutants: &[&Mutant], probed: &[&Mutant]) -> Result<()> {
        let files: BTreeMap<&str, &str> =
            mutants.iter().map(|mutant| (mutant.source.path.as_str(), mutant.source.text.as_str())).collect();
        for (path, text) in files {
            let mut places: Vec<(usize, &str)> = probed
                .iter()
                .filter(|mutant| mutant.source.path == path)
                .filter_map(|mutant| Some((mutant.change.block?, mutant.id.as_str())))
                .collect();
            places.sort_unstable();
            self.tree.write(path, &with_probes(text, &places))?;
        }
        Ok(())
    }

    /// What passes in a suite that has probes.
    fn measure(&self, suite: &Suite) -> Result<Passed> {
        let mut passed = Passed::default();
        for memory_kib in MEMORY_KIB {
            let begin = Instant::now();
            let command = bounded::with_memory(&self.command(suite, &[]), memory_kib);
            let run = bounded::run(command, BUILD_LIMIT, |_| None)?;
            passed = read(&run.output);
            passed.seconds = begin.elapsed().as_secs() + 1;
            passed.memory_kib = memory_kib;
            let is_last = MEMORY_KIB.last() == Some(&memory_kib);
            match run.end {
                End::Exit(status) if status.success() => break,
                End::Exit(status) if status.code().is_some() && is_last => {
                    for test in run.output.iter().filter_map(|line| failed(line)) {
                        eprintln!("x: {} {test} fails without a mutant: it is not counted", suite.name);
                    }
                }
                End::Exit(_) if !is_last => {}
                end => bail!("{} does not end within bounds without a mutant ({end:?})", suite.name),
            }
        }
        Ok(passed)
    }

    /// A mutant's verdict on the host, in the copy that has it.
    ///
    /// # Errors
    /// When something other than the mutant goes wrong.
    pub(super) fn judge(&self, mutant: &Mutant, baseline: &Baseline) -> Result<Verdict> {
        let is_probed = baseline.probed.contains(&mutant.id);
        for package in (self.packages)(mutant) {
            let Some(suites) = baseline.suites.get(*package) else { continue };
            if suites.values().all(|passed| passed.see(mutant, is_probed).is_empty()) {
                continue;
            }
            let built = match self.build(package)? {
                Build::Suites(suites) => suites,
                Build::Error(error) => return Ok(Verdict::Invalid(error.why)),
            };
            for suite in built {
                let Some(passed) = suites.get(&suite.name) else { continue };
                let tests = passed.see(mutant, is_probed);
                if tests.is_empty() {
                    continue;
                }
                let limit = Duration::from_secs(passed.seconds) * SLOWER + GRACE;
                let command = self.command(&suite, &[&["--exact"], &tests[..]].concat());
                let first = |line: &str| failed(line).map(str::to_owned);
                let run = bounded::run(bounded::with_memory(&command, passed.memory_kib), limit, first)?;
                let why = match &run.end {
                    End::Stopped(test) => format!("{} {test}", suite.name),
                    End::TimeLimit => format!("the time limit of {} s in {}", limit.as_secs(), suite.name),
                    End::Exit(status) if status.success() => continue,
                    End::Exit(_) if run.lacked_memory() => format!("the memory limit in {}", suite.name),
                    End::Exit(status) => format!("a crash of {} ({status})", suite.name),
                };
                return Ok(Verdict::Killed(why));
            }
        }
        Ok(Verdict::Survived)
    }
}

impl Baseline {
    /// Whether it was measured for that.
    pub(super) fn is_for(&self, key: &str) -> bool {
        self.key == key
    }

    /// Whether any test on the host may see a mutant.
    pub(super) fn sees(&self, mutant: &Mutant) -> bool {
        let is_probed = self.probed.contains(&mutant.id);
        self.suites.values().flat_map(BTreeMap::values).any(|passed| !passed.see(mutant, is_probed).is_empty())
    }
}

impl Passed {
    /// The tests that may see a mutant.
    fn see(&self, mutant: &Mutant, is_probed: bool) -> Vec<&str> {
        let all = !is_probed || self.anywhere.contains(&mutant.id);
        self.tests
            .iter()
            .filter(|(_, reached)| all || reached.contains(&mutant.id))
            .map(|(test, _)| test.as_str())
            .collect()
    }
}

/// The packages whose tests may see a mutant, by the table.
pub(super) fn packages(mutant: &Mutant) -> &'static [&'static str] {
    area_of(&mutant.source.path).map_or(&[], |area| area.host)
}

/// A test of cargo's that failed, in a line of its output.
fn failed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Tests that passed, and what each reached, in the output of a run with `--show-output`.
fn read(output: &[String]) -> Passed {
    let mut passed = Passed::default();
    let mut names = BTreeSet::new();
    let mut reached: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in output {
        let verdict = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        if let Some((test, verdict)) = verdict {
            let test = test.strip_suffix(" - should panic").unwrap_or(test);
            names.insert(test);
            if verdict == "ok" {
                passed.tests.insert(test.to_owned(), BTreeSet::new());
            }
        } else if let Some((id, thread)) = line.strip_prefix(MARK).and_then(|rest| rest.split_once(' ')) {
            reached.entry(thread).or_default().insert(id.to_owned());
        }
    }
    for (thread, ids) in reached {
        match passed.tests.get_mut(thread) {
            Some(found) => found.extend(ids),
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
pub(super) fn load(path: &std::path::Path) -> Option<Baseline> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// Keeps it for a later one.
///
/// # Errors
/// When it cannot be written.
pub(super) fn store(baseline: &Baseline, path: &std::path::Path) -> Result<()> {
    super::record::replace(path, &serde_json::to_string(baseline).context("cannot write what tests reach")?)
}
