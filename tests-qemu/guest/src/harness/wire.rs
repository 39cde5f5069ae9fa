//! Tests by request, over the serial port, where boot arguments select none: on a board, whose card keeps them as they are.
//!
//! The harness asks until the runner says hello, and again whenever it has waited a while: then the runner sends what was
//! lost. Nothing is read while a test runs, and the runner types nothing then.

#![allow(unsafe_code, reason = "a symbol that ./x finds by its name")]

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::chip::{console, power};
use granule_arch::wait;
use granule_protocol::{ASK, Event, Reply, Responder};

use super::{TESTS, audit, one, promises};

/// After this silence the harness asks again: longer than the longest request takes at 9,600 baud.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which build this is: [`granule_protocol::IDENTITY`]. Not zero, so that it is in the file.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name of a symbol")]
static granule_tests_identity: AtomicU32 = AtomicU32::new(u32::MAX);

/// Serves requests for ever.
pub(super) fn serve() -> ! {
    let mut responder = Responder::new();
    let mut errors = 0;
    loop {
        ask(&responder);
        let mut patience = Deadline::after(PATIENCE);
        while !patience.has_passed() {
            let Some(byte) = console::try_read_byte(console::Reader::Kernel) else {
                wait::relax();
                continue;
            };
            patience = Deadline::after(PATIENCE);
            match responder.take(byte) {
                Reply::Nothing => continue,
                Reply::Answer(event) => send(&responder, event),
                Reply::Hello { features, devices } => {
                    promises::note([features, devices]);
                    let identity = granule_tests_identity.load(Ordering::Relaxed);
                    answer(&mut responder, Event::Image { identity });
                }
                Reply::Run { name, seed } => {
                    let index = TESTS.iter().position(|record| granule_protocol::text(&record.name) == Some(name));
                    // The runner knows another image: it has no test of this number.
                    let index = index.map_or(u32::MAX, |index| index as u32);
                    send(&responder, Event::Begin { index });
                    let verdict = one(index, seed, &mut errors);
                    answer(&mut responder, verdict);
                    if matches!(verdict, Event::Fail { .. }) && !audit::is_sound() {
                        power::reset();
                    }
                }
            }
            // The runner may wait for nothing more than the lines that were just sent.
            break;
        }
    }
}

/// Asks for a hello, or for the next request.
fn ask(responder: &Responder) {
    match responder.port(console::print) {
        Some(port) => port.answer(Event::Ready),
        None => console::print(format_args!("\n{ASK}\n")),
    }
}

fn answer(responder: &mut Responder, event: Event) {
    responder.answer(event);
    send(responder, event);
}

fn send(responder: &Responder, event: Event) {
    if let Some(port) = responder.port(console::print) {
        port.answer(event);
    }
}
