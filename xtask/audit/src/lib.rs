//! `./x audit`: what the finished image can do, by the image itself; how long it keeps a CPU, by running it; and which
//! modules import which and how long they are, by the sources.
//!
//! `panics` follows calls from where programs, devices and firmware enter the kernel to each panic that can be reached,
//! in the code that is shipped: after inlining, with everything gone that the compiler proved away. A place of a panic
//! is a `core::panic::Location`, whose address the code forms before it panics; the image has each of them, and one
//! that no code is seen to use is an error.
//!
//! `speculation` looks for the instructions that bound what is speculated, and `stack` adds up the frames along the
//! calls that `panics` follows, by what each function subtracts from SP.

#![forbid(unsafe_code)]

mod circles;
pub mod image;
mod latency;
mod layers;
mod lines;
mod modules;
pub mod reach;
pub mod size;
pub mod sources;
mod speculation;
mod stack;
pub mod tables;
#[cfg(test)]
mod tests;
mod unused;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use granule_image::compile;
use granule_tools::{Profile, Tools};
use serde_json::json;

use image::Image;
pub use modules::{files, is_unshipped};
use reach::{Graph, Reached, reach};
use sources::Sources;
use tables::{Calls, Panics, Source};

/// The audits, each by a command of its own.
#[derive(Debug, clap::Subcommand)]
pub enum Audit {
    /// Panics that a program, a device, an interrupt or the device tree can reach; fails if one has no reason in
    /// xtask/audit/panics.toml
    Panics(Options),
    /// The most stack that each entry into the kernel can use, by the longest chain of calls; fails above the bound of
    /// xtask/audit/stack.toml
    Stack {
        /// This ELF instead of a fresh build/granule.elf
        #[arg(long, value_name = "FILE")]
        elf: Option<PathBuf>,
    },
    /// Numbers of EL0's that index tables are masked in the image, and barriers follow each ERET
    Speculation {
        /// This ELF instead of a fresh build/granule.elf
        #[arg(long, value_name = "FILE")]
        elf: Option<PathBuf>,
    },
    /// Instructions with interrupts masked, and in the kernel without a scheduling point, while programs choose the largest
    /// counts; fails if one is above its bound
    Latency {
        /// Only programs whose names contain one of these
        filters: Vec<String>,
    },
    /// Modules of a crate that import a higher layer, and circles of its files; fails if one is not in
    /// xtask/audit/layers.toml, or has more files than it says there
    Layers,
    /// Lines of code, comments and tests, by part; fails on functions and files that are too long and not in
    /// xtask/audit/size.toml, or longer than there
    Size(size::Options),
    /// Public items that only tests use; fails if one is not in xtask/audit/unused.toml
    Unused,
}

/// The form of the report.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Calls by a pointer that xtask/audit/calls.toml does not list, each taken to reach every function whose address
    /// is taken
    #[arg(long, conflicts_with = "json")]
    calls: bool,
    /// Functions whose address is taken
    #[arg(long, conflicts_with_all = ["json", "calls"])]
    taken: bool,
    /// Only those without a reason
    #[arg(long)]
    new: bool,
    /// This ELF instead of a fresh build/granule.elf
    #[arg(long, value_name = "FILE")]
    elf: Option<PathBuf>,
}

/// Runs an audit.
///
/// # Errors
/// When it finds what is not listed, or cannot be run.
pub fn run(audit: &Audit, tools: &Tools) -> Result<()> {
    match audit {
        Audit::Panics(options) => panics(tools, options),
        Audit::Stack { elf } => stack(tools, elf.as_deref(), true),
        Audit::Speculation { elf } => speculate(tools, elf.as_deref(), true),
        Audit::Latency { filters } => latency::audit(tools, &compile::build(tools, Profile::Release)?, filters),
        Audit::Layers => layers::audit(&tools.root, true),
        Audit::Size(options) => size::audit(&tools.root, options),
        Audit::Unused => unused::audit(&tools.root, true),
    }
}

/// The audits of layers, sizes and unused items, as `./x lint` has them.
///
/// # Errors
/// When an import goes up, a function or file is too long or an item is unused, and is not listed, or a table is out of date.
pub fn check_sources(tools: &Tools) -> Result<()> {
    layers::audit(&tools.root, false)?;
    size::check(&tools.root)?;
    unused::audit(&tools.root, false)
}

/// The audits of panics and of stacks over the release build, as `./x lint` has it: quiet but for what is wrong.
///
/// # Errors
/// When a panic can be reached and has no reason, a stack may become too deep, or a table is out of date.
pub fn check(tools: &Tools) -> Result<()> {
    panics(tools, &Options { new: true, ..Options::default() })?;
    stack(tools, None, false)?;
    speculate(tools, None, false)
}

fn speculate(tools: &Tools, elf: Option<&Path>, verbose: bool) -> Result<()> {
    let elf = image_of(tools, elf)?;
    speculation::audit(&Image::read(&elf, &tools.root)?, verbose)
}

