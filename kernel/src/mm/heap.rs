//! The kernel's heap: objects of any size, in a window of virtual addresses that only this file hands out from.
//!
//! ```text
//! base                     top                                        base + size
//!  ├── in use and holes ────┤  ← grows by mapping frames here   not mapped  ┤
//! ```
//!
//! `linked_list_allocator` keeps the holes, sorted and merged; both of its operations walk that list, so the heap is
//! for what is rare (vectors, names, tables of drivers), and never for a hot path: those have pools. Every size and
//! alignment is rounded up to 16 bytes, the granule of memory tags, so that no two objects share one.
//!
//! Growing maps frames, which takes the locks of page tables and page blocks. Those come before the list's lock, so the
//! heap grows *before* it takes that lock: try, release, grow, retry. The heap never shrinks.
//!
//! Running out is a null pointer, which `try_reserve` and its like turn into an error value.

#![allow(unsafe_code, reason = "the global allocator")]

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};

use granule_arch::addr::{PAGE_SIZE, VirtAddr};

use super::OutOfMemory;
use crate::sync::{IrqLock, rank};

/// Sizes and alignments are multiples of this.
const GRANULE: usize = 16;
/// Pages that the heap grows by, unless more are needed or fewer are left.
const GROWTH_PAGES: usize = 16;

/// Maps `pages` fresh frames, readable and writable, from `top` on. On an error nothing is mapped that was not before.
///
/// Called with interrupts masked and the rank `HEAP_GROWTH` held; it must not allocate from the heap.
pub type Grow = fn(top: VirtAddr, pages: usize) -> Result<(), OutOfMemory>;

/// A heap in a window of its own.
pub struct Heap {
    base: VirtAddr,
    size: u64,
    growth: IrqLock<Growth, { rank::HEAP_GROWTH }>,
    list: IrqLock<HoleList, { rank::HEAP }>,
}

/// What growing needs and changes.
struct Growth {
    /// Bytes of the window that are mapped.
    mapped: u64,
    /// `None` until [`Heap::start`]: the heap is empty and cannot grow.
    grow: Option<Grow>,
}

struct HoleList {
    holes: linked_list_allocator::Heap,
    allocations: usize,
}

/// How full the heap is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapStats {
    /// Bytes mapped.
    pub total: usize,
    /// Bytes in use, after rounding.
    pub used: usize,
    /// Bytes in holes.
    pub free: usize,
    /// Objects in use.
    pub allocations: usize,
}

impl Heap {
    /// An empty heap in the `size` bytes from `base` on, both multiples of [`PAGE_SIZE`]; nothing of the window is
    /// mapped. Until [`Self::start`] every allocation fails.
    pub const fn new(base: VirtAddr, size: u64) -> Self {
        assert!(base.is_aligned(PAGE_SIZE as u64) && size.is_multiple_of(PAGE_SIZE as u64));
        Self {
            base,
            size,
            growth: IrqLock::new(Growth { mapped: 0, grow: None }),
            list: IrqLock::new(HoleList { holes: linked_list_allocator::Heap::empty(), allocations: 0 }),
        }
    }

    /// Lets the heap grow by `grow`. Frames and the kernel's page tables are up by now.
    ///
    /// # Safety
    /// The window is this heap's alone, and what `grow` maps stays mapped for ever.
    pub unsafe fn start(&self, grow: Grow) {
        self.growth.lock().grow = Some(grow);
    }

