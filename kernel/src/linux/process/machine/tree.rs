//! All processes: their numbers, their threads, and their parents.
//!
//! # Locks
//! [`PROCESSES`] guards relations between processes: the numbers, the trees for lookup, and parents and children. The
//! lock of each process ([`Process::lock`]) guards its own state ([`ProcessState`]): its threads and signals. A thread
//! that sends, blocks or handles a signal of its own process acquires only that one. The order is `PROCESSES`, one
//! process, its actions ([`crate::sync::rank`]). No fault and no memory call acquires any of them. Nothing is
//! allocated, freed or waited for under them; what was removed from the tree is dropped after they are released.
//!
//! Everything that grows with the number of processes is found by a key. Work on several processes is done for a few at
//! a time, with the lock released in between.
//!
//! # The end of a process
//! Its last thread leaves the address space, then the list; only then is the process *ended*, so that a waiting parent
//! finds its memory free. It stays in the tree until its status is collected. If the parent ignores the status, or has
//! ended, it is collected at once.

#![allow(unsafe_code, reason = "nodes of the tree of processes, under its lock")]

pub mod collect;

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use granule_arch::timer;
use intrusive_collections::{Bound, KeyAdapter, LinkedList, LinkedListLink, RBTree, RBTreeLink, UnsafeRef};
use spin::Once;

use super::charge::Charges;
use super::jobs;
use super::state::{Elsewhere, ProcessState, Visit};
use super::surroundings;
use super::task::{self, Task};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::open::FileRef;
use crate::linux::file::pidfd::{Pidfd, Stage};
use crate::linux::file::signalfd::SignalPollers;
use crate::linux::file::table::Files;
use crate::linux::process::limits::{Limits, ProcessSlot};
use crate::linux::process::numbers::Numbers;
use crate::linux::process::signal::Signal;
use crate::linux::process::status::{Change, Life, ProcessEnd};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::mm::space::SpaceRef;
use crate::sched::{ThreadRef, UserEntry, Work, relax};
use crate::sync::{IrqGuard, IrqLock, rank};

/// All processes.
pub static PROCESSES: IrqLock<Tree, { rank::PROCESSES }> = IrqLock::new(Tree::new());

static POOL: Once<Pool<Process>> = Once::new();

/// The collector of a process's status.
#[derive(Clone, Debug)]
pub enum Parent {
    /// None: the process is removed when it ends.
    None,
    /// The kernel; this thread is woken.
    Kernel(ThreadRef),
    /// The process with this number, which still has a thread.
    Process(u32),
}

/// One process. It is in the tree until its status has been collected, and each of its tasks may rely on that.
pub struct Process {
    id: u32,
    /// The handlers of its threads' exceptions.
    pub entry: &'static UserEntry,
    /// Its serial number, in the order of creation; 0 before it is in the tree.
    serial: AtomicU64,
    /// The timer's count when it was created.
    pub created: u64,
    /// The serial number of its first ancestor, which the kernel started. 0 before it is in the tree.
    family_serial: AtomicU64,
    by_id: RBTreeLink,
    by_serial: RBTreeLink,
    /// In its parent's list of children that have not ended.
    running: LinkedListLink,
    /// In its parent's list of children that have ended.
    ended: RBTreeLink,
    /// The process of [`Family::parent`], for readers without the lock.
    parent_id: AtomicU32,
    /// Its group, and its session. Changed under the lock of the tree; 0 before it is in it, where they are its own.
    group: AtomicU32,
    session: AtomicU32,
    /// It has executed a program since its fork.
    pub has_executed: AtomicBool,
    /// Threads that wait for children. Read under the lock of the tree, and raised before that is acquired.
    waiting: AtomicU32,
    /// The descriptors of its threads, but of those that have their own.
    pub files: Files<FileRef>,
    /// Where it is, once that was changed or shared.
    pub surroundings: Once<surroundings::OfProcess>,
    /// Its limits.
    pub limits: Limits,
    /// The pollers of its threads' signals.
    pub signal_pollers: SignalPollers,
    /// Whether it has had timers.
    pub has_timers: AtomicBool,
    /// Frames of its calls' lists.
    pub charges: Charges,
    /// The reservation of its first task; other tasks have their own.
    _place: ProcessSlot,
    /// It was chosen to end for want of memory, and did not end in time.
    pub outlives_its_end: AtomicBool,
    /// The object that its pidfds refer to, once there was one.
    pidfd: Once<Counted<Pidfd>>,
    family: UnsafeCell<Family>,
    state: IrqLock<ProcessState, { rank::PROCESS }>,
}

