//! Compaction: page blocks that were cut into frames become whole again.
//!
//! A program gets 2 MiB at once only where a block is free. Where frames are plenty and blocks are not, a kernel thread
//! chooses blocks of which a part is free, and migrates what is left in them to frames of other blocks (Linux:
//! `kcompactd`). A frame that cannot be moved ends the work on its block: frames that have been moved by then stay
//! moved.
//!
//! While a block is evacuated it is [isolated](crate::mm::frame::FrameAllocator::isolate): its frames that are free are
//! given to nothing, and those that are freed come back to it alone.

use granule_arch::addr::PhysAddr;

use super::migrate::Unmovable;
use super::spaces::Spaces;
use crate::mm::frame::IsolatedBlock;
use crate::mm::page_block::BLOCK_FRAMES;
use crate::sched::relax;
use crate::smp::Cpu;

/// A block is evacuated where at least as many of its frames are free: a fourth.
const FREE: usize = BLOCK_FRAMES / 4;
/// Frames that stay free for others while a block is evacuated.
const ROOM: usize = 2 * BLOCK_FRAMES;
/// Blocks that are looked at without a scheduling point.
const LOOKED_AT: usize = 64;
/// Frames that are allocated together, to migrate to.
const TOGETHER: usize = 32;

impl Spaces {
    /// One pass over all page blocks, which ends early where `wanted` more are whole, frames become few, or `is_killed`
    /// returns true; returns how many became whole. Sleeps: no lock is held, no fault is served. `cpu` is the CPU that
    /// this runs on.
    #[cold]
    #[inline(never)]
    pub fn compact(&self, cpu: &Cpu, wanted: usize, is_killed: &dyn Fn() -> bool) -> usize {
        let mut whole = 0;
        for index in 0..self.frames.block_places() {
            if whole >= wanted || is_killed() {
                break;
            }
            if index % LOOKED_AT == 0 {
                relax();
            }
            // A frame in a magazine is not in its block.
            let Some(block) = self.frames.isolate(cpu, index, FREE, ROOM) else { continue };
            self.frames.drain_cpu(cpu);
            if !block.has_frames_elsewhere() {
                self.evacuate(cpu, &block);
            }
            whole += usize::from(block.end(cpu));
            relax();
        }
        whole
    }

    /// Migrates what is in `block`, as far as that can be moved.
    fn evacuate(&self, cpu: &Cpu, block: &IsolatedBlock<'_>) {
        let mut spare = heapless::Vec::<PhysAddr, TOGETHER>::new();
        for frame in block.taken() {
            // Others may have taken the free frames concurrently.
            if !self.frames.has_room_for(ROOM) {
                break;
            }
            if spare.is_empty() {
                self.take_spare(cpu, block, &mut spare);
            }
            let Some(to) = spare.pop() else { break };
            match self.migrate_page(cpu, frame, to) {
                Ok(()) => continue,
                // It is in a magazine, or was freed concurrently.
                Err(Unmovable::Free) => _ = spare.push(to),
                Err(_) => {
                    _ = spare.push(to);
                    break;
                }
            }
        }
        spare.into_iter().for_each(|frame| self.frames.free(cpu, frame));
        self.frames.drain_cpu(cpu);
    }

    /// Allocates frames to migrate to.
    fn take_spare(&self, cpu: &Cpu, block: &IsolatedBlock<'_>, spare: &mut heapless::Vec<PhysAddr, TOGETHER>) {
        // The frames that were just freed are in this CPU's magazine, which would hand them out as targets.
        self.frames.drain_cpu(cpu);
        while !spare.is_full() && self.frames.has_room_for(ROOM) {
            let Ok(new) = self.frames.alloc_movable(cpu) else { break };
            if block.has(new) {
                self.frames.free(cpu, new);
                break;
            }
            let _ = spare.push(new);
        }
    }
}
