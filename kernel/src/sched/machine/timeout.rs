//! Moments that threads wait for.
//!
//! Each CPU has its own tree, by moment: a thread that sleeps stays on its CPU, so no other CPU touches the entries. An
//! entry lies on the stack of the thread that waits.
//!
//! An interrupt wakes [`BATCH`] threads at most. Where more are due, the first of the woken threads that runs sets the
//! timer for them: the interrupted code has come to a scheduling point by then, however slow the CPU is. A short pause by
//! the clock may have passed when the handler returns. Woken threads may sleep on, for a lock whose holder waits for its
//! timeout, so there is a pause as well: [`PAUSE`], which is long.
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "threads and waiters in intrusive lists, under the lock of their queue")]

use core::cell::Cell;
use core::ptr::NonNull;
use core::time::Duration;

use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use super::queue::{self, NEVER};
use super::{Thread, Work, current, park};
use crate::chip::timer::Deadline;
use crate::sched::poll::{PollNodes, poll};
use crate::sched::token::Woken;
use crate::sched::wait::Waiters;
use crate::smp::{Cpu, this_cpu};
use crate::sync::atomic::Ordering;

/// Threads that one interrupt wakes, and how long after it the next one comes at the latest where more are due.
const BATCH: usize = 16;
const PAUSE: Duration = Duration::from_millis(1);

struct Timeout {
    link: RBTreeLink,
    thread: NonNull<Thread>,
    due: u64,
    passed: Cell<bool>,
}

intrusive_adapter!(Link = UnsafeRef<Timeout>: Timeout { link => RBTreeLink });

impl KeyAdapter<'_> for Link {
    type Key = u64;
    fn get_key(&self, timeout: &Timeout) -> u64 {
        timeout.due
    }
}

/// The timeouts of one CPU. Of those that are due at once the first to come is the first to go.
pub(super) struct Timeouts(RBTree<Link>);

// SAFETY: reached through its lock alone.
unsafe impl Send for Timeouts {}

impl Timeouts {
    pub(super) const fn new() -> Self {
        Self(RBTree::new(Link::NEW))
    }

    fn next(&self) -> u64 {
        self.0.front().get().map_or(NEVER, |timeout| timeout.due)
    }
}

/// Calls `wait`, which parks until it finds what it waits for; the thread is unparked at `until` in any case. `wait` is
/// given whether that moment has come.
pub(crate) fn with_timeout<R>(until: Deadline, wait: impl FnOnce(&dyn Fn() -> bool) -> R) -> R {
    let cpu = this_cpu();
    let timeout = Timeout {
        link: RBTreeLink::new(),
        thread: NonNull::from(&*current()),
        due: until.count(),
        passed: Cell::new(false),
    };
    {
        let mut timeouts = cpu.sched().timeouts.lock();
        // SAFETY: the entry stays where it is until it is out of the list, below.
        timeouts.0.insert(unsafe { UnsafeRef::from_raw(&raw const timeout) });
        set_next(cpu, timeouts.next());
    }
    let result = wait(&|| {
        let _timeouts = cpu.sched().timeouts.lock();
        timeout.passed.get()
    });
    let mut timeouts = cpu.sched().timeouts.lock();
    if timeout.link.is_linked() {
        // SAFETY: linked, and in no other list.
        unsafe { timeouts.0.cursor_mut_from_ptr(&raw const timeout) }.remove();
    }
    // Also where `expire` has removed it: more may be due.
    set_next(cpu, timeouts.next());
    result
}

/// Interrupts masked, by the lock. Out of line: it has several callers.
#[inline(never)]
fn set_next(cpu: &Cpu, next: u64) {
    if cpu.sched().next_timeout.swap(next, Ordering::Relaxed) != next {
        queue::program(cpu);
    }
}

/// Wakes threads whose moment has come: the first [`BATCH`] of those that were due at `now`.
pub(super) fn expire(cpu: &Cpu, now: u64) {
    let mut timeouts = cpu.sched().timeouts.lock();
    for _ in 0..BATCH {
        if timeouts.next() > now {
            break;
        }
        let Some(timeout) = timeouts.0.front_mut().remove() else { break };
        timeout.passed.set(true);
        // SAFETY: the thread is this CPU's, and waits for this lock before it leaves the entry.
        unsafe { timeout.thread.as_ref() }.unpark();
    }
    let next = timeouts.next();
    // Each thread that was woken sets the timer when it leaves `with_timeout`.
    let next = if Deadline::at(next).has_passed() { Deadline::after(PAUSE).count() } else { next };
    cpu.sched().next_timeout.store(next, Ordering::Relaxed);
}

impl<T> Waiters<'_, T> {
    /// Joins the queue, unlocks it, and sleeps until this thread is woken, `until` has come, or it has a signal to
    /// deliver.
    #[inline(always)]
    pub fn wait_until(self, value: T, until: Option<Deadline>) -> Woken {
        let interrupted = || current().has(Work::SIGNAL).then_some(Woken::Interrupted);
        match until {
            None => self.wait_while(value, interrupted),
            Some(until) => with_timeout(until, |passed| {
                self.wait_while(value, || interrupted().or_else(|| passed().then_some(Woken::TimedOut)))
            }),
        }
    }
}

/// Waits in the queues of all `nodes` until `is_ready` returns true, this thread has a signal to deliver, or `until` has
/// come; in this order where several hold. `is_ready` is called first when the thread is in all queues already, or has a
/// signal, and after each wake-up: no change that wakes one of the queues is lost.
pub fn poll_until<'q>(
    nodes: &mut impl PollNodes<'q>,
    until: Option<Deadline>,
    is_ready: &mut dyn FnMut() -> bool,
) -> Woken {
    let mut wait = |passed: &dyn Fn() -> bool| {
        let mut woken = Woken::ByAnother;
        poll(nodes, &mut || {
            woken = if is_ready() {
                Woken::ByAnother
            } else if current().has(Work::SIGNAL) {
                Woken::Interrupted
            } else if passed() {
                Woken::TimedOut
            } else {
                return false;
            };
            true
        });
        woken
    };
    match until {
        None => wait(&|| false),
        Some(until) => with_timeout(until, wait),
    }
}

/// Sleeps until then, or until there is a signal.
pub fn sleep_until(until: Deadline) -> Woken {
    with_timeout(until, |passed| {
        loop {
            if passed() {
                return Woken::TimedOut;
            }
            if current().has(Work::SIGNAL) {
                return Woken::Interrupted;
            }
            park();
        }
    })
}

/// Sleeps until then, whatever signals there are: for a short time, in a loop whose condition other threads change, also
/// of this CPU. With a signal pending [`sleep_until`] returns at once, and a loop of it would keep the CPU from them for
/// ever, since EL1 is not preempted.
pub(crate) fn sleep_through(until: Deadline) {
    with_timeout(until, |passed| {
        while !passed() {
            park();
        }
    });
}

/// Lets other threads run for a moment.
pub(crate) fn sleep_briefly() {
    sleep_through(Deadline::after(Duration::from_micros(100)));
}
