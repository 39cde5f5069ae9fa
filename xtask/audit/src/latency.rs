//! `./x audit latency`: how long programs that choose the largest counts have the kernel keep interrupts masked, and a CPU
//! to itself.
//!
//! Each row is a boot with one CPU, under the plugin of QEMU that counts (`tests-qemu/plugin/stretches.c`), so that its
//! numbers are the same each time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use granule_image::compile::Built;
use granule_runner::serial::Limit;
use granule_runner::stretches::{self, Counted, Kind, Stretch};
use granule_tools::Tools;

use super::image::{DebugLines, LINKED};

/// For a boot and its programs.
const LIMIT: Limit = Limit::work(900);
/// The kernel's image is no larger than this, and slides by multiples of it.
const IMAGE: u64 = 2 << 20;

/// A program that chooses large counts.
struct Row {
    name: &'static str,
    /// Of the machine.
    memory: &'static str,
    /// Lines typed at the monitor; after a line's end, the input that its program asks for.
    lines: &'static [&'static str],
}

/// The programs, each with the largest count that fits.
#[rustfmt::skip]
const ROWS: [Row; 20] = [
    Row { name: "descriptors", memory: "2G", lines: &["run many descriptors 1048570"] },
    Row { name: "polls", memory: "4G", lines: &["run many polls 1048576"] },
    Row { name: "pollers", memory: "4G", lines: &["run many pollers 12000"] },
    Row { name: "pipes", memory: "4G", lines: &["run many pipes 12000"] },
    Row { name: "console", memory: "4G", lines: &["run many console 12000 &", "run many pause 60000", "mem", "help", "ps"] },
    Row { name: "readers", memory: "4G", lines: &["run many readers 12000\nx"] },
    Row { name: "threads", memory: "4G", lines: &["run many threads 12000"] },
    Row { name: "sleepers", memory: "4G", lines: &["run long sleepers 12000"] },
    Row { name: "waiters", memory: "4G", lines: &["run long waiters 12000"] },
    Row { name: "processes", memory: "4G", lines: &["run long processes 10000"] },
    Row { name: "pagers", memory: "4G", lines: &["run many pagers 1000", "run many pagers 30000"] },
    Row { name: "faulters", memory: "4G", lines: &["run many faulters 4000"] },
    Row { name: "areas", memory: "4G", lines: &["run many areas 65000"] },
    Row { name: "mappings", memory: "4G", lines: &["run many mappings 60000"] },
    Row { name: "mappers", memory: "4G", lines: &["run many mappers 3000"] },
    // A page with as many mappings, and one that is sought in as many spaces (`many::MIGRATED`).
    Row { name: "migrate", memory: "4G", lines: &["run many migrate 60000 &", "run many pause 60000",
        "migrate 1 0x100000000000", "migrate 1 0x10000ea60000"] },
    Row { name: "kills", memory: "4G", lines: &["run many kills 10000\n\x03"] },
    Row { name: "oom", memory: "4G", lines: &["run many oom 10000"] },
    Row { name: "addresses", memory: "4G", lines: &["run many addresses 100"] },
    Row { name: "vectors", memory: "4G", lines: &["run many vectors 1024"] },
];

/// Runs the rows whose names contain one of `filters`, all where there are none.
///
/// # Errors
/// When a stretch is longer than its bound, or a program does not end as it should.
pub(super) fn audit(tools: &Tools, built: &Built, filters: &[String]) -> Result<()> {
    let elf = fs::read(&built.kernel.elf).with_context(|| format!("cannot read {}", built.kernel.elf.display()))?;
    let debug = DebugLines::read(&elf, &tools.root)?;
    let rows =
        ROWS.iter().filter(|row| filters.is_empty() || filters.iter().any(|filter| row.name.contains(&**filter)));
    let (mut any, mut broken) = (false, Vec::new());
    for row in rows {
        any = true;
        let [masked, kernel] = longest(row, &tools.build_directory(), &built.kernel.image)?;
        println!("latency/{} masked {} unscheduled {}", row.name, masked.own + masked.waits, kernel.own + kernel.waits);
        for stretch in [masked, kernel] {
            let is_broken = stretch.own + stretch.waits > stretch.kind.most();
            let [first, last] = stretch.ends.map(|end| place(&debug, end));
            println!("    {}: from {} to {}", stretch.kind.name(), first?, last?);
            if is_broken {
                broken.push(format!("latency/{} {}", row.name, stretch.kind.name()));
                print_chain(&debug, &stretch)?;
            }
        }
    }
    ensure!(any, "no program's name contains {}", filters.join(" or "));
    let bounds = Kind::ALL.map(|kind| format!("{} {}", kind.name(), kind.most())).join(", ");
    ensure!(broken.is_empty(), "longer than allowed ({bounds}): {}", broken.join(", "));
    println!("no stretch is longer than {bounds} instructions");
    Ok(())
}

/// The longest stretch of each kind.
fn longest(row: &Row, build: &Path, image: &Path) -> Result<[Stretch; 2]> {
    let machine = stretches::one_cpu(row.memory)?;
    let Counted { wrong, session, records } =
        stretches::count(&machine, [image, &build.join("stretches.so"), build], row.lines, LIMIT)?;
    ensure!(wrong.is_empty(), "latency/{}: {wrong:?}\n{session}", row.name);
    let of_kind = |kind| {
        let stretches = records.iter().flatten().filter(|stretch| stretch.kind == kind);
        let longest = stretches.max_by_key(|stretch| stretch.length(&machine)).filter(|longest| longest.own > 100);
        longest.cloned().with_context(|| format!("latency/{}: nothing was counted\n{session}", row.name))
    };
    Ok([of_kind(Kind::Masked)?, of_kind(Kind::Kernel)?])
}

/// A function and its line; where others are inlined, the innermost of this workspace's.
fn place(debug: &DebugLines<'_>, address: u64) -> Result<String> {
    let frames = debug.frames(LINKED + address % IMAGE)?;
    let own = frames.iter().find(|frame| !frame.line.path.starts_with('/')).or(frames.first());
    Ok(own.map_or_else(
        || format!("{address:#x}"),
        |frame| format!("{} {}:{}", frame.function, frame.line.file, frame.line.line),
    ))
}

/// Prints the calls in the middle of a stretch, with what is inlined, the innermost first.
fn print_chain(debug: &DebugLines<'_>, stretch: &Stretch) -> Result<()> {
    for (depth, address) in stretch.chain.iter().enumerate() {
        // A call returns behind itself.
        let call = if depth == 0 { *address } else { address - 4 };
        for frame in debug.frames(LINKED + call % IMAGE)? {
            if !frame.line.path.starts_with('/') {
                println!("        {} {}:{}", frame.function, frame.line.file, frame.line.line);
            }
        }
    }
    Ok(())
}
