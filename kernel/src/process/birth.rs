//! New processes and threads: the first of a program, and those that `clone` makes.

use aarch64_cpu::registers::{Readable as _, TPIDR_EL0};
use granule_abi::process::{
    CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_DETACHED, CLONE_FILES, CLONE_FS, CLONE_PARENT, CLONE_PARENT_SETTID,
    CLONE_SETTLS, CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_THREAD, CLONE_UNTRACED, CLONE_VFORK, CLONE_VM, CSIGNAL,
};
use granule_abi::signal::SigStack;
use granule_arch::addr::VirtAddr;
use intrusive_collections::UnsafeRef;

use super::exec::Loaded;
use super::limits::{Limits, Place};
use super::signal::{Set, Signal};
use super::status::Name;
use super::task::Task;
use super::tree::{Heap, PROCESSES, Parent, Process, State};
use crate::errno::Errno;
use crate::mm::pool::PoolBox;
use crate::mm::space::SpaceRef;
use crate::sched::{FpState, NewUserThread, Thread, ThreadRef, current, park};
use crate::smp::this_cpu;
use crate::trap::TrapFrame;
use crate::uaccess;

/// What `clone` understands. The flags for files, directories and semaphores have nothing to share here.
const KNOWN: u64 = CSIGNAL
    | CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_VFORK
    | CLONE_PARENT
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_UNTRACED
    | CLONE_CHILD_SETTID;

/// The arguments of `clone`, in arm64's order.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// `CLONE_` flags, and the signal of the child's end.
    pub flags: u64,
    /// The child's SP; 0: as the caller's.
    pub stack: u64,
    /// Where the child's number goes for the parent.
    pub parent_id: u64,
    /// The child's thread pointer.
    pub tls: u64,
    /// The child's word that its number goes to, and that is zeroed at its end.
    pub child_id: u64,
}

impl Request {
    const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Refuses what has no meaning, and what does not exist here.
    fn check(&self) -> Result<Option<Signal>, Errno> {
        if self.flags & !KNOWN != 0
            || self.has(CLONE_THREAD) && !self.has(CLONE_SIGHAND)
            || self.has(CLONE_SIGHAND) && !self.has(CLONE_VM)
        {
            return Err(Errno::EINVAL);
        }
        match self.flags & CSIGNAL {
            0 => Ok(None),
            number => Signal::new(number).map(Some).ok_or(Errno::EINVAL),
        }
    }
}

/// A task that nobody knows yet, and its thread, which does not run yet.
struct Newborn {
    task: PoolBox<Task>,
    thread: ThreadRef,
}

/// What a thread begins with.
struct Registers {
    frame: TrapFrame,
    tls: u64,
    fp: Option<FpState>,
}

#[inline(never)]
fn conceive(
    id: u32,
    process: &'static Process,
    space: SpaceRef,
    blocked: Set,
    registers: Registers,
) -> Result<Newborn, Errno> {
    let task = Task::new(id, process, space.clone(), blocked)?;
    let new = NewUserThread {
        name: "program",
        entry: &super::ENTRY,
        frame: registers.frame,
        tls: registers.tls,
        space,
        fp: registers.fp,
        task: (&raw const *task).cast_mut().cast(),
    };
    let thread = new.create(this_cpu())?;
    task.set_thread(thread.clone());
    Ok(Newborn { task, thread })
}

impl Newborn {
    /// Puts the task among those of its process.
    fn join(self, state: &mut State) -> ThreadRef {
        // SAFETY: the list owns it from now on; the thread takes it out, as a box, when it leaves the process.
        state.tasks.push_back(unsafe { UnsafeRef::from_raw(self.task.into_raw().as_ptr()) });
        self.thread
    }
}

/// A number for a process or a thread.
fn new_id() -> u32 {
    PROCESSES.lock().new_id()
}

/// Adds a process that has no task yet.
fn add(id: u32, heap: Heap, state: State, limits: Limits, place: Place) -> Result<&'static Process, Errno> {
    let process = Process::new(id, heap, state, limits, place)?;
    Ok(PROCESSES.lock().add(process))
}

/// Takes a process back that never had a task.
fn remove(process: &Process) {
    let removed = PROCESSES.lock().remove(process.id());
    drop(removed);
}

/// Starts a program as a new process, and returns its number.
///
/// # Errors
/// `ENOMEM`, `EAGAIN`; nothing stays taken.
#[inline(never)]
pub fn start(loaded: Loaded, parent: Parent) -> Result<u32, Errno> {
    let id = new_id();
    let registers = Registers { frame: loaded.frame(), tls: 0, fp: None };
    let limits = Limits::initial();
    let place = Place::take(&limits)?;
    let state = State::new(parent, loaded.name, loaded.space.clone())?;
    let process = add(id, loaded.heap, state, limits, place)?;
    let newborn = conceive(id, process, loaded.space, Set::EMPTY, registers).inspect_err(|_| remove(process))?;
    let thread = newborn.join(process.state(&mut PROCESSES.lock().key));
    thread.start();
    Ok(id)
}

