//! Timers of programs: those of `timer_create`, that of `setitimer`, and those of `timerfd_create`.
//!
//! All are in two trees under one lock: by owner and number, and by moment. A kernel thread sleeps until the first
//! moment, and sends the signal, or wakes the pollers of the file. The timer has *fired* then, and runs again when a signal
//! of its number is delivered, or its file is read, as on Linux: one whose signal is blocked or ignored, or whose file
//! is not read, makes no work, whatever its interval. The moments that pass until then are its overruns. Where signals
//! of several timers are one, all of these run again.
//!
//! The lock comes before that of a process. A timer is gone before its process is.

#![allow(unsafe_code, reason = "timers in two trees, under their lock")]

use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use granule_abi::limits::RLIMIT_SIGPENDING;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef};
use spin::Once;

use super::state::Elsewhere;
use super::tree::Process;
use crate::chip::timer::{Deadline, uptime_nanoseconds};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::timerfd::Pollers;
use crate::linux::process::quota::Quota;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::sched::{self, ThreadRef, park, relax, with_timeout};
use crate::smp::Cpu;
use crate::sync::{IrqLock, rank};

static POOL: Once<Pool<Timer>> = Once::new();
static TIMERS: IrqLock<Timers, { rank::TIMERS }> =
    IrqLock::new(Timers { by_number: RBTree::new(ByNumber::NEW), queue: RBTree::new(Queued::NEW), last_of_files: 0 });
/// The thread that sends the signals.
static THREAD: Once<ThreadRef> = Once::new();
/// Timers of `timer_create`: all are one user's, whose number Linux limits.
static CREATED: Quota = Quota(AtomicUsize::new(0));

/// The number of the timer of `setitimer`. No other has it.
pub const REAL: u32 = u32::MAX;

/// A timer's times, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Times {
    /// Between two of its moments; 0 where there is one.
    pub interval: u64,
    /// Until the next, or the moment itself; 0 where there is none.
    pub value: u64,
}

/// The owner of the timers of files. No process has this number.
pub const FILES: u32 = 0;

/// The effect of a timer's moment.
#[derive(Clone)]
pub enum Notice {
    /// None.
    Nothing,
    /// A signal.
    Signal(SignalNotice),
    /// The pollers of its file look.
    Pollers(Counted<Pollers>),
}

/// The signal of a timer.
#[derive(Clone, Copy)]
pub struct SignalNotice {
    /// The signal.
    pub signal: Signal,
    /// The process, which owns the timer.
    pub process: &'static Process,
    /// The thread that it is sent to, in place of the process.
    pub thread: Option<u32>,
    /// Its cause, with the number of a timer of `timer_create`.
    pub cause: SignalCause,
}

struct Timer {
    by_number: RBTreeLink,
    queued: RBTreeLink,
    /// The number of a process, or [`FILES`].
    owner: u32,
    id: u32,
    notice: Notice,
    stage: Cell<Stage>,
    /// The moment that it waits for, or the one at which it fired.
    due: Cell<u64>,
    interval: Cell<u64>,
    overruns: Cell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Stopped,
    Waiting,
    Fired,
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{RBTreeLink, Timer, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) ByNumber = UnsafeRef<Timer>: Timer { by_number => RBTreeLink });
    intrusive_adapter!(pub(super) Queued = UnsafeRef<Timer>: Timer { queued => RBTreeLink });
}
use adapter::{ByNumber, Queued};

impl KeyAdapter<'_> for ByNumber {
    type Key = (u32, u32);
    fn get_key(&self, timer: &Timer) -> (u32, u32) {
        (timer.owner, timer.id)
    }
}

/// Those that wait come first, by their moments. Those that have fired are found by process and signal.
impl KeyAdapter<'_> for Queued {
    type Key = (u32, u32, u64);
    fn get_key(&self, timer: &Timer) -> (u32, u32, u64) {
        match (timer.stage.get(), timer.signal()) {
            (Stage::Fired, Some(signal)) => (timer.owner, signal.number(), timer.due.get()),
            _ => (0, 0, timer.due.get()),
        }
    }
}

impl Timer {
    const fn signal(&self) -> Option<Signal> {
        if let Notice::Signal(notice) = &self.notice { Some(notice.signal) } else { None }
    }

