//! `./x test`: what runs on the host, then what runs on the target, and one report.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use granule_runner::report::{self, Entry, Status};
use granule_runner::session;

use crate::compile;
use crate::tools::{Profile, Tools};

mod target;

/// Which tests, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run only tests whose name contains a FILTER; on the target a name is MACHINE::AREA::TEST
    pub(crate) filter: Vec<String>,
    /// Leave out tests whose name contains FILTER
    #[arg(long, value_name = "FILTER")]
    pub(crate) skip: Vec<String>,
    /// Run the target's tests on this machine only
    #[arg(long, short, value_name = "MACHINE", value_parser = crate::machine_names())]
    pub(crate) machine: Option<String>,
    /// Print the names of the tests instead of running them
    #[arg(long)]
    pub(crate) list: bool,
    /// Only the tests that run on the host
    #[arg(long, conflicts_with_all = ["target", "machine"])]
    pub(crate) host: bool,
    /// Only the tests that run on the target
    #[arg(long)]
    pub(crate) target: bool,
    /// Run the long tests as well
    #[arg(long)]
    pub(crate) long: bool,
    /// Run one long test of the host and one of the target as well, drawn by the seed: runs in a row take turns
    #[arg(long, conflicts_with = "long")]
    pub(crate) turn: bool,
    /// Test the checked build: lock order, arithmetic, debug assertions
    #[arg(long)]
    pub(crate) debug: bool,
    /// Compile in parts: after a small change the build takes a third of the time, and what it builds is slower
    #[arg(long, requires = "target", conflicts_with = "debug")]
    pub(crate) incremental: bool,
    /// Seed for tests that draw numbers, host and target; without it a fresh one, which is printed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Write a JUnit report as well
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
}

impl Options {
    /// Whether a test of this name is asked for.
    fn wants(&self, name: &str) -> bool {
        let is_named = |filters: &[String]| filters.iter().any(|filter| name.contains(filter));
        (self.filter.is_empty() || is_named(&self.filter)) && !is_named(&self.skip)
    }

    /// The same, as arguments of a test program.
    fn names(&self) -> Vec<&str> {
        let skipped = self.skip.iter().flat_map(|filter| ["--skip", filter]);
        self.filter.iter().map(String::as_str).chain(skipped).collect()
    }
}

/// Runs the tests.
///
/// # Errors
/// When one failed, or none is named as asked.
pub(crate) fn run(options: &Options, tools: &Tools, profile: Profile) -> Result<()> {
    let on_host = !options.target && options.machine.is_none();
    // The tests on the host want all images, those on the target their own alone.
    let tests = if options.host || on_host {
        compile::build(tools, profile)?.tests
    } else {
        compile::build_tests(tools, profile)?
    };
    let seed = options.seed.unwrap_or_else(session::fresh_seed);
    if !options.list {
        println!("seed {seed}: `./x test --seed {seed}` draws the same numbers");
    }
    let mut entries = Vec::new();
    let mut failed = Vec::new();
    if on_host && !host(options, seed, tools, &mut entries)? {
        failed.push("on the host");
    }
    if !options.host && !target::run(options, seed, &tests, &mut entries)? {
        failed.push("on the target");
    }
    if let Some(path) = &options.junit {
        report::write(path, &entries)?;
    }
    if !failed.is_empty() {
        bail!("tests failed {}", failed.join(" and "));
    }
    if !options.filter.is_empty() && !options.list {
        let filter = options.filter.join(" or ");
        // A typing error in a filter must not look like a success, nor a test that did not run.
        ensure!(!entries.is_empty(), "no test has {filter:?} in its name; `./x test --list` has all names");
        ensure!(entries.iter().any(ran), "no test with {filter:?} in its name ran here: all were skipped");
    }
    Ok(())
}

/// Whether the test ran.
fn ran(entry: &Entry) -> bool {
    !matches!(entry.status, Status::Skipped(_))
}

/// `cargo test` over the workspace; whether all passed.
fn host(options: &Options, seed: u64, tools: &Tools, entries: &mut Vec<Entry>) -> Result<bool> {
    let mut cargo = tools.host_cargo("test", "host");
    cargo.args(["--workspace", "--no-fail-fast"]);
    cargo.env("PROPTEST_RNG_SEED", seed.to_string());
    cargo.arg("--").args(options.names());
    if options.list {
        cargo.arg("--list");
    }
    if options.long {
        cargo.arg("--include-ignored");
    }
    let passed = run_and_read(cargo, entries)?;
    let Some(name) = options.turn.then(|| long_in_turn(options, seed, tools)).transpose()?.flatten() else {
        return Ok(passed);
    };
    println!("the long test of the host whose turn it is: {name}");
    let mut cargo = tools.host_cargo("test", "host");
    cargo.args(["--workspace", "--", "--ignored", "--exact", &name]);
    Ok(run_and_read(cargo, entries)? && passed)
}

/// Prints what cargo prints, and adds the verdicts; whether it succeeded.
fn run_and_read(mut cargo: Command, entries: &mut Vec<Entry>) -> Result<bool> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        entries.extend(parse(&line));
    }
    Ok(child.wait()?.success())
}

/// The long test of the host that the seed draws, of those that the filter lets through.
fn long_in_turn(options: &Options, seed: u64, tools: &Tools) -> Result<Option<String>> {
    /// Take half an hour, and a source from the network: `--long` only.
    const NEVER: [&str; 2] = ["ten_mutants", "linux_s_own_tests"];
    let mut cargo = tools.host_cargo("test", "host");
    cargo
        .args(["--workspace", "--", "--ignored", "--list", "--format", "terse"])
        .args(NEVER.iter().flat_map(|name| ["--skip", name]))
        .args(options.names());
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo cannot list the long tests");
    let text = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    Ok(drawn(&names, seed).map(|name| (*name).to_owned()))
}

/// The entry that the seed draws; `None` where there is none.
fn drawn<T>(list: &[T], seed: u64) -> Option<&T> {
    list.get(seed.checked_rem(list.len() as u64)? as usize)
}

/// A verdict in cargo's output: `test path::name ... ok`.
fn parse(line: &str) -> Option<Entry> {
    let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let status = match verdict.split([',', ' ']).next()? {
        "ok" => Status::Passed,
        "FAILED" => Status::Failed("see the output of cargo test".into()),
        "ignored" => Status::Skipped(verdict.into()),
        _ => return None,
    };
    Some(Entry { suite: "host".into(), name: name.into(), status, output: String::new(), time: Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use granule_runner::report::Status;

    #[test]
    fn each_long_test_has_its_turn() {
        let drawn = |seed| super::drawn(&['a', 'b', 'c'], seed).copied();
        assert_eq!([0, 1, 2, 3, u64::MAX].map(drawn), ['a', 'b', 'c', 'a', 'a'].map(Some));
        assert_eq!(super::drawn::<char>(&[], 7), None);
    }

    #[test]
    fn verdicts_of_cargo_are_read() {
        let status = |line| super::parse(line).map(|entry| (entry.name, entry.status));
        assert_eq!(status("test a::b ... ok"), Some(("a::b".into(), Status::Passed)));
        assert!(matches!(status("test a::b ... FAILED"), Some((_, Status::Failed(_)))));
        assert!(matches!(status("test a ... ignored, slow"), Some((_, Status::Skipped(_)))));
        assert_eq!(status("test result: ok. 5 passed; 0 failed"), None);
        assert_eq!(status("running 5 tests"), None);
    }
}
