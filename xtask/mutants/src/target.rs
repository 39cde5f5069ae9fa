//! Mutants under the tests on the target, on machine `default`, by `./x test --target` over the copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use granule_tools::bounded::{Bounds, End};

use super::draw::Mutant;
use super::record::{Spent, Verdict};
use super::table::{OTHERS, area_of};
use super::tree::Tree;

/// A build or a machine that takes more CPU time hangs; each test on a machine has a limit of its own besides.
const BOUNDS: Bounds = Bounds { seconds: Some(3600), memory_kib: None, resident_mib: None };
const MACHINE: &str = "default";

/// Arguments of `./x test` that choose tests which run together, in one boot as long as none crashes.
type Group = Vec<&'static str>;

/// A run of `./x test`, with both streams of its output line by line.
#[derive(Debug)]
struct Run {
    end: End,
    output: Vec<String>,
    work: Duration,
}

/// The tests on the target.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// This program, where no build replaces it.
    pub(super) program: PathBuf,
    pub(super) tree: &'a Tree,
    pub(super) seed: u64,
    /// The image without a mutant, once it has been built.
    image: Option<Vec<u8>>,
    /// Tests that fail without a mutant, by group.
    failing: BTreeMap<Group, BTreeSet<String>>,
}

impl<'a> Target<'a> {
    pub(super) fn new(program: PathBuf, tree: &'a Tree, seed: u64) -> Self {
        Self { program, tree, seed, image: None, failing: BTreeMap::new() }
    }

    fn test(&self, more: &[&str]) -> Result<Run> {
        let mut command = Command::new(&self.program);
        command.env("GRANULE_ROOT", &self.tree.root).current_dir(&self.tree.root);
        command
            .args(["test", "--target", "--incremental", "--machine", MACHINE, "--seed", &self.seed.to_string()])
            .args(more);
        let mut output = Vec::new();
        let (end, work) = BOUNDS.run(MACHINE, &command, true, || true, |line| output.push(line.to_owned()))?;
        Ok(Run { end, output, work })
    }

    /// Builds; the error, if it is one of the code.
    fn build(&self, spent: &mut Spent) -> Result<Option<Verdict>> {
        let run = self.test(&["--list"])?;
        spent.target_build += run.work;
        let why = run.output.iter().rev().find_map(|line| line.strip_prefix("x: "));
        match (run.end, why) {
            (End::Exit(status), _) if status.success() => Ok(None),
            (End::Exit(_), Some(why)) if why.contains(granule_image::compile::TARGET_BUILD) => {
                let error = run.output.iter().find(|line| line.starts_with("error"));
                Ok(Some(Verdict::Invalid(error.cloned().unwrap_or_default())))
            }
            (End::Exit(_), Some(why)) => Ok(Some(Verdict::Killed(format!("the checks of the image: {why}")))),
            (end, _) => bail!("building for the target failed ({end:?}):\n{}", run.output.join("\n")),
        }
    }

    fn image(&self) -> Result<Vec<u8>> {
        let path = self.tree.root.join("build/granule-tests.img");
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Makes sure that the tests which `mutant` needs were run without it.
    fn prepare(&mut self, mutant: &Mutant) -> Result<()> {
        let groups: Vec<Group> = groups(mutant).into_iter().filter(|group| !self.failing.contains_key(group)).collect();
        if groups.is_empty() && self.image.is_some() {
            return Ok(());
        }
        self.tree.write(&mutant.source.path, &mutant.source.text)?;
        if let Some(wrong) = self.build(&mut Spent::default())? {
            bail!("the sources do not build for the target without a mutant: {wrong:?}");
        }
        self.image = Some(self.image()?);
        for group in groups {
            let run = self.test(&group)?;
            if !matches!(run.end, End::Exit(_)) {
                bail!("the tests {group:?} on the target do not end without a mutant");
            }
            let failing: BTreeSet<String> = run.output.iter().filter_map(|line| failed(line)).collect();
            failing.iter().for_each(|test| eprintln!("x: {test} fails without a mutant: it is not counted"));
            self.failing.insert(group, failing);
        }
        self.tree.write(&mutant.source.path, &mutant.text())
    }

    /// Builds the image of a mutant, in the copy that has it; the verdict, if that gives one.
    ///
    /// # Errors
    /// When something other than the mutant goes wrong.
    pub(super) fn judge_image(&mut self, mutant: &Mutant, spent: &mut Spent) -> Result<Option<Verdict>> {
        self.prepare(mutant)?;
        let wrong = self.build(spent)?;
        let is_same = wrong.is_none() && self.image.as_ref() == Some(&self.image()?);
        Ok(wrong.or_else(|| is_same.then(|| Verdict::Invalid("the image for the target is the same".into()))))
    }

    /// A mutant's verdict by the tests on its image, which [`Self::judge_image`] has built.
    ///
    /// # Errors
    /// When something other than the mutant goes wrong.
    pub(super) fn judge(&self, mutant: &Mutant, spent: &mut Spent) -> Result<Verdict> {
        for group in groups(mutant) {
            let failing = self.failing.get(&group).into_iter().flatten();
            let skipped = failing.flat_map(|test| ["--skip", test]);
            let run = self
                .test(&["--fail-fast"].into_iter().chain(group.iter().copied()).chain(skipped).collect::<Vec<_>>())?;
            spent.target_tests += run.work;
            if let Some(test) = run.output.iter().find_map(|line| failed(line)) {
                return Ok(Verdict::Killed(test));
            }
            match run.end {
                End::Work(seconds) | End::Still(seconds) => {
                    return Ok(Verdict::Killed(format!("the time limit of {seconds} s on the target")));
                }
                End::Exit(_) if run.output.iter().any(|line| line.starts_with("test result: ")) => {}
                // A run that does not come to its end says nothing about the mutant.
                end => bail!("the tests {group:?} did not run ({end:?}):\n{}", run.output.join("\n")),
            }
        }
        Ok(Verdict::Survived)
    }
}

/// The tests of a mutant's part; then all others if the list of that part in the table has an empty name.
fn groups(mutant: &Mutant) -> Vec<Group> {
    let parts = area_of(&mutant.source.path).unwrap_or(&OTHERS).target;
    let named: Group = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    let others: Group = named.iter().flat_map(|part| ["--skip", *part]).collect();
    let has_others = named.len() < parts.len();
    [(!named.is_empty()).then_some(named), has_others.then_some(others)].into_iter().flatten().collect()
}

/// A test on the target that failed, in a line of the report.
fn failed(line: &str) -> Option<String> {
    let (test, verdict) = line.strip_prefix("test ")?.rsplit_once("... ")?;
    (verdict == "FAILED").then(|| test.trim_end().to_owned())
}
