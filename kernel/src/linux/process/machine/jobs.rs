//! Job control: groups of processes, sessions, and processes that are stopped (Linux: `setpgid`, `do_signal_stop`).
//!
//! # Stops
//! The thread that takes a stopping signal has all threads of its process halt on their way to EL0, where they hold
//! nothing; a sleep in a call ends for it as for any signal without a handler. The parent is notified when all have
//! halted. SIGCONT ends the stop as it is sent, and the first thread that goes on notifies the parent. A process that
//! the kernel started never stops, like Linux's first one: no parent could have it continue.
//!
//! # Groups
//! A process has the numbers of its group and session, changed under [`PROCESSES`]; a group is the processes that have
//! its number. Few calls look for members: they look at all processes, a few at a time.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::send::{self, Asked};
use super::state::{Elsewhere, Visit};
use super::task::Task;
use super::tree::collect::{Child, Named, Wanted};
use super::tree::{PROCESSES, Process, Tree, next_where};
use crate::linux::errno::Errno;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::linux::process::status::{Change, Life};
use crate::sched::park;

/// Processes that are stopped: at the end of one, groups matter only then.
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// The stop of a process, under its lock.
pub struct Stop {
    /// The signal that stops it: its threads halt.
    signal: Option<Signal>,
    /// A stopping signal that a thread has taken, until it stops the process, or SIGCONT is sent.
    pub taken: Option<Signal>,
    /// Threads that have halted.
    halted: usize,
    /// All of them had.
    is_complete: bool,
    /// Its number, from 1: stops that have ended, and this one or the next.
    number: u64,
    /// The parent is yet to be notified that it continues.
    continues: bool,
    /// The change that the parent may wait for.
    change: Option<Change>,
}

impl Stop {
    /// None.
    pub const NONE: Self =
        Self { signal: None, taken: None, halted: 0, is_complete: false, number: 1, continues: false, change: None };

    /// Whether threads halt.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.signal.is_some()
    }

    /// Whether a thread of the process has halted in it.
    pub fn has(&self, task: &Task) -> bool {
        self.is_active() && task.halted_in.load(Ordering::Relaxed) == self.number
    }

    /// Ends it, because SIGCONT is sent or the process ends; whether there was one.
    pub fn end(&mut self) -> bool {
        let was_active = self.is_active();
        self.taken = None;
        if was_active {
            STOPPED.fetch_sub(1, Ordering::Relaxed);
            *self = Self { number: self.number + 1, ..Self::NONE };
        }
        was_active
    }

    /// Continues the process: SIGCONT is sent. Whether it was stopped.
    pub fn resume(&mut self) -> bool {
        let was_active = self.end();
        if was_active {
            (self.continues, self.change) = (true, Some(Change::Continued));
        }
        was_active
    }

    /// The change to notify the parent of, where all `threads` have halted now.
    pub fn complete(&mut self, threads: usize) -> Option<Change> {
        let signal = self.signal.filter(|_| !self.is_complete && self.halted == threads && threads != 0)?;
        self.is_complete = true;
        self.change = Some(Change::Stopped(signal));
        self.change
    }

    /// The change that is `wanted`, which its parent collects, unless it `stays`.
    pub fn collect(&mut self, wanted: impl Fn(Change) -> bool, stays: bool) -> Option<Change> {
        let change = self.change.filter(|change| wanted(*change))?;
        self.change = self.change.filter(|_| stays);
        Some(change)
    }
}

/// Stops the process of the running thread, where a signal for that was taken, and halts the thread until the process
/// continues or ends. Sleeps; without locks.
#[cold]
#[inline(never)]
pub fn halt(task: &Task) {
    let process = task.process();
    let taken = process.lock().stop.taken;
    // As on Linux the signals of a terminal stop no member of a group that no process would continue.
    let is_left_running = process.serial() == process.family_serial()
        || taken.is_some_and(|signal| signal != Signal::STOP) && keepers(process.group(), None) == [false; 2];
    let mut visit = Visit::NONE;
    {
        let mut state = process.lock();
        // Without SIGCONT since then, or another signal.
        if taken.is_some() && state.stop.taken == taken {
            state.stop.taken = None;
            let ends = state.life != Life::Running || state.survivor.is_some();
            if !ends && !is_left_running && !state.stop.is_active() {
                STOPPED.fetch_add(1, Ordering::Relaxed);
                state.stop = Stop { signal: taken, number: state.stop.number, ..Stop::NONE };
                visit = Visit::HALT;
            }
        }
    }
    process.visit(visit);
    while stays_halted(task) {
        park();
    }
}

/// Whether the running thread halts, or halts on. Notifies the parent.
fn stays_halted(task: &Task) -> bool {
    let process = task.process();
    let (stays, notice) = {
        let tree = PROCESSES.lock();
        let mut state = process.lock();
        let (ends, threads, is_running) = (state.is_ending(task), state.threads(), state.life == Life::Running);
        let stop = &mut state.stop;
        let is_counted = stop.has(task);
        let stays = stop.is_active() && !ends;
        task.halted_in.store(if stays { stop.number } else { 0 }, Ordering::Relaxed);
        let change = if stays {
            stop.halted += usize::from(!is_counted);
            stop.complete(threads)
        } else {
            // Of a stop that goes on, for the thread that executes a program.
            stop.halted -= usize::from(is_counted);
            // Of a process that continues this may be the one thread that has halted, and another one executes a program.
            (core::mem::take(&mut stop.continues) && is_running).then_some(Change::Continued)
        };
        drop(state);
        (stays, change.and_then(|change| notify(&tree, process, change)))
    };
    if let Some(notice) = notice {
        notice.finish();
    }
    stays
}

