//! The guest's side of a conversation over a wire, without the wire: bytes in, and what is to be done about them.
//!
//! The line may drop, double and change bytes. A request that does not fit its checksum is not there; the one whose number
//! comes next is carried out, once; the one before it is answered again; all others, late copies, are left alone. A hello
//! with another nonce begins a conversation anew, whatever became of the one before.

use crate::frame::{Event, Nonce, Port};
use crate::request::{Order, REQUEST_BYTES, Request};

/// The action that a line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// Nothing: it is no request, or a late one.
    Nothing,
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
}

/// The guest's side of a conversation.
#[derive(Debug)]
pub struct Responder {
    line: [u8; REQUEST_BYTES],
    /// Bytes of the line; one that is longer than its buffer is counted on.
    length: usize,
    /// Number of the conversation and of the last request, and what was answered.
    last: Option<(Nonce, u32, Event)>,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Responder {
    /// No conversation has begun.
    #[must_use]
    pub const fn new() -> Self {
        Self { line: [0; REQUEST_BYTES], length: 0, last: None, passed: 0, failed: 0, skipped: 0 }
    }

    /// Takes a byte of the line; what is to be done, where it ends one.
    pub fn take(&mut self, byte: u8) -> Reply<'_> {
        if !matches!(byte, b'\n' | b'\r') {
            if let Some(place) = self.line.get_mut(self.length) {
                *place = byte;
            }
            self.length = self.length.saturating_add(1);
            return Reply::Nothing;
        }
        let length = core::mem::take(&mut self.length);
        let Some(line) = self.line.get(..length).and_then(|line| core::str::from_utf8(line).ok()) else {
            return Reply::Nothing;
        };
        let Ok((nonce, Request { sequence, order })) = Request::decode(line) else { return Reply::Nothing };
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
            (Order::Run { name, seed }, Some((now, last, _))) if *now == nonce && last.wrapping_add(1) == sequence => {
                *last = sequence;
                Reply::Run { name, seed }
            }
            (Order::End, Some((now, last, answer))) if *now == nonce && last.wrapping_add(1) == sequence => {
                *last = sequence;
                *answer = Event::End { passed: self.passed, failed: self.failed, skipped: self.skipped };
                Reply::Answer(*answer)
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

    /// A port for the frames that answer the last request; `None` before the first hello, for which the guest
    /// [asks](crate::ASK).
    #[must_use]
    pub fn port(&self, print: fn(core::fmt::Arguments<'_>)) -> Option<Port> {
        let (nonce, sequence, _) = self.last?;
        Some(Port::after(nonce, sequence, print))
    }
}

impl Default for Responder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;

    use super::{Reply, Responder};
    use crate::frame::{Event, Nonce};
    use crate::request::{Order, REQUEST_BYTES, Request};

    /// Sends a request, and returns the action that it asks for.
    fn send<'a>(responder: &'a mut Responder, nonce: u32, sequence: u32, order: Order<'_>) -> Reply<'a> {
        let mut line = String::new();
        Request { sequence, order }.encode(Nonce(nonce), &mut line).unwrap();
        type_in(responder, &line)
    }

    fn type_in<'a>(responder: &'a mut Responder, line: &str) -> Reply<'a> {
        line.bytes().for_each(|byte| assert_eq!(responder.take(byte), Reply::Nothing));
        responder.take(b'\n')
    }

    const HELLO: Order<'_> = Order::Hello { features: "smp", devices: "" };
    const RUN: Order<'_> = Order::Run { name: "a::b", seed: 3 };
    const PASS: Event = Event::Pass { index: 4, checks: 2 };

    #[test]
    fn a_request_is_carried_out_once_and_answered_each_time() {
        let mut responder = Responder::new();
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
        let mut responder = Responder::new();
        assert_eq!(type_in(&mut responder, &"x".repeat(3 * REQUEST_BYTES)), Reply::Nothing);
        assert_eq!(type_in(&mut responder, "\u{fffd}"), Reply::Nothing);
        assert!(matches!(send(&mut responder, 7, 0, HELLO), Reply::Hello { .. }));
    }
}
