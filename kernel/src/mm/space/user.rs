//! The threads that run in a space, and the heap that they share.

use core::ops::Deref;
use core::sync::atomic::Ordering;

use super::{Space, SpaceRef};
use crate::sched::RwSem;
use crate::smp::this_cpu;

/// The heap that `brk` moves the end of. It belongs to the space: all threads and processes that share the space share
/// it (Linux: `mm->start_brk`, `mm->brk`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProgramHeap {
    /// Address of its first byte.
    pub start: u64,
    /// Its end as the program asked for it, in bytes: not rounded to pages.
    pub end: u64,
}

/// A thread's use of a space (Linux: `mm_users`). What is mapped in the space is unmapped when the last one is dropped;
/// a [`SpaceRef`] that remains then keeps the space, without its memory.
///
/// Dropping it may sleep: never under a spinning lock.
#[derive(Debug)]
pub struct SpaceUser(SpaceRef);

impl SpaceUser {
    /// One more thread runs in `space`: in a new one, or in one that the caller itself is a user of.
    pub fn new(space: SpaceRef) -> Self {
        // Relaxed: the count of a space that was used cannot be on its way to 0, since the caller is a user.
        space.users.fetch_add(1, Ordering::Relaxed);
        Self(space)
    }

    /// Whether it has other users now. The answer may be old when it arrives.
    pub fn is_shared(&self) -> bool {
        self.0.users.load(Ordering::Relaxed) > 1
    }
}

impl Deref for SpaceUser {
    type Target = SpaceRef;
    #[inline(always)]
    fn deref(&self) -> &SpaceRef {
        &self.0
    }
}

impl Drop for SpaceUser {
    fn drop(&mut self) {
        // Release: what this thread did in the space comes before its end; acquire, by the last: it comes after all.
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Drop has no argument for the CPU.
            self.0.release(this_cpu());
        }
    }
}

impl Space {
    /// The heap, behind its lock, which may be held over calls that change areas. Acquiring it may sleep.
    #[inline(always)]
    pub fn heap(&self) -> &RwSem<ProgramHeap> {
        &self.heap
    }
}
