//! A machine that a test talks to.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use granule_runner::machine::Machine;
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;
use granule_runner::serial::{Guest, Limit, Line, Received};

/// How long a boot or a command may take.
const LIMIT: Limit = Limit::work(30);
/// From `poweroff` to QEMU's end.
const EXIT_LIMIT: Duration = Duration::from_secs(60);

/// A machine, and all that it has printed.
#[derive(Debug)]
pub struct Session {
    guest: Guest,
    transcript: String,
    /// How much of the transcript has been taken.
    taken: usize,
}

impl Session {
    /// Starts a kernel with the boot arguments of a scripted session and `append`.
    ///
    /// # Errors
    /// When QEMU cannot be run.
    pub fn start(machine: &Machine, kernel: &Path, append: &str, extra: &[OsString]) -> Result<Self> {
        let bootargs = format!("{} {append}", script::BOOTARGS);
        Self::of(&Qemu::new(machine, kernel, Serial::Pipes, Reset::Ends, bootargs.trim(), extra))
    }

    /// Starts a command line.
    ///
    /// # Errors
    /// When QEMU cannot be run.
    pub fn of(qemu: &Qemu) -> Result<Self> {
        Ok(Self { guest: Guest::start(qemu)?, transcript: String::new(), taken: 0 })
    }

    /// Waits for `text` and returns what came since the last wait, `text` included.
    ///
    /// # Errors
    /// When the machine ends or stays silent instead: with all that it printed.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let deadline = self.guest.deadline(LIMIT);
        loop {
            if let Some(at) = self.transcript[self.taken..].find(text) {
                let end = self.taken + at + text.len();
                let received = self.transcript[self.taken..end].to_owned();
                self.taken = end;
                return Ok(received);
            }
            match self.guest.receive(deadline) {
                Received::Bytes(bytes) => self.transcript.push_str(&String::from_utf8_lossy(&bytes).replace('\r', "")),
                Received::Closed => {
                    bail!("the machine ended before it printed {text:?}; it printed:\n{}", self.transcript)
                }
                Received::Silence => bail!("no {text:?} in {} s; printed:\n{}", LIMIT.seconds(), self.transcript),
            }
        }
    }

    /// Waits for the prompt.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn prompt(&mut self) -> Result<String> {
        self.wait_for(script::PROMPT)
    }

    /// Types a command and returns what it printed.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.guest.send(&format!("{command}\n"));
        let received = self.prompt()?;
        let received = received.trim_end_matches(script::PROMPT);
        // The monitor echoes the line first.
        Ok(received.strip_prefix(command).unwrap_or(received).trim_start().to_owned())
    }

    /// Types text, whatever the machine is doing.
    pub fn send(&mut self, text: &str) {
        self.guest.send(text);
    }

    /// Switches the machine off and returns QEMU's exit status; `None` if it did not end.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn power_off(mut self) -> Result<Option<i32>> {
        self.guest.send("poweroff\n");
        Ok(self.guest.status(EXIT_LIMIT)?.and_then(|status| status.code()))
    }
}
