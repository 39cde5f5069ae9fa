//! The state of a program's thread, beside the scheduler's.

#![allow(unsafe_code, reason = "tasks of threads, and the spaces that they run in")]

use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use granule_abi::signal::SigStack;
use intrusive_collections::{KeyAdapter, RBTreeLink, UnsafeRef};
use spin::Once;

use super::clone::Vfork;
use super::state::{ProcessState, Visit};
use super::surroundings::{OfProcess, Surroundings};
use super::tree::Process;
use crate::kernel;
use crate::linux::file::open::FileRef;
use crate::linux::file::signalfd::Looked;
use crate::linux::file::table::Files;
use crate::linux::process::capabilities::Capabilities;
use crate::linux::process::limits::ProcessSlot;
use crate::linux::process::registration::Registration;
use crate::linux::process::retries::Retries;
use crate::linux::process::signal::frame::FaultRecord;
use crate::linux::process::signal::{Effect, Pending, Set, Signal, SignalCause};
use crate::linux::process::status::Name;
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::mm::space::{NodePolicy, Space, SpaceRef, SpaceUser};
use crate::sched::{Thread, ThreadRef, Work, current};

static POOL: Once<Pool<Task>> = Once::new();

/// A thread of a process. It exists from before the thread runs until the thread has left its process.
///
/// Only the thread itself accesses the cells once it runs.
pub struct Task {
    /// Changed only by an exec: the thread that remains gets the process's.
    id: AtomicU32,
    process: &'static Process,
    thread: Once<ThreadRef>,
    in_process: RBTreeLink,
    by_id: RBTreeLink,
    /// Blocked signals. Changed by its own thread, under the lock of its process.
    blocked: AtomicU64,
    /// Those of the blocked ones that it waits for. Likewise.
    awaited: AtomicU64,
    /// Signals for this thread only: see [`Self::pending`].
    pending: Pending,
    /// Whether the thread is leaving the process. Set by its own thread, under the lock of its process.
    leaves: AtomicBool,
    /// The number of the stop of its process in which it has halted; 0 for none. Likewise.
    pub halted_in: AtomicU64,
    space: UnsafeCell<Option<SpaceUser>>,
    /// Its descriptors, if they are not its process's. Set before it runs.
    pub own_files: Once<Counted<Files<FileRef>>>,
    /// Its surroundings, if they are not its process's. Set before it runs.
    pub apart: Once<Counted<Surroundings>>,
    /// The signals that are blocked again when the next handler returns, or where none runs: what a call blocked in their
    /// place is blocked until signals are delivered (Linux's `saved_sigmask`).
    pub saved_mask: Cell<Option<Set>>,
    /// The alternative stack for handlers.
    pub stack: Cell<SigStack>,
    /// The word that is zeroed when the thread exits; 0 for none.
    pub clear_at_exit: Cell<u64>,
    /// Where its list of robust futexes begins; 0 for none. Set by its own thread.
    pub robust_list: AtomicU64,
    /// Its memory for restartable sequences.
    pub rseq: Cell<Registration>,
    /// The call that a signal interrupted.
    pub restart: Cell<Option<Restart>>,
    /// The state for `restart_syscall`.
    pub continuation: Cell<Option<Continuation>>,
    /// Its reservation among all tasks, unless it is the process's first task, whose reservation the process has.
    pub place: Cell<Option<ProcessSlot>>,
    /// The last fault that a signal reported.
    pub fault: Cell<FaultRecord>,
    /// The name for `PR_SET_NAME` and `PR_GET_NAME`.
    pub name: Cell<Name>,
    /// The value of `personality`: only [`ADDR_NO_RANDOMIZE`](granule_abi::process::ADDR_NO_RANDOMIZE) has an effect.
    pub personality: Cell<u32>,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Its policy for nodes.
    pub policy: Cell<NodePolicy>,
    /// Of calls and faults that were short of memory, though nothing was freed for them.
    pub retries: Retries,
    /// The thread that sleeps until this one leaves the space that they share.
    pub vfork: Cell<Option<Counted<Vfork>>>,
}