/// The image's bytes: of `elf`, or of the release build.
fn image_of(tools: &Tools, elf: Option<&Path>) -> Result<Vec<u8>> {
    let elf = match elf {
        Some(elf) => elf.to_owned(),
        None => compile::build(tools, Profile::Release)?.kernel.elf,
    };
    fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))
}

fn stack(tools: &Tools, elf: Option<&Path>, verbose: bool) -> Result<()> {
    let elf = image_of(tools, elf)?;
    let image = Image::read(&elf, &tools.root)?;
    let tables = tools.root.join("xtask/audit");
    let (calls, limits): (Calls, stack::Limits) =
        (tables::read(&tables.join("calls.toml"))?, tables::read(&tables.join("stack.toml"))?);
    stack::audit(&image, &Graph::new(&image, &calls, &Sources::new(&tools.root)), &limits, verbose)
}

fn panics(tools: &Tools, options: &Options) -> Result<()> {
    let elf = image_of(tools, options.elf.as_deref())?;
    let image = Image::read(&elf, &tools.root)?;
    let tables = tools.root.join("xtask/audit");
    let (calls, panics): (Calls, Panics) =
        (tables::read(&tables.join("calls.toml"))?, tables::read(&tables.join("panics.toml"))?);
    panics.check()?;
    let reached = reach(&image, &calls, &Sources::new(&tools.root))?;
    if options.taken {
        image.taken.iter().for_each(|index| println!("{}", image.functions[*index].names.join(" = ")));
        return Ok(());
    }
    if options.calls {
        for (source, (line, chain)) in &reached.unlisted {
            println!("{}:{} {}: {}", line.file, line.line, source.function, source.text);
            println!("    {}", chain.join(" > "));
        }
        return Ok(());
    }
    if options.json {
        println!("{:#}", to_json(&reached, &panics));
    } else {
        print(&reached, &panics, options.new);
    }
    judge(&reached, &panics, &tables)
}

/// The reason that a panic may be reached, where there is one.
fn reason<'a>(panics: &'a Panics, source: &Source) -> Option<&'a str> {
    panics.panics.iter().find(|panic| panic.at.fits(source)).map(|panic| panic.reason.as_str())
}

fn print(reached: &Reached, panics: &Panics, only_new: bool) {
    for (source, site) in &reached.sites {
        let reason = reason(panics, source);
        if only_new && reason.is_some() {
            continue;
        }
        println!(
            "{}:{}:{} {} in {}: {}",
            site.line.file, site.line.line, site.line.column, site.kind, source.function, source.text
        );
        println!("    {}", site.chain.join(" > "));
        println!("    {}", reason.unwrap_or("NO REASON"));
    }
    let known = reached.sites.keys().filter(|source| reason(panics, source).is_some()).count();
    println!(
        "{} panics can be reached, {known} of them with a reason; the image has {} places of panics; {} functions are reached, {} calls by a pointer are not listed",
        reached.sites.len(),
        reached.places,
        reached.functions,
        reached.unlisted.len()
    );
}

fn to_json(reached: &Reached, panics: &Panics) -> serde_json::Value {
    let sites = reached.sites.iter().map(|(source, site)| {
        json!({
            "file": source.file, "line": site.line.line, "column": site.line.column, "function": source.function,
            "text": source.text, "kind": site.kind, "chain": site.chain, "reason": reason(panics, source),
        })
    });
    let unlisted = reached.unlisted.iter().map(|(source, (line, _))| {
        json!({ "file": source.file, "line": line.line, "function": source.function, "text": source.text })
    });
    json!({ "panics": sites.collect::<Vec<_>>(), "unlisted_calls": unlisted.collect::<Vec<_>>() })
}

/// Fails where the tables and the image do not agree.
fn judge(reached: &Reached, panics: &Panics, tables: &Path) -> Result<()> {
    let without: Vec<&Source> = reached.sites.keys().filter(|source| reason(panics, source).is_none()).collect();
    if !without.is_empty() {
        bail!("{} panics can be reached and have no reason in {}/panics.toml", without.len(), tables.display());
    }
    // A closure that the compiler has inlined has no address: whether it does differs from build to build.
    let misnamed: Vec<&str> =
        reached.misnamed.iter().map(String::as_str).filter(|name| !name.contains("{{closure}}")).collect();
    if !misnamed.is_empty() {
        let names = misnamed.join("\n  ");
        bail!("these targets in {}/calls.toml are no functions whose address is taken:\n  {names}", tables.display());
    }
    let gone: Vec<String> = panics
        .panics
        .iter()
        .filter(|panic| !reached.sites.keys().any(|source| panic.at.fits(source)))
        .map(|panic| format!("{} {}: {}", panic.at.file, panic.at.function, panic.at.text))
        .collect();
    if !gone.is_empty() {
        bail!("these entries of {}/panics.toml are reached no more:\n  {}", tables.display(), gone.join("\n  "));
    }
    Ok(())
}
