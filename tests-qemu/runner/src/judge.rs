//! Turns the lines of one boot into verdicts, and trusts none that does not add up.
//!
//! The rule: a pass needs its begin and pass frames in sequence, a sound audit (the guest's own), a machine that lived
//! until the next test began or the totals came, totals that count what was seen, and an exit status that agrees with
//! the totals, where the machine has one. A break in the chain fails the test during or right after which it
//! comes, and nothing more is believed of that boot. No clock and no process here, so every way to lie is tested on
//! the host.

use std::collections::VecDeque;
use std::time::Duration;

use granule_protocol::{Event, Frame, Nonce, NotAFrame};

/// The words that the kernel prints first when it panics.
pub const PANIC_MARKER: &str = "kernel panic";

/// Bytes of a test's output that are kept: beyond that the middle is taken out.
const MAX_OUTPUT: usize = 16 << 20;
/// In its place.
const CUT: &str = "\n[more than is kept]\n";

/// How a test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All checks held; how many there were.
    Passed(u32),
    /// Why not.
    Failed(String),
}

/// A test's verdict with what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it went.
    pub verdict: Verdict,
    /// Everything on the serial port from its begin to the next test's.
    pub output: String,
    /// From begin to verdict, on the clock that the runner passes with each line.
    pub time: Duration,
}

/// How a boot came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// QEMU exited with this status; `None`: by a signal.
    Exited(Option<i32>),
    /// A time limit passed and the runner stopped the machine.
    TimedOut(Duration),
    /// The guest printed what cannot be true, and the runner stopped the machine.
    Lied(Lie),
    /// Over a wire: the guest has said the totals, and waits. It has no status.
    Parted,
    /// The line to the machine was closed.
    Closed,
}

/// Output that cannot be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lie(pub String);

/// The results of one boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Verdicts by record index; at most one each.
    pub outcomes: Vec<(u32, Outcome)>,
    /// If it broke where no test can be blamed: why, and what was printed.
    pub failure: Option<(String, String)>,
}

/// Where the guest is, by its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Booting,
    Between,
    Running(u32, Duration),
    Over,
}

