//! A thread that waits for two others sees both, and sleeps for ever in no order.
//!
//! Each of the others stores and then wakes it, as the release of a lock does. A wake-up that is lost is a deadlock,
//! which loom reports.

use std::sync::Arc;

use granule_loom::{Omitted, Sleeper, omit};
use loom::sync::atomic::{AtomicBool, Ordering};

use crate::{assert_caught, threads};

fn waits_for_two(omitted: Omitted) {
    threads(move || {
        let sleeper = Arc::new(Sleeper::default());
        let stored = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let others = [0, 1].map(|number| {
            let (sleeper, stored) = (Arc::clone(&sleeper), Arc::clone(&stored));
            loom::thread::spawn(move || {
                omit(omitted);
                // Relaxed: that it is seen is what the token promises.
                stored[number].store(true, Ordering::Relaxed);
                sleeper.unpark();
            })
        });
        omit(omitted);
        while !stored.iter().all(|stored| stored.load(Ordering::Relaxed)) {
            sleeper.park();
        }
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn no_wake_up_is_lost() {
    waits_for_two(Omitted::Nothing);
}

#[test]
fn a_token_that_is_taken_by_a_store_is_caught() {
    assert_caught("deadlock", || waits_for_two(Omitted::AtomicSwap));
}

#[test]
fn a_token_that_is_not_renewed_is_caught() {
    assert_caught("deadlock", || waits_for_two(Omitted::Renewal));
}

#[test]
fn a_token_that_orders_nothing_is_caught() {
    assert_caught("deadlock", || waits_for_two(Omitted::Order));
}
