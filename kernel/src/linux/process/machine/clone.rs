//! New processes and threads: the first of a program, and those of `clone`.
//!
//! Everything that can fail comes first. Then the process and its thread are added to the tree in one step, so that no
//! signal finds one without the other.

#![allow(unsafe_code, reason = "tasks of threads, and the spaces that they run in")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::registers::{Readable as _, TPIDR_EL0};
use granule_abi::file::O_RDWR;
use granule_abi::limits::RLIMIT_NOFILE;
use granule_abi::process::{
    CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_CLEAR_SIGHAND, CLONE_FILES, CLONE_FS, CLONE_PARENT,
    CLONE_PARENT_SETTID, CLONE_PIDFD, CLONE_SETTLS, CLONE_SIGHAND, CLONE_THREAD, CLONE_VFORK, CLONE_VM,
};
use granule_abi::signal::SigStack;
use granule_arch::addr::VirtAddr;
use spin::Once;

use super::exec::Loaded;
use super::state::{Handlers, ProcessState};
use super::surroundings::OfProcess;
use super::task::Task;
use super::tree::{Number, PROCESSES, Parent, Process, Tree};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::open::{self, FileRef, Kind, OpenFile};
use crate::linux::file::pidfd::Pidfd;
use crate::linux::file::table::OnExec;
use crate::linux::process::clone_request::CloneRequest;
use crate::linux::process::limits::{Limits, ProcessSlot};
use crate::linux::process::signal::{Actions, Set, Signal};
use crate::linux::process::status::Name;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::mm::space::{Patience, SpaceRef, SpaceUser};
use crate::sched::{FpState, NewThread, NewUserThread, Thread, UserEntry, WaitQueue, Woken, uninterruptible};
use crate::smp::this_cpu;
use crate::trap::TrapFrame;
use crate::uaccess;

static VFORKS: Once<Pool<Inner<Vfork>>> = Once::new();

/// A thread that sleeps until the child leaves the shared space, by an exec or its exit.
#[derive(Default)]
pub struct Vfork {
    /// Changed under the lock of `parent`.
    is_done: AtomicBool,
    parent: WaitQueue<()>,
}

impl Vfork {
    #[inline(never)]
    fn new() -> Result<Counted<Self>, OutOfMemory> {
        let pool = VFORKS.call_once(|| Pool::new(kernel().frames));
        Counted::try_new(pool, Self::default())
    }

    /// The child has left the space.
    pub fn finish(&self) {
        let mut parent = self.parent.lock();
        self.is_done.store(true, Ordering::Relaxed);
        parent.wake_all();
    }

    /// Sleeps until then, or until the thread must exit. Other signals stay pending, as on Linux.
    fn wait(&self, task: &Task, thread: &Thread) {
        let parent = self.parent.lock();
        if !self.is_done.load(Ordering::Relaxed) {
            uninterruptible(|| parent.wait_while((), || task.is_killed(thread).then_some(Woken::Interrupted)));
        }
    }
}

/// The records of parents that wait for a vfork.
pub fn pool_stats() -> PoolStats {
    VFORKS.get().map_or_else(PoolStats::default, Pool::stats)
}

/// The process of a new thread.
enum TaskProcess {
    /// An existing one.
    Old(&'static Process),
    /// A new one, in no tree yet.
    New(PoolBox<Process>),
}

/// A task that is in no list yet, its thread, which does not run yet, and its process, if that is new too. Dropped
/// without a lock.
struct NewTask {
    task: PoolBox<Task>,
    thread: NewThread,
    process: Option<PoolBox<Process>>,
    number: Number,
}

/// The first registers of a thread.
struct FirstRegisters<'a> {
    frame: &'a TrapFrame,
    tls: u64,
    fp: Option<&'a FpState>,
}

impl NewTask {
    #[inline(never)]
    fn new(
        number: Number,
        host: TaskProcess,
        space: SpaceRef,
        (blocked, name): (Set, Name),
        registers: &FirstRegisters<'_>,
    ) -> Result<Self, Errno> {
        let (process, new) = match host {
            TaskProcess::Old(process) => (process, None),
            // SAFETY: it does not move. Only the task keeps this reference, and is dropped before the box, or goes into
            // the tree together with it.
            TaskProcess::New(process) => (unsafe { NonNull::from(&*process).as_ref() }, Some(process)),
        };
        let task = Task::new(number.get(), process, SpaceUser::new(space.clone()), blocked, name)?;
        let thread = NewUserThread {
            name: "program",
            entry: process.entry,
            frame: registers.frame,
            tls: registers.tls,
            space: space.into(),
            fp: registers.fp,
            task: (&raw const *task).cast_mut().cast(),
        };
        let thread = thread.create(this_cpu())?;
        task.set_thread(thread.to_ref());
        Ok(Self { task, thread, process: new, number })
    }

    /// Drops it. Out of line and by value, so that a caller need not keep it in memory.
    #[cold]
    #[inline(never)]
    fn discard(self) {}

