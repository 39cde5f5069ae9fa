//! Commands that take memory, change what may be done with it, and try.
//!
//! Every access goes through the exception table of `trap::probe`, so any address may be tried: what the machine
//! refuses is the answer, decoded, and the monitor continues.

use granule_arch::addr::VirtAddr;

use super::accounts::plural;
use super::parse::{Args, ArgumentError, Keyword};
use super::{Command, Failure, Refusal, Session, Subject, VmallocError, no_keywords};

/// The most pages that one `vmalloc` takes, and that one `vmap` maps: 4 GiB, more is a typing error.
const MAX_PAGES: u64 = 1 << 20;
/// The most values that one `peek` prints.
const MAX_COUNT: u64 = 4096;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "vmalloc",
        words: "PAGES",
        help: "map fresh pages between guard pages; $ is then their address",
        run: vmalloc,
        complete: no_keywords,
    },
    Command {
        name: "vfree",
        words: "ADDR",
        help: "free the area that vmalloc returned at ADDR",
        run: vfree,
        complete: no_keywords,
    },
    Command {
        name: "vmap",
        words: "PAGES COPIES",
        help: "map fresh pages COPIES times in a row; $ is then their address",
        run: vmap,
        complete: no_keywords,
    },
    Command {
        name: "vunmap",
        words: "ADDR",
        help: "unmap the area that vmap returned at ADDR, and free its pages",
        run: vunmap,
        complete: no_keywords,
    },
    Command {
        name: "set_memory",
        words: "ro|rw|x|nx|rox|valid|invalid ADDR PAGES",
        help: "change the permissions of pages of a vmalloc or vmap area",
        run: set_memory,
        complete: |place, take| offer(place == 0, &PERMISSIONS, take),
    },
    Command {
        name: "peek",
        words: "ADDR [b|h|w|q] [COUNT | = VALUE]",
        help: "read 1, 2, 4 or 8 (q) bytes COUNT times, or check for VALUE",
        run: peek,
        complete: |place, take| offer(place == 1, &WIDTHS, take),
    },
    Command {
        name: "poke",
        words: "ADDR VALUE [b|h|w|q]",
        help: "write 1, 2, 4 or 8 (q) bytes, visible to instruction fetches too",
        run: poke,
        complete: |place, take| offer(place == 2, &WIDTHS, take),
    },
    Command {
        name: "exec",
        words: "ADDR",
        help: "call the code at ADDR, which must return (0xd65f03c0 is `ret`)",
        run: exec,
        complete: no_keywords,
    },
];

/// The permission that `set_memory` gives pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Permission {
    /// `set_memory_ro`
    ReadOnly,
    /// `set_memory_rw`
    ReadWrite,
    /// `set_memory_x`
    Executable,
    /// `set_memory_nx`
    NeverExecutable,
    /// `set_memory_rox`
    ReadOnlyExecutable,
    /// `set_memory_valid(…, 1)`
    Valid,
    /// `set_memory_valid(…, 0)`
    Invalid,
}

const PERMISSIONS: [Keyword<Permission>; 7] = [
    ("ro", Permission::ReadOnly),
    ("rw", Permission::ReadWrite),
    ("x", Permission::Executable),
    ("nx", Permission::NeverExecutable),
    ("rox", Permission::ReadOnlyExecutable),
    ("valid", Permission::Valid),
    ("invalid", Permission::Invalid),
];

/// How many bytes one access takes, by the letter that the A64 instruction has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AccessWidth {
    /// LDRB, STRB
    Byte,
    /// LDRH, STRH
    Half,
    /// LDR, STR of W registers
    Word,
    /// LDR, STR of X registers
    Quad,
}

const WIDTHS: [Keyword<AccessWidth>; 4] =
    [("b", AccessWidth::Byte), ("h", AccessWidth::Half), ("w", AccessWidth::Word), ("q", AccessWidth::Quad)];

impl AccessWidth {
    pub(super) const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Quad => 8,
        }
    }

    /// Values that stand on one line, so that it fits a terminal.
    const fn per_line(self) -> u64 {
        match self {
            Self::Byte | Self::Half => 8,
            Self::Word => 4,
            Self::Quad => 2,
        }
    }

    /// Columns of a value, `0x` included.
    const fn columns(self) -> usize {
        2 + 2 * self.bytes() as usize
    }

    const fn holds(self, value: u64) -> bool {
        value.leading_zeros() >= 64 - 8 * self.bytes()
    }
}

