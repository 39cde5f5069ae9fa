//! `./x bench`: measures on the target, and compares with what is checked in.

mod scale;
mod tlb;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use granule_image::compile::Built;
use granule_runner::bench::boot::{self, Chosen, Images};
use granule_runner::bench::list::{self, Bench, DEFAULT};
use granule_runner::bench::reference::{Run, Scope};
use granule_runner::bench::scale::SUITE;
use granule_runner::bench::tlb::SUITE as TLB;
use granule_runner::bench::{BOOT, page, table, wire};
use granule_runner::identity;
use granule_runner::machine::{self, Machine};
use granule_tools::Tools;

/// The run that `--check` compares with.
const REFERENCE: &str = "docs/BENCHMARKS.json";
/// The page that shows it.
const PAGE: &str = "docs/BENCHMARKS.md";

/// Which rows, and what to do with them.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Measure only rows whose name contains NAME, or the suite NAME, such as mm
    pub(crate) name: Option<String>,
    /// Measure on this machine only; without, each row on the machines that it belongs to
    #[arg(long, short, value_name = "MACHINE", value_parser = granule_tools::machine_names())]
    pub(crate) machine: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Fail if a row misses its bound or has vanished, takes more barriers than in docs/BENCHMARKS.json or, with the same
    /// compiler, over 2 % more instructions
    #[arg(long)]
    pub(crate) check: bool,
    /// Write docs/BENCHMARKS.json and the tables of docs/BENCHMARKS.md
    #[arg(long, conflicts_with_all = ["machine", "json", "check"])]
    pub(crate) update: bool,
    /// Of the suite scale: which lines of source move how many cache lines of the row ROW, with 8 CPUs
    #[arg(long, value_name = "ROW", conflicts_with_all = ["json", "check", "update", "brief"])]
    pub(crate) sources: Option<String>,
    /// Of the suite scale: 8 CPUs and what they do in turn, alone
    #[arg(long, conflicts_with = "update")]
    pub(crate) brief: bool,
    /// Measure on the board at this serial port, which runs build/granule-bench.img: what its CPU counts, compared with
    /// nothing
    #[arg(long, value_name = "PORT", requires = "board", conflicts_with_all = ["machine", "json", "check", "update", "sources", "brief"])]
    serial: Option<PathBuf>,
    /// The board's name in tests-qemu/boards.toml
    #[arg(long, value_name = "NAME", requires = "serial", value_parser = granule_tools::board_names())]
    board: Option<String>,
    /// The command that resets the board, before the first row
    #[arg(long, value_name = "COMMAND", requires = "serial")]
    reset: Option<String>,
}

/// Measures, prints, compares.
///
/// # Errors
/// When a boot goes wrong, no row has that name, or something grew.
pub(crate) fn run(options: &Options, tools: &Tools, built: &Built) -> Result<()> {
    if let (Some(port), Some(board)) = (&options.serial, &options.board) {
        return over_a_wire(options, port, board, built);
    }
    if options.name.as_deref() == Some(SUITE) {
        return scale::run(options, tools, built);
    }
    ensure!(!options.brief && options.sources.is_none(), "--brief and --sources are of `./x bench {SUITE}`");
    if options.name.as_deref() == Some(TLB) {
        return tlb::run(options, tools, built);
    }
    ensure!(!options.update || options.name.is_none(), "--update takes all rows, or the suite {SUITE} or {TLB}");
    let rows = list::read(&built.benches.elf)?;
    let filter = options.name.as_deref().unwrap_or_default();
    let machines = boot::measure(&choose(options, &rows, filter)?, images(&tools.build_directory(), built), "")?;
    if machines.is_empty() {
        let mut names: Vec<&str> =
            rows.iter().map(|row| row.name.as_str()).filter(|name| *name != list::NULL).collect();
        names.sort_unstable();
        bail!("no row's name contains `{filter}`; there are: {}, {BOOT}", names.join(", "));
    }
    let rustc = compiler(tools)?;
    let Some(mut run) = Run::new(machines, rustc) else { bail!("nothing was measured") };
    if options.json {
        print!("{}", run.to_json()?);
    } else {
        for measured in run.machines() {
            println!("{}", table::table(measured));
        }
        let size = std::fs::metadata(&built.kernel.image)?.len();
        println!(
            "{} has {size} bytes of at most {}",
            built.kernel.image.display(),
            granule_image::compile::IMAGE_LIMIT
        );
    }
    if options.update {
        let before = reference(&tools.root)?;
        // Rows that no compiler changes.
        run.tlb = before.tlb;
        // Of another compiler they would not be what this one's reference is compared with.
        if before.rustc == run.rustc {
            run.scale = before.scale;
        } else {
            eprintln!("x: another compiler: `./x bench {SUITE} --update` is due as well");
        }
        update(&run, &tools.root)?;
    }
    let is_part = !filter.is_empty() || options.machine.is_some();
    let scope = if is_part { Scope::Part } else { Scope::Whole };
    if options.check { check(&run, scope, &reference(&tools.root)?) } else { Ok(()) }
}

