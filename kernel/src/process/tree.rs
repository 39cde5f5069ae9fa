//! All processes: whose child each is, which threads it has, what signals wait for it, and how it ended.
//!
//! One lock guards all of that, [`PROCESSES`]: what it guards is touched on the way into a process and out of it, never
//! by a fault or by a call for memory. Nothing is allocated, freed or slept on under it; what has been taken out of the
//! tree is dropped when the lock is gone.
//!
//! # The end of a process
//! Its last thread leaves the address space, then the list; only then is the process *ended*, so that who waits for it
//! finds its memory free. Until somebody collects the status it stays in the tree. A parent that does not care, or has
//! gone itself, collects at once.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use granule_abi::signal::{CLD_EXITED, CLD_KILLED};
use intrusive_collections::{Bound, KeyAdapter, LinkedList, RBTree, RBTreeLink, UnsafeRef};
use spin::Once;

use super::limits::{Limits, Place};
use super::signal::{Actions, Cause, Effect, Pending, Signal};
use super::status::{End, Life, Name};
use super::task::{InProcess, Task};
use crate::errno::Errno;
use crate::kernel;
use crate::mm::OutOfMemory;
use crate::mm::pool::{Pool, PoolBox};
use crate::mm::space::SpaceRef;
use crate::sched::ThreadRef;
use crate::smp::this_cpu;
use crate::sync::{IrqLock, RwSem, rank};

/// All processes.
pub static PROCESSES: IrqLock<Tree, { rank::PROCESS }> = IrqLock::new(Tree::new());

static POOL: Once<Pool<Process>> = Once::new();
static SIGNALS: Once<Pool<Signals>> = Once::new();

/// Who collects the status of a process.
#[derive(Debug)]
pub enum Parent {
    /// Nobody: it is gone when it ends.
    Nobody,
    /// The kernel; this thread is woken.
    Kernel(ThreadRef),
    /// The process with this number.
    Process(u32),
}

/// Where the heap is that `brk` moves the end of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heap {
    /// Where it begins.
    pub start: u64,
    /// Its end as the program asked for it.
    pub end: u64,
}

/// One process. It is in the tree from its birth until its status has been collected, and each of its tasks may rely on
/// that.
pub struct Process {
    id: u32,
    link: RBTreeLink,
    /// See [`Heap`].
    pub heap: RwSem<Heap>,
    /// What [`State::parent`] says, for who asks without the lock.
    parent_id: AtomicU32,
    /// What it may have at most.
    pub limits: Limits,
    /// Its first task's; the other tasks have theirs.
    _place: Place,
    /// It was to end because memory was gone, and did not within the time that others wait for that.
    pub outlives_its_end: AtomicBool,
    state: UnsafeCell<State>,
}

// SAFETY: `state` is reached through the tree's key alone, which is behind the lock; the link is the tree's.
unsafe impl Sync for Process {}
// SAFETY: nothing in it belongs to a CPU.
unsafe impl Send for Process {}

/// What happens on a process's signals, and which wait.
pub struct Signals {
    /// What happens on each.
    pub actions: Actions,
    /// For whichever thread does not block them.
    pub pending: Pending,
}

/// What the lock guards of each process.
pub struct State {
    /// Who collects its status.
    pub parent: Parent,
    /// Where it is in its life.
    pub life: Life,
    /// What its first thread exited with: the code of a process whose threads leave one by one.
    pub code: u8,
    /// Its threads.
    pub tasks: LinkedList<InProcess>,
    /// Its signals. By themselves because they are large: a state is handed from function to function at its birth, on a
    /// kernel's stack.
    pub signals: PoolBox<Signals>,
    /// What its parent is sent at its end.
    pub exit_signal: Option<Signal>,
    /// What it is called.
    pub name: Name,
    /// How long threads that have left had a CPU, in counts of the timer.
    pub left_time: u64,
    /// Its address space, for those who look at it; none once it is ending.
    pub space: Option<SpaceRef>,
    /// The thread that does an exec: all others are to exit.
    pub survivor: Option<u32>,
    /// Who waits for it to leave the space that they share (CLONE_VFORK).
    pub suspends: Option<ThreadRef>,
}

