//! The frame: one line by which the guest reports an event.
//!
//! ```text
//! @granule 5f3a9c01 17 pass 4 12 8d0c31f2
//!          nonce    |  |    |  |  checksum of all that comes before it
//!                   |  |    |  checks made
//!                   |  |    which test, by its record
//!                   |  event
//!                   sequence number: 0, 1, 2, ... in each boot
//! ```
//!
//! The nonce is new for each boot. The harness asks for it with the line [`ASK`], and the runner types it once, before the
//! first frame: it is in no boot argument, so nothing that was linked into the image, no output of an earlier boot and
//! nothing that a test can look up passes for a frame. The checksum finds lines that two writers mixed or that a dying
//! machine cut short.

use core::fmt::{self, Write};

use crate::load::Refusal;

/// The beginning of a frame, at the start of a line.
pub const MARKER: &str = "@granule ";

/// The line by which the harness asks for the boot's nonce: eight hexadecimal digits and an end of line answer it. Over a
/// wire it asks for a [`Request`](crate::Request).
pub const ASK: &str = "@granule?";

/// The number that a boot's frames carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce(pub u32);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// An event of the guest. Tests are named by their record's index in the section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The harness runs and will run that many tests.
    Hello {
        /// Tests chosen by `test.run=`.
        tests: u32,
    },
    /// Over a wire: the answer to a hello.
    Image {
        /// Which build it is: the checksum that `./x build` wrote into it.
        identity: u32,
    },
    /// Over a wire: nothing runs, and the next request may come. The frame has the number of the last one.
    Ready,
    /// From the loader: as [`Ready`](Self::Ready), after a line that arrived damaged.
    Again,
    /// From the loader: the load is over, and another one may begin.
    Refused {
        /// The reason.
        why: Refusal,
    },
    /// From the loader: all of the load arrived and is sound, and the kernel is entered next.
    Starts {
        /// The exception level that it is entered at.
        level: u32,
    },
    /// Everything from here to the verdict is this test's output.
    Begin {
        /// Its record.
        index: u32,
    },
    /// All checks held, and so did the audit.
    Pass {
        /// Its record.
        index: u32,
        /// Checks made; 0 is a failure on the runner's side.
        checks: u32,
    },
    /// Checks failed, or the audit found something; the lines before say which.
    Fail {
        /// Its record.
        index: u32,
        /// Checks made.
        checks: u32,
        /// Checks that did not hold, and findings of the audit.
        failures: u32,
    },
    /// A bench measured something: the bench image's alone.
    Point {
        /// Its record.
        index: u32,
        /// How many of the row's units one call was about.
        size: u32,
        /// Instructions that the call took, the least of several.
        instructions: u32,
        /// Which of this boot's measured windows that was, counted from 0.
        window: u32,
    },
    /// The machine lacks a feature that the record asks for; the line before names it. Nothing ran.
    Skip {
        /// Its record.
        index: u32,
    },
    /// Totals; the guest exits next, with status 0 if nothing failed and was skipped, else 1. Over a wire it does not exit.
    End {
        /// Pass frames sent.
        passed: u32,
        /// Fail frames sent.
        failed: u32,
        /// Skip frames sent.
        skipped: u32,
    },
}

impl Event {
    /// Whether it is the last word on the test with that record.
    #[must_use]
    pub const fn is_verdict_on(self, test: u32) -> bool {
        matches!(self, Self::Pass { index, .. } | Self::Fail { index, .. } | Self::Skip { index } if index == test)
    }
}

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Counts the frames of this boot from 0. Over a wire it is the number of the request that the frame answers.
    pub sequence: u32,
    /// The step that the frame reports.
    pub event: Event,
}

