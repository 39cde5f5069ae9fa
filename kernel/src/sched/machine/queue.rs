//! The run queues: which thread runs next on each CPU.
//!
//! A CPU has three lists. `woken` holds threads that go on in the kernel: they go first, since others may wait for what
//! they hold, and they stay on this CPU. `ready` holds threads that go on at EL0: each gets a slice in its turn, and a
//! CPU that idles may take the first of them. `bound` holds those that might go on at EL0 on some CPUs alone when they
//! came (`sched_setaffinity`); they have their turns with the ready ones, in the order of arrival. A thread at EL0 is
//! preempted at once by a woken thread, and at the end of its slice by one of the others. There is no tick: a slice has
//! an end only while a thread waits for it.
//!
//! **A bound thread is not taken, it goes**: on its way to EL0, where it may not be, or where it would wait while one of
//! its CPUs idles. So a CPU that idles need not know what others have for it. In the kernel it may run on any CPU. One
//! that is bound or freed while it waits goes, or may be taken, from its next turn on.
//!
//! **No thread waits for ever**: after [`WOKEN_IN_A_ROW`] woken threads a ready one has its turn, so that threads that
//! wake each other do not keep the CPU; and since the slice of that one has an end, the woken ones go on after it.
//!
//! **A wake-up is not lost** between the look of a CPU that is about to idle and its WFI: it looks with interrupts
//! masked, and a CPU that queues a thread there sends an interrupt afterwards, which ends WFI all the same. For threads
//! that it may steal it gets an interrupt if its bit is in [`IDLE`]; it sets the bit before it looks, and the others
//! look at the bit after they have queued: one of the two sees the other.
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "threads and waiters in intrusive lists, under the lock of their queue")]

use core::ptr::NonNull;
use core::time::Duration;

use granule_arch::addr::VirtAddr;
use granule_arch::interrupts;
use intrusive_collections::{LinkedList, UnsafeRef, intrusive_adapter};

use super::start::IDLE;
use super::timeout::Timeouts;
use super::{Thread, ThreadRef, Work, current, switch, timeout};
use crate::chip::timer::{self, Deadline, Purpose};
use crate::smp::{self, Cpu, CpuSet, this_cpu};
use crate::stretches;
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::{IrqLock, rank};

/// How long a thread runs at EL0 while another waits.
pub const SLICE: Duration = Duration::from_millis(10);
/// Woken threads that may go past one that is ready.
const WOKEN_IN_A_ROW: u32 = 16;
/// Stacks of ended threads that a CPU keeps for new ones.
const SPARE_STACKS: usize = 4;
/// No end, no timeout.
pub(super) const NEVER: u64 = u64::MAX;

intrusive_adapter!(Link = UnsafeRef<Thread>: Thread { link => intrusive_collections::LinkedListLink });

/// The threads that wait for a CPU.
pub(super) struct RunQueue {
    woken: LinkedList<Link>,
    ready: LinkedList<Link>,
    bound: LinkedList<Link>,
    /// Threads that came to the end of `ready` or `bound`.
    arrivals: u64,
    /// The slice of what runs has ended.
    slice_is_over: bool,
    /// Woken threads that have gone past one that is ready.
    in_a_row: u32,
    pub(super) spare_stacks: heapless::Vec<VirtAddr, SPARE_STACKS>,
}

// SAFETY: its threads are reached through the lock alone, on whichever CPU holds it.
unsafe impl Send for RunQueue {}

/// The thread that runs on a CPU, by its address, for others to compare; `None` where the CPU idles.
pub(in crate::sched) fn running(cpu: &Cpu) -> Option<usize> {
    let current = cpu.sched().current.load(Ordering::Relaxed);
    (current != cpu.sched().idle.load(Ordering::Relaxed)).then(|| current.addr())
}

/// A CPU's state of scheduling: part of its [`Cpu`].
pub(crate) struct PerCpu {
    /// The thread that runs. Changed under the queue's lock.
    pub(crate) current: AtomicPtr<Thread>,
    /// The thread that runs when no other does.
    pub(super) idle: AtomicPtr<Thread>,
    pub(super) queue: IrqLock<RunQueue, { rank::RUN_QUEUE }>,
    /// How many there are in `ready`, for readers without the lock.
    pub(super) ready: AtomicU32,
    /// How many there are in `bound`, likewise.
    pub(super) bound: AtomicU32,
    pub(super) timeouts: IrqLock<Timeouts, { rank::TIMEOUTS }>,
    /// The thread that has just ended, or goes to its new home, until the one after it has seen to it.
    pub(super) leaving: AtomicPtr<Thread>,
    /// The thread whose floating point this CPU's registers hold.
    pub(super) fp_owner: AtomicPtr<Thread>,
    /// The value of SCTLR_EL1.TCF0 and GCR_EL1: of [`TagChecks`](crate::sched::TagChecks).
    pub(super) tag_checks: AtomicU32,
    /// The value of TTBR0_EL1 without a user space.
    pub(super) no_tables: AtomicU64,
    /// When the slice ends, as the timer counts; only this CPU uses it.
    pub(super) slice_end: AtomicU64,
    /// When the first timeout is due; only this CPU uses it.
    pub(super) next_timeout: AtomicU64,
}

