//! The verdict on each mutant: one file each, so that a run can be resumed, and the report.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::draw::Mutant;
use super::kept::Kept;

/// Which tests run: of the host alone, of the target alone, or all.
pub(super) const HOST: &str = "host";
pub(super) const TARGET: &str = "target";
pub(super) const ALL: &str = "host and target";

/// The verdict on a mutant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// This test failed, or this bound was reached.
    Killed(String),
    /// Every test passed that can see the place.
    Survived,
    /// The table says why no test can see it; it was not tried.
    Explained(String),
    /// It does not compile, or changes nothing: another is drawn in its place.
    Invalid(String),
}

impl Verdict {
    fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Killed(by) => ("killed", by),
            Self::Survived => ("survived", ""),
            Self::Explained(why) => ("explained", why),
            Self::Invalid(why) => ("invalid", why),
        }
    }
}

/// Where the CPU time of a verdict went.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Spent {
    pub(super) host_build: Duration,
    pub(super) host_tests: Duration,
    pub(super) target_build: Duration,
    pub(super) target_tests: Duration,
    /// Slow tests on the host that had no time left.
    pub(super) left_out: usize,
}

impl Spent {
    fn all(&self) -> Duration {
        self.host_build + self.host_tests + self.target_build + self.target_tests
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.host_build += other.host_build;
        self.host_tests += other.host_tests;
        self.target_build += other.target_build;
        self.target_tests += other.target_tests;
        self.left_out += other.left_out;
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [self.host_build, self.host_tests, self.target_build, self.target_tests].map(|time| time.as_secs());
        let [host_build, host_tests, target_build, target_tests] = parts;
        write!(f, "{} s: host {host_build} build, {host_tests} tests", self.all().as_secs())?;
        write!(f, "; target {target_build} build, {target_tests} tests")?;
        if self.left_out > 0 {
            write!(f, "; {} slow tests left out", self.left_out)?;
        }
        Ok(())
    }
}

/// The verdicts of one seed, in a directory.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    /// The hash of the sources.
    tree: String,
    /// Which tests run: a mutant that survived those of the host may still die on the target.
    tests: &'static str,
    /// The mutants that died in the runs of docs/MUTANTS.tsv.
    kept: Kept,
}

impl Records {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn open(directory: &Path, tree: &str, tests: &'static str, kept: Kept) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), tree: tree.to_owned(), tests, kept })
    }

    /// A file of the directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The verdict of an earlier run, as far as it still holds: what was killed stays so as long as its lines are the
    /// same; a mutant that survived is tried again once anything has changed, such as a test.
    pub(super) fn find(&self, mutant: &Mutant) -> Option<Verdict> {
        self.find_here(mutant).or_else(|| self.kept.by(mutant).map(|by| Verdict::Killed(by.to_owned())))
    }

    fn find_here(&self, mutant: &Mutant) -> Option<Verdict> {
        let text = fs::read_to_string(self.path(mutant)).ok()?;
        let (head, patch) = text.split_once("\n\n")?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let why = field("by").unwrap_or_default().to_owned();
        let is_same = field("tree")? == self.tree;
        match field("verdict")? {
            "killed" if lines(patch) == lines(&mutant.patch()) => Some(Verdict::Killed(why)),
            "survived" if is_same && (field("tests")? == ALL || field("tests")? == self.tests) => {
                Some(Verdict::Survived)
            }
            "invalid" if is_same => Some(Verdict::Invalid(why)),
            _ => None,
        }
    }

    /// Writes a verdict, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, mutant: &Mutant, verdict: &Verdict, spent: &Spent) -> Result<()> {
        let (word, why) = verdict.words();
        let head = format!(
            "verdict: {word}\nby: {why}\nrule: {}\nplace: {}\ntime: {spent}\ntests: {}\ntree: {}\n",
            mutant.change.rule.name(),
            mutant.place(),
            self.tests,
            self.tree
        );
        replace(&self.path(mutant), &format!("{head}\n{}", mutant.patch()))
    }

    fn path(&self, mutant: &Mutant) -> PathBuf {
        self.directory.join(format!("{}.patch", mutant.id))
    }
}

/// A patch's lines without their numbers.
fn lines(patch: &str) -> Vec<&str> {
    patch.lines().filter(|line| !line.starts_with("@@")).collect()
}

/// Writes a file by way of a second name.
///
/// # Errors
/// When it cannot be written.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// How many of each rule died, and the patches of those that survived.
pub(super) fn report(results: &[(Mutant, Verdict)]) -> String {
    let mut rules: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut text = String::new();
    let (mut all, mut died, mut explained) = (0, 0, 0);
    for (mutant, verdict) in results {
        let is_dead = match verdict {
            Verdict::Invalid(_) => continue,
            Verdict::Explained(_) => {
                explained += 1;
                continue;
            }
            Verdict::Killed(_) => true,
            Verdict::Survived => false,
        };
        let rule = rules.entry(mutant.change.rule.name()).or_default();
        rule.0 += usize::from(is_dead);
        rule.1 += 1;
        all += 1;
        died += usize::from(is_dead);
        if !is_dead {
            text += &format!(
                "\nsurvived: {} {} ({})\n{}",
                mutant.change.rule.name(),
                mutant.place(),
                mutant.id,
                mutant.patch()
            );
        }
    }
    for (rule, (died, all)) in rules {
        text += &format!("\n{rule:<10} {died:>3} of {all:>3} died");
    }
    let percent = if all == 0 { 0.0 } else { 100.0 * died as f64 / all as f64 };
    text + &format!(
        "\n\nmutants: {died} of {all} died, {} survived ({percent:.0} %), {explained} explained\n",
        all - died
    )
}
