//! The lock whose waiters sleep and its queue, the kernel's own source, in every order: it has one writer or readers,
//! is handed on to every waiter, and no waker uses a waiter's node any more when the waiter returns.
//!
//! A lost hand-over is a deadlock, two holders at once are accesses without an order; loom reports
//! both.

#![allow(unsafe_code, reason = "a guard by the slot of a CPU")]

use std::sync::Arc;

use granule_loom::sched::{RwSem, WaitQueue};
use granule_loom::smp::{self, CpuId};
use granule_loom::sync::rank;
use granule_loom::{Omitted, Watched, omit};
use loom::sync::atomic::{AtomicBool, Ordering};

use crate::{assert_caught, short_and_long, threads_with};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";
/// Of three threads in each run.
const PREEMPTIONS: usize = 1;

/// A lock, and what it guards, which loom watches.
struct Guarded {
    lock: RwSem<()>,
    value: Watched<u32>,
}

impl Default for Guarded {
    fn default() -> Self {
        Self { lock: RwSem::new(rank::AREAS, ()), value: Watched::default() }
    }
}

impl Guarded {
    fn write(&self) {
        let _writer = self.lock.write();
        self.change();
    }

    fn read(&self) -> u32 {
        let _reader = self.lock.read();
        self.value.read()
    }

    /// Without a sleep, on a CPU of its own: all others are on the first.
    fn read_briefly(&self) {
        // SAFETY: no other thread reads so on that CPU, and this one does not sleep before the guard is dropped.
        let _reader = unsafe { self.lock.read_briefly(smp::cpu(CpuId(1)).expect("a second CPU")) };
        self.value.read();
    }

    fn write_and_read(&self) {
        let writer = self.lock.write();
        self.change();
        let _reader = writer.downgrade();
        self.value.read();
    }

    fn change(&self) {
        self.value.write(self.value.read() + 1);
    }
}

/// A thread that leaves `omitted` out.
fn spawn(omitted: Omitted, work: impl FnOnce() + 'static) -> loom::thread::JoinHandle<()> {
    loom::thread::spawn(move || {
        omit(omitted);
        work();
    })
}

/// The uses that three threads make of the lock, the last of which then checks how often the value was changed.
#[derive(Clone, Copy)]
struct AtOnce([fn(&Guarded); 3], u32);

/// Three writers, then each mixture with readers, who may be a writer before, or not sleep.
const ALL_AT_ONCE: [AtOnce; 7] = [
    AtOnce([Guarded::write, Guarded::write, Guarded::write], 3),
    AtOnce([Guarded::write, read, read], 1),
    AtOnce([Guarded::write, read, Guarded::write], 2),
    AtOnce([Guarded::write_and_read, read, Guarded::write], 2),
    AtOnce([Guarded::write_and_read, read, read], 1),
    AtOnce([Guarded::write, Guarded::read_briefly, read], 1),
    AtOnce([Guarded::write, Guarded::read_briefly, Guarded::write], 2),
];

fn taken_at_once(preemptions: usize, omitted: Omitted, AtOnce([first, second, own], changes): AtOnce) {
    threads_with(preemptions, move || {
        let guarded = Arc::new(Guarded::default());
        let others = [first, second].map(|other| {
            let guarded = Arc::clone(&guarded);
            spawn(omitted, move || other(&guarded))
        });
        omit(omitted);
        own(&guarded);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(guarded.read(), changes);
        assert!(guarded.lock.is_free(), "nothing is left of those that waited");
    });
}

fn read(guarded: &Guarded) {
    guarded.read();
}

fn in_turn(preemptions: usize) {
    ALL_AT_ONCE.into_iter().for_each(|at_once| taken_at_once(preemptions, Omitted::Nothing, at_once));
}

short_and_long!(
    PREEMPTIONS,
    in_turn,
    writers_and_readers_have_the_lock_in_turn,
    writers_and_readers_with_one_more_preemption
);

/// The second time the CPU's bit is set already, unless a writer came.
fn read_briefly_twice(guarded: &Guarded) {
    guarded.read_briefly();
    guarded.read_briefly();
}

