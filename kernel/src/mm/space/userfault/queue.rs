//! The messages of a userfaultfd, and what waits: threads that have faulted, senders of events, and readers.
//!
//! Each is a node on the stack of a thread that waits, and reached under the lock of the queue alone. A node that is
//! taken out is used until the lock is released; its thread acquires the lock once more before its node ends.
//!
//! A fault is in the tree, by page, until it is woken, and in the list until it is read: the pager reads in order, and wakes
//! by ranges. A wake takes [`BATCH`] under one hold, with interrupts masked, and passes over those that come later.
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "nodes on the stacks of threads that wait, under the lock of their queue")]

use core::cell::Cell;
use core::ops::Range;
use core::ptr::NonNull;

use granule_arch::addr::VirtAddr;
use intrusive_collections::{Bound, KeyAdapter, LinkedList, LinkedListLink, RBTree, RBTreeLink, UnsafeRef};

use super::{Message, PageFault};
use crate::sched::{self, IfNotReady, PollQueue, ThreadRef, current, park, relax};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{IrqLock, rank};

/// Faults that are visited under one hold of the lock.
const BATCH: usize = 16;

/// A thread that has faulted.
pub(super) struct QueuedFault {
    unread: LinkedListLink,
    by_page: RBTreeLink,
    page: VirtAddr,
    number: Cell<u64>,
    fault: Cell<Option<PageFault>>,
    thread: ThreadRef,
    woken: AtomicBool,
}

/// An event that is not read yet, and the thread that has sent it.
struct QueuedEvent {
    link: LinkedListLink,
    message: Message,
    state: Cell<EventState>,
    thread: ThreadRef,
    done: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EventState {
    /// In the list.
    Queued,
    /// A reader has it, which ends it or puts it back.
    Taken,
    /// It was read, or there is nothing any more that would read it.
    Done,
}

/// A thread that waits for a message.
struct Reader {
    link: LinkedListLink,
    thread: ThreadRef,
    woken: AtomicBool,
}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListLink, QueuedEvent, QueuedFault, RBTreeLink, Reader, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) Unread = UnsafeRef<QueuedFault>: QueuedFault { unread => LinkedListLink });
    intrusive_adapter!(pub(super) ByPage = UnsafeRef<QueuedFault>: QueuedFault { by_page => RBTreeLink });
    intrusive_adapter!(pub(super) Events = UnsafeRef<QueuedEvent>: QueuedEvent { link => LinkedListLink });
    intrusive_adapter!(pub(super) Readers = UnsafeRef<Reader>: Reader { link => LinkedListLink });
}
use adapters::{ByPage, Events, Readers, Unread};

impl<'a> KeyAdapter<'a> for ByPage {
    type Key = (u64, u64);
    fn get_key(&self, fault: &'a QueuedFault) -> (u64, u64) {
        (fault.page.0, fault.number.get())
    }
}

struct Lists {
    unread: LinkedList<Unread>,
    faults: RBTree<ByPage>,
    /// The number of the next fault.
    next: u64,
    events: LinkedList<Events>,
    readers: LinkedList<Readers>,
    is_closed: bool,
}

// SAFETY: its nodes are reached only under the lock, on whichever CPU holds it.
unsafe impl Send for Lists {}

impl Lists {
    /// Wakes the reader that has waited longest: there is something to read.
    fn wake_reader(&mut self) {
        if let Some(reader) = self.readers.pop_front() {
            reader.woken.store(true, Ordering::Relaxed);
            reader.thread.unpark();
        }
    }

    /// Takes a fault out of both lists and wakes its thread.
    fn wake(&mut self, fault: UnsafeRef<QueuedFault>) {
        if fault.unread.is_linked() {
            // SAFETY: linked, and in this list alone.
            unsafe { self.unread.cursor_mut_from_ptr(&raw const *fault) }.remove();
        }
        fault.woken.store(true, Ordering::Relaxed);
        fault.thread.unpark();
    }
}

/// See the module.
pub(super) struct Queue {
    lists: IrqLock<Lists, { rank::WAIT }>,
    /// Whether there are faults in the tree. Changed under the lock of the lists.
    has_faults: AtomicBool,
    /// Threads that wait for something to read, and for more beside.
    pollers: PollQueue,
}

/// Why nothing is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadError {
    /// The features are not agreed upon.
    NotAgreed,
    /// There is nothing, and the reader does not wait.
    Nothing,
    /// The reader has a signal to deliver.
    Interrupted,
}

