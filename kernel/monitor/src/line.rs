//! The line editor of the monitor: bytes of a serial line in, finished lines out.
//!
//! A state machine fed byte by byte, so that it needs no thread, no allocation and no terminal: tests feed it bytes and
//! look at the screen that a terminal would show. Rule: after each byte the screen's last line is the prompt and the
//! line being written, and the cursor stands where the next character goes.
//!
//! Two ways to show what is typed ([`Echo`]). A terminal gets each key's effect at once, by the few ECMA-48 sequences
//! that every terminal has; a line longer than the screen scrolls sideways. A script is not edited and wants a log that
//! reads well: each line is echoed whole once it is complete, without any escape sequence.
//!
//! | key | does | key | does |
//! |---|---|---|---|
//! | left, right, ^B, ^F | move by a character | home, end, ^A, ^E | move to an end of the line |
//! | backspace, delete, ^D | remove a character | ^K, ^U, ^W | remove to the end, to the start, a word |
//! | up, down, ^P, ^N | older and newer lines | tab | complete the word, or list what it can become |
//! | ^C | start the line over | ^L | clear the screen |

use core::fmt::Write;

use heapless::{HistoryBuf, Vec};

/// The longest line: a script written 120 columns wide fits, with a long comment at the end.
pub(super) const LINE: usize = 160;
/// Lines that the up key finds again.
const HISTORY: usize = 16;
/// Columns of the terminal. A serial line cannot tell; each one in use has at least these.
const COLUMNS: usize = 80;

const BELL: char = '\x07';

/// A finished line: printable ASCII only.
pub(super) type Line = heapless::String<LINE>;

/// How the editor shows what it is fed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Echo {
    /// Key by key, for a person at a terminal.
    Keys,
    /// Line by line, for a script whose session is read afterwards.
    Lines,
}

/// The effect of a byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Input {
    /// Nothing yet.
    Pending,
    /// A line, which may be empty.
    Line(Line),
    /// A line of a script that is longer than [`LINE`]; none of it is to be executed.
    TooLong,
}

/// Offers the words that may stand where the cursor is. Called with the line up to the word being completed, and with
/// the function that takes each word.
pub(super) type Complete<'c> = dyn Fn(&str, &mut dyn FnMut(&'static str)) + 'c;

/// Where an escape sequence of the terminal has got to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    /// ESC was read.
    Started,
    /// ESC O was read: one letter follows.
    Single,
    /// ESC [ was read: the first parameter so far.
    Control(u8),
}

/// A line being written, and those written before.
pub(super) struct Editor {
    echo: Echo,
    prompt: &'static str,
    /// Printable ASCII only.
    text: Vec<u8, LINE>,
    /// At most the length of `text`.
    cursor: usize,
    /// A line of a script did not fit.
    overflowed: bool,
    escape: Escape,
    /// The last byte was a carriage return: a line feed that follows ends the same line.
    returned: bool,
    history: HistoryBuf<Vec<u8, LINE>, HISTORY>,
    /// How many lines back the line shown is; 0 is the one being written.
    recalled: usize,
    /// The line that was being written when an older line was recalled.
    draft: Vec<u8, LINE>,
}

impl Editor {
    /// An editor with an empty line and no history.
    pub(super) const fn new(prompt: &'static str, echo: Echo) -> Self {
        Self {
            echo,
            prompt,
            text: Vec::new(),
            cursor: 0,
            overflowed: false,
            escape: Escape::None,
            returned: false,
            history: HistoryBuf::new(),
            recalled: 0,
            draft: Vec::new(),
        }
    }

    /// Whether it writes escape sequences: else nothing that was written is erased.
    pub(super) fn erases(&self) -> bool {
        self.echo == Echo::Keys
    }

    /// Writes the prompt: to be called before the first byte, and again after each finished line.
    pub(super) fn prompt(&self, screen: &mut dyn Write) {
        let _ = screen.write_str(self.prompt);
    }

    /// Takes the next byte from the serial line.
    pub(super) fn feed(&mut self, byte: u8, screen: &mut dyn Write, complete: &Complete<'_>) -> Input {
        let second_half = byte == b'\n' && self.returned;
        self.returned = byte == b'\r';
        if second_half {
            return Input::Pending;
        }
        match self.echo {
            Echo::Lines => self.feed_script(byte, screen),
            Echo::Keys => self.feed_key(byte, screen, complete),
        }
    }

