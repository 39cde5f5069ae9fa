//! Threads that sleep and wake, and the kernel's own tokens, queues and sleeping locks on them.

use std::ops::Deref;
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

use crate::Watched;
use crate::chip::timer::Deadline;
use crate::smp::{Cpu, this_cpu};
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[path = "../../src/sched/rwsem.rs"]
mod rwsem;
#[allow(dead_code, reason = "what sleeps briefly here only lets others run")]
#[path = "../../src/sched/timeout.rs"]
mod timeout;
#[path = "../../src/sched/token.rs"]
mod token;
#[path = "../../src/sched/wait.rs"]
mod wait;

pub use rwsem::RwSem;
pub use timeout::sleep_until;
pub use token::Token;
pub use wait::{WaitQueue, Waiters, Woken};

/// So that a grant goes on in the readers that were granted, as with many of them.
const WOKEN_AT_ONCE: usize = 1;

/// A thread, as far as it sleeps and wakes, with the lock of its CPU's run queue.
#[derive(Default)]
pub struct Sleeper {
    token: Token,
    /// Whether it is in the run queue.
    queue: Mutex<bool>,
    runs: Condvar,
    /// Whether it has a signal to deliver.
    signal: AtomicU32,
}

/// What the kernel calls it.
type Thread = Sleeper;

/// What a thread has to do before it enters EL0.
struct Work;

impl Work {
    const SIGNAL: Self = Self;
}

impl Sleeper {
    /// The running thread.
    pub fn current() -> Arc<Self> {
        SELF.with(Arc::clone)
    }

    /// `Thread::raise` of a signal, for a thread that the caller wakes.
    pub fn signal(&self) {
        self.signal.fetch_or(1, Ordering::SeqCst);
        self.unpark();
    }

    fn has(&self, _: Work) -> bool {
        self.signal.load(Ordering::Acquire) != 0
    }

    /// `sched::park`.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn park(&self) {
        let mut queue = self.queue.lock().unwrap();
        if self.token.park() {
            while !*queue {
                queue = self.runs.wait(queue).unwrap();
            }
            *queue = false;
        }
    }

    /// `Thread::unpark`.
    pub fn unpark(&self) {
        self.token.leave(|| {
            let mut queue = self.queue.lock().unwrap();
            let woken = self.token.unpark();
            if woken {
                *queue = true;
                self.runs.notify_one();
            }
            woken
        });
    }
}

loom::thread_local! {
    static SELF: Arc<Sleeper> = Arc::default();
    /// Whether the next lock is the one that a waiter takes last.
    static HAS_WAITED: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// Whether the running thread has joined a queue since the last call.
pub(crate) fn has_waited() -> bool {
    HAS_WAITED.with(|waited| waited.replace(false))
}

/// The running thread.
struct Current(Arc<Sleeper>);

impl Deref for Current {
    type Target = Sleeper;
    fn deref(&self) -> &Sleeper {
        &self.0
    }
}

/// A thread, in the node of a queue on its own stack. loom watches the node's memory: it is gone when its owner
/// returns.
struct ThreadRef {
    sleeper: Arc<Sleeper>,
    node: Watched<()>,
}

fn current() -> Current {
    HAS_WAITED.with(|waited| waited.set(true));
    Current(Sleeper::current())
}

impl Current {
    fn to_ref(&self) -> ThreadRef {
        ThreadRef { sleeper: Arc::clone(&self.0), node: Watched::default() }
    }
}

fn park() {
    Sleeper::current().park();
}

impl ThreadRef {
    fn unpark(&self) {
        self.sleeper.unpark();
        self.node.read();
    }
}

impl Drop for ThreadRef {
    fn drop(&mut self) {
        // After a failure loom's state must not be used.
        if !std::thread::panicking() {
            self.node.write(());
        }
    }
}

/// Lets other threads run for a moment.
pub(crate) fn sleep_briefly() {
    loom::thread::yield_now();
}

impl<T> RwSem<T> {
    /// Whether no thread has the lock or waits for it.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }
}

/// A CPU's part of the timeouts, with its timer.
pub(crate) struct PerCpu {
    timeouts: IrqLock<timeout::Timeouts, { crate::sync::rank::TIMEOUTS }>,
    next_timeout: AtomicU64,
    timer: Mutex<Timer>,
    timer_set: Condvar,
}

/// What a timer waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// This moment.
    At(u64),
    /// Nothing comes any more.
    Stopped,
}

impl Default for PerCpu {
    fn default() -> Self {
        Self {
            timeouts: IrqLock::new(timeout::Timeouts::new()),
            next_timeout: AtomicU64::new(queue::NEVER),
            timer: Mutex::new(Timer::At(queue::NEVER)),
            timer_set: Condvar::new(),
        }
    }
}

/// The run queue's part of the timer.
mod queue {
    use super::{Cpu, Ordering, Timer};

    pub(super) const NEVER: u64 = u64::MAX;

    pub(super) fn program(cpu: &Cpu) {
        let mut timer = cpu.sched.timer.lock().unwrap();
        if *timer != Timer::Stopped {
            *timer = Timer::At(cpu.sched.next_timeout.load(Ordering::Relaxed));
            cpu.sched.timer_set.notify_one();
        }
    }
}

/// The timer's interrupts at `now`, until [`stop_timer`]: each when it is due by then.
///
/// # Panics
/// Another of loom's threads has panicked.
pub fn run_timer(now: u64) {
    let per_cpu = &this_cpu().sched;
    loop {
        let mut timer = per_cpu.timer.lock().unwrap();
        while matches!(*timer, Timer::At(due) if due > now) {
            timer = per_cpu.timer_set.wait(timer).unwrap();
        }
        if *timer == Timer::Stopped {
            return;
        }
        *timer = Timer::At(queue::NEVER);
        drop(timer);
        timeout::expire(this_cpu(), now);
        // As `when_due` does; the lock stands for what the handler interrupts.
        let _masked = per_cpu.timeouts.lock();
        queue::program(this_cpu());
    }
}

/// Sleeps until then, whatever signals there are.
pub fn sleep_through(until: Deadline) {
    timeout::sleep_through(until);
}

/// Ends [`run_timer`].
///
/// # Panics
/// Where a thread still waits for a moment, or the timer does.
pub fn stop_timer() {
    let per_cpu = &this_cpu().sched;
    assert_eq!(per_cpu.next_timeout.load(Ordering::Relaxed), queue::NEVER, "a timeout is left");
    *per_cpu.timer.lock().unwrap() = Timer::Stopped;
    per_cpu.timer_set.notify_one();
}
