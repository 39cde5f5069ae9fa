//! Interrupts and memory, the kernel's own source: a handler sees what was stored before its interrupt was sent, also where
//! it runs after another interrupt.

use std::sync::Arc;

use granule_loom::chip::Controller;
use granule_loom::{Omitted, Watched, omit};

use crate::{assert_caught, threads};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// Two CPUs send an interrupt each, with a message, to a third one, which handles what it finds pending. The senders leave
/// `send` out, and the receiver `receive`.
fn sent_by_two(send: Omitted, receive: Omitted) {
    threads(move || {
        let shared = Arc::new((Controller::default(), [Watched::<u32>::default(), Watched::default()]));
        let senders = [0, 1].map(|number| {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || {
                omit(send);
                let (controller, messages) = &*shared;
                messages[number].write(1);
                controller.send(number as u32);
            })
        });
        let (controller, messages) = &*shared;
        let handle_all = || {
            let mut handled = 0;
            while let Some(number) = controller.acknowledge() {
                assert_eq!(messages[number as usize].read(), 1, "a handler without its message");
                handled += 1;
            }
            handled
        };
        omit(receive);
        let mut handled = handle_all();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        handled += handle_all();
        assert_eq!(handled, 2, "not each interrupt was handled once");
    });
}

#[test]
fn a_handler_sees_what_was_stored_before_its_interrupt() {
    sent_by_two(Omitted::Nothing, Omitted::Nothing);
}

#[test]
fn an_interrupt_that_is_sent_without_a_barrier_is_caught() {
    assert_caught(RACE, || sent_by_two(Omitted::Fences, Omitted::Nothing));
}

#[test]
fn an_acknowledgement_without_a_barrier_is_caught() {
    assert_caught(RACE, || sent_by_two(Omitted::Nothing, Omitted::Fences));
}
