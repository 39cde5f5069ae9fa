//! The memory that the buddy allocator keeps its books in.
//!
//! `buddy_system_allocator` keeps each size of free block in a `BTreeSet`, and a set allocates a node now and then:
//! when a block is *freed*, too. Were that node to come from the heap, freeing memory could fail, and could
//! recurse: heap → growth → frames → buddy → heap. So the nodes come from here: cells of one size, as many as the sets
//! can ever need at once, reserved at boot.
//!
//! How the nodes find their way: the sets ask the global allocator, and that asks this CPU whether it is inside a
//! section of the buddy ([`NodeArena::enter`]). A section runs under the buddy's lock with interrupts masked, so
//! nothing else on this CPU can allocate in it, and no other CPU is in one.
//!
//! Why the cells suffice. The elements of all sets are disjoint non-empty sets of blocks, so there are at most as many
//! as blocks, and one more while a block is being split. Every B-tree node but the root of its set holds at least five
//! elements. Cells of one size cannot fragment.

#![allow(unsafe_code, reason = "nodes and records in memory that the allocator owns")]

use core::alloc::Layout;
use core::ptr::{self, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use granule_arch::addr::VirtAddr;

use super::BUDDY_ORDERS;
use crate::smp::Cpu;

/// Bytes of a cell. A node of `BTreeSet<usize>` has 104, one with children 200; boot checks that this is still so
/// ([`super::PageBlocks::new`] builds a set of two levels).
const CELL: usize = 208;
/// The fewest elements in a B-tree node that is not a root (`B - 1` in `alloc::collections::btree`).
const FEWEST: usize = 5;

/// Cells for the nodes of the buddy allocator's sets.
///
/// The fields are atomics because the global allocator reaches them by a pointer in [`Cpu`] while the section's owner
/// holds the buddy; the buddy's lock orders them, so every access is relaxed.
pub struct NodeArena {
    /// The first cell that was never used. Cells are not linked up at boot: that would touch all of them.
    unused: AtomicUsize,
    start: usize,
    end: usize,
    /// Cells that were used and given back, each holding the address of the next.
    free: AtomicPtr<*mut u8>,
    /// Cells in use.
    used: AtomicUsize,
}

/// The arena that serves a CPU's allocations while it changes the buddy's sets: part of its [`Cpu`]; else null.
pub struct CurrentArena(AtomicPtr<NodeArena>);

impl CurrentArena {
    /// None.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// The arena.
    pub fn get(&self) -> Option<&NodeArena> {
        // SAFETY: null, or set by a section that this CPU is still in, which borrows the arena.
        unsafe { self.0.load(Relaxed).as_ref() }
    }
}

impl NodeArena {
    /// Bytes that an arena for `blocks` page blocks takes. A multiple of 16.
    pub(super) const fn required_bytes(blocks: usize) -> usize {
        // One root per set, a full node's worth per five elements, and a path of splits under way.
        (2 * BUDDY_ORDERS + (blocks + 1).div_ceil(FEWEST)) * CELL
    }

    /// Makes an arena of the `size` bytes at `start`, which is 16-byte aligned.
    ///
    /// # Safety
    /// The memory is mapped, writable and the arena's alone for ever.
    pub(super) unsafe fn new(start: VirtAddr, size: usize) -> Self {
        debug_assert!(start.is_aligned(16));
        let start = start.0 as usize;
        Self {
            unused: AtomicUsize::new(start),
            start,
            end: start + size,
            free: AtomicPtr::new(null_mut()),
            used: AtomicUsize::new(0),
        }
    }

    /// Lets the global allocator serve `cpu` from here until the value is dropped. The caller holds the buddy's lock
    /// and runs on `cpu`.
    pub(super) fn enter<'a>(&'a self, cpu: &'a Cpu) -> ArenaSection<'a> {
        #[cfg(target_os = "none")]
        debug_assert!(ptr::eq(cpu, crate::smp::this_cpu()), "the global allocator asks the CPU that it runs on");
        debug_assert!(cpu.node_arena().get().is_none(), "sections of the buddy do not nest");
        cpu.node_arena().0.store(ptr::from_ref(self).cast_mut(), Relaxed);
        #[cfg(test)]
        tests::enter(self);
        ArenaSection { cpu }
    }

    /// A cell for `layout`; null where it is larger than a cell or, which [`Self::required_bytes`] rules out, none is
    /// left.
    ///
    /// For the global allocator, on the CPU that is inside the section.
    pub fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > CELL || layout.align() > 16 {
            return null_mut();
        }
        let recycled = self.free.load(Relaxed);
        let cell = if !recycled.is_null() {
            // SAFETY: a cell on the free list holds the address of the next one, and only this CPU is in the section.
            self.free.store(unsafe { recycled.read() }.cast(), Relaxed);
            recycled.cast()
        } else {
            let unused = self.unused.load(Relaxed);
            if unused + CELL > self.end {
                return null_mut();
            }
            self.unused.store(unused + CELL, Relaxed);
            VirtAddr(unused as u64).as_ptr()
        };
        self.used.store(self.used.load(Relaxed) + 1, Relaxed);
        cell
    }

    /// Takes a cell back.
    ///
    /// For the global allocator, on the CPU that is inside the section.
    ///
    /// # Safety
    /// `cell` came from [`Self::alloc`] of this arena and is not used any more.
    pub unsafe fn dealloc(&self, cell: *mut u8) {
        let cell: *mut *mut u8 = cell.cast();
        // SAFETY: the cell is the arena's again, large enough and aligned for a pointer.
        unsafe { cell.write(self.free.load(Relaxed).cast()) };
        self.free.store(cell, Relaxed);
        self.used.store(self.used.load(Relaxed) - 1, Relaxed);
    }

    /// Whether `pointer` is to a cell of this arena.
    pub fn contains(&self, pointer: *const u8) -> bool {
        (self.start..self.end).contains(&pointer.addr())
    }

    /// Cells in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// This CPU is inside a section of the buddy: its allocations are nodes of the buddy allocator's sets.
pub(super) struct ArenaSection<'a> {
    cpu: &'a Cpu,
}

