//! Frames that programs cannot use up: the kernel's reserve.
//!
//! A thread that works for a program gets none of the last [`FrameAllocator::reserve`] frames, whatever it asks for:
//! pages, tables, records, kernel stacks. The kernel's own threads and interrupt handlers do, so that drivers, devices'
//! tables and splits go on while programs wait for memory (Linux's minimum watermark). Magazines are filled from above
//! the reserve alone.
//!
//! A request of such a thread that fails for want of frames is noted in the thread: what called it may then make room
//! and try again, and distinguishes this failure from one that more memory would not help.

use core::sync::atomic::{AtomicBool, Ordering};

use super::FrameAllocator;
use crate::mm::OutOfMemory;
use crate::smp::Cpu;

/// Frames for `frames` in all, as Linux reckons (`calculate_min_free_kbytes`): in KiB the square root of 16 times the
/// memory's, from 128 KiB to 256 MiB.
pub fn usual_reserve(frames: usize) -> usize {
    const FRAME_KIB: u64 = 4;
    const BOUNDS: (u64, u64) = (128, 256 << 10);
    let kib = (frames as u64).saturating_mul(FRAME_KIB).saturating_mul(16).isqrt();
    (kib.max(BOUNDS.0).min(BOUNDS.1) / FRAME_KIB) as usize
}

/// For whom the thread that runs on a CPU asks for frames. The scheduler writes it with each switch.
pub(crate) struct PerCpu(AtomicBool);

impl PerCpu {
    /// For the kernel.
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether it works for a program. This CPU's alone, with interrupts masked.
    pub(crate) fn set_for_program(&self, is_for_program: bool) {
        self.0.store(is_for_program, Ordering::Relaxed);
    }
}

impl FrameAllocator {
    /// Calls `note` with the size of each request that fails for want of frames, in the thread that made it.
    pub fn set_shortage_note(&self, note: fn(&Cpu, usize)) {
        self.shortage_note.call_once(|| note);
    }

    /// Sets the reserve, in frames; 0 until then.
    pub fn set_reserve(&self, frames: usize) {
        self.reserve.store(frames, Ordering::Relaxed);
    }

    /// The reserve, in frames.
    pub fn reserve(&self) -> usize {
        self.reserve.load(Ordering::Relaxed)
    }

    /// Whether a thread that works for a program would get `count` more frames now.
    pub fn has_room_for(&self, count: usize) -> bool {
        let needed = self.reserve().saturating_add(count);
        self.blocks.has_blocks_for(needed) || self.blocks.totals().free_frames >= needed
    }

    /// Calls `wake` whenever frames become few.
    pub fn set_reclaimer(&self, wake: fn()) {
        self.reclaimer.call_once(|| wake);
    }

    /// With room for so many more frames the reclaimer may rest.
    pub fn high_watermark(&self) -> usize {
        self.reserve() / 2
    }

    /// Wakes the reclaimer where fewer are free than a quarter more than the reserve (Linux: the low watermark).
    #[cold]
    #[inline(never)]
    pub(super) fn wake_reclaimer(&self) {
        if let Some(wake) = self.reclaimer.get()
            && !self.has_room_for(self.reserve() / 4)
        {
            wake();
        }
    }

    /// Frames that the running thread does not get.
    pub(super) fn kept_from(&self, cpu: &Cpu) -> usize {
        if cpu.reserve().0.load(Ordering::Relaxed) && !cpu.trap().is_in_handler() { self.reserve() } else { 0 }
    }

    /// The error for a request of `count` frames that are not there. Noted in the running thread, so only for a request
    /// that more free frames would satisfy.
    #[cold]
    pub(super) fn missing(&self, cpu: &Cpu, count: usize) -> OutOfMemory {
        if let Some(note) = self.shortage_note.get() {
            note(cpu, count);
        }
        self.wake_reclaimer();
        OutOfMemory
    }
}

#[cfg(test)]
mod tests {
    use super::usual_reserve;
    use crate::mm::OutOfMemory;
    use crate::mm::frame::tests::leaked;
    use crate::smp::this_cpu;

    #[test]
    fn the_reserve_is_linuxs() {
        // Linux 7.2.13 on arm64 has 1448 KiB of 128 MiB, 5792 KiB of 2 GiB.
        assert_eq!(usual_reserve(128 << 8), 1448 / 4);
        assert_eq!(usual_reserve(2048 << 8), 5792 / 4);
        assert_eq!(usual_reserve(1), 32);
        assert_eq!(usual_reserve(usize::MAX), 65536);
    }

    #[test]
    fn what_comes_from_the_reserve_comes_one_by_one() {
        const RESERVE: usize = 100;
        let (frames, cpu) = (leaked(2), this_cpu());
        frames.set_reserve(RESERVE);
        while frames.has_room_for(1) || frames.stats().in_magazines > 0 {
            frames.alloc(cpu).unwrap();
        }
        assert_eq!(frames.stats().free, RESERVE);
        for left in (0..RESERVE).rev() {
            frames.alloc(cpu).unwrap();
            assert_eq!((frames.stats().free, frames.stats().in_magazines), (left, 0));
        }
        assert_eq!(frames.alloc(cpu), Err(OutOfMemory));
    }

    #[test]
    fn a_program_gets_nothing_of_the_reserve_and_an_interrupt_handler_does() {
        const RESERVE: usize = 100;
        let (frames, cpu) = (leaked(2), this_cpu());
        frames.set_reserve(RESERVE);
        cpu.reserve().set_for_program(true);
        while frames.alloc(cpu).is_ok() {}
        assert_eq!((frames.stats().free, frames.stats().in_magazines), (RESERVE, 0));
        cpu.trap().handler(|| assert!(frames.alloc(cpu).is_ok()));
        assert_eq!(frames.alloc(cpu), Err(OutOfMemory));
        cpu.reserve().set_for_program(false);
        assert!(frames.alloc(cpu).is_ok());
    }
}
