//! The buddy's sets of whole blocks, whose nodes come from the arena.

use core::ops::Range;

use super::{BUDDY_ORDERS, BlockNumber, Buddy, MAX_ORDER, change};
use crate::smp::Cpu;
use crate::sync::atomic::AtomicUsize;

/// `free` is the count of the blocks in the sets, which changes with them.
impl Buddy {
    pub(super) fn add(&mut self, cpu: &Cpu, blocks: Range<BlockNumber>, free: &AtomicUsize) {
        change(free, blocks.len() as isize);
        self.with_sets(cpu, |sets| sets.add_frame(blocks.start, blocks.end));
    }

    /// Takes a run of 2^`order` blocks, at most [`MAX_ORDER`].
    pub(super) fn take(&mut self, cpu: &Cpu, order: u32, free: &AtomicUsize) -> Option<BlockNumber> {
        debug_assert!(order <= MAX_ORDER);
        // So that the compiler sees it: larger runs have no set.
        let count = 1 << order.min(MAX_ORDER);
        let single = self.single.take();
        let first = match single {
            Some(single) if count == 1 => single,
            _ => self.with_sets(cpu, |sets| {
                single.into_iter().for_each(|single| sets.dealloc(single, 1));
                sets.alloc(count)
            })?,
        };
        change(free, -(count as isize));
        Some(first)
    }

    pub(super) fn put(&mut self, cpu: &Cpu, first: BlockNumber, count: usize, free: &AtomicUsize) {
        change(free, count as isize);
        if count == 1 && self.single.is_none() {
            self.single = Some(first);
        } else {
            self.with_sets(cpu, |sets| sets.dealloc(first, count));
        }
    }

    /// Runs `work` on the sets, with their nodes served from the arena.
    pub(super) fn with_sets<R>(
        &mut self,
        cpu: &Cpu,
        work: impl FnOnce(&mut buddy_system_allocator::FrameAllocator<BUDDY_ORDERS>) -> R,
    ) -> R {
        let _section = self.arena.enter(cpu);
        work(&mut self.sets)
    }
}
