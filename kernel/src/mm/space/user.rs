//! The threads that run in a space, and the heap that they share.

#![allow(unsafe_code, reason = "the reference that a thread has to its space")]

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;

use super::address_space::{ProgramHeap, Space, SpaceRef};
use crate::mm::context::Context;
use crate::mm::counted::Counted;
use crate::mm::tlb::user::UserTlb;
use crate::sched::{self, RwSem};
use crate::smp::this_cpu;

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

impl From<SpaceRef> for Context {
    fn from(space: SpaceRef) -> Self {
        let (root, asid) = (space.root(), NonNull::from(space.asid()));
        let space = ManuallyDrop::new(space);
        // SAFETY: moved out of what is not dropped.
        let share = unsafe { ptr::read(&raw const space.0) }.into_raw();
        // SAFETY: `release` drops the reference, which keeps the space until then, and may be dropped on any CPU.
        unsafe { Self::new(root, asid, share, release) }
    }
}

/// # Safety
/// Of `Context`: `share` is of a space, and is used once.
unsafe fn release(share: NonNull<()>) {
    // SAFETY: the caller's promise.
    drop(SpaceRef(unsafe { Counted::from_raw(share) }));
}

/// Calls `look` with the TLBs of the space of the running thread; `None` for the kernel's own threads, and in a handler
/// of an interrupt.
pub(super) fn with_running_tlb(look: &dyn Fn(Option<UserTlb<'_>>)) {
    let space = sched::with_context(|context| {
        let share = context.owner_of(release)?;
        // SAFETY: the context has the reference, which stays its own.
        let own = ManuallyDrop::new(SpaceRef(unsafe { Counted::from_raw(share) }));
        Some(SpaceRef::clone(&own))
    });
    look(space.as_ref().map(|space| space.tlb()));
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
