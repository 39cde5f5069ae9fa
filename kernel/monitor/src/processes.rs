//! Commands about programs: starting them, ending them, and looking into their spaces.

use core::fmt;

use granule_arch::descriptor::Protection;
use granule_pgtable::Size;

use super::parse::{Args, ArgumentError};
use super::{Command, Failure, Refusal, Session, no_keywords};
use granule::linux::file::initrd;
use granule::linux::process::signal::Signal;
use granule::linux::process::stack::Words;
use granule::linux::process::status::{ProcessEnd, Summary};
use granule::mm::space::{Area, Moved, RESERVED_END};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "run",
        words: "FILE [ARGS] [&]",
        help: "run a program to its end, or to Ctrl-C; with & without waiting",
        run,
        complete: |place, take| {
            if place == 0 {
                offer_programs(initrd::archive(), take);
            }
        },
    },
    Command { name: "ls", words: "", help: "the programs of the initrd: bytes, name", run: ls, complete: no_keywords },
    Command { name: "ps", words: "", help: "the processes", run: ps, complete: no_keywords },
    Command {
        name: "wait",
        words: "PID",
        help: "wait for a process that was run with &; Ctrl-C interrupts it",
        run: wait,
        complete: no_keywords,
    },
    Command {
        name: "kill",
        words: "PID [SIGNAL]",
        help: "send a process a signal, by its number; 9 if none is given",
        run: kill,
        complete: no_keywords,
    },
    Command { name: "maps", words: "PID", help: "the areas of a process's space", run: maps, complete: no_keywords },
    Command {
        name: "migrate",
        words: "PID ADDR",
        help: "move the page or block that a process has there to other frames",
        run: migrate,
        complete: no_keywords,
    },
    Command {
        name: "notify",
        words: "trace PID",
        help: "print the calls of a process's notifiers; again to stop",
        run: notify,
        complete: |place, take| {
            if place == 0 {
                take("trace");
            }
        },
    },
];

fn run<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let file = args.word().ok_or(ArgumentError::Missing("FILE"))?;
    let mut words = Words::new();
    words.argument(file.as_bytes()).map_err(Refusal::Errno)?;
    let mut waits = true;
    while let Some(word) = args.word() {
        if word == "&" {
            waits = false;
            break;
        }
        words.argument(word.as_bytes()).map_err(Refusal::Errno)?;
    }
    args.finish()?;
    let id = session.subject.start(file, words).map_err(Refusal::Exec)?;
    if !waits {
        writeln!(session, "process {id}");
        return Ok(());
    }
    collect(session, id)
}

/// Offers the names of the programs that can be typed as one word.
fn offer_programs(archive: &'static [u8], take: &mut dyn FnMut(&'static str)) {
    let names = initrd::programs(archive).map_while(Result::ok).map(|file| file.name);
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')).for_each(take);
}

fn ls<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    for file in initrd::programs(session.subject.programs()) {
        let file = file.map_err(Refusal::Archive)?;
        writeln!(session, "{:>8}  {}", file.contents.len(), file.name.escape_debug());
    }
    Ok(())
}

fn wait<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let id = process(&mut args)?;
    args.finish()?;
    collect(session, id)
}

/// Waits for a process. Only one that exits with 0 is a success.
fn collect<'a>(session: &mut Session<'_>, id: u32) -> Result<(), Failure<'a>> {
    match session.subject.wait(id) {
        Some(ProcessEnd::Exited(0)) => Ok(()),
        Some(status) => Err(Refusal::Ended { id, status }.into()),
        None => Err(Refusal::NoProcess(id).into()),
    }
}

