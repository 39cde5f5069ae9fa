//! `debug_pagealloc`: frames that are free are not in the linear map, so that who uses one faults.
//!
//! The allocator itself never looks into a free frame, but for the list of frames that are taken together, which is
//! written when they have been taken. So it is enough to show frames as the last step of taking them and to hide them
//! as the first step of giving them back, whatever the way they come and go. What that means for page tables and TLBs is
//! for the [`Curtain`] to know: nothing here calls upwards. Where the switch is off, each site is a NOP.

use core::ops::Range;

use granule_arch::patched_branch;

use super::FrameAllocator;
use crate::platform::features::branch;
use crate::smp::Cpu;

/// Shows and hides frames in the linear map. Called from any context, with locks of rank `PAGE_BLOCK` held or not.
pub trait Curtain: Sync {
    /// Makes these frames accessible. On return this CPU can use them; another may take a spurious fault.
    fn show(&self, frames: Range<usize>);

    /// Makes these frames inaccessible, each range of frame numbers. On return no CPU can use them.
    fn hide(&self, frames: &[Range<usize>]);
}

impl FrameAllocator {
    /// Hides all free frames behind `curtain`, and from now on each that becomes free, as long as the branch sites of
    /// `branch::DEBUG_PAGEALLOC` are taken. Only the first call counts. Nobody allocates meanwhile, and no other CPU
    /// has before: its magazine is empty.
    pub fn hide_free_frames(&self, cpu: &Cpu, curtain: &'static dyn Curtain) {
        self.drain_cpu(cpu);
        self.curtain.call_once(|| curtain);
        self.blocks.for_each_free(|frames| curtain.hide(&[frames]));
    }

    /// These frames were taken.
    #[inline(always)]
    pub(super) fn show(&self, frames: Range<usize>) {
        if patched_branch!(branch::DEBUG_PAGEALLOC)
            && let Some(curtain) = self.curtain.get()
        {
            curtain.show(frames);
        }
    }

    /// Whether free frames are hidden.
    #[inline(always)]
    pub(super) fn hides(&self) -> bool {
        patched_branch!(branch::DEBUG_PAGEALLOC) && self.curtain.get().is_some()
    }

    /// These frames are about to be given back. Their records say "free".
    #[inline(always)]
    pub(super) fn hide(&self, frames: &[Range<usize>]) {
        if patched_branch!(branch::DEBUG_PAGEALLOC)
            && let Some(curtain) = self.curtain.get()
        {
            curtain.hide(frames);
        }
    }
}
