//! The work of `./x` once it has its tools: its command line. Longer work is in the crates beside this one.

#![forbid(unsafe_code)]

mod bench;
mod boot;
mod card;
#[cfg(test)]
mod commands;
mod demo;
#[cfg(test)]
mod entry;
mod start;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use granule_image::compile;
use granule_tools::{Profile, Tools, machine_names};

const ABOUT: &str = "Builds, runs and tests Granule: the memory management of an arm64 kernel, alone on the metal.";

const EXAMPLES: &str = "\
Examples:
  ./x run                                  boot to the monitor; Ctrl-A X leaves QEMU
  ./x run --machine a53                    on an ARMv8.0 CPU with 256 MiB
  echo 'ptdump' | ./x run --script -       one command, and the session on standard output
  ./x run -- -icount shift=0,sleep=off     count instructions: `uptime` prints them
  ./x image --board generic -o card.img    a disk image for U-Boot
  ./x flash card.img /dev/sdb              onto a card
  ./x image --board generic --loader -o l.img   one whose kernel is a loader, for
  ./x boot --serial /dev/ttyUSB0           a kernel over the serial line, and its console
  ./x test                                 everything
  ./x test --target set_memory             the tests on the target whose names contain set_memory
  ./x test --machine el2 --junit out.xml   one machine, with a report
  ./x demo split                           CPUs that split one leaf: the race, the loss, the remedies
  ./x demo batch                           a page that a kernel thread takes from a process whose device reads it
  ./x demo mte                             storage for tags: for all pages at once or at the first access, and held
  ./x demo upgrade                         a device without and with the event that a page became writable
  ./x bench set_memory                     what calls of this name cost, in instructions
  ./x bench --check                        fail if a row takes over 2 % more than docs/BENCHMARKS.json has
  ./x bench scale                          cache lines that operations move between CPUs
  ./x bench --serial PORT --board raspi4b  what a board counts, compared with nothing
  ./x bench tlb                            what large leaves save: entries and descriptor reads of a modelled TLB
  ./x audit panics                         panics that programs, devices or the device tree may reach, with reasons
  ./x audit size                           lines of code, comments and tests of each part
  ./x audit latency                        how long programs of the largest counts keep a CPU, or interrupts masked
  ./x mutants --count 10 kernel/pgtable    break the code at ten places, and show which of these no test sees
  ./x fuzz --seed 7                        hostile system calls, and the blocks of the kernel that they reach

Environment:
  GRANULE_TOOLCHAIN=rustup|distro          force rustup's toolchain or the distribution's
  GRANULE_QEMU=PROGRAM                     that qemu-system-aarch64, not the one in PATH

Machines are described in tests-qemu/machines.toml; docs/TESTING.md describes the tests, docs/ref commands and switches.";

#[derive(Debug, Parser)]
#[command(name = "x", bin_name = "./x", about = ABOUT, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build build/granule.elf, build/granule.img (arm64 Image), the images of tests and benches, and build/initrd.cpio
    Build {
        /// The checked build: lock order, arithmetic, debug assertions
        #[arg(long)]
        debug: bool,
    },
    /// Build, then boot to the monitor on this terminal or by a script
    Run {
        /// The checked build
        #[arg(long)]
        debug: bool,
        #[command(flatten)]
        options: start::Options,
    },
    /// Build, then make a disk image that a board boots from
    Image(card::ImageOptions),
    /// Write a disk image to a card, read it back and compare
    Flash(card::FlashOptions),
    /// Build, then load the kernel over a serial line into a board that runs the loader, and be its console
    Boot(boot::Options),
    /// Build, then run the tests on the host and on every machine
    Test(granule_suite::Options),
    /// Build, then count instructions on the target
    Bench(bench::Options),
    /// Build, then show a bug or a race on the target in at most 30 lines; fail if it did not happen
    Demo(demo::Options),
    /// Break the code by rules, one place at a time, and report which mutants no test sees; continues an earlier run
    Mutants(granule_mutants::Options),
    /// Build, then make system calls that are guided by the blocks of the kernel that they reach; report these
    Fuzz(granule_fuzz::Options),
    /// Print the exact QEMU command line
    Qemu {
        /// Machine of tests-qemu/machines.toml
        #[arg(long, short, default_value = "default", value_parser = machine_names())]
        machine: String,
    },
    /// Check the finished image and the sources
    #[command(subcommand)]
    Audit(granule_audit::Audit),
    /// clippy for host and target, rustfmt --check, shell syntax, licences, panics that can be reached: no warnings
    Lint,
    /// Format the sources
    Fmt,
    /// Build the documentation, without a warning
    Doc {
        /// Public items alone, of all crates in one index: print where it is, and open it in a browser
        #[arg(long)]
        open: bool,
    },
    /// Package the libraries that other kernels use, as `cargo publish` would, without a registry
    Package,
}

/// The exit status of a program that SIGPIPE ended, as a shell names it.
const WITHOUT_READER: i32 = 141;

/// Where the reader of the output is gone, such as `head`, printing panics: that ends this program without a report.
fn end_without_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        // As `println!` and a failed `unwrap` have it.
        if ["Broken pipe", "BrokenPipe"].iter().any(|error| text.contains(error)) {
            std::process::exit(WITHOUT_READER);
        }
        report(panic);
    }));
}

fn main() -> ExitCode {
    end_without_reader();
    let arguments = Arguments::parse();
    match perform(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("x: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let tools = Tools::from_environment()?;
    let profile = |debug: bool| if debug { Profile::Checked } else { Profile::Release };
    match task {
        Task::Build { debug } => {
            let built = compile::build(&tools, profile(debug))?;
            for program in [built.kernel, built.tests, built.benches] {
                println!("{}\n{}", program.elf.display(), program.image.display());
            }
            println!("{}", built.initrd.display());
            Ok(())
        }
        Task::Run { debug, options } => start::run(&options, &compile::build(&tools, profile(debug))?),
        Task::Image(options) => card::image(&options, || compile::build(&tools, Profile::Release)),
        Task::Flash(options) => card::write(&options),
        Task::Boot(options) => boot::run(&options, || compile::build(&tools, Profile::Release)),
        Task::Test(options) => {
            let profile = if options.incremental { Profile::Incremental } else { profile(options.debug) };
            granule_suite::run(&options, &tools, profile)
        }
        Task::Mutants(options) => granule_mutants::run(&options, &tools),
        Task::Fuzz(options) => granule_fuzz::run(&options, &tools),
        Task::Bench(options) => bench::run(&options, &tools, &compile::build(&tools, Profile::Release)?),
        Task::Demo(options) => demo::run(&options, &compile::build(&tools, Profile::Release)?),
        Task::Qemu { machine } => {
            println!("{}", start::command_line(&machine, &tools.build_directory().join("granule.img"))?);
            Ok(())
        }
        Task::Audit(audit) => granule_audit::run(&audit, &tools),
        Task::Lint => granule_lint::lint(&tools),
        Task::Fmt => granule_lint::format(&tools),
        Task::Doc { open: true } => granule_lint::document_public(&tools),
        Task::Doc { open: false } => granule_lint::document(&tools),
        Task::Package => granule_lint::package(&tools),
    }
}