    /// Adds it to the tree. A new process becomes a child of `parent`. Inlined, so that `self` stays in registers.
    #[inline(always)]
    fn join(self, tree: &mut Tree, parent: Parent, exit_signal: Option<Signal>) -> NewThread {
        if let Some(process) = self.process {
            tree.add(process, parent, exit_signal);
        }
        tree.add_task(self.task);
        self.number.keep();
        self.thread
    }
}

/// Starts a program as a new process, a child of `parent`, and returns its number. `entry` handles its exceptions.
///
/// # Errors
/// `ENOMEM`, `EAGAIN`; nothing stays allocated.
#[inline(never)]
pub fn start(entry: &'static UserEntry, loaded: Loaded, parent: Parent) -> Result<u32, Errno> {
    let limits = Limits::initial();
    let place = ProcessSlot::take(&limits)?;
    let number = Number::reserve()?;
    let id = number.get();
    let registers = FirstRegisters { frame: &loaded.frame(), tls: 0, fp: None };
    let state = ProcessState::new(id, loaded.name, loaded.space.clone(), loaded.handlers);
    let host = TaskProcess::New(Process::new(id, entry, state, &open::initial()?, &limits, place)?);
    let new_task = NewTask::new(number, host, loaded.space, (Set::EMPTY, loaded.name), &registers)?;
    let thread = new_task.join(&mut PROCESSES.lock(), parent, Some(Signal::CHLD));
    drop(thread.start());
    Ok(id)
}

/// Makes a process or a thread that continues where the caller does, with 0 as the result; returns its number.
///
/// # Errors
/// `EINVAL`, `ENOMEM`, `EAGAIN`; `EEXIST` (the number that is asked for), `EMFILE` and `EFAULT` (its pidfd). Nothing stays
/// allocated.
pub fn clone(task: &Task, thread: &Thread, frame: &TrapFrame, request: &CloneRequest) -> Result<u32, Errno> {
    let place = ProcessSlot::take(&task.process().limits)?;
    let number = request.number.map_or_else(Number::reserve, Number::reserve_exactly)?;
    let id = number.get();
    let vfork = if request.has(CLONE_VFORK) { Some(Vfork::new()?) } else { None };
    let (host, space, place) = if request.has(CLONE_THREAD) {
        (TaskProcess::Old(task.process()), task.space_ref(), Some(place))
    } else {
        let (host, space) = make_child(task, request, id, place)?;
        (host, space, None)
    };
    if request.has(CLONE_CHILD_SETTID) {
        let child_id = VirtAddr(request.child_id);
        // As on Linux, a bad child_tid is ignored. A tag is accepted where the caller's calls accept one: the child's
        // will, too.
        if uaccess::is_user_range(child_id, size_of::<u32>()) {
            let is_killed = || task.is_killed(thread);
            let patience = Patience::WithPager(&is_killed);
            let _ = space.write_bytes_within(this_cpu(), child_id.untagged(), &id.to_le_bytes(), patience);
        }
    }
    let new_task = copy_thread(task, thread, frame, request, number, host, space)?;
    new_task.task.place.set(place);
    new_task.task.vfork.set(vfork.clone());
    // After its descriptors were copied: the child has none for itself.
    let given = if request.has(CLONE_PIDFD) { refer(task, request, id, &new_task)? } else { None };
    let child = match publish(task, request, request.exit_signal, new_task) {
        Ok(child) => child,
        Err(error) => {
            given.iter().for_each(|(at, file)| task.files().take_back(*at, file));
            return Err(error);
        }
    };
    if request.has(CLONE_PARENT_SETTID) {
        // Stored in the parent's memory only; as on Linux, a bad address is ignored.
        let _ = uaccess::copy_to_user(VirtAddr(request.parent_id), &id.to_le_bytes());
    }
    drop(child.start());
    // A shortage on the way was overcome.
    thread.take_shortage();
    if let Some(vfork) = vfork {
        vfork.wait(task, thread);
    }
    Ok(id)
}

/// Makes a process without a thread, and the space for its first one.
#[inline(never)]
fn make_child(
    task: &Task,
    request: &CloneRequest,
    id: u32,
    place: ProcessSlot,
) -> Result<(TaskProcess, SpaceRef), Errno> {
    let space = if request.has(CLONE_VM) { task.space_ref() } else { task.space().fork(this_cpu())? };
    let own = task.process();
    let handlers = own.lock().handlers.clone();
    let handlers = if request.has(CLONE_SIGHAND) { handlers } else { handlers.copy()? };
    if request.has(CLONE_CLEAR_SIGHAND) {
        forget(&handlers);
    }
    let state = ProcessState::new(id, task.name.get(), space.clone(), handlers);
    let process = Process::new(id, own.entry, state, task.files(), &own.limits, place)?;
    Ok((TaskProcess::New(process), space))
}

/// Restores the default actions where there are handlers, as an exec does.
#[cold]
#[inline(never)]
fn forget(handlers: &Handlers) {
    handlers.with(Actions::exec);
}

