//! Frames that are mapped, shared and freed together: those of a page, a group, or a block.
//!
//! Each frame has a record that counts its holders and has its flags. A page block that only block entries have is
//! allocated as one, and the record of its first frame stands for all: one line to share or drop it. When one of those
//! entries is split, it is [divided](Folio::divide) into 512 frames, each held as often
//! ([`FrameAllocator::split_block`]); other block entries then hold each of them. The lock of the first frame's record
//! is held for that, and for each look at how a block is held.
//!
//! [`FrameAllocator::split_block`]: crate::mm::frame::FrameAllocator::split_block

#![allow(unsafe_code, reason = "user frames by their linear addresses")]

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr};
use granule_arch::descriptor::Protection;
use granule_arch::{memory, mte};

use super::spaces::Spaces;
use super::table_lock::TableGuard;
use crate::lab;
use crate::mm::frame::Frame;
use crate::mm::page_block::{BLOCK_FRAMES, BlockState, GROUP};
use crate::mm::tag_storage::{TagStorage, Unreserved};
use crate::sched::relax;
use crate::smp::Cpu;
use crate::sync::rank;

/// Frames that are copied without a scheduling point.
const COPIED: u64 = 64;

/// Frames that are mapped, shared and freed together, and are held.
#[derive(Clone, Copy)]
pub(super) struct Folio<'s> {
    spaces: &'s Spaces,
    first: PhysAddr,
    frames: usize,
}

/// Which frames of a folio have tags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FolioTags {
    None,
    Some,
    All,
}

impl Spaces {
    /// The frame of a page.
    #[inline(always)]
    pub(super) fn page(&self, frame: PhysAddr) -> Folio<'_> {
        self.folio(frame, 1)
    }

    /// The frames of a block.
    #[inline(always)]
    pub(super) fn block(&self, first: PhysAddr) -> Folio<'_> {
        self.folio(first, BLOCK_FRAMES)
    }

    /// The `frames` frames from `first` on: 1, those of a group, or those of a block.
    #[inline(always)]
    pub(super) fn folio(&self, first: PhysAddr, frames: usize) -> Folio<'_> {
        debug_assert!([1, GROUP, BLOCK_FRAMES].contains(&frames), "{frames} frames from {first} on");
        Folio { spaces: self, first, frames }
    }
}