impl State {
    /// How long its threads have had a CPU, those that have left included, in counts of the timer.
    pub fn cpu_time(&self) -> u64 {
        self.tasks.iter().fold(self.left_time, |sum, task| sum.wrapping_add(task.thread().cpu_time()))
    }

    /// Of a process without threads, with the default actions.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays taken.
    #[inline(never)]
    pub fn new(parent: Parent, name: Name, space: SpaceRef) -> Result<Self, OutOfMemory> {
        let signals = default_signals()?;
        Ok(Self {
            parent,
            left_time: 0,
            life: Life::Running,
            code: 0,
            tasks: LinkedList::new(InProcess::new()),
            signals,
            exit_signal: Some(Signal::CHLD),
            name,
            space: Some(space),
            survivor: None,
            suspends: None,
        })
    }

    /// Has all threads exit. Nothing new if they are exiting already.
    pub fn end(&mut self, status: End) {
        if self.life == Life::Running {
            self.life = Life::Ending(status);
            self.tasks.iter().for_each(Task::kick);
        }
    }

    /// Wakes the parent that a vfork has suspended, if one is.
    pub fn resume_parent(&mut self) {
        if let Some(parent) = self.suspends.take() {
            parent.unpark();
        }
    }
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{Process, RBTreeLink, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) ById = UnsafeRef<Process>: Process { link => RBTreeLink });
}
use adapter::ById;

impl<'a> KeyAdapter<'a> for ById {
    type Key = u32;
    fn get_key(&self, process: &'a Process) -> u32 {
        process.id
    }
}

/// Opens what the lock guards of a process and of its tasks. There is one key, in the tree: so whoever has it has the
/// lock, and one state at a time.
pub struct Key(());

impl Process {
    /// A process that is in no tree yet, with a number of its own.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays taken.
    #[inline(never)]
    pub fn new(id: u32, heap: Heap, state: State, limits: Limits, place: Place) -> Result<PoolBox<Self>, OutOfMemory> {
        let pool = POOL.call_once(|| Pool::new(kernel().frames));
        let parent_id = match state.parent {
            Parent::Process(parent) => AtomicU32::new(parent),
            Parent::Kernel(_) | Parent::Nobody => AtomicU32::new(0),
        };
        let (link, heap) = (RBTreeLink::new(), RwSem::new(heap));
        pool.try_new(Self {
            id,
            link,
            heap,
            parent_id,
            limits,
            _place: place,
            outlives_its_end: AtomicBool::new(false),
            state: UnsafeCell::new(state),
        })
    }

    /// Its parent's number; 0 where that is the kernel, or gone.
    pub fn parent_id(&self) -> u32 {
        self.parent_id.load(Ordering::Relaxed)
    }

    /// Its number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// What the lock guards.
    pub fn state<'k>(&'k self, _key: &'k mut Key) -> &'k mut State {
        // SAFETY: there is one key, borrowed for as long as the result.
        unsafe { &mut *self.state.get() }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.id)
    }
}

#[inline(never)]
fn default_signals() -> Result<PoolBox<Signals>, OutOfMemory> {
    let pool = SIGNALS.call_once(|| Pool::new(kernel().frames));
    pool.try_new(Signals { actions: Actions::new(), pending: Pending::new() })
}

/// Frames that processes keep: for accounts of who has which frames.
pub fn kept_frames() -> usize {
    POOL.get().map_or(0, |pool| pool.stats().frames) + SIGNALS.get().map_or(0, |pool| pool.stats().frames)
}

/// See [`PROCESSES`].
pub struct Tree {
    by_id: RBTree<ById>,
    /// See [`Key`].
    pub key: Key,
    last_id: u32,
}

// SAFETY: the processes are reached through the lock, on whichever CPU holds it.
unsafe impl Send for Tree {}

