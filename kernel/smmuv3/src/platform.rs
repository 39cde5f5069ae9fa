//! The driver's needs of the machine that it runs on: registers, barriers, time, memory.
//!
//! On the metal each method is an instruction or two; on the host it is a model of the SMMU, which sees every access
//! and barrier in order. The words that CPUs and the SMMU share are the platform's too, so that a checker of
//! interleavings can be one.

#![allow(unsafe_code, reason = "contracts for implementors, and views of DMA memory")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::PhysAddr;

use crate::Report;

/// Where page 1 of the registers begins: the event queue's indices are there.
pub const PAGE1: usize = 0x1_0000;

/// A 64-bit word of memory that several CPUs, or a CPU and the SMMU, use at once.
pub trait Word: Sync {
    /// Reads it, in one piece.
    fn load(&self, order: Ordering) -> u64;
    /// As [`Self::load`], for a caller that changes it next: its cache line comes to this CPU once, to be written.
    fn load_to_change(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
    /// Writes it, in one piece.
    fn store(&self, value: u64, order: Ordering);
    /// Writes `new` where it is `current`, in one step; whether it did. May fail for no reason.
    fn exchange(&self, current: u64, new: u64, order: Ordering) -> bool;
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline(always)]
    fn load_to_change(&self) -> u64 {
        // A load-exclusive and a store, or LDSET: a load alone would take a copy, which the change would then upgrade.
        self.fetch_or(0, Ordering::Relaxed)
    }

    #[inline(always)]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    #[inline(always)]
    fn exchange(&self, current: u64, new: u64, order: Ordering) -> bool {
        self.compare_exchange_weak(current, new, order, Ordering::Relaxed).is_ok()
    }
}

/// A step that a checker leaves out, to see that it is missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// CMD_SYNC after the commands of a call.
    Sync,
    /// The wait until a call's commands are complete.
    Wait,
    /// The barrier between commands and CMDQ_PROD.
    DmbBeforeProd,
    /// The wait until earlier slots are the SMMU's.
    Turn,
    /// The wait until slots may be written again.
    Room,
    /// The wait until another CPU has served an error.
    Serving,
    /// CMD_CFGI after a change of an entry that the SMMU may have cached.
    Configuration,
}

/// The way to one SMMU.
///
/// # Safety
/// 1. Offsets below [`PAGE1`] reach register page 0, those from there on page 1, of one SMMUv3 that is programmed here
///    alone; each access is one access of its size, made in program order with the others.
/// 2. The barriers and [`Self::clean`] are those whose names they have, or stronger, for the CPUs and the SMMU.
/// 3. `Word` at the addresses of a [`DmaMemory`] is what the SMMU reads and writes there: 8 bytes, little-endian, in
///    one piece. (A checker that has no SMMU in it may have larger words, and its memory as many of them.)
/// 4. Safe code gets no value of it but to give it to [`probe`](crate::probe): what it writes is programming the SMMU.
pub unsafe trait Platform: Sync {
    /// A word that is shared.
    type Word: Word;

    /// Turns of a waiting loop between two looks at the clock and at errors, which cost more than a look at CMDQ_CONS;
    /// at least 2.
    const TURNS_PER_LOOK: u64 = 32;

    /// A shared word of the driver's own, not in DMA memory.
    fn word(value: u64) -> Self::Word;

    /// Reads the 32-bit register at `offset`.
    fn read32(&self, offset: usize) -> u32;
    /// Writes the 32-bit register at `offset`.
    fn write32(&self, offset: usize, value: u32);
    /// Reads the 64-bit register at `offset`.
    fn read64(&self, offset: usize) -> u64;
    /// Writes the 64-bit register at `offset`.
    fn write64(&self, offset: usize, value: u64);

    /// DMB OSHST: what this CPU has stored is seen by the SMMU before what it stores next.
    fn dmb_oshst(&self);
    /// DMB OSHLD: what this CPU has read comes before what it reads or writes next.
    fn dmb_oshld(&self);

