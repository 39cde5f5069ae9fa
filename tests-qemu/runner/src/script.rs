//! Feeds a script to the monitor line by line, and prints the session.
//!
//! A line is typed only when the prompt stands there, and the monitor echoes it, so the transcript reads as if a person
//! had typed it. Three things must agree for a success: no line from the guest that is an error or a fault, no panic,
//! and an exit status of 0 — which the guest, whose boot arguments announce a script, gives only if every line went as
//! expected.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;

use crate::judge::PANIC_MARKER;
use crate::qemu::Qemu;
use crate::serial::{Guest, Limit, Line, Lines, Received};

/// The text that the monitor prints when it waits for a command.
pub const PROMPT: &str = "granule> ";
/// How the one line begins in which a boot ends that cannot go on.
const BOOT_FAILED: &str = "boot failed:";
/// How the line of a fault ends that the script asked for.
const EXPECTED: &str = "(as expected)";
/// Boot arguments for a session from a script.
pub const BOOTARGS: &str = "script semihosting";
/// From the last command to QEMU's end.
const EXIT_LIMIT: Duration = Duration::from_secs(60);
/// Silence after which a board counts as ended by a command for that.
const END_LIMIT: Limit = Limit::Clock(Duration::from_secs(3));

/// The commands of a script: no blank lines, no comments, `poweroff` at the end.
pub fn commands(script: &str) -> Vec<String> {
    let mut commands = lines(script);
    if !commands.last().is_some_and(|command| ends(command)) {
        commands.push("poweroff".into());
    }
    commands
}

/// As [`commands`], without a `poweroff` that the script does not have: a board goes on.
pub fn lines(script: &str) -> Vec<String> {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Whether a command ends the machine.
fn ends(command: &str) -> bool {
    matches!(command.split_whitespace().next(), Some("poweroff" | "reboot"))
}

/// Runs the commands, writes the session to `out`, and returns what went wrong; nothing: success.
///
/// # Errors
/// When QEMU cannot be run or `out` not be written.
pub fn run(qemu: &Qemu, commands: &[String], limit: Limit, out: &mut dyn Write) -> Result<Vec<String>> {
    let mut guest = Guest::start(qemu)?;
    let mut session = Session::new(commands);
    let deadline = guest.deadline(limit);
    // A boot that failed early knows neither the firmware nor the boot arguments: nothing ends the machine.
    while !session.is_hopeless {
        match guest.receive(deadline) {
            Received::Bytes(bytes) => {
                out.write_all(&bytes)?;
                out.flush()?;
                // The monitor echoes the line: it is part of what the machine prints.
                if let Some(command) = session.take_output(&bytes) {
                    guest.send(&format!("{command}\n"));
                }
            }
            Received::Silence => {
                session.wrong.push(format!("the time limit of {} s passed{}", limit.seconds(), session.place()));
                break;
            }
            Received::Closed => {
                match guest.status(EXIT_LIMIT)? {
                    Some(status) if status.success() => {}
                    Some(status) => session.wrong.push(format!("the machine ended with {status}{}", session.place())),
                    None => session.wrong.push("QEMU closed the serial port and goes on".into()),
                }
                if let Some(next) = session.commands.next() {
                    session.wrong.push(format!("the machine ended before `{next}`"));
                }
                break;
            }
        }
    }
    Ok(session.wrong)
}

/// Runs the commands on a board at the end of a line, which has printed `before` already, writes the session to `out`,
/// and returns what went wrong. The board goes on after the last, at its prompt, unless that ends it: then the line has
/// to fall silent.
///
/// # Errors
/// When `out` cannot be written.
pub fn run_over(
    line: &mut dyn Line,
    before: &str,
    commands: &[String],
    limit: Limit,
    out: &mut dyn Write,
) -> Result<Vec<String>> {
    let mut session = Session::new(commands);
    let mut received = Received::Bytes(before.as_bytes().to_vec());
    let deadline = line.deadline(limit);
    while let Received::Bytes(bytes) = received {
        out.write_all(&bytes)?;
        out.flush()?;
        if let Some(command) = session.take_output(&bytes) {
            line.send(&format!("{command}\n"));
        }
        if session.is_hopeless || session.is_over {
            return Ok(session.wrong);
        }
        let has_ended = session.commands.len() == 0 && session.last.is_some_and(ends);
        received = line.receive(if has_ended { line.deadline(END_LIMIT) } else { deadline });
        if has_ended && matches!(received, Received::Silence | Received::Closed) {
            return Ok(session.wrong);
        }
    }
    let limit = limit.seconds();
    session.wrong.push(match received {
        Received::Closed => format!("the line was closed{}", session.place()),
        _ => format!("the time limit of {limit} s passed{}", session.place()),
    });
    Ok(session.wrong)
}

struct Session<'a> {
    commands: std::slice::Iter<'a, String>,
    lines: Lines,
    last: Option<&'a str>,
    wrong: Vec<String>,
    is_hopeless: bool,
    /// The prompt has come back after the last command.
    is_over: bool,
}

