//! Commands about the machine as a whole, and about the monitor itself.

use granule_arch::timer::frequency;

use super::accounts::kernel;
use super::parse::{Args, ArgumentError};
use super::{Command, Failure, Session, nearest_command, no_keywords};
use granule::chip::power::Status;
use granule::chip::{log, timer};
use granule::lab;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        words: "[COMMAND]",
        help: "list the commands, or show how one is used",
        run: help,
        complete: |place, take| {
            if place == 0 {
                Command::all().for_each(|command| take(command.name));
            }
        },
    },
    Command {
        name: "features",
        words: "",
        help: "what all CPUs support, and whether live leaves may change size",
        run: features,
        complete: no_keywords,
    },
    Command {
        name: "lab",
        words: "",
        help: "the fixes that boot argument lab= can switch off",
        run: lab,
        complete: no_keywords,
    },
    Command { name: "log", words: "", help: "the last lines that the kernel logged", run: log, complete: no_keywords },
    Command {
        name: "uptime",
        words: "",
        help: "time and instructions since entry, instructions up to the prompt",
        run: uptime,
        complete: no_keywords,
    },
    Command { name: "reboot", words: "", help: "reset the machine", run: reboot, complete: no_keywords },
    Command {
        name: "poweroff",
        words: "",
        help: "end the machine; exit status 0 only if every line was as expected",
        run: poweroff,
        complete: no_keywords,
    },
];

fn help<'a>(session: &mut Session<'_>, mut args: Args<'a>) -> Result<(), Failure<'a>> {
    let Some(word) = args.word() else {
        let longest = Command::all().map(Command::usage_length).max().unwrap_or(0);
        for command in Command::all() {
            write!(session, "{command}");
            (command.usage_length()..longest).for_each(|_| write!(session, " "));
            writeln!(session, "  {}", command.help);
        }
        return Ok(());
    };
    args.finish()?;
    let command = Command::named(word).ok_or_else(|| ArgumentError::Keyword {
        name: "COMMAND",
        word,
        allowed: "the commands that `help` lists",
        nearest: nearest_command(word),
    })?;
    writeln!(session, "usage: {command}\n       {}", command.help);
    Ok(())
}

fn features<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let kernel = kernel()?;
    writeln!(session, "{}", kernel.features());
    writeln!(session, "live mappings    {}", kernel.space.policy());
    Ok(())
}

fn lab<'a>(session: &mut Session<'_>, args: Args<'a>) -> Result<(), Failure<'a>> {
    args.finish()?;
    let active = lab::active();
    for switch in lab::all() {
        let state = if active.contains(switch) { "on" } else { "off" };
        writeln!(session, "{:<20} {state:<4} {:<7} {}", switch.name, switch.witness, switch.effect);
    }
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