/// Makes a process or a thread that goes on where the caller does, with 0 as the answer; returns its number.
///
/// # Errors
/// `EINVAL`, `EAGAIN`, `ENOMEM`, `EFAULT`; nothing stays taken.
pub fn clone(task: &Task, thread: &Thread, frame: &TrapFrame, request: &Request) -> Result<u32, Errno> {
    let exit_signal = request.check()?;
    let mut place = Some(Place::take(&task.process().limits)?);
    let id = new_id();
    if request.has(CLONE_PARENT_SETTID) {
        uaccess::put_u32(VirtAddr(request.parent_id), id)?;
    }
    let (process, space) = if request.has(CLONE_THREAD) {
        (task.process(), task.space_ref())
    } else {
        make_child(task, request, id, exit_signal, place.take())?
    };
    if request.has(CLONE_CHILD_SETTID) {
        // As on Linux nobody hears of it if that is no place of the child's.
        let _ = space.write_bytes(this_cpu(), VirtAddr(request.child_id), &id.to_le_bytes());
    }
    let started = start_copy(task, thread, frame, request, id, (process, space), place);
    if started.is_err() && !request.has(CLONE_THREAD) {
        remove(process);
    }
    started?;
    if request.has(CLONE_VFORK) {
        wait_for_vfork(id);
    }
    Ok(id)
}

/// Makes a child without a thread, and gets the space for its first one.
#[inline(never)]
fn make_child(
    task: &Task,
    request: &Request,
    id: u32,
    exit_signal: Option<Signal>,
    place: Option<Place>,
) -> Result<(&'static Process, SpaceRef), Errno> {
    let space = if request.has(CLONE_VM) { task.space_ref() } else { task.space().fork(this_cpu())? };
    let heap = *task.process().heap.read();
    let mut state = State::new(Parent::Nobody, Name::whole(b""), space.clone())?;
    state.exit_signal = exit_signal;
    state.suspends = request.has(CLONE_VFORK).then(|| current().to_ref());
    {
        let mut tree = PROCESSES.lock();
        let own = task.process().state(&mut tree.key);
        state.parent = match &own.parent {
            Parent::Process(parent) if request.has(CLONE_PARENT) => Parent::Process(*parent),
            _ if request.has(CLONE_PARENT) => Parent::Nobody,
            _ => Parent::Process(task.process().id()),
        };
        if request.has(CLONE_PARENT) {
            // A parent that did not ask for this child hears of its end by the signal that it did ask for.
            state.exit_signal = own.exit_signal;
        }
        state.name = own.name;
        state.signals.actions.copy_from(&own.signals.actions);
    }
    let place = place.ok_or(Errno::EAGAIN)?;
    Ok((add(id, heap, state, task.process().limits.copy(), place)?, space))
}

/// Starts a thread of `process` that goes on where the caller does.
#[inline(never)]
fn start_copy(
    task: &Task,
    thread: &Thread,
    frame: &TrapFrame,
    request: &Request,
    id: u32,
    (process, space): (&'static Process, SpaceRef),
    place: Option<Place>,
) -> Result<(), Errno> {
    let mut frame = frame.clone();
    frame.x[0] = 0;
    if request.stack != 0 {
        frame.sp = request.stack;
    }
    let tls = if request.has(CLONE_SETTLS) { request.tls } else { TPIDR_EL0.get() };
    let registers = Registers { frame, tls, fp: thread.fp_state() };
    let newborn = conceive(id, process, space, task.blocked(), registers)?;
    newborn.task.place.set(place);
    newborn.task.clear_at_exit.set(if request.has(CLONE_CHILD_CLEARTID) { request.child_id } else { 0 });
    // A stack for handlers cannot be two threads' at a time.
    let shares_stack = request.has(CLONE_VM) && !request.has(CLONE_VFORK);
    newborn.task.stack.set(if shares_stack { SigStack::NONE } else { task.stack.get() });

    let joined = {
        let mut tree = PROCESSES.lock();
        // A process that is ending gets no new threads: the caller is about to be told so itself.
        let ends = request.has(CLONE_THREAD) && process.state(&mut tree.key).is_ending(task);
        if ends { Err(newborn) } else { Ok(newborn.join(process.state(&mut tree.key))) }
    };
    // What was not to be goes without the lock.
    joined.map(|child| child.start()).map_err(|_| Errno::EAGAIN)
}

/// Sleeps until a child has left the space that it shares with this thread.
fn wait_for_vfork(child: u32) {
    loop {
        let waits = {
            let mut tree = PROCESSES.lock();
            tree.find(child).is_some_and(|(process, key)| process.state(key).suspends.is_some())
        };
        if !waits {
            return;
        }
        park();
    }
}