/// A process's end, as its parent's signal tells of it.
fn cause_of(id: u32, status: End) -> Cause {
    match status {
        End::Exited(code) => Cause::child(CLD_EXITED, id, i32::from(code)),
        End::Killed(signal) => Cause::child(CLD_KILLED, id, signal.number() as i32),
    }
}

/// What waiting for a child comes to.
pub enum Child {
    /// There is none to wait for.
    None,
    /// None has ended.
    Running,
    /// This one has. It is out of the tree.
    Ended {
        /// Its number.
        id: u32,
        /// How it ended.
        status: End,
        /// To be dropped without the lock.
        process: PoolBox<Process>,
    },
}

impl Tree {
    const fn new() -> Self {
        Self { by_id: RBTree::new(ById::NEW), key: Key(()), last_id: 0 }
    }

    /// A number that no process or thread has had before.
    pub fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Adds a process. It stays until its status is collected.
    pub fn add(&mut self, process: PoolBox<Process>) -> &'static Process {
        let pointer = process.into_raw();
        // SAFETY: the tree owns it from now on; it comes out again as a box in `remove`.
        self.by_id.insert(unsafe { UnsafeRef::from_raw(pointer.as_ptr()) });
        // SAFETY: it stays where it is until `remove`, which no task of it lives to see; others find it through the tree.
        unsafe { pointer.as_ref() }
    }

    /// The process with this number, and the key to it.
    pub fn find(&mut self, id: u32) -> Option<(&Process, &mut Key)> {
        Some((self.by_id.find(&id).get()?, &mut self.key))
    }

    /// The process with the next number above this one, and the key to it: for who goes through all of them, and does not
    /// hold the lock for so long.
    pub fn next_after(&mut self, id: u32) -> Option<(&Process, &mut Key)> {
        Some((self.by_id.lower_bound(Bound::Excluded(&id)).get()?, &mut self.key))
    }

    /// Calls `each` for every process, by number, until it gives something.
    pub fn find_map<R>(&mut self, mut each: impl FnMut(&Process, &mut State) -> Option<R>) -> Option<R> {
        self.by_id.iter().find_map(|process| each(process, process.state(&mut self.key)))
    }

    /// Whether some process runs in a space.
    pub fn is_used(&mut self, space: &SpaceRef) -> bool {
        self.find_map(|_, state| state.space.as_ref().is_some_and(|other| other.is(space)).then_some(())).is_some()
    }

    /// Takes a process out that has ended.
    pub fn remove(&mut self, id: u32) -> Option<PoolBox<Process>> {
        let removed = self.by_id.find_mut(&id).remove()?;
        // SAFETY: `add` made it from a box, and the tree has let go of it.
        Some(unsafe { PoolBox::from_raw(core::ptr::NonNull::new_unchecked(UnsafeRef::into_raw(removed))) })
    }

    /// A process has lost its last thread. What is returned is gone from the tree, for the caller to drop without the
    /// lock.
    #[must_use = "dropped without the lock"]
    pub fn ended(&mut self, id: u32) -> Option<PoolBox<Process>> {
        let (process, key) = self.find(id)?;
        let state = process.state(key);
        let status = match state.life {
            Life::Ending(status) | Life::Ended(status) => status,
            Life::Running => End::Exited(state.code),
        };
        state.life = Life::Ended(status);
        state.resume_parent();
        let exit_signal = state.exit_signal;
        let kept = match &state.parent {
            Parent::Nobody => false,
            Parent::Kernel(thread) => {
                thread.unpark();
                true
            }
            &Parent::Process(parent) => self.tell_parent(parent, exit_signal, cause_of(id, status)),
        };
        if kept { None } else { self.remove(id) }
    }

    /// Sends the parent its signal, and wakes it if it waits. Whether the status is to be kept for it.
    fn tell_parent(&mut self, parent: u32, exit_signal: Option<Signal>, cause: Cause) -> bool {
        let Some((process, key)) = self.find(parent) else { return false };
        let state = process.state(key);
        let collected = exit_signal == Some(Signal::CHLD) && state.signals.actions.reaps_children();
        if let Some(signal) = exit_signal {
            state.send(signal, cause);
        }
        state.tasks.iter().for_each(|task| task.thread().unpark());
        !collected
    }

    /// A process is about to have no thread: its children are nobody's, and those that have ended go, one for each call
    /// until there is none.
    #[must_use = "dropped without the lock"]
    pub fn orphan_children(&mut self, id: u32) -> Option<PoolBox<Process>> {
        let ended = self.find_map(|process, state| {
            if !matches!(state.parent, Parent::Process(parent) if parent == id) {
                return None;
            }
            state.parent = Parent::Nobody;
            process.parent_id.store(0, Ordering::Relaxed);
            matches!(state.life, Life::Ended(_)).then_some(process.id)
        })?;
        self.remove(ended)
    }

    /// Looks for a child of `parent` that has ended, among those that `wanted` takes; `wanted` gets the number and the
    /// signal of the child's end.
    pub fn collect(&mut self, parent: u32, wanted: impl Fn(u32, Option<Signal>) -> bool) -> Child {
        let mut any = false;
        let ended = self.find_map(|process, state| {
            let mine = matches!(state.parent, Parent::Process(number) if number == parent);
            if !mine || !wanted(process.id, state.exit_signal) {
                return None;
            }
            any = true;
            match state.life {
                Life::Ended(status) => Some((process.id, status)),
                _ => None,
            }
        });
        match ended {
            None if any => Child::Running,
            None => Child::None,
            Some((id, status)) => match self.remove(id) {
                Some(process) => Child::Ended { id, status, process },
                None => Child::None,
            },
        }
    }

    /// Takes the status of a process of the kernel's, once it has ended.
    pub fn collect_own(&mut self, id: u32) -> Child {
        let Some((process, key)) = self.find(id) else { return Child::None };
        match process.state(key).life {
            Life::Ended(status) => match self.remove(id) {
                Some(process) => Child::Ended { id, status, process },
                None => Child::None,
            },
            _ => Child::Running,
        }
    }
}

