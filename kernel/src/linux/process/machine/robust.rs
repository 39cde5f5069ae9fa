//! Robust futexes: a thread that ends marks those that it has, and wakes a sleeper of each (Linux's `exit_robust_list`).
//!
//! The list is the program's, in its own memory: anything may be in it. A word that cannot be read or stored ends the
//! walk, and so does a list that is too long.

use core::sync::atomic::Ordering;

use granule_abi::process::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS, RobustListHead};
use granule_arch::addr::VirtAddr;

use super::futex::{self, Scope, Word};
use super::task::Task;
use crate::sched::relax;
use crate::smp::this_cpu;
use crate::uaccess::{self, AccessError};

/// The most entries of a list (Linux's `ROBUST_LIST_LIMIT`).
const MOST: usize = 2048;
/// The bit of an entry's address: its futex has priority inheritance, and its sleepers are woken in another way.
const INHERITS: u64 = 1;

/// The field of the list's head that an entry is from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeadField {
    List,
    /// The futex's lock or unlock is under way; it may be in the list already.
    ListOpPending,
}

/// An entry of the list.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    at: u64,
    inherits: bool,
}

/// The walk ends: memory that cannot be used.
struct Broken;

impl From<AccessError> for Broken {
    fn from(_: AccessError) -> Self {
        Self
    }
}

fn read(at: u64) -> Result<u64, Broken> {
    let [word] = uaccess::read_quads(VirtAddr(at))?;
    Ok(word)
}

fn read_entry(at: u64) -> Result<Entry, Broken> {
    let word = read(at)?;
    Ok(Entry { at: word & !INHERITS, inherits: word & INHERITS != 0 })
}

/// Marks the futexes of the running thread, which is about to leave its space.
pub(super) fn leave(task: &Task) {
    let head = task.robust_list.swap(0, Ordering::Relaxed);
    if head != 0 {
        // Nothing of the list is left to do after what cannot be used.
        let _ = walk(task, head);
    }
}

#[cold]
#[inline(never)]
fn walk(task: &Task, head: u64) -> Result<(), Broken> {
    const OFFSET: u64 = core::mem::offset_of!(RobustListHead, futex_offset) as u64;
    const PENDING: u64 = core::mem::offset_of!(RobustListHead, list_op_pending) as u64;
    let mut entry = read_entry(head)?;
    let offset = read(head.wrapping_add(OFFSET))?;
    let pending = read_entry(head.wrapping_add(PENDING))?;
    for _ in 0..MOST {
        if entry.at == head {
            break;
        }
        // The next one first: the futex's next owner may change the entry.
        let next = read_entry(entry.at);
        if entry.at != pending.at {
            mark(task, entry, offset, HeadField::List)?;
        }
        entry = next?;
        relax();
    }
    if pending.at != 0 {
        mark(task, pending, offset, HeadField::ListOpPending)?;
    }
    Ok(())
}

/// Marks the futex at `offset` from an entry, if it is the thread's. One that is pending and has no owner has a sleeper that
/// is not woken otherwise.
fn mark(task: &Task, Entry { at, inherits }: Entry, offset: u64, field: HeadField) -> Result<(), Broken> {
    let word = VirtAddr(at.wrapping_add(offset));
    let mut found = uaccess::get_u32(word)?;
    loop {
        let owner = found & FUTEX_TID_MASK;
        if field == HeadField::ListOpPending && !inherits && owner == 0 {
            wake(task, word);
            return Ok(());
        }
        if owner != task.id() {
            return Ok(());
        }
        let marked = found & FUTEX_WAITERS | FUTEX_OWNER_DIED;
        let now = task.space().exchange_word(this_cpu(), word.untagged(), found, marked).map_err(|_| Broken)?;
        if now == found {
            break;
        }
        found = now;
        relax();
    }
    if !inherits && found & FUTEX_WAITERS != 0 {
        wake(task, word);
    }
    Ok(())
}

/// Wakes a sleeper of a word that a thread which ends has changed.
pub(super) fn wake(task: &Task, word: VirtAddr) {
    // A word that cannot be a shared futex has no sleepers to wake.
    let _ = futex::wake(task.space(), Word { at: word, scope: Scope::Any }, 1, u32::MAX);
}
