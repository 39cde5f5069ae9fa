//! Memory that is contiguous virtually and nowhere else: `vmalloc`, `vmap`, device registers, stacks.
//!
//! An area is taken in a tree first and mapped then; it is unmapped first, everywhere, and given back then. So at no
//! time does an address that a CPU may still reach have another owner. The frames of an area are written down in
//! the page tables and nowhere else: `vfree` reads them there.

#![allow(unsafe_code, reason = "an entry that the lab breaks behind the tables' back; frames that others own")]

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::cache::clean_and_invalidate_to_memory;
use granule_arch::descriptor::{Attributes, MemoryType, bits};
use granule_arch::{interrupts, patched_branch};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Error, Execution, Lazy, Leaf, Leaves, PageRange, Shape};
use thiserror::Error;

use super::area::{AreaKind, FreeingArea};
use super::owners::RangeOwnerCheck;
use super::split::LeafSplitter;
use super::{KernelSpace, Machine, alias};
use crate::lab;
use crate::mm::frame::{FrameList, Freeing};
use crate::mm::layout::{STACK_ALIGN, STACK_SIZE};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE, GROUP, MAX_ORDER};
use crate::mm::tag_storage::Unreserved;
use crate::mm::{OutOfMemory, layout};
use crate::platform::features::branch;
use crate::smp::Cpu;

/// Why `vmalloc`, `vmap`, or what ends them, was refused. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum VmallocError {
    /// No pages were asked for.
    #[error("an area has at least one page")]
    NoPages,
    /// No frames, tables or records are left.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// No gap in the vmalloc window is large enough.
    #[error("no {pages} pages of vmalloc addresses are free in a row")]
    NoAddresses {
        /// The pages of the request.
        pages: u64,
    },
    /// The page tables refused.
    #[error("{0}")]
    Tables(#[from] Error),
    /// No area starts there.
    #[error("no vmalloc area starts at {0}")]
    NotAnArea(VirtAddr),
    /// The area is not of the kind that may be unmapped so.
    #[error("the area at {0} is of another kind ({1:?}), which this call does not unmap")]
    WrongKind(VirtAddr, AreaKind),
    /// An address that `vmap` was given is not page aligned, or not memory that the linear map shows as writable.
    #[error("{0} is not the address of a frame that the linear map shows as writable")]
    NotMemory(PhysAddr),
    /// The address at which registers were to be mapped is memory.
    #[error("{0} is memory that the linear map shows, and no register")]
    NotRegisters(PhysAddr),
}

impl VmallocError {
    /// Whether memory, and nothing else, is what was missing.
    const fn is_shortage(self) -> bool {
        matches!(self, Self::OutOfMemory(_) | Self::Tables(Error::OutOfTables { .. }))
    }
}

/// No block's address.
const END_OF_RUN: u64 = u64::MAX;

/// The attributes of pages of areas: their owner may change them.
const AREA: Attributes = Attributes::kernel_data(MemoryType::NormalTagged).vm_alloc();
/// The attributes of pages of given frames.
const MAPPED: Attributes = Attributes::kernel_data(MemoryType::NormalTagged).vm_map();

/// Blocks, groups and pages, as they fit.
const LARGEST: Shape = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };

/// Pages from `vmalloc`.
///
/// Having one proves: [`pages`](Self::pages) pages from [`start`](Self::start) on are mapped, by leaves of any size,
/// readable, writable and not executable unless their owner changed that, with an unmapped page before and after; and
/// they stay until [`KernelSpace::vfree`].
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the pages stay taken until they are given to vfree"]
pub struct KernelArea {
    start: VirtAddr,
    pages: u64,
}

impl KernelArea {
    /// First address, page aligned.
    pub const fn start(&self) -> VirtAddr {
        self.start
    }

    /// Pages in it, at least 1.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The area stays until its address is given to [`KernelSpace::vfree_at`].
    pub const fn into_start(self) -> VirtAddr {
        self.start
    }
}

