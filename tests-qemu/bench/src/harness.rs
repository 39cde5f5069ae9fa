//! Measures the rows that the boot arguments choose, and reports to the host what each took.
//!
//! The unit is the instruction, counted by event INST_RETIRED in event counter 0, which the entry code started. Under
//! `-icount` it is exact, and it counts *all* CPUs, so the machine has one, and row `null` proves that nothing else
//! runs: a loop of a known number of instructions, measured before the first row and after the last.
//!
//! Two markers enclose the measured code, instructions that do nothing: `hint #96` and `hint #97`. By them the
//! host finds the same windows in a trace of executed instructions, and counts the barriers in each.

#![allow(unsafe_code, reason = "calls functions of the kernel whose contracts the bench keeps")]

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};

use granule::bootargs::{self, PARAMETERS, Parameter, Refused};
use granule::chip::{console, power, timer};
use granule::linux::process;
use granule::linux::process::stack::Words;
use granule::linux::process::status::ProcessEnd;
use granule::{kernel, sched, smp};
use granule_protocol::{BenchRecord, Event, NULL_TURNS, Nonce, Port, REPETITIONS, text, windows_at_el0};
use linkme::distributed_slice;

use crate::{scale, tlb, wire};

/// A row's record; see `bench!`.
pub(crate) type Record = BenchRecord<fn(&mut Bench<'_>)>;

/// All rows of this image. The host reads the same bytes from the ELF.
#[distributed_slice]
pub(crate) static BENCHES: [Record];

/// The initrd's program that measures at EL0.
const PROGRAM: &str = "bench";
/// More points than any row has: what is above is an error of the program.
const MOST_POINTS: u8 = 16;
/// Frames in a full magazine.
const MAGAZINE: usize = 64;

/// Puts `fn function(bench: &mut Bench<'_>)` on the list, as a row: `bench!(zero, "memory/zero", "page", also("a72"));`
macro_rules! bench {
    ($function:ident, $name:expr, $unit:literal $(, $option:ident($($value:expr)?))*) => {
        const _: () = {
            #[allow(unsafe_code, reason = "collected by the linker")]
            #[linkme::distributed_slice($crate::harness::BENCHES)]
            static RECORD: $crate::harness::Record =
                granule_protocol::BenchRecord::new($function as fn(&mut $crate::harness::Bench<'_>), $name, $unit)
                    $(.$option($($value)?))*;
        };
    };
}
pub(crate) use bench;

/// The sizes of a row whose unit is the page.
pub(crate) const PAGES: [u64; 6] = [1, 8, 16, 64, 512, 4096];
/// Windows measured in this boot.
static WINDOWS: AtomicU32 = AtomicU32::new(0);

#[distributed_slice(PARAMETERS)]
static NONCE: Parameter =
    Parameter { name: "bench.nonce", help: "number that the frames of this boot carry, in hexadecimal", check: nonce };
#[distributed_slice(PARAMETERS)]
static ROWS: Parameter =
    Parameter { name: "bench.rows", help: "rows to measure, in this order, by their records: 3,4,7", check: rows };
#[distributed_slice(PARAMETERS)]
static DISTURB: Parameter = Parameter {
    name: "bench.disturb",
    help: "have a timer fire all the time, so that `null` has something to find",
    check: bootargs::flag,
};

fn nonce(value: &str) -> Result<(), Refused> {
    u32::from_str_radix(value, 16).map(drop).map_err(Refused::because)
}

fn rows(value: &str) -> Result<(), Refused> {
    value.split(',').try_for_each(|index| index.parse::<u32>().map(drop)).map_err(Refused::because)
}

/// Runs the chosen rows once the kernel is up, then powers the machine off; without boot arguments those that are asked
/// for.
pub(crate) fn run() -> ! {
    scale::run_if_asked();
    tlb::run_if_asked();
    if bootargs::get("bench.nonce").is_none() {
        granule::println!("the bench image: `./x bench` boots it with bench.nonce=, or `./x bench --serial` asks it");
        wire::serve()
    }
    let nonce = bootargs::get("bench.nonce").and_then(|nonce| u32::from_str_radix(nonce, 16).ok());
    let (Some(nonce), Some(_), 1) = (nonce, timer::instructions(), smp::online().iter().count()) else {
        granule::println!("the bench image: `./x bench` boots it with -icount and one CPU");
        power::off(power::Status::Failure)
    };
    if bootargs::is_set("bench.disturb") {
        disturb(smp::this_cpu());
    }
    let chosen = bootargs::get("bench.rows").unwrap_or("").split(',').filter_map(|index| index.parse::<u32>().ok());
    let null = BENCHES.iter().position(|record| text(&record.name) == Some(NULL)).map(|index| index as u32);
    let rows = || null.into_iter().chain(chosen.clone()).chain(null);
    let mut port = Port::new(Nonce(nonce), console::print);
    port.send(Event::Hello { tests: rows().count() as u32 });
    let mut measured = 0;
    for index in rows() {
        let Some(record) = BENCHES.get(index as usize) else { break };
        measured += 1;
        port.send(Event::Begin { index });
        let checks = measure(record, index, &mut port, false);
        port.send(Event::Pass { index, checks });
    }
    port.send(Event::End { passed: measured, failed: 0, skipped: 0 });
    power::off(power::Status::Success)
}

/// Measures a row, and returns how many points it had. Over a wire (`wired`) all its frames have one number, and a
/// program at EL0, which numbers its own, measures nothing.
pub(crate) fn measure(record: &Record, index: u32, port: &mut Port, wired: bool) -> u32 {
    take_scattered_frames();
    let overhead = least(REPETITIONS, || (), |()| (), drop).0;
    let mut bench = Bench { port, index, overhead, points: 0, wired };
    (record.function)(&mut bench);
    bench.points
}

/// Takes, for good, the free frames of the CPU's magazine and of all blocks that are in use in part, and fills the
/// magazine from a whole block. So a row gets frames that are neighbours, whatever ran before it: neighbours are freed
/// in one go, and where its frames are scattered the same row takes more instructions.
fn take_scattered_frames() {
    let (frames, cpu) = (&kernel().frames, smp::this_cpu());
    let take_one = || frames.alloc(cpu).map(drop).expect("whole free blocks");
    let whole = frames.stats().free_blocks;
    // A batch at a time, until one came from a whole block.
    while frames.stats().free_blocks == whole {
        take_one();
        (0..frames.stats().in_magazines).for_each(|_| take_one());
    }
    frames.free_list(cpu, frames.alloc_list(cpu, MAGAZINE).expect("whole free blocks"));
}

/// The running row.
pub(crate) struct Bench<'a> {
    port: &'a mut Port,
    index: u32,
    /// Instructions that a measured window takes by itself; subtracted from each point.
    overhead: u32,
    points: u32,
    wired: bool,
}

impl Bench<'_> {
    /// Measures `operation` on `size` units: each time on what `prepare` makes anew, and `finish` takes its result
    /// away.
    pub(crate) fn point<S, R>(
        &mut self,
        size: u64,
        prepare: impl FnMut() -> S,
        operation: impl FnMut(S) -> R,
        finish: impl FnMut(R),
    ) {
        self.point_of(REPETITIONS, size, prepare, operation, finish);
    }

    /// As [`Self::point`], with `repetitions` instead of [`REPETITIONS`].
    fn point_of<S, R>(
        &mut self,
        repetitions: u32,
        size: u64,
        prepare: impl FnMut() -> S,
        operation: impl FnMut(S) -> R,
        finish: impl FnMut(R),
    ) {
        let (taken, window) = least(repetitions, prepare, operation, finish);
        let instructions = taken.saturating_sub(self.overhead);
        self.points += 1;
        let point = Event::Point { index: self.index, size: size as u32, instructions, window };
        if self.wired { self.port.answer(point) } else { self.port.send(point) }
    }
}

impl Bench<'_> {
    /// Lets the initrd's program [`PROGRAM`] measure the row `name` at EL0. It sends the frames of the points itself
    /// and exits with their number.
    pub(crate) fn at_el0(&mut self, name: &str) {
        if self.wired {
            return;
        }
        // SAFETY: lets EL0 read event counters (PMUSERENR_EL0.ER, Arm ARM D24.5). There is a PMU, `run` has asked.
        unsafe { core::arch::asm!("msr pmuserenr_el0, {0}", "isb", in(reg) 1_u64 << 3, options(nostack)) };
        let (nonce, sequence) = self.port.place();
        let windows = WINDOWS.load(Ordering::Relaxed);
        let mut words = Words::new();
        let numbers = [nonce.0, sequence, self.index, windows].map(hexadecimal);
        let line = [PROGRAM.as_bytes(), name.as_bytes()].into_iter().chain(numbers.iter().map(|word| &word[..]));
        line.into_iter().try_for_each(|word| words.argument(word)).expect("room for six words");
        let threads = sched::thread_count();
        let points = match process::start(PROGRAM, words).map(process::wait) {
            Ok(Some(ProcessEnd::Exited(points))) if points <= MOST_POINTS => u32::from(points),
            otherwise => panic!("{PROGRAM} {name}: {otherwise:?}"),
        };
        // A process has ended before its last thread has left its kernel stack.
        while sched::thread_count() != threads {
            sched::sleep_until(timer::Deadline::after(core::time::Duration::from_millis(1)));
        }
        *self.port = Port::after(nonce, sequence + points, console::print);
        self.points += points;
        WINDOWS.fetch_add(windows_at_el0(points), Ordering::Relaxed);
    }
}

