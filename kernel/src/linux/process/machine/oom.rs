//! Out of memory: the process that has most ends, and the fault or call that failed is retried.
//!
//! [`relieve`] is called where a fault or a call of a program failed for want of frames, with no lock held and nothing
//! changed. It returns when there are frames again. Frames that the kernel keeps unused go first ([`services`]), then
//! pages of files, which can be had again, and pages that programs can lose (`MAP_DROPPABLE`). Then one process ends at a
//! time; others wait for it, but not for ever: one that does not end in time is excluded from the next choice. Neither
//! ending nor the choice allocates memory: processes are measured one after the other, found by number, and the lock of
//! all processes is held for one step at a time. The measure of a process is its space and what is
//! [charged](super::charge) to it.
//!
//! A process ends as well where there are frames whenever a call asks, and too few whenever it is repeated: see
//! [`retries`](crate::linux::process::retries).
//!
//! A call is refused, and no process ends for it, where it wants more than any process has; or more than its own has, and
//! another would end for it that has less than the two together.
//!
//! A fault of a device belongs to no program: it fails, and no process ends for it. The kernel's own threads have the
//! [reserve](crate::mm::frame::FrameAllocator::reserve), and get an error beyond that.

use core::sync::atomic::Ordering;
use core::time::Duration;

use granule_arch::addr::PAGE_SIZE;

use super::charge;
use super::state::Elsewhere;
use super::task::Task;
use super::tree::PROCESSES;
use crate::chip::timer::{Deadline, uptime};
use crate::kernel;
use crate::linux::process::retries::Attempt;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::linux::process::status::{Life, Name};
use crate::mm::space::{Footprint, SpaceRef, Tally, Used};
use crate::sched::{Thread, relax, sleep_through};
use crate::services;
use crate::smp::this_cpu;
use crate::sync::{IrqLock, rank};

/// How often at most pages that programs can lose are taken away before a process ends: other programs may have used
/// all of the frames again whenever this thread looks. As many as Linux has (`MAX_RECLAIM_RETRIES`).
const ROUNDS: usize = 16;
/// How long others wait for the end of a process.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how long they look again at first, and at most: many that look often leave the one that ends no time.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(64)];

/// The result of an attempt to find memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relief {
    /// There is memory: the caller retries.
    Retry,
    /// The caller's own process is ending: a retry is useless.
    Ending,
    /// The reason was not a shortage of memory, or no process is ended for it.
    None,
}

/// The process that is ending.
struct Dying {
    id: u32,
    until: Deadline,
}

struct Killer {
    /// A thread is choosing.
    choosing: bool,
    dying: Option<Dying>,
}

static KILLER: IrqLock<Killer, { rank::OUT_OF_MEMORY }> = IrqLock::new(Killer { choosing: false, dying: None });

/// Waits until there is memory for what failed in the running thread, which is `task`'s; ends the process that has most
/// for that. Sleeps.
#[cold]
pub fn relieve(task: &Task, thread: &Thread, attempt: Attempt) -> Relief {
    let Some(wanted) = thread.take_shortage() else { return Relief::None };
    let frames = kernel().frames;
    if task.is_leaving() || wanted > frames.total() {
        return Relief::None;
    }
    let is_killed = || task.is_killed(thread);
    services::give_back(this_cpu());
    // Once: programs that use what they free would go on for ever.
    let mut has_freed = kernel().spaces.reclaim(this_cpu(), wanted, Used::Keep, &is_killed) != 0;
    // Not counted as freed: these come again, with the next use of each.
    let mut dropped = Dropped::Nothing;
    for _ in 0..ROUNDS {
        let now = drop_pages(task, wanted, is_killed);
        dropped = dropped.max(now);
        if now == Dropped::Nothing || frames.has_room_for(wanted) {
            break;
        }
    }
    let [mut pause, longest] = PAUSES;
    loop {
        let has_room = frames.has_room_for(wanted);
        if has_room && (has_freed || task.retries.may_follow(attempt, uptime().as_millis() as u64)) {
            return Relief::Retry;
        }
        if is_killed() {
            return Relief::Ending;
        }
        // Pages that this call brings go for itself, again and again: it fails, and no other process ends for it.
        if has_room && dropped == Dropped::Own {
            return Relief::None;
        }
        // From here on a process ends.
        has_freed = true;
        if !begin_choice() {
            sleep_through(Deadline::after(pause));
            pause = longest.min(pause.saturating_mul(2));
            continue;
        }
        // Others may have ended since that look, and while all were measured.
        let choice = choose(task.process().id(), wanted, || !has_room && frames.has_room_for(wanted));
        let mut killer = KILLER.lock();
        killer.choosing = false;
        match choice {
            Choice::Ends(id) => killer.dying = Some(Dying { id, until: Deadline::after(PATIENCE) }),
            Choice::HasRoom => {}
            Choice::Refused => return Relief::None,
        }
    }
}

/// The droppable pages that were taken away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dropped {
    Nothing,
    OfOthers,
    /// Of the process that has no memory, too.
    Own,
}

/// Takes pages away that programs can lose, process by process, until there is room for `wanted` frames or `is_killed`.
fn drop_pages(task: &Task, wanted: usize, is_killed: impl Fn() -> bool) -> Dropped {
    let (frames, mut id, mut dropped) = (kernel().frames, 0, Dropped::Nothing);
    while !is_killed()
        && !frames.has_room_for(wanted)
        && let Some((next, found)) = next_after(id)
    {
        id = next;
        relax();
        if let OomCheck::Candidate(candidate) = found
            && candidate.space.drop_pages(this_cpu()) != 0
        {
            let is_own = candidate.id == task.process().id();
            dropped = dropped.max(if is_own { Dropped::Own } else { Dropped::OfOthers });
            // The frames in this CPU's magazine are not there for programs on other CPUs.
            frames.drain_cpu(this_cpu());
        }
    }
    dropped
}

