//! A CPU's own few free frames, so that most allocations take no lock.
//!
//! A magazine is filled and emptied in bulk, [`BATCH`] frames at a time. It lives in the
//! [`FrameAllocator`](super::FrameAllocator) that its frames belong to, two per CPU number, and only that CPU touches
//! it, with interrupts masked: an interrupt handler that allocated in the middle of a push would lose a frame or hand
//! one out twice.
//!
//! The fields are atomics only so that statistics may read them from elsewhere; every access is relaxed.
//!
//! `kernel/loom` compiles this file on loom's atomics.

use core::ops::Range;

use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use crate::sync::interrupts;

/// Frames moved at once between a magazine and the page blocks.
pub(super) const BATCH: usize = 32;
/// The most frames in a magazine. Twice the batch: a CPU that frees and allocates in turn at either end goes to the
/// lock only once in [`BATCH`] operations.
pub(super) const CAPACITY: usize = 2 * BATCH;

/// Free frames, the one freed last on top: it is the likeliest to be in the cache. All zero: empty.
#[repr(align(64))]
pub(super) struct Magazine {
    pub(super) count: AtomicUsize,
    pub(super) frames: [AtomicUsize; CAPACITY],
    /// Set while a CPU is at work, to catch two CPUs (on the host: threads) that claim one number.
    #[cfg(debug_assertions)]
    pub(super) busy: core::sync::atomic::AtomicBool,
}

impl Magazine {
    /// Frames in it.
    pub(super) fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Takes the frame on top.
    pub(super) fn pop(&self) -> Option<usize> {
        let count = self.count.load(Relaxed).checked_sub(1)?;
        self.count.store(count, Relaxed);
        Some(self.frames[count].load(Relaxed))
    }

    /// Puts `frame` on top; it comes back as an error where the magazine is full.
    pub(super) fn push(&self, frame: usize) -> Result<(), usize> {
        let count = self.count.load(Relaxed);
        let place = self.frames.get(count).ok_or(frame)?;
        place.store(frame, Relaxed);
        self.count.store(count + 1, Relaxed);
        Ok(())
    }

    /// Whether `count` more frames fit.
    pub(super) fn has_room(&self, count: usize) -> bool {
        count <= CAPACITY - self.len().min(CAPACITY)
    }

    /// Puts a run of neighbours on top, the first of them last, or none where they do not fit; whether they did.
    pub(super) fn push_run(&self, run: Range<usize>) -> bool {
        let held = self.count.load(Relaxed);
        let Some(places) = self.frames.get(held..held + run.len()) else { return false };
        for (place, frame) in places.iter().zip(run.clone().rev()) {
            place.store(frame, Relaxed);
        }
        self.count.store(held + run.len(), Relaxed);
        true
    }

    /// Runs `work` with interrupts masked, because a handler may want the magazine too. Debug builds check that no other
    /// CPU is in it concurrently.
    #[inline(always)]
    pub(super) fn alone<R>(&self, work: impl FnOnce(&Self) -> R) -> R {
        let masked = interrupts::mask();
        #[cfg(debug_assertions)]
        assert!(!self.busy.swap(true, core::sync::atomic::Ordering::Acquire), "two CPUs use one CPU number");
        let result = work(self);
        #[cfg(debug_assertions)]
        self.busy.store(false, core::sync::atomic::Ordering::Release);
        interrupts::restore(masked);
        result
    }
}
