//! How the areas of a part are divided between CPUs that change them in turn, and joined again.
//!
//! [`Areas::border`] is an address between two places of work, [`Areas::arena`] a piece of the largest gap, from which one
//! CPU then takes addresses. The page below a border stays free, so no area touches one of another part, and whatever
//! reaches into that page joins the two first.

#![allow(unsafe_code, reason = "intrusive nodes")]

use core::mem::swap;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_pgtable::PageRange;

use super::{Area, Areas, SEARCH_START};
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::space::area::grants::{ARENAS, Amounts, share};
use crate::mm::space::parts::Divisible;
use crate::sched::relax;

/// The least part of a gap that is worth an arena.
const LEAST_ARENA: u64 = 1 << 30;

/// Where parts should be divided, and may be.
impl Areas {
    /// An address at which to divide them, between where the last two CPUs worked.
    pub(in crate::mm::space) fn border(&self) -> Option<VirtAddr> {
        /// How many areas are passed in search of a gap.
        const TRIES: usize = 8;
        let [low, high] = self.turns.places();
        let (mut above, mut top) = (self.ending_above(high), high);
        for _ in 0..TRIES {
            top = above.get().map_or(top, |area| top.min(area.highest_border()));
            above.move_prev();
            let bottom = above.get().map_or(self.start, Area::end).max(low + PAGE);
            let border = border_within(bottom, top);
            if border.is_some() || above.get().is_none_or(|below| below.start() <= low) {
                return border;
            }
        }
        None
    }

    /// Where an arena in the largest gap that the kernel may choose begins, and where it ends, if not with the part. Most
    /// of the gap stays for the arenas of other CPUs.
    pub(in crate::mm::space) fn arena(&self) -> Option<(VirtAddr, Option<VirtAddr>)> {
        let last = self.tree.back().get().map_or(self.start, Area::end).max(SEARCH_START);
        let top = self.end.0.saturating_sub(last.0);
        let inner = self.gaps.back().get().filter(|above| above.gap.get() > top);
        let (bytes, end) = inner.map_or((top, self.end), |above| (above.gap.get(), above.highest_border()));
        let start = VirtAddr(end.0 - bytes / ARENAS).align_down(BLOCK_SIZE);
        (bytes / ARENAS >= LEAST_ARENA).then(|| (start, inner.map(|_| end.align_down(BLOCK_SIZE))))
    }

    /// Whether without `range` the first area is a stack whose guard reaches down to another part.
    pub(in crate::mm::space) fn would_bare_guard(&self, range: PageRange) -> bool {
        let begins_below = |first: &Area| first.start() < range.start();
        let reaches_out = |left: &Area| left.highest_border().0 < self.owned.start;
        !self.is_whole()
            && !self.tree.front().get().is_some_and(begins_below)
            && self.ending_above(range.end()).get().is_some_and(reaches_out)
    }
}

impl Divisible for Areas {
    const NOTHING: Self = Self::of(VirtAddr(0), VirtAddr(0), 1..1);

    #[inline(always)]
    fn owns(&self, page: VirtAddr) -> bool {
        self.is_whole() || self.owned.contains(&page.0)
    }

    #[inline(always)]
    fn has(&self, range: PageRange) -> bool {
        let ends_inside = || self.owned.end == u64::MAX || range.last() < self.end;
        self.is_whole() || self.owned.start <= range.start().0 && ends_inside()
    }

    #[inline(always)]
    fn next(&self) -> Option<VirtAddr> {
        (!self.is_whole() && self.owned.end != u64::MAX).then_some(VirtAddr(self.owned.end))
    }

    fn join(&mut self, above: &mut Self) {
        let border = above.start;
        (self.owned.end, self.end) = (above.owned.end, above.end);
        (above.owned, above.start, above.end) = (Self::NOTHING.owned.clone(), VirtAddr(0), VirtAddr(0));
        self.room += above.room;
        self.grants.join(&above.grants);
        // The fewer move.
        let moves_low = above.count > self.count;
        if moves_low {
            self.exchange(above);
        }
        while above.pass(self, moves_low) {
            relax();
        }
        if let Some(first) = self.first_from(border) {
            self.gap_changed(&first);
        }
    }

    fn split(&mut self, at: VirtAddr, above: &mut Self) {
        debug_assert!(self.owned.start < at.0 && at.0 < self.owned.end && self.find(at - PAGE).is_none());
        let moves_low = self.is_mostly_above(at);
        (above.owned, above.start, above.end) = (at.0..self.owned.end, at, self.end);
        (self.owned.end, self.end) = (at.0, at - PAGE);
        if moves_low {
            self.exchange(above);
            while above.tree.front().get().is_some_and(|area| area.start() < at) {
                above.pass(self, false);
                relax();
            }
        } else {
            while self.tree.back().get().is_some_and(|area| area.start() >= at) {
                self.pass(above, true);
                relax();
            }
        }
        if let Some(first) = above.first_from(at) {
            above.gap_changed(&first);
        }
        let unused = self.room - (self.count + above.count);
        above.room = above.count + share(unused as u64, self.count as u64, above.count as u64) as usize;
        self.room -= above.room;
        (self.grants, above.grants) = self.grants.split(self.amounts(), above.amounts());
        (self.turns, above.turns) = self.turns.split(self.start, at);
    }
}

/// How parts exchange areas.
impl Areas {
    const fn amounts(&self) -> Amounts {
        Amounts { space: self.total, data: self.data }
    }

    /// Exchanges all areas.
    fn exchange(&mut self, other: &mut Self) {
        swap(&mut self.tree, &mut other.tree);
        swap(&mut self.gaps, &mut other.gaps);
        swap(&mut self.count, &mut other.count);
        swap(&mut self.total, &mut other.total);
        swap(&mut self.data, &mut other.data);
    }

    /// Moves the last area before the first one of `other`, or the first after the last. Returns whether there was one.
    fn pass(&mut self, other: &mut Self, is_last: bool) -> bool {
        let mut end = if is_last { self.tree.back_mut() } else { self.tree.front_mut() };
        let Some(area) = end.remove() else { return false };
        if area.gap.get() != 0 {
            // SAFETY: a node with a gap is in the tree of gaps.
            unsafe { self.gaps.cursor_mut_from_ptr(&raw const *area) }.remove();
            other.gaps.insert(area.clone());
        }
        let (size, data) = (area.size(), area.data());
        (self.count, self.total, self.data) = (self.count - 1, self.total - size, self.data - data);
        (other.count, other.total, other.data) = (other.count + 1, other.total + size, other.data + data);
        if is_last {
            other.tree.front_mut().insert_before(area);
        } else {
            other.tree.back_mut().insert_after(area);
        }
        true
    }

    /// Whether more of the areas are above `at` than below. Visits the fewer from both ends.
    fn is_mostly_above(&self, at: VirtAddr) -> bool {
        let (mut low, mut high) = (self.tree.front(), self.tree.back());
        while low.get().is_some_and(|area| area.start() < at) {
            if high.get().is_none_or(|area| area.start() < at) {
                return false;
            }
            low.move_next();
            high.move_prev();
            relax();
        }
        true
    }
}

/// An address between `bottom` and `top`, at which a last-level table begins, with a page below it; in the middle, if one
/// is there.
fn border_within(bottom: VirtAddr, top: VirtAddr) -> Option<VirtAddr> {
    let middle = VirtAddr(bottom.0 + top.0.saturating_sub(bottom.0) / 2);
    [middle, top].map(|at| at.align_down(BLOCK_SIZE)).into_iter().find(|&at| at >= bottom + PAGE && at <= top)
}
