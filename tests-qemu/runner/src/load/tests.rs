//! Loads over good and bad lines. The guest's side is its own code ([`Responder`], [`Incoming`]).

use std::iter::{empty, repeat};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding as _};
use granule_protocol::{ASK, Event, Frame, Incoming, Nonce, Order, REQUEST_BYTES, Refusal, Reply, Request, Responder};
use proptest::prelude::{prop_assert, proptest};

use super::{Entered, Files, RESEND, Sender, Step};
use crate::noise::Noise;
use crate::serial::{Deadline, Limit, Line, Lines, Received};

const NONCE: Nonce = Nonce(0x10ad);
/// After this silence the loader asks again.
const SILENCE: Duration = Duration::from_secs(2);

/// A board with the loader, and what stands in its buffer for the line.
struct Board {
    responder: Responder<Vec<u8>>,
    /// Memory that is free.
    free: u32,
    incoming: Option<(Incoming, [Vec<u8>; 3])>,
    output: String,
    /// Kernels that were entered.
    entered: Vec<[Vec<u8>; 3]>,
    /// The number of the request after which the power fails, once.
    fails_after: Option<u32>,
}

impl Board {
    fn new(free: u32) -> Self {
        let responder = Responder::new(vec![0; REQUEST_BYTES]);
        Self { responder, free, incoming: None, output: String::new(), entered: Vec::new(), fails_after: None }
    }

    fn send(&mut self, event: Event) {
        let Some(port) = self.responder.port(|_| ()) else { return };
        let (nonce, sequence) = port.place();
        self.output.push('\n');
        Frame { sequence, event }.encode(nonce, &mut self.output).unwrap();
        self.output.push('\n');
    }

    fn ask(&mut self) {
        match self.responder.port(|_| ()) {
            Some(_) => self.send(Event::Ready),
            None => self.output.push_str(&format!("\n{ASK}\n")),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if !self.entered.is_empty() {
                return;
            }
            let event = match self.responder.take(byte) {
                Reply::Nothing | Reply::Hello { .. } | Reply::Run { .. } => continue,
                Reply::Damaged => {
                    self.send(Event::Again);
                    continue;
                }
                Reply::Answer(event) => event,
                Reply::Load(load) if load.memory > self.free => Event::Refused { why: Refusal::Memory },
                Reply::Load(load) => {
                    let sizes = [load.kernel, load.initrd, load.bootargs];
                    self.incoming = Some((Incoming::new(load), sizes.map(|size| vec![0xa5; size as usize])));
                    Event::Ready
                }
                Reply::Data(text) => {
                    let (incoming, [a, b, c]) = self.incoming.as_mut().expect("a load is under way");
                    let taken = incoming.take(text, &mut [a, b, c]);
                    taken.map_or_else(|why| Event::Refused { why }, |()| Event::Ready)
                }
                Reply::Start => {
                    let (incoming, [a, b, c]) = self.incoming.as_ref().expect("a load is under way");
                    incoming
                        .check(&[a, b, c])
                        .map_or_else(|why| Event::Refused { why }, |()| Event::Starts { level: 2 })
                }
            };
            self.responder.answer(event);
            self.send(event);
            if matches!(event, Event::Starts { .. }) {
                (0..2).for_each(|_| self.send(event));
                self.entered.extend(self.incoming.take().map(|(_, parts)| parts));
            }
            let number = self.responder.port(|_| ()).map(|port| port.place().1);
            if self.fails_after.is_some() && self.fails_after == number {
                self.fails_after = None;
                (self.responder, self.incoming) = (Responder::new(vec![0; REQUEST_BYTES]), None);
            }
        }
    }
}

