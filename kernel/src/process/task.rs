//! What a thread of a program has besides what the scheduler knows of it.

use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule_abi::signal::SigStack;
use intrusive_collections::{LinkedListLink, UnsafeRef};
use spin::Once;

use super::limits::Place;
use super::signal::frame::FaultRecord;
use super::signal::{Cause, Effect, Pending, Set, Signal};
use super::status::Life;
use super::tree::{PROCESSES, Process, State};
use crate::kernel;
use crate::mm::OutOfMemory;
use crate::mm::pool::{Pool, PoolBox};
use crate::mm::space::{Space, SpaceRef};
use crate::sched::{Thread, ThreadRef, Work};

static POOL: Once<Pool<Task>> = Once::new();

/// A thread of a process. It is there from before the thread runs until the thread has left its process.
///
/// The cells are the thread's own: nobody else touches them once it runs.
pub struct Task {
    /// Changed by an exec alone: the thread that is left takes the process's.
    id: AtomicU32,
    process: &'static Process,
    thread: Once<ThreadRef>,
    link: LinkedListLink,
    /// Blocked signals. Changed under the lock of [`super::tree::PROCESSES`].
    blocked: AtomicU64,
    /// Signals for this thread alone: see [`Self::pending`].
    pending: Pending,
    space: UnsafeCell<Option<SpaceRef>>,
    /// The stack for handlers that ask for one.
    pub stack: Cell<SigStack>,
    /// The word that is zeroed when the thread exits; 0 for none.
    pub clear_at_exit: Cell<u64>,
    /// The call that a signal interrupted.
    pub restart: Cell<Option<Restart>>,
    /// What `restart_syscall` goes on with.
    pub continuation: Cell<Option<Continuation>>,
    /// Whether the thread is on its way out of the process.
    pub leaves: Cell<bool>,
    /// Its place among all tasks, where it is not the process's first: that one's is the process's.
    pub place: Cell<Option<Place>>,
    /// The last fault that a signal told of.
    pub fault: Cell<FaultRecord>,
}

// SAFETY: the cells are touched by the task's own thread alone, `pending` under the lock of the tree.
unsafe impl Sync for Task {}
// SAFETY: nothing in it belongs to a CPU.
unsafe impl Send for Task {}

/// A call that a signal interrupted, and that may be made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// When it is made again.
    pub kind: RestartKind,
    /// x0 as it was made.
    pub x0: u64,
}

/// When an interrupted call is made again, if not always when no handler runs; with a handler it is `EINTR` otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartKind {
    /// With a handler too, if that has `SA_RESTART` (Linux's `ERESTARTSYS`).
    UnlessHandled,
    /// Not with any handler (`ERESTARTNOHAND`).
    WithoutHandler,
    /// Likewise, and by `restart_syscall`: [`Task::continuation`] has what is left (`ERESTART_RESTARTBLOCK`).
    Continued,
}

/// What is left of an interrupted call.
#[derive(Clone, Copy, Debug)]
pub enum Continuation {
    /// A sleep.
    Sleep(super::clock::Sleep),
    /// A wait for a futex with a time limit.
    Futex(super::futex::Wait),
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListLink, Task, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub InProcess = UnsafeRef<Task>: Task { link => LinkedListLink });
}
pub use adapter::InProcess;

impl Task {
    /// A task of `process` that has no thread yet, in no list.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays taken.
    pub fn new(
        id: u32,
        process: &'static Process,
        space: SpaceRef,
        blocked: Set,
    ) -> Result<PoolBox<Self>, OutOfMemory> {
        POOL.call_once(|| Pool::new(kernel().frames)).try_new(Self {
            id: AtomicU32::new(id),
            process,
            thread: Once::new(),
            link: LinkedListLink::new(),
            blocked: AtomicU64::new(blocked.0),
            pending: Pending::new(),
            space: UnsafeCell::new(Some(space)),
            stack: Cell::new(SigStack::NONE),
            clear_at_exit: Cell::new(0),
            restart: Cell::new(None),
            continuation: Cell::new(None),
            leaves: Cell::new(false),
            place: Cell::new(None),
            fault: Cell::new(FaultRecord::default()),
        })
    }

    /// The task of a thread that runs a program.
    ///
    /// # Safety
    /// The thread was made for a task, and has not left its process.
    #[inline(always)]
    pub unsafe fn of(thread: &Thread) -> &Self {
        // SAFETY: by the caller's word the pointer is a task's that is still there.
        unsafe { &*thread.task().cast() }
    }

    /// The number that programs know it by.
    pub fn id(&self) -> u32 {
        self.id.load(Ordering::Relaxed)
    }

    /// The only thread of its process takes its number.
    pub fn take_process_id(&self) {
        self.id.store(self.process.id(), Ordering::Relaxed);
        self.place.set(None);
    }