/// A message that was read. An event is complete, and its sender continues, with [`Self::done`]; dropped before, it is
/// there to be read again.
pub struct Reading<'q> {
    message: Message,
    queue: &'q Queue,
    event: Option<NonNull<QueuedEvent>>,
}

impl QueuedFault {
    /// A fault of the running thread at `page`.
    pub(super) fn new(page: VirtAddr) -> Self {
        Self {
            unread: LinkedListLink::new(),
            by_page: RBTreeLink::new(),
            page,
            number: Cell::new(0),
            fault: Cell::new(None),
            thread: current().to_ref(),
            woken: AtomicBool::new(false),
        }
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        let lists = Lists {
            unread: LinkedList::new(Unread::NEW),
            faults: RBTree::new(ByPage::NEW),
            next: 0,
            events: LinkedList::new(Events::NEW),
            readers: LinkedList::new(Readers::NEW),
            is_closed: false,
        };
        Self { lists: IrqLock::new(lists), has_faults: AtomicBool::new(false), pollers: PollQueue::new() }
    }

    /// See the field.
    pub(super) const fn pollers(&self) -> &PollQueue {
        &self.pollers
    }

    /// Queues a fault, whose message can be read from now on; whether it did: a queue that is closed has none. Without the
    /// locks [`Self::wake_pollers`] comes next.
    ///
    /// # Safety
    /// If it did, `fault` stays where it is until [`Self::wait`] returns.
    pub(super) unsafe fn add(&self, fault: &QueuedFault, message: PageFault) -> bool {
        let mut lists = self.lists.lock();
        if lists.is_closed {
            return false;
        }
        fault.fault.set(Some(message));
        fault.number.set(lists.next);
        lists.next += 1;
        // SAFETY: the caller keeps the node where it is until it is out of both.
        let node = unsafe { UnsafeRef::from_raw(&raw const *fault) };
        lists.faults.insert(node.clone());
        self.has_faults.store(true, Ordering::Relaxed);
        lists.unread.push_back(node);
        lists.wake_reader();
        true
    }

    /// Wakes the threads that poll it. They are as many as programs like: no spinning lock is held.
    pub(super) fn wake_pollers(&self) {
        self.pollers.wake(PollQueue::ANY);
    }

    /// Sleeps by `sleep` until `fault` is woken, or `ends` returns true; takes it out, and returns whether it was woken. No
    /// lock is held.
    pub(super) fn wait(&self, fault: &QueuedFault, ends: &dyn Fn() -> bool, sleep: fn()) -> bool {
        // Relaxed: the lock, below, orders what the waker did.
        while !fault.woken.load(Ordering::Relaxed) && !ends() {
            sleep();
        }
        let mut lists = self.lists.lock();
        if !fault.by_page.is_linked() {
            return true;
        }
        // SAFETY: linked, and in this tree alone.
        let node = unsafe { lists.faults.cursor_mut_from_ptr(&raw const *fault) }.remove();
        self.has_faults.store(!lists.faults.is_empty(), Ordering::Relaxed);
        if let Some(node) = node.filter(|node| node.unread.is_linked()) {
            // SAFETY: linked, and in this list alone.
            unsafe { lists.unread.cursor_mut_from_ptr(&raw const *node) }.remove();
        }
        false
    }

    /// Wakes the threads that have faulted at a page of `range` so far.
    #[inline(always)]
    pub(super) fn wake(&self, range: Range<VirtAddr>) {
        // Relaxed: a fault is added under the lock of its page's table, which what serves it takes before it wakes.
        if self.has_faults.load(Ordering::Relaxed) {
            self.wake_faults(range);
        }
    }

    #[inline(never)]
    fn wake_faults(&self, range: Range<VirtAddr>) {
        let mut lists = self.lists.lock();
        let (mut from, end) = ((range.start.0, 0), lists.next);
        loop {
            for _ in 0..BATCH {
                let mut cursor = lists.faults.lower_bound_mut(Bound::Included(&from));
                let Some(fault) = cursor.get().filter(|fault| fault.page < range.end) else {
                    return self.has_faults.store(!lists.faults.is_empty(), Ordering::Relaxed);
                };
                from = (fault.page.0, fault.number.get() + 1);
                if fault.number.get() < end
                    && let Some(fault) = cursor.remove()
                {
                    lists.wake(fault);
                }
            }
            drop(lists);
            relax();
            lists = self.lists.lock();
        }
    }

