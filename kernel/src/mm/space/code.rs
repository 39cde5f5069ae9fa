//! New code: the contents of a frame must be visible to instruction fetches of every CPU before an entry permits them.
//!
//! Once for each frame, as on Linux (`PG_dcache_clean`). Maintenance for later stores is the program's own, from EL0.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

use core::sync::atomic::Ordering;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Feature, Mmu};

use super::{PAGE, Space, Spaces};
use crate::lab;
use crate::mm::frame::Frame;

/// In the flags of a frame's record: its contents were made visible to fetches when it first became executable.
pub(super) const CODE_VISIBLE: u32 = 1;

/// Whether the contents of a frame are visible to fetches.
#[inline(always)]
pub(super) fn is_visible(frame: &Frame) -> bool {
    frame.flags.load(Ordering::Acquire) & CODE_VISIBLE != 0
}

impl Space {
    /// Makes the contents of the frame of `entry` visible to fetches, unless that was done before. The entry is not
    /// stored yet, or does not permit EL0 to execute.
    #[inline(never)]
    pub(super) fn make_code_visible(&self, entry: Descriptor) {
        // The page of zeros has no code.
        if !entry.is_special() && !is_visible(self.common.record(entry.address())) {
            self.maintain(entry.address(), PAGE);
        }
    }

    /// The same for `bytes` bytes from `frame` on, whose record has the flag for all of them then.
    #[cold]
    pub(super) fn maintain(&self, frame: PhysAddr, bytes: u64) {
        if lab::is_on!(SKIP_ICACHE_USER) {
            return;
        }
        let mmu = self.mmu();
        if !mmu.has(Feature::Idc) {
            mmu.clean_code(self.common.frames.linear().address(frame), bytes);
        }
        mmu.dsb_ish();
        if !mmu.has(Feature::Dic) {
            // Invalidation by address needs a mapping that permits fetches, and there is none.
            mmu.invalidate_all_code();
            mmu.dsb_ish();
        }
        // Two CPUs may both do it, which is harmless.
        self.common.record(frame).flags.fetch_or(CODE_VISIBLE, Ordering::Release);
    }
}

impl Spaces {
    /// Copies a frame.
    #[inline]
    pub(super) fn copy_frame(&self, from: PhysAddr, to: PhysAddr) {
        let linear = self.frames.linear();
        let [from, to] = [from, to].map(|frame| linear.address(frame).as_ptr::<u8>());
        // SAFETY: the linear map has both frames. The new one has no other user; the old one is held by a read-only
        // entry whose table is locked, or by the caller.
        unsafe { to.copy_from_nonoverlapping(from, PAGE as usize) };
    }
}
