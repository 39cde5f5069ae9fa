//! The kernel's log: the `log` crate's macros go to the console and to a ring that the `log` command shows.
//!
//! Each record is a line `[    0.001234] text`, with the seconds since the kernel was entered; records above `info` in
//! importance carry their level. The ring has everything down to `debug`; the console has what `loglevel=` asks for.
//! A full ring drops whole lines, the oldest first.
//!
//! Where there is no console the ring is all that tells how a boot went: the image's header has its place, for a debugger
//! (docs/BOARDS.md).

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use linkme::distributed_slice;
use log::{Level, LevelFilter, Log, Metadata, Record};

use super::console::{Print, add_output, with_terminal, write_text};
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};

/// Bytes that the ring keeps.
const SIZE: usize = 16 * 1024;

/// The last lines of the log. All zeros at first: the image does not contain it. Used with the terminal's lock held.
pub static RING: Ring = Ring::new();
/// Longest line that [`read`] gives; what is longer comes in pieces.
pub const LINE: usize = 160;

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static LOGLEVEL: Parameter = Parameter {
    name: "loglevel",
    help: "what the console shows of the log: off, error, warn, info (default), debug or trace",
    check: |value| parse_level(value).map(drop),
};

/// As a number: `LevelFilter` has no atomic.
static CONSOLE_LEVEL: AtomicUsize = AtomicUsize::new(LevelFilter::Info as usize);

/// Records with the level of an error.
static ERRORS: AtomicU32 = AtomicU32::new(0);

struct Logger;

/// Starts the log. Records from before are lost; those from before there is a console wait in the ring.
pub fn init() {
    // It fails where there is a logger already, which is this one.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Debug);
}

/// Does what `loglevel=` asks for, once the boot arguments are known.
pub fn set_level_from_bootargs() {
    if let Some(Ok(level)) = bootargs::get("loglevel").map(parse_level) {
        CONSOLE_LEVEL.store(level as usize, Ordering::Relaxed);
        log::set_max_level(level.max(LevelFilter::Debug));
    }
}

/// How many errors were logged since the boot, shown or not.
pub fn errors() -> u32 {
    ERRORS.load(Ordering::Relaxed)
}

/// Prints what was logged before there was a console: warnings about the device tree.
pub fn print_backlog() {
    if CONSOLE_LEVEL.load(Ordering::Relaxed) < LevelFilter::Warn as usize {
        return;
    }
    let (mut position, mut line) = (0, [0; LINE]);
    while let Some((text, next)) = read(position, &mut line) {
        write_text(text);
        position = next;
    }
}

fn parse_level(value: &str) -> Result<LevelFilter, Refused> {
    value.parse().map_err(|_| Refused::because("off, error, warn, info, debug or trace"))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let on_console = record.level() as usize <= CONSOLE_LEVEL.load(Ordering::Relaxed);
        let time = super::timer::uptime();
        let level = match record.level() {
            Level::Error => {
                ERRORS.fetch_add(1, Ordering::Relaxed);
                "error: "
            }
            Level::Warn => "warning: ",
            _ => "",
        };
        // Neither the ring nor the port fails.
        let line = format_args!("[{:5}.{:06}] {level}{}\n", time.as_secs(), time.subsec_micros(), record.args());
        if on_console {
            add_output(|print| {
                let _ = Both(print).write_fmt(line);
            });
        } else {
            keep(line);
        }
    }

    fn flush(&self) {}
}

/// Adds text, which ends in a line's end, to the ring alone.
pub fn keep(text: fmt::Arguments<'_>) {
    with_terminal(|terminal| terminal.map(|_| (&RING).write_fmt(text)));
}

/// Copies one line of the log, or a piece of one, into `line`: the first at or after `position` that is still there.
///
/// Positions count bytes since the boot. Returns the text and the position to go on from; `None` at the end.
pub fn read(position: u64, line: &mut [u8; LINE]) -> Option<(&[u8], u64)> {
    let (length, next) = with_terminal(|terminal| terminal.and_then(|_| RING.read(position, line)))?;
    Some((line.get(..length)?, next))
}

/// Writes to the ring and to the console.
struct Both<'a>(&'a mut Print);

impl Write for Both<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.terminal.is_some() {
            RING.push(text.as_bytes());
        }
        self.0.write_str(text)
    }
}

