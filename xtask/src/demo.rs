//! `./x demo`: a test on the target that prints what it shows.

use anyhow::{Result, bail};
use granule_image::compile::Built;
use granule_runner::session::{self, Plan};
use granule_runner::{demo, list, machine, qemu};

/// Where a demo runs that does not ask for a machine.
const DEFAULT: &str = "default";

/// Which demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The demo; without, all are listed
    pub(crate) name: Option<String>,
    /// Machine of tests-qemu/machines.toml, in place of the demo's own
    #[arg(long, short, value_name = "MACHINE", value_parser = granule_tools::machine_names())]
    pub(crate) machine: Option<String>,
    /// More boot arguments, such as lab=plain-split
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true)]
    pub(crate) append: String,
}

/// Runs the demo and prints what it printed.
///
/// # Errors
/// When what it shows did not happen.
pub(crate) fn run(options: &Options, built: &Built) -> Result<()> {
    let tests = list::read(&built.tests.elf)?;
    let Some(name) = &options.name else {
        demo::names(&tests).for_each(|name| println!("{name}"));
        return Ok(());
    };
    let demo = demo::named(&tests, name)?;
    let machine = options.machine.as_deref().or(demo.machines.first().map(String::as_str)).unwrap_or(DEFAULT);
    let described = machine::named(machine)?;
    // With boot arguments of its own a demo is one boot.
    let boots = if options.append.is_empty() { demo::boots(demo) } else { &[options.append.as_str()][..] };
    let (output, wrong) = demo::run(demo, boots, |tests, bootargs| {
        let (machine, image) = (described.clone(), built.tests.image.clone());
        session::boot(
            &Plan { machine, image, seed: 0, bootargs: bootargs.into(), extra: Vec::new(), qemu: qemu::program() },
            tests,
        )
    });
    println!("{output}");
    match wrong {
        None => Ok(()),
        Some(wrong) => bail!("demo {name} on {machine}: {wrong}"),
    }
}