impl RunQueue {
    pub(super) const EMPTY: Self = Self {
        woken: LinkedList::new(Link::NEW),
        ready: LinkedList::new(Link::NEW),
        bound: LinkedList::new(Link::NEW),
        arrivals: 0,
        slice_is_over: false,
        in_a_row: 0,
        spare_stacks: heapless::Vec::new(),
    };

    /// Takes the thread that runs next.
    #[inline]
    fn pick(&mut self, cpu: &Cpu) -> Option<NonNull<Thread>> {
        self.slice_is_over = false;
        let others_wait = !(self.ready.is_empty() && self.bound.is_empty());
        let woken = if self.in_a_row < WOKEN_IN_A_ROW || !others_wait { self.woken.pop_front() } else { None };
        self.in_a_row = if woken.is_some() && others_wait { self.in_a_row + 1 } else { 0 };
        let thread = woken.or_else(|| self.take_first(cpu))?;
        NonNull::new(UnsafeRef::into_raw(thread))
    }

    /// Takes the thread that goes before the running one at a point where that lets others go: a woken one, or another
    /// where its slice has ended. Else the slice has an end from now on, if there is one that waits. Interrupts masked.
    fn pick_before(&mut self, cpu: &Cpu) -> Option<NonNull<Thread>> {
        if self.slice_is_over || !self.woken.is_empty() {
            return self.pick(cpu);
        }
        if !self.is_empty() {
            begin_slice(cpu, WaitedFor::Yes);
        }
        None
    }

    /// Keeps a stack for a thread to come: that of the running thread, which ends, or one that no thread was started on.
    /// There is room for it.
    pub(super) fn keep_stack(&mut self, stack: VirtAddr) {
        let kept = self.spare_stacks.push(stack);
        debug_assert!(kept.is_ok(), "the lock was taken with room for a stack");
    }

    /// Whether no thread waits for the CPU.
    pub(super) fn is_empty(&self) -> bool {
        self.woken.is_empty() && self.ready.is_empty() && self.bound.is_empty()
    }

    /// The next thread, or else the one for when there is none.
    pub(super) fn pick_or_idle(&mut self, cpu: &Cpu) -> NonNull<Thread> {
        let idle = || NonNull::new(cpu.sched().idle.load(Ordering::Relaxed)).expect("set by init_cpu");
        self.pick(cpu).unwrap_or_else(idle)
    }

    /// Of the threads that go on at EL0 the one that came first.
    fn take_first(&mut self, cpu: &Cpu) -> Option<UnsafeRef<Thread>> {
        let arrival = |list: &LinkedList<Link>| list.front().get().map_or(u64::MAX, |thread| thread.arrival.get());
        if arrival(&self.bound) >= arrival(&self.ready) {
            return self.take_ready(cpu);
        }
        let thread = self.bound.pop_front()?;
        cpu.sched().bound.fetch_sub(1, Ordering::Relaxed);
        Some(thread)
    }

    fn take_ready(&mut self, cpu: &Cpu) -> Option<UnsafeRef<Thread>> {
        let thread = self.ready.pop_front()?;
        cpu.sched().ready.fetch_sub(1, Ordering::Relaxed);
        Some(thread)
    }

    fn add_ready(&mut self, cpu: &Cpu, thread: NonNull<Thread>, place: QueueEnd) {
        // SAFETY: a thread is not freed before it has ended, and it is in no list: it ran, or is new.
        let thread = unsafe { UnsafeRef::from_raw(thread.as_ptr()) };
        let (list, count) = match thread.is_bound() {
            true => (&mut self.bound, &cpu.sched().bound),
            false => (&mut self.ready, &cpu.sched().ready),
        };
        count.fetch_add(1, Ordering::Relaxed);
        match place {
            QueueEnd::First => {
                thread.arrival.set(0);
                list.push_front(thread);
            }
            QueueEnd::Last => {
                self.arrivals += 1;
                thread.arrival.set(self.arrivals);
                list.push_back(thread);
            }
        }
    }