/// Notifies the parent of a stop, or of its end: by SIGCHLD where it wants that, and if it waits.
pub fn notify(tree: &Tree, process: &Process, change: Change) -> Option<Elsewhere> {
    let parent = tree.find(process.parent_id())?;
    let visit = {
        let mut state = parent.lock();
        let is_wanted = state.handlers.with(|actions| actions.reports_stops());
        if is_wanted { state.send(Signal::CHLD, change.cause(process.id())) } else { Visit::NONE }
    };
    Elsewhere::of_parent(parent, visit)
}

/// Whether processes keep a group from being orphaned: a member's parent in another group of the session. Those without
/// which `ending` is, as member or parent, and those with it.
fn keepers(group: u32, ending: Option<&Process>) -> [bool; 2] {
    let (mut after, mut keepers) = (0, [false; 2]);
    let is_ending = |process: &Process| ending.is_some_and(|ending| ending.serial() == process.serial());
    // Of two that end at once, the one that looks last finds no thread of the other.
    let counts = |process: &Process| is_ending(process) || process.lock().threads() != 0;
    while let Some(by_ending) = next_where(&mut after, |tree, member| {
        let parent = tree.find(member.parent_id()).filter(|_| member.group() == group)?;
        let keeps = parent.group() != group && parent.session() == member.session();
        (keeps && counts(member) && counts(parent)).then(|| is_ending(member) || is_ending(parent))
    }) {
        keepers[usize::from(by_ending)] = true;
    }
    keepers
}

/// Has stopped processes of groups continue that are orphaned by the end of this process. Its last thread has left it,
/// and it is still its children's parent. Without locks.
pub fn leave(process: &Process) {
    if STOPPED.load(Ordering::Relaxed) == 0 {
        return;
    }
    // Groups that it may have kept: its own one, and those of its children.
    let (mut group, mut after) = (Some(process.group()), 0);
    while let Some(kept) = group {
        leave_group(kept, process);
        group = next_where(&mut after, |_, child| {
            let is_another = child.parent_id() == process.id() && child.group() != kept;
            is_another.then(|| child.group())
        });
    }
}

/// Has the stopped processes of a group continue where it is orphaned by the end of this process.
fn leave_group(group: u32, ending: &Process) {
    let is_stopped = |member: &Process| member.group() == group && member.lock().stop.is_complete;
    let has_stopped = next_where(&mut 0, |_, member| is_stopped(member).then_some(())).is_some();
    if has_stopped && keepers(group, Some(ending)) == [false, true] {
        for signal in [Signal::HUP, Signal::CONT] {
            // It may have ended by now.
            let _ = send::to_group(group, Asked(signal.number()), SignalCause::KERNEL);
        }
    }
}

/// A member of a group.
fn member_of(group: u32) -> Option<u32> {
    next_where(&mut 0, |_, process| (process.group() == group).then(|| process.id()))
}

/// `setpgid`: moves a process, `own` or a child of it, to a group of the session.
///
/// # Errors
/// `ESRCH`: it is neither. `EINVAL`: it is a thread. `EACCES`: the child has executed a program. `EPERM`: it leads a
/// session or is in another one, or there is no such group in this one.
pub fn set_group(own: &Process, of: u32, group: u32) -> Result<(), Errno> {
    loop {
        let member = if group == of { None } else { member_of(group) };
        let mut tree = PROCESSES.lock();
        let is_thread = tree.find_task(of).is_some();
        let process = tree.find(of).ok_or(if is_thread { Errno::EINVAL } else { Errno::ESRCH })?;
        let (session, is_child) = (process.session(), process.parent_id() == own.id());
        if !is_child && of != own.id() {
            return Err(Errno::ESRCH);
        }
        if is_child && session != own.session() {
            return Err(Errno::EPERM);
        }
        if is_child && process.has_executed.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
        if session == of || group != of && member.is_none() {
            return Err(Errno::EPERM);
        }
        match member.map(|member| tree.find(member).filter(|member| member.group() == group)) {
            Some(Some(member)) if member.session() != session => return Err(Errno::EPERM),
            // It has left the group, which may have others.
            Some(None) => {}
            _ => {
                tree.move_to(of, group, session);
                return Ok(());
            }
        }
    }
}

/// `setsid`: makes the process the leader of a session and of a group.
///
/// # Errors
/// `EPERM`: it leads a group, or one that it has led has members.
pub fn begin_session(own: &Process) -> Result<(), Errno> {
    if member_of(own.id()).is_some() {
        return Err(Errno::EPERM);
    }
    let mut tree = PROCESSES.lock();
    // Another thread may have made it a group's leader.
    if own.group() == own.id() {
        return Err(Errno::EPERM);
    }
    tree.move_to(own.id(), own.id(), own.id());
    Ok(())
}

/// As [`Tree::collect`], of children that have a group or may have stopped: looks at each, without the lock in between.
pub fn collect_each(parent: &Process, wanted: Wanted<'_>) -> Child {
    let (mut after, mut result) = (0, Child::None);
    let is_named = |child: &Process| match wanted.named {
        Named::Group(group) => child.group() == group,
        _ => true,
    };
    while let Some(id) =
        next_where(&mut after, |_, child| (child.parent_id() == parent.id() && is_named(child)).then(|| child.id()))
    {
        match PROCESSES.lock().collect(parent, Wanted { named: Named::Number(id), ..wanted }) {
            Child::None => {}
            Child::Running => result = Child::Running,
            found => return found,
        }
    }
    result
}