// SAFETY: `family` and the links are accessed only through the tree's key, which the lock protects.
unsafe impl Sync for Process {}
// SAFETY: nothing in it belongs to a CPU.
unsafe impl Send for Process {}

/// The part of each process that [`PROCESSES`] guards.
struct Family {
    parent: Parent,
    /// The signal to its parent at its end.
    exit_signal: Option<Signal>,
    /// Its status, once it has ended.
    status: Option<ProcessEnd>,
    /// Its children that have not ended.
    running: LinkedList<Running>,
    /// Its children that send SIGCHLD at their end.
    normal: Children,
    /// Its children that send another signal, or none (`__WCLONE`).
    clones: Children,
    /// It may have no more children.
    gone: bool,
}

/// The children of a process that are of one kind.
struct Children {
    /// How many have not ended.
    running: usize,
    /// Those that have ended, the oldest first.
    ended: RBTree<Ended>,
}

impl Children {
    const fn new() -> Self {
        Self { running: 0, ended: RBTree::new(Ended::NEW) }
    }
}

impl Family {
    const fn new() -> Self {
        Self {
            parent: Parent::None,
            exit_signal: None,
            status: None,
            running: LinkedList::new(Running::NEW),
            normal: Children::new(),
            clones: Children::new(),
            gone: false,
        }
    }

    /// The list of children with this signal.
    fn children(&mut self, exit_signal: Option<Signal>) -> &mut Children {
        if exit_signal == Some(Signal::CHLD) { &mut self.normal } else { &mut self.clones }
    }
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListLink, Process, RBTreeLink, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) ById = UnsafeRef<Process>: Process { by_id => RBTreeLink });
    intrusive_adapter!(pub(super) BySerial = UnsafeRef<Process>: Process { by_serial => RBTreeLink });
    intrusive_adapter!(pub(super) Running = UnsafeRef<Process>: Process { running => LinkedListLink });
    intrusive_adapter!(pub(super) Ended = UnsafeRef<Process>: Process { ended => RBTreeLink });
}
use adapter::{ById, BySerial, Ended, Running};

impl<'a> KeyAdapter<'a> for ById {
    type Key = u32;
    fn get_key(&self, process: &'a Process) -> u32 {
        process.id
    }
}

impl<'a> KeyAdapter<'a> for BySerial {
    type Key = u64;
    fn get_key(&self, process: &'a Process) -> u64 {
        process.serial()
    }
}

impl<'a> KeyAdapter<'a> for Ended {
    type Key = u64;
    fn get_key(&self, process: &'a Process) -> u64 {
        process.serial()
    }
}

/// Proves that the lock is held, and that one family is in use at a time. There is one key, in the tree.
struct FamilyKey(());