/// A guest's serial port, as the frames of one boot go out on it.
#[derive(Debug)]
pub struct Port {
    nonce: Nonce,
    sequence: u32,
    print: fn(fmt::Arguments<'_>),
}

impl Port {
    /// A port on which nothing was sent yet. `print` prints its argument in one piece, so that no other CPU gets between.
    pub const fn new(nonce: Nonce, print: fn(fmt::Arguments<'_>)) -> Self {
        Self::after(nonce, 0, print)
    }

    /// A port on which `sequence` frames were sent, by this program or by others.
    pub const fn after(nonce: Nonce, sequence: u32, print: fn(fmt::Arguments<'_>)) -> Self {
        Self { nonce, sequence, print }
    }

    /// The boot's number, and how many of its frames were sent.
    pub const fn place(&self) -> (Nonce, u32) {
        (self.nonce, self.sequence)
    }

    /// Sends the next frame, on a line of its own even where a test left one unfinished.
    pub fn send(&mut self, event: Event) {
        self.answer(event);
        self.sequence += 1;
    }

    /// Sends a frame that another one with its number may follow: over a wire.
    pub fn answer(&self, event: Event) {
        let line = Line { frame: Frame { sequence: self.sequence, event }, nonce: self.nonce };
        (self.print)(format_args!("\n{line}\n"));
    }
}

/// A frame as its line.
struct Line {
    frame: Frame,
    nonce: Nonce,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.frame.encode(self.nonce, f)
    }
}

/// Why a line is not a frame of this boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAFrame {
    /// It does not begin with [`MARKER`]: output of the test.
    Output,
    /// It begins like one, and its checksum does not fit the rest.
    Checksum,
    /// It carries a nonce that is not this boot's.
    Nonce,
    /// The checksum fits something that has no meaning.
    Malformed,
}

impl Frame {
    /// Writes the line, without its end.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn encode(&self, nonce: Nonce, out: &mut dyn Write) -> fmt::Result {
        seal(nonce, self.sequence, out, |out| match self.event {
            Event::Hello { tests } => write!(out, "hello {tests}"),
            Event::Image { identity } => write!(out, "image {identity}"),
            Event::Ready => write!(out, "ready"),
            Event::Again => write!(out, "again"),
            Event::Refused { why } => write!(out, "refused {}", why.name()),
            Event::Starts { level } => write!(out, "starts {level}"),
            Event::Begin { index } => write!(out, "begin {index}"),
            Event::Pass { index, checks } => write!(out, "pass {index} {checks}"),
            Event::Fail { index, checks, failures } => write!(out, "fail {index} {checks} {failures}"),
            Event::Point { index, size, instructions, window } => {
                write!(out, "point {index} {size} {instructions} {window}")
            }
            Event::Skip { index } => write!(out, "skip {index}"),
            Event::End { passed, failed, skipped } => write!(out, "end {passed} {failed} {skipped}"),
        })
    }

    /// Reads a line, without its end.
    ///
    /// # Errors
    /// The line is no frame of this boot; the error is its kind.
    pub fn decode(line: &str, nonce: Nonce) -> Result<Self, NotAFrame> {
        let (sent, said) = open(line)?;
        if sent != nonce {
            return Err(NotAFrame::Nonce);
        }
        Self::meaning(&mut said.split(' ')).ok_or(NotAFrame::Malformed)
    }

    fn meaning<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let sequence = words.next()?.parse().ok()?;
        let kind = words.next()?;
        if kind == "refused" {
            let event = Event::Refused { why: Refusal::named(words.next()?)? };
            return words.next().is_none().then_some(Self { sequence, event });
        }
        let mut number = || words.next()?.parse::<u32>().ok();
        let event = match kind {
            "hello" => Event::Hello { tests: number()? },
            "image" => Event::Image { identity: number()? },
            "ready" => Event::Ready,
            "again" => Event::Again,
            "starts" => Event::Starts { level: number()? },
            "begin" => Event::Begin { index: number()? },
            "pass" => Event::Pass { index: number()?, checks: number()? },
            "fail" => Event::Fail { index: number()?, checks: number()?, failures: number()? },
            "point" => Event::Point { index: number()?, size: number()?, instructions: number()?, window: number()? },
            "skip" => Event::Skip { index: number()? },
            "end" => Event::End { passed: number()?, failed: number()?, skipped: number()? },
            _ => return None,
        };
        words.next().is_none().then_some(Self { sequence, event })
    }
}

/// Writes a line of either side, without its end: marker, nonce, number, what `say` says, and the checksum of all that.
pub(crate) fn seal(
    nonce: Nonce,
    sequence: u32,
    out: &mut dyn Write,
    say: impl FnOnce(&mut dyn Write) -> fmt::Result,
) -> fmt::Result {
    let mut summed = Summed { out, crc: !0 };
    write!(summed, "{MARKER}{nonce} {sequence} ")?;
    say(&mut summed)?;
    let crc = !summed.crc;
    write!(out, " {crc:08x}")
}