impl State {
    /// The task with this number, if it is one of this process's.
    pub fn find_task(&self, id: u32) -> Option<&Task> {
        self.tasks.iter().find(|task| task.id() == id)
    }

    /// Forgets a signal that waits, for the process or for one of its tasks.
    pub fn forget(&self, signal: Signal) {
        self.signals.pending.remove(signal);
        self.tasks.iter().for_each(|task| task.pending(self).remove(signal));
    }

    /// Sends a signal to the process: some thread that does not block it will see to it.
    pub fn send(&self, signal: Signal, cause: Cause) {
        if matches!(self.life, Life::Ended(_)) {
            return;
        }
        let open = |task: &&Task| !task.blocked().has(signal);
        // An ignored signal waits only where it is blocked: the action may be another when it is unblocked.
        if self.signals.actions.effect(signal) == Effect::Ignored && self.tasks.iter().any(|task| open(&task)) {
            return;
        }
        self.signals.pending.add(signal, cause);
        if let Some(task) = self.tasks.iter().find(open) {
            task.kick();
        }
    }
}

/// Lets go of the space that a process ran in. What is mapped there goes now if no other process runs in it: those who
/// only look at a space keep the space, not its memory.
pub fn let_go(space: Option<SpaceRef>) {
    let Some(space) = space else { return };
    if !PROCESSES.lock().is_used(&space) {
        space.release(this_cpu());
    }
}

/// Sends a signal to the process with this number.
///
/// # Errors
/// `ESRCH`.
pub fn send(id: u32, signal: Option<Signal>, cause: Cause) -> Result<(), Errno> {
    let mut tree = PROCESSES.lock();
    let (process, key) = tree.find(id).ok_or(Errno::ESRCH)?;
    if let Some(signal) = signal {
        process.state(key).send(signal, cause);
    }
    Ok(())
}