/// A kernel of so many bytes, with contents that hardly compress.
fn files(bytes: usize, seed: u64) -> Files {
    let mut noise = Noise::new(seed, 1_000_000);
    let mut kernel: Vec<u8> = (0..bytes).flat_map(|at| noise.pass(&[at as u8])).collect();
    kernel.resize(bytes, 7);
    for (at, word) in [(8, 0u64), (16, 2 * bytes as u64), (24, 0b1010)] {
        kernel[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    kernel[56..60].copy_from_slice(b"ARM\x64");
    Files { kernel, initrd: vec![b'i'; bytes / 3], bootargs: "maxcpus=1".into() }
}

/// A load over a line with these directions, until it is over or `limit` seconds have passed.
fn load(board: &mut Board, sender: &mut Sender, lines: &mut [Noise; 2], limit: u64) -> Result<Option<u32>, String> {
    let (mut cut, mut now) = (Lines::default(), Duration::ZERO);
    while now < Duration::from_secs(limit) {
        if board.output.is_empty() {
            // Neither says anything: the loader asks after a while, unless it is gone.
            now += SILENCE;
            if !board.entered.is_empty() {
                return Ok(None);
            }
            board.ask();
        }
        let output = std::mem::take(&mut board.output);
        for line in cut.feed(&lines[0].pass(output.as_bytes())) {
            now += Duration::from_millis(1);
            match sender.line(&line, now).map_err(|error| format!("{error:#}"))? {
                Step::Nothing | Step::Heard => {}
                Step::Type(request) => board.take(&lines[1].pass(request.as_bytes())),
                Step::Over(level) => return Ok(Some(level)),
            }
        }
    }
    Err(format!("{} of {} bytes in {limit} s", sender.arrived, sender.stream.len()))
}

fn good() -> [Noise; 2] {
    bad(0, 0)
}

fn bad(seed: u64, per_million: u32) -> [Noise; 2] {
    [Noise::new(seed, per_million), Noise::new(!seed, per_million)]
}

/// The board entered this kernel, once.
fn has_entered(board: &Board, files: &Files) -> bool {
    let Files { kernel, initrd, bootargs } = files.clone();
    board.entered == [[kernel, initrd, bootargs.into_bytes()]]
}

#[test]
fn a_kernel_arrives_over_a_good_line_in_few_requests() {
    let (mut board, files) = (Board::new(1 << 20), files(100_000, 1));
    let mut sender = Sender::new(NONCE, &files).unwrap();
    assert_eq!(load(&mut board, &mut sender, &mut good(), 100), Ok(Some(2)));
    assert!(has_entered(&board, &files));
    let least = sender.stream.len().div_ceil(granule_protocol::DATA_BYTES) as u32;
    assert!(sender.sequence <= least + 16, "{} requests of at least {least}", sender.sequence);
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Bytes that are lost, doubled and changed: what is entered is what was sent.
    #[test]
    fn a_bad_line_costs_time(seed: u64, per_million in 0u32..12_000, bytes in 64usize..20_000) {
        let (mut board, files) = (Board::new(1 << 20), files(bytes, seed));
        let mut sender = Sender::new(NONCE, &files).unwrap();
        let ended = load(&mut board, &mut sender, &mut bad(seed, per_million), 100_000);
        prop_assert!(matches!(ended, Ok(Some(2) | None)), "{ended:?}");
        prop_assert!(has_entered(&board, &files));
    }

    /// Wherever the power fails, the load begins again. The sender cannot tell a board that fails before the first answer
    /// arrives from one that never answered.
    #[test]
    fn a_board_that_starts_anew_gets_all_of_it(after in 0u32..7, seed: u64, per_million in 0u32..2_000) {
        let (mut board, files) = (Board::new(1 << 20), files(9_000, seed));
        board.fails_after = Some(after);
        let mut sender = Sender::new(NONCE, &files).unwrap();
        let ended = load(&mut board, &mut sender, &mut bad(seed, per_million), 100_000);
        prop_assert!(matches!(ended, Ok(Some(2) | None)), "{ended:?}");
        prop_assert!(has_entered(&board, &files));
        prop_assert!(sender.restarts == 1 || (after, sender.restarts) == (0, 0), "{} restarts", sender.restarts);
    }

    /// Whatever a hostile board prints, the sender neither panics nor believes that a kernel was entered before it has
    /// sent it.
    #[test]
    fn any_lines_are_taken(lines in proptest::collection::vec("(@granule[? ]?)?[0-9a-z ]{0,40}", 0..40)) {
        let mut sender = Sender::new(NONCE, &files(500, 1)).unwrap();
        for line in lines {
            prop_assert!(!matches!(sender.line(&line, SILENCE), Ok(Step::Over(_))));
        }
    }
}

/// The first load is broken off; the second has another number, and nothing of the first is in it.
#[test]
fn a_loader_is_asked_twice() {
    let (mut board, files) = (Board::new(1 << 20), [files(30_000, 1), files(20_000, 2)]);
    let mut first = Sender::new(NONCE, &files[0]).unwrap();
    board.ask();
    let mut cut = Lines::default();
    for _ in 0..9 {
        for line in cut.feed(&std::mem::take(&mut board.output).into_bytes()) {
            if let Step::Type(request) = first.line(&line, Duration::ZERO).unwrap() {
                board.take(request.as_bytes());
            }
        }
    }
    assert!(first.arrived > 0);
    let mut second = Sender::new(Nonce(NONCE.0 + 1), &files[1]).unwrap();
    assert_eq!(load(&mut board, &mut second, &mut good(), 100), Ok(Some(2)));
    assert!(has_entered(&board, &files[1]));
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let why = |board: &mut Board, files: &Files| {
        let mut sender = Sender::new(NONCE, files).unwrap();
        load(board, &mut sender, &mut good(), 100).unwrap_err()
    };
    let files = files(3000, 1);
    let too_large = why(&mut Board::new(5999), &files);
    assert!(too_large.contains("not so much free memory") && too_large.contains("takes 6000 of memory"), "{too_large}");
    let mut sender = Sender::new(NONCE, &files).unwrap();
    assert_eq!(load(&mut Board::new(6000), &mut sender, &mut good(), 100), Ok(Some(2)), "just enough");
    let no_image = Files { kernel: vec![0; 500], ..files };
    assert!(format!("{:#}", Sender::new(NONCE, &no_image).unwrap_err()).contains("no arm64 Image"));
}

/// The line of a frame.
fn frame(sequence: u32, event: Event) -> String {
    let mut line = String::new();
    Frame { sequence, event }.encode(NONCE, &mut line).unwrap();
    line
}

/// The request that the sender types at this line.
#[track_caller]
fn typed(sender: &mut Sender, line: &str, now: Duration) -> String {
    match sender.line(line, now) {
        Ok(Step::Type(request)) => request,
        other => panic!("{line}: {other:?}"),
    }
}

/// A sender whose requests were all answered, and that has just asked for the start; and that request.
fn asks_for_the_start() -> (Sender, String) {
    let mut sender = Sender::new(NONCE, &files(64, 1)).unwrap();
    let mut request = typed(&mut sender, ASK, Duration::ZERO);
    for _ in 0..9 {
        if sender.may_be_entered() {
            return (sender, request);
        }
        let ready = frame(sender.sequence, Event::Ready);
        request = typed(&mut sender, &ready, Duration::ZERO);
    }
    panic!("{} of {} bytes", sender.arrived, sender.stream.len());
}

/// Each byte of the streams is in one request, in its order: of 376 bytes, and twice as many after four that came through
/// at once. A board that starts anew gets them from the first again.
#[test]
fn requests_have_all_of_the_stream() {
    let mut sender = Sender::new(NONCE, &files(9_000, 1)).unwrap();
    let stream = sender.stream.clone();
    let begin = typed(&mut sender, ASK, Duration::ZERO);
    for _ in 0..2 {
        let (mut sent, mut sizes) = (Vec::new(), Vec::new());
        while sent.len() < stream.len() {
            let ready = frame(sender.sequence, Event::Ready);
            let request = typed(&mut sender, &ready, Duration::ZERO);
            let (_, Request { sequence, order }) = Request::decode(request.trim()).unwrap();
            let Order::Data { text } = order else { panic!("{order:?} after {} of {}", sent.len(), stream.len()) };
            let data = Base64::decode_vec(text).unwrap();
            assert!(!data.is_empty());
            sizes.push(data.len());
            sent.extend(data);
            assert_eq!(sequence as usize, sizes.len());
        }
        assert!(sent == stream, "{} bytes of {}", sent.len(), stream.len());
        if sender.restarts == 0 {
            assert_eq!(sizes[..8], [376, 376, 376, 752, 752, 752, 752, 1504]);
            assert_eq!(typed(&mut sender, ASK, Duration::ZERO), begin, "the load, from its beginning");
        }
    }
}

/// The answer to the start was lost, and the loader goes on: it has refused, or has not got the request.
#[test]
fn a_start_that_is_not_answered_is_asked_for_again() {
    for (number, event) in [(0, Event::Ready), (0, Event::Again), (1, Event::Ready)] {
        let (mut sender, start) = asks_for_the_start();
        let line = frame(sender.sequence - number, event);
        let early = RESEND - Duration::from_millis(1);
        assert_eq!(sender.line(&line, early).unwrap(), Step::Heard, "it may be on its way: {line}");
        assert_eq!(typed(&mut sender, &line, RESEND), start, "{line}");
        assert_eq!(sender.line(&line, RESEND + early).unwrap(), Step::Heard, "{line}");
        let refused = frame(sender.sequence, Event::Refused { why: Refusal::Checksum });
        assert!(sender.line(&refused, RESEND).unwrap_err().to_string().contains("another checksum"));
    }
    // A line that arrived damaged is no longer on its way.
    let (mut sender, start) = asks_for_the_start();
    let again = frame(sender.sequence - 1, Event::Again);
    assert_eq!(typed(&mut sender, &again, Duration::ZERO), start);
    let starts = frame(sender.sequence, Event::Starts { level: 2 });
    assert_eq!(sender.line(&starts, Duration::ZERO).unwrap(), Step::Over(2));
}

/// The sender's answers to frames in this order.
fn steps(events: &[(u32, Event)]) -> Result<Vec<Step>, String> {
    let mut sender = Sender::new(NONCE, &files(64, 1)).unwrap();
    let mut now = Duration::ZERO;
    events
        .iter()
        .map(|&(sequence, event)| {
            now += Duration::from_millis(1);
            sender.line(&frame(sequence, event), now).map_err(|error| error.to_string())
        })
        .collect()
}

#[test]
fn what_else_answers_is_named() {
    let why = |event| steps(&[(0, event)]).unwrap_err();
    assert!(why(Event::Image { identity: 3 }).contains("the image of the tests, not the loader"));
    assert!(why(Event::Refused { why: Refusal::Tree }).contains("the board's device tree"));
    assert!(why(Event::Starts { level: 1 }).contains("no place here"), "nothing was sent");
    // Each ask is answered once within a second, and an answer of long ago by nothing.
    let ready = steps(&[(0, Event::Ready), (0, Event::Ready), (0, Event::Again), (7, Event::Ready)]).unwrap();
    assert!(matches!(ready[..], [Step::Type(_), Step::Heard, Step::Type(_), Step::Heard]), "{ready:?}");
}

#[test]
fn a_board_that_starts_again_and_again_is_given_up() {
    let mut sender = Sender::new(NONCE, &files(5000, 1)).unwrap();
    let mut restarts = 0;
    let why = loop {
        let now = Duration::from_secs(restarts * 10);
        sender.line(&frame(0, Event::Ready), now).unwrap();
        match sender.line(ASK, now) {
            Ok(step) => assert!(matches!(step, Step::Type(_)), "{step:?}"),
            Err(why) => break why.to_string(),
        }
        restarts += 1;
        assert!(restarts < 10);
    };
    assert!(restarts == 3 && why.contains("again and again"), "{restarts} {why}");
}

/// The start was asked for, and the loader asks anew: the kernel has ended, or reset the board.
#[test]
fn a_kernel_that_resets_the_board_is_not_loaded_again() {
    let (mut sender, _) = asks_for_the_start();
    assert!(sender.line(ASK, SILENCE).unwrap_err().to_string().contains("has started anew"));
}

/// A line whose pieces arrive, each so long after the one before; then it is silent, or unplugged. Its clock is its own.
struct Arriving {
    pieces: Box<dyn Iterator<Item = (Duration, String)>>,
    end: End,
    now: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Silent,
    Unplugged,
}

impl Arriving {
    fn new(pieces: impl Iterator<Item = (Duration, String)> + 'static, end: End) -> Self {
        Self { pieces: Box::new(pieces), end, now: Instant::now() }
    }
}

impl Line for Arriving {
    fn deadline(&self, limit: Limit) -> Deadline {
        Deadline::new(limit, self.now, None, 1)
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn receive(&mut self, deadline: Deadline) -> Received {
        match self.pieces.next() {
            None if self.end == End::Unplugged => Received::Closed,
            Some((later, piece)) if !deadline.has_passed(self.now + later, || None) => {
                self.now += later;
                Received::Bytes(piece.into_bytes())
            }
            _ => Received::Silence,
        }
    }

    fn send(&mut self, _: &str) {}
}

/// Each of them at once.
fn at_once(lines: &[&str]) -> impl Iterator<Item = (Duration, String)> + use<> {
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
    lines.into_iter().map(|line| (Duration::ZERO, line))
}

/// For ever, with a pause of so many seconds.
fn again(seconds: u64, line: &str) -> impl Iterator<Item = (Duration, String)> + use<> {
    repeat((Duration::from_secs(seconds), format!("{line}\n")))
}

/// Two say nothing of a loader; then one asks and falls silent, one asks for ever and gets nothing, one goes on where
/// its load is complete, and one is unplugged.
#[test]
fn a_line_that_is_lost_is_named() {
    let first = Duration::from_secs(30);
    let load = |mut line: Arriving, sender| super::converse(&mut line, sender, first, &mut |_, _| {});
    let sender = || Sender::new(NONCE, &files(64, 1)).unwrap();
    let why = |line| format!("{:#}", load(line, sender()).unwrap_err());
    assert!(why(Arriving::new(empty(), End::Silent)).contains("no loader has asked for a kernel within 30 s"));
    let other = why(Arriving::new(at_once(&["U-Boot 2025.01"]).chain(again(1, "")), End::Silent));
    assert!(other.contains("no loader has asked") && other.contains("the board printed:\n  U-Boot"), "{other}");
    let lost = "the line is lost: no answer for 60 s, after 0 of";
    assert!(why(Arriving::new(at_once(&[ASK]), End::Silent)).contains(lost));
    assert!(why(Arriving::new(again(2, ASK), End::Silent)).contains(lost));
    let unplugged = why(Arriving::new(at_once(&[ASK, "bye"]), End::Unplugged));
    assert!(unplugged.contains("the line was closed; the board printed:\n  bye"), "{unplugged}");
    // The loader has all, and asks for the start again and again.
    let (whole, _) = asks_for_the_start();
    let last = frame(whole.sequence - 1, Event::Ready);
    let why = load(Arriving::new(at_once(&[&last]).chain(again(2, &last)), End::Silent), whole).unwrap_err();
    assert!(format!("{why:#}").contains("the line is lost"), "{why:#}");
}

/// The loader's last answer is lost: it asks no more, and the kernel prints.
#[test]
fn a_kernel_whose_start_is_not_confirmed_is_entered_all_the_same() {
    let (sender, _) = asks_for_the_start();
    let ready: Vec<String> = (0..sender.sequence).map(|sequence| frame(sequence, Event::Ready)).collect();
    let lines: Vec<&str> = ready.iter().map(String::as_str).chain(["boots"]).collect();
    let mut line = Arriving::new(at_once(&lines), End::Silent);
    let sender = Sender::new(NONCE, &files(64, 1)).unwrap();
    let entered = super::converse(&mut line, sender, SILENCE, &mut |_, _| {}).unwrap();
    assert_eq!(entered, Entered { level: None, output: "boots".into() });
}
