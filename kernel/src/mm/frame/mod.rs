//! Frames: physical memory in pages of 4 KiB, and the way to ask for it.
//!
//! ```text
//! alloc ◄─ magazine of this CPU ◄─ 32 at a time ─ cut page block ◄─ page block ─ buddy
//! ```
//!
//! [`FrameAllocator`] is the one owner of all free memory. Each frame that it hands out has exactly one owner, which is
//! on record in the frame's [`Frame`]: so freeing a frame twice, or one that was never handed out, is noticed. In a
//! debug build that is a panic; otherwise the frame is left alone, the event counted and logged, because a leaked frame
//! does less harm than one with two owners.
//!
//! Everything here may be called from interrupt handlers. Running out of memory is a value, [`OutOfMemory`].

mod debug_pagealloc;
mod isolate;
mod list;
mod magazine;
mod record;
pub(crate) mod reserve;
#[cfg(test)]
pub(crate) mod tests;

use core::fmt;
use core::mem::size_of;
use core::ops::Range;
use core::slice;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use debug_pagealloc::DebugPagealloc;
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::memory::zero_page;
use granule_arch::patched_branch;
pub use isolate::IsolatedBlock;
pub(in crate::mm) use list::FEW;
pub use list::{FrameList, Freeing};
use magazine::{BATCH, CAPACITY, Magazine};
pub use record::{Frame, FrameRecords, FreeError};
pub use reserve::usual_reserve;
use spin::Once;

use super::OutOfMemory;
use super::early::MemoryMap;
use super::page_block::{BLOCK_FRAMES, BLOCK_SIZE, BlockNumber, BlockState, GROUP, MAX_ORDER, Mobility, PageBlocks};
use super::tag_storage::TagStorage;
use crate::platform::features::branch;
use crate::smp::{Cpu, CpuId, MAX_CPUS};

/// How the kernel reaches the contents of physical memory: the address at which the linear map shows it.
#[derive(Clone, Copy, Debug)]
pub struct LinearMap {
    /// The value to add to a physical address, modulo 2⁶⁴: on the host memory may lie below its fake physical address.
    offset: u64,
}

impl LinearMap {
    /// The linear map that shows physical address 0 at `base`; on the target
    /// [`layout::LINEAR_BASE`](super::layout::LINEAR_BASE).
    pub const fn new(base: VirtAddr) -> Self {
        Self { offset: base.0 }
    }

    /// Where `address` is shown. Whether anything is mapped there is another question.
    #[inline(always)]
    pub const fn address(self, address: PhysAddr) -> VirtAddr {
        VirtAddr(address.0.wrapping_add(self.offset))
    }
}

/// All free memory.
pub struct FrameAllocator {
    blocks: PageBlocks,
    records: FrameRecords,
    linear: LinearMap,
    /// By CPU number, and [`Mobility`]: the one for movable frames may have any, the other has none of a block that was
    /// cut for movable ones, unless it was taken from there in need. Here and not in [`Cpu`], because a free frame
    /// belongs to its allocator: host tests have many of those. A reference, because the boot stack has no room to pass
    /// an allocator with 18 KiB of magazines inside.
    magazines: &'static [[Magazine; 2]; MAX_CPUS],
    refused: AtomicU64,
    /// See [`reserve`].
    reserve: AtomicUsize,
    /// See [`Self::set_reclaimer`].
    reclaimer: Once<fn()>,
    /// See [`Self::set_compactor`].
    compactor: Once<fn()>,
    /// See [`Self::set_shortage_note`].
    shortage_note: Once<fn(&Cpu, usize)>,
    /// See [`Self::total`].
    total: usize,
    /// See [`debug_pagealloc`].
    debug_pagealloc: Once<&'static dyn DebugPagealloc>,
    /// See [`Self::set_tag_storage`].
    pub(in crate::mm) tag_storage: Once<TagStorage>,
}

