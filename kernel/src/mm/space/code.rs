//! New code: what is in a frame must reach the fetches of every CPU before an entry lets it run.
//!
//! Once for each frame, as Linux does (`PG_dcache_clean`): what the program writes later is its own to maintain, which
//! it can, from EL0.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

use core::sync::atomic::Ordering;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::Mmu;

use super::{PAGE, Space};
use crate::lab;

/// In the flags of a frame's record: fetches see what was in it when it first became executable.
const CODE_VISIBLE: u32 = 1;

impl Space {
    /// Makes what is in the frame of `entry` visible to fetches, if that was not done yet. The entry is not there yet,
    /// or does not let EL0 execute.
    #[inline(never)]
    pub(super) fn make_code_visible(&self, entry: Descriptor) {
        // The page of zeros stays as it was when it was made: no code.
        if !entry.is_special() && self.common.record(entry.address()).flags.load(Ordering::Acquire) & CODE_VISIBLE == 0
        {
            self.maintain(entry.address());
        }
    }

    #[cold]
    fn maintain(&self, frame: PhysAddr) {
        if lab::is_on!(SKIP_ICACHE_USER) {
            return;
        }
        let mmu = self.mmu();
        if !mmu.has_idc() {
            mmu.clean_code(self.common.frames.linear().address(frame), PAGE);
        }
        mmu.dsb_ish();
        if !mmu.has_dic() {
            // By address that takes a mapping that fetches could use; there is none.
            mmu.invalidate_all_code();
            mmu.dsb_ish();
        }
        // Two CPUs may both do it, which does no harm.
        self.common.record(frame).flags.fetch_or(CODE_VISIBLE, Ordering::Release);
    }

    /// Copies a frame.
    #[inline]
    pub(super) fn copy_frame(&self, from: PhysAddr, to: PhysAddr) {
        let linear = self.common.frames.linear();
        let [from, to] = [from, to].map(|frame| linear.address(frame).as_ptr::<u8>());
        // SAFETY: the linear map shows both; the new frame has no other user, and the old one is held by an entry whose
        // table is locked, and may not be written.
        unsafe { to.copy_from_nonoverlapping(from, PAGE as usize) };
    }
}
