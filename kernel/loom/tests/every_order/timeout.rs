//! Waits that end at a moment, the kernel's own source: of a wake-up, the timeout and a signal one ends the wait, and
//! nothing is left of it in a queue.
//!
//! A wake-up that is lost is a deadlock, which loom reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use granule_loom::chip::timer::Deadline;
use granule_loom::sched::{WaitQueue, Woken, run_timer, sleep_through, sleep_until, stop_timer};
use granule_loom::{Omitted, Sleeper, omit};

use crate::{assert_caught, threads_with};

/// When all is due.
const DUE: u64 = 1;

fn due() -> Deadline {
    Deadline::at(DUE)
}

/// The event that ends the wait of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    ByAnother,
    BySignal,
}

/// Runs `model` with at most two preemptions, not in loom's first thread: after a deadlock that one would drop a queue
/// whose waiters are gone.
fn in_a_thread(model: impl Fn() + Clone + Send + Sync + 'static) {
    threads_with(2, move || loom::thread::spawn(model.clone()).join().unwrap());
}

/// A thread waits in a queue, until a moment if `timed`; another wakes it or signals it.
fn wait(timed: bool, ends: &'static [Ends]) {
    in_a_thread(move || {
        let queue = Arc::new(WaitQueue::<()>::default());
        let timer = timed.then(|| loom::thread::spawn(|| run_timer(DUE)));
        let sleeper = Sleeper::current();
        let other = Arc::clone(&queue);
        let wakes = loom::thread::spawn(move || {
            let mut woken = false;
            for end in ends {
                match end {
                    Ends::ByAnother => woken |= other.lock().wake_front(),
                    Ends::BySignal => sleeper.signal(),
                }
            }
            woken
        });
        let outcome = queue.lock().wait_until((), timed.then(due));
        if timed {
            stop_timer();
        }
        let woken = wakes.join().unwrap();
        timer.into_iter().for_each(|timer| timer.join().unwrap());
        assert_eq!(outcome == Woken::ByAnother, woken, "the waker and the waiter disagree: {outcome:?}");
        assert!(queue.lock().is_empty(), "the waiter is left in the queue");
    });
}

#[test]
fn of_a_wake_up_and_a_timeout_one_ends_the_wait() {
    wait(true, &[Ends::ByAnother]);
}

#[test]
fn of_a_wake_up_and_a_signal_one_ends_the_wait() {
    wait(false, &[Ends::ByAnother, Ends::BySignal]);
    wait(false, &[Ends::BySignal, Ends::ByAnother]);
}

#[test]
fn of_a_wake_up_a_signal_and_a_timeout_one_ends_the_wait() {
    wait(true, &[Ends::BySignal, Ends::ByAnother]);
}

/// A thread, which leaves a step out, sleeps until a moment, and another signals it: in an order the moment comes first.
fn moment_ends_a_sleep(step: Omitted) {
    let timed_out = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&timed_out);
    in_a_thread(move || {
        let timer = loom::thread::spawn(|| run_timer(DUE));
        let sleeper = Sleeper::current();
        let signals = loom::thread::spawn(move || sleeper.signal());
        omit(step);
        noted.fetch_or(sleep_until(due()) == Woken::TimedOut, Ordering::Relaxed);
        stop_timer();
        signals.join().unwrap();
        timer.join().unwrap();
    });
    assert!(timed_out.load(Ordering::Relaxed), "the moment ends no sleep");
}

#[test]
fn a_moment_ends_a_sleep() {
    moment_ends_a_sleep(Omitted::Nothing);
}

#[test]
fn a_timer_that_is_not_set_is_caught() {
    assert_caught("the moment ends no sleep", || moment_ends_a_sleep(Omitted::Timer));
}

/// Two threads of a CPU sleep until the same moment, one of them in spite of a signal.
#[test]
fn two_sleepers_wake_when_their_moment_comes() {
    in_a_thread(|| {
        let timer = loom::thread::spawn(|| run_timer(DUE));
        let sleeps = loom::thread::spawn(|| sleep_through(due()));
        assert_eq!(sleep_until(due()), Woken::TimedOut);
        sleeps.join().unwrap();
        stop_timer();
        timer.join().unwrap();
    });
}
