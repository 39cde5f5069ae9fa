//! Page blocks that are taken out of use while what is in them moves away.

use core::fmt;

use granule_arch::addr::PhysAddr;

use super::FrameAllocator;
use crate::mm::page_block::{BLOCK_FRAMES, BlockNumber};
use crate::smp::Cpu;

/// A cut block whose free frames are given to nothing.
#[must_use = "its frames are of no use until the isolation ends"]
pub struct IsolatedBlock<'f> {
    frames: &'f FrameAllocator,
    index: usize,
    number: BlockNumber,
}

impl IsolatedBlock<'_> {
    /// Whether it has `frame`.
    pub(in crate::mm) const fn has(&self, frame: PhysAddr) -> bool {
        frame.frame_number() / BLOCK_FRAMES == self.number
    }

    /// The frames that are not free in the block: in use, or in a magazine.
    pub(in crate::mm) fn taken(&self) -> impl Iterator<Item = PhysAddr> {
        let bitmap = self.frames.blocks.free_frames_of(self.index);
        let is_taken = move |&frame: &usize| bitmap[frame / 64] >> (frame % 64) & 1 == 0;
        let first = self.number * BLOCK_FRAMES;
        (0..BLOCK_FRAMES).filter(is_taken).map(move |frame| PhysAddr::from_frame_number(first + frame))
    }

    /// Whether some of its frames are in magazines of other CPUs, so that it cannot become whole now.
    pub(in crate::mm) fn has_frames_elsewhere(&self) -> bool {
        let is_free = |frame| self.frames.cut_frame(frame).is_some_and(|record| record.references() == 0);
        self.taken().any(is_free)
    }

    /// Ends the isolation; whether the block is whole, and free for all.
    pub(in crate::mm) fn end(self, cpu: &Cpu) -> bool {
        self.frames.blocks.end_isolation(cpu, self.index)
    }
}

impl fmt::Debug for IsolatedBlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IsolatedBlock({})", self.number)
    }
}

impl FrameAllocator {
    /// How many places of blocks there are, for [`Self::isolate`].
    pub(in crate::mm) fn block_places(&self) -> usize {
        self.blocks.blocks()
    }

    /// Isolates the block in the place `index`, if at least `least` of its frames are free, not all, and those that are not
    /// find room in blocks that are cut already; `left_free` frames stay free, the reserve besides. The caller
    /// [ends](IsolatedBlock::end) it. `cpu` is the CPU that this runs on.
    pub(in crate::mm) fn isolate(
        &self,
        cpu: &Cpu,
        index: usize,
        least: usize,
        left_free: usize,
    ) -> Option<IsolatedBlock<'_>> {
        let number = self.blocks.isolate(cpu, index, least, self.reserve().saturating_add(left_free))?;
        Some(IsolatedBlock { frames: self, index, number })
    }

    /// Whether the block of `frame`, which is held, is isolated: the page may be about to move.
    pub(in crate::mm) fn is_isolated(&self, frame: PhysAddr) -> bool {
        self.blocks.is_isolated(frame.frame_number())
    }

    /// Calls `wake` where a block is asked for and frames are free in others.
    pub fn set_compactor(&self, wake: fn()) {
        self.compactor.call_once(|| wake);
    }

    /// Wakes the compactor where more frames are free than it keeps free.
    #[cold]
    #[inline(never)]
    pub(super) fn wake_compactor(&self) {
        if let Some(wake) = self.compactor.get()
            && self.has_room_for(3 * BLOCK_FRAMES)
        {
            wake();
        }
    }
}
