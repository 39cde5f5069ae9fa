//! A machine that runs: QEMU as a child process, its serial port on pipes.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::qemu::Qemu;

/// What came from the machine.
#[derive(Debug)]
pub enum Heard {
    /// Bytes from the serial port, or from QEMU's standard error.
    Bytes(Vec<u8>),
    /// The port is closed: QEMU has ended or is about to.
    Closed,
    /// Nothing until the deadline; or the deadline has passed, whatever the machine goes on to say.
    Silence,
}

/// Pieces of output that wait for their reader. A machine that prints faster than it is read is held up, not stored.
const PIECES: usize = 64;

/// A running QEMU. Dropping it ends the process: no machine outlives its test.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
}

impl Guest {
    /// Starts QEMU.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn start(qemu: &Qemu) -> Result<Self> {
        let mut command = qemu.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {qemu}"))?;
        let input = child.stdin.take();
        let (sender, output) = sync_channel(PIECES);
        let pipes: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|pipe| Box::new(pipe) as _), child.stderr.take().map(|pipe| Box::new(pipe) as _)];
        for mut pipe in pipes.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length) = pipe.read(&mut buffer) {
                    if length == 0 || sender.send(buffer[..length].to_vec()).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, input, output })
    }

    /// The next thing that the machine says.
    pub fn hear(&mut self, deadline: Instant) -> Heard {
        let left = deadline.saturating_duration_since(Instant::now());
        // Asked first: a machine that never pauses would outlive every limit.
        if left.is_zero() {
            return Heard::Silence;
        }
        match self.output.recv_timeout(left) {
            Ok(bytes) => Heard::Bytes(bytes),
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
            Err(RecvTimeoutError::Disconnected) => Heard::Closed,
        }
    }

    /// Types text on the serial port. A machine that is gone does not hear it, which the next [`Self::hear`] tells.
    pub fn say(&mut self, text: &str) {
        if let Some(input) = &mut self.input {
            let _ = input.write_all(text.as_bytes()).and_then(|()| input.flush());
        }
    }

    /// How QEMU ended; `None` if it still runs when the time is up.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn status(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only where the process has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cuts bytes into lines; the carriage returns of a serial line go.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// The lines that these bytes complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned()),
                b'\r' => {}
                _ => self.partial.push(byte),
            }
        }
        lines
    }

    /// What stands after the last end of line.
    pub fn partial(&self) -> String {
        String::from_utf8_lossy(&self.partial).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Guest, Heard, Lines};
    use crate::qemu::Qemu;

    #[test]
    fn a_machine_that_never_pauses_reaches_its_deadline() {
        let mut guest = Guest::start(&Qemu::stand_in("sh", &["-c", "while :; do echo more; done"])).unwrap();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(200);
        while !matches!(guest.hear(deadline), Heard::Silence) {
            assert!(start.elapsed() < Duration::from_secs(20), "it is listened to for ever");
        }
    }

    #[test]
    fn lines_are_cut_wherever_the_bytes_are() {
        let mut lines = Lines::default();
        assert!(lines.feed(b"one").is_empty());
        assert_eq!(lines.feed(b" a\r\n\ntw"), ["one a", ""]);
        assert_eq!(lines.partial(), "tw");
        assert_eq!(lines.feed(b"o\xff\n"), ["two\u{fffd}"]);
    }
}