/// Measures on a board, and prints what it counted.
fn over_a_wire(options: &Options, port: &Path, board: &str, built: &Built) -> Result<()> {
    let board = machine::board(board)?;
    let rows = list::read(&built.benches.elf)?;
    let filter = options.name.as_deref().unwrap_or_default();
    let asked = list::asked_for(&rows, filter);
    let chosen = Chosen::new(&rows, &asked, |row| row.on == DEFAULT, false)?;
    ensure!(!chosen.is_empty(), "no row's name contains `{filter}`");
    let rows: Vec<&Bench> = [chosen.null].into_iter().chain(chosen.rows).collect();
    let identity = identity::read(&built.benches.elf)?;
    let mut line = granule_runner::wire::open(port, board.baud, options.reset.as_deref())?;
    let mut measured = 0;
    let rows = wire::measure(&mut line, identity, &rows, &mut |row| {
        measured += 1;
        eprintln!("x: {measured} of {}: {}", rows.len(), row.name);
    })?;
    print!("{}", wire::table(&board.machine.name, &rows));
    Ok(())
}

/// Which rows on which machine: those that were asked for there; else those of `default` there, and on others what is
/// theirs.
fn choose<'a>(options: &Options, rows: &'a [Bench], filter: &str) -> Result<Vec<(Machine, Chosen<'a>)>> {
    let asked = list::asked_for(rows, filter);
    let first = machine::named(options.machine.as_deref().unwrap_or(DEFAULT))?;
    let is_of_first = |row: &Bench| row.on == DEFAULT || row.is_of(&first.name);
    let mut chosen = vec![(first.clone(), Chosen::new(rows, &asked, is_of_first, BOOT.contains(filter))?)];
    if options.machine.is_none() {
        for machine in machine::all()?.iter().filter(|machine| machine.name != DEFAULT) {
            let is_of_it = |row: &Bench| row.is_of(&machine.name);
            chosen.push((machine.clone(), Chosen::new(rows, &asked, is_of_it, false)?));
        }
    }
    chosen.retain(|(_, chosen)| !chosen.is_empty());
    Ok(chosen)
}

fn images<'a>(scratch: &'a Path, built: &'a Built) -> Images<'a> {
    Images {
        elf: &built.benches.elf,
        program: &built.bench_program,
        image: &built.benches.image,
        kernel: &built.kernel.image,
        scratch,
    }
}

/// Makes `run` the reference.
fn update(run: &Run, root: &Path) -> Result<()> {
    let page = std::fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    for (name, text) in [(REFERENCE, run.to_json()?), (PAGE, page::with_tables(&page, run)?)] {
        std::fs::write(root.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// The run that is checked in.
fn reference(root: &Path) -> Result<Run> {
    let text = std::fs::read_to_string(root.join(REFERENCE)).with_context(|| format!("cannot read {REFERENCE}"))?;
    Run::from_json(&text).context(REFERENCE)
}

/// Compares with the bounds and with the reference.
fn check(run: &Run, scope: Scope, reference: &Run) -> Result<()> {
    if let Some(why) = run.differs_in_compiler(reference) {
        eprintln!("x: instructions were not compared: {why}");
    }
    let missed = run.missed();
    ensure!(missed.is_empty(), "bounds that are missed:\n  {}", missed.join("\n  "));
    let grown = run.grown_since(reference, scope);
    ensure!(
        grown.is_empty(),
        "grown since {REFERENCE}:\n  {}\nIf that is worth it: ./x bench --update",
        grown.join("\n  ")
    );
    eprintln!("x: all bounds are kept, and nothing grew since {REFERENCE}");
    Ok(())
}

/// The output of `rustc -vV`.
fn compiler(tools: &Tools) -> Result<String> {
    let output = Command::new(tools.rustc()).arg("-vV").output().context("cannot run rustc")?;
    ensure!(output.status.success(), "rustc -vV failed");
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