    fn left(&self, now: u64) -> Times {
        let (due, interval) = (self.due.get(), self.interval.get());
        let value = match self.stage.get() {
            Stage::Stopped => 0,
            _ if due > now => due - now,
            _ if interval != 0 && self.id != REAL => interval - (now - due) % interval,
            Stage::Waiting if self.signal().is_some() => 1,
            _ => 0,
        };
        Times { interval, value }
    }
}

struct Timers {
    by_number: RBTree<ByNumber>,
    /// Those that wait, but for those whose moment has no effect, and those with a signal that have fired.
    queue: RBTree<Queued>,
    last_of_files: u32,
}

// SAFETY: the timers are accessed only under the lock, on whichever CPU holds it.
unsafe impl Send for Timers {}

impl Timers {
    fn find(&self, owner: u32, id: u32) -> Result<UnsafeRef<Timer>, Errno> {
        self.by_number.find(&(owner, id)).clone_pointer().ok_or(Errno::EINVAL)
    }

    /// The number of the owner's next timer: one more than that of the last.
    fn next_number(&mut self, owner: u32) -> Option<u32> {
        if owner == FILES {
            // All have one owner, and none ever sees its number: these go round, past those that are in use.
            let after = |last: u32| (last + 1) % REAL;
            self.last_of_files = after(self.last_of_files);
            while self.find(FILES, self.last_of_files).is_ok() {
                self.last_of_files = after(self.last_of_files);
            }
            return Some(self.last_of_files);
        }
        let last = self.by_number.upper_bound(Bound::Excluded(&(owner, REAL)));
        let last = last.get().filter(|last| last.owner == owner);
        last.map_or(Some(0), |last| last.id.checked_add(1).filter(|&id| id <= i32::MAX as u32))
    }

    fn put(&mut self, timer: &Timer, stage: Stage, due: u64) {
        if timer.queued.is_linked() {
            // SAFETY: it is in this tree, the only one by this link.
            unsafe { self.queue.cursor_mut_from_ptr(timer) }.remove();
        }
        timer.stage.set(stage);
        timer.due.set(due);
        let is_queued = match &timer.notice {
            Notice::Nothing => false,
            Notice::Signal(_) => stage != Stage::Stopped,
            Notice::Pollers(pollers) => {
                pollers.set_due(if stage == Stage::Stopped { u64::MAX } else { due });
                stage == Stage::Waiting
            }
        };
        if is_queued {
            // SAFETY: it is taken out before it is freed.
            self.queue.insert(unsafe { UnsafeRef::from_raw(timer) });
        }
        if stage == Stage::Waiting
            && let Some(thread) = THREAD.get()
        {
            thread.unpark();
        }
    }

    /// One of the process's timers with this signal that have fired.
    fn fired(&self, process: &Process, signal: Signal) -> Option<UnsafeRef<Timer>> {
        let from = (process.id(), signal.number(), 0);
        let timer = self.queue.lower_bound(Bound::Included(&from)).clone_pointer()?;
        (timer.owner == process.id() && timer.signal() == Some(signal)).then_some(timer)
    }

    /// Has the signal sent again, for one of the timers that have fired.
    fn send_again(&mut self, process: &Process, signal: Signal) {
        if let Some(timer) = self.fired(process, signal) {
            self.put(&timer, Stage::Waiting, timer.due.get());
        }
    }

    /// Stops a timer, and takes its signal back: not that of `setitimer`, as on Linux.
    fn stop(&mut self, timer: &Timer) {
        let has_fired = timer.stage.get() == Stage::Fired && timer.id != REAL;
        self.put(timer, Stage::Stopped, 0);
        timer.interval.set(0);
        timer.overruns.set(0);
        if let Notice::Signal(SignalNotice { signal, process, thread, cause }) = timer.notice
            && has_fired
        {
            process.lock().take_back(thread, signal, cause);
            // It may have been another one's too.
            self.send_again(process, signal);
        }
    }

    /// Sends the signal of a timer that has fired.
    fn send(&mut self, timer: &Timer, notice: &SignalNotice) -> Elsewhere {
        let SignalNotice { signal, process, thread, cause } = *notice;
        let mut state = process.lock();
        let visit = match thread {
            None => state.send(signal, cause),
            Some(thread) => state.send_to(thread, signal, cause),
        };
        // One that is ignored is not sent later where the timer has no other moment.
        let is_lost = timer.interval.get() == 0 && !state.has_pending(thread, signal);
        drop(state);
        if is_lost {
            self.put(timer, Stage::Stopped, 0);
        }
        Elsewhere::new(process, visit)
    }

