//! Tag storage: the memory that the hardware keeps allocation tags in, used for other things while no tags need it.
//!
//! Tags take 4 bits for each 16 bytes: a region of tag storage has a thirty-second of the memory that it tags, at
//! `start + (frame - first) / 32`, rounded down to its [block size](Region): the device tree has both
//! ([`crate::platform::TagStorageRegion`]). A block serves 32 frames for each frame of its own.
//!
//! ```text
//! reserve   before the first tag of a frame is written: its block is claimed, what lies in it migrates away, and if any
//!           of it was lent the data cache's lines of the block are invalidated (a later write-back would overwrite tags)
//! release   when the frame is free: the lines of its tags are invalidated (a later write-back would overwrite data);
//!           the last frame of a block gives the block back
//! lend      where no other frame is left, a frame of a lendable block serves as a *movable* one
//! ```
//! A frame's record has the flag [`Frame::has_tag_storage`]; [`BlockUse`] counts the frames of a block. A frame in tag
//! storage never has tags itself, and frames that no region covers need none ([`Coverage`]).
//!
//! Only page blocks that lie in the region as a whole are lent. Under QEMU tags are kept elsewhere: there a region is a
//! reserved range of RAM with the same accounting. So a checked build fills a reserved block with a pattern, and
//! verifies it when the block is given back; on hardware the pattern would be tags.
//!
//! The code that empties a block holds [`TAG_BLOCK`](crate::sync::rank::TAG_BLOCK), by [`Evict::alone`]; loans are
//! under [`TAG_STORAGE`](crate::sync::rank::TAG_STORAGE).

#![allow(unsafe_code, reason = "maintains the caches of frames that nothing uses")]

mod block_use;
mod region;
mod stats;

pub use block_use::{BlockUse, NotReserved};
pub use region::{Coverage, Region};
pub use stats::{Failure, TagStorageStats};

use core::ops::Range;

use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use granule_arch::cache;
use thiserror::Error;

use super::frame::{Frame, FrameAllocator, LinearMap};
use super::page_block::BLOCK_FRAMES;
use crate::platform::{MAX_TAG_STORAGE, TagStorageRegion};
use crate::sched::replays::Replays;
use crate::smp::Cpu;
use stats::Counters;

/// Frames whose tags one frame holds.
pub const FRAMES_PER_FRAME: usize = 32;
/// Attempts to claim a block whose memory is in use.
const ATTEMPTS: usize = 3;
/// The longest block that is claimed where the caller may hold a spinning lock, in frames (64 KiB): its cache lines may
/// have to be invalidated under it.
const BRIEF: usize = 16;

/// Why tag storage cannot be reserved for a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unreserved {
    /// Its block is in use as memory, or has over 64 KiB and the caller may not wait.
    #[error("its tag storage is in use as memory, or too long to be reserved at once")]
    Occupied,
    /// Another CPU is at work on its block.
    #[error("its tag storage is being emptied or given back")]
    Claimed,
    /// The frame is tag storage itself.
    #[error("the frame is tag storage itself")]
    IsTagStorage,
    /// The page block is not covered by one region: only its pages can have tags, one by one.
    #[error("the page block is not covered by one region of tag storage")]
    Divided,
}

/// The layer above, whose pages lie in frames that were lent.
pub trait Evict {
    /// Migrates the page in `frame`; whether the frame is free now. Sleeps.
    fn evict(&self, cpu: &Cpu, frame: PhysAddr) -> bool;

    /// Runs `empty` while nothing else empties a block. Sleeps.
    fn alone<T>(&self, empty: impl FnOnce() -> T) -> T;

    /// Waits for what empties a block.
    fn wait(&self);

    /// Lets other threads run.
    fn relax(&self);
}

/// All regions of tag storage of a system whose memory has tags.
pub struct TagStorage {
    regions: heapless::Vec<Region, MAX_TAG_STORAGE>,
    linear: LinearMap,
    counters: Counters,
}

impl TagStorage {
    /// The storage in `regions`; `None` where none can be managed, which is logged. All of it is lendable at first, and
    /// the records of its frames are zero. Once at boot: allocates from the heap.
    pub fn new(regions: &[TagStorageRegion], linear: LinearMap) -> Option<Self> {
        let mut managed = heapless::Vec::new();
        for region in regions {
            if Region::new(region).is_none_or(|region| managed.push(region).is_err()) {
                crate::log::warn!("tag storage at {:?}: out of memory; it stays reserved", region.storage);
            }
        }
        let regions = managed;
        let counters = Counters::default();
        (!regions.is_empty()).then_some(Self { regions, linear, counters })
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The frames that need tag storage, for a loop over many.
    #[inline(always)]
    pub fn coverage(&self) -> Coverage<'_> {
        Coverage::new(&self.regions)
    }

