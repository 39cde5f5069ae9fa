//! The kernel's heap: objects of any size, in a window of virtual addresses that only this file hands out from.
//!
//! ```text
//! base                                  top                           base + size
//!  ├── in use, holes ─┤ pages out ├─ ... ─┤  ← grows by mapping frames here   ┤
//! ```
//!
//! `linked_list_allocator` keeps the holes, sorted and merged; both of its operations walk that list, so the heap is
//! for what is rare (vectors, names, tables of drivers), and never for a hot path: those have pools. Every size and
//! alignment is rounded up to 16 bytes, the granule of memory tags, so that no two objects share one.
//!
//! Growing maps frames, which takes the locks of page tables and page blocks. Those come before the list's lock, so the
//! heap grows *before* it takes that lock: try, release, grow, retry.
//!
//! **Free pages go back** ([`Heap::trim`]): at the end of a process if there are more than the heap grows by, and all of
//! them where memory is short. To the list, pages that are *out* are an object in use: taken from it first, then
//! unmapped, and never accessed. The heap grows by these addresses before it grows at its top. Freeing an object cannot
//! do that, since its caller may hold any lock before the list's.
//!
//! Samples of the objects are elsewhere, between pages that fault, if the boot arguments ask for it ([`guarded`]).
//!
//! Where memory has tags, each object gets one of its own ([`tags`]), from [`Heap::start_tags`] on; what was allocated
//! before has none, and its untagged pointer says so. A wrong access then faults, and `report` finds the object that it
//! was meant for.
//!
//! Running out is a null pointer, which `try_reserve` and its like turn into an error value.

#![allow(unsafe_code, reason = "the global allocator")]

mod calls;
pub mod guarded;
#[cfg(any(target_os = "none", test))]
mod report;
mod tags;

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};

use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};

use super::OutOfMemory;
use crate::sched::relax;
use crate::sync::{IrqLock, rank};

pub use tags::BadFree;
use tags::Tagger;

/// Sizes and alignments are multiples of this.
const GRANULE: usize = granule_arch::mte::GRANULE as usize;
/// Pages that the heap grows by, unless more are needed or fewer are left; and that stay free at the end of a process.
pub const GROWTH_PAGES: usize = 16;
/// Pages that go back in one piece, with interrupts masked.
const TRIM_PAGES: usize = 16;
/// Ranges that may be out.
const RANGES: usize = 64;

/// Maps `pages` fresh frames, readable and writable, from `top` on. On an error nothing is mapped that was not before.
///
/// Called with interrupts masked and the rank `HEAP_GROWTH` held; it must not allocate from the heap.
pub type Grow = fn(top: VirtAddr, pages: usize) -> Result<(), OutOfMemory>;

/// Unmaps `pages` pages from `start` on, which [`Grow`] has mapped and nothing uses, and frees their frames.
///
/// Called as [`Grow`] is.
pub type Shrink = fn(start: VirtAddr, pages: usize);

/// A heap in a window of its own.
pub struct Heap {
    base: VirtAddr,
    size: u64,
    growth: IrqLock<Growth, { rank::HEAP_GROWTH }>,
    list: IrqLock<HoleList, { rank::HEAP }>,
}

/// The state of growing and shrinking.
struct Growth {
    /// Bytes of the window that are the list's: mapped, or out.
    mapped: u64,
    /// `None` until [`Heap::start`]: the heap is empty and cannot grow.
    frames: Option<(Grow, Shrink)>,
}

/// Whole pages that are unmapped, below the top.
#[derive(Clone, Copy, Debug)]
struct RangeOut {
    start: VirtAddr,
    bytes: u64,
}

impl RangeOut {
    fn end(&self) -> VirtAddr {
        self.start + self.bytes
    }
}

/// The pages that are out. Two ranges do not touch.
struct PagesOut {
    ranges: heapless::Vec<RangeOut, RANGES>,
    bytes: u64,
}

impl PagesOut {
    /// Whether `address` is unmapped.
    fn has(&self, address: VirtAddr) -> bool {
        self.overlaps(address, 1)
    }

    /// Whether one of the `bytes` bytes from `start` on, which do not wrap, is unmapped.
    #[cold]
    fn overlaps(&self, start: VirtAddr, bytes: u64) -> bool {
        self.ranges.iter().any(|range| range.start < start + bytes && start < range.end())
    }

