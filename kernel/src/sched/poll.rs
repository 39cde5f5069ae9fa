//! Polling: a thread that waits until one of several objects is ready.
//!
//! Each object has a [`PollQueue`] and wakes it after each change of its state. A poller joins the queues of all its
//! objects, and only then looks at their states:
//!
//! ```text
//!     poller                       waker
//!     joins the queue
//!                                  changes the state
//!     finds it not ready, or ready
//!                                  wakes the queue: leaves a token
//!     parks: returns at once
//! ```
//! So a change either is seen by a look, or leaves the poller a token after the last look. A wake-up takes no node out:
//! the poller looks again, and waits on in all its queues if nothing was for it.
//!
//! **A wake-up is bounded under the lock.** It moves each node that it wakes to the end, marked by its number, and drops
//! the lock between batches. It ends at a node whose mark is not below its own number: that one, and all after it, came
//! or were woken after it began, and so after the change. Their threads look after that.
//!
//! **A watcher** is a poller that is no thread: its node stays in the queue, and a wake-up [notes](Watcher::note) the
//! change, and wakes the watcher's own pollers where it holds no lock. An object names the events of each change, so that a
//! watcher notes what it waits for alone.
//!
//! A node lies where its poller keeps it, and is accessed under its queue's lock alone. How many a poller has is a
//! program's choice, so it joins and leaves [`AT_ONCE`] at a time, and joins no more once it has a signal to deliver.
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "nodes of pollers in intrusive lists, under the lock of their queue")]

use core::cell::Cell;

use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef};

use super::machine::{ThreadRef, current, is_interrupted, park, relax};
use crate::mm::counted::Counted;
use crate::sync::WOKEN_AT_ONCE;
use crate::sync::{IrqLock, rank};

/// Queues that a poller joins or leaves between two scheduling points.
const AT_ONCE: usize = 64;

/// A poller that is no thread.
pub trait Watcher: Sync {
    /// A change of the object after which these events may hold; returns the queue to wake for it, and the events of that. Under
    /// the lock of the object's queue: takes locks after the rank `WAIT` alone.
    fn note(&self, events: u16) -> Option<(Counted<PollQueue>, u16)>;
}

/// The target of a wake-up.
enum Poller<'q> {
    Thread(ThreadRef),
    Watcher(&'q dyn Watcher),
}

/// One object that a thread polls, or that is watched.
pub struct PollNode<'q> {
    queue: &'q PollQueue,
    link: LinkedListLink,
    poller: Poller<'q>,
    /// The number of the last wake-up that met it, or that there was when it joined.
    mark: Cell<u64>,
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListLink, PollNode, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) Adapter = UnsafeRef<PollNode<'static>>: PollNode<'static> { link => LinkedListLink });
}
use adapter::Adapter;

/// The nodes of a queue, and how many wake-ups there were.
pub(super) struct Pollers {
    nodes: LinkedList<Adapter>,
    wakes: u64,
}

impl Pollers {
    pub(super) const EMPTY: Self = Self { nodes: LinkedList::new(Adapter::NEW), wakes: 0 };
}

// SAFETY: the nodes are reached through the queue's lock alone, on whichever CPU holds it; what a waker uses of them is
// the thread's reference, which may be used anywhere, and the mark.
unsafe impl Send for Pollers {}

/// The threads that poll one object.
pub struct PollQueue(pub(super) IrqLock<Pollers, { rank::WAIT }>);

impl Default for PollQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl PollQueue {
    /// All events, for a change after which any may hold.
    pub const ANY: u16 = u16::MAX;

    /// A queue without pollers.
    pub const fn new() -> Self {
        Self(IrqLock::new(Pollers::EMPTY))
    }

