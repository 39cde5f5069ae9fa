//! Benches on a board, asked for one by one over the line to its console.
//!
//! The unit is what the board's CPU counts: instructions and cycles by its PMU, else ticks of its virtual counter.
//! Nothing is compared: caches, clocks and the other CPUs are the board's own. A row whose points did not all arrive is
//! measured again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use granule_protocol::{BenchCounter, Event, Nonce, Order, Request};

use super::fit::Fit;
use super::list::{Bench, NULL};
use super::table::columns;
use crate::serial::{Limit, Line, Lines, Received};
use crate::session::fresh_nonce;
use crate::wire::{Heard, RESEND};

/// Until the board asks.
const FIRST: Limit = Limit::Clock(Duration::from_secs(120));
/// For an answer.
const LONGEST: Limit = Limit::Clock(Duration::from_secs(if cfg!(test) { 5 } else { 120 }));
/// How often a row is measured whose points do not all arrive.
const TRIES: u32 = 8;

/// A row as a board measured it.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// The unit that a size counts.
    pub unit: String,
    /// Each unit in which it was counted, and the points by size; empty: the board has not what the row needs.
    pub counts: Vec<(BenchCounter, Vec<(u32, u32)>)>,
}

/// Measures rows on the board at the end of `line`, which runs the build of that identity. `each` is given each row
/// once it is measured.
///
/// # Errors
/// The board runs something else, starts anew or answers no more.
pub fn measure(
    line: &mut dyn Line,
    identity: u32,
    rows: &[&Bench],
    each: &mut dyn FnMut(&Measured),
) -> Result<Vec<Measured>> {
    let mut talk = Talk::new(line, fresh_nonce());
    let hello = Order::Hello { features: "", devices: "" };
    let (_, answer) = talk.request(hello, FIRST)?;
    ensure!(answer == Event::Image { identity }, "the board runs another image than that of the last ./x build");
    let null = rows.iter().find(|row| row.name == NULL);
    ensure!(null.is_some(), "the row `{NULL}` is measured first: it finds out what the CPU counts");
    let mut counters = BenchCounter::ALL[..2].to_vec();
    let mut measured = Vec::new();
    for &row in rows {
        let mut counts = Vec::new();
        for &counter in &counters {
            counts.extend(talk.row(row, counter)?.map(|points| (counter, points)));
        }
        if row.name == NULL {
            if counts.is_empty() {
                counts.extend(talk.row(row, BenchCounter::Ticks)?.map(|points| (BenchCounter::Ticks, points)));
            }
            ensure!(!counts.is_empty(), "the board counts nothing");
            counters = counts.iter().map(|(counter, _)| *counter).collect();
        }
        let row = Measured { name: row.name.clone(), unit: row.unit.clone(), counts };
        each(&row);
        measured.push(row);
    }
    Ok(measured)
}

/// A conversation, in which one request is answered at a time.
struct Talk<'a> {
    line: &'a mut dyn Line,
    lines: Lines,
    /// Lines that have come and were not looked at.
    waiting: VecDeque<String>,
    nonce: Nonce,
    /// The number of the next request.
    sequence: u32,
    /// The last lines that are no frames.
    said: VecDeque<String>,
}

impl<'a> Talk<'a> {
    fn new(line: &'a mut dyn Line, nonce: Nonce) -> Self {
        let (waiting, said) = (VecDeque::new(), VecDeque::new());
        Self { line, lines: Lines::default(), waiting, nonce, sequence: 0, said }
    }

    /// The points of a row; `None` where the board has not what it needs.
    fn row(&mut self, row: &Bench, counter: BenchCounter) -> Result<Option<Vec<(u32, u32)>>> {
        let name = row.suite.as_ref().map_or_else(|| row.name.clone(), |suite| format!("{suite}:{}", row.name));
        for _ in 0..TRIES {
            let (points, answer) = self.request(Order::Run { name: &name, seed: counter.number() }, LONGEST)?;
            match answer {
                Event::Skip { index } if index == row.index => return Ok(None),
                Event::Pass { index, checks } if index == row.index => {
                    if checks as usize == points.len() {
                        return Ok(Some(points));
                    }
                }
                _ => bail!("the board runs another image than that of the last ./x build: {answer:?} to {name}"),
            }
        }
        bail!("of `{name}` never all points arrive: the line is too bad")
    }

