//! The guest's side of a conversation over a wire, without the wire: bytes in, and what is to be done about them.
//!
//! The line may drop, double and change bytes. A request that does not fit its checksum is not there; the one whose
//! number comes next is carried out, once; the one before it is answered again; all others, late copies, are left
//! alone. A hello with another nonce begins a conversation anew, whatever became of the one before.

use core::time::Duration;

use crate::frame::{ASK, Event, Nonce, Port};
use crate::load::Load;
use crate::request::{Order, Request};

/// After this silence the guest asks again: longer than the longest request takes at 9,600 baud.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The action that a line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// Nothing: the line has not ended, or it is a late request.
    Nothing,
    /// Nothing: the line is no request. The loader asks for it again.
    Damaged,
    /// Send this: the request was answered so before, or wants totals.
    Answer(Event),
    /// A conversation begins: note what the board has, and answer with the image.
    Hello {
        /// Features, comma separated.
        features: &'a str,
        /// Devices on PCI Express, likewise.
        devices: &'a str,
    },
    /// Run the test of that name: send its begin, and answer with its verdict.
    Run {
        /// Its full name.
        name: &'a str,
        /// For tests that draw numbers.
        seed: u64,
    },
    /// A conversation with the loader begins: make room, and answer with [`Event::Ready`].
    Load(Load),
    /// More of what is loaded, in base64: take it, and answer with [`Event::Ready`].
    Data(&'a str),
    /// Enter the kernel, or answer with why not.
    Start,
}

/// The guest's side of a conversation. `L` is room for a request, [`REQUEST_BYTES`](crate::REQUEST_BYTES): no stack of
/// a kernel's has that to spare.
#[derive(Debug)]
pub struct Responder<L> {
    line: L,
    /// Bytes of the line; one that is longer than its room is counted on.
    length: usize,
    /// Number of the conversation and of the last request, and what was answered.
    last: Option<(Nonce, u32, Event)>,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl<L: AsRef<[u8]> + AsMut<[u8]>> Responder<L> {
    /// No conversation has begun.
    #[must_use]
    pub const fn new(line: L) -> Self {
        Self { line, length: 0, last: None, passed: 0, failed: 0, skipped: 0 }
    }

    /// Takes a byte of the line; what is to be done, where it ends one.
    pub fn take(&mut self, byte: u8) -> Reply<'_> {
        if !matches!(byte, b'\n' | b'\r') {
            if let Some(place) = self.line.as_mut().get_mut(self.length) {
                *place = byte;
            }
            self.length = self.length.saturating_add(1);
            return Reply::Nothing;
        }
        let length = core::mem::take(&mut self.length);
        let Some(line) = self.line.as_ref().get(..length).and_then(|line| core::str::from_utf8(line).ok()) else {
            return Reply::Damaged;
        };
        // Each request follows an end of line, which ends what came before it.
        if line.is_empty() {
            return Reply::Nothing;
        }
        let Ok((nonce, Request { sequence, order })) = Request::decode(line) else { return Reply::Damaged };
        match (order, &mut self.last) {
            // Not answered yet where the last was not: a request is carried out before the next byte is taken.
            (_, Some((now, last, answer))) if (*now, *last) == (nonce, sequence) => Reply::Answer(*answer),
            (Order::Hello { features, devices }, last)
                if sequence == 0 && last.is_none_or(|(now, ..)| now != nonce) =>
            {
                (self.passed, self.failed, self.skipped) = (0, 0, 0);
                self.last = Some((nonce, 0, Event::Ready));
                Reply::Hello { features, devices }
            }
            (Order::Load(load), last) if sequence == 0 && last.is_none_or(|(now, ..)| now != nonce) => {
                self.last = Some((nonce, 0, Event::Ready));
                Reply::Load(load)
            }
            (order, Some((now, last, answer))) if *now == nonce && last.wrapping_add(1) == sequence => {
                let reply = match order {
                    Order::Run { name, seed } => Reply::Run { name, seed },
                    Order::Data { text } => Reply::Data(text),
                    Order::Start => Reply::Start,
                    Order::End => {
                        *answer = Event::End { passed: self.passed, failed: self.failed, skipped: self.skipped };
                        Reply::Answer(*answer)
                    }
                    Order::Hello { .. } | Order::Load(_) => return Reply::Nothing,
                };
                *last = sequence;
                reply
            }
            _ => Reply::Nothing,
        }
    }

