//! The state of a process under its lock: its life, its threads, and its pending signals.
//!
//! # Which thread handles a signal of the process
//! A signal that is pending for the process is delivered to any thread that does not block it. One such thread is
//! notified when the signal is sent. If that thread blocks the signal or exits before the delivery, others are notified
//! instead (Linux: `complete_signal`, `retarget_shared_pending`). A fatal signal ends the process as soon as one thread
//! could handle it, whatever that thread is doing.
//!
//! # Visits
//! No operation visits all threads under one hold of the lock, since the lock masks interrupts: a [`Visit`] continues
//! where it was when the lock was released. Its inputs are stored before it begins. A thread that is created
//! concurrently, or that changes its blocked signals, checks them itself.

#![allow(unsafe_code, reason = "a list of tasks, under the lock of their process")]

use intrusive_collections::{Bound, RBTree, UnsafeRef};
use spin::Once;

use super::jobs::Stop;
use super::task::{InProcess, Task};
use super::tree::{PROCESSES, Process, Tree};
use crate::kernel;
use crate::linux::file::signalfd;
use crate::linux::process::signal::{Actions, Effect, Pending, Set, Signal, SignalCause};
use crate::linux::process::status::{Life, Name, ProcessEnd};
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::mm::space::SpaceRef;
use crate::sched::relax;
use crate::sync::{IrqLock, rank};

static HANDLERS: Once<Pool<Inner<Handlers>>> = Once::new();

/// The signal actions of a process. Processes made with `CLONE_SIGHAND` share them.
pub struct Handlers(IrqLock<Actions, { rank::ACTIONS }>);

impl Handlers {
    /// With these actions.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(actions: Actions) -> Result<Counted<Self>, OutOfMemory> {
        Self::make(|| actions)
    }

    /// A copy of the actions.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn copy(&self) -> Result<Counted<Self>, OutOfMemory> {
        // Locked during the copy, so that they are copied once: there are 2 KiB.
        self.with(|actions| Self::make(|| actions.clone()))
    }

    #[inline]
    fn make(actions: impl FnOnce() -> Actions) -> Result<Counted<Self>, OutOfMemory> {
        let pool = HANDLERS.call_once(|| Pool::new(kernel().frames));
        Counted::try_new_with(pool, || Self(IrqLock::new(actions())))
    }

    /// Calls `look` with the actions, locked.
    #[inline]
    pub fn with<R>(&self, look: impl FnOnce(&mut Actions) -> R) -> R {
        look(&mut self.0.lock())
    }
}

/// The tables of handlers.
pub fn pool_stats() -> PoolStats {
    HANDLERS.get().map_or_else(PoolStats::default, Pool::stats)
}

/// CPU time of a process's threads, as far as it was added.
struct TimeSum {
    /// The last thread that was added.
    after: u32,
    time: u64,
}

/// The state that the lock of a process guards.
pub struct ProcessState {
    /// The process's number.
    id: u32,
    /// The stage of its life.
    pub life: Life,
    /// The exit code of a process whose threads exit one by one: that of the last one to begin its exit.
    pub code: u8,
    tasks: RBTree<InProcess>,
    threads: usize,
    /// CPU time of threads that have exited, in counts of the timer.
    left_time: u64,
    /// A sum of all threads' CPU time that is under way.
    time: Option<TimeSum>,
    /// Signals for any thread that does not block them.
    pub pending: Pending,
    /// The actions of its signals.
    pub handlers: Counted<Handlers>,
    /// Its first thread's name.
    pub name: Name,
    /// Its address space, for other processes and the monitor; none once it is ending.
    pub space: Option<SpaceRef>,
    /// The thread that does an exec: all others exit.
    pub survivor: Option<u32>,
    /// Whether its threads halt.
    pub stop: Stop,
}

impl ProcessState {
    /// The state of a process with this number, without threads.
    pub const fn new(id: u32, name: Name, space: SpaceRef, handlers: Counted<Handlers>) -> Self {
        Self {
            id,
            life: Life::Running,
            code: 0,
            tasks: RBTree::new(InProcess::NEW),
            threads: 0,
            left_time: 0,
            time: None,
            pending: Pending::new(),
            handlers,
            name,
            space: Some(space),
            survivor: None,
            stop: Stop::NONE,
        }
    }

    /// Adds a thread.
    ///
    /// # Safety
    /// The task is in no process's list, and does not move until [`Self::remove`].
    pub unsafe fn add(&mut self, task: &Task) {
        // SAFETY: the caller keeps the contract.
        self.tasks.insert(unsafe { UnsafeRef::from_raw(&raw const *task) });
        self.threads += 1;
    }

