//! `./x mutants`: breaks the code by rules, one place at a time, and reports which of these mutants no test sees.
//!
//! Mutants are built in a copy of the sources below `target/mutants/tree`, whose builds are reused: for the host, all that
//! compile in one build. The quick tests on the host run first, from those nearest to a mutant's place, then the checks
//! of the image for the target, the slow tests on the host, and those of its part of the kernel on the target.
//! Each verdict is written at once, so that a run that was ended continues where it was: `target/mutants/SEED`; on another
//! machine, from `docs/MUTANTS.tsv`.

#![forbid(unsafe_code)]

mod draw;
mod host;
mod kept;
mod known;
mod placed;
mod record;
mod rules;
mod syntax;
mod table;
mod target;
#[cfg(test)]
mod tests;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use granule_tools::Tools;

use draw::Mutant;
use host::{Baseline, Host, Quick};
use kept::Kept;
use known::Known;
use record::{Records, Spent, Verdict};
use target::Target;
use tree::Tree;

/// So many mutants have a probe, at least.
const PROBES: usize = 200;

/// Which mutants, and where their tests run.
#[derive(Debug, clap::Args)]
pub struct Options {
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
    /// Only those on the target
    #[arg(long, conflicts_with = "host")]
    pub(crate) target: bool,
    /// The mutants that xtask/audit/mutants.toml lists, instead of drawn ones
    #[arg(long, conflicts_with_all = ["path", "count"])]
    pub(crate) listed: bool,
    /// The mutants that xtask/audit/mutants.toml explains, instead of drawn ones; one that dies is an error
    #[arg(long, conflicts_with_all = ["path", "count", "listed"])]
    pub(crate) explained: bool,
    /// Add those that died to docs/MUTANTS.tsv, from which a run on another machine takes them
    #[arg(long)]
    pub(crate) update: bool,
    /// Print the patches in the order in which they would be tried, and run nothing
    #[arg(long)]
    pub(crate) list: bool,
}

/// Draws, tries and reports.
///
/// # Errors
/// When there is no such mutant, the sources do not build or pass without one, or a row of the table is stale. A drawn
/// mutant that survives is no error.
pub fn run(options: &Options, tools: &Tools) -> Result<()> {
    let known = Known::read(&tools.root)?;
    let (explained, listed) = (known.explained(&tools.root)?, known.listed(&tools.root)?);
    let names_by_hand: Vec<String> = listed.iter().map(|mutant| mutant.id.clone()).collect();
    let drawn = if options.listed {
        listed
    } else if options.explained {
        explained
    } else {
        draw::order(draw::all(&tools.root, options.path.as_deref())?, options.seed)
    };
    let count = if options.listed || options.explained { drawn.len() } else { options.count };
    if options.list {
        for mutant in drawn.iter().take(count) {
            println!("{} {} ({})\n{}", mutant.change.rule.name(), mutant.place(), mutant.id, mutant.patch());
        }
        println!("{} of {} mutants", count.min(drawn.len()), drawn.len());
        return Ok(());
    }
    let directory = tools.root.join("target/mutants");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let lock = fs::File::create(directory.join("lock")).context("cannot open the lock of target/mutants")?;
    lock.try_lock().context("another `./x mutants` runs in this tree")?;
    let tree = Tree::copy(&tools.root, &directory.join("tree"))?;
    let tests = match (options.host, options.target) {
        (true, _) => record::HOST,
        (_, true) => record::TARGET,
        _ => record::ALL,
    };
    let mut kept = Kept::read(&tools.root)?;
    let records = Records::open(&directory.join(options.seed.to_string()), &tree.hash, tests, kept.clone())?;
    let here = tools.at(&tree.root);
    let host = Host { tools: &here, tree: &tree, seed: options.seed, count, packages: host::packages };
    let target = if options.host {
        None
    } else {
        // A concurrent build of xtask replaces its program, but not this copy.
        Some(Target::new(keep_program(&directory)?, &tree, options.seed))
    };
    let known = (!options.explained).then_some(known);
    let on_host = !options.target;
    let results = Session { count, known, records, host, on_host, target, baseline: None }.run(&drawn)?;
    let text = record::report(&results);
    print!("{text}");
    let path = directory.join(options.seed.to_string()).join("report.txt");
    record::replace(&path, &text)?;
    println!("every patch with its verdict: {}", path.parent().unwrap_or(&path).display());
    if options.update {
        let drawable = draw::all(&tools.root, None)?;
        let names = drawable.into_iter().map(|mutant| mutant.id).chain(names_by_hand).collect();
        kept.update(&results, &tree.root, &names);
        kept.write(&tools.root)?;
    }
    let died = |(_, verdict): &&(Mutant, Verdict)| matches!(verdict, Verdict::Killed(_));
    if options.explained
        && let Some((mutant, _)) = results.iter().find(died)
    {
        bail!("{}: a test sees the mutant of {}", known::TABLE, mutant.place());
    }
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
    /// None where the explained ones are tried.
    known: Option<Known>,
    records: Records,
    host: Host<'a>,
    /// Not with `--target`.
    on_host: bool,
    /// None with `--host`.
    target: Option<Target<'a>>,
    baseline: Option<Baseline>,
}