    /// Reserves the storage of `frame`, whose record is `record`, if that takes no migration; in any context. The frame
    /// is held, by the caller or by an entry of a table that the caller has locked.
    ///
    /// # Errors
    /// [`Unreserved`]; nothing was changed.
    #[inline(always)]
    pub fn try_reserve(&self, frame: PhysAddr, record: &Frame) -> Result<(), Unreserved> {
        if record.has_tag_storage() { Ok(()) } else { self.try_reserve_missing(frame, record) }
    }

    #[inline(never)]
    fn try_reserve_missing(&self, frame: PhysAddr, record: &Frame) -> Result<(), Unreserved> {
        // Nearly always its block is reserved for neighbours already, or free.
        let number = frame.frame_number();
        if let Some(region) = self.regions.first()
            && region.covers(number)
            && !self.is_tag_storage(number)
        {
            let block = region.block_of(number);
            if region.block(block).add(1).is_err() {
                // Another CPU may be faster: then it is claimed for once.
                let is_brief = region.block_frames() <= BRIEF;
                let claimed = if is_brief { self.claim_unused(region, block, 1) } else { Err(Unreserved::Occupied) };
                claimed.inspect_err(|&error| self.counters.note(error.into()))?;
            }
            self.note_reserved(frame, record);
            return Ok(());
        }
        self.try_reserve_otherwise(frame, record)
    }

    #[cold]
    #[inline(never)]
    fn try_reserve_otherwise(&self, frame: PhysAddr, record: &Frame) -> Result<(), Unreserved> {
        let result = self.try_reserve_frames(frame, 1, BRIEF);
        self.note_frame(frame, record, result)
    }

    /// As [`Self::try_reserve`], for a block of any length: for the boot and the growth of the heap, without
    /// migrations. The cache lines of up to 2 MiB may be invalidated, so not under a spinning lock.
    ///
    /// # Errors
    /// As [`Self::try_reserve`].
    pub fn try_reserve_long(&self, frame: PhysAddr, record: &Frame) -> Result<(), Unreserved> {
        if record.has_tag_storage() {
            return Ok(());
        }
        let result = self.try_reserve_frames(frame, 1, usize::MAX);
        self.note_frame(frame, record, result)
    }

    fn note_frame(&self, frame: PhysAddr, record: &Frame, result: Result<bool, Unreserved>) -> Result<(), Unreserved> {
        match result {
            Ok(true) => self.note_reserved(frame, record),
            Ok(false) => {}
            Err(error) => self.counters.note(error.into()),
        }
        result.map(drop)
    }

    /// As [`Self::try_reserve`], for a page block, whose first frame's record stands for all.
    ///
    /// # Errors
    /// As [`Self::try_reserve`].
    pub fn try_reserve_block(&self, block: PhysAddr, record: &Frame) -> Result<(), Unreserved> {
        if record.has_tag_storage() {
            return Ok(());
        }
        let result = self.try_reserve_frames(block, BLOCK_FRAMES, BRIEF);
        self.note_block(block, &|| record.note_tag_storage(), result)
    }

    fn note_block(
        &self,
        block: PhysAddr,
        note: &dyn Fn() -> bool,
        result: Result<bool, Unreserved>,
    ) -> Result<(), Unreserved> {
        match result {
            Ok(true) if note() => self.counters.note_reservation(),
            Ok(true) => self.subtract(block, BLOCK_FRAMES),
            Ok(false) => {}
            Err(error) => self.counters.note(error.into()),
        }
        result.map(drop)
    }

    /// Reserves the storage of the `count` frames from `first` on, which one record stands for, in blocks of at most
    /// `longest` frames; whether they need some.
    fn try_reserve_frames(&self, first: PhysAddr, count: usize, longest: usize) -> Result<bool, Unreserved> {
        let Some((region, frames)) = self.region_of(first.frame_number(), count)? else { return Ok(false) };
        for (done, (block, users)) in region.blocks_of(frames.clone()).enumerate() {
            if let Err(error) = self.try_add(region, block, users, longest) {
                self.undo(region, frames, done);
                return Err(error);
            }
        }
        Ok(true)
    }

    fn try_add(&self, region: &Region, block: usize, users: u32, longest: usize) -> Result<(), Unreserved> {
        match region.block(block).add(users) {
            Ok(()) => Ok(()),
            Err(NotReserved::Claimed) => Err(Unreserved::Claimed),
            Err(NotReserved::Lendable) if region.block_frames() <= longest => self.claim_unused(region, block, users),
            Err(NotReserved::Lendable) => Err(Unreserved::Occupied),
        }
    }

    /// Claims and reserves a block of which nothing is lent.
    fn claim_unused(&self, region: &Region, block: usize, users: u32) -> Result<(), Unreserved> {
        let state = region.block(block);
        if !state.claim() {
            return Err(Unreserved::Claimed);
        }
        self.reserve_claimed(region, block, users)
    }

