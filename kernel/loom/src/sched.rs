//! Threads that sleep and wake, and the kernel's own tokens, queues and sleeping locks on them; and its run queues.
//!
//! A thread is one of two kinds. [`Sleeper::default`] has a CPU to itself: its run queue is a lock and a condition.
//! [`Sleeper::on`] is on a CPU that others have too, by the kernel's own run queues: it runs while it has the CPU, which
//! [`switch`] gives to the next one.

#![allow(unsafe_code, reason = "threads in intrusive lists, as the kernel has them")]

use std::cell::{Cell, UnsafeCell};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use intrusive_collections::LinkedListLink;
use loom::sync::{Condvar, Mutex};

use crate::Watched;
use crate::chip::timer::Deadline;
use crate::smp::{self, Cpu, CpuId, CpuSet, this_cpu};
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::rank::Sleeping;

/// Its threads, by the path that the kernel's sources have for them.
mod machine {
    pub(super) use super::{ThreadRef, current, is_interrupted, park, relax, running};
}
#[path = "../../src/sched/unchecked.rs"]
pub(crate) mod order;
#[path = "../../src/sched/poll.rs"]
mod poll;
#[allow(dead_code, unreachable_pub, reason = "nothing comes from EL0 here, and no slice ends")]
#[path = "../../src/sched/machine/queue.rs"]
mod queue;
#[path = "../../src/sched/rwsem.rs"]
mod rwsem;
#[allow(dead_code, reason = "what sleeps briefly here only lets others run")]
#[path = "../../src/sched/machine/timeout.rs"]
mod timeout;
#[path = "../../src/sched/token.rs"]
mod token;
#[path = "../../src/sched/wait.rs"]
mod wait;

pub use poll::{PollNode, PollNodes, PollQueue, Watcher, poll};
pub(crate) use queue::PerCpu;
use queue::running;
pub(crate) use rwsem::BriefSlot;
pub use rwsem::{BriefGuard, ReadGuard, RwSem, WriteGuard};
pub use timeout::{poll_until, sleep_until};
pub use token::{IfNotReady, Token, Woken};
pub use wait::{WaitQueue, Waiters};

/// A thread, as far as it sleeps and wakes.
pub struct Sleeper {
    state: Token,
    /// Bits of [`Work`].
    work: AtomicU32,
    /// In the run queue of its CPU.
    link: LinkedListLink,
    arrival: Cell<u64>,
    home: AtomicU32,
    /// Bits of a [`CpuSet`].
    cpus: AtomicU32,
    /// Whether it has a CPU to itself.
    is_alone: bool,
    /// Where it waits for a CPU: whether it is in the run queue that it has to itself, or which CPU it was given.
    turn: Mutex<Turn>,
    runs: Condvar,
    /// The CPU that it runs on.
    cpu: Cell<Option<&'static Cpu>>,
    /// Its registers while it runs, their copy in memory while it does not.
    registers: Watched<()>,
}

// SAFETY: as in the kernel: the cells belong to the CPU that runs the thread, or to the run queue's lock.
unsafe impl Sync for Sleeper {}
// SAFETY: nothing in it belongs to a CPU.
unsafe impl Send for Sleeper {}

/// The name that the kernel's sources have for it.
type Thread = Sleeper;

#[derive(Clone, Copy)]
enum Turn {
    Waits,
    Ready,
    Given(&'static Cpu),
    Runs,
}

/// The work of a thread before it enters EL0.
#[derive(Clone, Copy)]
struct Work(u32);

impl Work {
    const RESCHEDULE: Self = Self(1);
    const SIGNAL: Self = Self(2);
    const PLACE: Self = Self(16);
}

impl Default for Sleeper {
    fn default() -> Self {
        Self {
            state: Token::default(),
            work: AtomicU32::new(0),
            link: LinkedListLink::new(),
            arrival: Cell::new(0),
            home: AtomicU32::new(0),
            cpus: AtomicU32::new(u32::MAX),
            is_alone: true,
            turn: Mutex::new(Turn::Waits),
            runs: Condvar::new(),
            cpu: Cell::new(None),
            registers: Watched::default(),
        }
    }
}

impl Sleeper {
    /// A thread of `cpu`, which does not run yet.
    pub fn on(cpu: u32) -> Arc<Self> {
        Arc::new(Self { is_alone: false, home: AtomicU32::new(cpu), ..Self::default() })
    }

    /// The running thread.
    pub fn current() -> Arc<Self> {
        SELF.with(|own| Arc::clone(&own.borrow()))
    }

