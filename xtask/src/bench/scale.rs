//! `./x bench scale`: cache lines that operations move between CPUs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use granule_audit::image::{DebugLines, Frame, LINKED};
use granule_image::compile::Built;
use granule_runner::bench::counted::Counted;
use granule_runner::bench::reference::Run;
use granule_runner::bench::scale::boot::{Counts, Part};
use granule_runner::bench::scale::rows::{Definition, ROWS};
use granule_runner::bench::scale::{BOUNDED_AT, CPUS, ScaleRow, ScaleRun, judge};
use granule_runner::machine;
use granule_tools::Tools;

use super::{DEFAULT, Options, REFERENCE, compiler, reference, update};

/// Counts, prints, compares. Where the plugin could not be built there is nothing to do, and that has been said.
///
/// # Errors
/// When a boot goes wrong, or something grew.
pub(super) fn run(options: &Options, tools: &Tools, built: &Built) -> Result<()> {
    let Some(plugin) = &built.lines else {
        println!("the plugin of QEMU that counts cache lines cannot be built here: the rows of scale are skipped");
        return Ok(());
    };
    let machine = machine::named(options.machine.as_deref().unwrap_or(DEFAULT))?;
    let scale = Counted { machine: &machine, image: &built.benches.image, plugin, scratch: &tools.build_directory() };
    if let Some(row) = &options.sources {
        return print_sources(row, &scale, tools, &std::fs::read(&built.benches.elf)?);
    }
    let (cpus, loose): (&[u32], &[Part]) = if options.brief { (&[BOUNDED_AT], &[]) } else { (&CPUS, &Part::LOOSE) };
    let parts = [&Part::IN_TURN, loose].concat();
    let mut measured: Vec<(u32, Part, Counts)> = Vec::new();
    for &cpus in cpus {
        for &part in &parts {
            measured.push((cpus, part, scale.measure(part, cpus)?));
        }
    }
    let rows: Vec<ScaleRow> =
        ROWS.iter().filter(|row| parts.contains(&row.part)).map(|row| row.row(&measured)).collect();
    let run = ScaleRun { machine: machine.name.clone(), rows, rustc: compiler(tools)? };
    if options.json {
        print!("{}", run.to_json()?);
    } else {
        print!("{}", judge::table(&run.rows));
    }
    let reference = reference(&tools.root)?;
    if options.update {
        ensure!(reference.rustc == run.rustc, "another compiler made {REFERENCE}: first ./x bench --update");
        update(&Run { scale: run.rows.clone(), ..reference }, &tools.root)?;
    } else if options.check {
        check(&run, &reference)?;
    }
    Ok(())
}

/// Compares with the bounds, and with the reference unless another compiler made it, which lays out code and data
/// otherwise.
fn check(run: &ScaleRun, reference: &Run) -> Result<()> {
    ensure!(reference.first.machine == run.machine, "the reference is of {}", reference.first.machine);
    let missed = run.rows.iter().filter(|row| judge::is_met(row) == Some(false));
    let missed: Vec<&str> = missed.map(|row| row.name.as_str()).collect();
    ensure!(missed.is_empty(), "rows that miss their bounds: {}", missed.join(", "));
    if reference.rustc != run.rustc {
        eprintln!("x: all bounds are kept; lines were not compared: another compiler made the reference");
        return Ok(());
    }
    let grown = judge::grown(&run.rows, &reference.scale);
    ensure!(
        grown.is_empty(),
        "grown since {REFERENCE}:\n  {}\nIf that is worth it: ./x bench scale --update",
        grown.join("\n  ")
    );
    eprintln!("x: all bounds are kept, and nothing grew since {REFERENCE}");
    Ok(())
}

/// The kernel's image is no larger than this, and slides by multiples of it, less than this far.
const IMAGE: u64 = 2 << 20;
const SLIDES: u64 = 1 << 30;
/// Places in the sources that are shown of an instruction: the innermost, and what it is inlined into.
const PLACES: usize = 3;

/// Prints which lines of source move the lines of a row, the most first.
fn print_sources(name: &str, scale: &Counted<'_>, tools: &Tools, elf: &[u8]) -> Result<()> {
    let row = Definition::of(name).with_context(|| {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        format!("there is no row `{name}`; there are: {}", names.join(", "))
    })?;
    let (counts, moves) = scale.sources(row.part, BOUNDED_AT)?;
    let cost = row.cost(&counts).with_context(|| format!("{name} was not measured"))?;
    let debug = DebugLines::read(elf, &tools.root)?;
    let mut found: BTreeMap<(&str, String), (f64, BTreeSet<u64>)> = BTreeMap::new();
    for moved in row.moves(&counts, &moves)? {
        let image = moved.pc.wrapping_sub(LINKED) < SLIDES;
        let place = if image { place(&debug.frames(LINKED + moved.pc % IMAGE)?) } else { "the program".into() };
        let (times, lines) = found.entry((moved.kind, place)).or_default();
        *times += moved.times;
        lines.insert(moved.line);
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by(|(_, (a, _)), (_, (b, _))| b.total_cmp(a));
    println!("{name}: {cost} of an operation with {BOUNDED_AT} CPUs; times, kind, different lines, place");
    for ((kind, place), (times, lines)) in found {
        println!("{times:8.3}  {kind:8}  {:4}  {place}", lines.len());
    }
    Ok(())
}

/// Where an instruction is in the sources of this workspace; where it is in none, the innermost function's place.
fn place(frames: &[Frame]) -> String {
    let own = frames.iter().filter(|frame| !frame.line.path.starts_with('/'));
    let shown = own.take(PLACES).map(|frame| format!("{}:{}", frame.line.file, frame.line.line));
    let shown: Vec<String> = shown.collect();
    match frames.first() {
        Some(frame) if shown.is_empty() => format!("{} {}:{}", frame.function, frame.line.file, frame.line.line),
        Some(_) => shown.join(" < "),
        None => "assembly".into(),
    }
}