// SAFETY: only the task's own thread accesses the cells; `pending` and the links are accessed under locks.
unsafe impl Sync for Task {}
// SAFETY: nothing in it belongs to a CPU.
unsafe impl Send for Task {}

/// A call that a signal interrupted, and that may be repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// When it is repeated.
    pub kind: RestartKind,
    /// x0 before the call.
    pub x0: u64,
}

/// When an interrupted call is repeated, beside always when no handler runs; else it fails with `EINTR`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartKind {
    /// With a handler too, if that has `SA_RESTART` (Linux's `ERESTARTSYS`).
    UnlessHandled,
    /// Not with any handler (`ERESTARTNOHAND`).
    WithoutHandler,
    /// Likewise, by `restart_syscall`: [`Task::continuation`] has the rest (`ERESTART_RESTARTBLOCK`).
    Continued,
}

/// The rest of an interrupted call.
#[derive(Clone, Copy, Debug)]
pub enum Continuation {
    /// A sleep.
    Sleep(crate::linux::process::clocks::Sleep),
    /// A wait for a futex with a time limit.
    Futex(super::futex::Wait),
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{RBTreeLink, Task, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub InProcess = UnsafeRef<Task>: Task { in_process => RBTreeLink });
    intrusive_adapter!(pub ById = UnsafeRef<Task>: Task { by_id => RBTreeLink });
}
pub use adapter::{ById, InProcess};

impl<'a> KeyAdapter<'a> for InProcess {
    type Key = u32;
    fn get_key(&self, task: &'a Task) -> u32 {
        task.id()
    }
}

impl<'a> KeyAdapter<'a> for ById {
    type Key = u32;
    fn get_key(&self, task: &'a Task) -> u32 {
        task.id()
    }
}

impl Task {
    /// A task of `process` that has no thread yet, in no list.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays allocated.
    pub fn new(
        id: u32,
        process: &'static Process,
        space: SpaceUser,
        blocked: Set,
        name: Name,
    ) -> Result<PoolBox<Self>, OutOfMemory> {
        let room = POOL.call_once(|| Pool::new(kernel().frames)).try_new_uninit()?;
        Ok(room.write(Self {
            id: AtomicU32::new(id),
            process,
            thread: Once::new(),
            in_process: RBTreeLink::new(),
            by_id: RBTreeLink::new(),
            blocked: AtomicU64::new(blocked.0),
            awaited: AtomicU64::new(0),
            pending: Pending::new(),
            leaves: AtomicBool::new(false),
            halted_in: AtomicU64::new(0),
            space: UnsafeCell::new(Some(space)),
            own_files: Once::new(),
            apart: Once::new(),
            saved_mask: Cell::new(None),
            stack: Cell::new(SigStack::NONE),
            clear_at_exit: Cell::new(0),
            robust_list: AtomicU64::new(0),
            rseq: Cell::new(Registration::NONE),
            restart: Cell::new(None),
            continuation: Cell::new(None),
            place: Cell::new(None),
            fault: Cell::new(FaultRecord::default()),
            name: Cell::new(name),
            personality: Cell::new(0),
            capabilities: Capabilities::of_first(),
            policy: Cell::new(NodePolicy::DEFAULT),
            retries: Retries::default(),
            vfork: Cell::new(None),
        }))
    }

    /// The task of a thread that runs a program.
    ///
    /// # Safety
    /// The thread was made for a task, and has not left its process.
    #[inline(always)]
    pub unsafe fn of(thread: &Thread) -> &Self {
        // SAFETY: by the caller's contract the pointer is to a task that still exists.
        unsafe { &*thread.task().cast() }
    }

    /// Its number for programs.
    pub fn id(&self) -> u32 {
        self.id.load(Ordering::Relaxed)
    }

    /// Changes its number. It is in no tree during the change.
    pub(super) fn set_id(&self, id: u32) {
        self.id.store(id, Ordering::Relaxed);
    }

