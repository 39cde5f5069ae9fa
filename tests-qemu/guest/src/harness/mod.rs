//! Runs the tests that the boot arguments select, or those that are asked for over a wire ([`wire`]), and reports their
//! results to the runner.
//!
//! Results are frames of [`granule_protocol`], each on a line of its own; everything else that is printed is output of
//! the running test. After each test the kernel is audited ([`audit`]); anything that a test leaves behind fails it. A
//! test without a check fails too.

mod audit;
mod features;
mod plan;
mod promises;
mod taken_frames;
mod test;
mod wire;

use core::cell::Cell;
use core::hint::black_box;
use core::time::Duration;

use alloc::vec::Vec;
use granule::bootargs::{self, PARAMETERS, Parameter};
use granule::chip::timer::Deadline;
use granule::chip::{console, log, power};
use granule::sched::sleep_until;
use granule::smp::{self, Cpu};
use granule_arch::addr::PAGE_SIZE;
use granule_protocol::{ASK, Event, FLAG_LOGS_ERRORS, Nonce, Port, Record};
use linkme::distributed_slice;

use audit::Snapshot;
pub(crate) use audit::{between_passes, frames_in_use};
pub(crate) use features::{KNOWN, device, has, is_device};
use plan::Plan;
pub(crate) use promises::Promised;
pub(crate) use taken_frames::{TakenFrames, drain_magazines};
pub(crate) use test::Test;

/// A test's record; see `target_test!`.
pub(crate) type TestRecord = Record<fn(&mut Test)>;

/// All tests of this image, in the order in which they run. The runner reads the same bytes from the ELF.
#[distributed_slice]
pub(crate) static TESTS: [TestRecord];

/// Puts `fn name(t: &mut Test)` on the list of tests: `target_test!(name, needs("smp mte"), limit(5));`
///
/// The options are the methods of [`Record`]; without any, the test runs on every machine and has ten seconds.
macro_rules! target_test {
    ($name:ident $(, $option:ident($($value:expr)?))*) => {
        const _: () = {
            #[allow(unsafe_code, reason = "collected by the linker")]
            #[linkme::distributed_slice($crate::harness::TESTS)]
            static RECORD: $crate::harness::TestRecord = granule_protocol::Record::new(
                $name as fn(&mut $crate::harness::Test),
                module_path!(),
                stringify!($name),
            )$(.$option($($value)?))*;
        };
    };
}
pub(crate) use target_test;

/// Numbers below a limit, by a seed (LCG), for threads that have no [`Test`].
pub(crate) fn draws(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed;
    move |below| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % below
    }
}

/// A CPU that runs beside `here`; `here` where it is the only one.
pub(crate) fn another_cpu(here: &'static Cpu) -> &'static Cpu {
    smp::online().without(here.id).iter().next().and_then(smp::cpu).unwrap_or(here)
}

/// The patience of a wait for one event that must come, and does not where a fix is away: so many milliseconds in which
/// this CPU has looked. A busy host may stop a CPU for any time, and the clock continues: that is one of them.
pub(crate) struct Patience {
    left: Cell<u32>,
    next: Cell<Deadline>,
}

impl Patience {
    /// For `time`, in whole milliseconds.
    pub(crate) fn of(time: Duration) -> Self {
        let left = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Self { left: Cell::new(left), next: Cell::new(Deadline::after(Duration::from_millis(1))) }
    }

    /// Whether it is over.
    pub(crate) fn has_passed(&self) -> bool {
        if self.next.get().has_passed() {
            self.left.set(self.left.get().saturating_sub(1));
            self.next.set(Deadline::after(Duration::from_millis(1)));
        }
        self.left.get() == 0
    }
}

/// For 20 s. No test chooses its own.
pub(crate) fn patience() -> Patience {
    Patience::of(Duration::from_secs(20))
}

/// Sleeps until `is_so`, which is asked once a millisecond, as long as [`patience`] lasts.
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let patience = patience();
    while !is_so() && !patience.has_passed() {
        sleep_until(Deadline::after(Duration::from_millis(1)));
    }
}

/// Waits at least this long, without giving up the CPU. Interrupts stay as they are.
pub(crate) fn delay(time: Duration) {
    let deadline = Deadline::after(time);
    while !deadline.has_passed() {
        granule_arch::wait::relax();
    }
}

