//! Commands that read the kernel's page tables: one address level by level, or all of them as ranges.
//!
//! Both read the live tables without a lock, each entry once; what other CPUs change concurrently may show half old,
//! half new.

use core::fmt::{self, Write};

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Kind, MemoryType};
use granule_pgtable::{Collapses, Extent, Finding, FindingTotals, Geometry, Granule4K, PageRange, Step};

use super::accounts::{JSON, expect, kernel};
use super::parse::{Args, ArgumentError};
use super::processes::process;
use super::{Command, Failure, Half, Refusal, Row, Session, no_keywords};
use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::collapse::CollapseCounts;
use granule::mm::kernel::split::SplitCounts;
use granule::mm::layout;
use granule::mm::space::RESERVED_END;
use granule::smp::this_cpu;

/// First address that TTBR1_EL1 translates; all after it are its, too.
const UPPER_HALF: VirtAddr = layout::LINEAR_BASE;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "walk",
        words: "[PID] ADDR",
        help: "the translation of ADDR level by level, each descriptor decoded",
        run: walk,
        complete: no_keywords,
    },
    Command {
        name: "ptdump",
        words: "[PID] [ADDR [END]] [--json]",
        help: "like leaves, what is wrong with them: all, ADDR, or ADDR up to END",
        run: ptdump,
        complete: |_, take| take(JSON.0),
    },
    Command {
        name: "collapse",
        words: "[ADDR [END]]",
        help: "make the kernel's like leaves larger: all, ADDR, or ADDR up to END",
        run: collapse,
        complete: no_keywords,
    },
];

fn walk<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    // One word is an address, two are a process and an address.
    let mut second = args.clone();
    let _ = second.word();
    let whose = if second.is_empty() { Half::Kernel } else { Half::Process(process(&mut args)?) };
    let address = in_half(whose, args.address("ADDR")?)?;
    args.finish()?;
    let mut last = None;
    let screen = &mut *session.screen;
    let found = session.subject.walk(whose, address, &mut |step| {
        let _ = writeln!(screen, "{step}");
        last = Some(*step);
    });
    check_found(whose, found)?;
    match last {
        Some(step) if step.kind == Kind::Leaf => say_where(session, address, &step),
        Some(Step { level, .. }) => writeln!(session, "{address} is not mapped: translation fault, level {level}"),
        None => {}
    }
    Ok(())
}

/// Refuses an address that is not in the half that it is asked for in.
fn in_half(whose: Half, address: VirtAddr) -> Result<VirtAddr, Refusal> {
    match whose {
        Half::Kernel if address < UPPER_HALF => Err(Refusal::LowerHalf(address)),
        Half::Process(_) if address >= RESERVED_END => Err(Refusal::NotUser(address)),
        _ => Ok(address),
    }
}

/// The subject's answer, or the refusal where there is no such process.
fn check_found<T>(whose: Half, found: Option<T>) -> Result<T, Refusal> {
    match whose {
        Half::Process(id) => found.ok_or(Refusal::NoProcess(id)),
        Half::Kernel => found.ok_or(Refusal::NoKernel),
    }
}

/// Prints where in memory the walk ended, and what the linear map allows at the alias of that memory.
fn say_where(session: &mut Session<'_>, address: VirtAddr, leaf: &Step) {
    let offset = address.0 & (Granule4K::entry_size(leaf.level) - 1);
    let physical = PhysAddr(leaf.descriptor.address().0 | offset);
    if leaf.descriptor.is_valid() {
        writeln!(session, "{address} is {physical} in physical memory");
    } else {
        writeln!(session, "{address} was made invalid: translation fault, level {}; it kept {physical}", leaf.level);
    }
    let device = leaf.descriptor.memory_index() == MemoryType::DeviceNGnRE as u8;
    if layout::region_name(address) == "vmalloc" && !device {
        let alias = layout::linear(physical);
        let access = match last_step(session, alias) {
            Some(step) if step.kind == Kind::Leaf && step.descriptor.is_writable() => "writable",
            Some(step) if step.kind == Kind::Leaf && step.descriptor.is_valid() => "read-only",
            _ => "not mapped",
        };
        writeln!(session, "its alias in the linear map, {alias}, is {access}");
    }
}

/// The last step of the walk for an address of the kernel.
fn last_step(session: &Session<'_>, address: VirtAddr) -> Option<Step> {
    let mut last = None;
    session.subject.walk(Half::Kernel, address, &mut |step| last = Some(*step))?;
    last
}

fn ptdump<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let (whose, range) = range(&mut args)?;
    let is_json = !args.is_empty();
    if is_json {
        expect(&mut args, &JSON)?;
    }
    args.finish()?;
    if is_json { dump_json(session, whose, range) } else { dump_lines(session, whose, range) }.map_err(Failure::from)
}

fn dump_lines(session: &mut Session<'_>, whose: Half, range: PageRange) -> Result<(), Refusal> {
    let screen = &mut *session.screen;
    let (mut region, mut findings) = ("", FindingTotals::default());
    let totals = session.subject.dump(whose, range, &mut |row| match row {
        Row::Extent(extent) => {
            let here = layout::region_name(extent.start);
            if core::mem::replace(&mut region, here) != here {
                let _ = writeln!(screen, "---[ {here} ]---");
            }
            let _ = writeln!(screen, "{extent}");
        }
        Row::Finding(finding) => {
            findings.add(finding);
            let _ = writeln!(screen, "{finding}");
        }
    });
    let totals = check_found(whose, totals)?;
    writeln!(session, "{totals}\n{findings}");
    Ok(())
}

