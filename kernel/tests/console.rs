//! The console with a slow port: what several threads print, more than the buffer holds, and what a flush leaves.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use granule::chip::console::{self, Console};

/// A port whose FIFO has room for 16 bytes and sends one each time the driver reads its flags.
struct Slow(Mutex<(usize, Vec<u8>)>);

impl Console for Slow {
    fn acknowledge(&self) {}
    fn write(&self, bytes: &[u8]) -> usize {
        let (fifo, sent) = &mut *self.0.lock().unwrap();
        *fifo = fifo.saturating_sub(1);
        let taken = bytes.len().min(16 - *fifo);
        *fifo += taken;
        sent.extend(&bytes[..taken]);
        taken
    }
    fn is_busy(&self) -> bool {
        let (fifo, _) = &mut *self.0.lock().unwrap();
        *fifo = fifo.saturating_sub(1);
        *fifo > 0
    }
    fn read(&self) -> Option<u8> {
        None
    }
    fn set_receive_interrupt(&self, _on: bool) {}
    fn set_transmit_interrupt(&self, _on: bool) {}
}

static PORT: Slow = Slow(Mutex::new((0, Vec::new())));

/// Lines that are formatted in many pieces.
struct Lines {
    writer: usize,
    first: usize,
    count: usize,
}

impl fmt::Display for Lines {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.first..self.first + self.count {
            write!(to, "writer {} line {line}", self.writer)?;
            (0..40).try_for_each(|word| write!(to, " {word}"))?;
            writeln!(to, " end")?;
        }
        Ok(())
    }
}

#[test]
fn lines_of_several_writers_arrive_whole_in_each_ones_order() {
    const WRITERS: usize = 4;
    const LINES: usize = 100;
    console::init(&PORT);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                // One print is longer than the buffer.
                console::print(format_args!("{}", Lines { writer, first: 0, count: LINES / 2 }));
                for first in LINES / 2..LINES {
                    let line = Lines { writer, first, count: 1 };
                    match writer {
                        0 | 1 => console::write_text(line.to_string().as_bytes()),
                        _ => console::print(format_args!("{line}")),
                    }
                }
            });
        }
    });
    console::flush();
    assert_eq!(console::unsent(), 0);
    assert_eq!(PORT.0.lock().unwrap().0, 0, "a flush waits for the FIFO");
    let sent = String::from_utf8(PORT.0.lock().unwrap().1.clone()).unwrap();
    let mut next = HashMap::new();
    for line in sent.split_terminator("\r\n") {
        let writer: usize = line.split(' ').nth(1).unwrap().parse().unwrap();
        let first = next.entry(writer).or_insert(0);
        assert_eq!(format!("{line}\n"), Lines { writer, first: *first, count: 1 }.to_string());
        *first += 1;
    }
    assert_eq!(next, (0..WRITERS).map(|writer| (writer, LINES)).collect());
}