    /// Adds pages; returns whether there was room for them.
    fn add(&mut self, start: VirtAddr, bytes: u64) -> bool {
        let mut whole = RangeOut { start, bytes };
        self.ranges.retain(|range| {
            let touches = range.end() == whole.start || range.start == whole.end();
            if touches {
                whole = RangeOut { start: whole.start.min(range.start), bytes: whole.bytes + range.bytes };
            }
            !touches
        });
        let added = self.ranges.push(whole).is_ok();
        self.bytes += if added { bytes } else { 0 };
        added
    }

    /// The first range in which so many bytes could be mapped again.
    fn find(&self, bytes: u64) -> Option<RangeOut> {
        self.ranges.iter().find(|range| range.bytes >= bytes).copied()
    }

    /// Takes away the first pages of the range that begins at `start`.
    fn remove(&mut self, start: VirtAddr, bytes: u64) {
        for range in self.ranges.iter_mut().filter(|range| range.start == start) {
            *range = RangeOut { start: start + bytes, bytes: range.bytes - bytes };
        }
        self.ranges.retain(|range| range.bytes != 0);
        self.bytes -= bytes;
    }
}

struct HoleList {
    /// It accesses its holes through untagged addresses.
    holes: linked_list_allocator::Heap,
    /// Objects in use that have no tag.
    untagged: usize,
    /// Those that have one.
    tagged: usize,
    /// From [`Heap::start_tags`] on.
    tagger: Option<Tagger>,
    /// Pages that the list counts as in use, and that are not mapped.
    out: PagesOut,
    /// The list's memory below this address is mapped: its end, or the lowest page that is out.
    whole_below: u64,
}

impl HoleList {
    /// To be called when the list's memory or the pages that are out have changed.
    fn note_change(&mut self) {
        let out = self.out.ranges.iter().map(|range| range.start.0);
        self.whole_below = out.min().unwrap_or(self.holes.top().addr() as u64);
    }

    /// Whether an object of `bytes` bytes at `start` in the window, with a record if it `has_tag`, is in the list's memory,
    /// and mapped: a page is out before it is unmapped, and in again after it is mapped, both with the list locked.
    fn is_mapped(&self, start: VirtAddr, bytes: usize, has_tag: bool) -> bool {
        let end_with_record = start.0.saturating_add((bytes + tags::RECORD) as u64);
        end_with_record <= self.whole_below || self.is_exactly_mapped(start, bytes, has_tag)
    }

    #[cold]
    fn is_exactly_mapped(&self, start: VirtAddr, bytes: usize, has_tag: bool) -> bool {
        let bytes = bytes + if has_tag { tags::RECORD } else { 0 };
        let (bottom, top) = (self.holes.bottom().addr() as u64, self.holes.top().addr() as u64);
        let is_inside = start.0 >= bottom && start.0 < top && bytes as u64 <= top - start.0;
        is_inside && !self.out.overlaps(start, bytes as u64)
    }
}

/// How full the heap is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapStats {
    /// Bytes mapped.
    pub total: usize,
    /// Bytes in use, after rounding, with the records after objects with tags.
    pub used: usize,
    /// Bytes in holes, and of objects that are kept for the next of their size.
    pub free: usize,
    /// Objects in use.
    pub allocations: usize,
    /// Those of them that have a tag.
    pub tagged: usize,
}

impl Heap {
    /// An empty heap in the `size` bytes from `base` on, both multiples of [`PAGE_SIZE`]; nothing of the window is
    /// mapped. Until [`Self::start`] every allocation fails.
    pub const fn new(base: VirtAddr, size: u64) -> Self {
        assert!(base.is_aligned(PAGE) && size.is_multiple_of(PAGE));
        Self {
            base,
            size,
            growth: IrqLock::new(Growth { mapped: 0, frames: None }),
            list: IrqLock::new(HoleList {
                holes: linked_list_allocator::Heap::empty(),
                untagged: 0,
                tagged: 0,
                tagger: None,
                out: PagesOut { ranges: heapless::Vec::new(), bytes: 0 },
                whole_below: 0,
            }),
        }
    }