    fn add_woken(&mut self, thread: &Thread) {
        // SAFETY: as above; it was asleep, or is new.
        self.woken.push_back(unsafe { UnsafeRef::from_raw(thread) });
    }
}

enum QueueEnd {
    First,
    Last,
}

/// Lets the new thread run at EL0.
pub(super) fn start(thread: ThreadRef) {
    let cpu = this_cpu();
    if let Some(other) = elsewhere(cpu, &thread, WaitedFor::Yes) {
        thread.home.store(other.id.0, Ordering::Relaxed);
        return arrive(thread.into_raw());
    }
    thread.home.store(cpu.id.0, Ordering::Relaxed);
    let mut queue = cpu.sched().queue.lock();
    // The reference stays with the thread until it ends.
    queue.add_ready(cpu, thread.into_raw(), QueueEnd::Last);
    begin_slice(cpu, WaitedFor::Yes);
    drop(queue);
    wake_idle(cpu);
}

/// Lets the new kernel thread run on `cpu`.
pub(super) fn start_kernel(cpu: &'static Cpu, thread: ThreadRef) {
    let mut queue = cpu.sched().queue.lock();
    // SAFETY: the reference stays with the thread until it ends.
    queue.add_woken(unsafe { thread.into_raw().as_ref() });
    request(cpu);
    drop(queue);
    notify_other(cpu);
}

/// The CPU that a thread goes to which is to enter EL0: this one is none of its CPUs, or another one of them idles while
/// this one is waited for.
fn elsewhere(cpu: &Cpu, thread: &Thread, waited_for: WaitedFor) -> Option<&'static Cpu> {
    if !thread.is_bound() {
        return None;
    }
    let cpus = thread.online_cpus();
    let others = cpus.without(cpu.id);
    let idle = CpuSet::from_bits(others.bits() & IDLE.load(Ordering::Relaxed));
    if cpus.contains(cpu.id) && (waited_for == WaitedFor::No || idle.is_empty()) {
        return None;
    }
    let among = if idle.is_empty() { others } else { idle };
    let waiting = |cpu: &&'static Cpu| {
        [&cpu.sched().ready, &cpu.sched().bound].iter().map(|count| count.load(Ordering::Relaxed)).sum::<u32>()
    };
    let other = among.iter().filter_map(smp::cpu).min_by_key(waiting)?;
    // As in `wake_idle`.
    IDLE.fetch_and(!(1 << other.id.0), Ordering::Relaxed);
    Some(other)
}

/// Lets a thread that no CPU runs wait for EL0 at its home, which has just become that.
pub(super) fn arrive(thread: NonNull<Thread>) {
    // SAFETY: it has not ended, and is in no list.
    let Some(cpu) = smp::cpu(unsafe { thread.as_ref() }.home()) else { return };
    // For `interrupt`, as in `wake`.
    fence(Ordering::SeqCst);
    let mut queue = cpu.sched().queue.lock();
    queue.add_ready(cpu, thread, QueueEnd::Last);
    request(cpu);
    drop(queue);
    notify_other(cpu);
    // It may have been freed since it was bound.
    wake_idle(cpu);
}

/// Wakes a thread that sleeps; `false` if it did not, by now.
pub(super) fn wake(thread: &Thread) -> bool {
    let home = thread.home();
    let Some(cpu) = smp::cpu(home) else { return false };
    let mut queue = cpu.sched().queue.lock();
    // It may have been woken, and have gone elsewhere, since the caller looked. A thread that sleeps stays, and went to
    // sleep under this lock.
    if thread.home() != home || !thread.state.unpark() {
        return false;
    }
    // For `interrupt`: a waker that has found it asleep has raised its work before, as the thread will see.
    fence(Ordering::SeqCst);
    queue.add_woken(thread);
    request(cpu);
    drop(queue);
    notify_other(cpu);
    true
}

/// Has what runs on `cpu`, whose queue is locked, give way on its way to EL0.
fn request(cpu: &Cpu) {
    // SAFETY: what runs changes under the lock alone, so it is there.
    if let Some(thread) = unsafe { cpu.sched().current.load(Ordering::Relaxed).as_ref() } {
        thread.work.fetch_or(Work::RESCHEDULE.0, Ordering::Relaxed);
    }
}

fn notify_other(cpu: &'static Cpu) {
    if cpu.id != this_cpu().id {
        smp::notify(cpu);
    }
}