impl KernelSpace {
    /// Maps `pages` pages of new memory, wherever addresses are free. Their contents are undefined.
    ///
    /// By the largest leaves for which there is memory in one piece: 2 MiB blocks, contiguous groups, pages. Each page
    /// may change alone, so with `split=refuse` they are all pages ([`super::policy::Policy::area_leaves`]).
    ///
    /// Sleeps for nothing and may be called with interrupts masked, not from handlers (it takes a lock of areas).
    ///
    /// # Errors
    /// [`VmallocError`]; nothing stays taken.
    pub fn vmalloc(&self, cpu: &Cpu, pages: u64) -> Result<KernelArea, VmallocError> {
        if pages >= GROUP as u64 && self.policy().area_leaves == Leaves::Largest {
            return self.vmalloc_largest(cpu, pages);
        }
        let map = |start| self.map_new_frames(cpu, start, pages, AREA, Leaves::Pages);
        self.new_area(cpu, pages, PAGE, map)
    }

    /// As [`Self::vmalloc`], of a whole number of 2 MiB blocks, as many as `pages` take, and by blocks wherever there
    /// is memory for them, whether these can be split or not: where they cannot, a change of a part of one is refused
    /// ([`SetMemoryError::Partial`](super::set_memory::SetMemoryError::Partial)).
    ///
    /// # Errors
    /// As [`Self::vmalloc`].
    pub fn vmalloc_huge(&self, cpu: &Cpu, pages: u64) -> Result<KernelArea, VmallocError> {
        let whole = pages.checked_next_multiple_of(BLOCK_FRAMES as u64);
        self.vmalloc_largest(cpu, whole.ok_or(VmallocError::NoAddresses { pages })?)
    }

    /// An area by the largest leaves.
    #[inline(never)]
    fn vmalloc_largest(&self, cpu: &Cpu, pages: u64) -> Result<KernelArea, VmallocError> {
        let blocks = pages / BLOCK_FRAMES as u64;
        let align = match blocks.checked_ilog2() {
            None => (GROUP * PAGE_SIZE) as u64,
            // Groups of blocks, and what may become a larger leaf some day.
            Some(order) => BLOCK_SIZE << order.min(MAX_ORDER),
        };
        self.new_area(cpu, pages, align, |start| self.map_largest(cpu, start, pages))
    }

    #[inline(always)]
    fn new_area(
        &self,
        cpu: &Cpu,
        pages: u64,
        align: u64,
        map: impl Fn(VirtAddr) -> Result<(), VmallocError>,
    ) -> Result<KernelArea, VmallocError> {
        let start = self.allocate(cpu, AreaKind::Vmalloc, pages, align, map)?;
        if lab::is_on!(WX_LEAF) {
            self.make_writable_and_executable(start);
        }
        Ok(KernelArea { start, pages })
    }

    /// `lab=wx-leaf`. Neither attributes nor changes have a value for it, so the entry is written without them.
    #[cold]
    fn make_writable_and_executable(&self, page: VirtAddr) {
        let tables = self.tables();
        let Some(leaf) = tables.walk(page).last() else { return };
        let cell = self.frames.linear().address(leaf.table + (leaf.index * size_of::<u64>()) as u64);
        // SAFETY: the entry of the page that was just mapped, in a table that stays until the walk ends; an atomic like
        // all of them.
        unsafe { &*cell.as_ptr::<AtomicU64>() }.fetch_and(!bits::PXN, Ordering::Relaxed);
    }

    /// Unmaps and frees an area.
    ///
    /// Until an invalidation that serves many areas is complete, TLBs may still hold its pages, and its frames and addresses
    /// stay taken; [`Self::purge`] completes it where an access must fault. An area with a read-only page, or with more
    /// pages than `vmalloc.lazy=`, is invalidated and freed before this returns; so is every area where few frames are
    /// free, and with `debug_pagealloc=on`.
    ///
    /// Sleeps for nothing. With interrupts masked areas only add up, beyond that limit too. Not from interrupt handlers, or
    /// with a lock held: it takes locks of areas.
    pub fn vfree(&self, cpu: &Cpu, area: KernelArea) {
        let freed = self.vfree_at(cpu, area.start);
        freed.unwrap_or_else(|error| panic!("a KernelArea is in the tree and of its kind: {error}"));
    }

    /// [`Self::vfree`] of the area that starts at `start`. Returns how many pages it had.
    ///
    /// # Errors
    /// [`VmallocError::NotAnArea`], [`VmallocError::WrongKind`]; nothing was changed.
    pub fn vfree_at(&self, cpu: &Cpu, start: VirtAddr) -> Result<u64, VmallocError> {
        // Marked under the lock, so that of two calls for the same area one is refused.
        let freeing = self.areas.begin_free(start, AreaKind::Vmalloc).map_err(|found| not_unmapped(start, found))?;
        let range = PageRange::from_pages(freeing.start(), freeing.pages() as usize)?;
        let area =
            if patched_branch!(branch::LAZY_UNMAP) { self.free_lazily(cpu, range, freeing) } else { Some(freeing) };
        if let Some(area) = area {
            self.release(cpu, range, area)?;
        }
        Ok(range.pages() as u64)
    }