    /// Lets the heap grow by `grow`, and give pages back by `shrink`. Frames and the kernel's page tables are up by now.
    ///
    /// # Safety
    /// The window is this heap's alone, and what `grow` maps stays mapped until `shrink` unmaps it.
    pub unsafe fn start(&self, grow: Grow, shrink: Shrink) {
        self.growth.lock().frames = Some((grow, shrink));
    }

    /// The mapped part of the window while no page is out: its start, and the bytes.
    pub fn mapped(&self) -> (VirtAddr, u64) {
        (self.base, self.growth.lock().mapped)
    }

    /// Gives tags to the objects that are allocated from now on, drawn with `seed`, and to all memory that has none.
    /// Called once, and not while a lock of the rank `HEAP_GROWTH` or a later one is held.
    ///
    /// # Safety
    /// The window's memory has tags ([`granule_arch::mte`]), and what was allocated so far is accessed through untagged
    /// pointers.
    pub unsafe fn start_tags(&self, seed: u64) {
        let growth = self.growth.lock();
        let mut list = self.list.lock();
        let pages = (0..growth.mapped).step_by(PAGE_SIZE).map(|offset| self.base + offset);
        for page in pages.filter(|&page| !list.out.has(page)) {
            // SAFETY: mapped so far; the list and all objects are accessed through untagged pointers.
            unsafe { tags::set_free(page, PAGE) };
        }
        list.tagger = Some(Tagger::new(seed));
    }