    /// Reserves a block that is claimed, if nothing of it is lent; else the claim ends.
    fn reserve_claimed(&self, region: &Region, block: usize, users: u32) -> Result<(), Unreserved> {
        let Some(is_cached) = region.take_unused(block) else {
            region.block(block).release();
            return Err(Unreserved::Occupied);
        };
        let frames = region.frames_of(block);
        if is_cached {
            // SAFETY: the linear map has the block, which nothing uses: what its lines hold is needed no more.
            unsafe { cache::invalidate_to_memory(self.linear.address(start(&frames)), bytes(&frames)) };
        }
        if cfg!(debug_assertions) {
            self.fill(&frames);
        }
        region.block(block).reserve(users);
        self.counters.note_claim();
        Ok(())
    }

    /// Sets the flag of a frame whose storage was just reserved, unless another thread did that for the same page.
    fn note_reserved(&self, frame: PhysAddr, record: &Frame) {
        if record.note_tag_storage() {
            self.counters.note_reservation();
        } else {
            self.subtract(frame, 1);
        }
    }

    /// Reserves the storage of `frame`, and migrates what lies there, in three attempts. The caller holds the frame,
    /// and no lock. Sleeps; `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`Unreserved`]; the frame has no storage, and what could not migrate is where it was.
    pub fn reserve(&self, spaces: &impl Evict, cpu: &Cpu, frame: PhysAddr, record: &Frame) -> Result<(), Unreserved> {
        if record.has_tag_storage() {
            return Ok(());
        }
        let result = self.reserve_frames(spaces, cpu, frame, 1);
        self.note_frame(frame, record, result)
    }