    /// Memory for `layout`, with whatever it held before; null where there is none. A size of 0 gets memory too.
    ///
    /// Not while a lock of the rank `HEAP_GROWTH` or a later one is held.
    pub fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(layout) = round(layout) else { return null_mut() };
        self.take(layout).or_else(|| self.grow_and_take(layout)).map_or(null_mut(), NonNull::as_ptr)
    }

    /// Takes the object back.
    ///
    /// # Safety
    /// `object` came from [`Self::alloc`] of this heap with the same `layout`, and is not used any more.
    pub unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        let (Some(object), Some(layout)) = (NonNull::new(object), round(layout)) else { return };
        let mut list = self.list.lock();
        list.allocations -= 1;
        // SAFETY: by the caller's word the list gave this out, for the layout as rounded here and there.
        unsafe { list.holes.deallocate(object, layout) };
    }

    /// Whether `pointer` is into the window.
    pub fn contains(&self, pointer: *const u8) -> bool {
        (pointer.addr() as u64).wrapping_sub(self.base.0) < self.size
    }

    /// How full the heap is now.
    pub fn stats(&self) -> HeapStats {
        let list = self.list.lock();
        let (total, used) = (list.holes.size(), list.holes.used());
        HeapStats { total, used, free: total - used, allocations: list.allocations }
    }

    fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut list = self.list.lock();
        let object = list.holes.allocate_first_fit(layout).ok()?;
        list.allocations += 1;
        Some(object)
    }

    /// Grows until `layout` fits or growing fails. One CPU at a time: the others find what it mapped.
    #[cold]
    fn grow_and_take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut growth = self.growth.lock();
        // Room for the object and for the hole that aligning it leaves in front. The loop ends: once so much was added
        // at the top in one piece, only other CPUs can have taken it, and then the next round adds as much again.
        let pages = (layout.size() + layout.align()).div_ceil(PAGE_SIZE);
        loop {
            if let Some(object) = self.take(layout) {
                return Some(object);
            }
            self.grow(&mut growth, pages.max(GROWTH_PAGES)).or_else(|_| self.grow(&mut growth, pages)).ok()?;
        }
    }

    /// Adds `pages` at the top.
    fn grow(&self, growth: &mut Growth, pages: usize) -> Result<(), OutOfMemory> {
        let grow = growth.grow.ok_or(OutOfMemory)?;
        let bytes = pages * PAGE_SIZE;
        if self.size - growth.mapped < bytes as u64 {
            return Err(OutOfMemory);
        }
        let top = self.base + growth.mapped;
        grow(top, pages)?;
        growth.mapped += bytes as u64;
        let mut list = self.list.lock();
        if list.holes.bottom().is_null() {
            // SAFETY: the list is empty, and the pages at the bottom of the window were just mapped for it alone.
            unsafe { list.holes.init(top.as_ptr(), bytes) };
        } else {
            // SAFETY: the pages follow those that the list has, and were just mapped for it alone.
            unsafe { list.holes.extend(bytes) };
        }
        Ok(())
    }
}

/// `layout` in whole granules; `None` where that is more than an address space.
fn round(layout: Layout) -> Option<Layout> {
    let align = layout.align().max(GRANULE);
    let size = layout.size().max(1).checked_next_multiple_of(GRANULE)?;
    Layout::from_size_align(size, align).ok()
}

/// The one heap of the target, behind the language's `alloc`.
#[cfg(target_os = "none")]
mod global {
    use core::alloc::{GlobalAlloc, Layout};

    use super::Heap;
    use crate::mm::layout::{HEAP_BASE, HEAP_SIZE};
    use crate::smp::this_cpu;
    use crate::sync::rank;

    #[global_allocator]
    static HEAP: Heap = Heap::new(HEAP_BASE, HEAP_SIZE);

    /// The kernel's heap, to start it and to ask how full it is.
    pub fn kernel_heap() -> &'static Heap {
        &HEAP
    }

    // SAFETY: heap and arena each keep the contract, and an address identifies which of them it came from.
    unsafe impl GlobalAlloc for Heap {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let cpu = this_cpu();
            if let Some(arena) = cpu.node_arena.get() {
                return arena.alloc(layout);
            }
            debug_assert!(
                cpu.held_ranks.bits() >> rank::HEAP_GROWTH == 0,
                "allocation under a lock that the heap's growth may need",
            );
            Self::alloc(self, layout)
        }

        unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
            if self.contains(object) {
                // SAFETY: the object is in the heap's window, so it came from the heap; the caller keeps the contract.
                unsafe { Self::dealloc(self, object, layout) };
            } else if let Some(arena) = this_cpu().node_arena.get() {
                debug_assert!(arena.contains(object));
                // SAFETY: what is not the heap's is a node of the sets that this CPU is changing.
                unsafe { arena.dealloc(object) };
            }
        }
    }
}