/// Opens a file that refers to a new process, and stores its descriptor; returns both.
#[cold]
#[inline(never)]
fn refer(task: &Task, request: &CloneRequest, id: u32, new_task: &NewTask) -> Result<Option<(u32, FileRef)>, Errno> {
    let Some(process) = new_task.process.as_deref() else { return Ok(None) };
    let file = OpenFile::new(Kind::Process(process.pidfd(&Pidfd::new(id)?).clone()), O_RDWR)?;
    let descriptor = task.files().add(file.clone(), 0, task.process().limits.soft(RLIMIT_NOFILE), OnExec::Close)?;
    let stored = uaccess::copy_to_user(VirtAddr(request.pidfd), &descriptor.to_le_bytes());
    stored.inspect_err(|_| task.files().take_back(descriptor, &file))?;
    Ok(Some((descriptor, file)))
}

/// A thread that continues where the caller does.
#[inline(never)]
fn copy_thread(
    task: &Task,
    thread: &Thread,
    frame: &TrapFrame,
    request: &CloneRequest,
    number: Number,
    host: TaskProcess,
    space: SpaceRef,
) -> Result<NewTask, Errno> {
    let mut frame = frame.clone();
    frame.x[0] = 0;
    if request.stack != 0 {
        frame.sp = request.stack;
    }
    let tls = if request.has(CLONE_SETTLS) { request.tls } else { TPIDR_EL0.get() };
    let fp = thread.fp_state();
    let registers = FirstRegisters { frame: &frame, tls, fp: fp.as_ref() };
    let new_task = NewTask::new(number, host, space, (task.blocked(), task.name.get()), &registers)?;
    let shared = share_files(task, request, new_task.process.as_deref(), &new_task.task);
    if let Err(error) = shared.and_then(|()| share_surroundings(task, request, &new_task)) {
        new_task.discard();
        return Err(error.into());
    }
    new_task.task.clear_at_exit.set(if request.has(CLONE_CHILD_CLEARTID) { request.child_id } else { 0 });
    new_task.task.personality.set(task.personality.get());
    new_task.task.policy.set(task.policy.get());
    new_task.task.capabilities.inherit(&task.capabilities);
    if !request.has(CLONE_VM) {
        task.rseq.get().inherit(&new_task.task);
    }
    // Two threads cannot share an alternative stack.
    let shares_stack = request.has(CLONE_VM) && !request.has(CLONE_VFORK);
    new_task.task.stack.set(if shares_stack { SigStack::NONE } else { task.stack.get() });
    Ok(new_task)
}

/// Gives a new thread its descriptors: a new process has a copy already, and a thread of this one has the process's.
fn share_files(
    task: &Task,
    request: &CloneRequest,
    new_process: Option<&Process>,
    new_task: &Task,
) -> Result<(), OutOfMemory> {
    let own = match (new_process, request.has(CLONE_FILES)) {
        (Some(process), true) => return process.files.share(task.files()),
        (Some(_), false) => return Ok(()),
        (None, true) => task.own_files.get().cloned(),
        (None, false) => Some(task.files().fork().counted()?),
    };
    if let Some(own) = own {
        new_task.own_files.call_once(|| own);
    }
    Ok(())
}

/// Gives a new thread its surroundings: none, where the caller has none and shares none.
#[inline(always)]
fn share_surroundings(task: &Task, request: &CloneRequest, new_task: &NewTask) -> Result<(), OutOfMemory> {
    let is_plain = !task.has_surroundings() && !request.has(CLONE_FS) && !request.has(CLONE_THREAD);
    if is_plain { Ok(()) } else { give_surroundings(task, request, new_task) }
}

#[cold]
#[inline(never)]
fn give_surroundings(task: &Task, request: &CloneRequest, new_task: &NewTask) -> Result<(), OutOfMemory> {
    let shares = request.has(CLONE_FS);
    if let Some(process) = new_task.process.as_deref() {
        let own = task.own_surroundings()?;
        let own = if shares { own } else { own.copy()? };
        process.surroundings.call_once(|| OfProcess::new(own));
        return Ok(());
    }
    let own = match task.apart.get() {
        _ if !shares => task.own_surroundings()?.copy()?,
        Some(apart) => apart.clone(),
        None => return Ok(()),
    };
    new_task.task.apart.call_once(|| own);
    Ok(())
}

/// Adds a new process or thread to the tree, unless the caller must exit itself: an ending process gets no new threads,
/// and a killed one leaves no new child.
fn publish(
    task: &Task,
    request: &CloneRequest,
    exit_signal: Option<Signal>,
    new_task: NewTask,
) -> Result<NewThread, Errno> {
    let mut tree = PROCESSES.lock();
    if task.process().lock().is_ending(task) {
        drop(tree);
        // Without the lock. EL0 never sees the result.
        new_task.discard();
        return Err(Errno::EAGAIN);
    }
    let (parent, exit_signal) = if request.has(CLONE_PARENT) {
        // For a parent that did not create it, the child has the signal with which the creator was made itself.
        match tree.parent(task.process()) {
            (Parent::Process(parent), signal) => (Parent::Process(parent), signal),
            (_, signal) => (Parent::None, signal),
        }
    } else {
        (Parent::Process(task.process().id()), exit_signal)
    };
    if let Some(process) = &new_task.process {
        process.descend_from(task.process());
    }
    Ok(new_task.join(&mut tree, parent, exit_signal))
}