    /// Maps the caller's `frames` one after the other, between guard pages: readable and writable until
    /// `set_memory_*` changes that, never executable. A frame may be given more than once, as for a ring that is mapped
    /// twice in a row. Returns the address of the first.
    ///
    /// Frames that follow one another are mapped by the largest leaves that their alignment allows; by pages where
    /// areas are ([`super::policy::Policy::area_leaves`]). The alias of the frames in the linear map stays as it is.
    /// Not from interrupt handlers.
    ///
    /// # Errors
    /// [`VmallocError`]: nothing is mapped, nothing stays taken. Without frames it is [`VmallocError::NoPages`].
    ///
    /// # Safety
    /// Each frame stays the caller's until [`Self::vunmap`], and none is of an area from `vmalloc`, whose owner alone may
    /// make it executable.
    pub unsafe fn vmap(&self, cpu: &Cpu, frames: &[PhysAddr]) -> Result<VirtAddr, VmallocError> {
        if let Some(&frame) = frames.iter().find(|&&frame| !self.is_shown_writable(frame)) {
            return Err(VmallocError::NotMemory(frame));
        }
        let runs = || frames.chunk_by(|&frame, &next| next.0 == frame.0 + PAGE);
        let (mut align, mut offset) = (PAGE, 0);
        for run in runs() {
            let bytes = (run.len() * PAGE_SIZE) as u64;
            align = align.max(largest_leaf(run[0].0.wrapping_sub(offset), bytes));
            offset += bytes;
        }
        let shape = Shape { leaves: self.policy().area_leaves, ..LARGEST };
        let map = |start| {
            let lazy = Lazy::new(&self.mmu);
            let mut at = start;
            for run in runs() {
                let mapped = self.map_run(cpu, &lazy, at, run[0], run.len(), MAPPED, shape);
                mapped.inspect_err(|_| self.unmap_mapped(start, at - start, None))?;
                at = at + (run.len() * PAGE_SIZE) as u64;
            }
            Ok(())
        };
        self.allocate(cpu, AreaKind::Mapped, frames.len() as u64, align, map)
    }

    /// Unmaps the area from [`Self::vmap`] that starts at `start`. Returns how many pages it had.
    ///
    /// On return no CPU reaches the frames through it: they are the caller's alone again. None is freed. Not from
    /// interrupt handlers.
    ///
    /// # Errors
    /// [`VmallocError::NotAnArea`], [`VmallocError::WrongKind`]; nothing was changed.
    pub fn vunmap(&self, cpu: &Cpu, start: VirtAddr) -> Result<u64, VmallocError> {
        let freeing = self.areas.begin_free(start, AreaKind::Mapped).map_err(|found| not_unmapped(start, found))?;
        let range = PageRange::from_pages(start, freeing.pages() as usize)?;
        self.unmap_mapped(start, range.size(), None);
        self.areas.remove_seldom(freeing);
        self.reclaim_after(cpu, range);
        Ok(range.pages() as u64)
    }

    /// Whether `frame` is the address of a frame that the linear map shows, writable: what is read-only there may be
    /// executable elsewhere.
    fn is_shown_writable(&self, frame: PhysAddr) -> bool {
        let is_frame = frame.is_aligned(PAGE) && frame.0 < layout::LINEAR_SIZE;
        let shown = is_frame.then(|| self.tables().translate(layout::linear(frame))).flatten();
        shown.is_some_and(|leaf| leaf.valid && leaf.descriptor.is_writable())
    }

    /// Whether any of `pages` pages from `first` on is memory that the linear map shows.
    fn shows_any(&self, first: PhysAddr, pages: u64) -> bool {
        let pages = pages.min(layout::LINEAR_SIZE.saturating_sub(first.0) / PAGE);
        let range = PageRange::from_pages(VirtAddr(layout::LINEAR_BASE.0.wrapping_add(first.0)), pages as usize);
        range.is_ok_and(|range| super::dump(&self.tables().get(), range, &mut |_| ()).bytes() != 0)
    }

