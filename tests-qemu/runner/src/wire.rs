//! The tests of a board, asked for one by one over the line to its console (docs/TESTING.md, "Over a wire").
//!
//! A [`Conversation`] is the runner's side of it, without a line or a clock: lines in, what is typed out. The [`Judge`]
//! is that of every boot; here it gets no damaged frame, since what was damaged is asked for again. So a bad line costs
//! time, and a test whose verdict does not arrive whole before its limit fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use granule_protocol::{ASK, Event, Frame, Nonce, NotAFrame, Order, Request};

use crate::device;
use crate::judge::{Boot, Ending, Judge, Lie};
use crate::list::Test;
use crate::machine::Board;
use crate::serial::{Limit, Line, Lines, Port, Received, status_within};
use crate::session::{BOOT_LIMIT, STEP_LIMIT, fresh_nonce};

/// A request is not typed again sooner: the guest may have asked twice before the first one came.
pub(crate) const RESEND: Duration = Duration::from_secs(1);

/// Time that the command which resets the board may take.
const RESET_LIMIT: Duration = Duration::from_secs(120);

/// A board at the end of a line.
#[derive(Clone, Debug)]
pub struct Wired {
    /// The board, by boards.toml.
    pub board: Board,
    /// The port of this host.
    pub port: PathBuf,
    /// The command that resets it.
    pub reset: Option<String>,
    /// Which build the board is to run: see [`identity`](crate::identity).
    pub identity: u32,
    /// Seed for tests that draw numbers.
    pub seed: u64,
}

impl Wired {
    /// Resets the board, if there is a command for it, and has it run the tests.
    pub fn boot(&self, tests: &[&Test]) -> Boot {
        match open(&self.port, self.board.baud, self.reset.as_deref()) {
            Ok(mut line) => converse(&mut line, self.conversation(fresh_nonce(), tests), tests),
            Err(error) => Boot { outcomes: Vec::new(), failure: Some((format!("{error:#}"), String::new())) },
        }
    }

    /// A conversation of that number, in which these tests run.
    fn conversation(&self, nonce: Nonce, tests: &[&Test]) -> Conversation {
        Conversation {
            nonce,
            tests: tests.iter().map(|test| (test.index, test.name.clone())).collect(),
            features: self.board.machine.features.join(","),
            devices: device::on_pci(&self.board.machine.devices),
            seed: self.seed,
            identity: self.identity,
            sequence: 0,
            typed: None,
            is_anew: false,
            judge: Judge::new(nonce, tests.iter().map(|test| test.index)),
        }
    }
}

/// Resets a board by the command for that, if there is one, and opens the port that it is at.
///
/// # Errors
/// Those of the command, and of [`Port::open`].
pub fn open(port: &Path, baud: u32, reset: Option<&str>) -> Result<Port> {
    reset.map_or(Ok(()), |reset| run_within(reset, RESET_LIMIT))?;
    let line = Port::open(port, baud)?;
    if reset.is_some() {
        line.discard_input()?;
    }
    Ok(line)
}

/// Runs a command of the shell, without input.
///
/// # Errors
/// It cannot be run, fails, or takes longer than `limit`: then it is ended.
fn run_within(command: &str, limit: Duration) -> Result<()> {
    let spawned = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).spawn();
    let mut child = spawned.with_context(|| format!("cannot run {command}"))?;
    let Some(status) = status_within(&mut child, limit)? else {
        child.kill().and_then(|()| child.wait())?;
        bail!("{command}: it has not ended after {} s", limit.as_secs());
    };
    ensure!(status.success(), "{command}: {status}");
    Ok(())
}

/// Has a conversation over a line, until its end or a limit.
pub fn converse(line: &mut dyn Line, mut conversation: Conversation, tests: &[&Test]) -> Boot {
    let (mut lines, begin) = (Lines::default(), Instant::now());
    let limit = |sequence: u32| match (sequence, tests.get((sequence as usize).wrapping_sub(1))) {
        (0, _) => BOOT_LIMIT,
        (_, Some(test)) => Limit::work(test.limit.into()),
        (_, None) => STEP_LIMIT,
    };
    let mut deadline = line.deadline(limit(0));
    loop {
        let bytes = match line.receive(deadline) {
            Received::Bytes(bytes) => bytes,
            received => {
                conversation.judge.rest(&lines.partial());
                let silence = Ending::TimedOut(Duration::from_secs(limit(conversation.sequence).seconds()));
                let ending = if matches!(received, Received::Closed) { Ending::Closed } else { silence };
                return conversation.judge.end(&ending);
            }
        };
        for text in lines.feed(&bytes) {
            let before = conversation.sequence;
            match conversation.line(&text, begin.elapsed()) {
                Ok(Step::Nothing) => {}
                Ok(Step::Type(request)) => line.send(&request),
                Ok(Step::Over) => return conversation.judge.end(&Ending::Parted),
                Err(lie) => return conversation.judge.end(&Ending::Lied(lie)),
            }
            if conversation.sequence != before {
                deadline = line.deadline(limit(conversation.sequence));
            }
        }
    }
}

/// The runner's reaction to a line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Nothing,
    /// This is to be typed.
    Type(String),
    /// The totals came, and agree.
    Over,
}

