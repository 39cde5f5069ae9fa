//! Two threads of which one runs at a time: the second begins at a chosen moment of the first, and where one has to
//! wait, for a lock or an event, the other continues.
//!
//! Every wait on the host comes to one place (`sched/host.rs`), which hands the turn over. So an interleaving is a few
//! numbers, and comes out the same each time.

use core::any::Any;
use core::mem;
use std::cell::RefCell;
use std::format;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::string::{String, ToString as _};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::*;
use crate::mm::kernel::record::at_each_moment;
use crate::sync::meeting;

/// So many waits in a row, of both, that nothing came of: they wait for each other.
const PATIENCE: usize = 20_000;
/// A wait of the second that so many turns in a row did not end gets a turn where the first has released a lock, and at
/// one of so many other moments: a call that holds a lock for long has thousands.
const SELDOM: usize = 16;

/// The events that count as moments of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Grain {
    /// Each load, store and barrier.
    Operations,
    /// Where a call is between two of its steps.
    Steps,
}

impl Grain {
    /// A wait is none: it hands the turn over by itself.
    fn counts(self, moment: Moment<'_>) -> bool {
        match moment {
            Moment::Wait => false,
            Moment::Step => self == Self::Steps,
            Moment::Read(_) | Moment::Operation(_) => self == Self::Operations,
        }
    }
}

/// When the second thread runs: numbers of moments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct When {
    pub(super) grain: Grain,
    /// Of the first, where the second begins.
    pub(super) first: usize,
    /// Of the second, where it stops until the first ends or waits.
    pub(super) second: Option<usize>,
}

#[derive(Default)]
struct State {
    /// Which one has the turn.
    running: usize,
    has_ended: [bool; 2],
    has_begun: bool,
    /// The second one has stopped for the first.
    has_stopped: bool,
    idle: usize,
    /// Turns of the second in a row in which it had no moment.
    in_vain: usize,
    /// The two that meet, in words.
    what: String,
}

/// In the place of a wait for a lock; returns whether the lock is free now, because its holder does not exclude others.
pub(super) type BreaksIn = Box<dyn Fn() -> bool + Send + Sync>;

/// The turns of two threads.
#[derive(Default)]
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    breaks_in: Option<BreaksIn>,
}

std::thread_local! {
    /// This thread's meeting, and which of the two it is.
    static PLACE: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the turn away, if the other one has not ended; returns when it is back.
    fn pass(&self, me: usize) {
        let mut state = self.state();
        state.idle += 1;
        state.in_vain += me;
        if state.idle > PATIENCE {
            // No panic: what waits is in queues.
            _ = writeln!(io::stderr(), "{}: they wait for ever", state.what);
            process::abort();
        }
        if !state.has_ended[1 - me] {
            (state.running, state.has_begun) = (1 - me, true);
            self.changed.notify_all();
            self.wait(me, state);
        }
    }

    fn wait(&self, me: usize, state: MutexGuard<'_, State>) {
        drop(self.changed.wait_while(state, |state| state.running != me).unwrap_or_else(PoisonError::into_inner));
    }

    /// Runs `work` as one of the two, and ends its turns; what it panicked with.
    fn play(self: &Arc<Self>, me: usize, work: impl FnOnce()) -> Option<String> {
        PLACE.set(Some((self.clone(), me)));
        meeting::set_wait(Some(|| {
            let place = PLACE.with_borrow(Clone::clone);
            let Some((turns, me)) = place else { return };
            if !turns.breaks_in.as_ref().is_some_and(|breaks_in| breaks_in()) {
                turns.pass(me);
            }
        }));
        self.wait(me, self.state());
        let result = caught(work);
        meeting::set_wait(None);
        PLACE.set(None);
        let mut state = self.state();
        (state.running, state.has_ended[me], state.idle) = (1 - me, true, 0);
        self.changed.notify_all();
        result.err()
    }
}

/// The result of `work`, or the text of its panic.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| text(&*panic))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that is the second one.
pub(super) struct Second {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Second {
    pub(super) fn new() -> Self {
        let (jobs, next) = channel::<Job>();
        let thread = thread::spawn(move || next.iter().for_each(|job| job()));
        Self { jobs: Some(jobs), thread: Some(thread) }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.thread.take().into_iter().for_each(|thread| _ = thread.join());
    }
}

/// The result of a meeting.
pub(super) struct Met {
    /// The moment at which the second one began.
    pub(super) at: String,
    /// The texts of their panics.
    pub(super) panics: [Option<String>; 2],
}

/// How many operations `work` has.
pub(super) fn moments(work: impl FnOnce()) -> usize {
    let count = Rc::new(Cell::new(0));
    let counted = count.clone();
    let count_one =
        move |moment: Moment<'_>| counted.set(counted.get() + usize::from(Grain::Operations.counts(moment)));
    at_each_moment(count_one, work);
    count.get()
}

/// Runs `first` on this thread and `second` on another; `at_moment` just before the second begins.
pub(super) fn meet(
    thread: &Second,
    (when, what, breaks_in): (When, String, Option<BreaksIn>),
    first: impl FnOnce(),
    second: impl FnOnce() + Send + 'static,
    at_moment: impl Fn() + 'static,
) -> Met {
    let turns = Arc::new(Turns { breaks_in, ..Turns::default() });
    turns.state().what = what;
    let (report, panicked) = channel();
    let others = turns.clone();
    let stops = move || {
        let (mut count, turns) = (0_usize, others.clone());
        let stop = move |moment: Moment<'_>| {
            if !when.grain.counts(moment) {
                return;
            }
            count += 1;
            turns.state().in_vain = 0;
            if Some(count - 1) == when.second {
                turns.state().has_stopped = true;
                turns.pass(1);
                turns.state().has_stopped = false;
            }
        };
        _ = report.send(others.play(1, || _ = at_each_moment(stop, second)));
    };
    thread.jobs.as_ref().unwrap().send(Box::new(stops)).unwrap();
    let (seen, turns_at) = (Arc::new(Mutex::new(String::new())), turns.clone());
    let (noted, mut moments) = (seen.clone(), 0);
    let begins = move |moment: Moment<'_>| {
        if !when.grain.counts(moment) {
            return;
        }
        let count = moments;
        moments += 1;
        if count == when.first {
            at_moment();
            *noted.lock().unwrap() = match moment {
                Moment::Operation(operation) => format!("at {operation:?}"),
                _ => "behind a load".to_string(),
            };
        }
        let is_due = {
            let mut state = turns_at.state();
            state.idle = 0;
            let may_go_on = meeting::has_released()
                || state.in_vain < SELDOM
                || count.wrapping_sub(when.first).is_multiple_of(SELDOM);
            !state.has_ended[1] && (count == when.first || state.has_begun && !state.has_stopped && may_go_on)
        };
        if is_due {
            turns_at.pass(0);
        }
    };
    let first = turns.play(0, || _ = at_each_moment(begins, first));
    let second = panicked.recv().unwrap_or(None);
    let at = mem::take(&mut *seen.lock().unwrap());
    Met { at, panics: [first, second] }
}
