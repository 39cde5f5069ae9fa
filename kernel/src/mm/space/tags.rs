//! Allocation tags of programs' pages (`PROT_MTE`; Arm ARM D10).
//!
//! A frame has tags from the first valid entry on that checks accesses against them: they are zeroed before it is
//! stored, and from then on belong to the page as its contents do, until the frame is free. A copy of the frame takes
//! them along, also for a page that is not checked: one of the frame's other users may have tagged it. As in Linux
//! (`PG_mte_tagged`) the [flag](crate::mm::frame::Frame::has_tags) of its record is set after the tags and stays until
//! then. Of a page block that only block entries have, the record of the first frame says it for all.
//!
//! **Tags are written only where [storage](crate::mm::tag_storage) is reserved for them**: a write asserts it here, a
//! copy in [`super::folio`]. A new page reserves it before its first tag, a copy before it copies tags, and what finds
//! none leaves the entry waiting for an access ([`super::fault_on_access`]).
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
use crate::mm::page_block::BLOCK_FRAMES;
use crate::mm::tag_storage::{Evict, Unreserved};
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
        let waits = self.common.page(frame).zero(protection);
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

    /// Gives a frame tags, if it has none; returns whether it has. Complete before a store that comes next.
    #[inline(always)]
    pub(super) fn tag(&self, frame: PhysAddr) -> bool {
        if self.page(frame).lacks_tag_storage() {
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
        let (folio, record) = (self.block(block), self.record(block));
        let begins = {
            let _locked = folio.lock();
            if !folio.is_one() {
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

    /// Zeroes the tags of a frame, through which nothing is checked yet.
    pub(super) fn zero_tags(&self, frame: PhysAddr) {
        debug_assert!(!self.page(frame).lacks_tag_storage(), "tags of {frame} without storage");
        self.zero_tags_of(frame);
    }

    /// As [`Self::zero_tags`], for a frame of a block, whose first record has the flag.
    pub(super) fn zero_tags_of(&self, frame: PhysAddr) {
        // SAFETY: the linear map has the frame, writable and Normal-Tagged; the kernel's own accesses match any tag.
        unsafe { mte::zero_page_tags(self.frames.linear().address(frame)) };
    }
}