impl Process {
    /// A process with this number, in no tree yet and without threads. It has copies of these descriptors and limits.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays allocated.
    #[inline(never)]
    pub fn new(
        id: u32,
        entry: &'static UserEntry,
        state: ProcessState,
        files: &Files<FileRef>,
        limits: &Limits,
        place: ProcessSlot,
    ) -> Result<PoolBox<Self>, OutOfMemory> {
        let room = POOL.call_once(|| Pool::new(kernel().frames)).try_new_uninit()?;
        let files = files.fork();
        Ok(room.write(Self {
            id,
            entry,
            serial: AtomicU64::new(0),
            created: timer::count_unordered(),
            family_serial: AtomicU64::new(0),
            by_id: RBTreeLink::new(),
            by_serial: RBTreeLink::new(),
            running: LinkedListLink::new(),
            ended: RBTreeLink::new(),
            parent_id: AtomicU32::new(0),
            group: AtomicU32::new(0),
            session: AtomicU32::new(0),
            has_executed: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            files,
            surroundings: Once::new(),
            limits: limits.copy(),
            signal_pollers: SignalPollers::new(),
            has_timers: AtomicBool::new(false),
            charges: Charges::default(),
            _place: place,
            outlives_its_end: AtomicBool::new(false),
            pidfd: Once::new(),
            family: UnsafeCell::new(Family::new()),
            state: IrqLock::new(state),
        }))
    }

    /// Its number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Its parent's number; 0 where that is the kernel, or has ended.
    pub fn parent_id(&self) -> u32 {
        self.parent_id.load(Ordering::Relaxed)
    }

    /// The number of its group.
    pub fn group(&self) -> u32 {
        self.group.load(Ordering::Relaxed)
    }

    /// The number of its session.
    pub fn session(&self) -> u32 {
        self.session.load(Ordering::Relaxed)
    }

    /// Its serial number. No two processes have the same.
    pub fn serial(&self) -> u64 {
        self.serial.load(Ordering::Relaxed)
    }

    /// The serial number of its first ancestor, which the kernel started, over any number of parents that may have
    /// ended.
    pub fn family_serial(&self) -> u64 {
        self.family_serial.load(Ordering::Relaxed)
    }

    /// The object that its pidfds refer to: `new` from now on, unless there is one. Under the lock of the tree, or before it
    /// is in it.
    pub fn pidfd(&self, new: &Counted<Pidfd>) -> &Counted<Pidfd> {
        self.pidfd.call_once(|| new.clone())
    }

    /// Makes it a descendant of `creator`, before it is in the tree, whose lock the caller holds.
    pub fn descend_from(&self, creator: &Self) {
        self.family_serial.store(creator.family_serial(), Ordering::Relaxed);
        self.group.store(creator.group(), Ordering::Relaxed);
        self.session.store(creator.session(), Ordering::Relaxed);
    }