    /// Maps `pages` pages from `at` on to the memory from `first` on.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "where, what and how")]
    fn map_run(
        &self,
        cpu: &Cpu,
        lazy: &Lazy<'_, Machine>,
        at: VirtAddr,
        first: PhysAddr,
        pages: usize,
        attributes: Attributes,
        shape: Shape,
    ) -> Result<(), VmallocError> {
        let range = PageRange::from_pages(at, pages)?;
        let _owner = RangeOwnerCheck::new(range);
        Ok(self.tables().get().map(lazy, range, first, attributes, shape, &mut self.table_source(cpu))?)
    }

    /// Maps device registers, for ever: nGnRE, by the largest leaves that their alignment allows. `set_memory_*` may
    /// change their permissions, never to executable. Returns where `registers` begins.
    ///
    /// # Errors
    /// [`VmallocError`], with [`VmallocError::NotRegisters`] for memory, which its owner may have made executable; nothing
    /// stays taken.
    pub fn map_device(&self, cpu: &Cpu, registers: PhysRange) -> Result<VirtAddr, VmallocError> {
        let first = registers.start().align_down(PAGE);
        let pages = (registers.end() - first).div_ceil(PAGE);
        if self.shows_any(first, pages) {
            return Err(VmallocError::NotRegisters(first));
        }
        let start = self.map_pages(cpu, AreaKind::Device, first, pages, Attributes::device().vm_map())?;
        Ok(start + (registers.start() - first))
    }

    /// Maps the caller's `pages` pages from `memory` on as Normal Non-cacheable, for a device that does not see the
    /// CPUs' caches (Linux's `dma_alloc_coherent`), until [`Self::vunmap`]. When this returns no cache has a dirty line
    /// of them. Their alias in the linear map stays, as Linux's does.
    ///
    /// # Errors
    /// [`VmallocError`]; nothing stays taken.
    ///
    /// # Safety
    /// The pages are the caller's until [`Self::vunmap`], and used through what this returns alone.
    pub unsafe fn map_uncached(&self, cpu: &Cpu, memory: PhysAddr, pages: u64) -> Result<VirtAddr, VmallocError> {
        let attributes = Attributes::kernel_data(MemoryType::NormalNonCacheable).vm_map();
        let start = self.map_pages(cpu, AreaKind::Mapped, memory, pages, attributes)?;
        // SAFETY: the linear map shows the caller's memory. A line that speculation fetches later is clean.
        unsafe { clean_and_invalidate_to_memory(self.frames.linear().address(memory), pages * PAGE) };
        Ok(start)
    }

    /// An area of `pages` pages of the memory from `first` on.
    fn map_pages(
        &self,
        cpu: &Cpu,
        kind: AreaKind,
        first: PhysAddr,
        pages: u64,
        attributes: Attributes,
    ) -> Result<VirtAddr, VmallocError> {
        let map = |start| self.map_run(cpu, &Lazy::new(&self.mmu), start, first, pages as usize, attributes, LARGEST);
        self.allocate(cpu, kind, pages, largest_leaf(first.0, pages * PAGE), map)
    }

    /// A new stack of [`STACK_SIZE`] bytes, with one page below that is never mapped; what lies below that page may be
    /// another area's. Returns its top, the first value of SP.
    ///
    /// # Errors
    /// [`VmallocError`]; nothing stays taken.
    pub fn alloc_stack(&self, cpu: &Cpu) -> Result<VirtAddr, VmallocError> {
        let attributes = Attributes::kernel_data(MemoryType::NormalTagged);
        let pages = STACK_SIZE / PAGE;
        let map = |start| self.map_new_frames(cpu, start, pages, attributes, Leaves::Pages);
        let base = self.allocate(cpu, AreaKind::Stack, pages, STACK_ALIGN, map)?;
        Ok(base + STACK_SIZE)
    }

    /// Unmaps and frees the stack with this top, on which no thread runs any more.
    ///
    /// # Panics
    /// Where there is no such stack.
    pub fn free_stack(&self, cpu: &Cpu, top: VirtAddr) {
        let freeing = self.begin_free(VirtAddr(top.0 - STACK_SIZE), AreaKind::Stack);
        let range = PageRange::new(freeing.start(), STACK_SIZE);
        let freed = range.and_then(|range| self.release(cpu, range, freeing));
        freed.unwrap_or_else(|error| panic!("a stack is mapped from end to end: {error}"));
    }

