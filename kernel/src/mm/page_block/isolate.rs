//! Blocks that are emptied: no frame of theirs is handed out, and they become whole when the last is free.

use core::{ptr, slice};

use super::{BLOCK_FRAMES, BlockNumber, CUT, CutBlocks, Mobility, PageBlocks, WORDS, change};
use crate::smp::{Cpu, MAX_CPUS};
use crate::sync::atomic::{AtomicU8, Ordering};

impl PageBlocks {
    /// Isolates `index`, if it was cut for movable frames, at least `least` of them are free, the rest finds room in
    /// other such blocks without one more being cut, and `left_free` frames stay free besides. Its free frames serve
    /// nothing until [`Self::end_isolation`]: they are not among the totals, and what comes back stays there.
    pub fn isolate(&self, cpu: &Cpu, index: usize, least: usize, left_free: usize) -> Option<BlockNumber> {
        let is_movable = |state: &AtomicU8| usize::from(state.load(Ordering::Acquire)) >= usize::from(CUT) + MAX_CPUS;
        let home = self.home(index).filter(|_| self.states.get(index).is_some_and(is_movable))?;
        let free = usize::from(home.list.lock().blocks.at(index).free);
        if free < least || free == BLOCK_FRAMES {
            // Most are not worth it: no other CPU waits for that.
            return None;
        }
        // No other CPU takes frames between the look at what is free and the end of this.
        self.alone(left_free, || {
            let free_frames = self.totals().free_frames;
            let mut list = home.list.lock();
            // It may have become whole concurrently, and have another home or none.
            if !ptr::eq(self.home(index)?, home) {
                return None;
            }
            let block = list.blocks.at(index);
            let (free, number) = (usize::from(block.free), block.number as usize);
            // Where a block is free, this CPU would cut it before it took frames of other homes.
            let has_whole = self.free_blocks.load(Ordering::Relaxed) != 0;
            let own = slice::from_ref(self.own(cpu, Mobility::Movable));
            let homes = if has_whole { own } else { &self.cut[MAX_CPUS..] };
            let others = |of: &CutBlocks| of.free.load(Ordering::Relaxed) - if ptr::eq(of, home) { free } else { 0 };
            let room: usize = homes.iter().map(others).sum();
            let is_worth_it = free >= least.max(1) && free < BLOCK_FRAMES && room >= BLOCK_FRAMES - free;
            if block.is_isolated || !is_worth_it || free_frames < left_free.saturating_add(free) {
                return None;
            }
            block.is_isolated = true;
            change(&home.free, -(free as isize));
            list.unlink(index);
            Some(number)
        })
    }

    /// Whether the block of `frame`, which is held, is isolated.
    #[inline]
    pub fn is_isolated(&self, frame: usize) -> bool {
        let index = self.spans.index(frame / BLOCK_FRAMES);
        let is_isolated = |index| Some(self.home(index)?.list.lock().blocks.at(index).is_isolated);
        index.and_then(is_isolated).unwrap_or(false)
    }

    /// The frames of `index`, an isolated block, that are free: bit f of word f / 64 is set.
    #[inline]
    pub fn free_frames_of(&self, index: usize) -> [u64; WORDS] {
        self.home(index).map_or([0; WORDS], |home| home.list.lock().blocks.at(index).bitmap)
    }

    /// Ends the isolation of `index`; whether all its frames have come back, and it is a free block.
    pub fn end_isolation(&self, cpu: &Cpu, index: usize) -> bool {
        let Some(home) = self.home(index) else { return false };
        let mut list = home.list.lock();
        let block = list.blocks.at(index);
        block.is_isolated = false;
        let free = usize::from(block.free);
        if free == 0 {
            return false;
        }
        change(&home.free, free as isize);
        list.link_last(index);
        if free != BLOCK_FRAMES {
            return false;
        }
        self.join(cpu, home, &mut list, index);
        true
    }

    /// Notes what a block that was taken whole is used for, in the owner's terms, of its first frame: it stays when the
    /// block is cut, and is no more than a hint then.
    pub fn set_origin(&self, number: BlockNumber, origin: u64) {
        if let Some(cell) = self.spans.index(number).and_then(|index| self.origins.get(index)) {
            // Relaxed: a hint.
            cell.store(origin, Ordering::Relaxed);
        }
    }

    /// The use that [`Self::set_origin`] noted last; 0 if it never did.
    pub fn origin(&self, number: BlockNumber) -> u64 {
        let cell = self.spans.index(number).and_then(|index| self.origins.get(index));
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}
