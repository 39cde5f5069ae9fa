//! Commands that account for what the kernel has and what it has done: memory, CPUs, events.
//!
//! Nothing is stopped for it: while other CPUs work, numbers that belong together may be off by what moves in between.

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysRange, VirtAddr};
use granule_pgtable::Size;

use super::parse::{Args, ArgumentError, Keyword};
use super::tables::all_of;
use super::{Command, Failure, Half, Refusal, Session, no_keywords};
use granule::mm::kernel::area::AreaKind;
use granule::mm::maintenance;
use granule::{Kernel, smp};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "mem",
        words: "",
        help: "banks and reservations, frames, page blocks, heap, areas",
        run: mem,
        complete: no_keywords,
    },
    Command {
        name: "compact",
        words: "",
        help: "make page blocks whole: pages of programs move to other frames",
        run: compact,
        complete: no_keywords,
    },
    Command {
        name: "cpus",
        words: "",
        help: "the CPUs, what each is, and whether it runs",
        run: cpus,
        complete: no_keywords,
    },
    Command {
        name: "stats",
        words: "",
        help: "events of each CPU; barriers, TLBIs; leaves, splits, collapses",
        run: stats,
        complete: no_keywords,
    },
    Command {
        name: "mte",
        words: "stats [--json]",
        help: "tag storage: what it holds, reservations, failures, replays",
        run: mte,
        complete: |place, take| {
            if let Some((keyword, ())) = [STATS, JSON].get(place) {
                take(keyword);
            }
        },
    },
];

const STATS: Keyword<()> = ("stats", ());
pub(super) const JSON: Keyword<()> = ("--json", ());

/// The kernel; there is none where the monitor's own tests run.
pub(super) fn kernel() -> Result<&'static Kernel, Refusal> {
    granule::try_kernel().ok_or(Refusal::NoKernel)
}

fn compact<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let kernel = kernel()?;
    let blocks = kernel.spaces.compact(smp::this_cpu(), usize::MAX, &|| false);
    writeln!(session, "{blocks} page blocks became whole, {} are free", kernel.frames.stats().free_blocks);
    Ok(())
}

fn mem<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let kernel = kernel()?;
    for bank in &kernel.platform.memory {
        show_range(session, "memory", *bank, "");
    }
    for range in &kernel.platform.reserved {
        let unmapped = kernel.platform.no_map.iter().any(|no_map| no_map == range);
        show_range(session, "reserved", *range, if unmapped { " not mapped" } else { "" });
    }
    let frames = kernel.frames.stats();
    writeln!(
        session,
        "frames    {} managed, {} in use, {} free ({} in magazines)",
        frames.total, frames.used, frames.free, frames.in_magazines
    );
    writeln!(session, "blocks    {} free, {} cut into frames", frames.free_blocks, frames.cut_blocks);
    let (waiting, purges) = (kernel.space.unmapped_pages(), kernel.space.purges());
    writeln!(session, "unmapped  {waiting} pages of areas wait for an invalidation; {purges} so far");
    #[cfg(target_os = "none")]
    {
        let heap = granule::mm::heap::kernel_heap().stats();
        let (total, used) = (Size(heap.total as u64), heap.used);
        let checks = kernel.features().kernel_tag_check;
        writeln!(
            session,
            "heap      {total}, {used} bytes used by {} allocations, {} with tags ({checks})",
            heap.allocations, heap.tagged
        );
    }
    show_areas(session, kernel);
    Ok(())
}

fn show_range(session: &mut Session<'_>, what: &str, range: PhysRange, more: &str) {
    let (start, end) = (range.start().0, range.end().0);
    writeln!(session, "{what:<9} {start:#012x}-{end:#012x} {:>8}{more}", Size(range.size()));
}