fn ps<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let screen = &mut *session.screen;
    let mut any = false;
    session.subject.processes(&mut |summary: &Summary| {
        if !core::mem::replace(&mut any, true) {
            let _ = writeln!(screen, "{:>6} {:>6} {:>7}  {:<15} STATE", "PID", "PARENT", "THREADS", "NAME");
        }
        let Summary { id, parent, life, threads, name } = summary;
        // A name is padded as text, which its `Display` is not.
        let mut text = heapless::String::<80>::new();
        let _ = fmt::Write::write_fmt(&mut text, format_args!("{name}"));
        let _ = writeln!(screen, "{id:>6} {parent:>6} {threads:>7}  {text:<15} {life}");
    });
    if !any {
        writeln!(session, "there are no processes");
    }
    Ok(())
}

fn kill<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let id = process(&mut args)?;
    let signal = if args.is_empty() { Signal::KILL } else { signal(&mut args)? };
    args.finish()?;
    Ok(session.subject.kill(id, signal).map_err(|_| Refusal::NoProcess(id))?)
}

fn signal<'a>(args: &mut Args<'a>) -> Result<Signal, ArgumentError<'a>> {
    let last = u64::from(granule_abi::signal::SIGNALS);
    let value = args.number("SIGNAL", 1..=last)?;
    Signal::new(value).ok_or(ArgumentError::OutOfRange { name: "SIGNAL", value, first: 1, last })
}

fn maps<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let id = process(&mut args)?;
    args.finish()?;
    let screen = &mut *session.screen;
    let (mut areas, mut bytes) = (0, 0);
    let found = session.subject.areas(id, &mut |area| {
        areas += 1;
        bytes += area.size();
        let _ = writeln!(screen, "{}", AreaLine(area));
    });
    found.ok_or(Refusal::NoProcess(id))?;
    writeln!(session, "total {} in {areas} areas", Size(bytes));
    Ok(())
}

fn migrate<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let id = process(&mut args)?;
    let address = args.address("ADDR")?;
    args.finish()?;
    if address >= RESERVED_END {
        return Err(Refusal::NotUser(address).into());
    }
    let Moved { from, to, bytes } = session.subject.migrate(id, address)?;
    writeln!(session, "{} at {address} moved from {from} to {to}", Size(bytes));
    Ok(())
}

fn notify<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    args.keyword("trace", "trace", &[("trace", ())])?;
    let id = process(&mut args)?;
    args.finish()?;
    let begins = session.subject.trace(id)?;
    writeln!(session, "the notifiers of process {id} are {}traced", if begins { "" } else { "no longer " });
    Ok(())
}

/// The number of a process.
pub(super) fn process<'a>(args: &mut Args<'a>) -> Result<u32, ArgumentError<'a>> {
    args.number("PID", 1..=u64::from(u32::MAX)).map(|number| number as u32)
}

/// An area as Linux's /proc/PID/maps has it.
struct AreaLine<'a>(&'a Area);

impl fmt::Display for AreaLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = self.0;
        let [read, write, execute, shared] = area.letters();
        let size = Size(area.size());
        write!(f, "{:#014x}-{:#014x} {read}{write}{execute}{shared} {size:>8}", area.start().0, area.end().0)?;
        if area.is_shared() {
            write!(f, " from page {}", area.page_at(area.start()))?;
        }
        if area.protection().contains(Protection::TAGGED) {
            f.write_str(" tagged")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::offer_programs;
    use crate::tests::{archive, entries};

    #[test]
    fn names_that_can_be_typed_are_offered_until_the_archive_is_broken() {
        let names = ["hello", "two words", "\u{e9}t\u{e9}", "a\x1b[2J", "a#b", "dir/spin"];
        let mut broken = entries(&names.map(|name| (name, 0o100_755)));
        broken.extend(entries(&[("data", 0o100_644)]));
        broken.extend_from_slice(b"broken");
        let mut offered = std::vec::Vec::new();
        offer_programs(broken.leak(), &mut |name| offered.push(name));
        offer_programs(archive().leak(), &mut |name| offered.push(name));
        assert_eq!(offered, ["hello", "dir/spin", "bin/one"]);
    }
}
