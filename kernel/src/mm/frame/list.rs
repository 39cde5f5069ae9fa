//! Frames that were taken together and are not used yet.

use granule_arch::addr::PhysAddr;

use super::magazine::BATCH;
use super::{FrameAllocator, LinearMap};
use crate::mm::OutOfMemory;
use crate::smp::Cpu;

/// Frames with one owner, each holding the address of the next: a list of any length that needs no memory of its own.
///
/// Give what is left of it to [`FrameAllocator::free_list`]: a list that is dropped loses its frames.
#[derive(Debug)]
#[must_use = "frames of a dropped list are lost"]
pub struct FrameList {
    head: Option<PhysAddr>,
    linear: LinearMap,
}

/// What stands at the start of the last frame: no frame's address, because it is not page aligned.
const END: u64 = u64::MAX;

impl FrameList {
    const fn new(linear: LinearMap) -> Self {
        Self { head: None, linear }
    }

    fn link(&self, frame: PhysAddr) -> *mut u64 {
        self.linear.address(frame).as_ptr()
    }

    fn push(&mut self, frame: PhysAddr) {
        let next = self.head.map_or(END, |head| head.0);
        // SAFETY: the frame is this list's alone, and the linear map shows it, writable.
        unsafe { self.link(frame).write(next) };
        self.head = Some(frame);
    }

    /// Takes a frame out. Its first eight bytes are no longer what they were.
    pub fn pop(&mut self) -> Option<PhysAddr> {
        let frame = self.head?;
        // SAFETY: as in `push`, which wrote it.
        let next = unsafe { self.link(frame).read() };
        self.head = (next != END).then_some(PhysAddr(next));
        Some(frame)
    }
}

impl FrameAllocator {
    /// `count` frames, or none at all. `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there are not as many.
    pub fn alloc_list(&self, cpu: &Cpu, count: usize) -> Result<FrameList, OutOfMemory> {
        // A hopeless wish touches no memory: the list would have written to every free frame before it gave up.
        if count > BATCH && count > self.stats().free {
            return Err(OutOfMemory);
        }
        let mut list = FrameList::new(self.linear());
        for _ in 0..count {
            match self.alloc(cpu) {
                Ok(frame) => list.push(frame),
                Err(out_of_memory) => {
                    self.free_list(cpu, list);
                    return Err(out_of_memory);
                }
            }
        }
        Ok(list)
    }

    /// Takes back what is left of a list.
    pub fn free_list(&self, cpu: &Cpu, mut list: FrameList) {
        while let Some(frame) = list.pop() {
            self.free(cpu, frame);
        }
    }
}