    /// Whether it is its process's first thread, or the one that remained after an exec.
    pub fn is_main(&self) -> bool {
        self.id() == self.process.id()
    }

    /// Its process.
    pub const fn process(&self) -> &'static Process {
        self.process
    }

    /// Its descriptors.
    pub fn files(&self) -> &Files<FileRef> {
        self.own_files.get().map_or(&self.process.files, |files| files)
    }

    /// Whether its surroundings are not the first ones.
    #[inline(always)]
    pub fn has_surroundings(&self) -> bool {
        self.apart.get().is_some() || self.process.surroundings.get().is_some()
    }

    /// Its surroundings, if they are not the first ones.
    pub fn surroundings(&self) -> Option<Counted<Surroundings>> {
        self.apart.get().cloned().or_else(|| self.process.surroundings.get()?.get())
    }

    /// Its surroundings, to be changed or shared.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn own_surroundings(&self) -> Result<Counted<Surroundings>, OutOfMemory> {
        if let Some(own) = self.surroundings() {
            return Ok(own);
        }
        let new = Surroundings::new()?;
        // Where another thread was faster, its surroundings stay.
        Ok(self.process.surroundings.call_once(|| OfProcess::new(new.clone())).get().unwrap_or(new))
    }

    /// Its thread.
    ///
    /// # Panics
    /// Before it has one; such a task is in no list.
    pub fn thread(&self) -> &ThreadRef {
        self.thread.get().expect("a task in a list has a thread")
    }

    /// Sets its thread.
    pub fn set_thread(&self, thread: ThreadRef) {
        self.thread.call_once(|| thread);
    }

    /// Its address space. For its own thread.
    #[inline(always)]
    pub fn space(&self) -> &Space {
        self.space_user()
    }

    /// Its use of its address space. For its own thread.
    #[inline(always)]
    pub fn space_user(&self) -> &SpaceUser {
        // SAFETY: only the task's own thread replaces it, in `replace_space`, when it has no reference to it.
        let space = unsafe { &*self.space.get() };
        space.as_ref().expect("a thread that runs a program has a space")
    }

    /// A reference to its address space, for others. For its own thread.
    pub fn space_ref(&self) -> SpaceRef {
        SpaceRef::clone(self.space_user())
    }

    /// Replaces the address space of its own thread, or removes it; returns the one before.
    ///
    /// # Safety
    /// Called by the task's own thread, which has no reference from [`Self::space`].
    pub unsafe fn replace_space(&self, space: Option<SpaceUser>) -> Option<SpaceUser> {
        // SAFETY: by the caller's contract there is no other access.
        unsafe { core::mem::replace(&mut *self.space.get(), space) }
    }

    /// The signals that it blocks.
    pub fn blocked(&self) -> Set {
        Set(self.blocked.load(Ordering::Relaxed))
    }

    /// The blocked signals that it does not wait for: it is not notified of them.
    pub fn closed(&self) -> Set {
        self.blocked().without(Set(self.awaited.load(Ordering::Relaxed)))
    }

    /// Takes one of the `wanted` signals for its own thread, which waits for those of `awaited` where there is none: it is
    /// notified of them from now on, blocked or not.
    pub fn take_or_await(&self, wanted: Set, awaited: Set) -> Option<(Signal, SignalCause)> {
        let (taken, visit) = {
            let state = self.process.lock();
            let taken = state.take(self, Set(!wanted.0));
            let awaited = if taken.is_none() { awaited } else { Set::EMPTY };
            self.awaited.store(awaited.0, Ordering::Relaxed);
            // It may have been notified of these as well.
            (taken, Visit::offer(state.pending.set().and(wanted)))
        };
        self.process.visit(visit);
        taken
    }

    /// The signals that are pending for it only. Guarded by the lock of the process, whose state the caller has.
    pub fn pending<'s>(&'s self, _state: &'s ProcessState) -> &'s Pending {
        &self.pending
    }

    /// Those that are pending for it or its process.
    pub fn all_pending(&self, state: &ProcessState) -> Set {
        self.pending(state).set().with(state.pending.set())
    }

    /// Those of them that are not blocked.
    fn waiting(&self, state: &ProcessState) -> Set {
        self.all_pending(state).without(self.blocked())
    }

    /// Whether the thread is leaving the process: it handles no more signals.
    pub fn is_leaving(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    /// Stops its own thread from handling signals; other threads are notified of those of the process that it could
    /// handle.
    pub(super) fn begin_leaving(&self) {
        let visit = {
            let state = self.process.lock();
            self.leaves.store(true, Ordering::Relaxed);
            Visit::offer(state.pending.set().without(self.blocked()))
        };
        self.process.visit(visit);
    }

    /// Whether the thread's work in the kernel is useless, because it will not return to EL0. The work to leave is not.
    pub fn is_called_off(&self) -> bool {
        if self.is_leaving() {
            return false;
        }
        let state = self.process.lock();
        state.is_ending(self) || state.fatal(self.waiting(&state)).is_some()
    }

    /// Whether the running thread, whose sleep a signal has ended, has one to deliver, halts or leaves. The signal may be
    /// blocked by now, or another thread may have taken it: then the sleep goes on.
    pub fn is_interrupted(&self) -> bool {
        self.thread().lower(Work::SIGNAL);
        let state = self.process.lock();
        let is_interrupted = !self.waiting(&state).is_empty() || state.is_ending(self) || state.stop.is_active();
        if is_interrupted {
            self.thread().raise(Work::SIGNAL);
        }
        is_interrupted
    }

    /// Whether a signal is pending that ends the process of this task, whose thread runs: what takes long ends early then
    /// (Linux: `fatal_signal_pending`).
    #[inline(always)]
    pub fn is_killed(&self, thread: &Thread) -> bool {
        thread.has(Work::SIGNAL) && self.is_called_off()
    }

    /// Makes the thread check for signals, also if it sleeps interruptibly.
    pub fn kick(&self) {
        self.thread().raise(Work::SIGNAL);
        self.thread().unpark();
    }

    /// Sets the blocked signals of its own thread; it checks those that are pending and open now. Other threads are
    /// notified of those of the process that it blocks from now on.
    pub fn set_blocked(&self, blocked: Set) {
        let closed = {
            let state = self.process.lock();
            let before = self.blocked();
            let blocked = blocked.blockable();
            self.blocked.store(blocked.0, Ordering::Relaxed);
            if !self.waiting(&state).is_empty() {
                self.thread().raise(Work::SIGNAL);
            }
            if state.threads() > 1 { state.pending.set().and(blocked).without(before) } else { Set::EMPTY }
        };
        if !closed.is_empty() {
            self.process.visit(Visit::offer(closed));
        }
    }

    /// Looks for these signals of the running thread, a program's. For pollers.
    pub fn look(signals: u64) -> Looked {
        let thread = current();
        // SAFETY: files are polled by programs' threads, in their calls.
        let task = unsafe { Self::of(&thread) };
        let pending = task.all_pending(&task.process.lock());
        Looked { pollers: &task.process.signal_pollers, is_pending: !pending.and(Set(signals)).is_empty() }
    }

    /// Sends its own thread a signal that cannot be blocked or ignored: where it is, the default action is restored.
    /// For `failed`, a signal whose handler could not begin, it is restored in any case.
    pub fn force(&self, signal: Signal, cause: SignalCause, failed: Option<Signal>) {
        let state = self.process.lock();
        let blocked = self.blocked();
        if failed == Some(signal) || blocked.has(signal) || state.effect(signal) == Effect::Ignored {
            state.handlers.with(|actions| actions.reset(signal));
            self.blocked.store(blocked.without(signal.set()).0, Ordering::Relaxed);
        }
        self.pending(&state).add(signal, cause);
        self.kick();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} of {:?}", self.id(), self.process)
    }
}

/// Tasks.
pub fn pool_stats() -> PoolStats {
    POOL.get().map_or_else(PoolStats::default, Pool::stats)
}
