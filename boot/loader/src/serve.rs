//! The loader's side of the conversation.

#![allow(unsafe_code, reason = "the entry from the boot code, by its name")]

use granule::chip::console;
use granule_boot::BootInfo;
use granule_protocol::{Event, PATIENCE, REQUEST_BYTES, Refusal, Reply, Responder};

use crate::loaded::{Loaded, Machine};

/// Copies of the last answer: nothing asks for it again.
const COPIES: usize = 3;

/// The first Rust function. `entry.S` jumps here with the MMU on, on the boot stack, interrupts masked.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(boot: &'static BootInfo) -> ! {
    let (kernel, device_tree) = granule::start::start_alone(boot);
    granule::println!("the loader of Granule: `./x boot --serial` loads a kernel over this line");
    serve(&Machine { boot, kernel, device_tree })
}

/// The loader runs where it is linked: the seed is for the kernel that it loads.
#[unsafe(no_mangle)]
extern "C" fn kernel_slide(_: &mut BootInfo) -> u64 {
    0
}

/// Serves requests until a kernel is entered.
fn serve(machine: &Machine) -> ! {
    let mut responder = Responder::new(alloc::vec![0; REQUEST_BYTES]);
    let mut loaded: Option<Loaded> = None;
    loop {
        responder.ask(console::print);
        while let Some(byte) = console::poll_byte(PATIENCE) {
            let event = match responder.take(byte) {
                Reply::Nothing | Reply::Run { .. } => continue,
                Reply::Damaged => {
                    responder.send(Event::Again, console::print);
                    continue;
                }
                Reply::Answer(event) => event,
                // Of no build of the tests: it wants those.
                Reply::Hello { .. } => Event::Image { identity: 0 },
                Reply::Load(load) => {
                    // The memory of one that was broken off is there for the next.
                    drop(loaded.take());
                    Loaded::new(machine, load).map_or_else(refused, |room| {
                        loaded = Some(room);
                        Event::Ready
                    })
                }
                Reply::Data(text) => {
                    let taken = loaded.as_mut().ok_or(Refusal::Order).and_then(|loaded| loaded.take(text));
                    taken.map_or_else(refused, |()| Event::Ready)
                }
                Reply::Start => {
                    match loaded.as_mut().ok_or(Refusal::Order).and_then(|loaded| loaded.prepare(machine)) {
                        Ok(whole) => {
                            let level = machine.boot.entry_level as u32;
                            (0..COPIES).for_each(|_| responder.send(Event::Starts { level }, console::print));
                            console::flush();
                            whole.enter(machine)
                        }
                        Err(why) => refused(why),
                    }
                }
            };
            if matches!(event, Event::Refused { .. }) {
                loaded = None;
            }
            responder.answer(event);
            responder.send(event, console::print);
        }
    }
}

fn refused(why: Refusal) -> Event {
    Event::Refused { why }
}
