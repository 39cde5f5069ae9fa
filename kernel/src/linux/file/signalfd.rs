//! Files that signals are read from (`signalfd(2)`). A reader takes its own signals, and a poller looks for its own,
//! whichever process opened the file. So the pollers are those of a process: they have a queue by its number, and are woken
//! after each signal that becomes pending, while there is such a file at all.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule_abi::file::POLLIN;

use super::event::attempt_until;
use super::open::PollState;
use crate::linux::errno::Errno;
use crate::sched::{IfNotReady, PollQueue};

/// Queues of pollers: several processes may share one.
const QUEUES: usize = 16;

static POLLERS: [PollQueue; QUEUES] = [const { PollQueue::new() }; QUEUES];
static FILES: AtomicUsize = AtomicUsize::new(0);

const fn queue_of(process: u32) -> &'static PollQueue {
    &POLLERS[process as usize % QUEUES]
}

/// Whether there are such files. Under the lock of the process whose signals change: a poller that looked before has made
/// its file before.
pub fn are_some() -> bool {
    FILES.load(Ordering::Relaxed) != 0
}

/// Wakes the pollers of a process after a change of its signals. For threads, without a lock.
pub fn wake(process: u32) {
    queue_of(process).wake(POLLIN);
}

/// A file that signals are read from.
pub struct SignalFile {
    /// Those that it gives, a bit each.
    wanted: AtomicU64,
    look: fn(u64) -> (u32, bool),
}

impl SignalFile {
    /// Gives these signals. `look` returns the process of the running thread, by its number, and whether one of some signals is
    /// pending for the thread.
    pub fn new(wanted: u64, look: fn(u64) -> (u32, bool)) -> Self {
        FILES.fetch_add(1, Ordering::Relaxed);
        Self { wanted: AtomicU64::new(wanted), look }
    }

    /// Gives these signals from now on. The caller wakes the pollers.
    pub fn set_wanted(&self, wanted: u64) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Has `take` take one of the signals, for a thread of this process, when there is one.
    ///
    /// # Errors
    /// `EAGAIN`, `ERESTARTSYS`.
    pub fn read(&self, process: u32, if_not_ready: IfNotReady, take: &mut dyn FnMut(u64) -> bool) -> Result<(), Errno> {
        attempt_until(queue_of(process), if_not_ready, &mut || take(self.wanted.load(Ordering::Relaxed)))
    }

    /// The events that the running thread finds, a program's, under no lock of a process.
    pub fn poll(&self) -> PollState<'_> {
        let (process, has_some) = (self.look)(self.wanted.load(Ordering::Relaxed));
        PollState { events: if has_some { POLLIN } else { 0 }, queue: Some(queue_of(process)) }
    }
}

impl Drop for SignalFile {
    fn drop(&mut self) {
        FILES.fetch_sub(1, Ordering::Relaxed);
    }
}
