//! The one order in which locks are taken: from the top of this list to its foot, never back.
//!
//! Debug builds check it on every acquisition. Nothing is allocated from the heap at
//! or below [`HEAP_GROWTH`]. The kernel's page tables have no lock: their owners' entries are disjoint
//! (`granule_pgtable`), but for leaves that two own a part of.

use core::sync::atomic::{AtomicU32, Ordering};

/// A place in the order; smaller is taken first. At most 31.
pub type Rank = u32;

/// The ranks of the locks that a CPU holds, a bit each: part of its [`Cpu`](crate::smp::Cpu), kept in debug builds.
#[derive(Debug)]
pub struct HeldRanks(AtomicU32);

impl HeldRanks {
    /// None.
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// The bits.
    pub fn bits(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Before a lock of this rank is waited for.
    ///
    /// # Panics
    /// A lock of the same or a later rank is held.
    pub fn check(&self, rank: Rank) {
        let held = self.bits();
        assert!(held >> rank == 0, "lock order: rank {rank} taken while ranks {held:#b} are held");
    }

    /// A lock of this rank is acquired.
    pub fn add(&self, rank: Rank) {
        self.0.fetch_or(1 << rank, Ordering::Relaxed);
    }

    /// It is released.
    pub fn remove(&self, rank: Rank) {
        self.0.fetch_and(!(1 << rank), Ordering::Relaxed);
    }

    /// For a CPU that ends in a report: it keeps its locks for ever, which must not end the report.
    #[cfg(target_os = "none")]
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A sleeping lock that is read under for a moment: such a reader does not sleep.
pub const BRIEF: Rank = 1;
/// The vmalloc areas of one CPU's part of the window.
pub const VMALLOC: Rank = 2;
/// Which process ends because memory is gone.
pub const OUT_OF_MEMORY: Rank = 3;
/// The heap's growth: it maps frames, so it comes before page tables. A holder of this rank or a later one must not
/// allocate from the heap.
pub const HEAP_GROWTH: Rank = 4;
/// All processes: their numbers, and which is whose child. Nothing is allocated or freed under it, nor under the
/// next.
pub const PROCESSES: Rank = 5;
/// One process: its threads, and the signals pending for it and for them. One at a time.
pub const PROCESS: Rank = 6;
/// The actions on the signals of a process, or of those that share them. A fork allocates its copy under it.
pub const ACTIONS: Rank = 7;
/// A last-level table of a user space. Nothing is allocated while one is held.
pub const TABLE: Rank = 8;
/// The second lock under a table's: another table of the same space, to which entries move, or the frames of a block.
pub const TABLE_BESIDE: Rank = 9;
/// The SMMU's event queue. Its events are noted for their devices.
pub const EVENTS: Rank = 10;
/// The fixmap's patch slot.
pub const PATCH: Rank = 11;
/// The state of the SMMU's streams. Commands are issued while it is held, and memory taken for tables.
pub const STREAMS: Rank = 12;
/// A split of leaves in use, or a change by a caller that is not their one owner. Frames are taken before it, and those
/// that were not needed given back after it.
pub const SPLIT: Rank = 13;
/// Addresses and numbers that are given to devices.
pub const DEVICE_ADDRESSES: Rank = 14;
/// An object pool's slabs. Pools take and return frames while they do not hold it, so the order needs it nowhere else;
/// here, objects may still be returned with a page table held.
pub const POOL: Rank = 15;
/// Memory that the SMMU uses.
pub const IOMMU_MEMORY: Rank = 16;
/// The taking of frames where few are left.
pub const SCARCE: Rank = 17;
/// The page blocks of one home: their bitmaps. One at a time.
pub const PAGE_BLOCK: Rank = 18;
/// The faults that a device has met.
pub const DEVICE_FAULTS: Rank = 19;
/// The limits of one process.
pub const LIMITS: Rank = 20;
/// The free page blocks: the buddy allocator.
pub const BUDDY: Rank = 21;
/// The loans of a region of tag storage. Never held together with that of the buddy.
pub const TAG_STORAGE: Rank = BUDDY;
/// The heap's list.
pub const HEAP: Rank = 22;
/// The records of guarded objects. Never held together with the heap's list.
pub const GUARDED_HEAP: Rank = HEAP;
/// The owner of a device.
pub const DEVICE: Rank = 23;
/// A queue of threads that wait. Anything above may wake them.
pub const WAIT: Rank = 24;
/// The moments that threads of a CPU wait for.
pub const TIMEOUTS: Rank = 25;
/// The threads that wait for a CPU.
pub const RUN_QUEUE: Rank = 26;
/// Address space identifiers.
pub const ASID: Rank = 27;
/// The interrupt controller.
pub const INTERRUPT: Rank = 28;
/// The key of the random numbers. Nothing else is taken under it.
pub const RANDOM: Rank = 29;
/// Which parts the areas of a space are in.
pub const PARTS: Rank = 30;
/// The console: last, so that anything may print.
pub const CONSOLE: Rank = 31;