/// Judges one boot.
#[derive(Debug)]
pub struct Judge {
    nonce: Nonce,
    /// Tests not begun, in the order in which they must come.
    expected: VecDeque<u32>,
    sequence: u32,
    state: State,
    /// Output since the last begin, or since the boot.
    output: String,
    /// The last entry's output grows until the next test begins.
    outcomes: Vec<(u32, Outcome)>,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Judge {
    /// A boot that was asked to run these tests, in this order.
    pub fn new(nonce: Nonce, tests: impl IntoIterator<Item = u32>) -> Self {
        Self {
            nonce,
            expected: tests.into_iter().collect(),
            sequence: 0,
            state: State::Booting,
            output: String::new(),
            outcomes: Vec::new(),
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    /// The test that runs, and since when.
    pub fn running(&self) -> Option<(u32, Duration)> {
        if let State::Running(index, since) = self.state { Some((index, since)) } else { None }
    }

    /// Whether the harness has sent its hello.
    pub fn has_started(&self) -> bool {
        self.state != State::Booting
    }

    /// Takes one line, at `now` since the boot.
    ///
    /// # Errors
    /// When it cannot be true: the boot is over, see [`Ending::Lied`].
    pub fn line(&mut self, line: &str, now: Duration) -> Result<(), Lie> {
        let lie = |what: &str| Err(Lie(format!("{what}: {line}")));
        match Frame::decode(line, self.nonce) {
            Ok(frame) if frame.sequence != self.sequence => lie("a frame is out of sequence"),
            Ok(frame) => {
                self.sequence += 1;
                self.event(frame.event, now).or_else(lie)
            }
            Err(NotAFrame::Output) => {
                self.print(line);
                Ok(())
            }
            Err(NotAFrame::Checksum) => lie("a line looks like a frame and its checksum is wrong"),
            Err(NotAFrame::Nonce) => lie("a frame has a nonce that is not this boot's"),
            Err(NotAFrame::Malformed) => lie("a frame has no meaning"),
        }
    }

    /// Takes what stood after the last end of line when the machine ended.
    pub fn rest(&mut self, partial: &str) {
        if !partial.is_empty() {
            self.print(partial);
        }
    }

    /// Takes a line that is no frame.
    pub(crate) fn print(&mut self, line: &str) {
        // The guest begins each frame on a new line, so an empty one may precede it; output begins without.
        if !(line.is_empty() && (self.output.is_empty() || self.output.ends_with("\n\n"))) {
            self.output.push_str(line);
            self.output.push('\n');
        }
        if self.output.len() > MAX_OUTPUT {
            self.cut_output();
        }
    }

    /// Takes the middle out of what was printed.
    fn cut_output(&mut self) {
        let (quarter, length) = (MAX_OUTPUT / 4, self.output.len());
        let is_boundary = |at: &usize| self.output.is_char_boundary(*at);
        let head = (0..=quarter).rev().find(is_boundary).unwrap_or(0);
        let tail = (length - quarter..length).find(is_boundary).unwrap_or(length);
        self.output.replace_range(head..tail, CUT);
    }

    /// Takes the event of the next frame.
    ///
    /// # Errors
    /// Why it cannot be true.
    pub(crate) fn event(&mut self, event: Event, now: Duration) -> Result<(), &'static str> {
        match (event, self.state) {
            (Event::Hello { tests }, State::Booting) => {
                if tests as usize != self.expected.len() {
                    return Err("the guest counts other tests than it was asked to run");
                }
                self.state = State::Between;
            }
            (Event::Begin { index }, State::Between) => {
                if self.expected.front() != Some(&index) {
                    return Err("another test begins than the next");
                }
                self.expected.pop_front();
                self.close_output();
                self.state = State::Running(index, now);
            }
            (Event::Pass { index, checks }, State::Running(running, since)) if index == running => {
                self.passed += 1;
                let verdict =
                    if checks == 0 { Verdict::Failed("made no checks".into()) } else { Verdict::Passed(checks) };
                self.decide(index, verdict, now - since);
            }
            (Event::Fail { index, checks, failures }, State::Running(running, since)) if index == running => {
                self.failed += 1;
                let verdict = Verdict::Failed(format!("{failures} failed, of {checks} checks and the audit"));
                self.decide(index, verdict, now - since);
            }
            (Event::Skip { index }, State::Running(running, since)) if index == running => {
                self.skipped += 1;
                let why = "needs a feature that machines.toml lists for this machine, and did not find it";
                self.decide(index, Verdict::Failed(why.into()), now - since);
            }
            (Event::End { passed, failed, skipped }, State::Between) if self.expected.is_empty() => {
                if (passed, failed, skipped) != (self.passed, self.failed, self.skipped) {
                    return Err("the totals are not the sum of the verdicts");
                }
                self.state = State::Over;
            }
            _ => return Err("a frame that has no place here"),
        }
        Ok(())
    }

    fn decide(&mut self, index: u32, verdict: Verdict, time: Duration) {
        self.outcomes.push((index, Outcome { verdict, output: String::new(), time }));
        self.state = State::Between;
    }

    /// Gives the output so far to the test that was decided last.
    fn close_output(&mut self) {
        let output = std::mem::take(&mut self.output);
        if let Some((_, outcome)) = self.outcomes.last_mut() {
            outcome.output = output;
        }
    }

    /// The boot is over: what it brought.
    pub fn end(mut self, ending: &Ending) -> Boot {
        let agreed = if self.failed + self.skipped == 0 { 0 } else { 1 };
        let agrees = matches!(ending, Ending::Parted) || *ending == Ending::Exited(Some(agreed));
        if self.state == State::Over && agrees {
            self.close_output();
            return Boot { outcomes: self.outcomes, failure: None };
        }
        let reason = self.reason(ending, agreed);
        match self.state {
            State::Running(index, _) => {
                let output = std::mem::take(&mut self.output);
                let outcome = Outcome { verdict: Verdict::Failed(reason), output, time: Duration::ZERO };
                self.outcomes.push((index, outcome));
            }
            _ if self.outcomes.is_empty() => {
                return Boot { outcomes: Vec::new(), failure: Some((reason, self.output)) };
            }
            _ => {
                self.close_output();
                if let Some((_, last)) = self.outcomes.last_mut() {
                    last.verdict = Verdict::Failed(match &last.verdict {
                        Verdict::Passed(_) => format!("passed, and then {reason}"),
                        Verdict::Failed(first) => format!("{first}; and then {reason}"),
                    });
                }
            }
        }
        Boot { outcomes: self.outcomes, failure: None }
    }

    fn reason(&self, ending: &Ending, agreed: i32) -> String {
        match ending {
            Ending::Lied(Lie(what)) => what.clone(),
            _ if self.output.contains(PANIC_MARKER) => "the kernel panicked".into(),
            Ending::TimedOut(limit) => format!("hung: the time limit of {} s passed", limit.as_secs()),
            Ending::Exited(None) => "QEMU was killed".into(),
            Ending::Closed => "the line was closed".into(),
            Ending::Parted => "the guest parted early".into(),
            Ending::Exited(Some(status)) if self.state == State::Over => {
                format!("the machine exited with status {status} where its totals mean {agreed}")
            }
            Ending::Exited(Some(status)) => format!("the machine exited early, with status {status}"),
        }
    }
}

#[cfg(test)]
mod tests;
