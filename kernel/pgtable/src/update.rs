//! Changing permissions over a range: check everything, then change everything.
//!
//! Arm ARM D8.17.1: permissions may change on a live entry without break-before-make; the TLBs may hold the old ones
//! until they are invalidated. Two passes: the first refuses holes, leaves that the range cuts, and what would become
//! writable and executable; the second cannot fail. The caller owns the range, so entries are changed by plain loads
//! and stores, in bulk, table by table. Whole leaves change in place, and all entries of a contiguous group change
//! alike.

use granule_arch::descriptor::{Kind, bits};

use crate::Error;
use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::Mmu;
use crate::permission::Change;
use crate::range::PageRange;
use crate::tables::PageTables;
use crate::walk::{Next, Run, Visitor, leading_leaves, whole_leaf};

/// See [`PageTables::update`].
#[inline(always)]
pub(crate) fn update<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: Change,
) -> Result<Flush<M::Geometry>, Error> {
    tables.visit(range, &mut Check { range, change })?;
    let mut changing = Changing { lazy, change, stale: Stale::NONE };
    let Ok(()) = tables.visit(range, &mut changing);
    Ok(changing.stale.flush())
}

/// The first pass: whether the change may be made.
struct Check<G: Geometry> {
    range: PageRange<G>,
    change: Change,
}

impl<M: Mmu> Visitor<M> for Check<M::Geometry> {
    type Error = Error;

    #[inline(always)]
    fn visit(&mut self, mmu: &M, run: &Run<'_, M>) -> Result<Next, Error> {
        let leaves = leading_leaves(mmu, run);
        let cells = &run.cells()[..leaves];
        // The common case in one sweep: all are valid leaves that have what they must. Anything else is looked at one
        // by one.
        let leaf = if run.level == LAST_LEVEL { bits::VALID | bits::TABLE } else { bits::VALID };
        let must = leaf | self.change.required() | self.change.marks();
        if mmu.common_bits(cells) & must != must {
            self.each(mmu, run, leaves)?;
        }
        // Only the leaves at the two ends can be cut by them: groups and blocks are aligned, and so is the table.
        for index in [0, leaves - 1] {
            whole_leaf(self.range, mmu.load(&cells[index]), run.level, run.address(index))?;
        }
        if self.change.makes_executable() && run.inherited & bits::PXNTABLE != 0 {
            return Err(Error::ExecutionForbidden(run.from));
        }
        Ok(Next::Entries(leaves))
    }
}

impl<G: Geometry> Check<G> {
    /// The first entry that must not be changed, as an error; none if all are fine, present-invalid ones among them.
    #[cold]
    fn each<M: Mmu<Geometry = G>>(&self, mmu: &M, run: &Run<'_, M>, leaves: usize) -> Result<(), Error> {
        let required = self.change.required();
        for (index, cell) in run.cells()[..leaves].iter().enumerate() {
            let old = mmu.load(cell);
            let address = run.address(index).max(run.from);
            if old.kind(run.level == LAST_LEVEL) != Kind::Leaf {
                return Err(Error::NotMapped(address));
            }
            if old.0 & self.change.marks() != self.change.marks() {
                return Err(Error::NotMarked(address));
            }
            // Present-invalid leaves count too: making them valid later is not checked again.
            if old.0 & required != required {
                return Err(Error::WritableAndExecutable(address));
            }
        }
        Ok(())
    }
}

/// The second pass.
struct Changing<'a, M: Mmu> {
    lazy: &'a Lazy<'a, M>,
    change: Change,
    stale: Stale<M::Geometry>,
}

impl<M: Mmu> Visitor<M> for Changing<'_, M> {
    type Error = core::convert::Infallible;

    #[inline(always)]
    fn visit(&mut self, mmu: &M, run: &Run<'_, M>) -> Result<Next, Self::Error> {
        let leaves = leading_leaves(mmu, run);
        self.change_run(mmu, run, &run.cells()[..leaves]);
        Ok(Next::Entries(leaves))
    }
}

impl<M: Mmu> Changing<'_, M> {
    /// Changes `cells`, the first ones of `run`, and notes what the TLBs may hold of their old values.
    ///
    /// Entries at both ends that have the new permissions already are left out, so that the invalidation covers what
    /// changed and no more. Between them all are written: one more store of the same value costs less than asking.
    #[inline(always)]
    fn change_run(&mut self, mmu: &M, run: &Run<'_, M>, cells: &[M::Cell]) {
        let change = self.change;
        let changes = |cell: &M::Cell| {
            let old = mmu.load(cell);
            change.apply(old) != old
        };
        let Some(first) = cells.iter().position(changes) else { return };
        let last = cells.iter().rposition(changes).unwrap_or(first);
        let changed = &cells[first..=last];

        // Only what was valid can be in a TLB. A change that only makes entries valid leaves valid ones as they are.
        let stale = |cell: &M::Cell| mmu.load(cell).is_valid() && changes(cell);
        let mut witness = first;
        if !change.only_makes_valid()
            && let (Some(from), Some(to)) = (changed.iter().position(stale), changed.iter().rposition(stale))
        {
            witness = first + from;
            let entries = run.address(first + from);
            let size = (((to - from) as u64) + 1) << M::Geometry::shift(run.level);
            self.stale.note(PageRange::trusted(entries, size), run.level);
        }
        let written = change.apply(mmu.load(&cells[witness]));
        mmu.update_run(changed, change);
        self.lazy.wrote(written);
    }
}

/// What TLBs may hold of entries that were valid before: the hull of them, and their level while it is only one.
pub(crate) struct Stale<G: Geometry> {
    range: Option<PageRange<G>>,
    level: Option<u8>,
}

impl<G: Geometry> Stale<G> {
    /// Nothing yet.
    pub(crate) const NONE: Self = Self { range: None, level: None };

    /// Adds the pages of `range`, translated by leaves of `level`.
    #[inline(always)]
    pub(crate) fn note(&mut self, range: PageRange<G>, level: u8) {
        (self.range, self.level) = match self.range {
            None => (Some(range), Some(level)),
            Some(before) => (Some(before.hull(range)), self.level.filter(|&one| one == level)),
        };
    }

    /// The invalidation that is owed for it.
    #[inline(always)]
    pub(crate) fn flush(self) -> Flush<G> {
        let level = self.level;
        Flush::new(self.range.map(|range| Invalidation { range, tables: Tables::Kept, level }))
    }
}
