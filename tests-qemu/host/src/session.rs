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

    /// A whole boot: the prompt comes, memory is counted, so many CPUs run, and so does a program of the initrd. Returns
    /// the output up to the prompt.
    ///
    /// # Panics
    /// When one of them is missing.
    #[track_caller]
    pub fn assert_runs(&mut self, cpus: u32) -> String {
        let banner = self.prompt().unwrap();
        self.assert_cpus(cpus);
        self.assert_program();
        banner
    }

    /// At the prompt: memory is counted, and so many CPUs run.
    ///
    /// # Panics
    /// When it is not so.
    #[track_caller]
    pub fn assert_cpus(&mut self, cpus: u32) {
        let memory = self.command("mem").unwrap();
        assert!(memory.starts_with("memory    0x") && memory.contains(" free"), "{memory}");
        let listed = self.command("cpus").unwrap();
        let run = listed.lines().filter(|line| line.starts_with("cpu ") && line.ends_with(" runs")).count();
        assert_eq!(run, cpus as usize, "{listed}");
    }

    /// At the prompt: a program of the initrd runs.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn assert_program(&mut self) {
        let hello = self.command("run hello").unwrap();
        assert!(hello.contains("hello from process"), "{hello}");
    }

    /// `poweroff` ends the machine, and QEMU with status 0.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn assert_ends(self) {
        assert_eq!(self.power_off().unwrap(), Some(0));
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