    /// Memory for `layout`, with whatever it held before; null where there is none. A size of 0 gets memory too.
    ///
    /// Not while a lock of the rank `HEAP_GROWTH` or a later one is held.
    pub fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(layout) = round(layout) else { return null_mut() };
        self.take(layout).or_else(|| self.grow_and_take(layout)).map_or(null_mut(), NonNull::as_ptr)
    }

    /// Takes the object back. Not while a lock of the rank `HEAP` or a later one is held; interrupt handlers may call
    /// it.
    ///
    /// # Errors
    /// [`BadFree`]: `object` has a tag, and is not one in use with this `layout`; or the pointer has lost its tag; or its
    /// memory, in the heap's window, is not mapped now, as that of pages that went back. Nothing is changed.
    ///
    /// # Safety
    /// `object` came from [`Self::alloc`] of this heap with the same `layout`, and is not used any more.
    pub unsafe fn dealloc(&self, object: *mut u8, layout: Layout) -> Result<(), BadFree> {
        let (Some(untagged), Some(layout)) = (NonNull::new(object), round(layout)) else { return Ok(()) };
        let pointer = VirtAddr(object.expose_provenance() as u64);
        let mut list = self.list.lock();
        let list = &mut *list;
        // The following code reads the object, its tag and the record after it.
        let has_tag = tags::is_tagged(pointer) && list.tagger.is_some();
        if !list.is_mapped(pointer.canonical(), layout.size(), has_tag) {
            return Err(BadFree { pointer, bytes: layout.size() as u64 });
        }
        match &mut list.tagger {
            Some(tagger) if has_tag => {
                // SAFETY: mapped, as `is_mapped` has it, while the list is locked; else the caller's contract.
                unsafe { tags::give_back(&mut list.holes, tagger, pointer, layout) }?;
                list.tagged -= 1;
            }
            // The list would take the object without its record, and count it among those that never had a tag.
            // SAFETY: as above.
            Some(_) if unsafe { tags::has_tag(pointer) } => {
                return Err(BadFree { pointer, bytes: layout.size() as u64 });
            }
            _ => {
                // SAFETY: by the caller's contract the list gave this out, for the layout as rounded here and there.
                unsafe { list.holes.deallocate(untagged, layout) };
                list.untagged -= 1;
            }
        }
        Ok(())
    }

    /// Whether `pointer` is into the window, whatever its tag.
    pub fn contains(&self, pointer: *const u8) -> bool {
        VirtAddr(pointer.addr() as u64).canonical().0.wrapping_sub(self.base.0) < self.size
    }

    /// How full the heap is now. Not while a lock of the rank `HEAP_GROWTH` or a later one is held.
    pub fn stats(&self) -> HeapStats {
        // No page is on its way.
        let _growth = self.growth.lock();
        let list = self.list.lock();
        let kept = list.tagger.as_ref().map_or(0, Tagger::kept_bytes);
        let out = list.out.bytes as usize;
        let (total, used) = (list.holes.size() - out, list.holes.used() - kept - out);
        HeapStats { total, used, free: total - used, allocations: list.untagged + list.tagged, tagged: list.tagged }
    }

    fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut list = self.list.lock();
        let HoleList { holes, untagged, tagged, tagger, out, .. } = &mut *list;
        let (object, count) = match tagger {
            Some(tagger) => (tags::take(holes, tagger, layout, out)?, tagged),
            None => (holes.allocate_first_fit(layout).ok()?, untagged),
        };
        *count += 1;
        Some(object)
    }

    /// Grows until `layout` fits or growing fails. One CPU at a time: the others find what it mapped.
    #[cold]
    fn grow_and_take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut growth = self.growth.lock();
        let mut list = self.list.lock();
        let HoleList { holes, tagger, .. } = &mut *list;
        if let Some(tagger) = tagger {
            tagger.give_up(holes);
        }
        drop(list);
        // Room for the object, its record, and the hole that aligning it leaves in front. The loop ends: once so much
        // was added at the top in one piece, only other CPUs can have taken it, and then the next round adds as much
        // again.
        let pages = (layout.size() + tags::RECORD + layout.align()).div_ceil(PAGE_SIZE);
        loop {
            if let Some(object) = self.take(layout) {
                return Some(object);
            }
            let most = pages.max(GROWTH_PAGES);
            self.grow(&mut growth, pages, most).or_else(|_| self.grow(&mut growth, pages, pages)).ok()?;
        }
    }

    /// Gives free pages back until at most about `keep` are left, or none is whole; returns how many went. Allocations
    /// of others may come in between. Not while a lock of the rank `HEAP_GROWTH` or a later one is held, and not with
    /// interrupts masked: others run between two pieces.
    pub fn trim(&self, keep: usize) -> usize {
        // No more than it has now: others may make it grow concurrently.
        let most = self.list.lock().holes.size() / PAGE_SIZE;
        let mut trimmed = 0;
        while trimmed < most {
            match self.trim_piece(keep) {
                0 => break,
                pages => trimmed += pages,
            }
            relax();
        }
        trimmed
    }

    /// Gives some free pages back, if there are some beside `keep`; returns how many.
    fn trim_piece(&self, keep: usize) -> usize {
        let growth = self.growth.lock();
        let mut list = self.list.lock();
        let HoleList { holes, tagger, out, .. } = &mut *list;
        let kept = tagger.as_ref().map_or(0, Tagger::kept_bytes);
        let Some((_, shrink)) = growth.frames.filter(|_| !holes.bottom().is_null()) else { return 0 };
        let free = (holes.size() - holes.used() + kept) / PAGE_SIZE;
        let mut pages = free.saturating_sub(keep).min(TRIM_PAGES);
        if pages == 0 {
            return 0;
        }
        if let Some(tagger) = tagger {
            tagger.give_up(holes);
        }
        while let Ok(whole) = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE)
            && pages != 0
        {
            if let Ok(start) = holes.allocate_first_fit(whole) {
                let at = VirtAddr::from_ptr(start.as_ptr());
                if out.add(at, whole.size() as u64) {
                    list.note_change();
                    drop(list);
                    shrink(at, pages);
                    return pages;
                }
                // SAFETY: just taken, with this layout.
                unsafe { holes.deallocate(start, whole) };
            }
            pages /= 2;
        }
        0
    }

    /// Adds `most` pages at the top, or at least `least` where as many are out.
    fn grow(&self, growth: &mut Growth, least: usize, most: usize) -> Result<(), OutOfMemory> {
        let (grow, _) = growth.frames.ok_or(OutOfMemory)?;
        let found = self.list.lock().out.find((least * PAGE_SIZE) as u64);
        if let Some(RangeOut { start, bytes }) = found {
            let bytes = (bytes as usize).min(most * PAGE_SIZE);
            let whole = Layout::from_size_align(bytes, PAGE_SIZE).map_err(|_| OutOfMemory)?;
            grow(start, bytes / PAGE_SIZE)?;
            let mut list = self.list.lock();
            if list.tagger.is_some() {
                // SAFETY: as below.
                unsafe { tags::set_free(start, bytes as u64) };
            }
            list.out.remove(start, bytes as u64);
            // SAFETY: the list gave the pages out as a part of an object, in whole granules, and they are mapped again.
            unsafe { list.holes.deallocate(NonNull::new(start.as_ptr()).ok_or(OutOfMemory)?, whole) };
            list.note_change();
            return Ok(());
        }
        let bytes = most * PAGE_SIZE;
        if self.size - growth.mapped < bytes as u64 {
            return Err(OutOfMemory);
        }
        let top = self.base + growth.mapped;
        grow(top, most)?;
        growth.mapped += bytes as u64;
        let mut list = self.list.lock();
        if list.tagger.is_some() {
            // SAFETY: the pages were just mapped, for the list alone. Frames keep the tags of their use before.
            unsafe { tags::set_free(top, bytes as u64) };
        }
        if list.holes.bottom().is_null() {
            // SAFETY: the list is empty, and the pages at the bottom of the window were just mapped for it alone.
            unsafe { list.holes.init(top.as_ptr(), bytes) };
        } else {
            // SAFETY: the pages follow those that the list has, and were just mapped for it alone.
            unsafe { list.holes.extend(bytes) };
        }
        list.note_change();
        Ok(())
    }
}