/// One line for each area. The tree's lock is not held while a line is printed, so each line looks for the next area
/// anew.
fn show_areas(session: &mut Session<'_>, kernel: &Kernel) {
    let mut shown = VirtAddr(0);
    loop {
        let mut next = None;
        kernel.space.for_each_area(|area| {
            if area.start() > shown && next.is_none() {
                next = Some((area.start(), area.pages(), area.kind()));
            }
        });
        let Some((start, pages, kind)) = next else { return };
        let kind = match kind {
            AreaKind::Vmalloc => "vmalloc",
            AreaKind::Mapped => "vmap",
            AreaKind::Device => "device",
            AreaKind::Stack => "stack",
            AreaKind::Freeing => "being freed",
        };
        writeln!(session, "area      {start} {:>8} {kind}, {pages} page{}", Size(pages * PAGE), plural(pages));
        shown = start;
    }
}

/// The `s` that every number but one asks for.
pub(super) const fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn cpus<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let kernel = kernel()?;
    for node in &kernel.platform.cpus {
        let mut running = None;
        smp::for_each(|cpu| {
            if cpu.mpidr.load(Ordering::Relaxed) == node.mpidr {
                running = Some(cpu);
            }
        });
        let Some(cpu) = running else {
            writeln!(session, "cpu -   mpidr {:#012x}  does not run ({:?})", node.mpidr, node.enable_method);
            continue;
        };
        let midr = cpu.features.get().map_or(0, |features| features.midr);
        writeln!(session, "cpu {:<3} mpidr {:#012x}  midr {midr:#010x}  runs", cpu.id.0, node.mpidr);
    }
    if kernel.platform.cpus_left_out != 0 {
        writeln!(session, "{} more in the device tree than the kernel can start", kernel.platform.cpus_left_out);
    }
    Ok(())
}

fn stats<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let kernel = kernel()?;
    writeln!(session, "cpu  interrupts        ipis       calls  probe faults  spurious faults");
    smp::for_each(|cpu| {
        let (ipis, calls) = (cpu.ipis.load(Ordering::Relaxed), cpu.calls_served());
        let (interrupts, probes, spurious) =
            (cpu.trap().interrupts(), cpu.trap().probe_faults(), cpu.trap().spurious_faults());
        writeln!(session, "{:>3}  {interrupts:>10}  {ipis:>10}  {calls:>10}  {probes:>12}  {spurious:>15}", cpu.id.0);
    });
    if maintenance::is_counting() {
        writeln!(session, "cpu{}", maintenance::HEADING);
        smp::for_each(|cpu| writeln!(session, "{:>3}{}", cpu.id.0, maintenance::counts(cpu)));
    }
    let leaves = granule::mm::kernel::dump(&kernel.space.tables().get(), all_of(Half::Kernel)?, &mut |_| {});
    writeln!(session, "leaves: {leaves}");
    writeln!(session, "leaves split: {}", kernel.space.split_counts());
    writeln!(session, "leaves collapsed: {}", kernel.space.collapse_counts());
    writeln!(session, "frees refused: {}", kernel.frames.stats().refused);
    #[cfg(target_os = "none")]
    writeln!(session, "guarded heap: {}", granule::mm::heap::guarded::guarded_heap().stats());
    Ok(())
}

fn mte<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    expect(&mut args, &STATS)?;
    let is_json = !args.is_empty();
    if is_json {
        expect(&mut args, &JSON)?;
    }
    args.finish()?;
    let stats = session.subject.tag_storage()?;
    if is_json {
        // A screen cannot fail.
        let _ = stats.write_json(session.screen);
        writeln!(session);
    } else {
        writeln!(session, "{stats}");
    }
    Ok(())
}

/// The next word is this keyword. Out of line: it has several callers.
#[inline(never)]
pub(super) fn expect<'a>(args: &mut Args<'a>, keyword: &Keyword<()>) -> Result<(), ArgumentError<'a>> {
    args.keyword(keyword.0, keyword.0, core::slice::from_ref(keyword))
}
