//! A kernel for the loader of a board, over the line to its console (docs/BOARDS.md, "A kernel over a wire").
//!
//! A [`Sender`] is the runner's side of the conversation, without a line or a clock: lines in, what is typed out. It
//! sends one request at a time, and the next once that is answered, so nothing overtakes; the loader asks again for
//! what arrived damaged. The requests become twice as large after some that came through at once, half as large after
//! one that did not: a bad line is slow, not hopeless. A request that was typed never changes, as its answer may be on
//! its way.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64ct::{Base64, Encoding as _};
use granule_protocol::{DATA_BYTES, Event, ImageHeader, Load, MARKER, Nonce, Order, Request, checksum_of};
use miniz_oxide::deflate::compress_to_vec_zlib;

use crate::serial::{Limit, Line, Lines, Received};
use crate::session::fresh_nonce;
use crate::wire::{Heard, RESEND};

/// The first request of data, and the least, in bytes.
const FIRST: usize = 376;
const FEW: usize = 64;
/// Requests in a row that came through at once, before they grow.
const MANY: u32 = 4;
/// Of deflate, 1 to 9: more is hardly smaller.
const LEVEL: u8 = 6;
/// Without an answer the line counts as lost. The loader asks every 2 s.
const LOST: Limit = Limit::Clock(Duration::from_secs(60));
/// After this the kernel has been entered, though the answer that said so was lost: the loader would have asked.
const ENTERED: Limit = Limit::Clock(Duration::from_secs(10));
/// How often the board may start anew before it is given up.
const MOST_RESTARTS: u32 = 3;
/// Lines of the board's that an error shows.
const SHOWN: usize = 8;

/// A kernel to load.
#[derive(Clone, Debug)]
pub struct Files {
    /// An arm64 Image.
    pub kernel: Vec<u8>,
    /// Its initrd; empty: none.
    pub initrd: Vec<u8>,
    /// Boot arguments, which follow those of the card.
    pub bootargs: String,
}

/// A kernel that was entered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entered {
    /// The exception level; `None`: the loader's last answer was lost.
    pub level: Option<u32>,
    /// Output that came with that answer: the kernel's first.
    pub output: String,
}

