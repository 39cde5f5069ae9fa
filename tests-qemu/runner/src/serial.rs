//! A machine that runs, and the line to its console: QEMU as a child process with its serial port on pipes, or a serial port
//! of this host with a board behind it.
//!
//! The time limits of tests count QEMU's own CPU time: a busy host makes a test longer by the clock, and a test that
//! hangs is not longer for it.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serial2::SerialPort;

use crate::qemu::Qemu;
use crate::usage;

/// The line to a machine's console.
pub trait Line {
    /// When `limit` is over that begins now.
    fn deadline(&self, limit: Limit) -> Deadline;

    /// The time by which silence is measured, and what is said again is said; a double of a line has its own.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// The next output of the machine.
    fn receive(&mut self, deadline: Deadline) -> Received;

    /// Types text on the serial port. A machine that is gone does not get it: the next [`Self::receive`] returns
    /// [`Received::Closed`].
    fn send(&mut self, text: &str);
}

/// Input from the machine.
#[derive(Debug)]
pub enum Received {
    /// Bytes from the serial port, or from QEMU's standard error.
    Bytes(Vec<u8>),
    /// The port is closed: QEMU has ended or is about to, or the host's port is gone.
    Closed,
    /// Nothing until the deadline; or the deadline has passed, whatever the machine goes on to print.
    Silence,
}

/// How long a machine may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// By the clock, for a person who waits.
    Clock(Duration),
    /// QEMU's own CPU time, for each CPU of the machine; a machine that stands still, and one whose CPU time this host
    /// does not see, has [`STANDING_STILL`] times as long by the clock.
    Work(Duration),
}

/// How much longer a machine may take that uses no CPU time, or on a host that does not let it run.
pub const STANDING_STILL: u32 = 10;
/// How often the CPU time is looked at while a machine prints nothing.
const POLL: Duration = Duration::from_millis(50);

impl Limit {
    /// `seconds` of work.
    pub const fn work(seconds: u64) -> Self {
        Self::Work(Duration::from_secs(seconds))
    }

    /// The seconds, as reports name them.
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Clock(limit) | Self::Work(limit) => limit.as_secs(),
        }
    }
}

/// When a [`Limit`] that began at some moment is over: the first of the two.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    clock: Instant,
    /// QEMU's CPU time since its start.
    work: Option<Duration>,
}

impl Deadline {
    /// The deadline of a limit which begins `now`, for a machine of so many CPUs that took `work` until now.
    pub(crate) fn new(limit: Limit, now: Instant, work: Option<Duration>, cpus: u32) -> Self {
        match limit {
            Limit::Clock(limit) => Self { clock: now + limit, work: None },
            Limit::Work(limit) => {
                Self { clock: now + STANDING_STILL * limit, work: work.map(|work| work + cpus * limit) }
            }
        }
    }

    /// Whether it has passed for a machine that took `work` until `now`.
    pub(crate) fn has_passed(self, now: Instant, work: impl FnOnce() -> Option<Duration>) -> bool {
        now >= self.clock || self.work.is_some_and(|limit| work().is_some_and(|work| work >= limit))
    }
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
    /// CPUs of the machine.
    cpus: u32,
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
        Ok(Self { child, cpus: qemu.cpus(), input, output, merged: Merged::default() })
    }

    /// CPUs of the machine.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// QEMU's CPU time until now, of all its threads; `None` if it is gone.
    pub fn work(&self) -> Option<Duration> {
        usage::work(self.child.id())
    }

    /// The most memory that QEMU had until now, in bytes; `None` if it is gone.
    pub fn memory(&self) -> Option<u64> {
        usage::memory(self.child.id())
    }

    /// How QEMU ended; `None` if it still runs when the time is up.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn status(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        status_within(&mut self.child, limit)
    }
}

