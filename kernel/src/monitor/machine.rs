//! Commands about the machine as a whole, and about the monitor itself.

use super::parse::{Args, ArgumentError};
use super::{Command, Failure, Session, no_keywords};
use crate::nearest::nearest;

pub(super) const COMMANDS: &[Command] = &[Command {
    name: "help",
    words: "[COMMAND]",
    help: "list the commands, or say how one is used",
    run: help,
    complete: |place, take| {
        if place == 0 {
            Command::all().for_each(|command| take(command.name));
        }
    },
}];

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