    /// Removes a thread.
    ///
    /// # Safety
    /// It was added to this process, and not removed since.
    pub unsafe fn remove(&mut self, task: &Task) {
        // SAFETY: the caller keeps the contract.
        let removed = unsafe { self.tasks.cursor_mut_from_ptr(task) }.remove();
        self.threads -= usize::from(removed.is_some());
    }

    /// Adds the CPU time of a thread that exits.
    pub fn add_time_of(&mut self, task: &Task) {
        let time = task.thread().cpu_time();
        self.left_time = self.left_time.wrapping_add(time);
        if let Some(sum) = self.time.as_mut().filter(|sum| task.id() > sum.after) {
            sum.time = sum.time.wrapping_add(time);
        }
    }

    /// Adds up its threads' CPU time, exited ones included, in counts of the timer: a bounded number of them in each call.
    /// `begun` is false at first. `None`: there are more, or another's sum is under way.
    pub fn add_time(&mut self, begun: &mut bool) -> Option<u64> {
        if !core::mem::replace(begun, true) {
            *begun = self.time.is_none();
            self.time.get_or_insert(TimeSum { after: 0, time: self.left_time });
            return None;
        }
        let Some(mut sum) = self.time.take() else {
            *begun = false;
            return None;
        };
        let mut tasks = self.tasks.lower_bound(Bound::Excluded(&sum.after));
        for _ in 0..BATCH {
            let Some(task) = tasks.get() else { return Some(sum.time) };
            sum = TimeSum { after: task.id(), time: sum.time.wrapping_add(task.thread().cpu_time()) };
            tasks.move_next();
        }
        self.time = Some(sum);
        None
    }

    /// Has a sum begin again: a thread's number changes.
    pub fn forget_time(&mut self) {
        self.time = None;
    }

    /// How many threads it has.
    pub const fn threads(&self) -> usize {
        self.threads
    }

    /// The thread with this number, if it is one of this process's.
    pub fn find(&self, id: u32) -> Option<&Task> {
        self.tasks.find(&id).get()
    }

    /// The thread with the next larger number.
    pub fn task_after(&self, id: u32) -> Option<&Task> {
        self.tasks.lower_bound(Bound::Excluded(&id)).get()
    }

    /// The effect of a signal.
    #[inline]
    pub fn effect(&self, signal: Signal) -> Effect {
        self.handlers.with(|actions| actions.effect(signal))
    }

    /// The first of these signals whose action ends the process.
    pub fn fatal(&self, mut signals: Set) -> Option<Signal> {
        while let Some(signal) = signals.first() {
            if self.effect(signal) == Effect::Fatal {
                return Some(signal);
            }
            signals = signals.without(signal.set());
        }
        None
    }

    /// Whether this signal, if it is fatal, ends the process at once: while it is stopped SIGKILL alone does.
    fn may_end_by(&self, signal: Signal) -> bool {
        !self.stop.is_active() || signal == Signal::KILL
    }

    /// Whether this task of the process must exit.
    pub fn is_ending(&self, task: &Task) -> bool {
        self.life != Life::Running || self.survivor.is_some_and(|survivor| survivor != task.id())
    }

    /// Makes all threads exit. Nothing changes if they are exiting already.
    pub fn end(&mut self, status: ProcessEnd) -> Visit {
        if self.life != Life::Running {
            return Visit::NONE;
        }
        self.life = Life::Ending(status);
        self.stop.end();
        Visit::EXIT
    }

    /// The changes by a signal that is sent, whatever its action: SIGCONT continues the process, and takes away the
    /// signals that stop it; these take SIGCONT away.
    #[inline]
    fn prepare(&mut self, signal: Signal) -> Visit {
        let continues = signal == Signal::CONT;
        if !continues && !Set::STOPS.has(signal) {
            return Visit::NONE;
        }
        let forget = if continues { Set::STOPS } else { Signal::CONT.set() };
        forget.iter().for_each(|signal| self.pending.remove(signal));
        Visit { forget, wake: continues && self.stop.resume(), ..Visit::NONE }
    }