    /// Wakes all pollers, after a change of the object's state. For threads, without a lock: others run in between. A
    /// watcher that waits for none of `events`, bits of `POLL`, notes nothing.
    pub fn wake(&self, events: u16) {
        let mut pollers = self.0.lock();
        pollers.wakes += 1;
        let number = pollers.wakes;
        loop {
            let mut further = None;
            for _ in 0..WOKEN_AT_ONCE {
                let mut front = pollers.nodes.front_mut();
                if front.get().is_none_or(|node| node.mark.get() >= number) {
                    return;
                }
                let Some(node) = front.remove() else { return };
                node.mark.set(number);
                match &node.poller {
                    Poller::Thread(thread) => thread.unpark(),
                    Poller::Watcher(watcher) => further = watcher.note(events),
                }
                pollers.nodes.push_back(node);
                if further.is_some() {
                    break;
                }
            }
            drop(pollers);
            // Watchers of watchers are few levels deep.
            if let Some((queue, events)) = further {
                queue.wake(events);
            }
            relax();
            pollers = self.0.lock();
        }
    }
}

impl<'q> PollNode<'q> {
    /// For the running thread, in no queue yet.
    pub fn new(queue: &'q PollQueue) -> Self {
        Self::of(queue, Poller::Thread(current().to_ref()))
    }

    /// For a watcher, in no queue yet.
    pub fn watching(queue: &'q PollQueue, watcher: &'q dyn Watcher) -> Self {
        Self::of(queue, Poller::Watcher(watcher))
    }

    const fn of(queue: &'q PollQueue, poller: Poller<'q>) -> Self {
        Self { queue, link: LinkedListLink::new(), poller, mark: Cell::new(0) }
    }

    /// Joins the queue: for threads, under locks before the rank `WAIT`.
    ///
    /// # Safety
    /// The node is in no queue. It stays where it is, and its queue and its watcher are there, until it has left.
    pub unsafe fn join(&self) {
        let mut pollers = self.queue.0.lock();
        self.mark.set(pollers.wakes);
        // SAFETY: as the caller guarantees.
        pollers.nodes.push_back(unsafe { UnsafeRef::from_raw((&raw const *self).cast()) });
    }

    /// Leaves the queue, if it has joined it. As [`Self::join`].
    pub fn leave(&self) {
        let mut pollers = self.queue.0.lock();
        if self.link.is_linked() {
            // SAFETY: it is in this list, out of which no wake-up takes it.
            unsafe { pollers.nodes.cursor_mut_from_ptr((&raw const *self).cast()) }.remove();
        }
    }
}

/// The nodes of one poller.
///
/// # Safety
/// [`Self::nodes`] gives the same nodes each time, and each stays where it is while the whole is borrowed.
pub unsafe trait PollNodes<'q> {
    /// All of them.
    fn nodes<'n>(&'n self) -> impl Iterator<Item = &'n PollNode<'q>>
    where
        'q: 'n;
}

// SAFETY: an array's own iterator.
unsafe impl<'q, const COUNT: usize> PollNodes<'q> for [PollNode<'q>; COUNT] {
    fn nodes<'n>(&'n self) -> impl Iterator<Item = &'n PollNode<'q>>
    where
        'q: 'n,
    {
        self.iter()
    }
}

/// Joins the queues of all `nodes`, which are the running thread's, and parks until `look` returns true; it is called
/// first when all have joined, or the thread has a signal to deliver, and after each wake-up. It takes what locks it
/// likes.
pub fn poll<'q>(nodes: &mut impl PollNodes<'q>, look: &mut dyn FnMut() -> bool) {
    let nodes = &*nodes;
    for (index, node) in nodes.nodes().enumerate() {
        if index % AT_ONCE == AT_ONCE - 1 {
            relax();
            if is_interrupted() {
                break;
            }
        }
        // SAFETY: the nodes and their queues are borrowed until all have left.
        unsafe { node.join() };
    }
    while !look() {
        park();
    }
    for (index, node) in nodes.nodes().enumerate() {
        if index % AT_ONCE == AT_ONCE - 1 {
            relax();
        }
        node.leave();
    }
}
