//! Whether a thread runs or sleeps, the token that a wake-up leaves to one that runs, and why a wait ends.
//!
//! **The rule of `PARKED`**: a thread enters and leaves this state only under the lock of its CPU's run queue. The
//! token is set and taken without the lock: its word is changed only by read-modify-writes, and each is an acquire and
//! a release, so that an acquirer of the token sees every store made before it was left or renewed.
//!
//! `kernel/loom` compiles this file on loom's atomics.

use crate::sync::atomic::{AtomicU32, Ordering};

/// Why a wait has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Another thread woke this one.
    ByAnother,
    /// The moment came that it waited to at most.
    TimedOut,
    /// It has a signal to deliver.
    Interrupted,
}

/// The effect of a call on what is not ready for it (`O_NONBLOCK`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IfNotReady {
    /// It waits until that is ready, or a signal comes.
    Wait,
    /// It fails at once.
    Fail,
}

/// It runs, or is in a run queue.
const RUNNABLE: u32 = 0;
/// It runs, or is in a run queue, and its next park returns at once.
const TOKEN: u32 = 1;
/// It sleeps.
const PARKED: u32 = 2;
/// It will not run any more.
const DEAD: u32 = 3;

/// A thread's state.
#[derive(Default)]
pub struct Token(pub(super) AtomicU32);

impl Token {
    /// The running thread wants to sleep. Whether it does from now on; else it had a token, and has it no more. Under
    /// the run queue's lock.
    pub fn park(&self) -> bool {
        if self.0.compare_exchange(RUNNABLE, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return true;
        }
        // A swap, not a store: a thread that renews the token just now either is seen here, with all that it stored
        // before, or finds it taken and leaves another. A store could go unseen until after that.
        self.0.swap(RUNNABLE, Ordering::AcqRel);
        false
    }

    /// Leaves the thread a token, or has `wake` wake it where it sleeps. `wake` takes the run queue's lock, and returns
    /// whether [`Self::unpark`] was successful there: if not, all is looked at again.
    pub fn leave(&self, wake: impl Fn() -> bool) {
        loop {
            let done = match self.0.load(Ordering::Relaxed) {
                // Where there is one, the same once more: so that its taker sees what this caller stored, too.
                state @ (RUNNABLE | TOKEN) => {
                    self.0.compare_exchange(state, TOKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
                }
                PARKED => wake(),
                _ => true,
            };
            if done {
                return;
            }
        }
    }

    /// Lets the thread run that sleeps; whether it did sleep. Under the run queue's lock.
    pub fn unpark(&self) -> bool {
        self.0.compare_exchange(PARKED, RUNNABLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// It ends.
    pub fn end(&self) {
        self.0.swap(DEAD, Ordering::AcqRel);
    }

    /// Whether [`Self::end`] was called.
    pub fn has_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) == DEAD
    }

    /// Whether it sleeps, or did when this was looked at.
    pub fn is_parked(&self) -> bool {
        self.0.load(Ordering::Relaxed) == PARKED
    }
}