/// Has `thread` look at its work soon, if it is at EL0.
pub(super) fn interrupt(thread: &Thread) {
    // Where it has woken or moved concurrently, it has looked on its way: the work was raised before this looks at the
    // thread, and `wake`, `steal` and `arrive` have changed the thread before it looks at its work.
    fence(Ordering::SeqCst);
    if !thread.state.is_parked()
        && let Some(cpu) = smp::cpu(thread.home())
    {
        notify_other(cpu);
    }
}

/// Interrupts an idle CPU, if there is a thread to steal from this one.
fn wake_idle(cpu: &Cpu) {
    if cpu.sched().ready.load(Ordering::Relaxed) == 0 {
        return;
    }
    fence(Ordering::SeqCst);
    let idle = CpuSet::from_bits(IDLE.load(Ordering::Relaxed)).without(cpu.id);
    if let Some(other) = idle.iter().next() {
        // Cleared here, so that the next interrupt goes to another CPU.
        IDLE.fetch_and(!(1 << other.0), Ordering::Relaxed);
        if let Some(other) = smp::cpu(other) {
            smp::notify(other);
        }
    }
}

/// Announces that this CPU is about to idle, interrupts masked. Returns whether it may: there is nothing for it to run.
pub(super) fn prepare_to_idle(cpu: &Cpu) -> bool {
    IDLE.fetch_or(1 << cpu.id.0, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let queue = cpu.sched().queue.lock();
    queue.woken.is_empty()
        && queue.bound.is_empty()
        && smp::online().iter().filter_map(smp::cpu).all(|cpu| cpu.sched().ready.load(Ordering::Relaxed) == 0)
}

/// Whether `thread` is what `cpu` runs when no other does.
pub(super) fn is_idle_thread(cpu: &Cpu, thread: &Thread) -> bool {
    cpu.sched().idle.load(Ordering::Relaxed).cast_const() == &raw const *thread
}

/// Runs threads until there is none for this CPU any more.
pub(super) fn run_ready(cpu: &'static Cpu) {
    IDLE.fetch_and(!(1 << cpu.id.0), Ordering::Relaxed);
    let masked = interrupts::mask();
    while let Some((next, queue)) = {
        let stolen = if cpu.sched().ready.load(Ordering::Relaxed) == 0 { steal(cpu) } else { None };
        let mut queue = cpu.sched().queue.lock();
        if let Some(thread) = stolen {
            queue.add_ready(cpu, thread, QueueEnd::Last);
        }
        queue.pick(cpu).map(|next| (next, queue))
    } {
        // The one that was stolen may wait here for one that has come since.
        wake_idle(cpu);
        switch::to(cpu, &current(), next, queue);
    }
    interrupts::restore(masked);
}

/// Takes a thread that waits for another CPU and may change to this one.
fn steal(cpu: &Cpu) -> Option<NonNull<Thread>> {
    for other in smp::online().without(cpu.id).iter().filter_map(smp::cpu) {
        if other.sched().ready.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut queue = other.sched().queue.lock();
        if let Some(thread) = queue.take_ready(other) {
            // Its registers are all in memory: the lock was held until they were. Under the lock, so that `wake`, which
            // may still take the thread for one of `other`, finds there that it has gone: it may sleep on this CPU by
            // then.
            thread.home.store(cpu.id.0, Ordering::Relaxed);
            drop(queue);
            // For `interrupt`, as in `wake`.
            fence(Ordering::SeqCst);
            return NonNull::new(UnsafeRef::into_raw(thread));
        }
    }
    None
}

/// Sleeps until [`Thread::unpark`] is called; returns at once where it was called since the last time.
pub fn park() {
    let cpu = this_cpu();
    let thread = current();
    debug_assert!(cpu.held_ranks().bits() == 0, "sleeping with a lock held");
    debug_assert!(!is_idle_thread(cpu, &thread), "the idle thread has no thread to run instead");
    let masked = interrupts::mask();
    let mut queue = cpu.sched().queue.lock();
    if thread.state.park() {
        let next = queue.pick_or_idle(cpu);
        switch::to(cpu, &thread, next, queue);
    } else {
        drop(queue);
    }
    interrupts::restore(masked);
}

/// The running thread is about to enter EL0 and is to let others go first. It may be on another CPU afterwards.
///
/// Not inlined: nothing that its caller knows of the CPU is true after it.
#[inline(never)]
pub(crate) fn give_way(thread: &Thread) {
    let cpu = this_cpu();
    let mut queue = cpu.sched().queue.lock();
    // Acquire: its CPUs are looked at below, which were stored before the work was raised.
    thread.work.fetch_and(!(Work::RESCHEDULE.0 | Work::PLACE.0), Ordering::Acquire);
    let over = queue.slice_is_over;
    let waited_for = if queue.is_empty() { WaitedFor::No } else { WaitedFor::Yes };
    if let Some(other) = elsewhere(cpu, thread, waited_for) {
        // Under the lock, as in `steal`.
        thread.home.store(other.id.0, Ordering::Relaxed);
        // Its registers are not in memory yet. The one that comes lets it arrive.
        cpu.sched().leaving.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
        let next = queue.pick_or_idle(cpu);
        return switch::to(cpu, thread, next, queue);
    }
    let Some(next) = queue.pick_before(cpu) else { return };
    queue.add_ready(cpu, NonNull::from(thread), if over { QueueEnd::Last } else { QueueEnd::First });
    wake_idle(cpu);
    switch::to(cpu, thread, next, queue);
}

/// A point in a long call where other threads of this CPU may run: those that were woken, and a ready one where this
/// thread's slice has ended. The thread continues here, on this CPU.
///
/// The caller holds no spinning lock and has no walk open, and interrupts are on; what it has changed is complete, as
/// if it slept here. Sleeping locks may be held: their waiters sleep.
#[inline]
pub fn relax() {
    stretches::mark_point();
    let cpu = this_cpu();
    debug_assert!(cpu.held_ranks().bits() == 0, "a scheduling point with a lock held");
    debug_assert!(!cpu.walk().is_open(), "a scheduling point inside a walk");
    // SAFETY: null before there are threads; what runs is not freed.
    let thread = unsafe { cpu.sched().current.load(Ordering::Relaxed).as_ref() };
    if let Some(thread) = thread.filter(|thread| thread.has(Work::RESCHEDULE)) {
        run_others(cpu, thread);
    }
}

/// Runs the threads that wait for this CPU, then the running one again, in the kernel.
#[cold]
#[inline(never)]
fn run_others(cpu: &'static Cpu, thread: &Thread) {
    let masked = interrupts::mask();
    // The idle thread's work continues to its end; interrupts that were masked stay so.
    if is_idle_thread(cpu, thread) || !masked.irqs_enabled() {
        return interrupts::restore(masked);
    }
    let mut queue = cpu.sched().queue.lock();
    thread.work.fetch_and(!Work::RESCHEDULE.0, Ordering::Relaxed);
    if queue.slice_is_over {
        // Else one woken thread after another would have its turn before the ready ones.
        queue.in_a_row = WOKEN_IN_A_ROW;
    }
    if let Some(next) = queue.pick_before(cpu) {
        queue.add_woken(thread);
        switch::to(cpu, thread, next, queue);
        // A thread that was woken since has asked another one than this to give way.
        let queue = cpu.sched().queue.lock();
        if !queue.woken.is_empty() {
            request(cpu);
        }
    } else {
        // Before the masks: it restores those that it was taken under.
        drop(queue);
    }
    interrupts::restore(masked);
}

/// Has the running thread let the next one go first when it enters EL0.
pub fn yield_now() {
    let cpu = this_cpu();
    let mut queue = cpu.sched().queue.lock();
    queue.slice_is_over = true;
    request(cpu);
}

/// Whether there are others for a CPU than the thread that has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitedFor {
    Yes,
    No,
}