#[cfg(target_os = "none")]
pub use global::kernel_heap;

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use std::collections::BTreeMap;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: usize = 64 * PAGE_SIZE;

    std::thread_local! {
        /// Pages that the fake machine can still map, and where the next must go.
        static PAGES: Cell<usize> = const { Cell::new(0) };
        static TOP: Cell<u64> = const { Cell::new(0) };
    }

    fn grow(top: VirtAddr, pages: usize) -> Result<(), OutOfMemory> {
        assert_eq!(top.0, TOP.get(), "not at the top");
        PAGES.set(PAGES.get().checked_sub(pages).ok_or(OutOfMemory)?);
        TOP.set(top.0 + (pages * PAGE_SIZE) as u64);
        Ok(())
    }

    /// A heap in memory of its own, on a machine with so many pages.
    fn heap(pages: usize) -> (Heap, Vec<u128>) {
        let memory = vec![0_u128; (WINDOW + PAGE_SIZE) / 16];
        let base = VirtAddr::from_ptr(memory.as_ptr()).align_up(PAGE_SIZE as u64).unwrap();
        let heap = Heap::new(base, WINDOW as u64);
        PAGES.set(pages);
        TOP.set(base.0);
        // SAFETY: the window lies in `memory`, which the test keeps.
        unsafe { heap.start(grow) };
        (heap, memory)
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn heap_that_was_not_started_has_nothing() {
        let heap = Heap::new(VirtAddr(0x1000), 0x1000);
        assert!(heap.alloc(layout(1, 1)).is_null());
        assert_eq!(heap.stats(), HeapStats { total: 0, used: 0, free: 0, allocations: 0 });
    }

    #[test]
    fn sizes_and_alignments_are_rounded_to_sixteen() {
        let (heap, _memory) = heap(64);
        let (first, second) = (heap.alloc(layout(1, 1)), heap.alloc(layout(17, 2)));
        assert!(first.addr().is_multiple_of(16) && second.addr().is_multiple_of(16));
        assert_eq!(heap.stats().used, 16 + 32);
        assert_eq!(heap.stats().allocations, 2);
    }

    #[test]
    fn growth_takes_what_is_left_when_the_usual_step_is_too_much() {
        let (heap, _memory) = heap(3);
        assert!(!heap.alloc(layout(PAGE_SIZE, 16)).is_null());
        assert_eq!(heap.stats().total, 2 * PAGE_SIZE);
    }

    #[test]
    fn running_out_is_null_and_changes_nothing() {
        let (heap, _memory) = heap(20);
        let object = heap.alloc(layout(100, 16));
        let before = heap.stats();
        assert!(heap.alloc(layout(64 * PAGE_SIZE, 16)).is_null(), "larger than the window");
        assert!(heap.alloc(layout(30 * PAGE_SIZE, 16)).is_null(), "more than the machine has");
        assert!(heap.alloc(layout(isize::MAX as usize - 4096, 4096)).is_null());
        assert!(heap.alloc(layout(isize::MAX as usize - 15, 1)).is_null());
        assert_eq!(heap.stats(), before);
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(object, layout(100, 16)) };
        assert_eq!(heap.stats().used, 0);
    }

    #[test]
    fn the_window_can_be_used_up_and_all_of_it_comes_back() {
        let (heap, _memory) = heap(1000);
        let page = layout(PAGE_SIZE, PAGE_SIZE);
        let objects: Vec<_> = core::iter::from_fn(|| NonNull::new(heap.alloc(page))).collect();
        assert_eq!(objects.len(), WINDOW / PAGE_SIZE);
        for object in &objects {
            // SAFETY: allocated above with this layout.
            unsafe { heap.dealloc(object.as_ptr(), page) };
        }
        assert_eq!(heap.stats(), HeapStats { total: WINDOW, used: 0, free: WINDOW, allocations: 0 });
        assert!(!heap.alloc(layout(WINDOW, 16)).is_null(), "the holes were not joined");
    }

    proptest! {
        #[test]
        fn objects_never_overlap_and_all_come_back(
            steps in prop::collection::vec((any::<bool>(), 0..9000_usize, 0..13_u32, any::<usize>()), 1..120),
        ) {
            let (heap, _memory) = heap(48);
            let mut in_use: BTreeMap<usize, Layout> = BTreeMap::new();
            for (free, size, align, which) in steps {
                if free && !in_use.is_empty() {
                    let start = *in_use.keys().nth(which % in_use.len()).unwrap();
                    let layout = in_use.remove(&start).unwrap();
                    // SAFETY: in use, with this layout.
                    unsafe { heap.dealloc(core::ptr::with_exposed_provenance_mut(start), layout) };
                    continue;
                }
                let layout = layout(size, 1 << align);
                let object = heap.alloc(layout);
                if object.is_null() {
                    continue;
                }
                let start = object.expose_provenance();
                prop_assert!(start.is_multiple_of(layout.align().max(16)));
                prop_assert!(start as u64 + size as u64 <= TOP.get(), "beyond what is mapped");
                prop_assert!(heap.contains(object));
                let end = start + size.max(1);
                let clash = in_use.iter().any(|(other, l)| *other < end && start < other + l.size().max(1));
                prop_assert!(!clash, "two owners");
                // SAFETY: the object is the test's.
                unsafe { object.write_bytes(0xff, size) };
                in_use.insert(start, layout);
                prop_assert_eq!(heap.stats().allocations, in_use.len());
            }
            for (start, layout) in in_use {
                // SAFETY: in use, with this layout.
                unsafe { heap.dealloc(core::ptr::with_exposed_provenance_mut(start), layout) };
            }
            let stats = heap.stats();
            prop_assert_eq!((stats.used, stats.free, stats.allocations), (0, stats.total, 0));
        }
    }
}
