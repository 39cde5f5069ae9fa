//! Frames that a test takes away.

#![allow(unsafe_code, reason = "a list through frames that the test has")]

use alloc::vec::Vec;

use granule::kernel;
use granule::mm::layout;
use granule::sched::relax;
use granule::smp::{self, this_cpu};
use granule_arch::addr::PhysAddr;

use super::wait_until;

/// In the last frame in place of the next one's address: no frame has it.
const NO_FRAME: u64 = u64::MAX;
/// Frames that [`TakenFrames::fill`] takes one by one, so that as many can be given back.
const SINGLE: usize = 8192;
const FRAMES_OF_A_BLOCK: usize = 512;
/// Blocks that may become whole while others are taken: those that CPUs keep.
const KEPT: usize = 64;

/// Empties the magazines of all CPUs: what is free, each CPU finds.
pub(crate) fn drain_magazines() {
    smp::call(smp::online(), |cpu, _| kernel().frames.drain_cpu(cpu), 0);
}

/// Frames, each with the address of the next at its beginning, and blocks. Dropping it frees them.
#[derive(Default)]
pub(crate) struct TakenFrames {
    first: Option<PhysAddr>,
    /// Not a list through them: what is written to a machine's memory is taken from the host's, 2 MiB at once.
    blocks: Vec<PhysAddr>,
}

impl TakenFrames {
    /// Takes a frame, if there is one.
    pub(crate) fn take(&mut self) -> Option<PhysAddr> {
        let frame = kernel().frames.alloc(this_cpu()).ok()?;
        self.keep(frame);
        Some(frame)
    }

    /// Takes a frame of those for programs' pages first, if there is one.
    pub(crate) fn take_movable(&mut self) -> Option<PhysAddr> {
        let frame = kernel().frames.alloc_movable(this_cpu()).ok()?;
        self.keep(frame);
        Some(frame)
    }

    /// Waits until `frame` is free, and takes it last of those that `take` takes; whether it was there in the end. The
    /// frames that the taken had go back first.
    ///
    /// The CPU that empties an entry frees the frame some time later, after the invalidation, to its own magazine. So
    /// the frames of a try in vain go back, and are taken again.
    pub(crate) fn find(&mut self, frame: PhysAddr, mut take: impl FnMut(&mut Self) -> Option<PhysAddr>) -> bool {
        let mut is_found = false;
        wait_until(|| {
            self.give_all_back();
            drain_magazines();
            is_found = core::iter::from_fn(|| take(self)).any(|taken| taken == frame);
            is_found
        });
        is_found
    }

    /// Takes whatever is free.
    pub(crate) fn fill(&mut self) {
        if (0..SINGLE).all(|_| self.take().is_some()) {
            self.take_blocks(|| true);
        }
        while self.take().is_some() {}
    }

    /// Takes what is free above the reserve, but for so many frames.
    pub(crate) fn fill_but(&mut self, left: usize) {
        let frames = kernel().frames;
        self.take_blocks(|| frames.has_room_for(left + FRAMES_OF_A_BLOCK));
        while frames.has_room_for(left) && self.take().is_some() {}
    }

    /// Takes whole blocks, as long as it is to go on.
    pub(crate) fn take_blocks(&mut self, goes_on: impl Fn() -> bool) {
        let frames = kernel().frames;
        // Without memory for the list there are no blocks.
        let _ = self.blocks.try_reserve_exact(frames.stats().free_blocks + KEPT);
        while self.blocks.len() < self.blocks.capacity()
            && goes_on()
            && let Ok(block) = frames.alloc_blocks(this_cpu(), 0)
        {
            self.blocks.push(block);
        }
    }

    /// Adds a frame that the caller has.
    pub(crate) fn keep(&mut self, frame: PhysAddr) {
        let next = self.first.replace(frame).map_or(NO_FRAME, |next| next.0);
        // SAFETY: the frame is the taken's, and in the linear map.
        unsafe { layout::linear(frame).as_ptr::<u64>().write(next) };
    }

    /// Frees so many frames; how many there were of those.
    pub(crate) fn give_back(&mut self, count: usize) -> usize {
        (0..count).take_while(|_| self.give_one_back()).count()
    }

    fn give_all_back(&mut self) {
        while self.give_one_back() {
            relax();
        }
    }

    fn give_one_back(&mut self) -> bool {
        let Some(frame) = self.first else { return false };
        // SAFETY: written by `keep`.
        let next = unsafe { layout::linear(frame).as_ptr::<u64>().read() };
        self.first = (next != NO_FRAME).then_some(PhysAddr(next));
        kernel().frames.free(this_cpu(), frame);
        true
    }
}

impl Drop for TakenFrames {
    fn drop(&mut self) {
        self.give_all_back();
        self.blocks.drain(..).for_each(|block| kernel().frames.free_blocks(this_cpu(), block, 0));
    }
}
