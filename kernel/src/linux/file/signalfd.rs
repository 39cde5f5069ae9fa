//! Files that signals are read from (`signalfd(2)`). A reader takes its own signals, and a poller looks for its own,
//! whichever process opened the file. So the pollers are those of a process, whose queue is made for its first one: they
//! are woken after each signal that becomes pending. As on Linux an epoll set has its signals from the process that added
//! the file, and what is found there is what the thread has that looks.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule_abi::file::POLLIN;
use spin::Once;

use super::epoll;
use super::event::attempt_until;
use super::open::PollState;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::sched::{IfNotReady, PollQueue};

static FILES: AtomicUsize = AtomicUsize::new(0);

/// Whether there are such files. Under the lock of the process whose signals change: a poller that looked before has made
/// its file before.
pub fn are_some() -> bool {
    FILES.load(Ordering::Relaxed) != 0
}

/// Wakes the pollers of a process's signals after a change of these. For threads, without a lock.
pub fn wake(queue: &PollQueue) {
    queue.wake(POLLIN);
}

/// The pollers of a process's signals.
#[derive(Default)]
pub struct SignalPollers(Once<Counted<PollQueue>>);

impl SignalPollers {
    /// None.
    pub const fn new() -> Self {
        Self(Once::new())
    }

    /// Their queue, which is made for the first one.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn queue(&self) -> Result<&Counted<PollQueue>, OutOfMemory> {
        self.0.try_call_once(epoll::new_queue)
    }

    /// Their queue, for a waker that keeps it.
    pub fn get(&self) -> Option<&Counted<PollQueue>> {
        self.0.get()
    }

    /// Wakes them after a change of the signals. For threads, without a lock.
    pub fn wake(&self) {
        self.get().into_iter().for_each(|queue| wake(queue));
    }
}

/// The findings of the running thread.
pub struct Looked {
    /// The pollers of its process.
    pub pollers: &'static SignalPollers,
    /// Whether one of the signals is pending for it.
    pub is_pending: bool,
}

/// A file that signals are read from.
pub struct SignalFile {
    /// Those that it gives, a bit each.
    wanted: AtomicU64,
    look: fn(u64) -> Looked,
}

impl SignalFile {
    /// Gives these signals. `look` looks for the running thread, a program's.
    pub fn new(wanted: u64, look: fn(u64) -> Looked) -> Self {
        FILES.fetch_add(1, Ordering::Relaxed);
        Self { wanted: AtomicU64::new(wanted), look }
    }

    /// Gives these signals from now on. The caller wakes the pollers.
    pub fn set_wanted(&self, wanted: u64) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Has `take` take one of the signals when there is one, for a thread of the process that has these pollers.
    ///
    /// # Errors
    /// `EAGAIN`, `ERESTARTSYS`, `ENOMEM`.
    pub fn read(
        &self,
        pollers: &SignalPollers,
        if_not_ready: IfNotReady,
        take: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Errno> {
        attempt_until(pollers.queue()?, if_not_ready, &mut || take(self.wanted.load(Ordering::Relaxed)))
    }

    /// The queue of the running thread's process, before that polls the file.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn prepare(&self) -> Result<Counted<PollQueue>, OutOfMemory> {
        (self.look)(0).pollers.queue().cloned()
    }

    /// The events that the running thread finds, which has [prepared](Self::prepare), under no lock of a process.
    pub fn poll(&self) -> PollState<'_> {
        let Looked { pollers, is_pending } = (self.look)(self.wanted.load(Ordering::Relaxed));
        PollState { events: if is_pending { POLLIN } else { 0 }, queue: pollers.get().map(|queue| &**queue) }
    }
}

impl Drop for SignalFile {
    fn drop(&mut self) {
        FILES.fetch_sub(1, Ordering::Relaxed);
    }
}