/// How a process ended; `None` if it still runs when the time is up.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn status_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Line for Guest {
    fn deadline(&self, limit: Limit) -> Deadline {
        Deadline::new(limit, Instant::now(), self.work(), self.cpus)
    }

    fn receive(&mut self, deadline: Deadline) -> Received {
        let received = loop {
            // Asked first: a machine that never pauses would outlive every limit.
            if deadline.has_passed(Instant::now(), || self.work()) {
                break Received::Silence;
            }
            match self.output.recv_timeout(deadline.clock.saturating_duration_since(Instant::now()).min(POLL)) {
                Ok((Source::Serial, bytes)) => return Received::Bytes(self.merged.serial(bytes)),
                Ok((Source::Errors, bytes)) => return Received::Bytes(self.merged.errors(&bytes)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Received::Closed,
            }
        };
        match self.merged.rest() {
            rest if rest.is_empty() => received,
            rest => Received::Bytes(rest),
        }
    }

    fn send(&mut self, text: &str) {
        if let Some(input) = &mut self.input {
            let _ = input.write_all(text.as_bytes()).and_then(|()| input.flush());
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

/// A serial port of this host, or one end of a pseudo terminal, with a board behind it.
#[derive(Debug)]
pub struct Port(SerialPort);

impl Port {
    /// Opens the port of that name, with 8 data bits, no parity, one stop bit and no flow control.
    ///
    /// # Errors
    /// When there is no such port, or it has not that speed, in bits per second.
    pub fn open(name: &Path, baud: u32) -> Result<Self> {
        let mut port = SerialPort::open(name, baud).with_context(|| format!("cannot open {}", name.display()))?;
        port.set_read_timeout(POLL)?;
        Ok(Self(port))
    }

    /// Forgets all that was received before a reset.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn discard_input(&self) -> Result<()> {
        Ok(self.0.discard_input_buffer()?)
    }
}

impl Line for Port {
    fn deadline(&self, limit: Limit) -> Deadline {
        Deadline::new(limit, Instant::now(), None, 1)
    }

    fn receive(&mut self, deadline: Deadline) -> Received {
        let mut buffer = [0; 4096];
        // Asked first, as of a machine that never pauses.
        while !deadline.has_passed(Instant::now(), || None) {
            match self.0.read(&mut buffer) {
                Ok(0) => return Received::Closed,
                Ok(length) => return Received::Bytes(buffer[..length].to_vec()),
                Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => return Received::Closed,
            }
        }
        Received::Silence
    }

    fn send(&mut self, text: &str) {
        // Not flushed: that waits until all has left, for ever where nothing takes it.
        let _ = self.0.write_all(text.as_bytes());
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

    /// The bytes that are left, when the machine's output has ended.
    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.errors)
    }
}

/// Bytes of a line: a longer one is cut into several.
const MAX_LINE: usize = 64 << 10;

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
            if self.partial.len() >= MAX_LINE {
                lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned());
            }
        }
        lines
    }

    /// The text after the last end of line.
    pub fn partial(&self) -> String {
        String::from_utf8_lossy(&self.partial).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Deadline, Guest, Limit, Line, Lines, Merged, Received};
    use crate::qemu::Qemu;

    fn shell(script: &str) -> Guest {
        Guest::start(&Qemu::stand_in("sh", &["-c", script])).unwrap()
    }

    #[test]
    fn a_machine_that_never_pauses_reaches_its_deadline() {
        for limit in [Limit::Clock(Duration::from_millis(200)), Limit::Work(Duration::from_millis(200))] {
            let mut guest = shell("while :; do echo more; done");
            let deadline = guest.deadline(limit);
            while !matches!(guest.receive(deadline), Received::Silence) {}
        }
    }

    #[test]
    fn a_machine_that_computes_in_silence_reaches_its_deadline_by_its_work() {
        let mut guest = shell("while :; do :; done");
        // On a busy host it may get so little of a CPU that the clock comes first: with a longer limit less likely.
        let by_work = (0..8).map(|doubled| Duration::from_millis(100 << doubled)).any(|limit| {
            let (before, deadline) = (guest.work().unwrap(), guest.deadline(Limit::Work(limit)));
            assert!(matches!(guest.receive(deadline), Received::Silence));
            guest.work().unwrap() - before >= limit
        });
        assert!(by_work, "by the clock");
    }

    /// On a busy host a machine waits for its turn: that is not its time.
    #[test]
    fn time_that_a_machine_does_not_run_counts_a_tenth() {
        let (now, seconds) = (Instant::now(), Duration::from_secs);
        let deadline = Deadline::new(Limit::work(4), now, Some(seconds(1)), 2);
        let passed = |clock, work: Option<u64>| deadline.has_passed(now + seconds(clock), || work.map(seconds));
        assert_eq!([passed(0, Some(8)), passed(0, Some(9))], [false, true], "4 s of each of 2 CPUs");
        assert_eq!([passed(39, Some(1)), passed(40, Some(1))], [false, true], "by the clock");
        assert_eq!([passed(39, None), passed(40, None)], [false, true], "a machine that is gone");
        let clock = Deadline::new(Limit::Clock(seconds(4)), now, Some(seconds(1)), 2);
        assert!(!clock.has_passed(now, || Some(seconds(100))) && clock.has_passed(now + seconds(4), || None));
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
    fn a_line_without_an_end_is_cut() {
        let mut lines = Lines::default();
        let cut = lines.feed(&[b'a'; 3 * super::MAX_LINE + 1]);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [super::MAX_LINE; 3]);
        assert_eq!(lines.feed(b"b\n"), ["ab"]);
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
        // Each pipe has a thread of its own here: the machine complains once its prompt has been read.
        let mut guest = shell("printf 'the prompt> '; read line; echo 'killed' >&2; exit 1");
        let deadline = guest.deadline(Limit::work(20));
        let mut received = Vec::new();
        while let Received::Bytes(bytes) = guest.receive(deadline) {
            received.extend(bytes);
            if received == b"the prompt> " {
                guest.send("\n");
            }
        }
        assert_eq!(received, b"the prompt> killed\n");
    }
}
