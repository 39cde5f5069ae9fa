//! Translations that a change leaves in TLBs, gathered leaf by leaf.

use granule_arch::tlbi::LevelHint;

use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::Geometry;
use crate::mmu::Mmu;
use crate::range::PageRange;
use crate::runs::Run;

/// Entries that were valid before and that TLBs may hold: the hull of them, and their level while it is only one.
pub(crate) struct Stale<G: Geometry> {
    range: Option<PageRange<G>>,
    levels: Levels,
}

impl<G: Geometry> Stale<G> {
    /// Nothing yet.
    pub(crate) const NONE: Self = Self { range: None, levels: Levels::NONE };

    /// Adds the pages of `range`, translated by leaves of `level`.
    #[inline(always)]
    pub(crate) fn note(&mut self, range: PageRange<G>, level: u8) {
        self.range = Some(self.range.map_or(range, |before| before.hull(range)));
        self.levels.note(level);
    }

    /// Adds each leaf of `run` for which `visit` returns true, with all between them.
    #[inline(always)]
    pub(crate) fn note_each<M: Mmu<Geometry = G>>(
        &mut self,
        run: &Run<'_, M>,
        mut visit: impl FnMut(&M::Cell) -> bool,
    ) {
        let mut hull = None;
        for (index, cell) in run.cells().iter().enumerate() {
            if visit(cell) {
                hull = Some((hull.map_or(index, |(first, _)| first), index));
            }
        }
        if let Some((first, last)) = hull {
            let size = ((last - first) as u64 + 1) << G::shift(run.level);
            self.note(PageRange::trusted(run.address(first), size), run.level);
        }
    }

    /// The invalidation that is needed for it.
    #[inline(always)]
    pub(crate) fn flush(self) -> Flush<G> {
        let level = self.levels.sole();
        Flush::new(self.range.map(|range| Invalidation { range, tables: Tables::Kept, level }))
    }
}

/// The levels that leaves were found at, as a set: a bit each.
pub(crate) struct Levels(u8);

impl Levels {
    pub(crate) const NONE: Self = Self(0);

    #[inline(always)]
    pub(crate) fn note(&mut self, level: u8) {
        self.0 |= 1 << level;
    }

    /// The level, where it is only one.
    #[inline(always)]
    pub(crate) fn sole(&self) -> Option<LevelHint> {
        if self.0.is_power_of_two() { LevelHint::new(self.0.trailing_zeros() as u8) } else { None }
    }
}