/// Loads a kernel over a line and has it entered. `first` is how long the loader may take to ask; `progress` is given
/// the bytes that have arrived, and all of them.
///
/// # Errors
/// The image cannot be loaded, the loader does not ask or refuses it, or the line is lost.
pub fn load(
    line: &mut dyn Line,
    files: &Files,
    first: Duration,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Entered> {
    converse(line, Sender::new(fresh_nonce(), files)?, first, progress)
}

/// Has the conversation, until its end or a limit.
fn converse(
    line: &mut dyn Line,
    mut sender: Sender,
    first: Duration,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Entered> {
    let (mut lines, begin) = (Lines::default(), line.now());
    // The loader asks again for all that it does not get, as long as it runs: only an answer is progress.
    let (mut deadline, mut place, mut progressed) = (line.deadline(Limit::Clock(first)), sender.place(), begin);
    loop {
        let bytes = match line.receive(deadline) {
            Received::Bytes(bytes) => bytes,
            Received::Silence if sender.may_be_entered() => {
                return Ok(Entered { level: None, output: sender.said.join("\n") });
            }
            Received::Silence => bail!(sender.silence(first)),
            Received::Closed => bail!("the line was closed{}", sender.heard()),
        };
        let now = line.now();
        ensure!((now - progressed).as_secs() < LOST.seconds() || sender.typed.is_none(), sender.silence(first));
        let mut fed = lines.feed(&bytes).into_iter();
        while let Some(text) = fed.next() {
            match sender.line(&text, now - begin)? {
                Step::Nothing => continue,
                Step::Heard => {}
                Step::Type(request) => line.send(&request),
                Step::Over(level) => {
                    // Copies of the answer may follow.
                    let rest = fed.filter(|text| !text.starts_with(MARKER)).map(|text| text + "\n");
                    let output = rest.chain([lines.partial()]).collect::<String>().trim_start().to_owned();
                    return Ok(Entered { level: Some(level), output });
                }
            }
            if sender.place() != place {
                (place, progressed) = (sender.place(), now);
                deadline = line.deadline(LOST);
                progress(sender.arrived, sender.stream.len());
            }
            if sender.may_be_entered() {
                deadline = line.deadline(ENTERED);
            }
        }
    }
}

/// The runner's reaction to a line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// It is nothing of the loader's.
    Nothing,
    /// It is the loader's, and nothing is due.
    Heard,
    /// This is to be typed.
    Type(String),
    /// The kernel is entered at this level.
    Over(u32),
}

/// The runner's side of a conversation with a loader.
#[derive(Debug)]
struct Sender {
    nonce: Nonce,
    load: Load,
    /// The parts, compressed, one after another.
    stream: Vec<u8>,
    /// Bytes of it that have arrived.
    arrived: usize,
    /// Bytes in the request that is not answered yet, and whether it had to be typed again.
    piece: usize,
    is_again: bool,
    /// The most bytes in a request now, and how many in a row came through at once.
    most: usize,
    in_a_row: u32,
    /// Number of the request: 0 is the load, after the data comes the start.
    sequence: u32,
    /// When it was typed last.
    typed: Option<Duration>,
    restarts: u32,
    /// The last lines that are none of the loader's.
    said: Vec<String>,
}

impl Sender {
    fn new(nonce: Nonce, files: &Files) -> Result<Self> {
        let Files { kernel, initrd, bootargs } = files;
        let header = ImageHeader::read(kernel).context("it is no arm64 Image that runs at any multiple of 2 MiB")?;
        let parts: [&[u8]; 3] = [kernel, initrd, bootargs.as_bytes()];
        let size = |bytes: u64| u32::try_from(bytes).context("it is too large for any board: 4 GiB or more");
        let load = Load {
            kernel: size(kernel.len() as u64)?,
            memory: size(header.memory)?,
            initrd: size(initrd.len() as u64)?,
            bootargs: size(bootargs.len() as u64)?,
            checksum: checksum_of(&parts),
        };
        let stream = parts.iter().flat_map(|part| compress_to_vec_zlib(part, LEVEL)).collect();
        Ok(Self {
            nonce,
            load,
            stream,
            arrived: 0,
            piece: 0,
            is_again: false,
            most: FIRST,
            in_a_row: 0,
            sequence: 0,
            typed: None,
            restarts: 0,
            said: Vec::new(),
        })
    }

    /// Takes one line, at `now` since the begin.
    ///
    /// # Errors
    /// The load is over.
    fn line(&mut self, line: &str, now: Duration) -> Result<Step> {
        match Heard::of(line, self.nonce, self.sequence) {
            Heard::Answers(event) => self.answer(event, now),
            Heard::Asks => Ok(self.type_it_again(now)),
            Heard::Damaged => {
                self.is_again = true;
                Ok(self.type_it(now))
            }
            Heard::Anew => self.anew(now),
            Heard::Late => Ok(Step::Heard),
            Heard::Stranger | Heard::Output => {
                if !line.is_empty() {
                    self.said.push(line.to_owned());
                    self.said.drain(..self.said.len().saturating_sub(SHOWN));
                }
                Ok(Step::Nothing)
            }
        }
    }

    /// A frame of the request's number came: the request has arrived.
    fn answer(&mut self, event: Event, now: Duration) -> Result<Step> {
        match event {
            Event::Ready | Event::Again if !self.may_be_entered() => {
                self.in_a_row = if std::mem::take(&mut self.is_again) { 0 } else { self.in_a_row + 1 };
                self.most = match self.in_a_row {
                    0 => (self.most / 2).max(FEW),
                    many if many % MANY == 0 => (self.most * 2).min(DATA_BYTES),
                    _ => self.most,
                };
                self.arrived += self.piece;
                self.sequence += 1;
                self.piece = self.most.min(self.stream.len() - self.arrived);
                Ok(self.type_it(now))
            }
            // The answer got lost.
            Event::Ready | Event::Again => Ok(self.type_it_again(now)),
            Event::Starts { level } if self.may_be_entered() => Ok(Step::Over(level)),
            Event::Refused { why } => bail!("the loader refuses: {why}{}", self.sizes()),
            Event::Image { .. } => bail!("the board runs the image of the tests, not the loader"),
            _ => bail!("the loader answers {event:?}, which has no place here"),
        }
    }

    /// The loader has started once more.
    fn anew(&mut self, now: Duration) -> Result<Step> {
        ensure!(!self.may_be_entered(), "the board has started anew: the kernel did not stay, or was not entered");
        self.restarts += 1;
        ensure!(self.restarts <= MOST_RESTARTS, "the board starts again and again{}", self.heard());
        (self.arrived, self.piece, self.sequence, self.is_again) = (0, 0, 0, false);
        Ok(self.type_it(now))
    }

    /// The state that each answer changes, and the first request.
    fn place(&self) -> (u32, u32, bool) {
        (self.restarts, self.sequence, self.typed.is_some())
    }

    /// All data has arrived, and the start was asked for.
    fn may_be_entered(&self) -> bool {
        self.arrived == self.stream.len()
    }

    fn type_it(&mut self, now: Duration) -> Step {
        self.typed = Some(now);
        let piece = Base64::encode_string(&self.stream[self.arrived..][..self.piece]);
        let order = match self.sequence {
            0 => Order::Load(self.load),
            _ if self.may_be_entered() => Order::Start,
            _ => Order::Data { text: &piece },
        };
        let mut line = String::new();
        // A string takes whatever is written.
        let _ = Request { sequence: self.sequence, order }.encode(self.nonce, &mut line);
        // Half a request may have come before it.
        Step::Type(format!("\n{line}\n"))
    }

    /// Types the request unless it is on its way.
    fn type_it_again(&mut self, now: Duration) -> Step {
        if self.typed.is_some_and(|typed| now < typed + RESEND) {
            return Step::Heard;
        }
        self.is_again = self.typed.is_some();
        self.type_it(now)
    }

    /// The meaning of silence.
    fn silence(&self, first: Duration) -> String {
        match self.typed {
            None => format!(
                "no loader has asked for a kernel within {} s: is it on the card, is this its port, has the board been \
                 switched on or reset?{}",
                first.as_secs(),
                self.heard()
            ),
            Some(_) => format!(
                "the line is lost: no answer for {} s, after {} of {} bytes{}",
                LOST.seconds(),
                self.arrived,
                self.stream.len(),
                self.heard()
            ),
        }
    }

    /// The last lines of the board, for an error.
    fn heard(&self) -> String {
        if self.said.is_empty() { String::new() } else { format!("; the board printed:\n  {}", self.said.join("\n  ")) }
    }

    fn sizes(&self) -> String {
        let Load { kernel, memory, initrd, .. } = self.load;
        format!(" (the kernel has {kernel} bytes and takes {memory} of memory, its initrd {initrd})")
    }
}

#[cfg(test)]
mod tests;