    fn feed_script(&mut self, byte: u8, screen: &mut dyn Write) -> Input {
        match byte {
            b'\r' | b'\n' => {
                let _ = writeln!(screen, "{}", self.text());
                let line = self.take();
                return if core::mem::take(&mut self.overflowed) { Input::TooLong } else { Input::Line(line) };
            }
            b'\t' => self.append(b' '),
            b' '..=b'~' => self.append(byte),
            // Dropping it could turn a damaged line into a valid one.
            _ => self.append(b'?'),
        }
        Input::Pending
    }

    fn append(&mut self, byte: u8) {
        self.overflowed |= self.text.push(byte).is_err();
    }

    fn feed_key(&mut self, byte: u8, screen: &mut dyn Write, complete: &Complete<'_>) -> Input {
        if self.escape != Escape::None && byte != 0x1b {
            self.feed_escape(byte, screen);
            return Input::Pending;
        }
        match byte {
            b'\r' | b'\n' => return self.enter(screen),
            b' '..=b'~' => self.insert(byte, screen),
            b'\t' => self.complete(screen, complete),
            0x1b => self.escape = Escape::Started,
            0x08 | 0x7f if self.cursor > 0 => self.remove(self.cursor - 1, self.cursor, screen),
            0x17 => self.remove(self.word_before(), self.cursor, screen),
            b'\x15' => self.remove(0, self.cursor, screen),
            b'\x0b' => self.remove(self.cursor, self.text.len(), screen),
            b'\x04' => self.remove(self.cursor, self.cursor + 1, screen),
            b'\x01' => self.move_to(0, screen),
            b'\x05' => self.move_to(self.text.len(), screen),
            b'\x02' => self.move_to(self.cursor.saturating_sub(1), screen),
            b'\x06' => self.move_to(self.cursor + 1, screen),
            b'\x10' => self.recall(self.recalled + 1, screen),
            b'\x0e' => self.recall(self.recalled.saturating_sub(1), screen),
            b'\x03' => self.abandon(screen),
            b'\x0c' => {
                let _ = screen.write_str("\x1b[2J\x1b[H");
                self.redraw(screen);
            }
            _ => ring(screen),
        }
        Input::Pending
    }

    /// Cursor keys, home, end and delete, as VT100, xterm and the Linux console send them.
    fn feed_escape(&mut self, byte: u8, screen: &mut dyn Write) {
        let parameter = match self.escape {
            Escape::Control(parameter) => parameter,
            Escape::Started | Escape::Single | Escape::None => 0,
        };
        self.escape = match (self.escape, byte) {
            (Escape::Started, b'[') => Escape::Control(0),
            (Escape::Started, b'O') => Escape::Single,
            (Escape::Control(_), b'0'..=b'9') => {
                Escape::Control(parameter.saturating_mul(10).saturating_add(byte - b'0'))
            }
            // A second parameter is the modifier that was held: the key is the same.
            (Escape::Control(_), b' '..=b'?') => Escape::Control(parameter),
            _ => Escape::None,
        };
        if self.escape != Escape::None {
            return;
        }
        match (byte, parameter) {
            (b'A', _) => self.recall(self.recalled + 1, screen),
            (b'B', _) => self.recall(self.recalled.saturating_sub(1), screen),
            (b'C', _) => self.move_to(self.cursor + 1, screen),
            (b'D', _) => self.move_to(self.cursor.saturating_sub(1), screen),
            (b'H', _) | (b'~', 1 | 7) => self.move_to(0, screen),
            (b'F', _) | (b'~', 4 | 8) => self.move_to(self.text.len(), screen),
            (b'~', 3) => self.remove(self.cursor, self.cursor + 1, screen),
            _ => ring(screen),
        }
    }

    fn enter(&mut self, screen: &mut dyn Write) -> Input {
        let _ = screen.write_char('\n');
        let again = self.history.recent() == Some(&self.text);
        if !self.text.iter().all(|byte| *byte == b' ') && !again {
            self.history.write(self.text.clone());
        }
        Input::Line(self.take())
    }

    fn abandon(&mut self, screen: &mut dyn Write) {
        const MARK: &str = "^C";
        // A line that fills the screen has no room for it, and the last column stays empty.
        let fits = self.cursor + MARK.len() <= self.window();
        let _ = writeln!(screen, "{}", if fits { MARK } else { "" });
        self.take();
        self.prompt(screen);
    }