/// Where the frames are. Taken while other CPUs allocate, the numbers may be off by what moves concurrently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameStats {
    /// Frames that the allocator manages. Reserved memory and what boot took before are not among them.
    pub total: usize,
    /// Frames in use.
    pub used: usize,
    /// Free frames, those in magazines included.
    pub free: usize,
    /// Free frames in the CPUs' magazines.
    pub in_magazines: usize,
    /// Free page blocks in the buddy's sets, 512 frames each.
    pub free_blocks: usize,
    /// Page blocks cut into frames. A whole one that its CPU keeps is among them.
    pub cut_blocks: usize,
    /// Frees refused because the caller did not own the frame. Anything but 0 is a bug somewhere.
    pub refused: u64,
}

impl FrameAllocator {
    /// Bytes that [`Self::new`] needs at its `storage` for the memory of `map`; a multiple of [`PAGE_SIZE`].
    pub fn required_bytes(map: &MemoryMap) -> usize {
        PageBlocks::required_bytes(map) + size_of::<[[Magazine; 2]; MAX_CPUS]>().next_multiple_of(PAGE_SIZE)
    }

    /// The parts of the array of records that must be mapped for the memory of `map`, as the first frame number and the
    /// number of frames; both are multiples of 512, so that each part begins and ends at a page boundary.
    pub fn required_records(map: &MemoryMap) -> impl Iterator<Item = (usize, usize)> {
        super::page_block::Spans::new(map).into_frames()
    }

