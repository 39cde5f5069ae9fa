//! The one order in which locks are acquired: from the top of this list to its foot, never back. Sleeping locks
//! (`crate::sched::RwSem`) come first, then the spinning ones ([`IrqLock`](super::IrqLock)).
//!
//! Debug builds check each acquisition that may wait. The ranks of sleeping locks belong to the thread that holds them,
//! while it sleeps too; those of spinning locks to the CPU, where nothing sleeps until they are released. **One lock of
//! a rank at a time**: where a second one is acquired under the first it has a rank of its own, [`SHARED_FILES`] or
//! [`AREAS_BESIDE`], or the one in front in memory comes first, as of the queues of
//! two futexes ([`IrqLock::lock_beside`](super::IrqLock::lock_beside)).
//!
//! No sleeping lock is held while a program's memory is accessed or a thread waits for a pager. Nothing is allocated
//! from the heap at or below [`HEAP_GROWTH`]. The kernel's page tables have no lock: their owners' entries are disjoint
//! (`granule_pgtable`), but for leaves that two own a part of.

use core::sync::atomic::{AtomicU32, Ordering};

/// A place in the order, of the spinning locks or of the sleeping ones; smaller is acquired first. At most 31.
pub type Rank = u32;

/// The rank of a sleeping lock. Empty in builds that do not check the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sleeping {
    /// Its place among the sleeping locks.
    #[cfg(debug_assertions)]
    pub(crate) place: Rank,
}

impl Sleeping {
    #[cfg_attr(not(debug_assertions), allow(unused_variables, reason = "the order is not checked"))]
    const fn at(place: Rank) -> Self {
        Self {
            #[cfg(debug_assertions)]
            place,
        }
    }

    /// The rank of a second lock under one of this rank; this rank, where there is no second.
    #[cfg(debug_assertions)]
    pub(crate) const fn beside(self) -> Self {
        match self {
            OPEN_FILES => SHARED_FILES,
            AREAS => AREAS_BESIDE,
            _ => self,
        }
    }
}

/// The ranks of the locks that are held, a bit each: of the spinning ones in a [`Cpu`](crate::smp::Cpu), of the
/// sleeping ones in a thread. Kept in debug builds.
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

    /// Takes all, which [`Self::put_back`] puts back.
    #[cfg(test)]
    pub(crate) fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn put_back(&self, held: u32) {
        self.0.store(held, Ordering::Relaxed);
    }

    /// For a CPU that ends in a report: it keeps its locks for ever, which must not end the report.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

// Sleeping locks.

/// The start of devices by their drivers.
pub const DEVICE_START: Sleeping = Sleeping::at(0);
/// The requests of a driver to its device. One device at a time.
pub const REQUESTS: Sleeping = Sleeping::at(1);
/// The registers of a device that programs map.
pub const REGISTERS: Sleeping = Sleeping::at(2);
/// The devices that are attached to an SMMU.
pub const ATTACHED: Sleeping = Sleeping::at(3);
/// The binding and the pages of one of them. A binding locks the areas of its space.
pub const BINDING: Sleeping = Sleeping::at(4);
/// The open files of a process.
pub const OPEN_FILES: Sleeping = Sleeping::at(5);
/// The table of files that processes share, under that of one of them, which refers to it.
pub const SHARED_FILES: Sleeping = Sleeping::at(6);
/// The locks of files. A lock is set under its table of descriptors.
pub const LOCKS: Sleeping = Sleeping::at(7);
/// The nesting of epoll sets. Nothing else that sleeps is taken under it.
pub const NESTING: Sleeping = LOCKS;
/// The names of files.
pub const NAMES: Sleeping = Sleeping::at(8);
/// The end of a program's heap. Held while the areas change with it, and while a fork copies both.
pub const PROGRAM_HEAP: Sleeping = Sleeping::at(9);
/// A block of tag storage that is emptied. One at a time; its pages migrate.
pub const TAG_BLOCK: Sleeping = Sleeping::at(10);
/// The page that migrates. One at a time. A fault waits for it when it has released its areas; `fork` and `mremap`
/// wait for it and then lock the areas.
pub const MIGRATION: Sleeping = Sleeping::at(11);
/// The spaces of some families. A migration locks the areas of one space at a time under it.
pub const SPACES: Sleeping = Sleeping::at(12);
/// A part of the areas of a space. Read: faults, advice, looks, fills of userfaultfd and its protection. Write:
/// whatever adds, cuts or takes areas, registers them, or unlinks their tables. Objects are created and dropped under
/// it.
pub const AREAS: Sleeping = Sleeping::at(13);
/// A second part under the first: that above it in the same space, or one of the space that a fork creates.
pub const AREAS_BESIDE: Sleeping = Sleeping::at(14);
/// The subscribers of a space's notifiers, while one joins or leaves.
pub const CHAIN: Sleeping = Sleeping::at(15);
/// The userfaultfds that the areas of a space are registered with.
pub const USERFAULTFDS: Sleeping = Sleeping::at(16);
/// The objects of some families. A migration locks an object under it.
pub const OBJECTS: Sleeping = Sleeping::at(17);
/// How far the pages of files have been searched for some to free.
pub const RECLAIM: Sleeping = Sleeping::at(18);
/// The objects with pages of files. A reclaim locks an object under it.
pub const RECLAIM_FILES: Sleeping = Sleeping::at(19);
/// The size and the seals of an object. Read: a copy of its contents, a seek. Write: every frame that is taken away or
/// moves.
/// A fault takes the areas' lock and a table's, and none of an object.
pub const OBJECT: Sleeping = Sleeping::at(20);
/// The areas that map an object. Read: a walk by the reverse map, which locks tables and no areas. Write: areas join
/// and leave.
pub const MAPPERS: Sleeping = Sleeping::at(21);

// Spinning locks.

/// A sleeping lock that is read under for a moment: such a reader does not sleep.
pub const BRIEF: Rank = 1;
/// The vmalloc areas of one CPU's part of the window.
pub const VMALLOC: Rank = 2;
/// Which process ends because memory is gone.
pub const OUT_OF_MEMORY: Rank = 3;
/// The heap's growth: it maps frames, so it comes before page tables. A holder of this rank or a later one must not
/// allocate from the heap.
pub const HEAP_GROWTH: Rank = 4;
/// Timers of programs. Those of a process may be changed under it, and its signals.
pub const TIMERS: Rank = HEAP_GROWTH;
/// All processes: their numbers, and which is whose child. Nothing is allocated or freed under it, nor under the
/// next.
pub const PROCESSES: Rank = 5;
/// All items of epoll sets. Files are polled under it, and some look at the caller's process. Never held together with the
/// lock of all processes.
pub const EPOLL: Rank = PROCESSES;
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
/// How far a reader of records is. Nothing else is taken under it.
pub const RECORDS: Rank = LIMITS;
/// The attributes of a file, and the directory above a directory. Nothing else is taken under it.
pub const NODE: Rank = LIMITS;
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
/// The items of an epoll set that may be ready. Nothing else is taken under it.
pub const READY: Rank = TIMEOUTS;
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
