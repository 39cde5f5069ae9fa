//! Polling of several objects, the kernel's own source: no change that wakes a queue is lost, and nothing is left in a
//! queue. A wake-up that is lost is a deadlock, which loom reports.

use std::sync::Arc;

use granule_loom::Watched;
use granule_loom::sched::{PollNode, PollQueue, Woken, poll_until};
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::{assert_caught, threads_with};

/// An object: ready once its word is not 0.
#[derive(Default)]
struct Polled {
    queue: PollQueue,
    word: AtomicU64,
    data: Watched<u64>,
}

impl Polled {
    fn is_ready(&self) -> bool {
        self.word.load(Ordering::Acquire) != 0
    }

    fn become_ready(&self) {
        self.data.write(1);
        self.word.store(1, Ordering::Release);
    }
}

/// The order of a waker's two steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wakes {
    /// Changes the state, then wakes.
    Behind,
    /// The other way round.
    Before,
}

fn two_objects(wakes: Wakes) {
    threads_with(2, move || {
        let shared = Arc::new([Polled::default(), Polled::default()]);
        let other = Arc::clone(&shared);
        // Not loom's first thread: after a deadlock that one would drop a queue whose pollers are gone.
        let polls = loom::thread::spawn(move || {
            let [first, second] = &*other;
            let mut nodes = [PollNode::new(&first.queue), PollNode::new(&second.queue)];
            let woken = poll_until(&mut nodes, None, &mut || second.is_ready());
            second.data.read();
            woken
        });
        let other = Arc::clone(&shared);
        let wakes_first = loom::thread::spawn(move || other[0].queue.wake(PollQueue::ANY));
        let [_, second] = &*shared;
        match wakes {
            Wakes::Behind => {
                second.become_ready();
                second.queue.wake(PollQueue::ANY);
            }
            Wakes::Before => {
                second.queue.wake(PollQueue::ANY);
                second.become_ready();
            }
        }
        wakes_first.join().unwrap();
        assert_eq!(polls.join().unwrap(), Woken::ByAnother);
    });
}

#[test]
fn a_change_of_one_of_two_objects_ends_the_poll() {
    two_objects(Wakes::Behind);
}

#[test]
fn a_wake_up_before_the_change_is_caught() {
    assert_caught("deadlock", || two_objects(Wakes::Before));
}

/// Two threads poll one object, and two wakers go over them at the same time, one node under each hold of the lock.
#[test]
fn two_wake_ups_that_meet_reach_all_pollers() {
    threads_with(1, || {
        let shared = Arc::new(Polled::default());
        let polls = [(); 2].map(|()| {
            let other = Arc::clone(&shared);
            loom::thread::spawn(move || {
                poll_until(&mut [PollNode::new(&other.queue)], None, &mut || other.word.load(Ordering::Acquire) >= 2)
            })
        });
        let other = Arc::clone(&shared);
        let wakes = loom::thread::spawn(move || {
            other.word.fetch_add(1, Ordering::Release);
            other.queue.wake(PollQueue::ANY);
        });
        shared.word.fetch_add(1, Ordering::Release);
        shared.queue.wake(PollQueue::ANY);
        wakes.join().unwrap();
        polls.into_iter().for_each(|poll| assert_eq!(poll.join().unwrap(), Woken::ByAnother));
    });
}
