//! The request: one line by which the runner asks for a test over a wire, where no boot argument selects any.
//!
//! ```text
//! @granule 5f3a9c01 17 run set_memory::ro_refuses_writes 7 8d0c31f2
//!          nonce    |  |   name                          seed
//!                   |  order
//!                   number: 0, 1, 2, ... in each conversation
//! ```
//!
//! The first request is a hello: it says which nonce and numbers hold from then on. The runner sends no request before
//! the guest asks, and sends it again each time that the guest asks and has not answered it. A number that the guest has
//! seen is answered again, and nothing runs twice: see [`Responder`](crate::Responder).

use core::fmt::{self, Write};

use crate::frame::{Nonce, NotAFrame, open, seal};
use crate::load::Load;

/// No request is longer.
pub const REQUEST_BYTES: usize = 4096;

/// In place of an empty list.
const NONE: &str = "-";

/// The step that the runner asks a board for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order<'a> {
    /// A conversation begins.
    Hello {
        /// Features that the board has by boards.toml, comma separated.
        features: &'a str,
        /// Its devices on PCI Express, likewise.
        devices: &'a str,
    },
    /// Run one test.
    Run {
        /// Its full name, by which the answer's record is checked.
        name: &'a str,
        /// For tests that draw numbers.
        seed: u64,
    },
    /// Say the totals; the conversation is over.
    End,
    /// To the loader, in place of a hello: make room for these.
    Load(Load),
    /// To the loader: more of what is loaded, as [`Load`] has it.
    Data {
        /// In base64.
        text: &'a str,
    },
    /// To the loader: enter the kernel, if all has arrived and is sound.
    Start,
}

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// Counts the requests of a conversation from 0, the hello.
    pub sequence: u32,
    /// The step, with its operands.
    pub order: Order<'a>,
}

impl<'a> Request<'a> {
    /// Writes the line, without its end. Names and lists have no blanks.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn encode(&self, nonce: Nonce, out: &mut dyn Write) -> fmt::Result {
        let list = |list: &'a str| if list.is_empty() { NONE } else { list };
        seal(nonce, self.sequence, out, |out| match self.order {
            Order::Hello { features, devices } => write!(out, "hello {} {}", list(features), list(devices)),
            Order::Run { name, seed } => write!(out, "run {name} {seed}"),
            Order::End => write!(out, "end"),
            Order::Load(Load { kernel, memory, initrd, bootargs, checksum }) => {
                write!(out, "load {kernel} {memory} {initrd} {bootargs} {checksum}")
            }
            Order::Data { text } => write!(out, "data {text}"),
            Order::Start => write!(out, "start"),
        })
    }

    /// Reads a line, without its end, and the nonce that it carries.
    ///
    /// # Errors
    /// The kind of the line, if it is no request.
    pub fn decode(line: &'a str) -> Result<(Nonce, Self), NotAFrame> {
        let (nonce, said) = open(line)?;
        Self::meaning(said).map(|request| (nonce, request)).ok_or(NotAFrame::Malformed)
    }

    fn meaning(said: &'a str) -> Option<Self> {
        let mut words = said.split(' ');
        let list = |list: &'a str| if list == NONE { "" } else { list };
        let sequence = words.next()?.parse().ok()?;
        let number = |word: Option<&str>| word?.parse().ok();
        let order = match words.next()? {
            "hello" => Order::Hello { features: list(words.next()?), devices: list(words.next()?) },
            "run" => Order::Run { name: words.next()?, seed: words.next()?.parse().ok()? },
            "end" => Order::End,
            "load" => Order::Load(Load {
                kernel: number(words.next())?,
                memory: number(words.next())?,
                initrd: number(words.next())?,
                bootargs: number(words.next())?,
                checksum: number(words.next())?,
            }),
            "data" => Order::Data { text: words.next()? },
            "start" => Order::Start,
            _ => return None,
        };
        words.next().is_none().then_some(Self { sequence, order })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;

    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{Order, Request};
    use crate::frame::{Frame, Nonce, NotAFrame};

    /// An order, and the texts in it.
    fn orders() -> impl Strategy<Value = (u8, String, String, u64)> {
        prop_oneof![("[a-z0-9]{1,9}(,[a-z0-9]{1,9}){0,20}", "([a-z_:]{1,40})?", any::<u64>())].prop_flat_map(
            |(first, second, seed)| (0u8..6).prop_map(move |kind| (kind, first.clone(), second.clone(), seed)),
        )
    }

    fn order(from: &(u8, String, String, u64)) -> Order<'_> {
        let (kind, first, second, seed) = from;
        match kind {
            0 => Order::Hello { features: first, devices: second },
            1 => Order::Run { name: first, seed: *seed },
            _ => Order::End,
        }
    }

    fn line(request: Request<'_>, nonce: u32) -> String {
        let mut line = String::new();
        request.encode(Nonce(nonce), &mut line).unwrap();
        line
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(sequence: u32, nonce: u32, from in orders()) {
            let request = Request { sequence, order: order(&from) };
            let line = line(request, nonce);
            prop_assert_eq!(Request::decode(&line), Ok((Nonce(nonce), request)));
        }

        #[test]
        fn a_changed_byte_is_found(from in orders(), at: proptest::sample::Index, bit in 0u32..7) {
            let mut bytes = line(Request { sequence: 3, order: order(&from) }, 7).into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Request::decode(&String::from_utf8(bytes).unwrap()).is_err());
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = Request::decode(&text);
            let _ = Request::decode(&std::format!("{}{text}", crate::MARKER));
        }
    }

    /// A line that echoes has the runner read what it wrote.
    #[test]
    fn a_request_is_no_frame() {
        let hello = Order::Hello { features: "smp", devices: "" };
        for order in [hello, Order::Run { name: "a::b", seed: 0 }, Order::End] {
            let line = line(Request { sequence: 0, order }, 7);
            assert_eq!(Frame::decode(&line, Nonce(7)), Err(NotAFrame::Malformed), "{line}");
        }
    }
}