    /// Locks its state. For its own threads, and for holders of [`PROCESSES`]. Interrupts are masked under the lock.
    pub fn lock(&self) -> IrqGuard<'_, ProcessState, { rank::PROCESS }> {
        self.state.lock()
    }

    /// Does the rest of a visit. For threads of this process, without a lock.
    #[inline]
    pub fn visit(&self, mut visit: Visit) {
        if visit.take_polls() {
            self.signal_pollers.wake();
        }
        while visit.has_threads_left() {
            self.lock().step(&mut visit);
            relax();
        }
    }

    /// Calls `wait`, which looks for children and sleeps: until it returns, their ends wake the thread.
    pub fn wait_for_children<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = wait();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Whether a thread waits for children. Under the lock of the tree.
    pub fn waits_for_children(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    fn family<'k>(&'k self, _key: &'k mut FamilyKey) -> &'k mut Family {
        // SAFETY: there is one key, borrowed for as long as the result.
        unsafe { &mut *self.family.get() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.get() {
            pidfd.set(Stage::Collected);
            pidfd.wake();
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.id)
    }
}

/// Processes.
pub fn pool_stats() -> PoolStats {
    POOL.get().map_or_else(PoolStats::default, Pool::stats)
}

/// Numbers that processes and threads have.
pub fn numbers_in_use() -> usize {
    PROCESSES.lock().numbers.in_use()
}

/// See [`PROCESSES`].
pub struct Tree {
    by_id: RBTree<ById>,
    by_serial: RBTree<BySerial>,
    tasks: RBTree<task::ById>,
    numbers: Numbers,
    serials: u64,
    key: FamilyKey,
}

// SAFETY: the processes are accessed only under the lock, on whichever CPU holds it.
unsafe impl Send for Tree {}

/// Work that is left to do without the lock.
#[must_use = "dropped without the lock"]
#[derive(Default)]
pub struct Remains {
    /// A process to drop: no parent waits for it.
    process: Option<PoolBox<Process>>,
    /// The threads of another process to visit.
    visit: Option<Elsewhere>,
    /// The process that has ended, whose pollers are to be woken.
    ended: Option<Counted<Pidfd>>,
}

impl Remains {
    /// Does it.
    pub fn finish(self) {
        if let Some(ended) = self.ended {
            ended.wake();
        }
        drop(self.process);
        if let Some(visit) = self.visit {
            visit.finish();
        }
    }
}

/// Finds the first process that `look` knows, of those created after the one with the serial number `after`, which becomes
/// its. Without a lock: it is held for a few at a time. In the order of creation, so that a child created concurrently
/// comes after its parent.
pub fn next_where<R>(after: &mut u64, mut look: impl FnMut(&Tree, &Process) -> Option<R>) -> Option<R> {
    const BATCH: usize = 16;
    loop {
        // There may be any number of them.
        relax();
        let tree = PROCESSES.lock();
        for _ in 0..BATCH {
            let process = tree.by_serial.lower_bound(Bound::Excluded(&*after)).get()?;
            *after = process.serial();
            let found = look(&tree, process);
            if found.is_some() {
                return found;
            }
        }
    }
}

/// Whether there is a process with this number, or with a thread with it.
pub fn is_process(id: u32) -> bool {
    PROCESSES.lock().find_of_thread(id).is_some()
}

/// The space of the process that this number is of, or of one of its threads: `None` where there is no such process,
/// and in it `None` where its last thread has left.
pub fn space_of_thread(id: u32) -> Option<Option<SpaceRef>> {
    space_of(|tree| tree.find_of_thread(id))
}

/// The space of the process that is found, as [`space_of_thread`].
pub fn space_of(find: impl FnOnce(&Tree) -> Option<&Process>) -> Option<Option<SpaceRef>> {
    let space = find(&PROCESSES.lock())?.lock().space.clone();
    Some(unreleased(space))
}

/// A space that was found under locks, which are released: this may be the last reference by now.
pub fn unreleased(space: Option<SpaceRef>) -> Option<SpaceRef> {
    space.filter(|space| !space.notifiers().is_released())
}

/// The object that pidfds of the process with this number refer to.
///
/// # Errors
/// `ESRCH`: there is none. `ENOENT`: it is a thread's, and not the first one's. `ENOMEM`.
pub fn pidfd_of(id: u32) -> Result<Counted<Pidfd>, Errno> {
    // Dropped after the lock is released.
    let new = Pidfd::new(id)?;
    let tree = PROCESSES.lock();
    let Some(process) = tree.find(id) else {
        return Err(if tree.find_task(id).is_some() { Errno::ENOENT } else { Errno::ESRCH });
    };
    if matches!(process.lock().life, Life::Ended(_)) {
        new.set(Stage::Ended);
    }
    Ok(process.pidfd(&new).clone())
}

/// The stage of the life of the process that `pidfd` refers to; `None` once its status was collected.
pub fn life_of(pidfd: &Counted<Pidfd>) -> Option<Life> {
    PROCESSES.lock().find_by(pidfd).map(|process| process.lock().life)
}

/// The reserved number of a process or thread. Dropping it frees the number.
#[derive(Debug)]
pub struct Number(u32);

impl Number {
    /// The next one.
    ///
    /// # Errors
    /// `EAGAIN`: all are in use.
    pub fn reserve() -> Result<Self, Errno> {
        PROCESSES.lock().numbers.reserve().map(Self).ok_or(Errno::EAGAIN)
    }

    /// This one.
    ///
    /// # Errors
    /// `EINVAL`: none has it. `EEXIST`: it is in use.
    pub fn reserve_exactly(number: u32) -> Result<Self, Errno> {
        PROCESSES.lock().numbers.reserve_exactly(number).map(|()| Self(number))
    }

    /// The number.
    pub const fn get(&self) -> u32 {
        self.0
    }

    /// The number belongs to a process or a thread in the tree now, and is freed with it.
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        PROCESSES.lock().numbers.release(self.0);
    }
}