/// Whether the running thread should choose now: no other does, and no process is ending.
fn begin_choice() -> bool {
    let mut killer = KILLER.lock();
    if killer.choosing {
        return false;
    }
    if let Some(dying) = &killer.dying {
        let tree = PROCESSES.lock();
        let there = tree.find(dying.id).filter(|process| !process.outlives_its_end.load(Ordering::Relaxed));
        if let Some(process) = there
            && !matches!(process.lock().life, Life::Ended(_))
        {
            if !dying.until.has_passed() {
                return false;
            }
            process.outlives_its_end.store(true, Ordering::Relaxed);
        }
    }
    killer.dying = None;
    killer.choosing = true;
    true
}

/// Whether a process may be chosen.
enum OomCheck {
    /// It is ending already.
    Ending,
    /// It could end.
    Candidate(Candidate),
    /// No: it has ended, or did not end in time.
    Nothing,
}

struct Candidate {
    id: u32,
    serial: u64,
    name: Name,
    space: SpaceRef,
}

/// Frames that a process has.
struct Size {
    space: Footprint,
    /// Beyond its space.
    beside: usize,
}

impl Candidate {
    /// Visits all that it has, and sleeps.
    #[inline(never)]
    fn size(&self) -> Size {
        let tally = Tally::begin();
        let space = self.space.footprint(tally);
        Size { space, beside: charge::footprint(self.id, self.serial, tally) }
    }
}

impl Size {
    const fn frames(&self) -> usize {
        self.space.frames() + self.beside
    }
}

/// The process with the next number above `id`; its number, and whether it may be chosen. `None` after the last.
#[inline(never)]
fn next_after(id: u32) -> Option<(u32, OomCheck)> {
    let tree = PROCESSES.lock();
    let process = tree.after(id)?;
    let id = process.id();
    let state = process.lock();
    let found = match (state.life, &state.space) {
        (Life::Ended(_), _) => OomCheck::Nothing,
        _ if process.outlives_its_end.load(Ordering::Relaxed) => OomCheck::Nothing,
        (Life::Running, Some(space)) => {
            let serial = process.serial();
            OomCheck::Candidate(Candidate { id, serial, name: state.name, space: space.clone() })
        }
        // Its last thread has left the space, which is perhaps being freed.
        (Life::Ending(_), _) | (Life::Running, None) => OomCheck::Ending,
    };
    Some((id, found))
}

/// The result of a choice.
enum Choice {
    /// The process with this number is ending.
    Ends(u32),
    /// Memory has become free concurrently: none ends.
    HasRoom,
    /// There is no process to end, or the call is to be refused.
    Refused,
}

/// Chooses a process and ends it, or finds one that is ending, for the call of process `caller` that wants `wanted`
/// frames. A fault, which cannot be refused, wants one. No process ends if `has_room` once all are measured.
fn choose(caller: u32, wanted: usize, has_room: impl Fn() -> bool) -> Choice {
    let mut largest: Option<(Candidate, Size)> = None;
    let (mut id, mut own) = (0, 0);
    while let Some((next, found)) = next_after(id) {
        id = next;
        relax();
        match found {
            OomCheck::Ending => return Choice::Ends(id),
            OomCheck::Nothing => {}
            OomCheck::Candidate(candidate) => {
                let size = candidate.size();
                own = if id == caller { size.frames() } else { own };
                // Of two that have a file together the later one: a program has what its maker lent to it.
                if largest.as_ref().is_none_or(|(_, other)| size.frames() >= other.frames()) {
                    largest = Some((candidate, size));
                }
            }
        }
    }
    if has_room() {
        return Choice::HasRoom;
    }
    let Some((candidate, size)) = largest else { return Choice::Refused };
    let is_more = candidate.id != caller && wanted > own && own + wanted > size.frames();
    if wanted > 1 && (wanted > size.frames() || is_more) {
        return Choice::Refused;
    }
    end_all_in(&candidate.space);
    report(&candidate, &size);
    Choice::Ends(candidate.id)
}

/// Prints which process ends. Out of line: the space of a candidate may be dropped for good on top of the frame of
/// [`choose`].
#[inline(never)]
fn report(candidate: &Candidate, size: &Size) {
    let kib = |frames: usize| frames * (PAGE_SIZE >> 10);
    crate::log::warn!(
        "out of memory: ended process {} ({}), {} KiB of pages, {} KiB of tables and areas, {} KiB of files, descriptors and threads",
        candidate.id,
        candidate.name,
        kib(size.space.pages),
        kib(size.space.tables + size.space.areas),
        kib(size.beside),
    );
}

/// Ends all processes of a space: its memory is freed with the last of them.
#[inline(never)]
fn end_all_in(space: &SpaceRef) {
    let mut id = 0;
    loop {
        // Also after a process of another space: there may be any number of them.
        relax();
        let elsewhere = {
            let tree = PROCESSES.lock();
            let Some(process) = tree.after(id) else { return };
            id = process.id();
            let mut state = process.lock();
            if state.space.as_ref().is_none_or(|other| !other.is(space)) {
                continue;
            }
            Elsewhere::new(process, state.send(Signal::KILL, SignalCause::KERNEL))
        };
        elsewhere.finish();
    }
}
