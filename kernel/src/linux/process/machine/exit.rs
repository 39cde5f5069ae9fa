//! The end of threads and processes, and waiting for it.

#![allow(unsafe_code, reason = "tasks of threads, and the spaces that they run in")]

use granule_abi::process::{WALL, WCLONE, WCONTINUED, WEXITED, WNOHANG, WNOWAIT, WUNTRACED};
use granule_arch::addr::VirtAddr;

use super::state::Visit;
use super::task::Task;
use super::tree::PROCESSES;
use super::tree::collect::{Child, Named, Wanted};
use super::{jobs, robust, timer};
use crate::linux::errno::Errno;
use crate::linux::process::status::{Change, Life, ProcessEnd};
use crate::mm::heap::GROWTH_PAGES;
use crate::sched::{self, Thread, Work, park, relax};
use crate::services;
use crate::smp::this_cpu;
use crate::uaccess;

/// Ends the running thread; the process with it if it was the last one.
pub fn exit(task: &Task, code: u8) -> ! {
    // As on Linux (`synchronize_group_exit`) the code of a process whose threads exit one by one is that of the last
    // one to begin.
    task.process().lock().code = code;
    leave(task)
}

/// Ends the process of the running thread.
pub fn exit_group(task: &Task, status: ProcessEnd) -> ! {
    let visit = task.process().lock().end(status);
    task.process().visit(visit);
    leave(task)
}

/// Removes the running thread from its process, which has its status already, and ends it.
pub fn leave(task: &Task) -> ! {
    task.begin_leaving();
    leave_memory(task);
    let left = sched::set_space(None);
    // SAFETY: this is the task's own thread, and nothing below accesses memory of EL0.
    drop((left, unsafe { task.replace_space(None) }));
    let process = task.process();
    let (task, last, stopped) = PROCESSES.lock().remove_task(task);
    drop(task);
    if let Some(stopped) = stopped {
        stopped.finish();
    }
    if last {
        timer::delete_all(process, true);
        let space = process.lock().space.take();
        drop(space);
        process.files.clear();
        if let Some(surroundings) = process.surroundings.get() {
            surroundings.leave();
        }
        jobs::leave(process);
        loop {
            let orphans = PROCESSES.lock().orphan_children(process);
            match orphans {
                Some(remains) => remains.finish(),
                None => break,
            }
            relax();
        }
        // Its objects there are freed by now: their pages go back before its end is visible.
        services::trim_heap(this_cpu(), GROWTH_PAGES);
        let remains = PROCESSES.lock().ended(process);
        remains.finish();
    }
    sched::exit()
}

/// Wakes the waiters of the running thread, which is about to leave its space.
pub fn leave_memory(task: &Task) {
    robust::leave(task);
    let word = VirtAddr(task.clear_at_exit.take());
    // As on Linux (`mm_release`) nothing is stored if no other thread uses the space. A misaligned word, which is no
    // futex, is zeroed all the same.
    let clear = || uaccess::put_u32(word, 0).or_else(|_| uaccess::copy_to_user(word, &0_u32.to_le_bytes()));
    if word.0 != 0 && task.space_user().is_shared() && clear().is_ok() {
        robust::wake(task, word);
    }
    if let Some(vfork) = task.vfork.take() {
        vfork.finish();
    }
}

/// Ends all other threads of the process, for an exec.
///
/// # Errors
/// `EAGAIN`: another thread is doing the same, or the process is ending.
pub fn kill_other_threads(task: &Task) -> Result<(), Errno> {
    {
        let mut state = task.process().lock();
        if state.life != Life::Running || state.survivor.is_some() {
            return Err(Errno::EAGAIN);
        }
        state.survivor = Some(task.id());
    }
    task.process().visit(Visit::EXIT);
    while !PROCESSES.lock().take_process_id(task) {
        park();
    }
    // From now on it has the process's number.
    task.place.set(None);
    Ok(())
}

/// Waits for a child that has changed as the `options` say, one that is `named` so; returns its number and its change,
/// or `None` where none has, and the options have [`WNOHANG`].
///
/// # Errors
/// `ECHILD`: there is no such child. `ERESTARTSYS`: a signal came first.
pub fn wait(task: &Task, thread: &Thread, named: Named<'_>, options: u64) -> Result<Option<(u32, Change)>, Errno> {
    let wanted = Wanted {
        named,
        ended: options & WEXITED != 0,
        stopped: options & WUNTRACED != 0,
        continued: options & WCONTINUED != 0,
        stays: options & WNOWAIT != 0,
        normal: options & (WALL | WCLONE) != WCLONE,
        clones: options & (WALL | WCLONE) != 0,
    };
    let process = task.process();
    let looks_at_each = match named {
        Named::Any => wanted.stopped || wanted.continued,
        Named::Group(_) => true,
        Named::Number(_) | Named::By(_) => false,
    };
    let child = process.wait_for_children(|| {
        loop {
            let child = if looks_at_each {
                jobs::collect_each(process, wanted)
            } else {
                PROCESSES.lock().collect(process, wanted)
            };
            if !matches!(child, Child::Running) || options & WNOHANG != 0 || thread.has(Work::SIGNAL) {
                break child;
            }
            park();
        }
    });
    match child {
        Child::None => Err(Errno::ECHILD),
        Child::Running if options & WNOHANG != 0 => Ok(None),
        Child::Running => Err(Errno::ERESTARTSYS),
        // Dropped without the lock.
        Child::Ended { id, status, process: _ } => Ok(Some((id, Change::Ended(status)))),
        Child::Changed(id, change) => Ok(Some((id, change))),
    }
}
