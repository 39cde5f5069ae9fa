//! `./x bench tlb`: what large leaves save a TLB, by a model of one.

use anyhow::{Result, ensure};
use granule_image::compile::Built;
use granule_runner::bench::counted::Counted;
use granule_runner::bench::reference::Run;
use granule_runner::bench::tlb::{SUITE, measure, table};
use granule_runner::machine;
use granule_tools::Tools;

use super::{DEFAULT, Options, REFERENCE, reference, update};

/// Counts, prints, compares. Where the plugin could not be built there is nothing to do, and that has been said.
///
/// # Errors
/// When the boot goes wrong, or the rows are not those of the reference.
pub(super) fn run(options: &Options, tools: &Tools, built: &Built) -> Result<()> {
    let Some(plugin) = &built.tlb else {
        println!("the plugin of QEMU that models a TLB cannot be built here: the rows of {SUITE} are skipped");
        return Ok(());
    };
    let machine = machine::named(options.machine.as_deref().unwrap_or(DEFAULT))?;
    let tlb = Counted { machine: &machine, image: &built.benches.image, plugin, scratch: &tools.build_directory() };
    let rows = measure(&tlb)?;
    if options.json {
        let text: Vec<String> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        println!("[\n{}\n]", text.join(",\n"));
    } else {
        print!("{}", table(&rows));
    }
    let reference = reference(&tools.root)?;
    if options.update {
        update(&Run { tlb: rows, ..reference }, &tools.root)?;
    } else if options.check {
        ensure!(rows == reference.tlb, "{REFERENCE} has other rows: ./x bench {SUITE} --update");
        eprintln!("x: the rows are those of {REFERENCE}");
    }
    Ok(())
}