#[distributed_slice(PARAMETERS)]
static RUN: Parameter = Parameter { name: "test.run", help: "tests to run, by their records: 0-3,7", check: plan::run };
#[distributed_slice(PARAMETERS)]
static SEED: Parameter = Parameter { name: "test.seed", help: "seed for tests that draw numbers", check: plan::seed };
#[distributed_slice(PARAMETERS)]
static FEATURES: Parameter =
    Parameter { name: "test.features", help: "the features of this machine in machines.toml", check: |_| Ok(()) };
#[distributed_slice(PARAMETERS)]
static DEVICES: Parameter =
    Parameter { name: "test.devices", help: "the devices on PCI Express in machines.toml", check: |_| Ok(()) };

/// Runs the tests that the boot arguments or the runner choose, once the kernel is up.
pub(crate) fn run() -> ! {
    if let Err(error) = crate::work::init() {
        granule::println!("no threads for the other CPUs: {error}");
        power::off(power::Status::Failure)
    }
    // More than a page is never sampled, so that the heap's window has its first tables before the first test.
    let mut large = Vec::<u8>::new();
    if large.try_reserve(2 * PAGE_SIZE).is_err() {
        granule::println!("no memory for the heap");
    }
    drop(black_box(large));
    if bootargs::get("test.run").is_none() {
        granule::println!("this is the test image: `./x test` boots it with test.run=, or `./x test --serial` asks it");
        wire::serve()
    }
    match Plan::from_bootargs().and_then(|plan| Some((plan, ask_for_nonce()?))) {
        Some((plan, nonce)) => run_plan(&plan, nonce),
        None => {
            granule::println!("`./x test` boots with a list of tests and a seed, and types the nonce of its frames")
        }
    }
    power::off(power::Status::Failure)
}

/// Runs the tests of the boot arguments, and ends the machine; it returns where another boot must run the rest.
fn run_plan(plan: &Plan, nonce: Nonce) {
    let mut port = Port::new(nonce, console::print);
    port.send(Event::Hello { tests: plan.indices().count() as u32 });
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut errors = 0;
    for index in plan.indices() {
        port.send(Event::Begin { index });
        let verdict = one(index, plan.seed, &mut errors);
        match verdict {
            Event::Pass { .. } => passed += 1,
            Event::Skip { .. } => skipped += 1,
            _ => failed += 1,
        }
        port.send(verdict);
        if matches!(verdict, Event::Fail { .. }) && !audit::is_sound() {
            return;
        }
    }
    port.send(Event::End { passed, failed, skipped });
    let clean = failed + skipped == 0;
    power::off(if clean { power::Status::Success } else { power::Status::Failure })
}

/// Asks the runner for this boot's nonce. The runner answers once, so no test can ask again.
pub(crate) fn ask_for_nonce() -> Option<Nonce> {
    console::print(format_args!("\n{ASK}\n"));
    let patience = patience();
    let mut digits: heapless::String<8> = heapless::String::new();
    while !patience.has_passed() {
        match console::try_read_byte(console::Reader::Kernel) {
            Some(b'\n' | b'\r') => return u32::from_str_radix(&digits, 16).ok().map(Nonce),
            Some(byte) => digits.push(byte.into()).ok()?,
            None => granule_arch::wait::relax(),
        }
    }
    None
}

/// Runs one test, from the features that it needs to the audit after it. `errors` is how many the kernel had logged at
/// the end of the test before: what it logs between two tests counts for the second.
fn one(index: u32, seed: u64, errors: &mut u32) -> Event {
    let Some(record) = TESTS.get(index as usize) else {
        granule::println!("there is no test {index}; the image has {}", TESTS.len());
        return Event::Fail { index, checks: 0, failures: 1 };
    };
    let needs = granule_protocol::text(&record.needs).unwrap_or("?");
    if let Some(missing) = needs.split_whitespace().find(|need| has(need) != Some(true)) {
        granule::println!("this machine has no {missing}");
        return Event::Skip { index };
    }
    let before = Snapshot::take();
    let mut test = Test::new(seed ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (record.function)(&mut test);
    let (checks, mut failures) = test.counts();
    failures += Snapshot::compare(&before);
    let logged = log::errors() - core::mem::replace(errors, log::errors());
    if logged != 0 && record.flags & FLAG_LOGS_ERRORS == 0 {
        granule::println!("audit: the kernel logged an error");
        failures += 1;
    }
    if checks == 0 {
        granule::println!("the test made no checks");
        failures += 1;
    }
    if failures == 0 { Event::Pass { index, checks } } else { Event::Fail { index, checks, failures } }
}