    /// Has a timer that fired run again.
    fn go_on(&mut self, timer: &Timer, now: u64) {
        let (due, interval) = (timer.due.get(), timer.interval.get());
        let Some(missed) = now.saturating_sub(due).checked_div(interval) else {
            return self.put(timer, Stage::Stopped, 0);
        };
        timer.overruns.set(missed.min(i32::MAX as u64));
        self.put(timer, Stage::Waiting, due.saturating_add((missed + 1).saturating_mul(interval)));
    }
}

/// Creates a timer of `timer_create`; returns its number.
///
/// # Errors
/// `EAGAIN`: the user has as many as the process's limit permits. `ENOMEM`.
pub fn create(process: &'static Process, notice: impl FnOnce(u32) -> Notice) -> Result<u32, Errno> {
    if !CREATED.take(process.limits.soft(RLIMIT_SIGPENDING)) {
        return Err(Errno::EAGAIN);
    }
    process.has_timers.store(true, Ordering::Relaxed);
    add(process.id(), None, notice).inspect_err(|_| CREATED.give_back())
}

/// Creates the timer of a file, with these pollers; returns its number.
///
/// # Errors
/// `ENOMEM`.
pub fn create_for_file(pollers: Counted<Pollers>) -> Result<u32, Errno> {
    add(FILES, None, |_| Notice::Pollers(pollers))
}

/// Adds the timer of `setitimer`, unless the process has it.
///
/// # Errors
/// `ENOMEM`.
pub fn add_real(process: &'static Process) -> Result<(), Errno> {
    let notice = SignalNotice { signal: Signal::ALRM, process, thread: None, cause: SignalCause::KERNEL };
    process.has_timers.store(true, Ordering::Relaxed);
    add(process.id(), Some(REAL), |_| Notice::Signal(notice)).map(drop)
}

fn add(owner: u32, id: Option<u32>, notice: impl FnOnce(u32) -> Notice) -> Result<u32, Errno> {
    // Dropped after the lock is released.
    let room = POOL.call_once(|| Pool::new(kernel().frames)).try_new_uninit()?;
    let mut timers = TIMERS.lock();
    let id = id.or_else(|| timers.next_number(owner)).ok_or(Errno::EAGAIN)?;
    if timers.find(owner, id).is_ok() {
        return Ok(id);
    }
    let timer = room.write(Timer {
        by_number: RBTreeLink::new(),
        queued: RBTreeLink::new(),
        owner,
        id,
        notice: notice(id),
        stage: Cell::new(Stage::Stopped),
        due: Cell::new(0),
        interval: Cell::new(0),
        overruns: Cell::new(0),
    });
    timers.by_number.insert(timer.into_ref());
    Ok(id)
}

/// A timer's times that are left. It has the `new` ones from now on, if there are some; their value may be a moment.
///
/// # Errors
/// `EINVAL`: there is no such timer.
pub fn exchange(owner: u32, id: u32, new: Option<Times>, is_moment: bool) -> Result<Times, Errno> {
    let mut timers = TIMERS.lock();
    let timer = timers.find(owner, id)?;
    let now = uptime_nanoseconds();
    let left = timer.left(now);
    if let Some(Times { interval, value }) = new {
        timers.stop(&timer);
        if value != 0 {
            timer.interval.set(interval);
            timers.put(&timer, Stage::Waiting, if is_moment { value } else { now.saturating_add(value) });
        }
    }
    Ok(left)
}

/// The overruns of a timer at the last delivery of its signal.
///
/// # Errors
/// `EINVAL`: there is no such timer.
pub fn overruns(owner: u32, id: u32) -> Result<u64, Errno> {
    Ok(TIMERS.lock().find(owner, id)?.overruns.get())
}

/// Deletes the timer of a file.
pub fn delete_of_file(id: u32) {
    // It is there.
    let _ = delete(FILES, id);
}

/// Takes the moments of a file's timer that have come since they were last taken, and has it go on; `None` where none has.
pub fn take_moments(id: u32) -> Option<u64> {
    let mut timers = TIMERS.lock();
    let (timer, now) = (timers.find(FILES, id).ok()?, uptime_nanoseconds());
    let late = now.checked_sub(timer.due.get()).filter(|_| timer.stage.get() != Stage::Stopped)?;
    let missed = late.checked_div(timer.interval.get()).unwrap_or(0);
    timers.go_on(&timer, now);
    Some(missed.saturating_add(1))
}