    /// Maps `pages` new frames from `start` on, outside the vmalloc window, until [`Self::unmap_heap`]: more heap.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing was mapped.
    pub fn map_heap(&self, cpu: &Cpu, start: VirtAddr, pages: usize) -> Result<(), OutOfMemory> {
        let attributes = Attributes::kernel_data(MemoryType::NormalTagged);
        let mut frames = self.frames_with_tags(cpu, pages)?;
        let mapped = self.map_list(cpu, start, pages as u64, attributes, Leaves::Pages, &mut frames);
        mapped.map_err(|error| {
            self.frames.free_list(cpu, frames);
            // The window is the heap's alone, so that tables or frames are missing is all that can be wrong.
            debug_assert!(error.is_shortage());
            OutOfMemory
        })
    }

    /// Unmaps `pages` pages from `start` on, which [`Self::map_heap`] has mapped, and frees their frames. Their tables stay
    /// for the heap.
    pub fn unmap_heap(&self, cpu: &Cpu, start: VirtAddr, pages: usize) {
        self.unmap_mapped(start, (pages * PAGE_SIZE) as u64, Some(&mut self.frames.freeing(cpu)));
    }

    /// Reserves tag storage for the `bytes` bytes from `start` on, which [`Self::map_heap`] has mapped before the heap had
    /// tags.
    ///
    /// # Errors
    /// [`Unreserved`]: the heap cannot have tags.
    pub fn reserve_heap_tags(&self, start: VirtAddr, bytes: u64) -> Result<(), Unreserved> {
        let tables = self.tables();
        let pages = (0..bytes).step_by(PAGE_SIZE).filter_map(|offset| tables.get().translate(start + offset));
        pages.map(|page| page.physical).try_for_each(|frame| self.reserve_tags(frame))
    }

    /// Frames for the heap, with storage for its tags. The heap may grow anywhere: nothing migrates for that, and frames
    /// whose storage is lent are left for others.
    fn frames_with_tags(&self, cpu: &Cpu, pages: usize) -> Result<FrameList, OutOfMemory> {
        /// Lists that are tried. Neighbours share their storage.
        const LISTS: usize = 8;
        let mut unfit = heapless::Vec::<FrameList, LISTS>::new();
        let found = loop {
            let Ok(frames) = self.frames.alloc_list(cpu, pages) else { break Err(OutOfMemory) };
            if !patched_branch!(branch::TAG_CHECKS) || frames.try_for_each(|frame| self.reserve_tags(frame)).is_ok() {
                break Ok(frames);
            }
            if let Err(frames) = unfit.push(frames) {
                self.frames.free_list(cpu, frames);
                break Err(OutOfMemory);
            }
        };
        unfit.into_iter().for_each(|frames| self.frames.free_list(cpu, frames));
        found
    }

    #[allow(unsafe_code, reason = "the record of a frame that is held")]
    fn reserve_tags(&self, frame: PhysAddr) -> Result<(), Unreserved> {
        let Some(storage) = self.frames.tag_storage() else { return Ok(()) };
        // SAFETY: the frame is the caller's, or the heap's.
        storage.try_reserve_long(frame, unsafe { self.frames.held(frame) })
    }

    /// Takes addresses for `pages` pages, and has `map` map them.
    fn allocate(
        &self,
        cpu: &Cpu,
        kind: AreaKind,
        pages: u64,
        align: u64,
        map: impl Fn(VirtAddr) -> Result<(), VmallocError>,
    ) -> Result<VirtAddr, VmallocError> {
        // Areas that wait for their invalidation, and tables that small ones have left empty, are the last memory that can
        // be taken, and addresses too. Once more in any case: another CPU may have freed them.
        let take = || self.areas.take(cpu, kind, pages, align);
        let start = take().or_else(|error| self.reclaim_for(cpu, error).and_then(|()| take()))?;
        let mapped = map(start).or_else(|error| self.reclaim_for(cpu, error).and_then(|()| map(start)));
        mapped.inspect_err(|_| self.areas.remove_seldom(self.begin_free(start, kind)))?;
        Ok(start)
    }