/// A thread has this CPU for EL0, or others have come to wait for it: if there are any, the slice has an end. Interrupts
/// masked.
#[inline]
pub(super) fn begin_slice(cpu: &Cpu, waited_for: WaitedFor) {
    let is_endless = cpu.sched().slice_end.load(Ordering::Relaxed) == NEVER;
    if (waited_for == WaitedFor::Yes) == is_endless {
        let end = if is_endless { Deadline::after(SLICE).count() } else { NEVER };
        cpu.sched().slice_end.store(end, Ordering::Relaxed);
        program(cpu);
    }
}

/// Sets the timer for what is due first. Interrupts masked.
#[inline]
pub(super) fn program(cpu: &Cpu) {
    let due = cpu.sched().slice_end.load(Ordering::Relaxed).min(cpu.sched().next_timeout.load(Ordering::Relaxed));
    timer::set(cpu, Purpose::Threads, (due != NEVER).then(|| Deadline::at(due)), when_due);
}

fn when_due(cpu: &Cpu) {
    let now = Deadline::after(Duration::ZERO).count();
    if cpu.sched().slice_end.load(Ordering::Relaxed) <= now {
        cpu.sched().slice_end.store(NEVER, Ordering::Relaxed);
        cpu.sched().queue.lock().slice_is_over = true;
        request(cpu);
    }
    if cpu.sched().next_timeout.load(Ordering::Relaxed) <= now {
        timeout::expire(cpu, now);
    }
    program(cpu);
}
