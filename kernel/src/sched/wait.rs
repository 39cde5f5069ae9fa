//! Queues of threads that wait for something.
//!
//! A waiter's node lies on its own stack: waiting allocates nothing. It carries a value of the queue's choice, by which
//! whoever wakes says whom it means.
//!
//! **Who may touch a node.** It is in the list exactly as long as it has not been woken, and the list has a lock.
//! Whoever wakes takes the node out, copies the reference to the thread, and only then says so in `woken`: from that
//! store on the node may be gone, since its thread needs no lock to see it and to return.

use core::sync::atomic::{AtomicBool, Ordering};

use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef};

use super::{ThreadRef, current, park};
use crate::sync::{IrqGuard, IrqLock, rank};

/// A thread that waits.
struct Waiter<T> {
    link: LinkedListLink,
    thread: ThreadRef,
    /// Set last of all by who takes the node out of the list.
    woken: AtomicBool,
    value: T,
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListLink, UnsafeRef, Waiter};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) Adapter<T> = UnsafeRef<Waiter<T>>: Waiter<T> { link => LinkedListLink });
}
use adapter::Adapter;

struct List<T>(LinkedList<Adapter<T>>);

// SAFETY: the nodes are reached through the queue's lock alone, on whichever CPU holds it, and hold what may be sent.
unsafe impl<T: Send> Send for List<T> {}

/// Threads that wait, first come first served. Each waits with a value of type `T`.
pub struct WaitQueue<T>(IrqLock<List<T>, { rank::WAIT }>);

impl<T> WaitQueue<T> {
    /// A queue without waiters.
    pub const fn new() -> Self {
        Self(IrqLock::new(List(LinkedList::new(Adapter::NEW))))
    }

    /// Locks the queue: nobody joins it or is woken until the result is dropped. What its waiters wait for is to be
    /// looked at, and changed, in between.
    pub fn lock(&self) -> Waiters<'_, T> {
        Waiters(self.0.lock())
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A [`WaitQueue`], locked.
pub struct Waiters<'a, T>(IrqGuard<'a, List<T>, { rank::WAIT }>);

impl<T> Waiters<'_, T> {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }

    /// The value of the thread that has waited longest.
    pub fn front(&self) -> Option<&T> {
        self.0.0.front().get().map(|waiter| &waiter.value)
    }

    /// Wakes the thread that has waited longest; whether there was one.
    pub fn wake_front(&mut self) -> bool {
        self.0.0.pop_front().map(wake).is_some()
    }

    /// Wakes the first threads whose value `matches`, at most `limit` of them; returns how many.
    pub fn wake_where(&mut self, limit: usize, mut matches: impl FnMut(&T) -> bool) -> usize {
        let mut woken = 0;
        let mut cursor = self.0.0.front_mut();
        while let Some(waiter) = cursor.get() {
            if woken == limit {
                break;
            }
            if matches(&waiter.value) {
                woken += cursor.remove().map(wake).map_or(0, |()| 1);
            } else {
                cursor.move_next();
            }
        }
        woken
    }

    /// Joins the queue, unlocks it, and sleeps until somebody wakes this thread.
    pub fn wait(mut self, value: T) {
        let waiter = Waiter { link: LinkedListLink::new(), thread: current(), woken: AtomicBool::new(false), value };
        // SAFETY: the node stays where it is until it is out of the list again: the loop below waits for that.
        self.0.0.push_back(unsafe { UnsafeRef::from_raw(&raw const waiter) });
        drop(self);
        while !waiter.woken.load(Ordering::Acquire) {
            park();
        }
    }
}

/// Wakes a waiter that is out of its list. Its node is gone with the store.
fn wake<T>(waiter: UnsafeRef<Waiter<T>>) {
    let thread = waiter.thread.clone();
    waiter.woken.store(true, Ordering::Release);
    thread.unpark();
}
