//! Tests by request, over the serial port, where boot arguments select none: on a board, whose card keeps them as they are.
//!
//! The harness asks until the runner says hello, and again whenever it has waited a while: then the runner sends what was
//! lost. Nothing is read while a test runs, and the runner types nothing then.

#![allow(unsafe_code, reason = "a symbol that ./x finds by its name")]

use core::sync::atomic::{AtomicU32, Ordering};

use alloc::vec::Vec;

use granule::chip::{console, power};
use granule_protocol::{Event, PATIENCE, REQUEST_BYTES, Reply, Responder};

use super::{TESTS, audit, one, promises};

/// Which build this is: [`granule_protocol::IDENTITY`]. Not zero, so that it is in the file.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name of a symbol")]
static granule_tests_identity: AtomicU32 = AtomicU32::new(u32::MAX);

/// Serves requests for ever.
pub(super) fn serve() -> ! {
    let mut responder = Responder::new(alloc::vec![0; REQUEST_BYTES]);
    let mut errors = 0;
    loop {
        responder.ask(console::print);
        while let Some(byte) = console::poll_byte(PATIENCE) {
            match responder.take(byte) {
                Reply::Nothing | Reply::Damaged | Reply::Data(_) | Reply::Start => continue,
                Reply::Answer(event) => responder.send(event, console::print),
                Reply::Hello { features, devices } => {
                    promises::note([features, devices]);
                    answer(&mut responder, image());
                }
                // It wants the loader, and is to see that this is not it.
                Reply::Load(_) => answer(&mut responder, image()),
                Reply::Run { name, seed } => {
                    let index = TESTS.iter().position(|record| granule_protocol::text(&record.name) == Some(name));
                    // The runner knows another image: it has no test of this number.
                    let index = index.map_or(u32::MAX, |index| index as u32);
                    responder.send(Event::Begin { index }, console::print);
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

/// The answer to a hello.
fn image() -> Event {
    Event::Image { identity: granule_tests_identity.load(Ordering::Relaxed) }
}

fn answer(responder: &mut Responder<Vec<u8>>, event: Event) {
    responder.answer(event);
    responder.send(event, console::print);
}
