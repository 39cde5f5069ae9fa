//! Allocation tags of programs' pages (`PROT_MTE`; Arm ARM D10).
//!
//! A frame has tags from the first valid entry on that checks accesses against them: they are zeroed before it is
//! stored, and from then on belong to the page as its contents do, until the frame is free. What copies the frame
//! copies them, also for a page that is not checked: one of the frame's other users may have tagged it. As in Linux
//! (`PG_mte_tagged`) the [flag](crate::mm::frame::Frame::has_tags) of its record is set behind the tags and stays until
//! then. Of a page block that only block entries have, the record of the first frame says it for all.
//!
//! The page of zeros has tags of zero from the boot on; nothing writes to it.

#![allow(unsafe_code, reason = "user frames by their linear addresses")]

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, Protection};
use granule_arch::{memory, mte};
use granule_pgtable::Mmu;

use super::code::may_need_frame;
use super::entry::attributes;
use super::{PAGE, Space, Spaces};
use crate::lab;
use crate::mm::frame::FrameAllocator;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};

impl Space {
    /// Zeroes a new frame of `frames`, the space's, for an area with `protection`, and [prepares](Self::prepare) it for
    /// the entries there.
    #[inline(always)]
    pub(super) fn zero_new(&self, frames: &FrameAllocator, frame: PhysAddr, protection: Protection) {
        if may_need_frame(protection) {
            return self.zero_and_prepare(frame, protection);
        }
        // SAFETY: the linear map has the frame, writable, and it has no other user.
        unsafe { memory::zero_page(frames.linear().address(frame)) };
    }

    #[cold]
    #[inline(never)]
    fn zero_and_prepare(&self, frame: PhysAddr, protection: Protection) {
        if protection.contains(Protection::TAGGED) {
            self.common.zero_tagged(frame);
        } else {
            // SAFETY: as above.
            unsafe { memory::zero_page(self.common.frames.linear().address(frame)) };
        }
        self.prepare(Descriptor::page(frame, attributes(protection)));
    }
}

impl Spaces {
    /// Has programs map memory with tags: called once, on a system whose memory has them, before the first program.
    pub fn start_tags(&self) {
        self.zero_tags(self.zeros);
    }

    fn zero_tagged(&self, frame: PhysAddr) {
        let page = self.frames.linear().address(frame);
        if lab::is_on!(NO_ZERO_TAGS) {
            // SAFETY: the linear map has the frame, writable, and it has no other user.
            unsafe { memory::zero_page(page) };
        } else {
            // SAFETY: as above; the linear map is Normal-Tagged.
            unsafe { mte::zero_page_and_tags(page) };
        }
        self.record(frame).note_tags();
    }

    /// The same for a new page block.
    pub(super) fn zero_new_block(&self, block: PhysAddr, protection: Protection) {
        if protection.contains(Protection::TAGGED) {
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

    /// Gives a frame tags, if it has none. Complete before a store that comes next.
    #[inline(always)]
    pub(super) fn tag(&self, frame: PhysAddr) {
        self.record(frame).tag_once(|| {
            if !lab::is_on!(NO_ZERO_TAGS) {
                self.zero_tags(frame);
            }
            // The tags before the entry.
            self.mmu.dmb_ishst();
        });
    }

    /// Zeroes the tags of a frame, through which nothing is checked yet.
    pub(super) fn zero_tags(&self, frame: PhysAddr) {
        // SAFETY: the linear map has the frame, writable and Normal-Tagged; the kernel's own accesses match any tag.
        unsafe { mte::zero_page_tags(self.frames.linear().address(frame)) };
    }

    /// Copies a frame, which stays as it is meanwhile, to a new one.
    #[inline]
    pub(super) fn copy_frame(&self, from: PhysAddr, to: PhysAddr) {
        self.copy_contents(from, to);
        if self.record(from).has_tags() {
            self.copy_tags(from, to);
            self.record(to).note_tags();
        }
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

    /// Copies the tags of a frame to a new one.
    #[cold]
    #[inline(never)]
    pub(super) fn copy_tags(&self, from: PhysAddr, to: PhysAddr) {
        let [from, to] = [from, to].map(|frame| self.frames.linear().address(frame));
        // SAFETY: as in `copy_contents`; the linear map is Normal-Tagged.
        unsafe { mte::copy_page_tags(to, from) };
    }
}