/// A line of the board's, to a runner that waits for the answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// The guest has not got the request: it is to be typed, or typed again.
    Asks,
    /// The same: a line arrived damaged, as this request may have.
    Damaged,
    /// The request is answered.
    Answers(Event),
    /// A copy of an earlier answer.
    Late,
    /// The guest knows of no conversation any more.
    Anew,
    /// A frame of another conversation.
    Stranger,
    /// No frame.
    Output,
}

impl Heard {
    /// The line, where the conversation has that number and the request this one.
    pub(crate) fn of(line: &str, nonce: Nonce, request: u32) -> Self {
        match Frame::decode(line, nonce) {
            Ok(frame) if frame.sequence == request => Self::Answers(frame.event),
            Ok(Frame { sequence, event: Event::Ready }) if sequence.wrapping_add(1) == request => Self::Asks,
            Ok(Frame { sequence, event: Event::Again }) if sequence.wrapping_add(1) == request => Self::Damaged,
            Ok(_) => Self::Late,
            // The last conversation with this boot was broken off.
            Err(NotAFrame::Nonce) if request == 0 => Self::Asks,
            Err(NotAFrame::Nonce) => Self::Stranger,
            Err(NotAFrame::Output) if line == ASK && request == 0 => Self::Asks,
            Err(NotAFrame::Output) if line == ASK => Self::Anew,
            Err(_) => Self::Output,
        }
    }
}

/// The runner's side of a conversation.
#[derive(Debug)]
pub struct Conversation {
    nonce: Nonce,
    /// Records and names, in the order in which they run.
    tests: Vec<(u32, String)>,
    features: String,
    devices: String,
    seed: u64,
    identity: u32,
    /// Number of the request whose answer is waited for: 0 is the hello, after the tests the end.
    sequence: u32,
    /// When that was typed last.
    typed: Option<Duration>,
    /// A reset took effect after the hello.
    is_anew: bool,
    judge: Judge,
}

impl Conversation {
    /// The test that the request asks for.
    fn test(&self) -> Option<&(u32, String)> {
        self.tests.get((self.sequence as usize).checked_sub(1)?)
    }

    /// Takes one line, at `now` since the begin.
    ///
    /// # Errors
    /// When it cannot be true.
    fn line(&mut self, line: &str, now: Duration) -> Result<Step, Lie> {
        let lie = |what: &str| Err(Lie(format!("{what}: {line}")));
        match Heard::of(line, self.nonce, self.sequence) {
            // Ready for the request, or its answer got lost.
            Heard::Asks | Heard::Answers(Event::Ready) => Ok(self.ask(now)),
            Heard::Answers(event) => self.answer(event, now).or_else(lie),
            // The board had answered before a reset took effect.
            Heard::Anew if self.is_only_greeted() => Ok(self.anew(now)),
            Heard::Anew => lie("the board has started anew"),
            Heard::Stranger => lie("a frame has a nonce that is not this conversation's"),
            Heard::Late | Heard::Damaged => Ok(Step::Nothing),
            Heard::Output => {
                self.judge.print(line);
                Ok(Step::Nothing)
            }
        }
    }

    /// The guest asks for the request.
    fn ask(&mut self, now: Duration) -> Step {
        if self.typed.is_some_and(|typed| now < typed + RESEND) {
            return Step::Nothing;
        }
        self.typed = Some(now);
        let order = match self.test() {
            _ if self.sequence == 0 => Order::Hello { features: &self.features, devices: &self.devices },
            Some((_, name)) => Order::Run { name, seed: self.seed },
            None => Order::End,
        };
        let mut line = String::new();
        // A string takes whatever is written.
        let _ = Request { sequence: self.sequence, order }.encode(self.nonce, &mut line);
        // Half a request may have come before it.
        Step::Type(format!("\n{line}\n"))
    }

    /// No test was asked for, and the board has not started anew before.
    fn is_only_greeted(&self) -> bool {
        self.sequence == 1 && self.typed.is_none() && !self.is_anew
    }

    /// The board has started once more after the hello: there is another one.
    fn anew(&mut self, now: Duration) -> Step {
        (self.sequence, self.typed, self.is_anew) = (0, None, true);
        self.judge = Judge::new(self.nonce, self.tests.iter().map(|test| test.0));
        self.ask(now)
    }

    /// A frame of the request's number came.
    fn answer(&mut self, event: Event, now: Duration) -> Result<Step, &'static str> {
        const ANOTHER: &str = "the board runs another image than that of the last ./x build";
        let Some(&(index, _)) = self.test() else {
            return match event {
                Event::Image { identity } if self.sequence == 0 && identity == self.identity => {
                    self.judge.event(Event::Hello { tests: self.tests.len() as u32 }, now)?;
                    Ok(self.advance())
                }
                Event::Image { .. } => Err(ANOTHER),
                event => self.judge.event(event, now).map(|()| Step::Over),
            };
        };
        let is_verdict = event.is_verdict_on(index);
        if !is_verdict && event != (Event::Begin { index }) {
            return Err(ANOTHER);
        }
        if self.judge.running().is_none() {
            self.judge.event(Event::Begin { index }, now)?;
        }
        if is_verdict {
            self.judge.event(event, now)?;
            return Ok(self.advance());
        }
        Ok(Step::Nothing)
    }

    /// The request is answered; the next one is typed when the guest is ready for it.
    fn advance(&mut self) -> Step {
        (self.sequence, self.typed) = (self.sequence + 1, None);
        Step::Nothing
    }
}

#[cfg(test)]
mod tests;