    /// Frees what can be, where that may help against `error`; otherwise returns it.
    #[cold]
    #[inline(never)]
    fn reclaim_for(&self, cpu: &Cpu, error: VmallocError) -> Result<(), VmallocError> {
        if !error.is_shortage() && !matches!(error, VmallocError::NoAddresses { .. }) {
            return Err(error);
        }
        self.reclaim(cpu);
        Ok(())
    }

    /// The frames come first, all of them, so that mapping them cannot fail half-way.
    fn map_new_frames(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        pages: u64,
        attributes: Attributes,
        leaves: Leaves,
    ) -> Result<(), VmallocError> {
        let mut frames = match leaves {
            Leaves::Pages => self.frames.alloc_list(cpu, pages as usize)?,
            Leaves::Largest => self.frames.alloc_list_in_groups(cpu, pages as usize)?,
        };
        let mapped = self.map_list(cpu, start, pages, attributes, leaves, &mut frames);
        mapped.inspect_err(|_| self.frames.free_list(cpu, frames))
    }

    /// As [`Self::map_new_frames`], with the frames of a list that has as many. On an error they stay there.
    fn map_list(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        pages: u64,
        attributes: Attributes,
        leaves: Leaves,
        frames: &mut FrameList,
    ) -> Result<(), VmallocError> {
        let range = PageRange::from_pages(start, pages as usize)?;
        let _owner = RangeOwnerCheck::new(range);
        self.tables().get().map_frames(
            &Lazy::new(&self.mmu),
            range,
            |_, most| frames.pop_run(most).expect("as many frames were taken as there are pages"),
            attributes,
            leaves,
            &mut self.table_source(cpu),
        )?;
        Ok(())
    }

    /// Maps memory in the largest pieces that are free: blocks, as many as there are, and the rest in groups and pages.
    /// `start` is aligned to the largest of them.
    fn map_largest(&self, cpu: &Cpu, start: VirtAddr, pages: u64) -> Result<(), VmallocError> {
        self.frames.check_free(cpu, pages as usize)?;
        let (mut at, mut left) = (start, pages);
        // Blocks that follow one another are mapped together.
        let mut run = 0..0;
        // Where there was no larger run before, there is none now.
        let mut largest = MAX_ORDER;
        let mapped = loop {
            let most = (left / BLOCK_FRAMES as u64).checked_ilog2().map(|most| most.min(largest));
            let mut found = most.and_then(|most| self.frames.alloc_largest_blocks(cpu, most).ok());
            if found.is_none() && most.is_some() && self.purge(cpu) != 0 {
                // Blocks of areas that waited.
                found = most.and_then(|most| self.frames.alloc_largest_blocks(cpu, most).ok());
            }
            largest = found.map_or(largest, |(_, order)| order);
            let next = found.map_or(END_OF_RUN, |(blocks, _)| blocks.0);
            if next != run.end && !run.is_empty() {
                if let Err(error) = self.map_blocks(cpu, at, &run) {
                    self.free_run(cpu, &run);
                    found.into_iter().for_each(|(blocks, order)| self.frames.free_blocks(cpu, blocks, order));
                    break Err(error);
                }
                at = at + (run.end - run.start);
                run = next..next;
            }
            let Some((blocks, order)) = found else { break Ok(()) };
            if run.is_empty() {
                run = blocks.0..blocks.0;
            }
            run.end += BLOCK_SIZE << order;
            left -= (BLOCK_FRAMES << order) as u64;
        };
        let mapped = mapped.and_then(|()| match left {
            0 => Ok(()),
            _ => self.map_new_frames(cpu, at, left, AREA, Leaves::Largest),
        });
        mapped.inspect_err(|_| self.unmap_new(cpu, start, at - start))
    }

    /// Maps page blocks that follow one another, and are no one else's, from `at` on.
    fn map_blocks(&self, cpu: &Cpu, at: VirtAddr, run: &Range<u64>) -> Result<(), VmallocError> {
        let range = PageRange::new(at, run.end - run.start)?;
        let _owner = RangeOwnerCheck::new(range);
        let lazy = Lazy::new(&self.mmu);
        if self.tables().get().map_at_once(&lazy, range, PhysAddr(run.start), AREA) {
            return Ok(());
        }
        let in_the_way = |offset| self.tables().get().entry(at + offset).level == LAST_LEVEL;
        if (0..range.size()).step_by(BLOCK_SIZE as usize).any(in_the_way) && interrupts::state().irqs_enabled() {
            // The tables in the way, which areas have left. Those that stay after the reclaim are filled with pages.
            self.reclaim(cpu);
        }
        let tables = self.tables();
        Ok(tables.get().map(&lazy, range, PhysAddr(run.start), AREA, LARGEST, &mut self.table_source(cpu))?)
    }