impl<'s> Folio<'s> {
    /// The lock of a block's frames; none of others, which need none.
    #[inline(always)]
    pub(super) fn lock(self) -> Option<TableGuard<'s, { rank::TABLE_BESIDE }>> {
        (self.frames == BLOCK_FRAMES).then(|| TableGuard::lock(self.record()))
    }

    /// Whether only block entries have the frames, which are allocated as one. They are locked.
    #[inline(always)]
    pub(super) fn is_one(self) -> bool {
        self.frames == BLOCK_FRAMES && self.is_undivided()
    }

    #[inline(never)]
    fn is_undivided(self) -> bool {
        self.spaces.frames.frame(self.first).is_some_and(|(state, _)| state == BlockState::Head)
    }

    /// The record of the first frame.
    #[inline(always)]
    pub(super) fn record(self) -> &'s Frame {
        self.spaces.record(self.first)
    }

    /// The records, each with its first frame: one of a block that is one. They are locked, or known to be divided.
    #[inline(always)]
    pub(super) fn records(self) -> impl ExactSizeIterator<Item = (PhysAddr, &'static Frame)> {
        let (first, records) = (self.first, self.spaces.records());
        let frames = (0..if self.is_one() { 1 } else { self.frames }).map(move |index| first + index as u64 * PAGE);
        frames.map(move |frame| (frame, records.of(frame)))
    }

    /// Adds a holder. The caller is one.
    #[inline(never)]
    pub(super) fn share(self) {
        let _locked = self.lock();
        self.records().for_each(|(_, record)| record.share());
    }

    /// Drops a block entry's hold, or a copier's; frames that nothing holds any more are free. Returns how many.
    #[cold]
    #[inline(never)]
    pub(super) fn put_block(self, cpu: &Cpu) -> usize {
        let frames = self.spaces.frames;
        let is_last = {
            let _locked = self.lock();
            self.is_one().then(|| self.record().put())
        };
        match is_last {
            Some(true) => {
                frames.free_splittable(cpu, self.first);
                BLOCK_FRAMES
            }
            Some(false) => 0,
            None => {
                // A divided block stays so while its frames are held.
                let mut freeing = frames.freeing(cpu);
                let freed = self.records().filter(|(_, record)| record.put());
                freed.map(|(frame, _)| freeing.add(frame)).count()
            }
        }
    }

    /// Whether the caller's entries alone hold it. No fork is possible concurrently, so it stays true.
    #[inline(never)]
    pub(super) fn is_sole(self) -> bool {
        let _locked = self.lock();
        self.records().all(|(_, record)| record.references() == 1)
    }

    /// Holders of a block that is one; 0 where it was divided.
    pub(super) fn holders(self) -> u32 {
        let _locked = self.lock();
        if self.is_one() { self.record().references() } else { 0 }
    }

    /// Divides the frames of a block, if that was not done yet: from then on each has its own record.
    pub(super) fn divide(self, cpu: &Cpu) {
        loop {
            let locked = self.lock();
            if !self.is_one() {
                return;
            }
            // The CPU that writes the first tags takes no lock, and notes them in the first record.
            if !self.record().is_being_tagged() {
                return self.spaces.frames.split_block(cpu, self.first);
            }
            drop(locked);
            self.record().wait_for_tags();
        }
    }

    /// Which of the frames have tags. More of them may get some concurrently, where entries that others have are
    /// changed.
    #[inline(always)]
    pub(super) fn tags(self) -> FolioTags {
        let _locked = self.lock();
        let records = self.records();
        let count = records.len();
        match records.filter(|(_, record)| record.has_tags()).count() {
            0 => FolioTags::None,
            tagged if tagged == count => FolioTags::All,
            _ => FolioTags::Some,
        }
    }

    /// Reserves the storage for its tags, if that takes no migration, or none is needed. The caller holds the frame, or
    /// has its entry's table locked; a block is one. Not of a group.
    #[inline(always)]
    pub(super) fn reserve_now(self) -> Result<(), Unreserved> {
        let Some(storage) = self.spaces.frames.tag_storage() else { return Ok(()) };
        match self.frames {
            BLOCK_FRAMES => storage.try_reserve_block(self.first, self.record()),
            _ => storage.try_reserve(self.first, self.record()),
        }
    }

    /// Whether its tags may not be written: storage for them is not reserved. A block is one. Not of a group.
    #[inline(always)]
    pub(super) fn lacks_tag_storage(self) -> bool {
        // At its ends: a region may cover a part of it.
        let ends = [self.first, self.first + (self.frames as u64 - 1) * PAGE];
        let is_covered = |storage: &TagStorage| ends.into_iter().any(|frame| storage.coverage().has(frame));
        self.spaces.frames.tag_storage().is_some_and(|storage| !self.record().has_tag_storage() && is_covered(storage))
    }

    /// Zeroes new frames for an area with `protection`. They get tags if the area has them and storage is at hand;
    /// returns whether the area has tags and storage is not. Not of a group, whose frames have a record each.
    #[inline(always)]
    pub(super) fn zero(self, protection: Protection) -> bool {
        let is_tagged = protection.contains(Protection::TAGGED);
        let has_tags = is_tagged && self.reserve_now().is_ok();
        let start = self.spaces.frames.linear().address(self.first);
        if has_tags && !lab::is_on!(NO_ZERO_TAGS) {
            for index in 0..self.frames as u64 {
                // SAFETY: the linear map has the frames, writable and Normal-Tagged, and they have no other user.
                unsafe { mte::zero_page_and_tags(start + index * PAGE) };
            }
        } else {
            // SAFETY: as above.
            unsafe { start.as_ptr::<u8>().write_bytes(0, self.frames * PAGE_SIZE) };
        }
        if has_tags {
            self.record().note_tags();
        }
        is_tagged && !has_tags
    }

    /// Copies its contents, which do not change during the copy, to as many new frames from `to` on; those of a block with
    /// scheduling points. Not of a group.
    ///
    /// # Errors
    /// [`Unreserved`]: it has tags, and storage for those of the copy cannot be reserved at once. Nothing was copied.
    #[inline(always)]
    pub(super) fn copy_to(self, to: PhysAddr) -> Result<(), Unreserved> {
        let (tags, copy) = (self.tags(), Self { first: to, ..self });
        if tags != FolioTags::None {
            copy.reserve_now()?;
            debug_assert!(!copy.lacks_tag_storage(), "tags of {to} without storage");
        }
        for index in 0..self.frames as u64 {
            self.spaces.copy_frame(self.first + index * PAGE, to + index * PAGE, tags);
            if index % COPIED == COPIED - 1 {
                relax();
            }
        }
        if tags != FolioTags::None {
            copy.record().note_tags();
        }
        Ok(())
    }

    /// Fills a new block, with scheduling points, with the contents of frames that hold still, and with zeros for those
    /// that there are none of; and with their tags or zero ones if it `has_tags`, for which storage is reserved.
    #[inline(never)]
    pub(super) fn fill_from(self, frames: impl Iterator<Item = Option<PhysAddr>>, has_tags: bool) {
        debug_assert!(!has_tags || !self.lacks_tag_storage(), "tags of {} without storage", self.first);
        let tags = if has_tags { FolioTags::Some } else { FolioTags::None };
        for (index, from) in (0..).zip(frames) {
            let to = self.first + index * PAGE;
            match from {
                Some(from) => self.spaces.copy_frame(from, to, tags),
                None => self.spaces.zero_frame(to, tags),
            }
            if index % COPIED == COPIED - 1 {
                relax();
            }
        }
        if has_tags {
            self.record().note_tags();
        }
    }
}

impl Spaces {
    /// Zeroes a new frame, and its tags unless they are [`FolioTags::None`].
    fn zero_frame(&self, frame: PhysAddr, tags: FolioTags) {
        // SAFETY: the linear map has the frame, writable, and it has no other user.
        unsafe { memory::zero_page(self.frames.linear().address(frame)) };
        if tags != FolioTags::None {
            self.zero_tags_of(frame);
        }
    }

    /// Copies a frame to a new one, of folios of which the first has `tags`.
    #[inline(always)]
    fn copy_frame(&self, from: PhysAddr, to: PhysAddr, tags: FolioTags) {
        let pages = [from, to].map(|frame| self.frames.linear().address(frame));
        let [source, copy] = pages.map(|page| page.as_ptr::<u8>());
        // SAFETY: the linear map has both frames. The new one has no other user; the old one is held by a read-only
        // entry whose table is locked, or by the caller.
        unsafe { copy.copy_from_nonoverlapping(source, PAGE as usize) };
        match tags {
            FolioTags::None => {}
            FolioTags::Some if !self.record(from).has_tags() => self.zero_tags_of(to),
            // SAFETY: as above; the linear map is Normal-Tagged.
            FolioTags::Some | FolioTags::All => unsafe { mte::copy_page_tags(pages[1], pages[0]) },
        }
    }
}
