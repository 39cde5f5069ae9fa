//! A userfaultfd: the kernel's own queue of faults and events, and count of changes, with one page that may be missing.

#![allow(unsafe_code, reason = "a node that stays until its wait is over")]

#[allow(unreachable_pub, reason = "the kernel's other modules alone use it")]
#[path = "../../../src/mm/space/userfault/changes.rs"]
mod changes;
#[allow(dead_code, unreachable_pub, reason = "the kernel's other modules alone use it")]
#[path = "../../../src/mm/space/userfault/queue.rs"]
mod queue;

use granule_arch::addr::VirtAddr;
use loom::sync::Mutex;

use changes::Changes;
use queue::{Queue, QueuedFault};

use crate::Watched;
use crate::sched::{self, IfNotReady};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::rank;
use crate::{Omitted, omit};

/// A message that a pager reads.
#[derive(Clone)]
enum Message {
    Fault(PageFault),
    Event,
}

/// A fault as a pager reads it.
#[derive(Clone, Copy)]
struct PageFault;

/// The page.
const PAGE: VirtAddr = VirtAddr(0x1000);

/// When a thread that has faulted looks at the entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// With the table locked until its message is queued.
    Locked,
    /// Without.
    Unlocked,
}

/// The result of a reader's copy of a message to its pager.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It reaches the pager.
    Done,
    /// The pager's memory cannot be written.
    Failed,
}

/// The userfaultfd, and the page.
#[derive(Default)]
pub struct Userfaultfd {
    queue: Queue,
    changes: Changes,
    /// The lock of the table.
    table: Mutex<()>,
    /// 1 once the page is there.
    entry: AtomicU32,
    /// The cell that a change of the mappings writes.
    mapping: Watched<u32>,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Userfaultfd {
    /// An access of the page, as `Space::userfault` has it served. The last lock of the wait is `omitted`.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn fault(&self, look: Look, omitted: Omitted) {
        // Not freed: a waker that is not waited for finds what it was.
        let fault = Box::into_raw(Box::new(QueuedFault::new(PAGE)));
        // SAFETY: made above; no other has it yet.
        let node = unsafe { &*fault };
        let is_queued = {
            let _locked = (look == Look::Locked).then(|| self.table.lock().unwrap());
            // SAFETY: the node stays where it is.
            self.entry.load(Ordering::Relaxed) == 0 && unsafe { self.queue.add(node, PageFault) }
        };
        if is_queued {
            self.queue.wake_pollers();
            omit(omitted);
            self.queue.wait(node, &sched::is_interrupted, sched::park);
            omit(Omitted::Nothing);
        }
        // SAFETY: as above; the wait is over, and what it has not waited for is caught.
        unsafe { std::ptr::drop_in_place(fault) };
    }

    /// The page is brought, and what waits for it is woken.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn serve(&self) {
        let locked = self.table.lock().unwrap();
        self.entry.store(1, Ordering::Relaxed);
        drop(locked);
        self.queue.wake(PAGE..VirtAddr(PAGE.0 + 0x1000));
    }

    /// A pager reads a message, and serves it if it is a fault; whether there was one, or will be where it may wait.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn read(&self, if_not_ready: IfNotReady, delivery: Delivery) -> bool {
        let Ok(reading) = self.queue.read(if_not_ready) else { return false };
        let is_fault = matches!(reading.message(), Message::Fault(_));
        match delivery {
            Delivery::Done => reading.done(),
            Delivery::Failed => drop(reading),
        }
        if is_fault {
            self.serve();
        }
        true
    }

    /// A change of the mappings, and its event; whether that was read.
    pub fn change(&self) -> bool {
        self.changes.begin();
        self.mapping.write(1);
        let is_read = self.queue.send(Message::Event);
        self.changes.end();
        is_read
    }

    /// As [`Self::change`], within another change, which is undone after it.
    pub fn change_and_undo(&self) {
        self.changes.begin();
        self.change();
        self.mapping.write(2);
        self.changes.end();
    }

    /// A call of the pager, once there is no change.
    pub fn call(&self) {
        while self.changes.are_there() {
            loom::thread::yield_now();
        }
        self.mapping.read();
    }

    /// The pager closes it.
    pub fn close(&self) {
        self.queue.close();
        self.queue.wake(VirtAddr(0)..VirtAddr(u64::MAX));
    }

    /// Whether there is something to read.
    pub fn has_message(&self) -> bool {
        self.queue.has_message()
    }

    /// The lock of the queue is left out by the running thread.
    pub const QUEUE_LOCK: Omitted = Omitted::Lock(rank::WAIT);
}
