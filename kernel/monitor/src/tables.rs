//! Commands that read the kernel's page tables: one address level by level, or all of them as ranges.
//!
//! Both read the live tables without a lock, each entry once; what other CPUs change meanwhile may show half old, half
//! new.

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Kind, MemoryType};
use granule_pgtable::{Geometry, Granule4K, PageRange, Step};

use super::parse::{Args, ArgumentError};
use super::processes::process;
use super::{Command, Failure, Half, Refusal, Session, no_keywords};
use granule::mm::layout;
use granule::mm::space::RESERVED_END;

const PAGE: u64 = PAGE_SIZE as u64;
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
        words: "[PID] [ADDR [END]]",
        help: "ranges of like leaves: all, the one at ADDR, or ADDR up to END",
        run: ptdump,
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

/// What the subject found, if there is such a process.
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
    args.finish()?;
    let screen = &mut *session.screen;
    let mut region = "";
    let totals = session.subject.dump(whose, range, &mut |extent| {
        let here = layout::region_name(extent.start);
        if core::mem::replace(&mut region, here) != here {
            let _ = writeln!(screen, "---[ {here} ]---");
        }
        let _ = writeln!(screen, "{}", extent);
    });
    let totals = check_found(whose, totals)?;
    writeln!(session, "{totals}");
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
        let all = match whose {
            Half::Kernel => PageRange::new(UPPER_HALF, UPPER_HALF.0.wrapping_neg()),
            Half::Process(_) => PageRange::new(VirtAddr(0), RESERVED_END.0),
        };
        return Ok((whose, all.map_err(Refusal::from)?));
    };
    let first = in_half(whose, start)?.align_down(PAGE);
    let last = match args.optional_address("END")? {
        Some(end) if end <= start => return Err(ArgumentError::Backwards { name: "END", start, end }.into()),
        Some(end) => end - 1,
        None => start,
    };
    Ok((whose, PageRange::new(first, (last.align_down(PAGE) - first) + PAGE).map_err(Refusal::from)?))
}