    /// Whether the machine's description permits that the SMMU sees the CPUs' caches (`dma-coherent` in a device tree,
    /// COHACC Override in the IORT). Where it does not, IDR0.COHACC does not count.
    fn is_coherent(&self) -> bool {
        true
    }
    /// Writes the caches' lines of the `bytes` from `start` on, of page tables, to memory (DC CVAC), and waits until they
    /// are there (DSB). Called only where the SMMU does not see the caches
    /// ([`Features::coherent`](crate::Features)).
    fn clean(&self, start: PhysAddr, bytes: u64);

    /// Lets others go first: once per turn of each waiting loop.
    fn relax(&self);
    /// Microseconds since some moment. Asked only when something takes long.
    fn microseconds(&self) -> u64;
    /// Reports what should not have happened. Called with interrupts masked, and where sleeping and allocating are
    /// forbidden.
    fn report(&self, report: &Report);

    /// Whether `step` is left out. Never, outside of a laboratory.
    #[inline(always)]
    fn leaves_out(&self, step: Step) -> bool {
        let _ = step;
        false
    }
}

/// Memory that CPUs and the SMMU see alike. Owning one is the right to use it, and to give it back once.
#[derive(Debug)]
pub struct DmaMemory {
    phys: PhysAddr,
    virt: NonNull<u64>,
    bytes: usize,
}

// SAFETY: it is a range of memory that has one owner, and words in it are shared by atomic accesses alone.
unsafe impl Send for DmaMemory {}
// SAFETY: a shared reference gives addresses and no more.
unsafe impl Sync for DmaMemory {}

impl DmaMemory {
    /// Vouches for `bytes` bytes at `virt`, which the SMMU finds at `phys`.
    ///
    /// # Safety
    /// 1. The memory is mapped there, zeroed and contiguous, and stays for as long as the value, and after it until the
    ///    SMMU no longer knows of it.
    /// 2. It has `bytes / 8` words of [`Platform::Word`], aligned for them, and is as aligned as the queue or table that is
    ///    made of it must be, in both addresses.
    /// 3. It is Normal Inner Write-Back Inner Shareable for the CPU, or Normal Non-cacheable as [`Memory`] has it, and
    ///    `phys` is where it is.
    /// 4. Nothing else uses it, and no other value stands for it.
    #[inline(always)]
    pub const unsafe fn new(phys: PhysAddr, virt: NonNull<u64>, bytes: usize) -> Self {
        Self { phys, virt, bytes }
    }

    /// Where the SMMU finds it.
    #[inline(always)]
    pub const fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// Where the CPU finds it.
    #[inline(always)]
    pub const fn virt(&self) -> NonNull<u64> {
        self.virt
    }

    /// Its size, in bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its words as `P` has them.
    #[inline(always)]
    pub(crate) fn words<P: Platform>(&self) -> &[P::Word] {
        // SAFETY: by the contract of `new` these are as many words, live while this is, and used as shared words only.
        unsafe { core::slice::from_raw_parts(self.virt.as_ptr().cast(), self.bytes / 8) }
    }
}

/// Where DMA memory comes from.
///
/// # Safety
/// 1. Memory of [`Self::allocate`] is zero, aligned to `align` in physical and virtual addresses, contiguous, stays
///    until it is given back, and is used by its owner alone.
/// 2. It is Normal Inner Write-Back Inner Shareable for the CPU; where [`Features::coherent`](crate::Features) is not
///    set Normal Non-cacheable, and no cache has anything of it: what the CPU stores there needs no cleaning.
pub unsafe trait Memory {
    /// `bytes`, a multiple of 8, aligned to `align`, a power of two; `None` where there is no memory.
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory>;
    /// Takes it back.
    ///
    /// # Safety
    /// It is from this source, and the SMMU no longer knows of it.
    unsafe fn free(&self, memory: DmaMemory);
}