impl Tree {
    const fn new() -> Self {
        Self {
            by_id: RBTree::new(ById::NEW),
            by_serial: RBTree::new(BySerial::NEW),
            tasks: RBTree::new(task::ById::NEW),
            numbers: Numbers::new(),
            serials: 0,
            key: FamilyKey(()),
        }
    }

    /// Adds a process, as a child of `parent`. It stays until its status is collected.
    #[inline(never)]
    pub fn add(&mut self, process: PoolBox<Process>, parent: Parent, exit_signal: Option<Signal>) {
        let pointer = process.into_raw();
        // SAFETY: the tree owns it from now on, at a fixed address, until `remove` makes a box of it again.
        let (process, link) = unsafe { (pointer.as_ref(), || UnsafeRef::from_raw(pointer.as_ptr())) };
        self.serials += 1;
        process.serial.store(self.serials, Ordering::Relaxed);
        if process.family_serial() == 0 {
            process.family_serial.store(self.serials, Ordering::Relaxed);
        }
        if process.group() == 0 {
            process.group.store(process.id, Ordering::Relaxed);
            process.session.store(process.id, Ordering::Relaxed);
        }
        self.numbers.hold(process.group());
        self.numbers.hold(process.session());
        self.by_id.insert(link());
        self.by_serial.insert(link());
        if let Parent::Process(id) = parent
            && let Some(parent) = self.by_id.find(&id).get()
        {
            process.parent_id.store(id, Ordering::Relaxed);
            let family = parent.family(&mut self.key);
            family.running.push_back(link());
            family.children(exit_signal).running += 1;
        }
        let family = process.family(&mut self.key);
        (family.parent, family.exit_signal) = (parent, exit_signal);
    }

    /// Adds a thread to its process.
    pub fn add_task(&mut self, task: PoolBox<Task>) {
        let pointer = task.into_raw();
        // SAFETY: the lists own it from now on, until `remove_task`; it was in none.
        unsafe {
            self.tasks.insert(UnsafeRef::from_raw(pointer.as_ptr()));
            let task = pointer.as_ref();
            let mut state = task.process().lock();
            state.add(task);
            if state.stop.is_active() {
                task.thread().raise(Work::SIGNAL);
            }
        }
    }

    /// Removes a thread from its process; returns whether it was the last one, and the visit to the parent where all
    /// others have halted. The caller drops the task without the lock.
    pub fn remove_task(&mut self, task: &Task) -> (PoolBox<Task>, bool, Option<Elsewhere>) {
        let mut state = task.process().lock();
        state.add_time_of(task);
        // SAFETY: `add_task` added it to both, and made it from a box; nothing refers to it any more.
        let removed = unsafe {
            self.tasks.cursor_mut_from_ptr(task).remove();
            state.remove(task);
            PoolBox::from_raw(core::ptr::NonNull::from(task))
        };
        if !removed.is_main() {
            self.numbers.release(removed.id());
        }
        // Only now may the exec of another thread continue.
        if let Some(waiting) = state.survivor.and_then(|survivor| state.find(survivor)) {
            waiting.thread().unpark();
        }
        let threads = state.threads();
        let stopped = state.stop.complete(threads);
        drop(state);
        let process = removed.process();
        (removed, threads == 0, stopped.and_then(|stopped| jobs::notify(self, process, stopped)))
    }

