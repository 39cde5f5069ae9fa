//! The model as a driver has it: registers, barriers, time, memory.

#![allow(unsafe_code, reason = "promising what a platform promises")]

use std::sync::Arc;

use granule_arch::addr::PhysAddr;
use granule_smmuv3::{DmaMemory, Memory, Platform, Report, Step};

use super::memory::{Arena, Word};
use super::{Barrier, Operation, Shared};

/// A driver's way to a [`SmmuModel`](super::SmmuModel).
#[derive(Clone, Debug)]
pub struct ModelPlatform {
    shared: Arc<Shared>,
}

impl ModelPlatform {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Zeroed words of the model's own.
    pub(crate) fn take(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        let mut state = self.shared.state();
        state.allocations_left = state.allocations_left.checked_sub(1)?;
        let (words, align) = (bytes / 8, (align / 8).max(1));
        let start = state.next_free.next_multiple_of(align);
        if start + words > Arena::first() + self.shared.arena.len() {
            return None;
        }
        state.next_free = start + words;
        state.allocated.insert(start, words);
        let virt = self.shared.arena.pointer(start);
        // SAFETY: words of the arena that nothing has used so far.
        Some(unsafe { DmaMemory::new(PhysAddr(Arena::address(start)), virt, bytes) })
    }

    /// The CPUs have `memory` mapped Non-cacheable, if the SMMU does not see their caches.
    pub fn map_uncached(&self, memory: &DmaMemory) {
        let first = memory.phys().0 as usize / 8;
        self.shared.arena.map_uncached(first..first + memory.bytes() / 8);
    }
}

/// How far the clock goes with each turn of a loop that waits for an SMMU that does not answer. Else it stands: the
/// number of turns depends on the load of the host.
const TURN_MICROSECONDS: u64 = 100;

// SAFETY: (1) there is one SMMU behind it, and its lock makes accesses happen one after the other; (2) the model does
// what barriers of these names promise, and only that; (3) words are atomic words of the model's memory.
unsafe impl Platform for ModelPlatform {
    type Word = Word;

    fn word(value: u64) -> Word {
        Word::new(value)
    }

    fn read32(&self, offset: usize) -> u32 {
        let mut state = self.shared.state();
        let value = state.read32(offset);
        state.note(Operation::Read { offset, value: value.into() });
        value
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.shared.state();
        state.note(Operation::Write { offset, value: value.into() });
        state.write32(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        let mut state = self.shared.state();
        let value = state.read64(offset);
        state.note(Operation::Read { offset, value });
        value
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.shared.state();
        state.note(Operation::Write { offset, value });
        state.write64(offset, value);
    }

    fn dmb_oshst(&self) {
        self.shared.state().barrier(Barrier::Store);
    }

    fn dmb_oshld(&self) {
        self.shared.state().barrier(Barrier::Load);
    }

    fn is_coherent(&self) -> bool {
        self.shared.state().hardware.dma_coherent
    }

    fn clean(&self, start: PhysAddr, bytes: u64) {
        self.shared.state().clean(start.0, bytes);
    }

    fn relax(&self) {
        let mut state = self.shared.state();
        if !state.answers || state.hardware.lag == u32::MAX {
            state.clock += TURN_MICROSECONDS;
        }
        drop(state);
        std::thread::yield_now();
    }

    fn microseconds(&self) -> u64 {
        self.shared.state().clock
    }

    fn report(&self, report: &Report) {
        self.shared.state().reports.push(report.to_string());
    }

    fn leaves_out(&self, step: Step) -> bool {
        self.shared.state().left_out.contains(&step)
    }
}

// SAFETY: the memory is zero, aligned in the model's addresses, stays while the model lives, and is given out once; the
// model checks alignment where a device would use it.
unsafe impl Memory for ModelPlatform {
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        let memory = self.take(bytes, align)?;
        self.map_uncached(&memory);
        Some(memory)
    }

    unsafe fn free(&self, memory: DmaMemory) {
        let index = self.shared.arena.index(memory.phys().0);
        let mut state = self.shared.state();
        let known = index.and_then(|index| state.allocated.remove(&index));
        assert!(known == Some(memory.bytes() / 8), "memory is given back that was not given out: {memory:?}");
    }
}