impl<'a> Session<'a> {
    fn new(commands: &'a [String]) -> Self {
        Self {
            commands: commands.iter(),
            lines: Lines::default(),
            last: None,
            wrong: Vec::new(),
            is_hopeless: false,
            is_over: false,
        }
    }

    /// Takes what the machine printed; the next command, if it now waits for one.
    fn take_output(&mut self, bytes: &[u8]) -> Option<&'a str> {
        // Output that comes while the monitor waits stands after the prompt, or before it: in its line all the same.
        let mut prompted = false;
        for line in self.lines.feed(bytes) {
            prompted |= line.contains(PROMPT);
            if line.starts_with(BOOT_FAILED) {
                self.wrong.push(line);
                self.is_hopeless = true;
            } else if line.starts_with("error:") || line.starts_with("fault:") && !line.ends_with(EXPECTED) {
                self.wrong.push(format!("{line}{}", self.place()));
            } else if line.contains(PANIC_MARKER) {
                self.wrong.push(format!("the kernel panicked{}", self.place()));
            }
        }
        if self.lines.partial().contains(PROMPT) {
            prompted = true;
            // So that the same prompt is not answered twice.
            self.lines.feed(b"\n");
        }
        if !prompted {
            return None;
        }
        self.last = self.commands.next().map(String::as_str);
        self.is_over = self.last.is_none();
        self.last
    }

    fn place(&self) -> String {
        self.last.map_or_else(|| " before the first command".into(), |command| format!(" in `{command}`"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Session, commands, run};
    use crate::qemu::Qemu;
    use crate::serial::Limit;

    /// The failures of a session with a machine that is this shell script.
    fn wrong_with(machine: &str, limit: Limit) -> Vec<String> {
        run(&Qemu::stand_in("sh", &["-c", machine]), &commands("mem"), limit, &mut std::io::sink()).unwrap()
    }

    #[test]
    fn a_machine_that_says_nothing_or_never_pauses_runs_into_the_time_limit() {
        for machine in ["exec sleep 100", "while :; do echo more; done"] {
            let wrong = wrong_with(machine, Limit::Clock(Duration::from_secs(1)));
            assert_eq!(wrong, ["the time limit of 1 s passed before the first command"], "{machine}");
        }
    }

    #[test]
    fn a_boot_that_failed_is_not_waited_for() {
        let wrong = wrong_with("echo 'boot failed: no device tree'; exec sleep 100", Limit::work(60));
        assert_eq!(wrong, ["boot failed: no device tree"]);
    }

    #[test]
    fn comments_and_blanks_are_not_typed_and_poweroff_is_added() {
        assert_eq!(commands("# hello\n\n  mem \nwalk 0x1\n"), ["mem", "walk 0x1", "poweroff"]);
        assert_eq!(commands("mem\npoweroff"), ["mem", "poweroff"]);
        assert_eq!(commands(""), ["poweroff"]);
    }

    #[test]
    fn a_command_is_typed_at_the_prompt_only_and_errors_are_counted() {
        let script = commands("peek 1\nmem");
        let mut session = Session::new(&script);
        assert_eq!(session.take_output(b"Granule boots\r\ngranule"), None);
        assert_eq!(session.take_output(b"> "), Some("peek 1"));
        assert_eq!(session.take_output(b"error: not mapped\r\n"), None);
        assert_eq!(session.wrong, ["error: not mapped in `peek 1`"]);
        assert_eq!(session.take_output(b"granule> "), Some("mem"));
        assert_eq!(session.take_output(b"mem\r\n"), None);
        session.take_output(b"fault: permission fault (as expected)\r\nfault: translation fault\r\n");
        assert_eq!(session.wrong[1..], ["fault: translation fault in `mem`"]);
    }

    #[test]
    fn a_prompt_is_answered_once_whatever_else_is_printed_in_its_line() {
        let script = commands("a\nb\nc\nd");
        let mut session = Session::new(&script);
        assert_eq!(session.take_output(b"granule> notify 1: release\r\n"), Some("a"));
        assert_eq!(session.take_output(b"notify 1: end\r\na\r\n"), None);
        assert_eq!(session.take_output(b"no end of linegranule> "), Some("b"));
        assert_eq!(session.take_output(b"notify 2"), None);
        assert_eq!(session.take_output(b": release\r\nb\r\ngranule> notify 3"), Some("c"));
        assert_eq!(session.take_output(b": release\r\nc\r\n[1.2] warning: late\r\ngran"), None);
        assert_eq!(session.take_output(b"ule> [1.3]"), Some("d"));
    }
}
