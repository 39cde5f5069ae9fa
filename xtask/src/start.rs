//! `./x run` and `./x qemu`: a machine on this terminal, or fed by a script.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use granule_image::compile::Built;
use granule_image::symbols;
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;
use granule_runner::serial::Limit;

/// The machine to start, its image and its input.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Machine of tests-qemu/machines.toml
    #[arg(long, short, value_name = "MACHINE", default_value = "default", value_parser = granule_tools::machine_names())]
    pub(crate) machine: String,
    /// Type the lines of FILE (- is standard input) at the prompt, print the session, and exit non-zero if a command
    /// failed, the kernel panicked or the time limit passed
    #[arg(long, value_name = "FILE")]
    pub(crate) script: Option<PathBuf>,
    /// Boot an example instead of the kernel, such as metal: it prints, and switches the machine off
    #[arg(long, value_name = "NAME", value_parser = ["metal"], conflicts_with_all = ["script", "gdb"])]
    pub(crate) example: Option<String>,
    /// Seconds that a script may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) time_limit: u64,
    /// More boot arguments, such as lab=skip-tlbi (see `help` and `lab` in the monitor)
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true)]
    pub(crate) append: String,
    /// Stop at the entry and wait for gdb on port 1234
    #[arg(long, conflicts_with = "script")]
    pub(crate) gdb: bool,
    /// More arguments for QEMU, such as -icount shift=0,sleep=off
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub(crate) qemu: Vec<OsString>,
}

/// Boots to the monitor.
///
/// # Errors
/// When QEMU cannot be run, or the script did not go well.
pub(crate) fn run(options: &Options, built: &Built) -> Result<()> {
    let machine = machine::named(&options.machine)?;
    if options.example.is_some() {
        return boot(&example(&machine, &built.example, &options.qemu));
    }
    match &options.script {
        Some(file) => scripted(options, &machine, built, &read(file)?),
        None if std::io::stdin().is_terminal() || options.gdb => interactive(options, &machine, built),
        None => {
            eprintln!("x: standard input is no terminal, so it is taken as a script (--script -)");
            scripted(options, &machine, built, &read(Path::new("-"))?)
        }
    }
}

/// The command line that [`run`] uses on a terminal.
///
/// # Errors
/// When there is no such machine.
pub(crate) fn command_line(machine: &str, kernel: &Path) -> Result<Qemu> {
    Ok(Qemu::new(&machine::named(machine)?, kernel, Serial::Terminal, Reset::Restarts, "", &[]))
}

fn interactive(options: &Options, machine: &Machine, built: &Built) -> Result<()> {
    let (mut extra, mut append) = (options.qemu.clone(), options.append.clone());
    if options.gdb {
        append += " nokaslr";
        extra.extend(["-S".into(), "-s".into()]);
        eprintln!("x: the machine waits at its first instruction; in another terminal:");
        eprintln!("     gdb-multiarch {} -ex 'target remote :1234'", built.kernel.elf.display());
        // By address: gdb 13 finds no function by the path of a Rust symbol.
        let elf = std::fs::read(&built.kernel.elf).context("cannot read the kernel's ELF")?;
        let start = symbols::address(&elf, "granule::start::start")?;
        eprintln!("   symbols hold once the MMU is on (`nokaslr`): (gdb) hbreak *{start:#x}");
    }
    eprintln!("x: {} — {}. Ctrl-A X leaves QEMU, `poweroff` ends the machine.", machine.name, machine.description);
    let image = &built.kernel.image;
    let qemu = Qemu::new(machine, image, Serial::Terminal, Reset::Restarts, append.trim(), &extra);
    boot(&qemu)
}

/// The command line that boots an example: an ELF, and nothing beside it.
fn example(machine: &Machine, elf: &Path, extra: &[OsString]) -> Qemu {
    let kernel = ["-kernel".into(), elf.into()];
    Qemu::without_kernel(machine, Serial::Terminal, Reset::Ends, &[&kernel, extra].concat())
}

fn boot(qemu: &Qemu) -> Result<()> {
    let status = qemu.command().status().with_context(|| format!("cannot start {qemu}"))?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

fn scripted(options: &Options, machine: &Machine, built: &Built, script: &str) -> Result<()> {
    let bootargs = format!("{} {}", script::BOOTARGS, options.append);
    let image = &built.kernel.image;
    let qemu = Qemu::new(machine, image, Serial::Pipes, Reset::Ends, bootargs.trim(), &options.qemu);
    let commands = script::commands(script);
    let limit = Limit::Clock(Duration::from_secs(options.time_limit));
    let wrong = script::run(&qemu, &commands, limit, &mut std::io::stdout().lock())?;
    if !wrong.is_empty() {
        println!();
        bail!("the session went wrong:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

pub(crate) fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
