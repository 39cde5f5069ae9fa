//! Conversations over good and bad lines with boards of all kinds. The guest's side is its own code ([`Responder`]).

use std::time::Duration;

use granule_protocol::{ASK, Event, Frame, Nonce, REQUEST_BYTES, Reply, Responder};
use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{Conversation, Step};
use crate::judge::{Boot, Ending, Judge, Lie, Verdict};
use crate::noise::Noise;
use crate::serial::Lines;

const NONCE: Nonce = Nonce(0x5eed);
const IDENTITY: u32 = 77;
/// Silences after which a test's limit is over, and after which the guest asks again.
const PATIENCE: u32 = 12;
const SILENCE: Duration = Duration::from_secs(2);

/// The behaviour of a test of the board.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    Passes,
    Fails,
    /// Passes without a check.
    ChecksNothing,
    /// The board is silent from then on.
    Hangs,
    /// The board starts again.
    Resets,
    /// Prints a verdict of its own, and fails.
    Forges,
    /// The board stops after the verdict.
    DiesAfterwards,
}

/// A board: the guest's side of the conversation, and what stands in its buffer for the line.
struct Board {
    responder: Responder<Vec<u8>>,
    tests: Vec<Does>,
    is_alive: bool,
    output: String,
    runs: Vec<u32>,
}

impl Board {
    fn new(tests: &[Does]) -> Self {
        let runs = vec![0; tests.len()];
        Self {
            responder: Responder::new(vec![0; REQUEST_BYTES]),
            tests: tests.into(),
            is_alive: true,
            output: String::new(),
            runs,
        }
    }

    fn frame(&mut self, event: Event) {
        let (nonce, sequence) = self.responder.port(|_| ()).expect("there was a hello").place();
        self.output.push('\n');
        Frame { sequence, event }.encode(nonce, &mut self.output).unwrap();
        self.output.push('\n');
    }

    fn ask(&mut self) {
        match self.responder.port(|_| ()) {
            Some(_) => self.frame(Event::Ready),
            None => self.output.push_str(&format!("\n{ASK}\n")),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if !self.is_alive {
                return;
            }
            match self.responder.take(byte) {
                Reply::Nothing | Reply::Damaged => continue,
                Reply::Load(_) | Reply::Data(_) | Reply::Start => unreachable!("the runner asks for tests"),
                Reply::Answer(event) => self.frame(event),
                Reply::Hello { features, devices } => {
                    assert_eq!([features, devices], ["smp,edu", "edu"]);
                    self.answer(Event::Image { identity: IDENTITY });
                }
                Reply::Run { name, seed } => {
                    let index = name.strip_prefix("a::t").unwrap().parse().unwrap();
                    assert_eq!(seed, 9);
                    self.run(index);
                }
            }
            if self.is_alive {
                self.ask();
            }
        }
    }

    fn run(&mut self, index: u32) {
        self.runs[index as usize] += 1;
        self.frame(Event::Begin { index });
        self.output.push_str("output of the test");
        match self.tests[index as usize] {
            Does::Passes => self.answer(Event::Pass { index, checks: 1 }),
            Does::Fails => self.answer(Event::Fail { index, checks: 1, failures: 1 }),
            Does::ChecksNothing => self.answer(Event::Pass { index, checks: 0 }),
            Does::Hangs => self.is_alive = false,
            Does::Resets => self.responder = Responder::new(vec![0; REQUEST_BYTES]),
            Does::Forges => {
                self.output.push('\n');
                let frame = Frame { sequence: index + 1, event: Event::Pass { index, checks: 1 } };
                frame.encode(Nonce(0x1234_5678), &mut self.output).unwrap();
                self.output.push('\n');
                self.answer(Event::Fail { index, checks: 1, failures: 1 });
            }
            Does::DiesAfterwards => {
                self.answer(Event::Pass { index, checks: 1 });
                self.is_alive = false;
            }
        }
    }

    fn answer(&mut self, event: Event) {
        self.responder.answer(event);
        self.frame(event);
    }
}

fn conversation(nonce: Nonce, tests: &[u32], identity: u32) -> Conversation {
    Conversation {
        nonce,
        tests: tests.iter().map(|&index| (index, format!("a::t{index}"))).collect(),
        features: "smp,edu".into(),
        devices: "edu".into(),
        seed: 9,
        identity,
        sequence: 0,
        typed: None,
        is_anew: false,
        judge: Judge::new(nonce, tests.iter().copied()),
    }
}