    /// Types a request whenever the board asks for it, until it is answered: the points that came before the answer,
    /// and that.
    fn request(&mut self, order: Order<'_>, limit: Limit) -> Result<(Vec<(u32, u32)>, Event)> {
        let mut text = String::new();
        // A string takes whatever is written.
        let _ = Request { sequence: self.sequence, order }.encode(self.nonce, &mut text);
        let (mut typed, mut points) = (None::<Instant>, Vec::new());
        let deadline = self.line.deadline(limit);
        loop {
            let Some(line) = self.waiting.pop_front() else {
                match self.line.receive(deadline) {
                    Received::Bytes(bytes) => self.waiting.extend(self.lines.feed(&bytes)),
                    Received::Closed => bail!("the line was closed{}", self.heard()),
                    Received::Silence => {
                        bail!("no answer within {} s: {}{}", limit.seconds(), text.trim(), self.heard())
                    }
                }
                continue;
            };
            match Heard::of(&line, self.nonce, self.sequence) {
                Heard::Asks | Heard::Damaged | Heard::Answers(Event::Ready) => {
                    let now = self.line.now();
                    if typed.is_none_or(|typed| now >= typed + RESEND) {
                        typed = Some(now);
                        self.line.send(&format!("\n{text}\n"));
                    }
                }
                Heard::Answers(Event::Begin { .. }) => {}
                Heard::Answers(Event::Point { size, instructions, .. }) => points.push((size, instructions)),
                Heard::Answers(event) => {
                    self.sequence += 1;
                    return Ok((points, event));
                }
                Heard::Anew => bail!("the board has started anew{}", self.heard()),
                Heard::Late | Heard::Stranger => {}
                Heard::Output => {
                    const SHOWN: usize = 12;
                    self.said.extend((!line.is_empty()).then_some(line));
                    self.said.drain(..self.said.len().saturating_sub(SHOWN));
                }
            }
        }
    }

    /// The last lines of the board, for an error.
    fn heard(&self) -> String {
        let mut said = self.said.iter().fold(String::new(), |said, line| said + "\n  " + line);
        if !said.is_empty() {
            said.insert_str(0, "; the board printed:");
        }
        said
    }
}