    /// As [`Self::reserve`], for a page block, whose first frame's record stands for all while it is one: `note` sets
    /// the flag there, and returns false where it is not one any more, or has it.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn reserve_block(
        &self,
        spaces: &impl Evict,
        cpu: &Cpu,
        block: PhysAddr,
        note: &dyn Fn() -> bool,
    ) -> Result<(), Unreserved> {
        let result = self.reserve_frames(spaces, cpu, block, BLOCK_FRAMES);
        self.note_block(block, note, result)
    }

    fn reserve_frames(
        &self,
        spaces: &impl Evict,
        cpu: &Cpu,
        first: PhysAddr,
        count: usize,
    ) -> Result<bool, Unreserved> {
        let Some((region, frames)) = self.region_of(first.frame_number(), count)? else { return Ok(false) };
        for (done, (block, users)) in region.blocks_of(frames.clone()).enumerate() {
            let mut attempts = 0;
            while let Err(error) = self.add_or_empty(spaces, cpu, region, block, users) {
                spaces.relax();
                attempts += 1;
                if attempts == ATTEMPTS {
                    self.undo(region, frames, done);
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// One attempt.
    #[inline(never)]
    fn add_or_empty(
        &self,
        spaces: &impl Evict,
        cpu: &Cpu,
        region: &Region,
        block: usize,
        users: u32,
    ) -> Result<(), Unreserved> {
        match self.try_add(region, block, users, usize::MAX) {
            // For the CPU that empties it.
            Err(Unreserved::Claimed) => {
                spaces.wait();
                Err(Unreserved::Claimed)
            }
            Err(Unreserved::Occupied) => spaces.alone(|| self.claim_occupied(spaces, cpu, region, block, users)),
            other => other,
        }
    }

    /// Claims and reserves a block, from which what lies there migrates.
    #[inline(never)]
    fn claim_occupied(
        &self,
        spaces: &impl Evict,
        cpu: &Cpu,
        region: &Region,
        block: usize,
        users: u32,
    ) -> Result<(), Unreserved> {
        let state = region.block(block);
        if !state.claim() {
            return Err(Unreserved::Claimed);
        }
        for frame in region.frames_of(block).map(PhysAddr::from_frame_number).filter(|&frame| region.is_lent(frame)) {
            // A failed migration is noticed below.
            if spaces.evict(cpu, frame) {
                self.counters.note_migration();
            }
        }
        self.reserve_claimed(region, block, users)
    }

    /// Takes back what was added to the first `done` blocks for `frames`.
    fn undo(&self, region: &Region, frames: Range<usize>, done: usize) {
        for (block, users) in region.blocks_of(frames).take(done) {
            self.leave(region, block, users);
        }
    }

    /// The `count` frames from `first` on, whose storage is reserved, are about to be free: nothing reaches them any
    /// more. In any context.
    pub(super) fn release(&self, first: PhysAddr, count: usize) {
        // SAFETY: the linear map has the frames, Normal-Tagged; their tags are of no use any more, and each line is of
        // one page at most.
        unsafe { cache::invalidate_tags_to_memory(self.linear.address(first), (count * PAGE_SIZE) as u64) };
        self.subtract(first, count);
        self.counters.note_release();
    }

    fn subtract(&self, first: PhysAddr, count: usize) {
        if let Ok(Some((region, frames))) = self.region_of(first.frame_number(), count) {
            region.blocks_of(frames).for_each(|(block, users)| self.leave(region, block, users));
        }
    }

    fn leave(&self, region: &Region, block: usize, users: u32) {
        if region.block(block).subtract(users) {
            if cfg!(debug_assertions) {
                self.verify(&region.frames_of(block));
            }
            // The pattern.
            region.put_unused(block, cfg!(debug_assertions));
            region.block(block).release();
            self.counters.note_return();
        }
    }

    /// The region that has the tags of the `count` frames from `first` on, a page block at most, and these frames.
    fn region_of(&self, first: usize, count: usize) -> Result<Option<(&Region, Range<usize>)>, Unreserved> {
        let last = first + count - 1;
        if self.is_tag_storage(first) || self.is_tag_storage(last) {
            return Err(Unreserved::IsTagStorage);
        }
        let covering = |frame| self.regions.iter().find(|region| region.covers(frame));
        match (covering(first), covering(last)) {
            (None, None) => Ok(None),
            (Some(region), Some(other)) if core::ptr::eq(region, other) => Ok(Some((region, first..last + 1))),
            _ => Err(Unreserved::Divided),
        }
    }

    /// Whether the frame with this number (its address / 4096) is tag storage.
    pub fn is_tag_storage(&self, frame: usize) -> bool {
        self.regions.iter().any(|region| region.has(frame))
    }

    /// A frame of tag storage to serve as a movable one, by its number. In any context.
    #[cold]
    pub(super) fn lend(&self) -> Option<usize> {
        let lent = self.regions.iter().find_map(Region::lend);
        if lent.is_some() {
            self.counters.note_lent();
        }
        lent
    }

    /// Whether a frame is one that may be lent.
    #[inline(always)]
    pub(super) fn is_lendable(&self, frame: usize) -> bool {
        self.regions.iter().any(|region| region.is_lendable(frame))
    }

    /// Takes back a frame that was lent, which nothing reaches any more. In any context.
    #[cold]
    pub(super) fn take_back(&self, frame: usize) {
        if let Some(region) = self.regions.iter().find(|region| region.is_lendable(frame)) {
            region.take_back(frame);
        }
    }

    /// Notes that a page was migrated because its own storage could not be reserved.
    pub(super) fn note_moved_page(&self) {
        self.counters.note_moved_page();
    }

    /// Notes a failure that is not one of a reservation.
    pub(super) fn note_failure(&self, failure: Failure) {
        self.counters.note(failure);
    }

    /// Notes that a fault was served, after these replays.
    #[inline(always)]
    pub(super) fn note_served(&self, replays: Option<Replays>) {
        self.counters.note_served(replays);
    }

    /// Numbers so far.
    pub fn stats(&self) -> TagStorageStats {
        self.counters.stats(&self.regions)
    }

    /// Words of the pattern.
    const PATTERN: u64 = 0x7a67_7361_7265_6865;

    fn fill(&self, frames: &Range<usize>) {
        let words = (bytes(frames) / 8) as usize;
        let at = self.linear.address(start(frames)).as_ptr::<u64>();
        // SAFETY: the linear map has the block, which is the caller's alone.
        (0..words).for_each(|index| unsafe { at.add(index).write(Self::PATTERN) });
    }

    fn verify(&self, frames: &Range<usize>) {
        let words = (bytes(frames) / 8) as usize;
        let at = self.linear.address(start(frames)).as_ptr::<u64>();
        // SAFETY: as above.
        let is_intact = (0..words).all(|index| unsafe { at.add(index).read() } == Self::PATTERN);
        assert!(is_intact, "tag storage at {} was written as memory while it was reserved", start(frames));
    }
}

fn start(frames: &Range<usize>) -> PhysAddr {
    PhysAddr::from_frame_number(frames.start)
}

const fn bytes(frames: &Range<usize>) -> u64 {
    ((frames.end - frames.start) * PAGE_SIZE) as u64
}

impl FrameAllocator {
    /// Has frames of `storage` serve as movable ones where no others are left, and its reservations end with the frames
    /// that have them. Once at boot, before a frame has tags.
    pub fn set_tag_storage(&self, storage: TagStorage) {
        for frames in storage.regions.iter().map(Region::lendable_frames) {
            // SAFETY: records of memory are mapped, and these frames were reserved: nothing has looked at theirs.
            unsafe { self.records().zero(frames.start, frames.len()) };
        }
        self.tag_storage.call_once(|| storage);
    }
}