    /// `Thread::raise` of a signal, for a thread that the caller wakes.
    pub fn signal(&self) {
        self.work.fetch_or(Work::SIGNAL.0, Ordering::SeqCst);
        self.unpark();
    }

    /// `Thread::raise` of a signal.
    pub fn raise(&self) {
        self.work.fetch_or(Work::SIGNAL.0, Ordering::SeqCst);
        queue::interrupt(self);
    }

    /// On its way to EL0: whether it has a signal to deliver.
    pub fn has_signal(&self) -> bool {
        self.has(Work::SIGNAL)
    }

    fn has(&self, work: Work) -> bool {
        self.work.load(Ordering::Acquire) & work.0 != 0
    }

    /// `Thread::set_cpus`.
    pub fn set_cpus(&self, cpus: u32) {
        self.cpus.store(cpus, Ordering::Relaxed);
        self.work.fetch_or(Work::PLACE.0, Ordering::SeqCst);
        queue::interrupt(self);
    }

    /// It runs at EL0, until an interrupt.
    pub fn wait_for_interrupt(&self) {
        this_cpu().wait_for_interrupt();
    }

    /// On its way to EL0: the turns of other threads, until it may enter there; the CPU on which it does.
    pub fn enter_user(&self) -> CpuId {
        while self.has(Work::RESCHEDULE) || self.has(Work::PLACE) {
            queue::give_way(self);
        }
        this_cpu().id
    }

    fn online_cpus(&self) -> CpuSet {
        CpuSet::from_bits(self.cpus.load(Ordering::Relaxed) & smp::online().bits())
    }

    fn is_bound(&self) -> bool {
        self.online_cpus() != smp::online()
    }

    fn home(&self) -> CpuId {
        CpuId(self.home.load(Ordering::Relaxed))
    }

    /// `sched::park`.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn park(&self) {
        if !self.is_alone {
            return queue::park();
        }
        let mut turn = self.turn.lock().unwrap();
        if self.state.park() {
            while !matches!(*turn, Turn::Ready) {
                turn = self.runs.wait(turn).unwrap();
            }
            *turn = Turn::Waits;
        }
    }

    /// `Thread::unpark`.
    pub fn unpark(&self) {
        self.state.leave(|| {
            if !self.is_alone {
                return queue::wake(self);
            }
            let mut turn = self.turn.lock().unwrap();
            let woken = self.state.unpark();
            if woken {
                *turn = Turn::Ready;
                self.runs.notify_one();
            }
            woken
        });
    }

    /// The CPU that it runs on, if others may run there.
    pub(crate) fn cpu(&self) -> Option<&'static Cpu> {
        self.cpu.get()
    }

    /// Gives it a CPU.
    fn give(&self, cpu: &'static Cpu) {
        let mut turn = self.turn.lock().unwrap();
        assert!(matches!(*turn, Turn::Waits), "a thread has two CPUs");
        *turn = Turn::Given(cpu);
        self.runs.notify_one();
    }

    /// Waits until it is given a CPU.
    fn wait_for_cpu(&self) {
        let mut turn = self.turn.lock().unwrap();
        let cpu = loop {
            if let Turn::Given(cpu) = *turn {
                break cpu;
            }
            turn = self.runs.wait(turn).unwrap();
        };
        *turn = Turn::Runs;
        drop(turn);
        self.registers.read();
        self.cpu.set(Some(cpu));
    }

    /// Its registers go to memory; from now on another CPU may run it. Under the run queue's lock.
    fn leave(&self) {
        self.registers.write(());
        *self.turn.lock().unwrap() = Turn::Waits;
    }

    /// Makes the calling thread of loom this one, which `cpu` runs already.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn runs_on(self: &Arc<Self>, cpu: u32) {
        let cpu = smp::cpu(CpuId(cpu)).expect("such a CPU");
        cpu.sched().current.store(Arc::as_ptr(self).cast_mut(), Ordering::Relaxed);
        *self.turn.lock().unwrap() = Turn::Given(cpu);
        self.begin();
    }

    /// Makes the calling thread of loom this one, once it has a CPU.
    pub fn begin(self: &Arc<Self>) {
        SELF.with(|own| *own.borrow_mut() = Arc::clone(self));
        self.wait_for_cpu();
    }

    /// `sched::exit`.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn exit(&self) {
        let cpu = this_cpu();
        let mut queue = cpu.sched().queue.lock();
        self.state.end();
        let next = queue.pick_or_idle(cpu);
        switch::hand_over(cpu, self, next, queue);
    }

    /// Lets this new thread, which continues at EL0, run: on the running CPU, or on one that idles.
    pub fn start(self: &Arc<Self>) {
        queue::start(ThreadRef { sleeper: Arc::clone(self), node: Watched::default() });
    }

    /// Lets this new thread, which continues in the kernel, run on `cpu`.
    ///
    /// # Panics
    /// There is no such CPU.
    pub fn start_kernel(self: &Arc<Self>, cpu: u32) {
        let cpu = smp::cpu(CpuId(cpu)).expect("such a CPU");
        queue::start_kernel(cpu, ThreadRef { sleeper: Arc::clone(self), node: Watched::default() });
    }

    /// Makes it what `cpu` runs when no other does.
    ///
    /// # Panics
    /// There is no such CPU.
    pub fn is_idle_thread_of(self: &Arc<Self>, cpu: u32) {
        let cpu = smp::cpu(CpuId(cpu)).expect("such a CPU");
        cpu.sched().idle.store(Arc::as_ptr(self).cast_mut(), Ordering::Relaxed);
    }
}