    /// Gives the process's number to the thread that does an exec, if it is the only thread by now and is not exiting
    /// itself; else `false`.
    pub fn take_process_id(&mut self, task: &Task) -> bool {
        let mut state = task.process().lock();
        if state.threads() != 1 {
            return false;
        }
        state.survivor = None;
        state.forget_time();
        if !task.is_main() {
            // SAFETY: the task is in both, and goes back into both with its new number.
            unsafe {
                let link = self.tasks.cursor_mut_from_ptr(task).remove();
                state.remove(task);
                self.numbers.release(task.id());
                task.set_id(task.process().id());
                state.add(task);
                if let Some(link) = link {
                    self.tasks.insert(link);
                }
            }
        }
        true
    }

    /// The process with this number.
    pub fn find(&self, id: u32) -> Option<&Process> {
        self.by_id.find(&id).get()
    }

    /// The process with this number, or of the thread with it.
    pub fn find_of_thread(&self, id: u32) -> Option<&Process> {
        self.find(id).or_else(|| Some(self.find_task(id)?.process()))
    }

    /// The signal of the process with this number to its parent at its end.
    pub fn exit_signal(&mut self, id: u32) -> Option<Signal> {
        self.by_id.find(&id).get()?.family(&mut self.key).exit_signal
    }

    /// The process that `pidfd` refers to; `None` once its status was collected.
    pub fn find_by(&self, pidfd: &Counted<Pidfd>) -> Option<&Process> {
        self.find(pidfd.id).filter(|process| process.pidfd.get().is_some_and(|own| own.is(pidfd)))
    }

    /// The thread with this number.
    pub fn find_task(&self, id: u32) -> Option<&Task> {
        self.tasks.find(&id).get()
    }

    /// The process with the next larger number.
    pub fn after(&self, id: u32) -> Option<&Process> {
        self.by_id.lower_bound(Bound::Excluded(&id)).get()
    }

    /// Moves a process to a group of this session.
    pub fn move_to(&mut self, id: u32, group: u32, session: u32) {
        let Some(process) = self.by_id.find(&id).get() else { return };
        let numbers = [(&process.group, group), (&process.session, session)];
        for (place, number) in numbers.into_iter().filter(|(place, number)| place.load(Ordering::Relaxed) != *number) {
            self.numbers.hold(number);
            self.numbers.release(place.swap(number, Ordering::Relaxed));
        }
    }

    /// Its parent, and the signal for the parent at its end.
    pub fn parent(&mut self, process: &Process) -> (Parent, Option<Signal>) {
        let family = process.family(&mut self.key);
        (family.parent.clone(), family.exit_signal)
    }

    /// Makes this kernel thread the waiter of a process; returns whether the kernel started that process.
    pub fn wait_in_kernel(&mut self, id: u32, thread: ThreadRef) -> bool {
        let Some(process) = self.by_id.find(&id).get() else { return false };
        let family = process.family(&mut self.key);
        let is_own = matches!(family.parent, Parent::Kernel(_));
        if is_own {
            family.parent = Parent::Kernel(thread);
        }
        is_own
    }

    /// Makes a process that has a new program a child like others: its end sends SIGCHLD.
    pub fn become_normal(&mut self, process: &Process) {
        process.has_executed.store(true, Ordering::Relaxed);
        let family = process.family(&mut self.key);
        let before = family.exit_signal.replace(Signal::CHLD);
        if let Parent::Process(parent) = family.parent
            && let Some(parent) = self.by_id.find(&parent).get()
        {
            let family = parent.family(&mut self.key);
            family.children(before).running -= 1;
            family.normal.running += 1;
        }
    }