/// Eight digits.
fn hexadecimal(number: u32) -> [u8; 8] {
    core::array::from_fn(|digit| b"0123456789abcdef"[(number >> (28 - 4 * digit)) as usize & 15])
}

/// The least of some repetitions, and which window that was.
fn least<S, R>(
    repetitions: u32,
    mut prepare: impl FnMut() -> S,
    mut operation: impl FnMut(S) -> R,
    mut finish: impl FnMut(R),
) -> (u32, u32) {
    let mut best = (u32::MAX, 0);
    for _ in 0..repetitions {
        let window = WINDOWS.fetch_add(1, Ordering::Relaxed);
        let (taken, result) = count(prepare(), &mut operation);
        finish(result);
        best = best.min((taken, window));
    }
    best
}

/// Instructions from one marker to the other, and what measuring takes.
#[inline(never)]
fn count<S, R>(state: S, operation: &mut impl FnMut(S) -> R) -> (u32, R) {
    let state = black_box(state);
    let (before, after): (u64, u64);
    // SAFETY: reads a counter that is there (`run` has asked), and does nothing. The ISB keeps the read from being done
    // early. No `nomem`, so the compiler moves no access across it.
    unsafe { core::arch::asm!("isb", "mrs {0}, pmevcntr0_el0", "hint #96", out(reg) before, options(nostack)) };
    let result = black_box(operation(state));
    // SAFETY: as above.
    unsafe { core::arch::asm!("hint #97", "isb", "mrs {0}, pmevcntr0_el0", out(reg) after, options(nostack)) };
    // The counter has 32 bits before PMUv3p5, and nothing measured here takes 2^32 instructions.
    ((after as u32).wrapping_sub(before as u32), result)
}

const NULL: &str = "null";
bench!(null, "null", "turn");
fn null(bench: &mut Bench<'_>) {
    let spin = |turns: u64| {
        // SAFETY: counts a register down.
        unsafe {
            core::arch::asm!("cbz {0}, 3f", "2: subs {0}, {0}, #1", "b.ne 2b", "3:", inout(reg) turns => _,
                options(nomem, nostack));
        }
    };
    // Each for itself, not the least of several: what runs only now and then must show.
    for turns in [0, NULL_TURNS, NULL_TURNS, NULL_TURNS, NULL_TURNS] {
        bench.point_of(1, turns.into(), || u64::from(turns), spin, drop);
    }
}

/// Sets the deadline anew whenever it is reached.
fn disturb(cpu: &smp::Cpu) {
    timer::set_deadline(cpu, core::time::Duration::from_micros(100), disturb);
}
