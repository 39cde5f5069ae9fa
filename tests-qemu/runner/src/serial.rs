//! A machine that runs: QEMU as a child process, its serial port on pipes.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::qemu::Qemu;

/// What came from the machine.
#[derive(Debug)]
pub enum Received {
    /// Bytes from the serial port, or from QEMU's standard error.
    Bytes(Vec<u8>),
    /// The port is closed: QEMU has ended or is about to.
    Closed,
    /// Nothing until the deadline; or the deadline has passed, whatever the machine goes on to print.
    Silence,
}

/// Pieces of output that wait for their reader. A machine that prints faster than it is read is held up, not stored.
const PIECES: usize = 64;

/// Where a piece comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Serial,
    Errors,
}

/// A running QEMU. Dropping it ends the process: no machine outlives its test.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<(Source, Vec<u8>)>,
    merged: Merged,
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
        let pipes: [(Source, Option<Box<dyn Read + Send>>); 2] = [
            (Source::Serial, child.stdout.take().map(|pipe| Box::new(pipe) as _)),
            (Source::Errors, child.stderr.take().map(|pipe| Box::new(pipe) as _)),
        ];
        for (source, pipe) in pipes {
            let (Some(mut pipe), sender) = (pipe, sender.clone()) else { continue };
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length) = pipe.read(&mut buffer) {
                    if length == 0 || sender.send((source, buffer[..length].to_vec())).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, input, output, merged: Merged::default() })
    }

    /// The next output of the machine.
    pub fn receive(&mut self, deadline: Instant) -> Received {
        let left = deadline.saturating_duration_since(Instant::now());
        // Asked first: a machine that never pauses would outlive every limit.
        if left.is_zero() {
            return Received::Silence;
        }
        let received = match self.output.recv_timeout(left) {
            Ok((Source::Serial, bytes)) => return Received::Bytes(self.merged.serial(bytes)),
            Ok((Source::Errors, bytes)) => return Received::Bytes(self.merged.errors(&bytes)),
            Err(RecvTimeoutError::Timeout) => Received::Silence,
            Err(RecvTimeoutError::Disconnected) => Received::Closed,
        };
        match self.merged.rest() {
            rest if rest.is_empty() => received,
            rest => Received::Bytes(rest),
        }
    }

    /// Types text on the serial port. A machine that is gone does not get it: the next [`Self::receive`] returns
    /// [`Received::Closed`].
    pub fn send(&mut self, text: &str) {
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

/// QEMU's standard error among the machine's output: between its lines, never in one.
#[derive(Debug, Default)]
struct Merged {
    /// The machine is in the middle of a line.
    in_line: bool,
    errors: Vec<u8>,
}

impl Merged {
    fn serial(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') {
            bytes.splice(end + 1..end + 1, self.whole_errors());
        }
        self.in_line = bytes.last().map_or(self.in_line, |&last| last != b'\n');
        bytes
    }

    fn errors(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.errors.extend_from_slice(bytes);
        if self.in_line { Vec::new() } else { self.whole_errors() }
    }

    /// The lines that are complete.
    fn whole_errors(&mut self) -> Vec<u8> {
        let end = self.errors.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.errors.drain(..end).collect()
    }

    /// What is left, when the machine's output has ended.
    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.errors)
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

    use super::{Guest, Lines, Merged, Received};
    use crate::qemu::Qemu;

    #[test]
    fn a_machine_that_never_pauses_reaches_its_deadline() {
        let mut guest = Guest::start(&Qemu::stand_in("sh", &["-c", "while :; do echo more; done"])).unwrap();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(200);
        while !matches!(guest.receive(deadline), Received::Silence) {
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

    #[test]
    fn what_qemu_complains_of_does_not_cut_a_line_of_the_machine() {
        let mut merged = Merged::default();
        assert_eq!(merged.errors(b"early\n"), b"early\n");
        assert_eq!(merged.serial(b"one\n@gran".into()), b"one\n@gran");
        assert_eq!(merged.errors(b"bogus\nand "), b"");
        assert_eq!(merged.serial(b"ule ".into()), b"ule ");
        assert_eq!(merged.serial(b"pass\nnext\nthe".into()), b"pass\nnext\nbogus\nthe");
        assert_eq!(merged.serial(b" end\n".into()), b" end\n");
        assert_eq!(merged.errors(b"more\nha"), b"and more\n");
        assert_eq!(merged.rest(), b"ha");
    }

    #[test]
    fn what_a_machine_says_last_is_received() {
        let machine = "printf 'the prompt> '; sleep 0.1; echo 'killed' >&2; exit 1";
        let mut guest = Guest::start(&Qemu::stand_in("sh", &["-c", machine])).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut received = Vec::new();
        while let Received::Bytes(bytes) = guest.receive(deadline) {
            received.extend(bytes);
        }
        assert_eq!(received, b"the prompt> killed\n");
    }
}
