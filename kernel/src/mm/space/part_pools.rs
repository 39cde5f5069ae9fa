//! The memory of [`parts`](super::parts).

#![allow(unsafe_code, reason = "an index in a frame of its own, and parts that their space gives back")]

use core::ptr::NonNull;

use granule_arch::addr::{PAGE_SIZE, PhysAddr};

use super::parts::{Index, Part};
use crate::mm::frame::FrameAllocator;
use crate::mm::pool::{Pool, PoolBox};
use crate::smp::this_cpu;

/// The most parts of a value: several for each CPU.
pub(super) const MOST: usize = 64;

/// Where the parts of all spaces come from, and their indexes.
pub(super) struct PartPools<A> {
    parts: Pool<Part<A>>,
    frames: &'static FrameAllocator,
}

impl<A> PartPools<A> {
    /// No parts yet; their memory comes from `frames`.
    pub(super) const fn new(frames: &'static FrameAllocator) -> Self {
        Self { parts: Pool::new(frames), frames }
    }

    /// Frames of the pool of parts. Those of indexes are their spaces'.
    pub(super) fn frames(&self) -> usize {
        self.parts.stats().frames
    }

    /// Moves a part into the pool; `None` where there is no memory.
    pub(super) fn new_part(&'static self, part: Part<A>) -> Option<NonNull<Part<A>>> {
        self.parts.try_new(part).ok().map(PoolBox::into_raw)
    }

    /// Ends a part.
    ///
    /// # Safety
    /// It comes from [`Self::new_part`], and nothing refers to it.
    pub(super) unsafe fn free_part(&self, part: NonNull<Part<A>>) {
        // SAFETY: as the caller guarantees.
        drop(unsafe { PoolBox::from_raw(part) });
    }

    /// Has `make` make an index in a frame; `None` where there is none.
    pub(super) fn new_index(&self, make: impl FnOnce(PhysAddr) -> Index<A>) -> Option<NonNull<Index<A>>> {
        const { assert!(size_of::<Index<A>>() <= PAGE_SIZE) };
        let frame = self.frames.alloc(this_cpu()).ok()?;
        let place = NonNull::new(self.frames.linear().address(frame).as_ptr())?;
        // SAFETY: the linear map has the frame, writable, and the frame has no other user.
        unsafe { place.write(make(frame)) };
        Some(place)
    }

    /// Frees an index.
    ///
    /// # Safety
    /// It comes from [`Self::new_index`], and nothing refers to it.
    pub(super) unsafe fn free_index(&self, index: NonNull<Index<A>>) {
        // SAFETY: as the caller guarantees.
        let frame = unsafe { index.as_ref() }.frame;
        self.frames.free(this_cpu(), frame);
    }
}
