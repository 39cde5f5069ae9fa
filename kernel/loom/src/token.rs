//! A thread's token, the kernel's own source, on loom's atomics; and a thread that sleeps by it.

use granule::sched::token::{StateWord, Token};
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex};

/// What is wrong with the word of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// A swap is a store, as of an owner who thinks that nobody else changes what is there.
    StoreForSwap,
    /// A token that is there already is not renewed.
    NoRenewal,
    /// A read-modify-write orders nothing.
    Relaxed,
}

/// The word; each access is preceded by another, for the reason that [`crate::Cell`] has.
struct Word {
    value: AtomicU32,
    touched: AtomicU32,
    fault: Fault,
}

impl Word {
    fn touch(&self) {
        self.touched.fetch_add(1, Ordering::Relaxed);
    }

    fn order(&self, order: Ordering) -> Ordering {
        if self.fault == Fault::Relaxed { Ordering::Relaxed } else { order }
    }
}

impl StateWord for Word {
    fn load(&self, order: Ordering) -> u32 {
        self.touch();
        self.value.load(order)
    }

    fn swap(&self, new: u32, order: Ordering) -> u32 {
        self.touch();
        if self.fault == Fault::StoreForSwap {
            let old = self.value.load(Ordering::Relaxed);
            self.value.store(new, Ordering::Relaxed);
            return old;
        }
        self.value.swap(new, self.order(order))
    }

    fn compare_exchange(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        self.touch();
        if self.fault == Fault::NoRenewal && current == new {
            return Ok(current);
        }
        self.value.compare_exchange(current, new, self.order(success), self.order(failure))
    }
}

/// A thread, as far as it sleeps and wakes, with the lock of its CPU's run queue.
pub struct Sleeper {
    token: Token<Word>,
    /// Whether it is in the run queue.
    queue: Mutex<bool>,
    runs: Condvar,
}

impl Sleeper {
    /// One that runs.
    pub fn new(fault: Fault) -> Self {
        let word = Word { value: AtomicU32::new(0), touched: AtomicU32::new(0), fault };
        Self { token: Token::new(word), queue: Mutex::new(false), runs: Condvar::new() }
    }

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
