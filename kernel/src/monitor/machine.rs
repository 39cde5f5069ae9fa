//! Commands about the machine as a whole, and about the monitor itself.

use granule_arch::timer::frequency;

use super::parse::{Args, ArgumentError};
use super::{Command, Failure, Session, no_keywords};
use crate::drivers::power::Status;
use crate::drivers::{log, timer};
use crate::nearest::nearest;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        words: "[COMMAND]",
        help: "list the commands, or say how one is used",
        run: help,
        complete: |place, take| {
            if place == 0 {
                Command::all().for_each(|command| take(command.name));
            }
        },
    },
    Command { name: "log", words: "", help: "the last lines that the kernel logged", run: log, complete: no_keywords },
    Command {
        name: "uptime",
        words: "",
        help: "time since the kernel was entered, and the instructions retired since then and up to the prompt",
        run: uptime,
        complete: no_keywords,
    },
    Command { name: "reboot", words: "", help: "start the machine anew", run: reboot, complete: no_keywords },
    Command {
        name: "poweroff",
        words: "",
        help: "end the machine; its exit status says whether every line was as expected",
        run: poweroff,
        complete: no_keywords,
    },
];

fn help<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let Some(word) = args.word() else {
        for command in Command::all() {
            writeln!(session, "{:<44} {}", format_args!("{command}"), command.help);
        }
        return Ok(());
    };
    args.finish()?;
    let nearest = || nearest(word, Command::all().map(|command| command.name));
    let command = Command::named(word).ok_or_else(|| ArgumentError::Keyword {
        name: "COMMAND",
        word,
        allowed: "the commands that `help` lists",
        nearest: nearest(),
    })?;
    writeln!(session, "usage: {command}\n       {}", command.help);
    Ok(())
}

fn log<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let (mut position, mut line) = (0, [0; log::LINE]);
    while let Some((text, next)) = log::read(position, &mut line) {
        // A line that was cut in the middle of a character has a stray byte at an end.
        for chunk in text.utf8_chunks() {
            write!(session, "{}", chunk.valid());
        }
        position = next;
    }
    Ok(())
}

fn uptime<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let time = timer::uptime();
    let (seconds, microseconds) = (time.as_secs(), time.subsec_micros());
    writeln!(session, "up {seconds}.{microseconds:06} s by a counter of {} Hz", frequency());
    match timer::instructions() {
        Some(instructions) => writeln!(session, "{instructions} instructions retired on this CPU"),
        None => writeln!(session, "this CPU does not count instructions"),
    }
    if let Some(instructions) = session.boot_instructions {
        writeln!(session, "boot to prompt: {instructions} instructions");
    }
    Ok(())
}

fn reboot<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    session.subject.reset();
    Ok(())
}

fn poweroff<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let status = if session.failures == 0 { Status::Success } else { Status::Failure };
    session.subject.power_off(status);
    Ok(())
}
