//! `./x test`: what runs on the host and what runs on the target, in one list with one report.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use granule_image::compile;
use granule_runner::report::{self, Entry, Status};
use granule_runner::session;
use granule_tools::{Profile, Tools};

pub mod host;
pub mod list;
mod load;
mod taken;
mod target;
mod took;

/// The tests of `--programs`.
const PROGRAMS: &str = "granule_host_tests::outside::others::";
/// The tests of `--against-linux`, and those of them for `--long`.
const AGAINST_LINUX: &str = "granule_host_tests::outside::against_linux::";
const FOR_LONG: &str = "_for_long";

/// Which tests, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Run only tests whose name contains a FILTER: PROGRAM::TEST on the host, MACHINE::AREA::TEST on the target
    pub(crate) filter: Vec<String>,
    /// Leave out tests whose name contains FILTER
    #[arg(long, value_name = "FILTER")]
    pub(crate) skip: Vec<String>,
    /// Run the target's tests on this machine only, or on several
    #[arg(long, short, value_name = "MACHINE", value_parser = granule_tools::machine_names())]
    pub(crate) machine: Vec<String>,
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
    /// Run the programs, and random sequences of calls, on Debian's newest kernel as well, which is fetched, and compare
    /// what they print; with --long more sequences
    #[arg(long, conflicts_with_all = ["filter", "target", "machine", "turn", "debug"])]
    against_linux: bool,
    /// Run programs that others wrote, which are fetched or built, on that kernel and here, and compare the outcome with
    /// docs/PROGRAMS.md; FILTER chooses families of them
    #[arg(long, conflicts_with_all = ["against_linux", "target", "machine", "turn", "debug", "long"])]
    programs: bool,
    /// Write the outcome to docs/PROGRAMS.md
    #[arg(long, requires = "programs")]
    pub(crate) update: bool,
    /// Run all this often, each time with the next seed, and tell which tests failed how often
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) repeat: u64,
    /// Skip what has not begun once a test has failed
    #[arg(long)]
    pub(crate) fail_fast: bool,
    /// Keep every CPU of this host busy as long as it runs
    #[arg(long)]
    pub(crate) under_load: bool,
    /// Test the checked build: lock order, arithmetic, debug assertions
    #[arg(long)]
    pub debug: bool,
    /// Compile in parts: after a small change the build takes a third of the time, and what it builds is slower
    #[arg(long, requires = "target", conflicts_with = "debug")]
    pub incremental: bool,
    /// Seed for tests that draw numbers, host and target; without it a fresh one, which is printed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Write a JUnit report as well
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) wire: Wire,
}

/// A board that runs build/granule-tests.img, and the way to it.
#[derive(Clone, Debug, clap::Args)]
pub struct Wire {
    /// Run the target's tests on the board at this serial port, which runs build/granule-tests.img
    #[arg(long, value_name = "PORT", requires = "board", conflicts_with_all = ["host", "machine", "turn", "under_load", "debug", "incremental"])]
    serial: Option<PathBuf>,
    /// The board's name in tests-qemu/boards.toml
    #[arg(long, value_name = "NAME", requires = "serial", value_parser = granule_tools::board_names())]
    board: Option<String>,
    /// The command that resets the board: before the first test, and when one has ended it or taken too long
    #[arg(long, value_name = "COMMAND", requires = "serial")]
    reset: Option<String>,
}

impl Options {
    /// These, for the tests of `--against-linux` alone.
    fn against_linux(&self) -> Self {
        let mut options = Self { filter: vec![AGAINST_LINUX.to_owned()], host: true, long: true, ..self.clone() };
        options.skip.extend((!self.long).then(|| FOR_LONG.to_owned()));
        options
    }

    /// These, for the tests of `--programs` alone.
    fn programs(&self) -> Self {
        let of = |family: &String| format!("{PROGRAMS}{family}");
        let filter =
            if self.filter.is_empty() { vec![PROGRAMS.to_owned()] } else { self.filter.iter().map(of).collect() };
        Self { filter, host: true, long: true, ..self.clone() }
    }

    /// These, where they are for tests alone that fetch what they run.
    fn of_others(&self) -> Option<Self> {
        let against_linux = self.against_linux.then(|| self.against_linux());
        against_linux.or_else(|| self.programs.then(|| self.programs()))
    }

    /// Whether a test of this name is asked for.
    fn wants(&self, name: &str) -> bool {
        let is_named = |filters: &[String]| filters.iter().any(|filter| name.contains(filter));
        (self.filter.is_empty() || is_named(&self.filter)) && !is_named(&self.skip)
    }
}

/// Runs the tests.
///
/// # Errors
/// When one failed, or none is named as asked.
pub fn run(options: &Options, tools: &Tools, profile: Profile) -> Result<()> {
    let begin = Instant::now();
    let others = options.of_others();
    let options = others.as_ref().unwrap_or(options);
    let on_board = options.wire.serial.is_some();
    let on_host = !options.target && options.machine.is_empty() && !on_board;
    // The tests on the host want all images, those on the target their own alone.
    let image = if on_host { compile::build(tools, profile)?.tests } else { compile::build_tests(tools, profile)? };
    let programs = if on_host { host::build(tools)? } else { Vec::new() };
    let _load = options.under_load.then(load::start);
    let first = options.seed.unwrap_or_else(session::fresh_seed);
    let mut took = took::Took::read(&tools.build_directory());
    let mut entries = Vec::new();
    for round in 0..options.repeat {
        let seed = first.wrapping_add(round);
        if !options.list {
            println!("seed {seed}: `./x test --seed {seed}` draws the same numbers");
        }
        let mut list = list::List::new(options, seed);
        if on_board {
            target::add_board(&mut list, &image, &options.wire)?;
        } else if !options.host {
            target::add(&mut list, &image)?;
        }
        let mut documentation = None;
        if on_host {
            // They draw no numbers.
            if round == 0 && others.is_none() {
                documentation = host::document(&list, tools)?;
            }
            host::add(&mut list, &programs)?;
        }
        entries.extend(list.run(&took));
        entries.extend(host::documented(documentation)?);
    }
    if options.list {
        return Ok(());
    }
    taken::report(begin);
    // Of a suite, a part would be shorter than all of it.
    if options.filter.is_empty() && options.skip.is_empty() {
        took.add(&entries);
        took.write()?;
    }
    if let Some(path) = &options.junit {
        report::write(path, &entries)?;
    }
    let failed = failures(&entries);
    if options.repeat > 1 {
        for (name, times) in &failed {
            println!("{name} failed {times} of {} times", options.repeat);
        }
    }
    if !failed.is_empty() {
        bail!("{} tests failed", failed.len());
    }
    if !options.filter.is_empty() {
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

/// The tests that failed, each with how often.
fn failures(entries: &[Entry]) -> BTreeMap<String, u64> {
    let mut failures = BTreeMap::new();
    for entry in entries.iter().filter(|entry| matches!(entry.status, Status::Failed(_))) {
        *failures.entry(format!("{}::{}", entry.suite, entry.name)).or_default() += 1;
    }
    failures
}
