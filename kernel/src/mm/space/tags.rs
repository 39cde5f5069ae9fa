//! Allocation tags of programs' pages (`PROT_MTE`; Arm ARM D10).
//!
//! A frame has tags from the first valid entry on that checks accesses against them: they are zeroed before it is
//! stored, and from then on belong to the page as its contents do, until the frame is free. A copy of the frame takes
//! them along, also for a page that is not checked: one of the frame's other users may have tagged it. As in Linux
//! (`PG_mte_tagged`) the [flag](crate::mm::frame::Frame::has_tags) of its record is set after the tags and stays until
//! then. Of a page block that only block entries have, the record of the first frame says it for all.
//!
//! **Tags are written only where [storage](crate::mm::tag_storage) is reserved for them**: each write here asserts it. A
//! new page reserves it before its first tag, a copy before it copies tags, and what finds none leaves the entry waiting
//! for an access ([`super::fault_on_access`]).
//!
//! The page of zeros has tags of zero from the boot on; nothing writes to it.

#![allow(unsafe_code, reason = "user frames by their linear addresses")]

use granule_arch::addr::{PAGE, PhysAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_arch::{memory, mte};
use granule_pgtable::Mmu;

use super::address_space::Space;
use super::code::may_need_frame;
use super::entry::attributes;
use super::spaces::Spaces;
use crate::lab;
use crate::mm::frame::{Frame, FrameAllocator};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::tag_storage::{Evict, TagStorage, Unreserved};
use crate::sched::relax;
use crate::smp::Cpu;

impl Space {
    /// Zeroes a new frame of `frames`, the space's, for an area with `protection`, and prepares it for the entries there
    /// ([`Self::prepared`]); whether they have to wait for tag storage.
    #[inline(always)]
    #[must_use]
    pub(super) fn zero_new(&self, frames: &FrameAllocator, frame: PhysAddr, protection: Protection) -> bool {
        if may_need_frame(protection) {
            return self.zero_and_prepare(frame, protection);
        }
        // SAFETY: the linear map has the frame, writable, and it has no other user.
        unsafe { memory::zero_page(frames.linear().address(frame)) };
        false
    }

    #[cold]
    #[inline(never)]
    fn zero_and_prepare(&self, frame: PhysAddr, protection: Protection) -> bool {
        let waits = protection.contains(Protection::TAGGED) && !self.common.zero_tagged(frame);
        if !protection.contains(Protection::TAGGED) {
            // SAFETY: as above.
            unsafe { memory::zero_page(self.common.frames.linear().address(frame)) };
        }
        if protection.contains(Protection::EXECUTE) {
            // Its contents are visible to fetches first.
            return self.becomes_waiting(Descriptor::page(frame, attributes(protection)));
        }
        waits
    }
}

impl Evict for Spaces {
    fn evict(&self, cpu: &Cpu, frame: PhysAddr) -> bool {
        self.migrate_out(cpu, frame).is_ok()
    }

    fn alone<T>(&self, empty: impl FnOnce() -> T) -> T {
        let _claims = self.tag_claims.write();
        empty()
    }

    fn wait(&self) {
        drop(self.tag_claims.read());
    }

    fn relax(&self) {
        relax();
    }
}

impl Spaces {
    /// Has programs map memory with tags: called once, on a system whose memory has them, before the first program, and
    /// before frames are lent.
    ///
    /// # Errors
    /// [`Unreserved`]: the page of zeros has no storage for its tags.
    pub fn start_tags(&self) -> Result<(), Unreserved> {
        if let Some(storage) = self.frames.tag_storage() {
            storage.try_reserve_long(self.zeros, self.record(self.zeros))?;
        }
        self.zero_tags(self.zeros);
        Ok(())
    }

    /// Reserves the storage for the tags of `frame`, if that takes no migration, or none is needed. The caller holds the
    /// frame, or has its entry's table locked.
    #[inline(always)]
    pub(super) fn reserve_now(&self, frame: PhysAddr) -> Result<(), Unreserved> {
        self.frames.tag_storage().map_or(Ok(()), |storage| storage.try_reserve(frame, self.record(frame)))
    }

    /// Whether tags of `frame` may not be written: storage for them is not reserved.
    #[inline(always)]
    pub(super) fn lacks_tag_storage(&self, frame: PhysAddr) -> bool {
        let lacks = |storage: &TagStorage| !self.record(frame).has_tag_storage() && storage.coverage().has(frame);
        self.frames.tag_storage().is_some_and(lacks)
    }

    /// Zeroes a new frame, which gets tags if storage for them is at hand; whether it has.
    fn zero_tagged(&self, frame: PhysAddr) -> bool {
        let page = self.frames.linear().address(frame);
        let is_reserved = self.reserve_now(frame).is_ok();
        if !is_reserved || lab::is_on!(NO_ZERO_TAGS) {
            // SAFETY: the linear map has the frame, writable, and it has no other user.
            unsafe { memory::zero_page(page) };
        } else {
            // SAFETY: as above; the linear map is Normal-Tagged.
            unsafe { mte::zero_page_and_tags(page) };
        }
        if is_reserved {
            self.record(frame).note_tags();
        }
        is_reserved
    }

    /// Zeroes a new page block, which gets tags if `protection` has them and storage for them is at hand.
    pub(super) fn zero_new_block(&self, block: PhysAddr, protection: Protection) {
        if protection.contains(Protection::TAGGED) && self.reserve_block_now(block).is_ok() {
            let frames = (0..BLOCK_FRAMES as u64).map(|index| block + index * PAGE);
            for frame in frames {
                // SAFETY: the linear map has the block, writable and Normal-Tagged, and it has no other user.
                unsafe { mte::zero_page_and_tags(self.frames.linear().address(frame)) };
            }
            return self.record(block).note_tags();
        }
        // SAFETY: as above.
        unsafe { self.frames.linear().address(block).as_ptr::<u8>().write_bytes(0, BLOCK_SIZE as usize) };
    }

    /// [`Self::reserve_now`] for a page block that is one, whose first record stands for all.
    pub(super) fn reserve_block_now(&self, block: PhysAddr) -> Result<(), Unreserved> {
        self.frames.tag_storage().map_or(Ok(()), |storage| storage.try_reserve_block(block, self.record(block)))
    }

    /// Gives a frame tags, if it has none; returns whether it has. Complete before a store that comes next.
    #[inline(always)]
    pub(super) fn tag(&self, frame: PhysAddr) -> bool {
        if self.lacks_tag_storage(frame) {
            return false;
        }
        self.tag_reserved(frame, self.record(frame));
        true
    }

    /// As [`Self::tag`], where storage is reserved, or none is needed; `record` is that of the frame.
    #[inline(always)]
    pub(super) fn tag_reserved(&self, frame: PhysAddr, record: &Frame) {
        record.tag_once(|| {
            if !lab::is_on!(NO_ZERO_TAGS) {
                self.zero_tags(frame);
            }
            // The tags before the entry.
            self.mmu.dmb_ishst();
        });
    }

    /// As [`Self::tag`], for a page block whose storage is reserved, if it is one. It stays one: a split waits.
    /// Holds no lock; the caller holds the block.
    pub(super) fn tag_block(&self, block: PhysAddr) {
        let record = self.record(block);
        let begins = {
            let _locked = self.lock_block(block);
            if !self.is_one(block) {
                return;
            }
            record.begin_tags()
        };
        if !begins {
            return record.wait_for_tags();
        }
        if !lab::is_on!(NO_ZERO_TAGS) {
            (0..BLOCK_FRAMES as u64).for_each(|index| self.zero_tags_of(block + index * PAGE));
        }
        self.mmu.dmb_ishst();
        record.end_tags();
    }

    /// Whether tags of a page block that is one may not be written.
    pub(super) fn block_lacks_tag_storage(&self, block: PhysAddr) -> bool {
        // At its ends: a region may cover a part of it.
        let last = block + (BLOCK_SIZE - PAGE);
        let is_covered = |storage: &TagStorage| [block, last].into_iter().any(|frame| storage.coverage().has(frame));
        self.frames.tag_storage().is_some_and(|storage| !self.record(block).has_tag_storage() && is_covered(storage))
    }

    /// Zeroes the tags of a frame, through which nothing is checked yet.
    pub(super) fn zero_tags(&self, frame: PhysAddr) {
        debug_assert!(!self.lacks_tag_storage(frame), "tags of {frame} without storage");
        self.zero_tags_of(frame);
    }

    /// As [`Self::zero_tags`], for a frame of a block, whose first record has the flag.
    pub(super) fn zero_tags_of(&self, frame: PhysAddr) {
        // SAFETY: the linear map has the frame, writable and Normal-Tagged; the kernel's own accesses match any tag.
        unsafe { mte::zero_page_tags(self.frames.linear().address(frame)) };
    }

    /// Copies a frame, which stays as it is during the copy, to a new one.
    ///
    /// # Errors
    /// [`Unreserved`]: it has tags, and storage for those of the copy cannot be reserved at once. Nothing was copied.
    #[inline]
    pub(super) fn copy_frame(&self, from: PhysAddr, to: PhysAddr) -> Result<(), Unreserved> {
        if self.record(from).has_tags() {
            self.copy_tags(from, to)?;
        }
        self.copy_contents(from, to);
        Ok(())
    }

    /// Copies the contents of a frame.
    #[inline(always)]
    pub(super) fn copy_contents(&self, from: PhysAddr, to: PhysAddr) {
        let linear = self.frames.linear();
        let [from, to] = [from, to].map(|frame| linear.address(frame).as_ptr::<u8>());
        // SAFETY: the linear map has both frames. The new one has no other user; the old one is held by a read-only
        // entry whose table is locked, or by the caller.
        unsafe { to.copy_from_nonoverlapping(from, PAGE as usize) };
    }

    /// Copies the tags of a frame to a new one, which has tags then.
    #[cold]
    #[inline(never)]
    fn copy_tags(&self, from: PhysAddr, to: PhysAddr) -> Result<(), Unreserved> {
        self.reserve_now(to)?;
        debug_assert!(!self.lacks_tag_storage(to), "tags of {to} without storage");
        self.copy_tags_of(from, to);
        self.record(to).note_tags();
        Ok(())
    }

    /// Copies the tags of a frame to one whose record, or that of its block, does not note it.
    #[inline(always)]
    pub(super) fn copy_tags_of(&self, from: PhysAddr, to: PhysAddr) {
        let [from, to] = [from, to].map(|frame| self.frames.linear().address(frame));
        // SAFETY: as in `copy_contents`; the linear map is Normal-Tagged.
        unsafe { mte::copy_page_tags(to, from) };
    }
}