fn offer<T>(here: bool, keywords: &[Keyword<T>], take: &mut dyn FnMut(&'static str)) {
    if here {
        keywords.iter().for_each(|(keyword, _)| take(keyword));
    }
}

fn vmalloc<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let pages = args.number("PAGES", 1..=MAX_PAGES)?;
    args.finish()?;
    let start = session.subject.vmalloc(pages).map_err(Refusal::from)?;
    allocated(session, start, pages)
}

/// `$` is `start` from now on.
fn allocated<'a>(session: &mut Session<'_>, start: VirtAddr, pages: u64) -> Result<(), Failure<'a>> {
    session.allocated = Some(start);
    writeln!(session, "{start} {pages} page{}", plural(pages));
    Ok(())
}

fn vfree<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    unmap(session, args, |subject, start| subject.vfree(start))
}

/// Ends the area at the address that is the only word.
fn unmap<'a>(
    session: &mut Session<'_>,
    mut args: Args<'a>,
    how: fn(&mut dyn Subject, VirtAddr) -> Result<(), VmallocError>,
) -> Result<(), Failure<'a>> {
    let start = args.address("ADDR")?;
    args.finish()?;
    Ok(how(session.subject, start).map_err(Refusal::from)?)
}

fn vmap<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let pages = args.number("PAGES", 1..=MAX_PAGES)?;
    let copies = args.number("COPIES", 1..=MAX_PAGES / pages)?;
    args.finish()?;
    let start = session.subject.vmap(pages, copies)?;
    allocated(session, start, pages * copies)
}

fn vunmap<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    unmap(session, args, |subject, start| subject.vunmap(start))
}

fn set_memory<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let permission = args.keyword("PERMISSION", "ro|rw|x|nx|rox|valid|invalid", &PERMISSIONS)?;
    let start = args.address("ADDR")?;
    // Any count may be asked for: what a range may be is the kernel's to say, and to be tried.
    let pages = args.value("PAGES")?;
    args.finish()?;
    Ok(session.subject.set_memory(permission, start, pages).map_err(Refusal::from)?)
}

fn peek<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let start = args.address("ADDR")?;
    let width = args.optional_keyword(&WIDTHS).unwrap_or(AccessWidth::Quad);
    if args.optional_keyword(&[("=", ())]).is_some() {
        let expected = value(&mut args, width)?;
        args.finish()?;
        let found = session.subject.read(start, width)?;
        if found != expected {
            return Err(Refusal::OtherValue { address: start, found, expected }.into());
        }
        return Ok(());
    }
    let count = if args.is_empty() { 1 } else { args.number("COUNT", 1..=MAX_COUNT)? };
    args.finish()?;
    let last = start
        .checked_add((count - 1) * u64::from(width.bytes()))
        .ok_or(ArgumentError::Wraps { name: "COUNT", start })?;
    let mut address = start;
    loop {
        let line_end = (width.per_line() - 1) * u64::from(width.bytes());
        show_line(session, address, last.0.min(address.0.saturating_add(line_end)), width)?;
        match address.checked_add(line_end + u64::from(width.bytes())) {
            Some(next) if next <= last => address = next,
            _ => return Ok(()),
        }
    }
}

/// Prints the values from `start` to `last`, as many as can be read.
fn show_line(
    session: &mut Session<'_>,
    start: VirtAddr,
    last: u64,
    width: AccessWidth,
) -> Result<(), Failure<'static>> {
    let columns = width.columns();
    for address in (start.0..=last).step_by(width.bytes() as usize).map(VirtAddr) {
        match session.subject.read(address, width) {
            Ok(value) if address == start => write!(session, "{start} {value:#0columns$x}"),
            Ok(value) => write!(session, " {value:#0columns$x}"),
            Err(fault) => {
                if address != start {
                    writeln!(session);
                }
                return Err(Failure::Fault(fault));
            }
        }
    }
    writeln!(session);
    Ok(())
}

fn poke<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let address = args.address("ADDR")?;
    let mut after = args.clone();
    after.value("VALUE")?;
    let width = match after.is_empty() {
        true => AccessWidth::Quad,
        false => after.keyword("WIDTH", "b|h|w|q", &WIDTHS)?,
    };
    let value = value(&mut args, width)?;
    after.finish()?;
    Ok(session.subject.write(address, width, value)?)
}

/// The next word as a value that fits `width`.
fn value<'a>(args: &mut Args<'a>, width: AccessWidth) -> Result<u64, ArgumentError<'a>> {
    let value = args.value("VALUE")?;
    let bytes = width.bytes();
    if width.holds(value) { Ok(value) } else { Err(ArgumentError::TooWide { name: "VALUE", value, bytes }) }
}

fn exec<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let address = args.address("ADDR")?;
    args.finish()?;
    session.subject.execute(address)?;
    writeln!(session, "returned");
    Ok(())
}