impl Session<'_> {
    /// Tries mutants until `count` have died or survived.
    fn run(&mut self, drawn: &[Mutant]) -> Result<Vec<(Mutant, Verdict)>> {
        let mut results = Vec::new();
        let (mut counted, mut tried, mut all) = (0, 0, Spent::default());
        for mutant in drawn {
            if counted == self.count {
                break;
            }
            if let Some(reason) = self.known.as_ref().and_then(|known| known.reason(mutant)) {
                results.push((mutant.clone(), Verdict::Explained(reason.to_owned())));
                continue;
            }
            let (verdict, spent) = match self.records.find(mutant) {
                Some(verdict) => (verdict, None),
                None => {
                    let mut spent = Spent::default();
                    let verdict = self.judge(mutant, drawn, &mut spent)?;
                    self.records.write(mutant, &verdict, &spent)?;
                    (verdict, Some(spent))
                }
            };
            counted += usize::from(!matches!(verdict, Verdict::Invalid(_)));
            println!("{}", line(counted, self.count, mutant, &verdict, spent.as_ref()));
            if let Some(spent) = &spent {
                all.add(spent);
                tried += 1;
            }
            results.push((mutant.clone(), verdict));
        }
        println!("{tried} mutants tried in {all}");
        Ok(results)
    }

    /// Tries one mutant: what takes least time first.
    fn judge(&mut self, mutant: &Mutant, drawn: &[Mutant], spent: &mut Spent) -> Result<Verdict> {
        let verdict = self.judge_here(mutant, drawn, spent);
        self.host.tree.write(&mutant.source.path, &mutant.source.text)?;
        verdict
    }

    fn judge_here(&mut self, mutant: &Mutant, drawn: &[Mutant], spent: &mut Spent) -> Result<Verdict> {
        let slow = match self.on_host.then(|| self.judge_quickly(mutant, drawn, spent)).transpose()? {
            Some(Quick::Judged(verdict)) => return Ok(verdict),
            Some(Quick::Passed(slow)) => Some(slow),
            None => None,
        };
        self.host.tree.write(&mutant.source.path, &mutant.text())?;
        if let Some(target) = &mut self.target
            && let Some(verdict) = target.judge_image(mutant, spent)?
        {
            return Ok(verdict);
        }
        let verdict = slow.map_or(Ok(Verdict::Survived), |slow| self.host.judge_slowly(mutant, slow, spent))?;
        match &self.target {
            Some(target) if verdict == Verdict::Survived => target.judge(mutant, spent),
            _ => Ok(verdict),
        }
    }

    fn judge_quickly(&mut self, mutant: &Mutant, drawn: &[Mutant], spent: &mut Spent) -> Result<Quick> {
        // More than are wanted, as some do not compile, and as a run of more goes on with what this one has measured.
        let tried: Vec<&Mutant> = drawn.iter().take(PROBES.max(2 * self.count)).collect();
        let path = self.records.file("reach.json");
        let baseline = self.baseline.get_or_insert_with(|| {
            let names: Vec<&str> = tried.iter().map(|mutant| mutant.id.as_str()).collect();
            self.host.baseline(&format!("{} {:016x}", self.host.tree.hash, draw::hash(&names)), &tried, &path)
        });
        self.host.judge(mutant, &tried, &path, baseline, spent)
    }
}

/// A verdict as it is printed.
fn line(counted: usize, count: usize, mutant: &Mutant, verdict: &Verdict, spent: Option<&Spent>) -> String {
    let what = format!("{} {}", mutant.change.rule.name(), mutant.place());
    let time = spent.map_or("before".into(), Spent::to_string);
    match verdict {
        Verdict::Killed(by) => format!("{counted}/{count} killed    {what} by {by} ({time})"),
        Verdict::Explained(why) => format!("{counted}/{count} explained {what}: {why}"),
        Verdict::Survived => format!("{counted}/{count} survived  {what} ({time})"),
        Verdict::Invalid(why) => format!("{counted}/{count} no mutant {what}: {why} ({time})"),
    }
}
