//! The kernel's own records of frames, and a CPU's magazine of free ones; and frames for the kernel's objects.

#![allow(unsafe_code, reason = "frames of the host's memory")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::sync::Mutex;

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};

use super::OutOfMemory;
use crate::smp::Cpu;

#[allow(dead_code, unreachable_pub, reason = "the array of records is the metal's: here each record stands by itself")]
#[path = "../../../src/mm/frame/record.rs"]
mod record;

#[allow(dead_code, reason = "frames come and go one by one here")]
#[path = "../../../src/mm/frame/magazine.rs"]
mod magazine;

use magazine::Magazine;
pub use record::{Frame, FreeError};

/// A CPU's magazine.
pub struct CpuMagazine(Magazine);

impl Default for CpuMagazine {
    fn default() -> Self {
        Self(Magazine {
            count: Default::default(),
            frames: std::array::from_fn(|_| Default::default()),
            #[cfg(debug_assertions)]
            busy: Default::default(),
        })
    }
}

impl CpuMagazine {
    /// Takes a frame, as `FrameAllocator::alloc` does.
    pub fn take(&self) -> Option<usize> {
        self.0.alone(Magazine::pop)
    }

    /// Gives one back, as `FrameAllocator::free` does; whether there was room.
    pub fn give(&self, frame: usize) -> bool {
        self.0.alone(|magazine| magazine.push(frame).is_ok())
    }
}

impl Frame {
    /// A free frame is handed out.
    pub fn hand_out(&self) {
        self.claim();
    }

    /// `FrameAllocator::free`, as far as the record goes.
    ///
    /// # Errors
    /// [`FreeError`].
    pub fn free(&self) -> Result<(), FreeError> {
        self.release()
    }

    /// `FrameAllocator::put_runs`, likewise.
    ///
    /// # Errors
    /// [`FreeError`].
    pub fn drop_hold(&self) -> Result<bool, FreeError> {
        self.put_or_release()
    }
}

/// A replacement for the frame allocator: frames of the host's memory, at their own addresses. Its lock is none
/// of loom's, so it makes no order between CPUs.
pub struct FrameAllocator {
    free: Mutex<Vec<PhysAddr>>,
    all: Vec<PhysAddr>,
}

const FRAME: Layout = Layout::new::<[u8; PAGE_SIZE]>();
const ALIGNED: Layout = match FRAME.align_to(PAGE_SIZE) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a power of two"),
};

/// A replacement for the array of records: page blocks only zero them.
pub struct FrameRecords;

impl FrameRecords {
    pub(super) unsafe fn zero(&self, _: usize, _: usize) {}
}

/// Where it shows frames.
pub(super) struct SameAddresses;

impl SameAddresses {
    pub(super) fn address(&self, frame: PhysAddr) -> VirtAddr {
        VirtAddr(frame.0)
    }
}

impl FrameAllocator {
    /// So many frames.
    pub fn new(count: usize) -> Self {
        let frame = || {
            // SAFETY: a page is not empty.
            let frame = unsafe { alloc(ALIGNED) };
            if frame.is_null() {
                handle_alloc_error(ALIGNED);
            }
            PhysAddr(frame.expose_provenance() as u64)
        };
        let all: Vec<_> = (0..count).map(|_| frame()).collect();
        Self { free: Mutex::new(all.clone()), all }
    }

    /// How many are free.
    ///
    /// # Panics
    /// Another thread has panicked.
    pub fn free_frames(&self) -> usize {
        self.free.lock().unwrap().len()
    }

    pub(super) fn alloc(&self, _: &Cpu) -> Result<PhysAddr, OutOfMemory> {
        self.free.lock().unwrap().pop().ok_or(OutOfMemory)
    }

    pub(super) fn free(&self, _: &Cpu, frame: PhysAddr) {
        self.free.lock().unwrap().push(frame);
    }

    pub(super) fn linear(&self) -> SameAddresses {
        SameAddresses
    }
}

impl Drop for FrameAllocator {
    fn drop(&mut self) {
        for frame in &self.all {
            // SAFETY: allocated so; what is in them is not used any more, as it refers to this.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(frame.0 as usize), ALIGNED) };
        }
    }
}
