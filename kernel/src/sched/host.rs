//! On the host the threads are the process's own.

use core::ops::Deref;

use super::poll::PollNodes;
use super::replays::Replays;
use super::token::Woken;
use crate::chip::timer::Deadline;
use crate::mm::OutOfMemory;
use crate::mm::context::Context;
use crate::smp::Cpu;
#[cfg(any(debug_assertions, test))]
use crate::sync::rank::HeldRanks;

/// A CPU has no threads of its own.
#[derive(Debug)]
pub(crate) struct PerCpu;

impl PerCpu {
    pub(crate) const fn new() -> Self {
        Self
    }
}

/// No CPU of the host's comes up.
pub(crate) const fn init_cpu(_: &Cpu) {}

/// Nor is there a loop for it.
pub(crate) fn idle(_: &Cpu) -> ! {
    crate::smp::halt()
}

/// A thread, for its waker.
#[derive(Clone, Debug)]
pub struct ThreadRef(std::thread::Thread);

impl ThreadRef {
    /// Ends the thread's [`park`], or the next one if it is in none.
    pub fn unpark(&self) {
        self.0.unpark();
    }
}

/// The running thread.
#[derive(Clone, Debug)]
pub struct Current(ThreadRef);

impl Current {
    /// A reference for others to keep.
    pub fn to_ref(&self) -> ThreadRef {
        self.0.clone()
    }
}

impl Deref for Current {
    type Target = ThreadRef;
    fn deref(&self) -> &ThreadRef {
        &self.0
    }
}

/// The running thread.
pub fn current() -> Current {
    Current(ThreadRef(std::thread::current()))
}

/// Threads are on no CPU that is known.
pub(super) const fn running(_cpu: &Cpu) -> Option<usize> {
    None
}

/// Whether a test has put something in the place of a wait, which has run then.
fn waits_otherwise() -> bool {
    #[cfg(test)]
    return crate::sync::meeting::waits();
    #[cfg(not(test))]
    false
}

/// Sleeps until [`ThreadRef::unpark`] is called; returns at once where it was called since the last time.
pub fn park() {
    if !waits_otherwise() {
        std::thread::park();
    }
}

/// Threads have no state that is shown.
pub fn uninterruptible<T>(wait: impl FnOnce() -> T) -> T {
    wait()
}

/// Lets other threads run for a moment, which is all that a test waits for.
pub fn sleep_until(_until: Deadline) -> Woken {
    sleep_briefly();
    Woken::TimedOut
}

/// As [`sleep_until`].
pub fn poll_until<'q>(
    _nodes: &mut impl PollNodes<'q>,
    until: Option<Deadline>,
    is_ready: &mut dyn FnMut() -> bool,
) -> Woken {
    let _ = is_ready();
    until.map_or(Woken::ByAnother, sleep_until)
}

/// No service runs.
///
/// # Errors
/// Always.
pub(crate) const fn spawn_service(
    _: &'static Cpu,
    _: &'static str,
    _: extern "C" fn(usize) -> !,
) -> Result<ThreadRef, OutOfMemory> {
    Err(OutOfMemory)
}

/// Lets other threads run for a moment.
pub(crate) fn sleep_briefly() {
    if !waits_otherwise() {
        std::thread::yield_now();
    }
}

#[cfg(any(debug_assertions, test))]
std::thread_local! {
    static HELD_RANKS: HeldRanks = const { HeldRanks::new() };
}

/// Has `look` look at the ranks of the sleeping locks that this thread holds.
#[cfg(debug_assertions)]
pub(super) fn with_held_ranks(look: impl FnOnce(&HeldRanks)) {
    HELD_RANKS.with(look);
}

/// Runs `work` for a test in which another thread comes in here: it holds no sleeping lock.
#[cfg(test)]
pub(crate) fn as_another_thread<T>(work: impl FnOnce() -> T) -> T {
    let held = HELD_RANKS.with(HeldRanks::take);
    let result = work();
    HELD_RANKS.with(|ranks| ranks.put_back(held));
    result
}

/// There are no programs.
pub(crate) const fn runs_program(_cpu: &Cpu) -> bool {
    false
}

/// There are no signals.
pub(crate) const fn is_interrupted() -> bool {
    false
}

/// There are no programs.
pub(crate) const fn is_killed() -> bool {
    false
}

/// There are no programs.
pub(crate) const fn program_number() -> u32 {
    0
}

/// Notes nothing: there are no programs.
pub(crate) const fn note_shortage(_cpu: &Cpu, _frames: usize) {}

std::thread_local! {
    static REPLAYS: super::replays::ReplayCount = std::default::Default::default();
}

/// Counts one more replay of a fault of this thread on `page`; returns how many there were in a row.
pub(crate) fn note_replay(cpu: &Cpu, page: granule_arch::addr::VirtAddr) -> u32 {
    REPLAYS.with(|replays| replays.note(cpu.id, page))
}

/// Ends that count.
pub(crate) fn take_replays(cpu: &Cpu, page: impl FnOnce() -> granule_arch::addr::VirtAddr) -> Option<Replays> {
    REPLAYS.with(|replays| replays.is_begun().then(|| replays.take(cpu.id, page())).flatten())
}

/// None: there are no programs.
pub(crate) fn with_context<T>(_look: impl FnOnce(&Context) -> Option<T>) -> Option<T> {
    None
}

/// Notes nothing: there are no programs.
pub(crate) const fn enlarge_shortage(_cpu: &Cpu, _frames: usize) {}

/// A point where other threads may run: the host runs them anyway, and checks that no lock is held.
pub fn relax() {
    debug_assert_eq!(crate::smp::this_cpu().held_ranks().bits(), 0, "a scheduling point with a lock held");
}
