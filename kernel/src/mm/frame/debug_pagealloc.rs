//! `debug_pagealloc`: free frames are not in the linear map, so that a use of one faults.
//!
//! The allocator itself never looks into a free frame, but for the list of frames that are taken together, which is
//! written when they have been taken. So it is enough to show frames as the last step of taking them and to hide them
//! as the first step of giving them back, whatever the way they come and go. [`DebugPagealloc`] hides page tables and
//! TLBs from this file: nothing here calls upwards. Where the switch is off, each site is a NOP.

use core::ops::Range;

use granule_arch::patched_branch;

use super::FrameAllocator;
use crate::platform::features::branch;
use crate::smp::Cpu;

/// Shows and hides frames in the linear map. Called from any context, with locks of rank `PAGE_BLOCK` held or not.
pub trait DebugPagealloc: Sync {
    /// Makes these frames accessible. On return this CPU can use them; another may take a spurious fault.
    fn show(&self, frames: Range<usize>);

    /// Makes these frames inaccessible, each range of frame numbers. On return no CPU can use them.
    fn hide(&self, frames: &[Range<usize>]);
}

impl FrameAllocator {
    /// Hides all free frames by `debug_pagealloc`, and from now on each that becomes free, as long as the branch
    /// sites of `branch::DEBUG_PAGEALLOC` are taken. Only the first call counts. No CPU allocates concurrently, and no
    /// other CPU has before: its magazine is empty.
    pub fn hide_free_frames(&self, cpu: &Cpu, debug_pagealloc: &'static dyn DebugPagealloc) {
        self.drain_cpu(cpu);
        self.debug_pagealloc.call_once(|| debug_pagealloc);
        self.blocks.for_each_free(|frames| debug_pagealloc.hide(&[frames]));
    }

    /// These frames were taken.
    #[inline(always)]
    pub(super) fn show(&self, frames: Range<usize>) {
        if patched_branch!(branch::DEBUG_PAGEALLOC)
            && let Some(debug_pagealloc) = self.debug_pagealloc.get()
        {
            debug_pagealloc.show(frames);
        }
    }

    /// Whether free frames are hidden.
    #[inline(always)]
    pub(super) fn hides(&self) -> bool {
        patched_branch!(branch::DEBUG_PAGEALLOC) && self.debug_pagealloc.get().is_some()
    }

    /// These frames are about to be given back. Their records are "free".
    #[inline(always)]
    pub(super) fn hide(&self, frames: &[Range<usize>]) {
        if patched_branch!(branch::DEBUG_PAGEALLOC)
            && let Some(debug_pagealloc) = self.debug_pagealloc.get()
        {
            debug_pagealloc.hide(frames);
        }
    }
}
