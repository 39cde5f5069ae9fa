//! The kernel's own use of processes.

use super::exec::Drawn;
use super::send::{self, Asked};
use super::tree::collect::Child;
use super::tree::{PROCESSES, Parent, Process, Tree};
use super::{clone, exec};
use crate::chip::console::Family;
use crate::linux::errno::Errno;
use crate::linux::process::limits::Limits;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::linux::process::stack::{Strings, Words};
use crate::linux::process::status::{ExecError, ProcessEnd, Summary};
use crate::mm::space::SpaceRef;
use crate::sched::{UserEntry, current, park};
use crate::smp::this_cpu;

/// Starts a program of the initrd, whose exceptions `entry` handles; returns the process's number. Its status is kept
/// until [`wait`] collects it.
///
/// # Errors
/// [`ExecError`]; nothing stays allocated.
pub(super) fn start(entry: &'static UserEntry, path: &str, words: Words) -> Result<u32, ExecError> {
    let path = path.as_bytes();
    let file = exec::open(None, path)?;
    let add = |strings: &mut Strings<exec::InSpace<'_>>| words.add_to(strings);
    let drawn = Drawn::new(this_cpu(), 0);
    let loaded = exec::load(this_cpu(), file, path, &Limits::initial().of_space(), words.counts(), drawn, add)?;
    Ok(clone::start(entry, loaded, Parent::Kernel(current().to_ref()))?)
}

/// Waits for the end of a process that [`start`] started; returns its status. `None`: there is no such process.
pub fn wait(id: u32) -> Option<ProcessEnd> {
    wait_with(id, park)
}

/// As [`wait`], but until then it calls `pause`, which sleeps until the thread is unparked, as the process's end does;
/// it may return earlier.
pub fn wait_with(id: u32, mut pause: impl FnMut()) -> Option<ProcessEnd> {
    // The waiting thread is woken, not the one that started it.
    if !PROCESSES.lock().wait_in_kernel(id, current().to_ref()) {
        return None;
    }
    loop {
        let child = PROCESSES.lock().collect_own(id);
        match child {
            Child::None => return None,
            Child::Ended { status, process, .. } => {
                drop(process);
                return Some(status);
            }
            Child::Running | Child::Changed(..) => pause(),
        }
    }
}

/// Sends a process a signal, as the kernel.
///
/// # Errors
/// `ESRCH`.
pub fn kill(id: u32, signal: Signal) -> Result<(), Errno> {
    send::to_process(None, id, Asked(signal.number()), SignalCause::KERNEL)
}

/// The number that a process has in common with the one that [`start`] started and all its descendants, also those
/// whose own parents have ended, and in whatever groups they are.
pub fn family_of(id: u32) -> Option<Family> {
    PROCESSES.lock().find(id).map(Process::family_serial)
}

/// Sends a signal to all processes of a family, as Ctrl-C does, and has those continue that are stopped.
///
/// # Errors
/// `ESRCH`.
pub fn kill_family(family: Family, signal: Signal) -> Result<(), Errno> {
    let send_all =
        |signal| send::to_all_where(Asked(signal), SignalCause::KERNEL, |process| process.family_serial() == family);
    send_all(signal.number())?;
    // All may have ended by now.
    let _ = send_all(Signal::CONT.number());
    Ok(())
}

/// Calls `each` for every process, by number. Without the lock, so that it may print; the summaries may be outdated.
pub fn for_each(each: &mut dyn FnMut(&Summary)) {
    let mut after = 0;
    loop {
        let next = summary_after(&PROCESSES.lock(), after);
        let Some(summary) = next else { return };
        each(&summary);
        after = summary.id;
    }
}

fn summary_after(tree: &Tree, id: u32) -> Option<Summary> {
    let process = tree.after(id)?;
    let state = process.lock();
    let (life, threads, name) = (state.life, state.threads(), state.name);
    Some(Summary { id: process.id(), parent: process.parent_id(), life, threads, name })
}

/// The space of a process that has not ended.
pub fn space_of(id: u32) -> Option<SpaceRef> {
    PROCESSES.lock().find(id)?.lock().space.clone()
}
