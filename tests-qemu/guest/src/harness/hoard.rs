//! Frames that a test takes away.

#![allow(unsafe_code, reason = "a list through frames that the test has")]

use granule::kernel;
use granule::mm::layout;
use granule::sched::relax;
use granule::smp::{self, this_cpu};
use granule_arch::addr::PhysAddr;

/// In the last frame in place of the next one's address: no frame has it.
const NO_FRAME: u64 = u64::MAX;

/// Frames, each with the address of the next at its beginning. Dropping it frees them.
#[derive(Default)]
pub(crate) struct Hoard {
    first: Option<PhysAddr>,
}

impl Hoard {
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

    /// Takes frames until it has `frame`; whether that was free. The CPUs' magazines are emptied first.
    pub(crate) fn find(&mut self, frame: PhysAddr, mut take: impl FnMut(&mut Self) -> Option<PhysAddr>) -> bool {
        smp::call(smp::online(), |cpu, _| kernel().frames.drain_cpu(cpu), 0);
        core::iter::from_fn(|| take(self)).any(|taken| taken == frame)
    }

    /// Takes whatever is free.
    pub(crate) fn fill(&mut self) {
        while self.take().is_some() {}
    }

    /// Adds a frame that the caller has.
    pub(crate) fn keep(&mut self, frame: PhysAddr) {
        let next = self.first.replace(frame).map_or(NO_FRAME, |next| next.0);
        // SAFETY: the frame is the hoard's, and in the linear map.
        unsafe { layout::linear(frame).as_ptr::<u64>().write(next) };
    }

    /// Frees so many frames; how many there were of those.
    pub(crate) fn give_back(&mut self, count: usize) -> usize {
        (0..count).take_while(|_| self.give_one_back()).count()
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

impl Drop for Hoard {
    fn drop(&mut self) {
        while self.give_one_back() {
            relax();
        }
    }
}
