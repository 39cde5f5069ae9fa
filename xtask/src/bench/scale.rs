//! `./x bench scale`: cache lines that operations move between CPUs.

use anyhow::{Result, ensure};
use granule_runner::bench::reference::Run;
use granule_runner::bench::scale::boot::{Counts, Part, Scale};
use granule_runner::bench::scale::rows::ROWS;
use granule_runner::bench::scale::{BOUNDED_AT, CPUS, ScaleRow, ScaleRun, judge};
use granule_runner::machine;

use super::{DEFAULT, Options, REFERENCE, compiler, reference, update};
use crate::compile::Built;
use crate::tools::Tools;

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
    let scale = Scale { machine: &machine, image: &built.benches.image, plugin, scratch: &tools.root };
    let (cpus, parts): (&[u32], &[Part]) =
        if options.brief { (&[BOUNDED_AT], &[Part::Kernel, Part::Program]) } else { (&CPUS, &Part::ALL) };
    let mut measured: Vec<(u32, Part, Counts)> = Vec::new();
    for &cpus in cpus {
        for &part in parts {
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

/// Compares with the reference. Another compiler lays out code and data otherwise: then there is nothing to compare.
fn check(run: &ScaleRun, reference: &Run) -> Result<()> {
    ensure!(reference.first.machine == run.machine, "the reference is of {}", reference.first.machine);
    if reference.rustc != run.rustc {
        eprintln!("x: lines were not compared: another compiler made the reference");
        return Ok(());
    }
    let grown = judge::grown(&run.rows, &reference.scale);
    ensure!(
        grown.is_empty(),
        "grown since {REFERENCE}:\n  {}\nIf that is worth it: ./x bench scale --update",
        grown.join("\n  ")
    );
    let missed = run.rows.iter().filter(|row| judge::is_met(row) == Some(false)).count();
    eprintln!("x: nothing grew since {REFERENCE}; bounds that are missed, which fails nothing yet: {missed}");
    Ok(())
}