    /// The line so far; the next one is empty.
    fn take(&mut self) -> Line {
        let line = Line::try_from(self.text()).unwrap_or_default();
        self.text.clear();
        self.draft.clear();
        self.cursor = 0;
        self.recalled = 0;
        line
    }

    fn text(&self) -> &str {
        // Only printable ASCII gets in, so this never falls back.
        core::str::from_utf8(&self.text).unwrap_or_default()
    }

    fn insert(&mut self, byte: u8, screen: &mut dyn Write) {
        if self.text.insert(self.cursor, byte).is_err() {
            return ring(screen);
        }
        self.cursor += 1;
        if self.cursor == self.text.len() && self.cursor <= self.window() {
            let _ = screen.write_char(char::from(byte));
        } else {
            self.redraw(screen);
        }
    }

    /// Removes what stands from `start` up to `end`, or as much of it as there is.
    fn remove(&mut self, start: usize, end: usize, screen: &mut dyn Write) {
        let end = end.min(self.text.len());
        if start >= end {
            return ring(screen);
        }
        self.text.drain(start..end);
        self.cursor = start;
        self.redraw(screen);
    }

    /// Where the word that ends at the cursor starts, the blanks after it included.
    fn word_before(&self) -> usize {
        let before = &self.text[..self.cursor];
        let end = before.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        before[..end].iter().rposition(|byte| *byte == b' ').map_or(0, |blank| blank + 1)
    }

    fn move_to(&mut self, cursor: usize, screen: &mut dyn Write) {
        if cursor > self.text.len() {
            return ring(screen);
        }
        self.cursor = cursor;
        self.redraw(screen);
    }

    /// Shows the line `back` lines ago, 0 being the one that was being written.
    fn recall(&mut self, back: usize, screen: &mut dyn Write) {
        if back > self.history.len() || back == self.recalled {
            return ring(screen);
        }
        if self.recalled == 0 {
            self.draft = self.text.clone();
        }
        self.text = match back {
            0 => core::mem::take(&mut self.draft),
            _ => self.history.oldest_ordered().nth(self.history.len() - back).cloned().unwrap_or_default(),
        };
        self.recalled = back;
        self.cursor = self.text.len();
        self.redraw(screen);
    }

    /// Completes the word before the cursor as far as what is offered agrees; where that is no further, lists it.
    fn complete(&mut self, screen: &mut dyn Write, complete: &Complete<'_>) {
        let before = core::str::from_utf8(&self.text[..self.cursor]).unwrap_or_default();
        let (line, word) = before.split_at(before.rfind(' ').map_or(0, |blank| blank + 1));
        let mut agreed: Option<&'static str> = None;
        let mut count = 0_usize;
        complete(line, &mut |offered| {
            if offered.starts_with(word) {
                count += 1;
                agreed = Some(agreed.map_or(offered, |agreed| common_start(agreed, offered)));
            }
        });
        let Some(agreed) = agreed else { return ring(screen) };
        let further = &agreed[word.len()..];
        if count > 1 && further.is_empty() {
            let _ = screen.write_char('\n');
            complete(line, &mut |offered| {
                if offered.starts_with(word) {
                    let _ = write!(screen, "{offered}  ");
                }
            });
            let _ = screen.write_char('\n');
            return self.redraw(screen);
        }
        for byte in further.bytes() {
            self.insert(byte, screen);
        }
        if count == 1 {
            self.insert(b' ', screen);
        }
    }

    /// Columns for the line itself. The last column stays empty: terminals differ in where the cursor is after it.
    const fn window(&self) -> usize {
        COLUMNS - 1 - self.prompt.len()
    }

    /// Draws prompt and line anew, the part around the cursor where all of it does not fit.
    pub(super) fn redraw(&self, screen: &mut dyn Write) {
        let start = self.cursor.saturating_sub(self.window());
        let end = self.text.len().min(start + self.window());
        let shown = core::str::from_utf8(&self.text[start..end]).unwrap_or_default();
        let _ = write!(screen, "\r{}{shown}\x1b[K", self.prompt);
        if end > self.cursor {
            let _ = write!(screen, "\x1b[{}D", end - self.cursor);
        }
    }
}

fn ring(screen: &mut dyn Write) {
    let _ = screen.write_char(BELL);
}

/// The start that both have. Names are ASCII, so that it ends at a character.
fn common_start(a: &'static str, b: &str) -> &'static str {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    &a[..same]
}

#[cfg(test)]
mod tests;