impl Write for &Ring {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// The last lines that were logged. Laid out for a debugger, and for the entry code, which writes it before there is a
/// kernel. There is one writer at a time.
#[repr(C)]
pub struct Ring {
    /// Position of the oldest byte: always the start of a line.
    start: AtomicU64,
    /// Position after the newest.
    end: AtomicU64,
    /// Each byte is at its position modulo the length.
    bytes: [AtomicU8; SIZE],
}

impl Ring {
    /// Where the position after the newest byte, and where the bytes are in it.
    pub const END: usize = core::mem::offset_of!(Self, end);
    /// See [`END`](Self::END).
    pub const BYTES: usize = core::mem::offset_of!(Self, bytes);

    const fn new() -> Self {
        Self { start: AtomicU64::new(0), end: AtomicU64::new(0), bytes: [const { AtomicU8::new(0) }; SIZE] }
    }

    fn byte(&self, position: u64) -> &AtomicU8 {
        &self.bytes[position as usize % SIZE]
    }

    fn push(&self, text: &[u8]) {
        let mut end = self.end.load(Ordering::Relaxed);
        for &byte in text {
            if end - self.start.load(Ordering::Relaxed) == SIZE as u64 {
                self.drop_line(end);
            }
            self.byte(end).store(byte, Ordering::Relaxed);
            end += 1;
            self.end.store(end, Ordering::Relaxed);
        }
    }

    /// Forgets the oldest line; everything, where it is all one line.
    fn drop_line(&self, end: u64) {
        let mut start = self.start.load(Ordering::Relaxed);
        while start < end {
            let byte = self.byte(start).load(Ordering::Relaxed);
            start += 1;
            if byte == b'\n' {
                break;
            }
        }
        self.start.store(start, Ordering::Relaxed);
    }

    fn read(&self, position: u64, line: &mut [u8; LINE]) -> Option<(usize, u64)> {
        let mut position = position.max(self.start.load(Ordering::Relaxed));
        let end = self.end.load(Ordering::Relaxed);
        let mut length = 0;
        while position < end && length < LINE {
            line[length] = self.byte(position).load(Ordering::Relaxed);
            position += 1;
            length += 1;
            if line[length - 1] == b'\n' {
                break;
            }
        }
        (length > 0).then_some((length, position))
    }
}

#[cfg(test)]
mod tests {
    use super::{LINE, Ring, SIZE};

    fn lines(ring: &Ring) -> Vec<String> {
        let (mut position, mut line, mut all) = (0, [0; LINE], Vec::new());
        while let Some((length, next)) = ring.read(position, &mut line) {
            all.extend([String::from_utf8_lossy(&line[..length]).into_owned()]);
            position = next;
        }
        all
    }

    #[test]
    fn what_was_logged_is_read_back_line_by_line() {
        let ring = Box::new(Ring::new());
        ring.push(b"one\ntw");
        ring.push(b"o\n");
        assert_eq!(lines(&ring), ["one\n", "two\n"]);
    }

    #[test]
    fn the_oldest_lines_go_whole() {
        let ring = Box::new(Ring::new());
        for number in 0..10_000 {
            ring.push(format!("line {number}\n").as_bytes());
        }
        let lines = lines(&ring);
        assert_eq!(lines.last().unwrap(), "line 9999\n");
        let first: usize = lines[0].trim_end().strip_prefix("line ").unwrap().parse().unwrap();
        assert_eq!(lines.len(), 10_000 - first, "none is missing in between");
        assert!(lines.iter().map(String::len).sum::<usize>() > SIZE - 20);
    }

    #[test]
    fn a_line_longer_than_the_ring_does_not_stop_it() {
        let ring = Box::new(Ring::new());
        ring.push(&[b'x'; 2 * SIZE + 7]);
        ring.push(b"\nafter\n");
        assert_eq!(lines(&ring).last().unwrap(), "after\n");
    }

    #[test]
    fn reading_goes_on_at_the_oldest_line_where_the_position_is_gone() {
        let ring = Box::new(Ring::new());
        for number in 0..10_000 {
            ring.push(format!("line {number}\n").as_bytes());
        }
        let mut line = [0; LINE];
        let (length, _) = ring.read(3, &mut line).unwrap();
        assert!(line[..length].starts_with(b"line ") && line[length - 1] == b'\n');
    }
}
