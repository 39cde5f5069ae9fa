//! The parts of a CPU's state, of every module that has one.
//!
//! The lower layers know [`Cpu`] as a header and room; only here are the modules named whose state lies in it.

#![allow(unsafe_code, reason = "per-CPU state in the room that `Cpu` has for it")]

use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};
use core::sync::atomic::AtomicU64;

use spin::Once;

use super::call;
use super::cpu::{Cpu, CpuId, PARTS_SIZE};
use crate::chip::timer::Due;
use crate::mm::frame::reserve;
#[cfg(debug_assertions)]
use crate::mm::kernel::owners::Owners;
use crate::mm::kernel::reclaim::WalkSequence;
use crate::mm::maintenance::Counters;
use crate::mm::page_block::CurrentArena;
use crate::sched::{self, BriefSlot};
use crate::sync::rank::HeldRanks;
use crate::trap;

/// The parts, in the room of a [`Cpu`].
#[repr(C)]
struct Parts {
    trap: trap::PerCpu,
    held_ranks: HeldRanks,
    walk: WalkSequence,
    // Writers of other CPUs look at it: after it comes a part that is seldom written.
    brief: BriefSlot,
    maintenance: Counters,
    reserve: reserve::PerCpu,
    node_arena: CurrentArena,
    due: Due,
    call: call::PerCpu,
    sched: sched::PerCpu,
    #[cfg(debug_assertions)]
    owners: Owners,
}

const _: () = assert!(size_of::<Parts>() <= PARTS_SIZE && align_of::<Parts>() <= align_of::<u64>());
const fn assert_shared<T: Send + Sync>() {}
const _: () = assert_shared::<Parts>();

impl Cpu {
    /// Where [`Self::trap`] is from TPIDR_EL1, for assembly.
    pub(crate) const TRAP: usize = offset_of!(Self, parts) + offset_of!(Parts, trap);
    /// Where [`Self::sched`] is, likewise.
    pub(crate) const SCHED: usize = offset_of!(Self, parts) + offset_of!(Parts, sched);

    /// A CPU that has not started.
    pub const fn new(id: CpuId) -> Self {
        let parts = Parts {
            trap: trap::PerCpu::new(),
            held_ranks: HeldRanks::new(),
            walk: WalkSequence::new(),
            brief: BriefSlot::new(id),
            maintenance: Counters::new(),
            reserve: reserve::PerCpu::new(),
            node_arena: CurrentArena::new(),
            due: Due::new(),
            call: call::PerCpu::new(),
            sched: sched::PerCpu::new(),
            #[cfg(debug_assertions)]
            owners: Owners::new(),
        };
        let mut room = MaybeUninit::<[u64; PARTS_SIZE / 8]>::uninit();
        // SAFETY: it has the size and the alignment: see the assertion above.
        unsafe { room.as_mut_ptr().cast::<Parts>().write(parts) };
        let (mpidr, ipis) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { id, parts: UnsafeCell::new(room), mpidr, features: Once::new(), ipis }
    }

    #[inline(always)]
    const fn parts(&self) -> &Parts {
        // SAFETY: `new`, which makes every `Cpu`, has put them there, and nothing borrows them mutably.
        unsafe { &*self.parts.get().cast() }
    }

    /// Its stacks, and its exceptions.
    #[inline(always)]
    pub const fn trap(&self) -> &trap::PerCpu {
        &self.parts().trap
    }

    /// The locks that it holds.
    #[inline(always)]
    pub const fn held_ranks(&self) -> &HeldRanks {
        &self.parts().held_ranks
    }

    /// Its lockless walks.
    #[inline(always)]
    pub const fn walk(&self) -> &WalkSequence {
        &self.parts().walk
    }

    /// The sleeping lock that it reads under for a moment.
    #[inline(always)]
    pub(crate) const fn brief(&self) -> &BriefSlot {
        &self.parts().brief
    }

    /// The times that its timer waits for.
    #[inline(always)]
    pub(crate) const fn due(&self) -> &Due {
        &self.parts().due
    }

    /// Its calls of others, and theirs of it.
    #[inline(always)]
    pub(super) const fn call(&self) -> &call::PerCpu {
        &self.parts().call
    }

    /// Its threads.
    #[inline(always)]
    pub(crate) const fn sched(&self) -> &sched::PerCpu {
        &self.parts().sched
    }

    /// For whom its thread asks for frames.
    #[inline(always)]
    pub(crate) const fn reserve(&self) -> &reserve::PerCpu {
        &self.parts().reserve
    }

    /// While it changes the buddy's sets: where the global allocator takes their nodes from.
    #[inline(always)]
    pub(crate) const fn node_arena(&self) -> &CurrentArena {
        &self.parts().node_arena
    }

    /// Barriers and TLB invalidations that it has issued, while they are counted.
    #[inline(always)]
    pub(crate) const fn maintenance(&self) -> &Counters {
        &self.parts().maintenance
    }

    /// The ranges that it is changing without a lock.
    #[cfg(debug_assertions)]
    #[inline(always)]
    pub(crate) const fn owners(&self) -> &Owners {
        &self.parts().owners
    }
}