    /// Has no fault wait any more, and no event. Faults that wait are left to [`Self::wake`].
    pub(super) fn close(&self) {
        loop {
            let mut lists = self.lists.lock();
            lists.is_closed = true;
            let Some(event) = lists.events.pop_front() else { return };
            finish(&event, EventState::Done);
        }
    }

    /// Whether there is something to read.
    pub(super) fn has_message(&self) -> bool {
        let lists = self.lists.lock();
        !lists.unread.is_empty() || !lists.events.is_empty()
    }

    /// Sends an event, and sleeps until it is read, or the program of this thread ends, or nothing reads it any more;
    /// whether it was read.
    pub(super) fn send(&self, message: Message) -> bool {
        let event = QueuedEvent {
            link: LinkedListLink::new(),
            message,
            state: Cell::new(EventState::Queued),
            thread: current().to_ref(),
            done: AtomicBool::new(false),
        };
        {
            let mut lists = self.lists.lock();
            if lists.is_closed {
                return false;
            }
            // SAFETY: the node stays where it is until it is done, or out of the list, below.
            lists.events.push_back(unsafe { UnsafeRef::from_raw(&raw const event) });
            lists.wake_reader();
        }
        self.pollers.wake(PollQueue::ANY);
        loop {
            // Acquire: the reader has finished with the node.
            if event.done.load(Ordering::Acquire) {
                break;
            }
            if sched::is_killed() {
                let mut lists = self.lists.lock();
                if event.state.get() == EventState::Queued {
                    // SAFETY: linked, and in this list alone.
                    unsafe { lists.events.cursor_mut_from_ptr(&raw const event) }.remove();
                    return false;
                }
                // A reader has it, which takes a moment.
                drop(lists);
                sched::sleep_briefly();
                continue;
            }
            sched::uninterruptible(park);
        }
        let _lists = self.lists.lock();
        event.state.get() == EventState::Taken
    }

    /// See [`Userfaultfd::read`](super::Userfaultfd::read).
    pub(super) fn read(&self, if_not_ready: IfNotReady) -> Result<Reading<'_>, ReadError> {
        let reader = Reader { link: LinkedListLink::new(), thread: current().to_ref(), woken: AtomicBool::new(false) };
        let mut lists = self.lists.lock();
        loop {
            if let Some(fault) = lists.unread.pop_front().and_then(|fault| fault.fault.get()) {
                return Ok(Reading { message: Message::Fault(fault), queue: self, event: None });
            }
            if let Some(event) = lists.events.pop_front() {
                event.state.set(EventState::Taken);
                let node = NonNull::from(&*event);
                return Ok(Reading { message: event.message.clone(), queue: self, event: Some(node) });
            }
            if sched::is_interrupted() {
                return Err(ReadError::Interrupted);
            }
            if if_not_ready == IfNotReady::Fail {
                return Err(ReadError::Nothing);
            }
            reader.woken.store(false, Ordering::Relaxed);
            // SAFETY: the node stays where it is until it is out of the list, below.
            lists.readers.push_back(unsafe { UnsafeRef::from_raw(&raw const reader) });
            drop(lists);
            while !reader.woken.load(Ordering::Relaxed) && !sched::is_interrupted() {
                park();
            }
            lists = self.lists.lock();
            if reader.link.is_linked() {
                // SAFETY: linked, and in this list alone.
                unsafe { lists.readers.cursor_mut_from_ptr(&raw const reader) }.remove();
            }
        }
    }
}

/// Ends an event that is out of the list, under the lock. Its node ends with that.
fn finish(event: &QueuedEvent, state: EventState) {
    let thread = event.thread.clone();
    event.state.set(state);
    event.done.store(true, Ordering::Release);
    thread.unpark();
}

impl Reading<'_> {
    /// The message.
    pub const fn message(&self) -> &Message {
        &self.message
    }

    /// It is delivered.
    pub fn done(mut self) {
        if let Some(event) = self.event.take() {
            let _lists = self.queue.lists.lock();
            // SAFETY: its sender waits until it is done, as it was taken.
            finish(unsafe { event.as_ref() }, EventState::Taken);
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let Some(event) = self.event.take() else { return };
        let mut lists = self.queue.lists.lock();
        // SAFETY: as in `done`.
        let event = unsafe { event.as_ref() };
        if lists.is_closed {
            return finish(event, EventState::Done);
        }
        event.state.set(EventState::Queued);
        // SAFETY: as in `send`.
        lists.events.push_back(unsafe { UnsafeRef::from_raw(&raw const *event) });
        lists.wake_reader();
        drop(lists);
        self.queue.pollers.wake(PollQueue::ANY);
    }
}