    /// Takes over all memory that is still free in `map`; nothing can be taken from the map afterwards. `cpu` is the
    /// CPU that this runs on.
    ///
    /// The order of a boot: make the [`MemoryMap`]; take the linear map's tables from it and map `map.memory()`; for
    /// each of the [`Self::required_records`] take a run and map it at [`FrameRecords::address`]; take
    /// [`Self::required_bytes`]; call this; then start the heap, whose growth takes frames. Nothing here uses the heap.
    /// The test `boot_in_the_order_of_start` does the same on the host.
    ///
    /// # Safety
    /// - The [`Self::required_bytes`] at `storage`, page aligned, are mapped, writable and exclusive, for ever.
    /// - So are the records of each of the [`Self::required_records`]. Neither need be zero.
    /// - `linear` shows all memory of `map`, writable, and what is free in it is unused.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    pub unsafe fn new(
        cpu: &Cpu,
        map: &mut MemoryMap,
        storage: VirtAddr,
        records: FrameRecords,
        linear: LinearMap,
    ) -> Self {
        let magazines = (storage + PageBlocks::required_bytes(map) as u64).as_ptr::<[[Magazine; 2]; MAX_CPUS]>();
        // SAFETY: the caller gives the same guarantees for the blocks' part of the storage, and the rest, at a page
        // boundary, holds the magazines; zero is right for an empty one.
        let (blocks, magazines) = unsafe {
            magazines.write_bytes(0, 1);
            (PageBlocks::new(cpu, map, storage, records), &*magazines)
        };
        map.exhaust();
        Self {
            total: blocks.totals().frames,
            blocks,
            records,
            linear,
            magazines,
            refused: AtomicU64::new(0),
            reserve: AtomicUsize::new(0),
            reclaimer: Once::new(),
            compactor: Once::new(),
            shortage_note: Once::new(),
            debug_pagealloc: Once::new(),
            tag_storage: Once::new(),
        }
    }

    /// Whether there is tag storage, also before the branch sites are patched.
    pub fn has_tag_storage(&self) -> bool {
        self.tag_storage.get().is_some()
    }

    /// The tag storage of the system, if there is some.
    #[inline(always)]
    pub fn tag_storage(&self) -> Option<&TagStorage> {
        if patched_branch!(branch::TAG_STORAGE) { self.tag_storage.get() } else { None }
    }

    /// A frame of its own for the caller, with whatever it held before. `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`OutOfMemory`]: no frame is free, but for those in other CPUs' magazines and, for a thread that works for a
    /// program, the reserve.
    #[inline]
    pub fn alloc(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        self.alloc_of(cpu, Mobility::Unmovable)
    }

    /// As [`Self::alloc`], for a page whose contents can be migrated, which is kept apart from others.
    ///
    /// # Errors
    /// As [`Self::alloc`].
    #[inline]
    pub fn alloc_movable(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        self.alloc_of(cpu, Mobility::Movable)
    }

    /// [`Self::alloc_movable`], filled with zeros.
    ///
    /// # Errors
    /// As [`Self::alloc`].
    pub fn alloc_movable_zeroed(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        Ok(self.zeroed(self.alloc_movable(cpu)?))
    }

    /// [`GROUP`] frames that are neighbours, the first of them at a multiple of that, each a movable one of its own:
    /// only where this CPU has them at hand. Those of a magazine are not.
    ///
    /// # Errors
    /// [`OutOfMemory`], also where frames are free, and for that no room is made.
    #[cold]
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    pub(in crate::mm) fn alloc_movable_group(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        let first = self.blocks.take_group(cpu, Mobility::Movable, self.kept_from(cpu)).ok_or(OutOfMemory)?;
        // SAFETY: frames that were free in a cut block have valid records.
        unsafe { self.records.run(first..first + GROUP) }.iter().for_each(Frame::claim);
        self.show(first..first + GROUP);
        Ok(PhysAddr::from_frame_number(first))
    }

    #[inline(always)]
    fn alloc_of(&self, cpu: &Cpu, mobility: Mobility) -> Result<PhysAddr, OutOfMemory> {
        let Some(frame) = self.on_magazine(cpu, mobility, Magazine::pop) else {
            return self.alloc_refilled(cpu, mobility);
        };
        Ok(self.claimed(frame))
    }

    /// A frame of its own for the caller, filled with zeros.
    ///
    /// # Errors
    /// As [`Self::alloc`].
    pub fn alloc_zeroed(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        Ok(self.zeroed(self.alloc(cpu)?))
    }

    /// [`Self::alloc_zeroed`] from what this CPU has in its magazine: no lock is taken, and none waited for.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the magazine is empty, however much is free elsewhere.
    pub fn alloc_zeroed_reserved(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        let own = self.on_magazine(cpu, Mobility::Unmovable, Magazine::pop);
        let frame = own.or_else(|| self.pop_other(cpu, Mobility::Unmovable)).ok_or(OutOfMemory)?;
        Ok(self.zeroed(self.claimed(frame)))
    }

    /// Puts the frame of that number, which was free in a magazine, on record as in use.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    fn claimed(&self, frame: usize) -> PhysAddr {
        // SAFETY: a frame that was free in a magazine is of a cut block, whose records are valid.
        unsafe { self.records.get(frame) }.claim();
        self.show(frame..frame + 1);
        PhysAddr::from_frame_number(frame)
    }

    /// Fills the frame with zeros, and returns it. It was just allocated.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    fn zeroed(&self, frame: PhysAddr) -> PhysAddr {
        // SAFETY: the linear map shows the frame, writable, and it has no other user.
        unsafe { zero_page(self.linear.address(frame)) };
        frame
    }

    /// Gives the frame at `address` back. `cpu` is the CPU that this runs on.
    ///
    /// The caller is its one owner, and it cannot be reached any more: no mapping, no translation in a TLB, no device.
    ///
    /// # Panics
    /// In debug builds, where the allocator did not hand the frame out, or has it back already. Otherwise such a call
    /// is counted ([`FrameStats::refused`]), logged, and changes nothing.
    #[inline]
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    pub fn free(&self, cpu: &Cpu, address: PhysAddr) {
        let number = address.frame_number();
        let released = match self.blocks.mobility(number) {
            Some(mobility) if address.is_aligned(PAGE) => {
                // SAFETY: the records of a block that is cut are valid and stay mapped.
                let record = unsafe { self.records.get(number) };
                if patched_branch!(branch::TAG_STORAGE) {
                    self.release_tag_storage(number, record);
                }
                record.release().map(|()| mobility)
            }
            None if patched_branch!(branch::TAG_STORAGE) && self.take_back(number) => return,
            _ => Err(FreeError::Foreign),
        };
        match released {
            Ok(mobility) => {
                self.hide(slice::from_ref(&(number..number + 1)));
                self.on_magazine(cpu, mobility, |magazine| self.keep(cpu, magazine, number));
            }
            Err(error) => self.refuse(address, error),
        }
    }

    /// Whether the frame at `address` was handed out as one, and is not free again. Frames that were taken from the memory
    /// map before this allocator got the rest were not.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    pub fn is_handed_out(&self, address: PhysAddr) -> bool {
        let number = address.frame_number();
        // SAFETY: the records of a block that is cut are valid and stay mapped.
        self.blocks.mobility(number).is_some() && unsafe { self.records.get(number) }.references() != 0
    }

    /// 2^`order` contiguous page blocks of 2 MiB, aligned to their size, with whatever they held before.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is no such run, or `order` is above [`MAX_ORDER`] (1 GiB).
    #[inline]
    pub fn alloc_blocks(&self, cpu: &Cpu, order: u32) -> Result<PhysAddr, OutOfMemory> {
        let kept = self.kept_from(cpu);
        let number = match self.blocks.take_blocks(cpu, order, kept) {
            Some(number) => number,
            // This CPU's own magazine may hold the last frames of a block, and each CPU a block that is whole.
            None => {
                self.drain_cpu(cpu);
                (0..MAX_CPUS as u32).for_each(|other| self.blocks.give_back(cpu, CpuId(other)));
                self.blocks.take_blocks(cpu, order, kept).ok_or(OutOfMemory)?
            }
        };
        Ok(self.claimed_blocks(number, order))
    }

    /// The address of blocks that were just taken, which are the caller's from now on.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    #[inline]
    fn claimed_blocks(&self, number: BlockNumber, order: u32) -> PhysAddr {
        // SAFETY: taking the blocks made the record of the first frame valid.
        unsafe { self.records.get(number * BLOCK_FRAMES) }.claim();
        self.show(frames_of_blocks(number, order));
        PhysAddr(number as u64 * BLOCK_SIZE)
    }

    /// There will be no more than `cpus` CPUs: for those of a boot that are there by now, once.
    pub(crate) fn set_cpus(&self, cpus: usize) {
        self.blocks.set_cpus(cpus);
    }

    /// The largest run of page blocks that is free, of 2^`most` at most; its order comes with it.
    ///
    /// # Errors
    /// [`OutOfMemory`]: no block is free.
    pub fn alloc_largest_blocks(&self, cpu: &Cpu, most: u32) -> Result<(PhysAddr, u32), OutOfMemory> {
        let kept = self.kept_from(cpu);
        let found =
            (1..=most.min(MAX_ORDER)).rev().find_map(|order| Some((self.blocks.take_blocks(cpu, order, kept)?, order)));
        match found {
            Some((number, order)) => Ok((self.claimed_blocks(number, order), order)),
            None => Ok((self.alloc_blocks(cpu, 0)?, 0)),
        }
    }

    /// The order of the run of page blocks that begins at `address`; `None` where none does that was taken whole.
    pub fn order_of_blocks(&self, address: PhysAddr) -> Option<u32> {
        let number = address.frame_number();
        let is_head = address.is_aligned(BLOCK_SIZE) && self.blocks.state(number) == BlockState::Head;
        is_head.then(|| self.blocks.order(number / BLOCK_FRAMES)).flatten()
    }

    /// Gives back the run of 2^`order` page blocks at `address`, whole, as it was allocated.
    ///
    /// # Panics
    /// As [`Self::free`], also where `order` is not that of the allocation.
    pub fn free_blocks(&self, cpu: &Cpu, address: PhysAddr, order: u32) {
        let number = address.frame_number() / BLOCK_FRAMES;
        let released = match self.frame(address) {
            Some((BlockState::Head, frame))
                if address.is_aligned(BLOCK_SIZE) && self.blocks.order(number) == Some(order) =>
            {
                frame.release()
            }
            _ => Err(FreeError::Foreign),
        };
        match released {
            Ok(()) => {
                self.hide(slice::from_ref(&frames_of_blocks(number, order)));
                self.blocks.put_blocks(cpu, number, order);
            }
            Err(error) => self.refuse(address, error),
        }
    }

    /// A page block that can be [split](Self::split_block): each of its frames is held once.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is none.
    pub fn alloc_splittable(&self, cpu: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        // Those that CPUs keep for themselves stay there: pages serve as well.
        if !self.blocks.has_blocks_for(BLOCK_FRAMES) {
            self.wake_reclaimer();
            self.wake_compactor();
            return Err(OutOfMemory);
        }
        let block = self.alloc_blocks(cpu, 0)?;
        Frame::set_all(self.records_of_block(block), 1);
        Ok(block)
    }

    /// Gives back a page block of [`Self::alloc_splittable`] that was not split and has one holder.
    ///
    /// # Panics
    /// As [`Self::free`].
    pub fn free_splittable(&self, cpu: &Cpu, block: PhysAddr) {
        let records = self.records_of_block(block);
        debug_assert!(records.iter().all(|record| record.references() == 1), "a block that is held by others");
        if let Some(storage) = self.tag_storage()
            && records[0].has_tag_storage()
        {
            storage.release(block, BLOCK_FRAMES);
        }
        Frame::set_all(records, 0);
        records[0].claim();
        self.free_blocks(cpu, block, 0);
    }

    /// Makes a page block of [`Self::alloc_splittable`] 512 frames: each is held as often as the first, has its flags,
    /// and is given back by itself. The caller excludes all that looks at how the block is held.
    pub fn split_block(&self, cpu: &Cpu, block: PhysAddr) {
        let records = self.records_of_block(block);
        let (references, flags) = (records[0].references(), records[0].flags.load(Ordering::Relaxed));
        if references != 1 {
            Frame::set_all(records, references);
        }
        if flags != 0 {
            // Those of the first may change concurrently.
            records.iter().skip(1).for_each(|record| record.flags.store(flags, Ordering::Relaxed));
        }
        self.blocks.cut_taken(cpu, block.frame_number() / BLOCK_FRAMES);
    }

    /// The records of a page block that was allocated.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    fn records_of_block(&self, block: PhysAddr) -> &[Frame] {
        let first = block.frame_number();
        // SAFETY: the records of a block that was taken are valid and stay mapped.
        unsafe { self.records.run(first..first + BLOCK_FRAMES) }
    }

    /// The record of the frame that holds `address`, and what its block is used for; `None` where the block is not cut
    /// or the first of a run, in which case the frame is not one that anyone owns by itself.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    #[inline]
    pub fn frame(&self, address: PhysAddr) -> Option<(BlockState, &Frame)> {
        let frame = address.frame_number();
        let state = self.blocks.state(frame);
        if self.is_lendable(frame) {
            // SAFETY: the records of what is lent were zeroed, and stay mapped.
            return Some((BlockState::Cut, unsafe { self.records.get(frame) }));
        }
        // SAFETY: the records of blocks in these states are valid and stay mapped.
        matches!(state, BlockState::Cut | BlockState::Head).then(|| (state, unsafe { self.records.get(frame) }))
    }

    /// The record of the frame at `address`, if it is one of those that are handed out by themselves, held or not.
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    pub(in crate::mm) fn cut_frame(&self, address: PhysAddr) -> Option<&Frame> {
        let number = address.frame_number();
        let is_cut = self.blocks.mobility(number).is_some() || self.is_lendable(number);
        // SAFETY: the records of a block that was cut are valid and stay mapped, and so are those of what is lent.
        is_cut.then(|| unsafe { self.records.get(number) })
    }

    /// Notes the use of `block`, by its first frame, in its owner's terms ([`Frame::owner`]).
    pub(in crate::mm) fn set_origin(&self, block: PhysAddr, origin: u64) {
        self.blocks.set_origin(block.frame_number() / BLOCK_FRAMES, origin);
    }

    /// The use that [`Self::set_origin`] has noted last for `block`; 0 if it never did.
    pub(in crate::mm) fn block_origin(&self, block: PhysAddr) -> u64 {
        self.blocks.origin(block.frame_number() / BLOCK_FRAMES)
    }

    /// The [owner](Frame::owner) of a frame that is held; where it has none, what follows from the block that it was a
    /// part of: as many more as it is frames after the first. 0 where there is neither.
    pub(in crate::mm) fn origin(&self, frame: &Frame, address: PhysAddr) -> u64 {
        let own = frame.owner.load(Ordering::Relaxed);
        let number = address.frame_number();
        match (own, self.blocks.origin(number / BLOCK_FRAMES)) {
            (0, 0) => 0,
            (0, block) => block + (number % BLOCK_FRAMES) as u64,
            (own, _) => own,
        }
    }

    /// The record of the frame at `address`, which is not looked up.
    ///
    /// # Safety
    /// The frame is held while the record is used: this allocator handed it out, by itself, and does not have it back.
    #[inline(always)]
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    pub unsafe fn held(&self, address: PhysAddr) -> &Frame {
        debug_assert!(self.frame(address).is_some_and(|(_, frame)| frame.references() != 0), "{address} is free");
        // SAFETY: the records of a block that frames were taken from are valid and stay mapped.
        unsafe { self.records.get(address.frame_number()) }
    }

    /// Where the records are.
    pub(super) fn records(&self) -> FrameRecords {
        self.records
    }

    /// Frames that the allocator manages, free or not.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Where the linear map shows frames' contents.
    pub fn linear(&self) -> LinearMap {
        self.linear
    }

    /// Gives the frames in this CPU's magazines, and the whole blocks that the CPU keeps, back. Tests and audits call
    /// it on each CPU before they compare [`Self::stats`].
    pub fn drain_cpu(&self, cpu: &Cpu) {
        for mobility in [Mobility::Unmovable, Mobility::Movable] {
            self.on_magazine(cpu, mobility, |magazine| {
                while magazine.len() > 0 {
                    self.drain(cpu, magazine, BATCH);
                }
            });
        }
        self.blocks.give_back(cpu, cpu.id);
    }

    /// Where the frames are.
    pub fn stats(&self) -> FrameStats {
        let in_magazines = self.magazines.iter().flatten().map(Magazine::len).sum();
        let totals = self.blocks.totals();
        let free = totals.free_frames + in_magazines;
        FrameStats {
            total: totals.frames,
            used: totals.frames.saturating_sub(free),
            free,
            in_magazines,
            free_blocks: totals.free_blocks,
            cut_blocks: totals.cut_blocks,
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Runs `work` on this CPU's magazine for `mobility`: see [`Magazine::alone`].
    #[inline(always)]
    fn on_magazine<R>(&self, cpu: &Cpu, mobility: Mobility, work: impl FnOnce(&Magazine) -> R) -> R {
        self.magazine(cpu, mobility).alone(work)
    }

    /// Runs `work` on both of this CPU's magazines, by [`Mobility`].
    #[inline(always)]
    fn on_magazines<R>(&self, cpu: &Cpu, work: impl FnOnce(&[Magazine; 2]) -> R) -> R {
        // Interrupts are masked then: nothing uses the other one either.
        self.magazine(cpu, Mobility::Movable).alone(|_| work(cpu.id.of(self.magazines)))
    }

    #[inline(always)]
    fn magazine(&self, cpu: &Cpu, mobility: Mobility) -> &Magazine {
        #[cfg(target_os = "none")]
        debug_assert!(core::ptr::eq(cpu, crate::smp::this_cpu()), "the magazine of another CPU");
        &cpu.id.of(self.magazines)[mobility as usize]
    }

    /// Fills an empty magazine with a batch and takes one frame of it.
    #[cold]
    fn refill(&self, cpu: &Cpu, mobility: Mobility, magazine: &Magazine) -> Option<usize> {
        let mut batch = [0; BATCH];
        // A batch never comes from the reserve: what is left in the magazine is for every caller.
        let mut count = self.blocks.take_frames(cpu, mobility, &mut batch, self.reserve());
        if count == 0 && self.kept_from(cpu) == 0 {
            let (one, _) = batch.split_at_mut(1);
            count = self.blocks.take_frames(cpu, mobility, one, 0);
        }
        // Pushed in descending order, so that frames are handed out in ascending order and neighbours stay neighbours.
        for frame in batch.iter().take(count).rev() {
            let pushed = magazine.push(*frame);
            debug_assert!(pushed.is_ok());
        }
        self.wake_reclaimer();
        magazine.pop().or_else(|| self.pop_other(cpu, mobility))
    }

    /// [`Self::alloc_of`] where the magazine is empty.
    #[cold]
    #[inline(never)]
    fn alloc_refilled(&self, cpu: &Cpu, mobility: Mobility) -> Result<PhysAddr, OutOfMemory> {
        let pop = |magazine: &Magazine| magazine.pop().or_else(|| self.refill(cpu, mobility, magazine));
        let frame = self.on_magazine(cpu, mobility, pop).or_else(|| self.lend(mobility));
        Ok(self.claimed(frame.ok_or_else(|| self.missing(cpu, 1))?))
    }

    /// A frame of this CPU's magazine for the other mobility, where there is none elsewhere.
    #[cold]
    fn pop_other(&self, cpu: &Cpu, mobility: Mobility) -> Option<usize> {
        let other = if mobility == Mobility::Movable { Mobility::Unmovable } else { Mobility::Movable };
        self.on_magazine(cpu, other, Magazine::pop)
    }

    /// Puts a frame that was marked as free into this CPU's magazine, which gives a batch away first where it is full.
    #[inline(always)]
    fn keep(&self, cpu: &Cpu, magazine: &Magazine, frame: usize) {
        if let Err(frame) = magazine.push(frame) {
            self.drain(cpu, magazine, BATCH);
            // There is room now.
            let _ = magazine.push(frame);
        }
    }

    /// Gives up to `most` frames of the magazine back to their blocks, at most [`BATCH`].
    #[cold]
    fn drain(&self, cpu: &Cpu, magazine: &Magazine, most: usize) {
        let mut batch = [0; BATCH];
        let mut count = 0;
        while count < most.min(BATCH)
            && let Some(frame) = magazine.pop()
        {
            batch[count] = frame;
            count += 1;
        }
        self.blocks.put_runs(cpu, batch[..count].iter().map(|&frame| frame..frame + 1));
    }

    /// A frame of tag storage, which serves for movable ones, by its number.
    #[cold]
    #[inline(never)]
    pub(super) fn lend(&self, mobility: Mobility) -> Option<usize> {
        self.tag_storage().filter(|_| mobility == Mobility::Movable)?.lend()
    }

    /// Whether a frame is one of those.
    #[inline(always)]
    fn is_lendable(&self, frame: usize) -> bool {
        patched_branch!(branch::TAG_STORAGE) && self.may_be_lent(frame)
    }

    #[cold]
    #[inline(never)]
    fn may_be_lent(&self, frame: usize) -> bool {
        self.tag_storage().is_some_and(|storage| storage.is_lendable(frame))
    }

    /// Gives the tag storage of a frame back that is about to be free: nothing reaches it any more, and the caller holds it
    /// alone. (Else its free will be refused.)
    #[cold]
    #[inline(never)]
    fn release_tag_storage(&self, frame: usize, record: &Frame) {
        if record.references() == 1
            && record.take_tag_storage()
            && let Some(storage) = self.tag_storage()
        {
            storage.release(PhysAddr::from_frame_number(frame), 1);
        }
    }

    /// As [`Self::release_tag_storage`], for a run from `first` on, whose records are `records`.
    #[cold]
    #[inline(never)]
    fn release_all_tag_storage(&self, first: usize, records: &[Frame]) {
        (first..).zip(records).for_each(|(frame, record)| self.release_tag_storage(frame, record));
    }

    /// Frees a frame that was lent; whether it is one. One that is not held once is refused.
    #[cold]
    #[inline(never)]
    #[allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]
    fn take_back(&self, frame: usize) -> bool {
        let Some(storage) = self.tag_storage().filter(|storage| storage.is_lendable(frame)) else { return false };
        // SAFETY: the records of what is lent were zeroed, and stay mapped.
        match unsafe { self.records.get(frame) }.release() {
            Ok(()) => storage.take_back(frame),
            Err(error) => self.refuse(PhysAddr::from_frame_number(frame), error),
        }
        true
    }

    #[cold]
    fn refuse(&self, address: PhysAddr, error: FreeError) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        crate::log::error!("free of {address}: {error}; left alone");
        if cfg!(debug_assertions) {
            panic!("free of {address}: {error}");
        }
    }
}

/// The frames of a run of 2^`order` page blocks.
fn frames_of_blocks(first: usize, order: u32) -> Range<usize> {
    first * BLOCK_FRAMES..(first + (1 << order)) * BLOCK_FRAMES
}

impl fmt::Display for FrameStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames: {} used, {} free ({} in magazines), {} whole blocks, {} cut, {} frees refused",
            self.total, self.used, self.free, self.in_magazines, self.free_blocks, self.cut_blocks, self.refused
        )
    }
}

const _: () = assert!(CAPACITY > BATCH);
// A block's records fill whole pages, so the array's parts can be mapped block by block.
const _: () = assert!(size_of::<Frame>() == 32 && (512 * size_of::<Frame>()).is_multiple_of(4096));