    /// Removes a process that has ended, and is in no list of its parent's.
    fn remove(&mut self, process: &Process) -> Option<PoolBox<Process>> {
        let pointer = core::ptr::from_ref(process);
        // SAFETY: it is in both trees, from `add` on.
        let removed = unsafe {
            self.by_serial.cursor_mut_from_ptr(pointer).remove();
            self.by_id.cursor_mut_from_ptr(pointer).remove()?
        };
        [removed.id, removed.group(), removed.session()].into_iter().for_each(|number| self.numbers.release(number));
        // SAFETY: `add` made it from a box, and no list has it any more.
        Some(unsafe { PoolBox::from_ref(removed) })
    }

    /// Ends a process that has lost its last thread.
    pub fn ended(&mut self, process: &Process) -> Remains {
        let status = {
            let mut state = process.lock();
            let status = match state.life {
                Life::Ending(status) | Life::Ended(status) => status,
                Life::Running => ProcessEnd::Exited(state.code),
            };
            state.life = Life::Ended(status);
            state.stop.end();
            status
        };
        let family = process.family(&mut self.key);
        family.status = Some(status);
        let exit_signal = family.exit_signal;
        let (kept, visit) = match family.parent.clone() {
            Parent::None => (false, None),
            Parent::Kernel(thread) => {
                thread.unpark();
                (true, None)
            }
            Parent::Process(parent) => self.notify_parent(process, parent, exit_signal, status),
        };
        let ended = process.pidfd.get().cloned();
        ended.iter().for_each(|pidfd| pidfd.set(Stage::Ended));
        Remains { process: if kept { None } else { self.remove(process) }, visit, ended }
    }

    /// Moves a child to those that have ended, sends the parent its signal, and wakes the parent if it waits. Returns
    /// whether the status is kept for it.
    fn notify_parent(
        &mut self,
        child: &Process,
        parent: u32,
        exit_signal: Option<Signal>,
        status: ProcessEnd,
    ) -> (bool, Option<Elsewhere>) {
        let Some(parent) = self.by_id.find(&parent).get() else { return (false, None) };
        let mut state = parent.lock();
        let (ignored, reaps) = state.handlers.with(|actions| (actions.ignores_children(), actions.reaps_children()));
        let collected = exit_signal == Some(Signal::CHLD) && reaps;
        let visit = match exit_signal {
            // Linux sends none where it is ignored explicitly, also where it is blocked (`do_notify_parent`).
            Some(Signal::CHLD) if ignored => Visit::NONE,
            Some(signal) => state.send(signal, Change::Ended(status).cause(child.id)),
            None => Visit::NONE,
        };
        drop(state);

        let family = parent.family(&mut self.key);
        family.children(exit_signal).running -= 1;
        // SAFETY: a child that has not ended is in this list; the tree owns it as long as it is in a list.
        let link = unsafe { family.running.cursor_mut_from_ptr(child) }.remove();
        let kept = !collected && !family.gone;
        if kept && let Some(link) = link {
            family.children(exit_signal).ended.insert(link);
        }
        (kept, Elsewhere::of_parent(parent, visit))
    }

    /// Prepares the end of a process: its children have no parent from now on, and those that have ended are removed.
    /// Some of them for each call; `None` when there is none any more.
    pub fn orphan_children(&mut self, process: &Process) -> Option<Remains> {
        /// Children handled in each call.
        const BATCH: usize = 16;
        process.family(&mut self.key).gone = true;
        for _ in 0..BATCH {
            let Some(child) = process.family(&mut self.key).running.pop_front() else { break };
            child.family(&mut self.key).parent = Parent::None;
            child.parent_id.store(0, Ordering::Relaxed);
        }
        let family = process.family(&mut self.key);
        let ended = family.normal.ended.front_mut().remove();
        if let Some(ended) = ended.or_else(|| family.clones.ended.front_mut().remove()) {
            return Some(Remains { process: self.remove(&ended), ..Remains::default() });
        }
        (!family.running.is_empty()).then(Remains::default)
    }
}