/// The threads that wait for `cpu`, in the order in which they get it.
///
/// # Panics
/// There is no such CPU.
pub fn take_all(cpu: u32) -> Vec<*const Sleeper> {
    let cpu = smp::cpu(CpuId(cpu)).expect("such a CPU");
    let mut queue = cpu.sched().queue.lock();
    let all = std::iter::from_fn(|| (!queue.is_empty()).then(|| queue.pick_or_idle(cpu).as_ptr().cast_const()));
    all.collect()
}

/// The loop of a CPU without work, as `sched::idle` has it, until the test stops it.
pub fn idle() {
    let cpu = this_cpu();
    loop {
        if queue::prepare_to_idle(cpu) && cpu.wait_for_interrupt() {
            return;
        }
        queue::run_ready(cpu);
    }
}

/// `cpu` is about to idle, and waits for no interrupt yet.
///
/// # Panics
/// There is no such CPU.
pub fn prepare_to_idle(cpu: u32) {
    queue::prepare_to_idle(smp::cpu(CpuId(cpu)).expect("such a CPU"));
}

/// Begins what [`idle`] does: the running CPU runs threads until there is none for it.
pub fn run_ready() {
    queue::run_ready(this_cpu());
}

/// The running thread is about to enter EL0 and lets others go first.
pub fn give_way() {
    queue::give_way(&Sleeper::current());
}

/// A scheduling point of the running thread.
pub fn relax() {
    queue::relax();
}

/// Ends the slice of the running thread.
pub fn yield_now() {
    queue::yield_now();
}

/// Whether the slice of what the CPU runs has an end.
pub fn slice_has_end() -> bool {
    this_cpu().sched().slice_end.load(Ordering::Relaxed) != queue::NEVER
}

/// The place of the idle CPUs' set.
mod start {
    use crate::sync::atomic::AtomicU32;

    loom::lazy_static! {
        pub(super) static ref IDLE: AtomicU32 = AtomicU32::new(0);
    }
}

/// A replacement for the switch from one stack to another.
mod switch {
    use std::ptr::NonNull;

    use super::Thread;
    use super::queue::{self, RunQueue, WaitedFor};
    use crate::smp::Cpu;
    use crate::sync::atomic::Ordering;
    use crate::sync::{IrqGuard, rank};

    pub(super) fn to(
        cpu: &'static Cpu,
        thread: &Thread,
        next: NonNull<Thread>,
        queue: IrqGuard<'_, RunQueue, { rank::RUN_QUEUE }>,
    ) {
        hand_over(cpu, thread, next, queue);
        thread.wait_for_cpu();
    }

