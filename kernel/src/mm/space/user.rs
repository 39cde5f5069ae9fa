//! The threads that run in a space, and the heap that they share.

use core::ops::Deref;
use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;

use super::{Space, SpaceRef};
use crate::sched::RwSem;
use crate::smp::this_cpu;

/// The heap, whose end `brk` moves. It belongs to the space: all threads and processes of the space share it (Linux:
/// `mm->start_brk`, `mm->brk`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProgramHeap {
    /// Address of its first byte.
    pub start: u64,
    /// Its end as the program requested it, in bytes: not rounded to pages.
    pub end: u64,
}

/// A thread's use of a space (Linux: `mm_users`). Dropping the last one unmaps everything; a [`SpaceRef`] that remains
/// then keeps the space, without its memory.
///
/// Dropping it may sleep: never under a spinning lock.
#[derive(Debug)]
pub struct SpaceUser(SpaceRef);

impl SpaceUser {
    /// Adds a thread to `space`: to a new one, or by a caller that is a user of it.
    pub fn new(space: SpaceRef) -> Self {
        // Relaxed: the caller is a user of a space that is in use, so the count is not on its way to 0.
        space.users.fetch_add(1, Ordering::Relaxed);
        Self(space)
    }

    /// Whether it has other users now. The answer may be outdated on return.
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
    /// The heap in its lock, which may be held over calls that change areas. Acquiring it may sleep.
    #[inline(always)]
    pub fn heap(&self) -> &RwSem<ProgramHeap> {
        &self.heap
    }

    /// Where handlers return that name no way back; 0 in a space that no program was loaded into.
    pub fn trampoline(&self) -> VirtAddr {
        VirtAddr(self.trampoline.load(Ordering::Relaxed))
    }

    /// Sets [`Self::trampoline`], before a thread runs in the space.
    pub fn set_trampoline(&self, trampoline: VirtAddr) {
        self.trampoline.store(trampoline.0, Ordering::Relaxed);
    }
}