/// One JSON object, with a line for each extent and each finding.
fn dump_json(session: &mut Session<'_>, whose: Half, range: PageRange) -> Result<(), Refusal> {
    let mut json = Json { screen: session.screen, list: "", separator: "" };
    let totals = session.subject.dump(whose, range, &mut |row| match row {
        Row::Extent(extent) => json.extent(extent),
        Row::Finding(finding) => json.finding(finding),
    });
    let totals = check_found(whose, totals)?;
    if totals.bytes() == 0 {
        json.begin(EXTENTS);
    }
    json.begin(FINDINGS);
    json.begin("],\n\"leaves\":[");
    for (size, count) in totals.iter() {
        json.element(format_args!("{{\"size\":{size},\"count\":{count}}}"));
    }
    write!(session, "]");
    if let (Half::Kernel, Some(kernel)) = (whose, granule::try_kernel()) {
        let (splits, collapses) = (kernel.space.split_counts(), kernel.space.collapse_counts().0);
        let _ = write_counters(session.screen, &splits, &collapses);
    }
    writeln!(session, "}}");
    Ok(())
}

const EXTENTS: &str = "{\"extents\":[";
const FINDINGS: &str = "],\n\"findings\":[";

/// A dump that is printed as one JSON object, an element a line.
struct Json<'s> {
    screen: &'s mut dyn Write,
    /// The opening of the list that is being printed.
    list: &'static str,
    /// The text before the next element.
    separator: &'static str,
}

impl Json<'_> {
    /// Begins a list, if it is another than the last.
    fn begin(&mut self, list: &'static str) {
        if self.list != list {
            self.list = list;
            self.separator = "\n";
            let _ = self.screen.write_str(list);
        }
    }

    fn element(&mut self, element: fmt::Arguments<'_>) {
        let _ = self.screen.write_str(core::mem::replace(&mut self.separator, ",\n"));
        let _ = self.screen.write_fmt(element);
    }

    fn extent(&mut self, extent: &Extent) {
        let Extent { start, size, leaf_size, physical, physically_contiguous, attributes, .. } = *extent;
        self.begin(EXTENTS);
        self.element(format_args!(
            "{{\"start\":\"{:#x}\",\"size\":{size},\"leaf_size\":{leaf_size},\"physical\":\"{:#x}\",\
             \"physically_contiguous\":{physically_contiguous},\"valid\":{},\"writable\":{},\"executable\":{},\
             \"attributes\":\"{:#x}\"}}",
            start.0,
            physical.0,
            attributes.is_valid(),
            extent.is_writable(),
            extent.is_executable(),
            attributes.0,
        ));
    }

    fn finding(&mut self, finding: &Finding) {
        let Finding { kind, start, size, leaf_size } = *finding;
        self.begin(FINDINGS);
        self.element(format_args!(
            "{{\"kind\":\"{kind}\",\"start\":\"{:#x}\",\"size\":{size},\"leaf_size\":{leaf_size}}}",
            start.0,
        ));
    }
}

/// How many leaves were split and how many tables collapsed since the boot, as further members of a JSON object.
pub(super) fn write_counters(out: &mut dyn Write, splits: &SplitCounts, collapses: &Collapses) -> fmt::Result {
    let split: u64 = splits.blocks.iter().chain(&splits.groups).sum();
    let (collapsed, cancelled) = (collapses.replaced(), collapses.cancelled);
    write!(out, ",\n\"splits\":{split},\"collapses\":{collapsed},\"cancelled\":{cancelled}")
}

fn collapse<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let everything = args.is_empty();
    let (whose, range) = range(&mut args)?;
    args.finish()?;
    if let Half::Process(_) = whose {
        return Err(Refusal::LowerHalf(range.start()).into());
    }
    let space = &kernel()?.space;
    let parts = if everything { KernelSpace::collapsible() } else { [Some(range), None] };
    let mut done = Collapses::NONE;
    for part in parts.into_iter().flatten() {
        match space.collapse(this_cpu(), part) {
            Ok(collapsed) => done = done.and(collapsed),
            Err(error) if everything => writeln!(session, "{error}"),
            Err(error) => return Err(Refusal::from(error).into()),
        }
    }
    writeln!(session, "{}", CollapseCounts(done));
    Ok(())
}

/// The pages that hold what was asked for: everything, one address, or from one up to the other.
fn range<'a>(args: &mut Args<'a>) -> Result<(Half, PageRange), Failure<'a>> {
    let mut start = args.optional_address("ADDR")?;
    let mut whose = Half::Kernel;
    // A number that no address of the kernel's can be is a process's.
    if let Some(id) = start.and_then(|word| u32::try_from(word.0).ok()).filter(|&id| id != 0) {
        whose = Half::Process(id);
        start = args.optional_address("ADDR")?;
    }
    let Some(start) = start else {
        return Ok((whose, all_of(whose)?));
    };
    let first = in_half(whose, start)?.align_down(PAGE);
    let last = match args.optional_address("END")? {
        Some(end) if end <= start => return Err(ArgumentError::Backwards { name: "END", start, end }.into()),
        Some(end) => end - 1,
        None => start,
    };
    Ok((whose, PageRange::new(first, (last.align_down(PAGE) - first) + PAGE).map_err(Refusal::from)?))
}

/// All addresses of a half.
pub(super) fn all_of(whose: Half) -> Result<PageRange, Refusal> {
    Ok(match whose {
        Half::Kernel => PageRange::new(UPPER_HALF, UPPER_HALF.0.wrapping_neg()),
        Half::Process(_) => PageRange::new(VirtAddr(0), RESERVED_END.0),
    }?)
}