/// The rows as a table to read, and the names of those that the board has not what they need for.
#[must_use]
pub fn table(board: &str, rows: &[Measured]) -> String {
    let words = ["row", "counted", "least", "largest", "fixed + each"];
    let mut lines = vec![words.map(str::to_owned).to_vec()];
    for row in rows {
        for (counter, points) in &row.counts {
            let point =
                |point: Option<&(u32, u32)>| point.map_or_else(String::new, |(n, taken)| format!("{n}: {taken}"));
            let several = points.len() > 1;
            lines.push(vec![
                row.name.clone(),
                match counter {
                    BenchCounter::Instructions => "instructions".into(),
                    BenchCounter::Cycles => "cycles".into(),
                    BenchCounter::Ticks => "ticks".into(),
                },
                point(points.first()),
                if several { point(points.last()) } else { String::new() },
                if several { Fit::of(points).to_string() } else { String::new() },
            ]);
        }
    }
    let title = format!(
        "{board}, over a wire: what its CPU counts of a call (instructions, cycles: its PMU; ticks: CNTVCT_EL0), compared \
         with nothing"
    );
    let missing: Vec<&str> = rows.iter().filter(|row| row.counts.is_empty()).map(|row| row.name.as_str()).collect();
    let left_out = if missing.is_empty() {
        String::new()
    } else {
        format!("left out, for want of a device, of a boot argument, or at EL0: {}\n", missing.join(", "))
    };
    columns(&title, &lines) + &left_out
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use granule_protocol::{BenchCounter, Event, Frame, REQUEST_BYTES, Reply, Responder};

    use super::{Bench, Measured, measure, table};
    use crate::noise::Noise;
    use crate::serial::{Deadline, Limit, Line, Received};

    /// A board that counts `counters`, at the end of a line with so many damaged bytes in a million.
    struct Board {
        responder: Responder<Vec<u8>>,
        counters: Vec<BenchCounter>,
        output: String,
        noise: [Noise; 2],
        /// The row in which it starts anew.
        resets_in: Option<&'static str>,
        runs: u32,
        /// Its clock, which goes on where it has nothing to say: the damage is to be the same however busy the host is.
        now: Instant,
    }

    const ROWS: [&str; 3] = ["null", "mm:fork", "smmu:map"];

    impl Board {
        fn new(counters: &[BenchCounter], per_million: u32) -> Self {
            let noise = [Noise::new(5, per_million), Noise::new(6, per_million)];
            let (responder, output) = (Responder::new(vec![0; REQUEST_BYTES]), String::new());
            Self { responder, counters: counters.into(), output, noise, resets_in: None, runs: 0, now: Instant::now() }
        }

        fn print(&mut self, event: Event) {
            let (nonce, sequence) = self.responder.port(|_| ()).expect("there was a hello").place();
            self.output.push('\n');
            Frame { sequence, event }.encode(nonce, &mut self.output).unwrap();
            self.output.push('\n');
        }

        fn take(&mut self, byte: u8) {
            let event = match self.responder.take(byte) {
                Reply::Answer(event) => event,
                Reply::Hello { .. } => Event::Image { identity: 9 },
                Reply::Run { name, .. } if self.resets_in == Some(name) => {
                    self.output.push_str("kernel panic: no more\n");
                    self.responder = Responder::new(vec![0; REQUEST_BYTES]);
                    return;
                }
                Reply::Run { name, seed } => {
                    let index = ROWS.iter().position(|row| *row == name).unwrap() as u32;
                    let counter = BenchCounter::numbered(seed).unwrap();
                    let is_counted = self.counters.contains(&counter) && index != 2;
                    self.runs += 1;
                    if is_counted {
                        self.print(Event::Begin { index });
                        for size in [1, 8, 64] {
                            let instructions = 10 + size * (seed as u32 + 1);
                            self.print(Event::Point { index, size, instructions, window: 0 });
                        }
                    }
                    if is_counted { Event::Pass { index, checks: 3 } } else { Event::Skip { index } }
                }
                _ => return,
            };
            self.responder.answer(event);
            self.print(event);
        }
    }

    impl Line for Board {
        fn deadline(&self, limit: Limit) -> Deadline {
            Deadline::new(limit, self.now, None, 1)
        }

        fn now(&self) -> Instant {
            self.now
        }

        fn receive(&mut self, _: Deadline) -> Received {
            if self.output.is_empty() {
                match self.responder.port(|_| ()) {
                    Some(_) => self.print(Event::Ready),
                    None => self.output.push_str("\n@granule?\n"),
                }
                // The runner types nothing twice within a second.
                self.now += Duration::from_millis(20);
            }
            Received::Bytes(self.noise[0].pass(std::mem::take(&mut self.output).as_bytes()))
        }

        fn send(&mut self, text: &str) {
            for byte in self.noise[1].pass(text.as_bytes()) {
                self.take(byte);
            }
        }
    }

    fn rows() -> Vec<Bench> {
        let row = |(index, name): (u32, &&str)| {
            let (suite, name) = name.split_once(':').map_or((None, *name), |(suite, name)| (Some(suite), name));
            Bench {
                index,
                suite: suite.map(str::to_owned),
                name: name.to_owned(),
                unit: "page".into(),
                on: "default".into(),
                also: Vec::new(),
                bootargs: String::new(),
            }
        };
        (0..).zip(&ROWS).map(row).collect()
    }

    fn run(board: &mut Board) -> Result<Vec<Measured>, String> {
        let rows = rows();
        let rows: Vec<&Bench> = rows.iter().collect();
        let mut seen = 0;
        let measured = measure(board, 9, &rows, &mut |_| seen += 1).map_err(|error| format!("{error:#}"))?;
        assert_eq!(seen, measured.len());
        Ok(measured)
    }

    #[test]
    fn each_row_is_measured_by_what_the_cpu_counts() {
        use BenchCounter::{Cycles, Instructions, Ticks};
        let points = |seed: u32| [1, 8, 64].map(|size| (size, 10 + size * (seed + 1))).to_vec();
        for (has, expected) in [
            (&[Instructions, Cycles][..], vec![(Instructions, points(8)), (Cycles, points(17))]),
            (&[Cycles], vec![(Cycles, points(17))]),
            (&[Ticks], vec![(Ticks, points(0))]),
        ] {
            let measured = run(&mut Board::new(has, 0)).unwrap();
            assert_eq!((measured[0].counts.clone(), measured[1].counts.clone()), (expected.clone(), expected));
            assert_eq!(measured[2].counts, []);
        }
        assert!(run(&mut Board::new(&[], 0)).unwrap_err().contains("counts nothing"));
    }

    #[test]
    fn points_that_are_lost_are_measured_again() {
        let good = run(&mut Board::new(&[BenchCounter::Cycles], 0)).unwrap();
        let mut board = Board::new(&[BenchCounter::Cycles], 8000);
        assert_eq!(run(&mut board).unwrap(), good);
        assert!(board.runs > 4, "{} runs", board.runs);
    }

    #[test]
    fn a_board_that_starts_anew_or_runs_something_else_is_named() {
        let mut board = Board::new(&[BenchCounter::Cycles], 0);
        board.resets_in = Some("mm:fork");
        let why = run(&mut board).unwrap_err();
        assert!(why.contains("has started anew; the board printed:\n  kernel panic: no more"), "{why}");
        let rows = rows();
        let mut board = Board::new(&[BenchCounter::Cycles], 0);
        let why = measure(&mut board, 8, &[&rows[0]], &mut |_| {}).unwrap_err().to_string();
        assert!(why.contains("another image"), "{why}");
    }

    #[test]
    fn the_table_says_what_was_counted() {
        let text = table("rpi", &run(&mut Board::new(&[BenchCounter::Cycles], 0)).unwrap());
        assert!(text.contains("compared with nothing") && text.contains("left out"), "{text}");
        let line = text.lines().find(|line| line.starts_with("fork ")).unwrap();
        assert!(line.contains("cycles") && line.contains("1: 28") && line.contains("64: 1162"), "{text}");
        assert!(line.contains("10 + 18"), "{text}");
    }
}
