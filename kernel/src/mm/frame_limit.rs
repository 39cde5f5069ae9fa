//! Frames that several owners may have together, up to a limit: those of files.

use core::sync::atomic::{AtomicUsize, Ordering};

/// How many frames some owners may have together.
#[derive(Debug)]
pub struct FrameLimit {
    taken: AtomicUsize,
    most: usize,
}

impl FrameLimit {
    /// Up to `most`.
    pub const fn new(most: usize) -> Self {
        Self { taken: AtomicUsize::new(0), most }
    }

    /// Frames that are taken, at most as many as there may be, and those.
    pub fn frames(&self) -> (usize, usize) {
        (self.taken.load(Ordering::Relaxed), self.most)
    }
}

/// The frames that one owner has of a limit. They go back when it is dropped.
#[derive(Debug)]
pub struct FrameShare {
    limit: Option<&'static FrameLimit>,
    frames: AtomicUsize,
}

impl FrameShare {
    /// None yet; without a limit none ever, and nothing is refused.
    pub const fn new(limit: Option<&'static FrameLimit>) -> Self {
        Self { limit, frames: AtomicUsize::new(0) }
    }

    /// Whether there is a limit.
    pub const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// How many it has of its limit.
    pub fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed)
    }

    /// Takes more, before they are allocated; returns whether there may be so many. Relaxed, as what gives them back: the
    /// numbers order nothing.
    #[inline(always)]
    pub fn take(&self, frames: usize) -> bool {
        self.limit.is_none_or(|limit| self.take_of(limit, frames))
    }

    #[inline(never)]
    fn take_of(&self, limit: &FrameLimit, frames: usize) -> bool {
        let more = |taken: usize| taken.checked_add(frames).filter(|&sum| sum <= limit.most);
        let is_taken = limit.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if is_taken {
            self.frames.fetch_add(frames, Ordering::Relaxed);
        }
        is_taken
    }

    /// Gives back some that were taken.
    #[inline(always)]
    pub fn give_back(&self, frames: usize) {
        if let Some(limit) = self.limit {
            let before = self.frames.fetch_sub(frames, Ordering::Relaxed);
            debug_assert!(before >= frames, "{frames} of {before}");
            limit.taken.fetch_sub(frames, Ordering::Relaxed);
        }
    }
}

impl Drop for FrameShare {
    fn drop(&mut self) {
        self.give_back(self.frames());
    }
}