/// Deletes a timer.
///
/// # Errors
/// `EINVAL`: there is none.
pub fn delete(owner: u32, id: u32) -> Result<(), Errno> {
    let removed = {
        let mut timers = TIMERS.lock();
        let timer = timers.find(owner, id)?;
        timers.stop(&timer);
        // SAFETY: it is in the tree; `add` made it from a box, and no tree has it any more.
        unsafe {
            timers.by_number.cursor_mut_from_ptr(&raw const *timer).remove();
            PoolBox::from_ref(timer)
        }
    };
    if removed.owner != FILES && removed.id != REAL {
        CREATED.give_back();
    }
    Ok(())
}

/// Deletes a process's timers of `timer_create`, for an exec; at its end that of `setitimer` too.
pub fn delete_all(process: &Process, has_ended: bool) {
    let first = || {
        // Most have had none.
        let timers = process.has_timers.load(Ordering::Relaxed).then(|| TIMERS.lock())?;
        let first = timers.by_number.lower_bound(Bound::Included(&(process.id(), 0)));
        first.get().filter(|first| first.owner == process.id() && (has_ended || first.id != REAL))?.id.into()
    };
    while let Some(id) = first() {
        // There is no other thread that deletes it.
        let _ = delete(process.id(), id);
        relax();
    }
}

/// A signal is delivered: timers that have sent it go on. Returns the cause for the program, with the overruns. No lock is
/// held.
#[inline(always)]
pub fn delivered(process: &Process, signal: Signal, cause: SignalCause) -> SignalCause {
    if process.has_timers.load(Ordering::Relaxed) { go_on_after(process, signal, cause) } else { cause }
}

#[cold]
#[inline(never)]
fn go_on_after(process: &Process, signal: Signal, cause: SignalCause) -> SignalCause {
    let (now, mut result) = (uptime_nanoseconds(), cause);
    loop {
        let mut timers = TIMERS.lock();
        let fired = timers.fired(process, signal);
        let Some(timer) = fired.filter(|timer| timer.due.get() <= now) else { break };
        timers.go_on(&timer, now);
        if let Notice::Signal(notice) = timer.notice
            && timer.id != REAL
            && notice.cause == cause
        {
            result.fields[0] |= timer.overruns.get() << 32;
        }
        drop(timers);
        // There may be as many as the process's limit permits.
        relax();
    }
    result
}

/// A signal has a new action: where it was ignored, a timer may have sent it.
pub fn reconsider(process: &Process, signal: Signal) {
    if process.has_timers.load(Ordering::Relaxed) {
        TIMERS.lock().send_again(process, signal);
    }
}

/// The effect that is left without the lock.
enum Fired {
    Nothing,
    Signal(Elsewhere),
    Pollers(Counted<Pollers>),
}

/// Sends the signal of the first timer, or wakes its pollers, if its moment has come. Returns how long it is until the next one may be due; `None`
/// where none waits.
fn fire() -> Option<Duration> {
    let fired = {
        let mut timers = TIMERS.lock();
        let timer = timers.queue.front().clone_pointer().filter(|timer| timer.stage.get() == Stage::Waiting)?;
        let left = timer.due.get().saturating_sub(uptime_nanoseconds());
        if left != 0 {
            return Some(Duration::from_nanos(left));
        }
        timers.put(&timer, Stage::Fired, timer.due.get());
        match &timer.notice {
            Notice::Nothing => Fired::Nothing,
            Notice::Pollers(pollers) => Fired::Pollers(pollers.clone()),
            Notice::Signal(notice) => Fired::Signal(timers.send(&timer, notice)),
        }
    };
    match fired {
        Fired::Nothing => {}
        Fired::Pollers(pollers) => pollers.wake(),
        Fired::Signal(elsewhere) => elsewhere.finish(),
    }
    relax();
    Some(Duration::ZERO)
}

extern "C" fn run(_: usize) -> ! {
    loop {
        match fire() {
            None => park(),
            Some(Duration::ZERO) => {}
            Some(left) => with_timeout(Deadline::after(left), |_| park()),
        }
    }
}

/// Starts the thread that sends the signals.
///
/// # Errors
/// [`OutOfMemory`].
pub fn start(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
    let thread = sched::spawn_service(cpu, "timers", run)?;
    THREAD.call_once(|| thread);
    Ok(())
}

/// Timers.
pub fn pool_stats() -> PoolStats {
    POOL.get().map_or_else(PoolStats::default, Pool::stats)
}
