//! Threads that sleep and wake, and the kernel's own tokens, queues and sleeping locks on them.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

use crate::Watched;
use crate::sync::atomic::Ordering;

#[path = "../../src/sched/rwsem.rs"]
mod rwsem;
#[path = "../../src/sched/token.rs"]
mod token;
#[path = "../../src/sched/wait.rs"]
mod wait;

pub use rwsem::RwSem;
pub use token::Token;
pub use wait::{WaitQueue, Waiters, Woken};

/// So that a grant goes on in the readers that were granted, as with many of them.
const WOKEN_AT_ONCE: usize = 1;

/// A thread, as far as it sleeps and wakes, with the lock of its CPU's run queue.
#[derive(Default)]
pub struct Sleeper {
    token: Token,
    /// Whether it is in the run queue.
    queue: Mutex<bool>,
    runs: Condvar,
}

impl Sleeper {
    /// `sched::park`.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn park(&self) {
        let mut queue = self.queue.lock().unwrap();
        if self.token.park() {
            while !*queue {
                queue = self.runs.wait(queue).unwrap();
            }
            *queue = false;
        }
    }

    /// `Thread::unpark`.
    pub fn unpark(&self) {
        self.token.leave(|| {
            let mut queue = self.queue.lock().unwrap();
            let woken = self.token.unpark();
            if woken {
                *queue = true;
                self.runs.notify_one();
            }
            woken
        });
    }
}

loom::thread_local! {
    static SELF: Arc<Sleeper> = Arc::default();
    /// Whether the next lock is the one that a waiter takes last.
    static HAS_WAITED: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// Whether the running thread has joined a queue since the last call.
pub(crate) fn has_waited() -> bool {
    HAS_WAITED.with(|waited| waited.replace(false))
}

/// The running thread.
struct Current;

/// A thread, in the node of a queue on its own stack. loom watches the node's memory: it is gone when its owner
/// returns.
struct ThreadRef {
    sleeper: Arc<Sleeper>,
    node: Watched<()>,
}

fn current() -> Current {
    HAS_WAITED.with(|waited| waited.set(true));
    Current
}

impl Current {
    fn to_ref(&self) -> ThreadRef {
        ThreadRef { sleeper: SELF.with(Arc::clone), node: Watched::default() }
    }
}

fn park() {
    SELF.with(Arc::clone).park();
}

impl ThreadRef {
    fn unpark(&self) {
        self.sleeper.unpark();
        self.node.read();
    }
}

impl Drop for ThreadRef {
    fn drop(&mut self) {
        // After a failure loom's state must not be used.
        if !std::thread::panicking() {
            self.node.write(());
        }
    }
}

/// Lets other threads run for a moment.
pub(crate) fn sleep_briefly() {
    loom::thread::yield_now();
}

impl<T> RwSem<T> {
    /// Whether no thread has the lock or waits for it.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }
}