    /// Sends the process a signal.
    pub fn send(&mut self, signal: Signal, cause: SignalCause) -> Visit {
        if self.life != Life::Running {
            return Visit::NONE;
        }
        let mut visit = self.prepare(signal);
        let main_blocks = self.find(self.id).is_some_and(|main| main.blocked().has(signal));
        // An ignored signal becomes pending only where it is blocked: its action may differ when it is unblocked.
        if !main_blocks && self.effect(signal) == Effect::Ignored {
            return visit;
        }
        visit.polls = self.pending.add(signal, cause) && signalfd::are_some();
        visit.offer = signal.set();
        // The first thread handles it, if it can.
        let outcome = self.find(self.id).map_or(VisitOutcome::Next, |main| visit.at(self, main));
        self.finish_step(&mut visit, outcome);
        if visit.has_threads_left() {
            self.step(&mut visit);
        }
        visit
    }

    /// Sends a signal to one of this process's threads.
    pub fn send_to(&mut self, id: u32, signal: Signal, cause: SignalCause) -> Visit {
        if self.life != Life::Running {
            return Visit::NONE;
        }
        let mut visit = self.prepare(signal);
        let effect = self.effect(signal);
        let Some(task) = self.find(id) else { return visit };
        let open = !task.blocked().has(signal);
        if open && effect == Effect::Ignored {
            return visit;
        }
        visit.polls = task.pending(self).add(signal, cause) && signalfd::are_some();
        if open && effect == Effect::Fatal && !task.is_leaving() && self.may_end_by(signal) {
            return self.end(ProcessEnd::Killed(signal));
        }
        if !task.closed().has(signal) {
            task.kick();
        }
        visit
    }

    /// The signals that are pending for the process, or for this thread of it.
    fn pending_for(&self, thread: Option<u32>) -> Option<&Pending> {
        thread.map_or(Some(&self.pending), |thread| Some(self.find(thread)?.pending(self)))
    }

    /// Whether a signal is pending for the process, or for this thread of it.
    pub fn has_pending(&self, thread: Option<u32>, signal: Signal) -> bool {
        self.pending_for(thread).is_some_and(|pending| pending.set().has(signal))
    }

    /// Removes a signal that is pending for this cause.
    pub fn take_back(&self, thread: Option<u32>, signal: Signal, cause: SignalCause) {
        if let Some(pending) = self.pending_for(thread).filter(|pending| pending.cause(signal) == cause) {
            pending.remove(signal);
        }
    }

    /// Removes a pending signal from the process and from some of its threads. Returns the number of the last of them,
    /// or `None` when all are done.
    pub fn forget(&mut self, signal: Signal, after: Option<u32>) -> Option<u32> {
        self.pending.remove(signal);
        let mut tasks =
            after.map_or_else(|| self.tasks.front(), |after| self.tasks.lower_bound(Bound::Excluded(&after)));
        let mut last = None;
        for _ in 0..BATCH {
            let task = tasks.get()?;
            task.pending(self).remove(signal);
            last = Some(task.id());
            tasks.move_next();
        }
        last
    }

    /// Continues a visit: the next threads, a bounded number of them.
    pub fn step(&mut self, visit: &mut Visit) {
        let mut outcome = VisitOutcome::Next;
        {
            let mut tasks = match visit.after {
                None => self.tasks.front(),
                Some(after) => self.tasks.lower_bound(Bound::Excluded(&after)),
            };
            for _ in 0..BATCH {
                let Some(task) = tasks.get() else {
                    *visit = Visit { polls: visit.polls, ..Visit::NONE };
                    return;
                };
                visit.after = Some(task.id());
                outcome = visit.at(self, task);
                if !visit.has_threads_left() || matches!(outcome, VisitOutcome::Fatal(_)) {
                    break;
                }
                tasks.move_next();
            }
        }
        self.finish_step(visit, outcome);
    }

    fn finish_step(&mut self, visit: &mut Visit, outcome: VisitOutcome) {
        if let VisitOutcome::Fatal(signal) = outcome {
            *visit = self.end(ProcessEnd::Killed(signal));
        }
    }

    /// Takes the next signal for a task of this process that is not `blocked`, its own before those of the process.
    pub fn take(&self, task: &Task, blocked: Set) -> Option<(Signal, SignalCause)> {
        let own_first = [task.pending(self), &self.pending];
        own_first.into_iter().find(|pending| !pending.set().without(blocked).is_empty())?.take(blocked)
    }
}

/// Threads that are visited before the lock is released for a moment.
const BATCH: usize = 16;

/// The result of the visit to one thread.
enum VisitOutcome {
    /// Continue.
    Next,
    /// The thread could handle this signal, which ends the process.
    Fatal(Signal),
}

