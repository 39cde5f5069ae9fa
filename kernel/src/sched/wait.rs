//! Queues of threads that wait for something.
//!
//! A waiter's node lies on its own stack: waiting allocates nothing. It carries a value of the queue's choice, by which
//! the waker selects waiters.
//!
//! **Access to a node** needs the queue's lock. A waker works under the lock throughout, and a waiter acquires the lock
//! once more before it returns, and with it the node.
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "threads and waiters in intrusive lists, under the lock of their queue")]

use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef};

use super::machine::{ThreadRef, current, park};
use super::token::Woken;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{IrqGuard, IrqLock, rank};

/// A thread that waits.
struct Waiter<T> {
    link: LinkedListLink,
    thread: ThreadRef,
    /// 1 once it is woken.
    woken: AtomicU32,
    value: T,
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListLink, UnsafeRef, Waiter};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) Adapter<T> = UnsafeRef<Waiter<T>>: Waiter<T> { link => LinkedListLink });
}
use adapter::Adapter;

/// The waiters, in the order in which they came.
pub(super) struct WaiterList<T>(LinkedList<Adapter<T>>);

impl<T> WaiterList<T> {
    pub(super) const EMPTY: Self = Self(LinkedList::new(Adapter::NEW));
}

// SAFETY: the nodes are reached through the queue's lock alone, on whichever CPU holds it, and hold what may be sent.
unsafe impl<T: Send> Send for WaiterList<T> {}

/// Threads that wait, first come first served. Each waits with a value of type `T`.
pub struct WaitQueue<T>(pub(super) IrqLock<WaiterList<T>, { rank::WAIT }>);

impl<T> WaitQueue<T> {
    /// Locks the queue: no thread joins it or is woken until the result is dropped. The condition of its waiters is
    /// read, and changed, in between.
    pub fn lock(&self) -> Waiters<'_, T> {
        Waiters { list: self.0.lock(), queue: self }
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self(IrqLock::new(WaiterList::EMPTY))
    }
}

/// A [`WaitQueue`], locked.
pub struct Waiters<'a, T> {
    list: IrqGuard<'a, WaiterList<T>, { rank::WAIT }>,
    queue: &'a WaitQueue<T>,
}

impl<T> Waiters<'_, T> {
    /// Whether no thread waits.
    pub fn is_empty(&self) -> bool {
        self.list.0.is_empty()
    }

    /// The value of the thread that has waited longest.
    pub fn front(&self) -> Option<&T> {
        self.list.0.front().get().map(|waiter| &waiter.value)
    }

    /// Wakes the thread that has waited longest; whether there was one.
    #[inline]
    pub fn wake_front(&mut self) -> bool {
        self.list.0.pop_front().map(wake).is_some()
    }

    /// Wakes all waiters.
    pub fn wake_all(&mut self) {
        while self.wake_front() {}
    }

    /// Joins the queue, unlocks it, and sleeps until this thread is woken.
    pub fn wait(self, value: T) {
        self.wait_while(value, || None);
    }

    /// As [`Self::wait`], or until `otherwise` has an outcome; it is asked before each sleep. Returns
    /// [`Woken::ByAnother`] in any case where the waker has taken this thread out of the queue.
    pub fn wait_while(mut self, value: T, mut otherwise: impl FnMut() -> Option<Woken>) -> Woken {
        let waiter =
            Waiter { link: LinkedListLink::new(), thread: current().to_ref(), woken: AtomicU32::new(0), value };
        let queue = self.queue;
        // SAFETY: the node stays where it is until it is out of the list, and the lock under which it was taken out is
        // released.
        self.list.0.push_back(unsafe { UnsafeRef::from_raw(&raw const waiter) });
        drop(self);
        let outcome = loop {
            // Relaxed: the lock, below, orders what the waker did.
            if waiter.woken.load(Ordering::Relaxed) != 0 {
                break Woken::ByAnother;
            }
            if let Some(outcome) = otherwise() {
                break outcome;
            }
            park();
        };
        let mut list = queue.0.lock();
        if !waiter.link.is_linked() {
            // Also where it was woken only just now: that wake-up must not be lost.
            return Woken::ByAnother;
        }
        // SAFETY: linked, and in this list alone.
        unsafe { list.0.cursor_mut_from_ptr(&raw const waiter) }.remove();
        outcome
    }
}

/// Wakes a waiter that is out of its list. The caller has the lock.
fn wake<T>(waiter: UnsafeRef<Waiter<T>>) {
    waiter.woken.store(1, Ordering::Relaxed);
    waiter.thread.unpark();
}
