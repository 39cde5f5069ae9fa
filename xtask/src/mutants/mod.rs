//! `./x mutants`: breaks the code by rules, one place at a time, and reports which of these mutants no test sees.
//!
//! Mutants are built in a copy of the sources below `target/mutants/tree`, whose builds are reused. The tests on the
//! host that reach a mutant's place run first, then, where these pass, those of its part of the kernel on the target.
//! Each verdict is written at once, so that a run that was ended continues where it was: `target/mutants/SEED`.

mod bounded;
mod draw;
mod host;
mod record;
mod rules;
mod table;
mod target;
#[cfg(test)]
mod tests;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::tools::Tools;
use draw::Mutant;
use host::{Baseline, Host};
use record::{Records, Verdict};
use target::Target;
use tree::Tree;

/// Which mutants, and where their tests run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only mutants of this folder, file or FILE:LINE
    pub(crate) path: Option<String>,
    /// Chooses the mutants, and seeds the tests that draw numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// How many mutants get a verdict; those that do not compile are not counted
    #[arg(long, value_name = "K", default_value_t = 20)]
    pub(crate) count: usize,
    /// Only the tests on the host
    #[arg(long)]
    pub(crate) host: bool,
    /// Print the patches in the order in which they would be tried, and run nothing
    #[arg(long)]
    pub(crate) list: bool,
}

/// Draws, tries and reports.
///
/// # Errors
/// When there is no such mutant, or the sources do not build or pass without one. A mutant that survives is no error.
pub(crate) fn run(options: &Options, tools: &Tools) -> Result<()> {
    let drawn = draw::order(draw::all(&tools.root, options.path.as_deref())?, options.seed);
    if options.list {
        for mutant in drawn.iter().take(options.count) {
            println!("{} {} ({})\n{}", mutant.change.rule.name(), mutant.place(), mutant.id, mutant.patch());
        }
        println!("{} of {} mutants", options.count.min(drawn.len()), drawn.len());
        return Ok(());
    }
    let directory = tools.root.join("target/mutants");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let lock = fs::File::create(directory.join("lock")).context("cannot open the lock of target/mutants")?;
    lock.try_lock().context("another `./x mutants` runs in this tree")?;
    let tree = Tree::copy(&tools.root, &directory.join("tree"))?;
    let records = Records::open(&directory.join(options.seed.to_string()), &tree.hash)?;
    let here = tools.at(&tree.root);
    let host = Host { tools: &here, tree: &tree, seed: options.seed, packages: host::packages };
    let target = if options.host {
        None
    } else {
        // A build of xtask meanwhile replaces its program, but not this copy.
        Some(Target::new(keep_program(&directory)?, &tree, options.seed))
    };
    let results = Session { count: options.count, records, host, target, baseline: None }.run(&drawn)?;
    let text = record::report(&results);
    print!("{text}");
    let path = directory.join(options.seed.to_string()).join("report.txt");
    record::replace(&path, &text)?;
    println!("every patch with its verdict: {}", path.parent().unwrap_or(&path).display());
    Ok(())
}

/// A copy of this program that stays as it is.
fn keep_program(directory: &Path) -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let (kept, fresh) = (directory.join("xtask"), directory.join("xtask.new"));
    fs::copy(program, &fresh).and_then(|_| fs::rename(&fresh, &kept)).context("cannot copy this program")?;
    Ok(kept)
}

/// One run.
#[derive(Debug)]
struct Session<'a> {
    count: usize,
    records: Records,
    host: Host<'a>,
    /// None with `--host`.
    target: Option<Target<'a>>,
    baseline: Option<Baseline>,
}

impl Session<'_> {
    /// Tries mutants until `count` have died or survived.
    fn run(&mut self, drawn: &[Mutant]) -> Result<Vec<(Mutant, Verdict)>> {
        let mut results = Vec::new();
        let mut counted = 0;
        for mutant in drawn {
            if counted == self.count {
                break;
            }
            let (verdict, seconds) = match self.records.find(mutant) {
                Some(verdict) => (verdict, None),
                None => {
                    let begin = Instant::now();
                    let verdict = self.judge(mutant, drawn)?;
                    let seconds = begin.elapsed().as_secs();
                    self.records.write(mutant, &verdict, seconds)?;
                    (verdict, Some(seconds))
                }
            };
            counted += usize::from(!matches!(verdict, Verdict::Invalid(_)));
            println!("{}", line(counted, self.count, mutant, &verdict, seconds));
            results.push((mutant.clone(), verdict));
        }
        Ok(results)
    }

    /// Tries one mutant: host first.
    fn judge(&mut self, mutant: &Mutant, drawn: &[Mutant]) -> Result<Verdict> {
        self.measure(drawn)?;
        self.host.tree.write(&mutant.source.path, &mutant.text())?;
        let verdict = self.judge_here(mutant);
        self.host.tree.write(&mutant.source.path, &mutant.source.text)?;
        verdict
    }

    fn judge_here(&mut self, mutant: &Mutant) -> Result<Verdict> {
        if let Some(baseline) = self.baseline.as_ref().filter(|baseline| baseline.sees(mutant)) {
            let verdict = self.host.judge(mutant, baseline)?;
            if verdict != Verdict::Survived {
                return Ok(verdict);
            }
        }
        match &mut self.target {
            Some(target) => target.judge(mutant),
            None => Ok(Verdict::Survived),
        }
    }

    /// Finds out which tests reach which of the mutants that may be tried: more than are wanted, as some do not compile.
    fn measure(&mut self, drawn: &[Mutant]) -> Result<()> {
        if self.baseline.is_some() {
            return Ok(());
        }
        let mutants: Vec<&Mutant> = drawn.iter().take(2 * self.count).collect();
        let names: Vec<&str> = mutants.iter().map(|mutant| mutant.id.as_str()).collect();
        let key = format!("{} {:016x}", self.host.tree.hash, draw::hash(&names));
        let path = self.records.file("reach.json");
        let baseline = match host::load(&path).filter(|baseline| baseline.is_for(&key)) {
            Some(baseline) => baseline,
            None => {
                println!("which tests on the host reach the mutants' places: one run of all");
                let baseline = self.host.baseline(&key, &mutants)?;
                host::store(&baseline, &path)?;
                baseline
            }
        };
        self.baseline = Some(baseline);
        Ok(())
    }
}

/// A verdict as it is printed.
fn line(counted: usize, count: usize, mutant: &Mutant, verdict: &Verdict, seconds: Option<u64>) -> String {
    let what = format!("{} {}", mutant.change.rule.name(), mutant.place());
    let time = seconds.map_or("before".into(), |seconds| format!("{seconds} s"));
    match verdict {
        Verdict::Killed(by) => format!("{counted}/{count} killed    {what} by {by} ({time})"),
        Verdict::Survived => format!("{counted}/{count} survived  {what} ({time})"),
        Verdict::Invalid(why) => format!("{counted}/{count} no mutant {what}: {why} ({time})"),
    }
}