impl Drop for ArenaSection<'_> {
    fn drop(&mut self) {
        self.cpu.node_arena().0.store(null_mut(), Relaxed);
        #[cfg(test)]
        tests::leave();
    }
}

/// The target's global allocator, for the tests of this crate: sections are served from the arena, everything
/// else by the host. So a host test sees an arena that is too small, and an allocation where there must be none.
#[cfg(test)]
pub(in crate::mm) mod tests {
    use core::alloc::{GlobalAlloc, Layout};
    use core::cell::Cell;
    use core::ptr;
    use std::alloc::System;
    use std::collections::BTreeSet;
    use std::vec;

    use super::{CELL, NodeArena};
    use crate::smp::{Cpu, CpuId};
    use granule_arch::addr::VirtAddr;

    std::thread_local! {
        static ARENA: Cell<*const NodeArena> = const { Cell::new(ptr::null()) };
        static HOST_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn enter(arena: &NodeArena) {
        ARENA.set(arena);
    }

    pub(super) fn leave() {
        ARENA.set(ptr::null());
    }

    /// How often this thread has asked the host's allocator for memory.
    pub(in crate::mm) fn host_allocations() -> usize {
        HOST_ALLOCATIONS.get()
    }

    struct TestAllocator;

    #[global_allocator]
    static ALLOCATOR: TestAllocator = TestAllocator;

    // SAFETY: the arena and the host's allocator each keep the contract, and an address identifies which of them it
    // came from.
    unsafe impl GlobalAlloc for TestAllocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the pointer is null or was set by a section that this thread is still in.
            if let Some(arena) = unsafe { ARENA.get().as_ref() } {
                return arena.alloc(layout);
            }
            HOST_ALLOCATIONS.set(HOST_ALLOCATIONS.get() + 1);
            // SAFETY: the caller keeps GlobalAlloc's contract.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as in `alloc`.
            match unsafe { ARENA.get().as_ref() } {
                // SAFETY: by its address the cell came from this arena.
                Some(arena) if arena.contains(pointer) => unsafe { arena.dealloc(pointer) },
                // SAFETY: it came from the host's allocator; the caller keeps the contract.
                _ => unsafe { System.dealloc(pointer, layout) },
            }
        }
    }

    #[test]
    fn cells_suffice_for_any_order_of_insertion_and_removal() {
        let elements = 4000_usize;
        let size = NodeArena::required_bytes(elements);
        let memory = vec![0_u128; size / 16];
        // SAFETY: the memory outlives the arena and has no other user.
        let arena = unsafe { NodeArena::new(VirtAddr::from_ptr(memory.as_ptr()), size) };
        let cpu = Cpu::new(CpuId(0));
        let section = arena.enter(&cpu);
        // Ascending insertion leaves the emptiest nodes; removing each second element then merges them.
        let mut set = BTreeSet::new();
        for element in 0..elements {
            set.insert(element);
        }
        for element in (0..elements).step_by(2) {
            set.remove(&element);
        }
        for element in (0..elements).rev() {
            set.insert(element);
        }
        assert!(arena.used() * CELL <= size);
        drop(set);
        drop(section);
        assert_eq!(arena.used(), 0);
    }

    #[test]
    fn an_empty_arena_says_so() {
        let memory = [0_u128; CELL / 16];
        // SAFETY: the memory outlives the arena and has no other user.
        let arena = unsafe { NodeArena::new(VirtAddr::from_ptr(memory.as_ptr()), CELL) };
        let layout = Layout::new::<[usize; 25]>();
        let cell = arena.alloc(layout);
        assert!(arena.contains(cell));
        assert!(arena.alloc(layout).is_null());
        assert!(arena.alloc(Layout::new::<[usize; 27]>()).is_null());
        // SAFETY: it came from this arena.
        unsafe { arena.dealloc(cell) };
        assert_eq!(arena.alloc(layout), cell);
    }
}