/// A conversation over a line with this noise to the board and from it.
fn converse(board: &mut Board, mut talk: Conversation, mut to: Noise, mut from: Noise) -> Boot {
    let (mut lines, mut now, mut silences, mut sequence) = (Lines::default(), Duration::ZERO, 0, 0);
    while silences < PATIENCE {
        if board.output.is_empty() {
            (now, silences) = (now + SILENCE, silences + 1);
            if board.is_alive {
                board.ask();
            }
        }
        let output = from.pass(std::mem::take(&mut board.output).as_bytes());
        for line in lines.feed(&output) {
            match talk.line(&line, now) {
                Ok(Step::Nothing) => {}
                Ok(Step::Type(text)) => board.take(&to.pass(text.as_bytes())),
                Ok(Step::Over) => return talk.judge.end(&Ending::Parted),
                Err(lie) => return talk.judge.end(&Ending::Lied(lie)),
            }
        }
        if talk.sequence != sequence {
            (silences, sequence) = (0, talk.sequence);
        }
    }
    talk.judge.end(&Ending::TimedOut(Duration::from_secs(9)))
}

fn quiet() -> [Noise; 2] {
    [Noise::new(0, 0), Noise::new(0, 0)]
}

/// The verdict of each test, over a good line.
fn outcome(tests: &[Does]) -> Vec<(u32, Verdict)> {
    let mut board = Board::new(tests);
    let indices: Vec<u32> = (0..tests.len() as u32).collect();
    let [to, from] = quiet();
    let boot = converse(&mut board, conversation(NONCE, &indices, IDENTITY), to, from);
    assert!(board.runs.iter().all(|&runs| runs <= 1), "{:?}", board.runs);
    boot.outcomes.into_iter().map(|(index, outcome)| (index, outcome.verdict)).collect()
}

fn failed(why: &str) -> Verdict {
    Verdict::Failed(why.into())
}

#[test]
fn each_test_runs_once_and_has_its_verdict() {
    let verdicts = outcome(&[Does::Passes, Does::Fails, Does::ChecksNothing, Does::Passes]);
    let bad = failed("1 failed, of 1 checks and the audit");
    let expected = [Verdict::Passed(1), bad, failed("made no checks"), Verdict::Passed(1)];
    assert_eq!(verdicts, (0..).zip(expected).collect::<Vec<_>>());
}

#[test]
fn a_board_that_is_gone_fails_the_test_during_or_after_which_it_went() {
    let why = |does| match outcome(&[Does::Passes, does, Does::Passes]).as_slice() {
        [(0, Verdict::Passed(1)), (1, Verdict::Failed(why))] => why.clone(),
        other => panic!("{does:?}: {other:?}"),
    };
    assert_eq!(why(Does::Hangs), "hung: the time limit of 9 s passed");
    assert_eq!(why(Does::DiesAfterwards), "passed, and then hung: the time limit of 9 s passed");
    assert!(why(Does::Resets).starts_with("the board has started anew"));
    assert!(why(Does::Forges).starts_with("a frame has a nonce that is not this conversation's"));
}

#[test]
fn a_conversation_that_was_broken_off_is_followed_by_another() {
    let mut board = Board::new(&[Does::Passes, Does::Passes]);
    board.ask();
    let mut first = conversation(Nonce(1), &[0, 1], IDENTITY);
    for _ in 0..2 {
        let lines = Lines::default().feed(std::mem::take(&mut board.output).as_bytes());
        for line in lines {
            if let Step::Type(text) = first.line(&line, Duration::ZERO).unwrap() {
                board.take(text.as_bytes());
            }
        }
    }
    assert_eq!(board.runs, [1, 0]);
    let [to, from] = quiet();
    let boot = converse(&mut board, conversation(Nonce(2), &[1], IDENTITY), to, from);
    assert_eq!(boot.outcomes.len(), 1, "{boot:?}");
    assert_eq!(boot.outcomes[0].1.verdict, Verdict::Passed(1));
}

#[test]
fn a_reset_that_takes_effect_behind_the_hello_is_followed_by_another_hello_once() {
    let mut talk = conversation(NONCE, &[0], IDENTITY);
    let mut image = String::new();
    Frame { sequence: 0, event: Event::Image { identity: IDENTITY } }.encode(NONCE, &mut image).unwrap();
    let Ok(Step::Type(hello)) = talk.line(ASK, Duration::ZERO) else { panic!("no hello") };
    assert_eq!(talk.line(&image, Duration::ZERO), Ok(Step::Nothing));
    assert_eq!(talk.line(ASK, Duration::ZERO), Ok(Step::Type(hello)));
    assert_eq!(talk.line(&image, Duration::ZERO), Ok(Step::Nothing));
    assert!(talk.line(ASK, Duration::ZERO).is_err(), "a board that starts for ever");
}

