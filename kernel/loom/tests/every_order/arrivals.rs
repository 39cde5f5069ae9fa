//! A driver that waits for a device's interrupt, the kernel's own source: the interrupt that follows what the device has
//! written wakes it, or is counted before it sleeps.
//!
//! A lost interrupt is a deadlock, which loom reports.

use std::sync::Arc;

use granule_loom::devices::Arrivals;
use granule_loom::{Omitted, omit};
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::{assert_caught, threads};

/// A device that completes two requests, each with an interrupt of its own, and a driver that waits for both.
fn completes_two(omitted: Omitted) {
    threads(move || {
        let shared = Arc::new((Arrivals::default(), AtomicU64::new(0)));
        let driver = Arc::clone(&shared);
        // Not loom's first thread: after a deadlock that one would drop a queue whose waiters are gone.
        let waits = loom::thread::spawn(move || {
            let (arrivals, done) = &*driver;
            omit(omitted);
            loop {
                let seen = arrivals.count();
                if done.load(Ordering::Relaxed) == 2 {
                    break;
                }
                assert!(arrivals.wait_beyond(seen));
            }
        });
        let (arrivals, done) = &*shared;
        omit(omitted);
        for request in 1..=2 {
            done.store(request, Ordering::Relaxed);
            arrivals.interrupt();
        }
        omit(Omitted::Nothing);
        waits.join().unwrap();
        assert_eq!(arrivals.count(), 2);
    });
}

#[test]
fn no_interrupt_is_lost() {
    completes_two(Omitted::Nothing);
}

#[test]
fn a_count_that_is_seen_before_what_the_device_wrote_is_caught() {
    assert_caught("deadlock", || completes_two(Omitted::Order));
    assert_caught("deadlock", || completes_two(Omitted::Acquire));
}
