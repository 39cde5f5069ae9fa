//! Processes from outside: what the kernel itself does with them.

use super::limits::Limits;
use super::signal::{Cause, Signal};
use super::stack::{Strings, Words};
use super::status::{End, ExecError, Summary};
use super::tree::{self, Child, PROCESSES, Parent};
use super::{birth, exec};
use crate::errno::Errno;
use crate::mm::space::SpaceRef;
use crate::sched::{current, park};
use crate::smp::this_cpu;

/// Starts a program of the initrd; returns the process's number. Its status is kept until [`wait`] collects it.
///
/// # Errors
/// [`ExecError`]; nothing stays taken.
pub fn start(path: &str, words: Words) -> Result<u32, ExecError> {
    let path = path.as_bytes();
    let file = exec::open(path)?;
    let add = |strings: &mut Strings<exec::InSpace<'_>>| words.add_to(strings);
    let loaded = exec::load(this_cpu(), file, path, &Limits::initial().of_space(), words.counts(), add)?;
    Ok(birth::start(loaded, Parent::Kernel(current().to_ref()))?)
}

/// Waits until a process has ended that [`start`] started; how it did. `None`: there is no such process.
pub fn wait(id: u32) -> Option<End> {
    {
        let mut tree = PROCESSES.lock();
        let (process, key) = tree.find(id)?;
        let state = process.state(key);
        if !matches!(state.parent, Parent::Kernel(_)) {
            return None;
        }
        // Whoever waits is woken, not who started it.
        state.parent = Parent::Kernel(current().to_ref());
    }
    loop {
        let child = PROCESSES.lock().collect_own(id);
        match child {
            Child::None => return None,
            Child::Ended { status, process, .. } => {
                drop(process);
                return Some(status);
            }
            Child::Running => park(),
        }
    }
}

/// Sends a process a signal, as the kernel.
///
/// # Errors
/// `ESRCH`.
pub fn kill(id: u32, signal: Signal) -> Result<(), Errno> {
    tree::send(id, Some(signal), Cause::KERNEL)
}

/// Calls `each` for every process, by number. Not under the lock: it may print, and what it is told may be old.
pub fn for_each(each: &mut dyn FnMut(&Summary)) {
    let mut after = 0;
    loop {
        let next = PROCESSES.lock().find_map(|process, state| {
            (process.id() > after).then(|| Summary {
                id: process.id(),
                parent: if let Parent::Process(parent) = state.parent { parent } else { 0 },
                life: state.life,
                threads: state.tasks.iter().count(),
                name: state.name,
            })
        });
        let Some(summary) = next else { return };
        each(&summary);
        after = summary.id;
    }
}

/// The space of a process that has not ended.
pub fn space_of(id: u32) -> Option<SpaceRef> {
    let mut tree = PROCESSES.lock();
    let (process, key) = tree.find(id)?;
    process.state(key).space.clone()
}