/// The nonce of a line of either side, and what stands between that and the checksum, which fits.
pub(crate) fn open(line: &str) -> Result<(Nonce, &str), NotAFrame> {
    let marked = line.strip_prefix(MARKER).ok_or(NotAFrame::Output)?;
    let (said, sum) = line.rsplit_once(' ').ok_or(NotAFrame::Checksum)?;
    let digits = sum.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !digits || sum.len() != 8 || u32::from_str_radix(sum, 16) != Ok(checksum(said.as_bytes())) {
        return Err(NotAFrame::Checksum);
    }
    let (nonce, rest) = marked.split_once(' ').ok_or(NotAFrame::Malformed)?;
    let nonce = u32::from_str_radix(nonce, 16).map_err(|_| NotAFrame::Malformed)?;
    Ok((Nonce(nonce), rest.strip_suffix(sum).and_then(|rest| rest.strip_suffix(' ')).ok_or(NotAFrame::Malformed)?))
}

/// Passes text on and sums it.
struct Summed<'a> {
    out: &'a mut dyn Write,
    crc: u32,
}

impl Write for Summed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.crc = crc32(self.crc, text.as_bytes());
        self.out.write_str(text)
    }
}

/// The checksum of frames and of images.
#[must_use]
pub const fn checksum(bytes: &[u8]) -> u32 {
    !crc32(!0, bytes)
}

/// The [`checksum`] of these one after another.
#[must_use]
pub fn checksum_of(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |crc, part| crc32(crc, part))
}

/// One step of CRC-32 (IEEE 802.3, reflected), bit by bit: a frame has some forty bytes.
const fn crc32(mut crc: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i < bytes.len() {
        crc ^= bytes[i] as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        i += 1;
    }
    crc
}

const _: () = assert!(checksum(b"123456789") == 0xcbf4_3926);

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;
    use std::vec;

    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{Event, Frame, Nonce, NotAFrame};
    use crate::load::Refusal;

    fn line(frame: Frame, nonce: u32) -> String {
        let mut line = String::new();
        frame.encode(Nonce(nonce), &mut line).unwrap();
        line
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<u32>().prop_map(|tests| Event::Hello { tests }),
            any::<u32>().prop_map(|identity| Event::Image { identity }),
            proptest::sample::select(vec![Event::Ready, Event::Again]),
            proptest::sample::select(&Refusal::ALL[..]).prop_map(|why| Event::Refused { why }),
            any::<u32>().prop_map(|level| Event::Starts { level }),
            any::<u32>().prop_map(|index| Event::Begin { index }),
            any::<(u32, u32)>().prop_map(|(index, checks)| Event::Pass { index, checks }),
            any::<(u32, u32, u32)>().prop_map(|(index, checks, failures)| Event::Fail { index, checks, failures }),
            any::<(u32, u32, u32, u32)>().prop_map(|(index, size, instructions, window)| Event::Point {
                index,
                size,
                instructions,
                window
            }),
            any::<u32>().prop_map(|index| Event::Skip { index }),
            any::<(u32, u32, u32)>().prop_map(|(passed, failed, skipped)| Event::End { passed, failed, skipped }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(sequence: u32, nonce: u32, event in events()) {
            let frame = Frame { sequence, event };
            prop_assert_eq!(Frame::decode(&line(frame, nonce), Nonce(nonce)), Ok(frame));
        }

        #[test]
        fn another_nonce_is_refused(nonce: u32, other: u32, event in events()) {
            proptest::prop_assume!(nonce != other);
            let sent = line(Frame { sequence: 0, event }, nonce);
            prop_assert_eq!(Frame::decode(&sent, Nonce(other)), Err(NotAFrame::Nonce));
        }

        #[test]
        fn a_changed_byte_is_found(event in events(), at: proptest::sample::Index, bit in 0u32..7) {
            let sent = line(Frame { sequence: 3, event }, 7);
            let mut bytes = sent.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert!(Frame::decode(&changed, Nonce(7)) != Frame::decode(&sent, Nonce(7)));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = Frame::decode(&text, Nonce(0));
            let _ = Frame::decode(&std::format!("{}{text}", super::MARKER), Nonce(0));
        }
    }

    #[test]
    fn a_line_cut_short_is_found() {
        let sent = line(Frame { sequence: 1, event: Event::Pass { index: 1, checks: 22 } }, 9);
        for end in super::MARKER.len()..sent.len() {
            assert_eq!(Frame::decode(&sent[..end], Nonce(9)), Err(NotAFrame::Checksum), "{end}");
        }
    }
}