    /// Gives back page blocks, whatever runs they were taken in.
    #[cold]
    fn free_run(&self, cpu: &Cpu, run: &Range<u64>) {
        self.frames.freeing(cpu).add_run(PhysAddr(run.start), run.end - run.start);
    }

    /// Unmaps and frees what was just mapped: no page of it has changed.
    #[cold]
    fn unmap_new(&self, cpu: &Cpu, start: VirtAddr, bytes: u64) {
        self.unmap_mapped(start, bytes, Some(&mut self.frames.freeing(cpu)));
    }

    /// Unmaps the `bytes` bytes from `start` on, and adds their frames to `frames`, if there are any to be freed, when no
    /// CPU can use them any more. Their alias stays as it is.
    #[inline(never)]
    fn unmap_mapped(&self, start: VirtAddr, bytes: u64, frames: Option<&mut Freeing<'_>>) {
        let Ok(range) = PageRange::new(start, bytes) else { return };
        let _owner = RangeOwnerCheck::new(range);
        let (walk, splitter) = (self.tables(), LeafSplitter(self));
        let tables = walk.get();
        let unmapping = tables.begin_unmap(range);
        let unmapping =
            unmapping.unwrap_or_else(|error| panic!("a leaf reaches across an end of what was mapped: {error}"));
        unmapping.break_leaves(&tables, &splitter).defer();
        self.flush_kernel_range(range);
        // SAFETY: its leaves are broken, and the range is invalidated.
        unsafe { unmapping.release(&tables, add_to(frames)) };
    }

    /// Unmaps and frees an area, which is all of `range`.
    fn release(&self, cpu: &Cpu, range: PageRange, area: FreeingArea) -> Result<(), Error> {
        let mut owner = Some(self.check_owner_with_alias(range));
        {
            let mut frames = self.frames.freeing(cpu);
            // Called leaf by leaf when the invalidation is complete: from then on no CPU reaches the memory. With the
            // first one the alias belongs to the allocator, which may change it.
            let released = |leaf: Leaf| {
                RangeOwnerCheck::end(&mut owner);
                frames.add_run(leaf.physical, leaf.size);
            };
            if patched_branch!(branch::ALIAS) {
                alias::update::unmap(self.tables().get(), &self.tlb, range, &mut LeafSplitter(self), released)?;
            } else {
                let splitter = LeafSplitter(self);
                self.tables().get().unmap(&Lazy::new(&self.mmu), &self.tlb, range, splitter, released)?;
            }
        }
        self.areas.remove(area);
        self.reclaim_after(cpu, range);
        Ok(())
    }

    /// # Panics
    /// Where no such area starts at `start`.
    fn begin_free(&self, start: VirtAddr, kind: AreaKind) -> FreeingArea {
        self.areas.begin_free(start, kind).expect("taken by the caller, who alone may give it back")
    }
}

/// Why the area at `start` is not unmapped, by what was found there.
#[cold]
fn not_unmapped(start: VirtAddr, found: Option<AreaKind>) -> VmallocError {
    match found {
        None | Some(AreaKind::Freeing) => VmallocError::NotAnArea(start),
        Some(kind) => VmallocError::WrongKind(start, kind),
    }
}

/// Bytes of the largest leaf that `bytes` bytes of memory from `first` on may have in them, as the alignment of an area.
const fn largest_leaf(first: u64, bytes: u64) -> u64 {
    const MOST: u64 = BLOCK_SIZE << MAX_ORDER;
    let (aligned, bytes) = (first | MOST, if bytes < MOST { bytes | PAGE } else { MOST });
    let (aligned, whole) = (aligned.trailing_zeros(), bytes.ilog2());
    1 << if aligned < whole { aligned } else { whole }
}

/// Adds the frames of leaves to `frames`, if these are to be freed. One type of closure for all: what goes over the leaves
/// is compiled once.
pub(super) fn add_to<'a>(mut frames: Option<&'a mut Freeing<'_>>) -> impl FnMut(Leaf) + 'a {
    move |leaf| {
        if let Some(frames) = &mut frames {
            frames.add_run(leaf.physical, leaf.size);
        }
    }
}