#[test]
fn a_reset_command_has_no_input_and_a_limit() {
    let run = |command| super::run_within(command, Duration::from_millis(300)).map_err(|error| error.to_string());
    // It ends at the end of its input.
    assert_eq!(super::run_within("cat", Duration::from_secs(600)).ok(), Some(()));
    assert!(run("while :; do sleep 0.1; done").unwrap_err().contains("has not ended"));
    let failed = super::run_within("exit 3", Duration::from_secs(600)).unwrap_err().to_string();
    assert!(failed.contains("exit status: 3"), "{failed}");
}

#[test]
fn another_image_is_refused() {
    let mut board = Board::new(&[Does::Passes]);
    let [to, from] = quiet();
    let boot = converse(&mut board, conversation(NONCE, &[0], IDENTITY + 1), to, from);
    let (why, _) = boot.failure.unwrap();
    assert!(why.starts_with("the board runs another image"), "{why}");
    let mut talk = conversation(NONCE, &[1], IDENTITY);
    let mut line = String::new();
    Frame { sequence: 0, event: Event::Image { identity: IDENTITY } }.encode(NONCE, &mut line).unwrap();
    talk.line(&line, Duration::ZERO).unwrap();
    line.clear();
    Frame { sequence: 1, event: Event::Begin { index: 0 } }.encode(NONCE, &mut line).unwrap();
    let Err(Lie(why)) = talk.line(&line, Duration::ZERO) else { panic!("another test began") };
    assert!(why.starts_with("the board runs another image"), "{why}");
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        6 => Just(Does::Passes),
        2 => Just(Does::Fails),
        1 => Just(Does::ChecksNothing),
        1 => Just(Does::Hangs),
        1 => Just(Does::Resets),
        1 => Just(Does::Forges),
        1 => Just(Does::DiesAfterwards),
    ]
}

proptest! {
    /// Over any line, what is said to have passed has passed, no test runs twice, and none has two verdicts.
    #[test]
    fn a_bad_line_passes_no_test_that_did_not_pass(
        tests in prop::collection::vec(does(), 1..8),
        seed: u64,
        per_million in prop_oneof![Just(0u32), 1u32..100_000],
    ) {
        let mut board = Board::new(&tests);
        let indices: Vec<u32> = (0..tests.len() as u32).collect();
        let talk = conversation(NONCE, &indices, IDENTITY);
        let boot = converse(&mut board, talk, Noise::new(seed, per_million), Noise::new(!seed, per_million));
        prop_assert!(board.runs.iter().all(|&runs| runs <= 1), "{:?}", board.runs);
        let verdicts = boot.outcomes.iter().map(|(index, outcome)| (*index, &outcome.verdict));
        for (place, (index, verdict)) in verdicts.enumerate() {
            prop_assert_eq!(place as u32, index);
            if matches!(verdict, Verdict::Passed(_)) {
                prop_assert_eq!(tests[index as usize], Does::Passes);
            }
        }
    }

    /// The runner asks again where a line damages a byte now and then, and no test fails for it.
    #[test]
    fn a_line_with_a_bad_byte_now_and_then_fails_no_test(seed: u64, count in 1usize..8) {
        let tests = vec![Does::Passes; count];
        let indices: Vec<u32> = (0..count as u32).collect();
        let talk = conversation(NONCE, &indices, IDENTITY);
        let boot = converse(&mut Board::new(&tests), talk, Noise::new(seed, 1000), Noise::new(!seed, 1000));
        prop_assert_eq!(boot.outcomes.len(), count, "{:?}", boot);
        for (_, outcome) in &boot.outcomes {
            prop_assert_eq!(&outcome.verdict, &Verdict::Passed(1));
        }
    }

    /// A line that is worse than that fails them, in time.
    #[test]
    fn a_line_that_damages_each_line_fails_the_test(seed: u64) {
        let talk = conversation(NONCE, &[0], IDENTITY);
        let boot = converse(&mut Board::new(&[Does::Passes]), talk, Noise::new(seed, 0), Noise::new(seed, 500_000));
        prop_assert!(boot.outcomes.iter().all(|(_, outcome)| outcome.verdict != Verdict::Passed(1)), "{:?}", boot);
    }
}