    /// Its process.
    pub const fn process(&self) -> &'static Process {
        self.process
    }

    /// Its thread.
    ///
    /// # Panics
    /// Before it has one: such a task is in no list.
    pub fn thread(&self) -> &ThreadRef {
        self.thread.get().expect("a task in a list has a thread")
    }

    /// Gives it its thread.
    pub fn set_thread(&self, thread: ThreadRef) {
        self.thread.call_once(|| thread);
    }

    /// Its address space. For its own thread.
    #[inline(always)]
    pub fn space(&self) -> &Space {
        // SAFETY: only the task's own thread replaces it, in `replace_space`, when it has no reference to it.
        let space = unsafe { &*self.space.get() };
        space.as_ref().expect("a thread that runs a program has a space")
    }

    /// A reference to its address space, for somebody else to keep.
    pub fn space_ref(&self) -> SpaceRef {
        // SAFETY: as for `space`.
        let space = unsafe { &*self.space.get() };
        space.clone().expect("a thread that runs a program has a space")
    }

    /// Gives its own thread another address space, or none; returns the one before.
    ///
    /// # Safety
    /// Called by the task's own thread, which has no reference from [`Self::space`].
    pub unsafe fn replace_space(&self, space: Option<SpaceRef>) -> Option<SpaceRef> {
        // SAFETY: by the caller's word nobody else looks.
        unsafe { core::mem::replace(&mut *self.space.get(), space) }
    }

    /// The signals that it blocks.
    pub fn blocked(&self) -> Set {
        Set(self.blocked.load(Ordering::Relaxed))
    }

    /// The signals that wait for it alone. They are guarded by the lock, which whoever has the process's state has.
    pub fn pending<'s>(&'s self, _state: &'s State) -> &'s Pending {
        &self.pending
    }

    /// Whether what the thread does in the kernel is for nothing, because it will not see EL0 again. What it does to
    /// leave is not.
    pub fn is_called_off(&self) -> bool {
        !self.leaves.get() && self.process.state(&mut PROCESSES.lock().key).will_end(self)
    }

    /// Has the thread look for signals, also where it sleeps for something that a signal may interrupt.
    pub fn kick(&self) {
        self.thread().raise(Work::SIGNAL);
        self.thread().unpark();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} of {:?}", self.id(), self.process)
    }
}

/// Frames that tasks keep: for accounts of who has which frames.
pub fn kept_frames() -> usize {
    POOL.get().map_or(0, |pool| pool.stats().frames)
}

/// What the lock of the tree guards of a task: whoever has a state has the lock.
impl State {
    /// Sends a signal to one of this process's tasks.
    pub fn send_to(&self, task: &Task, signal: Signal, cause: Cause) {
        let open = !task.blocked().has(signal);
        if open && self.signals.actions.effect(signal) == Effect::Ignored {
            return;
        }
        task.pending(self).add(signal, cause);
        if open {
            task.kick();
        }
    }

    /// Sets which signals a task of this process blocks, by its own wish; it is told of those that wait now.
    pub fn set_blocked(&self, task: &Task, blocked: Set) {
        task.blocked.store(blocked.blockable().0, Ordering::Relaxed);
        let waiting = task.pending(self).set().with(self.signals.pending.set());
        if !waiting.without(task.blocked()).is_empty() {
            task.thread().raise(Work::SIGNAL);
        }
    }

    /// Sends one of this process's tasks a signal that it cannot escape: if it blocks or ignores it, the default action
    /// is back.
    pub fn force(&mut self, task: &Task, signal: Signal, cause: Cause) {
        let blocked = task.blocked();
        if blocked.has(signal) || self.signals.actions.effect(signal) == Effect::Ignored {
            self.signals.actions.reset(signal);
            task.blocked.store(blocked.without(signal.set()).0, Ordering::Relaxed);
        }
        task.pending(self).add(signal, cause);
        task.kick();
    }

    /// Whether this task of the process is to exit.
    pub fn is_ending(&self, task: &Task) -> bool {
        self.life != Life::Running || self.survivor.is_some_and(|survivor| survivor != task.id())
    }

    /// Whether this task is to exit, or a signal waits for it that ends the process.
    fn will_end(&self, task: &Task) -> bool {
        let waiting = task.pending(self).set().with(self.signals.pending.set()).without(task.blocked());
        self.is_ending(task) || waiting.iter().any(|signal| self.signals.actions.effect(signal) == Effect::Fatal)
    }

    /// Takes the next signal for a task of this process, its own before those of the process.
    pub fn take(&self, task: &Task) -> Option<(Signal, Cause)> {
        let blocked = task.blocked();
        task.pending(self).take(blocked).or_else(|| self.signals.pending.take(blocked))
    }
}