/// The threads of a process that are still to be visited, and why: see the head of this file.
#[derive(Debug)]
#[must_use = "some threads are still to be visited"]
pub struct Visit {
    /// The thread that was visited last.
    after: Option<u32>,
    /// Signals pending for the process, each for a thread that is still to be notified.
    offer: Set,
    /// Wake every thread.
    wake: bool,
    /// Notify every thread that must exit.
    exit: bool,
    /// Have every thread halt.
    halt: bool,
    /// Signals that SIGCONT takes away from each thread, or that take it away.
    forget: Set,
    /// Wake the pollers of signals.
    polls: bool,
}

impl Visit {
    /// Nothing to do.
    pub const NONE: Self = Self {
        after: None,
        offer: Set::EMPTY,
        wake: false,
        exit: false,
        halt: false,
        forget: Set::EMPTY,
        polls: false,
    };
    /// Notify the threads that must exit.
    pub const EXIT: Self = Self { exit: true, ..Self::NONE };

    /// Have all threads halt.
    pub const HALT: Self = Self { halt: true, ..Self::NONE };

    /// Notify threads that do not block these signals, one for each.
    pub const fn offer(offer: Set) -> Self {
        Self { offer, ..Self::NONE }
    }

    /// This visit, and wake all threads: one of them waits for the signal.
    pub const fn and_wake(self) -> Self {
        Self { after: None, wake: true, ..self }
    }

    /// Whether nothing is left to do.
    pub const fn is_done(&self) -> bool {
        !self.has_threads_left() && !self.polls
    }

    /// Whether a thread is left to be visited.
    pub const fn has_threads_left(&self) -> bool {
        !self.offer.is_empty() || self.wake || self.exit || self.halt || !self.forget.is_empty()
    }

    /// Whether the pollers of signals are to be woken, without a lock: by the caller, who alone does it.
    pub fn take_polls(&mut self) -> bool {
        core::mem::take(&mut self.polls)
    }

    fn at(&mut self, state: &ProcessState, task: &Task) -> VisitOutcome {
        if self.wake {
            task.thread().unpark();
        }
        if !self.forget.is_empty() {
            self.forget.iter().for_each(|signal| task.pending(state).remove(signal));
        }
        if task.is_leaving() {
            return VisitOutcome::Next;
        }
        if state.is_ending(task) {
            if self.exit {
                task.kick();
            }
            return VisitOutcome::Next;
        }
        if self.halt {
            task.kick();
        }
        let open = self.offer.without(task.closed());
        if open.is_empty() {
            return VisitOutcome::Next;
        }
        // Linux's `real_blocked`: none is fatal that is blocked while the thread waits for it.
        if let Some(signal) = state.fatal(open.without(task.blocked())).filter(|signal| state.may_end_by(*signal)) {
            return VisitOutcome::Fatal(signal);
        }
        self.offer = self.offer.without(open);
        task.kick();
        VisitOutcome::Next
    }
}

/// A visit to the threads of another process, which may be removed before it is done.
#[must_use = "some threads are still to be visited"]
#[derive(Debug)]
pub struct Elsewhere {
    id: u32,
    serial: u64,
    visit: Visit,
}

impl Elsewhere {
    /// Of this process.
    pub fn new(process: &Process, visit: Visit) -> Self {
        Self { id: process.id(), serial: process.serial(), visit }
    }

    /// Of this process, of which a child has changed: its threads wake if they wait. `None` where none is to be visited.
    /// Under the lock of the tree.
    pub fn of_parent(parent: &Process, visit: Visit) -> Option<Self> {
        let visit = if parent.waits_for_children() { visit.and_wake() } else { visit };
        (!visit.is_done()).then(|| Self::new(parent, visit))
    }

    /// The process, unless it was removed.
    fn find<'t>(&self, tree: &'t Tree) -> Option<&'t Process> {
        tree.find(self.id).filter(|process| process.serial() == self.serial)
    }

    /// Does the rest of it, without a lock.
    pub fn finish(mut self) {
        if self.visit.take_polls() {
            let pollers = {
                let tree = PROCESSES.lock();
                self.find(&tree).and_then(|process| process.signal_pollers.get().cloned())
            };
            pollers.into_iter().for_each(|queue| signalfd::wake(&queue));
        }
        while self.visit.has_threads_left() {
            let tree = PROCESSES.lock();
            let Some(process) = self.find(&tree) else { return };
            process.lock().step(&mut self.visit);
            drop(tree);
            relax();
        }
    }
}
