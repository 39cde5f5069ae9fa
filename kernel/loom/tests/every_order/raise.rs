//! Work that is raised for a thread while it is woken, or goes to another CPU: either the thread sees the work on its
//! way to EL0, or its CPU is interrupted there.
//!
//! The steps of `Thread::raise`, `queue::wake` and `queue::steal` in a few lines, on the kernel's own token. Each side
//! writes a word and reads the other's, so a full barrier stands between the two on both sides.

use std::sync::Arc;

use granule_loom::sched::Token;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use crate::{assert_caught, threads};

/// Which side has its barrier.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fences {
    Both,
    NotInRaise,
    NotInMove,
}

/// What the CPUs know of a thread.
struct Thread {
    work: AtomicU32,
    token: Token,
    home: AtomicU32,
    /// Whether each CPU is interrupted.
    interrupted: [AtomicBool; 2],
    /// The lock of its run queue.
    queue: Mutex<()>,
    fences: Fences,
}

impl Thread {
    fn new(fences: Fences) -> Self {
        Self {
            work: AtomicU32::new(0),
            token: Token::default(),
            home: AtomicU32::new(0),
            interrupted: [AtomicBool::new(false), AtomicBool::new(false)],
            queue: Mutex::new(()),
            fences,
        }
    }

    fn raise(&self) {
        self.work.fetch_or(1, Ordering::Relaxed);
        if self.fences != Fences::NotInRaise {
            fence(Ordering::SeqCst);
        }
        if !self.token.is_parked() {
            let home = self.home.load(Ordering::Relaxed) as usize;
            self.interrupted[home].store(true, Ordering::Relaxed);
        }
    }

    fn moved(&self) {
        if self.fences != Fences::NotInMove {
            fence(Ordering::SeqCst);
        }
    }

    fn wake(&self) {
        let queue = self.queue.lock().unwrap();
        assert!(self.token.unpark());
        self.moved();
        drop(queue);
    }

    fn steal(&self) {
        drop(self.queue.lock().unwrap());
        self.home.store(1, Ordering::Relaxed);
        self.moved();
    }

    /// On the way to EL0: whether there is work.
    fn sees_work(&self) -> bool {
        drop(self.queue.lock().unwrap());
        self.work.load(Ordering::Acquire) != 0
    }
}

/// Work is raised while the thread, which sleeps or waits for a CPU, comes to run by `moves`.
fn raised_while(fences: Fences, sleeps: bool, moves: fn(&Thread)) {
    threads(move || {
        let thread = Arc::new(Thread::new(fences));
        if sleeps {
            assert!(thread.token.park());
        }
        let raised = {
            let thread = Arc::clone(&thread);
            loom::thread::spawn(move || thread.raise())
        };
        moves(&thread);
        let sees = thread.sees_work();
        raised.join().unwrap();
        let home = thread.home.load(Ordering::Relaxed) as usize;
        assert!(sees || thread.interrupted[home].load(Ordering::Relaxed), "the work waits at EL0");
    });
}

#[test]
fn a_woken_thread_sees_its_work_or_is_interrupted() {
    raised_while(Fences::Both, true, Thread::wake);
}

#[test]
fn a_stolen_thread_sees_its_work_or_is_interrupted_there() {
    raised_while(Fences::Both, false, Thread::steal);
}

#[test]
fn a_thread_that_is_looked_at_before_its_work_is_there_is_caught() {
    for (sleeps, moves) in [(true, Thread::wake as fn(&Thread)), (false, Thread::steal)] {
        assert_caught("the work waits at EL0", || raised_while(Fences::NotInRaise, sleeps, moves));
    }
}

#[test]
fn work_that_is_looked_at_before_the_thread_has_moved_is_caught() {
    for (sleeps, moves) in [(true, Thread::wake as fn(&Thread)), (false, Thread::steal)] {
        assert_caught("the work waits at EL0", || raised_while(Fences::NotInMove, sleeps, moves));
    }
}