/// `layout` in whole granules; `None` where that is more than an address space.
fn round(layout: Layout) -> Option<Layout> {
    let align = layout.align().max(GRANULE);
    let size = layout.size().max(1).checked_next_multiple_of(GRANULE)?;
    Layout::from_size_align(size, align).ok()
}

/// The one heap of the target, which the language's `alloc` uses.
#[cfg(target_os = "none")]
mod global {
    use core::alloc::{GlobalAlloc, Layout};
    use core::ptr::NonNull;

    use granule_arch::patched_branch;

    use super::{Heap, guarded, report};
    use crate::mm::layout::{HEAP_BASE, HEAP_SIZE};
    use crate::platform::features::branch;
    use crate::smp::{Cpu, this_cpu};
    use crate::sync::rank;

    #[global_allocator]
    static HEAP: Heap = Heap::new(HEAP_BASE, HEAP_SIZE);

    /// The kernel's heap, to start it and to ask how full it is.
    pub fn kernel_heap() -> &'static Heap {
        &HEAP
    }

    /// Out of line, so that where nothing is sampled an allocation has only a NOP more.
    #[inline(never)]
    fn alloc_with_samples(heap: &Heap, cpu: &Cpu, layout: Layout) -> *mut u8 {
        guarded::alloc(cpu, layout).map_or_else(|| heap.alloc(layout), NonNull::as_ptr)
    }

    // SAFETY: heap, guarded heap and arena each keep the contract, and an address identifies which of them it came from.
    unsafe impl GlobalAlloc for Heap {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let cpu = this_cpu();
            if let Some(arena) = cpu.node_arena().get() {
                return arena.alloc(layout);
            }
            debug_assert!(
                cpu.held_ranks().bits() >> rank::HEAP_GROWTH == 0,
                "allocation under a lock that the heap's growth may need",
            );
            if patched_branch!(branch::GUARDED_HEAP) {
                return alloc_with_samples(self, cpu, layout);
            }
            Self::alloc(self, layout)
        }

        unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
            if self.contains(object) {
                // SAFETY: the object is in the heap's window, so it came from the heap; the caller keeps the contract.
                if let Err(bad) = unsafe { Self::dealloc(self, object, layout) } {
                    report::bad_free(&bad);
                }
            // SAFETY: an object in the guarded heap's pages came from there; the caller keeps the contract.
            } else if patched_branch!(branch::GUARDED_HEAP) && unsafe { guarded::dealloc(object, layout) } {
                // It was one.
            } else if let Some(arena) = this_cpu().node_arena().get() {
                debug_assert!(arena.contains(object));
                // SAFETY: what is not the heap's is a node of the sets that this CPU is changing.
                unsafe { arena.dealloc(object) };
            }
        }
    }
}

#[cfg(target_os = "none")]
pub use global::kernel_heap;
#[cfg(target_os = "none")]
pub(crate) use report::describe_tags;

#[cfg(test)]
mod tests;