/// One thread changes the value while another reads it for a moment.
fn changed_beside(preemptions: usize, omitted: Omitted, change: fn(&Guarded), look: fn(&Guarded)) {
    threads_with(preemptions, move || {
        let guarded = Arc::new(Guarded::default());
        let changed = Arc::clone(&guarded);
        let other = spawn(omitted, move || change(&changed));
        omit(omitted);
        look(&guarded);
        other.join().unwrap();
        assert_eq!(guarded.read(), 1);
        assert!(guarded.lock.is_free(), "nothing is left of those that waited");
    });
}

#[test]
fn a_reader_for_a_moment_and_a_writer_have_it_in_turn() {
    changed_beside(3, Omitted::Nothing, Guarded::write, read_briefly_twice);
    changed_beside(3, Omitted::Nothing, Guarded::write_and_read, read_briefly_twice);
}

/// The second writer finds the word without the bit that the first one took: a reader looks for its bit as well.
fn changed_twice_beside(preemptions: usize) {
    threads_with(preemptions, move || {
        let guarded = Arc::new(Guarded::default());
        let changed = Arc::clone(&guarded);
        let other = spawn(Omitted::Nothing, move || {
            changed.write();
            changed.write();
        });
        read_briefly_twice(&guarded);
        other.join().unwrap();
        assert_eq!(guarded.read(), 2);
    });
}

short_and_long!(
    2,
    changed_twice_beside,
    a_reader_for_a_moment_whose_bit_is_gone_is_none,
    a_reader_for_a_moment_whose_bit_is_gone_with_three_preemptions
);

#[test]
fn a_slot_that_is_stored_behind_the_look_at_the_word_is_caught() {
    assert_caught(RACE, || changed_beside(2, Omitted::Fences, Guarded::write, read_briefly_twice));
}

/// The omission is caught among the orders of a mixture.
#[track_caller]
fn assert_is_caught(message: &str, omitted: Omitted, at_once: AtOnce) {
    assert_caught(message, || taken_at_once(PREEMPTIONS, omitted, at_once));
}

#[test]
fn a_lock_that_orders_nothing_is_caught() {
    assert_is_caught(RACE, Omitted::Order, AtOnce([Guarded::write, read, read], 1));
}

#[test]
fn a_mark_for_waiters_that_is_not_set_in_one_step_is_caught() {
    assert_is_caught("deadlock", Omitted::AtomicSet, AtOnce([Guarded::write, read, Guarded::write], 2));
}

#[test]
fn a_waiter_that_does_not_wait_for_its_waker_is_caught() {
    assert_is_caught(RACE, Omitted::LastLock, AtOnce([Guarded::write, read, read], 1));
}

/// Two threads wait for a word that is set once; the setter wakes the first of them, which wakes the next.
fn handed_on(omitted: Omitted, look: Look) {
    threads_with(2, move || {
        let shared = Arc::new((WaitQueue::<()>::default(), AtomicBool::new(false)));
        let waiting = [(), ()].map(|()| {
            let shared = Arc::clone(&shared);
            spawn(omitted, move || {
                let (queue, is_set) = &*shared;
                loop {
                    let early = is_set.load(Ordering::Relaxed);
                    let waiters = queue.lock();
                    let seen = if look == Look::Early { early } else { is_set.load(Ordering::Relaxed) };
                    if seen {
                        break;
                    }
                    waiters.wait(());
                }
                queue.lock().wake_front();
            })
        });
        let (queue, is_set) = &*shared;
        omit(omitted);
        is_set.store(true, Ordering::Relaxed);
        queue.lock().wake_front();
        waiting.into_iter().for_each(|other| other.join().unwrap());
        assert!(queue.lock().is_empty());
    });
}

/// When a waiter looks at what it waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// With the queue locked.
    Locked,
    /// Before it locks the queue.
    Early,
}

#[test]
fn a_queue_wakes_waiters_that_came_before_it_was_locked() {
    handed_on(Omitted::Nothing, Look::Locked);
}

#[test]
fn a_look_before_the_queue_is_locked_is_caught() {
    assert_caught("deadlock", || handed_on(Omitted::Nothing, Look::Early));
}

#[test]
fn a_node_that_goes_before_its_waker_is_caught() {
    assert_caught(RACE, || handed_on(Omitted::LastLock, Look::Locked));
}