    /// Notes what the last request was answered with, for the case that this gets lost.
    pub fn answer(&mut self, event: Event) {
        match event {
            Event::Pass { .. } => self.passed += 1,
            Event::Fail { .. } => self.failed += 1,
            Event::Skip { .. } => self.skipped += 1,
            _ => {}
        }
        if let Some((_, _, answer)) = &mut self.last {
            *answer = event;
        }
    }

    /// Asks for a hello, or for the next request. `print` prints its argument in one piece.
    pub fn ask(&self, print: fn(core::fmt::Arguments<'_>)) {
        match self.port(print) {
            Some(port) => port.answer(Event::Ready),
            None => print(format_args!("\n{ASK}\n")),
        }
    }

    /// Sends a frame that belongs to the last request, if there was one.
    pub fn send(&self, event: Event, print: fn(core::fmt::Arguments<'_>)) {
        if let Some(port) = self.port(print) {
            port.answer(event);
        }
    }

    /// A port for the frames that answer the last request; `None` before the first hello.
    #[must_use]
    pub fn port(&self, print: fn(core::fmt::Arguments<'_>)) -> Option<Port> {
        let (nonce, sequence, _) = self.last?;
        Some(Port::after(nonce, sequence, print))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    use super::{Reply, Responder};
    use crate::frame::{Event, Nonce};
    use crate::request::{Order, REQUEST_BYTES, Request};

    /// Sends a request, and returns the action that it asks for.
    fn send<'a>(responder: &'a mut Responder<Vec<u8>>, nonce: u32, sequence: u32, order: Order<'_>) -> Reply<'a> {
        let mut line = String::new();
        Request { sequence, order }.encode(Nonce(nonce), &mut line).unwrap();
        type_in(responder, &line)
    }

    fn type_in<'a>(responder: &'a mut Responder<Vec<u8>>, line: &str) -> Reply<'a> {
        line.bytes().for_each(|byte| assert_eq!(responder.take(byte), Reply::Nothing));
        responder.take(b'\n')
    }

    const HELLO: Order<'_> = Order::Hello { features: "smp", devices: "" };
    const RUN: Order<'_> = Order::Run { name: "a::b", seed: 3 };
    const PASS: Event = Event::Pass { index: 4, checks: 2 };

    #[test]
    fn a_request_is_carried_out_once_and_answered_each_time() {
        let mut responder = Responder::new(vec![0; REQUEST_BYTES]);
        assert_eq!(send(&mut responder, 7, 1, RUN), Reply::Nothing, "before the hello");
        assert_eq!(send(&mut responder, 7, 0, HELLO), Reply::Hello { features: "smp", devices: "" });
        responder.answer(Event::Image { identity: 9 });
        assert_eq!(send(&mut responder, 7, 0, HELLO), Reply::Answer(Event::Image { identity: 9 }));
        assert_eq!(send(&mut responder, 7, 2, RUN), Reply::Nothing, "one is left out");
        assert_eq!(send(&mut responder, 8, 1, RUN), Reply::Nothing, "another conversation's");
        assert_eq!(send(&mut responder, 7, 1, RUN), Reply::Run { name: "a::b", seed: 3 });
        responder.answer(PASS);
        assert_eq!(send(&mut responder, 7, 1, RUN), Reply::Answer(PASS));
        assert_eq!(send(&mut responder, 7, 0, HELLO), Reply::Nothing, "a late copy");
        let end = Event::End { passed: 1, failed: 0, skipped: 0 };
        assert_eq!(send(&mut responder, 7, 2, Order::End), Reply::Answer(end));
        assert_eq!(send(&mut responder, 7, 2, Order::End), Reply::Answer(end));
        assert_eq!(send(&mut responder, 9, 0, HELLO), Reply::Hello { features: "smp", devices: "" });
        responder.answer(Event::Image { identity: 9 });
        assert_eq!(
            send(&mut responder, 9, 1, Order::End),
            Reply::Answer(Event::End { passed: 0, failed: 0, skipped: 0 })
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_left_alone_and_the_next_one_is_not() {
        let mut responder = Responder::new(vec![0; REQUEST_BYTES]);
        assert_eq!(type_in(&mut responder, &"x".repeat(3 * REQUEST_BYTES)), Reply::Damaged);
        assert_eq!(type_in(&mut responder, "\u{fffd}"), Reply::Damaged);
        assert!(matches!(send(&mut responder, 7, 0, HELLO), Reply::Hello { .. }));
    }
}
