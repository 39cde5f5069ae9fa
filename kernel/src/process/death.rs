//! The end of threads and processes, and who waits for it.

use core::ptr::NonNull;

use granule_abi::process::{WALL, WCLONE, WCONTINUED, WNOHANG, WNOTHREAD, WUNTRACED};
use granule_arch::addr::VirtAddr;

use super::futex;
use super::signal::Signal;
use super::status::{End, Life};
use super::task::Task;
use super::tree::{self, Child, PROCESSES, State};
use crate::errno::Errno;
use crate::mm::pool::PoolBox;
use crate::sched::{self, Thread, Work, park};
use crate::uaccess;

/// What `wait4` understands. Nothing stops a process here, so there is nothing to tell of.
const OPTIONS: u64 = WNOHANG | WUNTRACED | WCONTINUED | WNOTHREAD | WALL | WCLONE;

/// Ends the running thread; the process with it if it was the last one.
pub fn exit(task: &Task, code: u8) -> ! {
    {
        let mut tree = PROCESSES.lock();
        let state = task.process().state(&mut tree.key);
        // As on Linux, the code of a process whose threads leave one by one is its first thread's.
        if task.id() == task.process().id() {
            state.code = code;
        }
    }
    leave(task)
}

/// Ends the process of the running thread.
pub fn exit_group(task: &Task, status: End) -> ! {
    task.process().state(&mut PROCESSES.lock().key).end(status);
    leave(task)
}

fn is_alone(state: &State) -> bool {
    state.tasks.iter().nth(1).is_none()
}

/// Takes the running thread out of its process, which has been told why, and ends it.
pub fn leave(task: &Task) -> ! {
    let id = task.process().id();
    task.leaves.set(true);
    clear_word(task);
    let left = sched::set_space(None);
    // SAFETY: this is the task's own thread, and nothing below accesses memory of EL0.
    drop((left, unsafe { task.replace_space(None) }));
    let (left, last, space) = {
        let mut tree = PROCESSES.lock();
        let state = task.process().state(&mut tree.key);
        // SAFETY: in this list since its birth, and in no other.
        let left = unsafe { state.tasks.cursor_mut_from_ptr(task) }.remove();
        state.left_time = state.left_time.wrapping_add(task.thread().cpu_time());
        let last = state.tasks.is_empty();
        // Only now may the other threads' exec go on.
        if let Some(survivor) = state.survivor
            && let Some(waiting) = state.tasks.iter().find(|task| task.id() == survivor)
        {
            waiting.thread().unpark();
        }
        let space = if last { state.space.take() } else { None };
        (left, last, space)
    };
    tree::let_go(space);
    // SAFETY: the list has let go of it, and this was made from a box at its birth.
    let task = left.map(|task| unsafe { PoolBox::from_raw(NonNull::new_unchecked(task_pointer(task))) });
    drop(task);
    if last {
        while let Some(orphan) = next_orphan(id) {
            drop(orphan);
        }
        let gone = PROCESSES.lock().ended(id);
        drop(gone);
    }
    sched::exit()
}

fn task_pointer(task: intrusive_collections::UnsafeRef<Task>) -> *mut Task {
    intrusive_collections::UnsafeRef::into_raw(task)
}

fn next_orphan(id: u32) -> Option<PoolBox<super::tree::Process>> {
    PROCESSES.lock().orphan_children(id)
}

/// Zeroes the word that the thread, or whoever made it, has named, and wakes who waits for that.
fn clear_word(task: &Task) {
    let word = VirtAddr(task.clear_at_exit.get());
    if word.0 != 0 && uaccess::put_u32(word, 0).is_ok() {
        // A word that cannot be one for others has no sleepers that would have to know.
        let _ = futex::wake(task.space(), word, 1, u32::MAX, futex::Scope::Any);
    }
}

/// Leaves the running thread as the only one of its process, for an exec.
///
/// # Errors
/// `EAGAIN`: another thread is doing the same, or the process is ending.
pub fn become_alone(task: &Task) -> Result<(), Errno> {
    {
        let mut tree = PROCESSES.lock();
        let state = task.process().state(&mut tree.key);
        if state.life != Life::Running || state.survivor.is_some() {
            return Err(Errno::EAGAIN);
        }
        state.survivor = Some(task.id());
        state.tasks.iter().filter(|other| other.id() != task.id()).for_each(Task::kick);
    }
    loop {
        {
            let mut tree = PROCESSES.lock();
            let state = task.process().state(&mut tree.key);
            if is_alone(state) {
                state.survivor = None;
                task.take_process_id();
                return Ok(());
            }
        }
        park();
    }
}

/// Waits for a child that has ended, as `wait4`: its number, or 0 where none has and the caller does not wait.
///
/// # Errors
/// `EINVAL`, `ECHILD`, `ESRCH`, `EFAULT`; `ERESTARTSYS` where a signal came first.
pub fn wait4(task: &Task, thread: &Thread, which: i32, status: VirtAddr, options: u64) -> Result<u32, Errno> {
    if options & !OPTIONS != 0 {
        return Err(Errno::EINVAL);
    }
    if which == i32::MIN {
        return Err(Errno::ESRCH);
    }
    let wanted = |id: u32, exit_signal: Option<Signal>| {
        // There is one process group: 0 means any child, as -1 does, and other groups have no members.
        let this = which == -1 || which == 0 || u32::try_from(which) == Ok(id);
        let clone = exit_signal != Some(Signal::CHLD);
        this && (options & WALL != 0 || clone == (options & WCLONE != 0))
    };
    loop {
        let child = PROCESSES.lock().collect(task.process().id(), wanted);
        match child {
            Child::None => return Err(Errno::ECHILD),
            Child::Ended { id, status: how, process } => {
                drop(process);
                if status.0 != 0 {
                    uaccess::copy_to_user(status, &how.word().to_le_bytes())?;
                }
                return Ok(id);
            }
            Child::Running if options & WNOHANG != 0 => return Ok(0),
            Child::Running if thread.has(Work::SIGNAL) => return Err(Errno::ERESTARTSYS),
            Child::Running => park(),
        }
    }
}
