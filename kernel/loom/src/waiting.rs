//! What sleeping locks and queues are made of, on loom's atomics: the kernel's own [`RwSem`] and [`WaitQueue`] run on it.
//!
//! [`RwSem`]: granule::sched::RwSem
//! [`WaitQueue`]: granule::sched::WaitQueue

#![allow(unsafe_code, reason = "keeps the contracts of the kernel's unsafe traits on loom's types")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use granule::sched::primitives::{Lock, Primitives, Word};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Mutex, MutexGuard};

use crate::token::{Fault, Sleeper};

/// A step of waiting or waking that all threads of a test leave out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Omitted {
    /// None.
    Nothing,
    /// The order that a word makes: all its accesses are relaxed.
    Order,
    /// The one step in which bits are set and what was there is seen: a load and a store.
    OneStep,
    /// The lock that a waiter takes once more before it returns.
    LastLook,
}

std::thread_local! {
    // Of the test's own thread, in which loom runs all that are in the model.
    static OMITTED: std::cell::Cell<Omitted> = const { std::cell::Cell::new(Omitted::Nothing) };
}

loom::thread_local! {
    static SELF: Arc<Sleeper> = Arc::new(Sleeper::new(Fault::None));
    /// Whether the next lock is the one that a waiter takes last.
    static HAS_WAITED: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// From now on the tests of this thread leave `step` out.
pub fn omit(step: Omitted) {
    OMITTED.with(|omitted| omitted.set(step));
}

fn omits(step: Omitted) -> bool {
    OMITTED.with(|omitted| omitted.get() == step)
}

/// loom's locks and threads.
pub struct Waiting;

impl Primitives for Waiting {
    type Word = Loose;
    type Lock<T> = Spin<T>;
    type Thread = Handle;

    /// So that granting goes on in the readers that were granted, as with many of them.
    const WOKEN_AT_ONCE: usize = 1;

    fn current() -> Handle {
        HAS_WAITED.with(|waited| waited.set(true));
        Handle { sleeper: SELF.with(Arc::clone), node: Node::default() }
    }

    fn park() {
        SELF.with(Arc::clone).park();
    }

    fn unpark(thread: &Handle) {
        thread.sleeper.unpark();
        thread.node.is_used();
    }
}

/// A thread, in the node of a queue on its own stack.
pub struct Handle {
    sleeper: Arc<Sleeper>,
    node: Node,
}

/// The node's memory, which loom watches: it is gone when its owner returns.
#[derive(Default)]
struct Node(UnsafeCell<()>);

// SAFETY: loom reports an access that is not ordered before or after another, which is what the tests are for.
unsafe impl Sync for Node {}

impl Node {
    fn is_used(&self) {
        self.0.with(|_| ());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Where a test has failed already, loom is not to be asked any more.
        if std::thread::panicking() {
            return;
        }
        self.0.with_mut(|_| ());
    }
}

/// A word; each access is preceded by another, for the reason that [`crate::Cell`] has.
#[derive(Default)]
pub struct Loose {
    value: AtomicU32,
    touched: AtomicU32,
}

impl Loose {
    /// The order in which it is accessed that the kernel accesses by `order`.
    fn order(&self, order: Ordering) -> Ordering {
        self.touched.fetch_add(1, Ordering::Relaxed);
        if omits(Omitted::Order) { Ordering::Relaxed } else { order }
    }
}

impl Word for Loose {
    fn load(&self, order: Ordering) -> u32 {
        let order = self.order(order);
        self.value.load(order)
    }

    fn store(&self, value: u32, order: Ordering) {
        let order = self.order(order);
        self.value.store(value, order);
    }

    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        let order = self.order(order);
        self.value.fetch_add(value, order)
    }

    fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        let order = self.order(order);
        if omits(Omitted::OneStep) {
            let before = self.value.load(order);
            self.touched.fetch_add(1, Ordering::Relaxed);
            self.value.store(before | bits, Ordering::Relaxed);
            return before;
        }
        self.value.fetch_or(bits, order)
    }

    fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        let order = self.order(order);
        self.value.fetch_and(bits, order)
    }

    fn compare_exchange_weak(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        let (success, failure) = (self.order(success), self.order(failure));
        // Not weak: that it may fail for no reason adds orders, and nothing to see.
        self.value.compare_exchange(current, new, success, failure)
    }
}

/// A lock.
pub struct Spin<T>(Mutex<()>, std::cell::UnsafeCell<T>);

// SAFETY: what is in it is reached by who has the lock, or, where a test has it so, by one thread after the other.
unsafe impl<T: Send> Sync for Spin<T> {}

/// The lock, held; or not, where that is left out.
pub struct Held<'a, T> {
    _guard: Option<MutexGuard<'a, ()>>,
    value: *mut T,
}

impl<T> Lock<T> for Spin<T> {
    type Guard<'a>
        = Held<'a, T>
    where
        T: 'a;

    fn new(value: T) -> Self {
        Self(Mutex::new(()), std::cell::UnsafeCell::new(value))
    }

    fn lock(&self) -> Held<'_, T> {
        let is_last = HAS_WAITED.with(|waited| waited.replace(false));
        let without = is_last && omits(Omitted::LastLook);
        let guard = (!without).then(|| self.0.lock().expect("no thread has panicked"));
        Held { _guard: guard, value: self.1.get() }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held; without it loom's threads still run one at a time, and change in its functions alone.
        unsafe { &*self.value }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.value }
    }
}
