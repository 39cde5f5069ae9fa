//! Blocks that are cut: which CPU takes frames from them, and the lists in which they are.

use core::ops::Range;

use super::{BLOCK_FRAMES, CutBlocks, GROUP, LOOKED_AT, List, NONE, PageBlock, change, mask_below};

impl CutBlocks {
    /// Moves up to `most` free frames out of the first block of `list`, which is these blocks'; returns how many.
    pub(super) fn take_runs(&self, list: &mut List, most: usize, each: &mut impl FnMut(Range<usize>)) -> usize {
        let index = list.first;
        if list.whole == index {
            list.whole = NONE;
        }
        let block = list.blocks.at(index as usize);
        let taken = block.take_runs(most, each);
        if block.free == 0 {
            list.unlink(index as usize);
        }
        change(&self.free, -(taken as isize));
        taken
    }

    /// Moves [`GROUP`] aligned neighbours out of one of the first blocks of `list`, which is these blocks'; returns the
    /// first.
    pub(super) fn take_group(&self, list: &mut List) -> Option<usize> {
        let mut next = list.first;
        for _ in 0..LOOKED_AT {
            if next == NONE {
                return None;
            }
            let index = next;
            let block = list.blocks.at(index as usize);
            next = block.next;
            let Some(first) = block.take_group() else { continue };
            if block.free == 0 {
                list.unlink(index as usize);
            }
            if list.whole == index {
                list.whole = NONE;
            }
            change(&self.free, -(GROUP as isize));
            return Some(first);
        }
        None
    }

    /// Takes back the frames whose `bits` are set of 64 of block `index`, which is in `list` or isolated; whether it is
    /// in the list and whole now.
    #[inline]
    pub(super) fn put(&self, list: &mut List, index: usize, word: usize, bits: u64) -> bool {
        let block = list.blocks.at(index);
        let cell = &mut block.bitmap[word];
        debug_assert!(*cell & bits == 0, "frames {bits:#x} of block {index} are free already");
        *cell |= bits;
        let had_none = block.free == 0;
        block.free += bits.count_ones() as u16;
        if block.is_isolated {
            return false;
        }
        let is_whole = block.free as usize == BLOCK_FRAMES;
        change(&self.free, bits.count_ones() as isize);
        if had_none {
            // At the end of the list: the blocks in front are used up first, and this one may become whole.
            list.link_last(index);
        }
        is_whole
    }
}

impl List {
    pub(super) fn link_first(&mut self, index: usize) {
        let old = core::mem::replace(&mut self.first, index as u32);
        self.blocks.at(index).next = old;
        self.blocks.at(index).previous = NONE;
        match old {
            NONE => self.last = index as u32,
            old => self.blocks.at(old as usize).previous = index as u32,
        }
    }

    pub(super) fn link_last(&mut self, index: usize) {
        let old = core::mem::replace(&mut self.last, index as u32);
        self.blocks.at(index).next = NONE;
        self.blocks.at(index).previous = old;
        match old {
            NONE => self.first = index as u32,
            old => self.blocks.at(old as usize).next = index as u32,
        }
    }

    #[inline]
    pub(super) fn unlink(&mut self, index: usize) {
        let PageBlock { next, previous, .. } = *self.blocks.at(index);
        match previous {
            NONE => self.first = next,
            previous => self.blocks.at(previous as usize).next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.blocks.at(next as usize).previous = previous,
        }
    }
}

impl PageBlock {
    /// Moves up to `most` free frames out of the bitmap, run by run; returns how many.
    pub(super) fn take_runs(&mut self, most: usize, each: &mut impl FnMut(Range<usize>)) -> usize {
        let mut taken = 0;
        for (word, first) in self.bitmap.iter_mut().zip((self.number as usize * BLOCK_FRAMES..).step_by(64)) {
            while *word != 0 && taken < most {
                let low = word.trailing_zeros() as usize;
                let count = ((*word >> low).trailing_ones() as usize).min(most - taken);
                *word &= !(mask_below(count) << low);
                taken += count;
                each(first + low..first + low + count);
            }
        }
        self.free -= taken as u16;
        taken
    }
}

impl PageBlock {
    /// Moves [`GROUP`] aligned neighbours out of the bitmap; returns the number of the first.
    pub(super) fn take_group(&mut self) -> Option<usize> {
        let first = (0..BLOCK_FRAMES).step_by(GROUP).find(|&bit| {
            let mask = mask_below(GROUP) << (bit % 64);
            self.bitmap[bit / 64] & mask == mask
        })?;
        self.bitmap[first / 64] &= !(mask_below(GROUP) << (first % 64));
        self.free -= GROUP as u16;
        Some(self.number as usize * BLOCK_FRAMES + first)
    }
}