    /// As [`to`], for a thread that does not come back.
    pub(super) fn hand_over(
        cpu: &'static Cpu,
        thread: &Thread,
        next: NonNull<Thread>,
        queue: IrqGuard<'_, RunQueue, { rank::RUN_QUEUE }>,
    ) {
        let waited_for = if queue.is_empty() { WaitedFor::No } else { WaitedFor::Yes };
        let leaving = cpu.sched().leaving.load(Ordering::Relaxed);
        cpu.sched().leaving.store(std::ptr::null_mut(), Ordering::Relaxed);
        thread.leave();
        // SAFETY: it was taken from the queue, so it has not ended.
        let next = unsafe { next.as_ref() };
        cpu.sched().current.store(std::ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
        queue::begin_slice(cpu, waited_for);
        next.give(cpu);
        drop(queue);
        if let Some(thread) = NonNull::new(leaving) {
            queue::arrive(thread);
        }
    }
}

loom::thread_local! {
    static SELF: std::cell::RefCell<Arc<Sleeper>> = std::cell::RefCell::default();
    /// Whether the next lock is the one that a waiter takes last.
    static HAS_WAITED: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// Whether the running thread has joined a queue since the last call.
pub(crate) fn has_waited() -> bool {
    HAS_WAITED.with(|waited| waited.replace(false))
}

/// The running thread.
pub(crate) struct Current(Arc<Sleeper>);

impl Deref for Current {
    type Target = Sleeper;
    fn deref(&self) -> &Sleeper {
        &self.0
    }
}

/// A thread, in the node of a queue on its own stack. loom watches the node's memory: it is gone when its owner
/// returns.
pub(crate) struct ThreadRef {
    sleeper: Arc<Sleeper>,
    node: Watched<()>,
}

pub(crate) fn current() -> Current {
    HAS_WAITED.with(|waited| waited.set(true));
    Current(Sleeper::current())
}

impl Current {
    pub(crate) fn to_ref(&self) -> ThreadRef {
        ThreadRef { sleeper: Arc::clone(&self.0), node: Watched::default() }
    }
}

pub(crate) fn park() {
    Sleeper::current().park();
}

/// Threads have no state that is shown.
pub(crate) fn uninterruptible<T>(wait: impl FnOnce() -> T) -> T {
    wait()
}

/// Whether the running thread has a signal to deliver.
pub(crate) fn is_interrupted() -> bool {
    Sleeper::current().has_signal()
}

/// As [`is_interrupted`]: each signal ends the program.
pub(crate) fn is_killed() -> bool {
    is_interrupted()
}

impl Deref for ThreadRef {
    type Target = Sleeper;
    fn deref(&self) -> &Sleeper {
        &self.sleeper
    }
}

impl ThreadRef {
    fn into_raw(self) -> NonNull<Thread> {
        let thread = NonNull::from(&*self.sleeper);
        std::mem::forget(self);
        thread
    }

    pub(crate) fn unpark(&self) {
        self.sleeper.unpark();
        self.node.read();
    }
}

impl Clone for ThreadRef {
    fn clone(&self) -> Self {
        self.node.read();
        Self { sleeper: Arc::clone(&self.sleeper), node: Watched::default() }
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
    /// A free lock.
    pub fn new(rank: Sleeping, value: T) -> Self {
        Self { rank, word: AtomicU64::default(), waiters: WaitQueue::default(), value: UnsafeCell::new(value) }
    }

    /// Whether no thread has the lock or waits for it.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !rwsem::BRIEF == 0
    }
}

impl BriefSlot {
    /// Of this CPU, which reads under no lock.
    pub(crate) fn new(id: CpuId) -> Self {
        Self { lock: AtomicUsize::new(0), bit: 1 << (rwsem::BRIEF_SHIFT + id.0) }
    }
}

impl Default for PerCpu {
    fn default() -> Self {
        Self {
            current: AtomicPtr::default(),
            idle: AtomicPtr::default(),
            queue: IrqLock::new(queue::RunQueue::EMPTY),
            ready: AtomicU32::new(0),
            bound: AtomicU32::new(0),
            timeouts: IrqLock::new(timeout::Timeouts::new()),
            leaving: AtomicPtr::default(),
            fp_owner: AtomicPtr::default(),
            no_tables: AtomicU64::new(0),
            tag_checks: AtomicU32::new(0),
            slice_end: AtomicU64::new(queue::NEVER),
            next_timeout: AtomicU64::new(queue::NEVER),
        }
    }
}

/// The timer's interrupts at `now`, until [`stop_timer`]: each when it is due by then.
///
/// # Panics
/// Another of loom's threads has panicked.
pub fn run_timer(now: u64) {
    let cpu = this_cpu();
    while cpu.timer.wait(now) {
        timeout::expire(cpu, now);
        // As `when_due` does; the lock stands for what the handler interrupts.
        let _masked = cpu.sched().timeouts.lock();
        queue::program(cpu);
    }
}

/// Sleeps until then, whatever signals there are.
pub fn sleep_through(until: Deadline) {
    timeout::sleep_through(until);
}

/// Ends [`run_timer`].
///
/// # Panics
/// Where a timeout is left.
pub fn stop_timer() {
    let cpu = this_cpu();
    assert_eq!(cpu.sched().next_timeout.load(Ordering::Relaxed), queue::NEVER, "a timeout is left");
    cpu.timer.stop();
}
