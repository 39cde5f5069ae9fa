//! Changing permissions over a range: check everything, then change everything.
//!
//! Arm ARM D8.17.1: permissions may change on a live entry without break-before-make; the TLBs may hold the old ones
//! until they are invalidated. Two passes: the first refuses holes, leaves that the range cuts, and what would become
//! writable and executable; the second cannot fail. The caller owns the range, so entries are changed by plain loads
//! and stores, in bulk, table by table. Whole leaves change in place, and all entries of a contiguous group change
//! alike.
//!
//! The first pass also finds whether the entries are alike in every bit that matters. They almost always are; then the
//! change is the same few bits to flip in each of them, or none at all, and no entry is looked at a second time.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Kind, LevelEntries, bits};
use granule_arch::tlbi::LevelHint;

use crate::Error;
use crate::code;
use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::{Mmu, Survey};
use crate::permission::Change;
use crate::range::PageRange;
use crate::split::{Cut, CutLeaves, cuts_a_group};
use crate::tables::PageTables;
use crate::walk::{Leaving, Next, Run, Visitor, leading_leaves, whole_leaf};

/// Whether leaves in the range and around it may be split while they are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leaves {
    /// Never: a contiguous group is one, and belongs to one owner.
    Fixed,
    /// At any time, also by the owner of a neighbouring range ([`crate::split`]).
    Divisible,
}

/// See [`PageTables::update`].
///
/// Nearly every range lies in one last-level table. That way is written out: down once, and both passes over the same
/// cells, which stay where they are because their owner is the caller.
#[inline(always)]
pub(crate) fn update<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
) -> Result<Flush<M::Geometry>, Error> {
    let Some(run) = tables.sole_run(range, Leaving::Ignored) else {
        return update_tables(tables, lazy, range, change, Leaves::Fixed);
    };
    let checked = check_run(tables, range, change, &run)?;
    Ok(apply_to_run(tables, lazy, range, change, &run, checked))
}

/// The first pass over a range that is all in `run`.
#[inline(always)]
pub(crate) fn check_run<'t, M: Mmu>(
    tables: &PageTables<'t, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    run: &Run<'t, M>,
) -> Result<Checked, Error> {
    let mut check = Check { range, change, leaves: Leaves::Fixed, cut: None, found: Survey::NOTHING };
    check.visit(tables.mmu(), run)?;
    Ok(Checked(check.found))
}

/// The second pass over it.
#[inline(always)]
pub(crate) fn apply_to_run<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    run: &Run<'_, M>,
    Checked(found): Checked,
) -> Flush<M::Geometry> {
    if change.may_make_code_of(found.all) {
        code::make_visible(tables, range, change);
    }
    match Uniform::of(found, change) {
        Uniform::Not => update_each(tables, lazy, range, change),
        Uniform::Unchanged => unchanged(range, change),
        Uniform::Flip { from, to } => {
            tables.mmu().update_run(run.cells(), from.0 ^ to.0);
            flush(lazy, range, change, to, LevelHint::new(LAST_LEVEL))
        }
    }
}

/// See [`PageTables::update_at_once`].
#[inline(always)]
pub(crate) fn update_at_once<'t, M: Mmu>(
    tables: &PageTables<'t, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: Change,
    leaves: Leaves,
    split: impl Fn(&Cut<'t, M>) -> bool,
) -> Option<Flush<M::Geometry>> {
    let again = PageTables::new(tables.mmu(), tables.root());
    let mut at_once = AtOnce { tables: again, lazy, range, change, leaves, split, flush: Flush::NONE };
    tables.visit_sole_run(range, &mut at_once)?.ok()?;
    Some(at_once.flush)
}

/// See [`PageTables::update_page_at_once`].
#[inline(always)]
pub(crate) fn update_page_at_once<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    page: VirtAddr,
    change: Change,
) -> Option<Flush<M::Geometry>> {
    let range = PageRange::trusted(page, M::Geometry::PAGE_SIZE);
    let (mmu, run) = (tables.mmu(), tables.sole_run(range, Leaving::Ignored)?);
    let cell = run.entry(run.first);
    let old = mmu.load(cell);
    let last = mmu.load(run.entry(run.first | (M::Geometry::group_entries(LAST_LEVEL) - 1)));
    let must = change.required() | change.marks();
    if (old.0 | last.0) & bits::CONTIGUOUS != 0
        || old.kind(LevelEntries::Pages) != Kind::Leaf
        || old.0 & must != must
        || change.may_make_code_of(old.0)
    {
        return None;
    }
    let new = change.apply(old);
    if new == old {
        // As in `AtOnce`.
        return if change.makes_invalid() { None } else { Some(Flush::NONE) };
    }
    mmu.store(cell, new);
    Some(flush(lazy, range, &change, new, None))
}

/// Both passes, where nothing is out of the ordinary.
struct AtOnce<'a, 't, M: Mmu, S> {
    tables: PageTables<'t, M>,
    lazy: &'a Lazy<'a, M>,
    range: PageRange<M::Geometry>,
    change: Change,
    leaves: Leaves,
    /// Splits what the range cuts, or not.
    split: S,
    flush: Flush<M::Geometry>,
}

impl<'t, M: Mmu, S: Fn(&Cut<'t, M>) -> bool> Visitor<'t, M> for AtOnce<'_, 't, M, S> {
    type Error = Other;

    #[inline(always)]
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Other> {
        let found = mmu.survey(run.cells());
        let must = self.change.required() | self.change.marks();
        let in_group = M::Geometry::group_entries(run.level) - 1;
        let cuts_groups = (run.first | (run.first + run.count)) & in_group != 0;
        if !all_leaves::<M::Geometry>(run.level, found)
            || found.all & must != must
            || (self.change.makes_executable() && run.inherited & bits::PXNTABLE != 0)
            || (self.leaves == Leaves::Fixed && found.any & bits::CONTIGUOUS != 0)
        {
            return Err(Other);
        }
        match Uniform::of(found, &self.change) {
            Uniform::Not => return Err(Other),
            // What may be owed all the same is left to the long way.
            Uniform::Unchanged if self.change.makes_invalid() => return Err(Other),
            Uniform::Unchanged => {}
            Uniform::Flip { from, to } => {
                // Of a block that it cuts, the run is the block.
                if run.level != LAST_LEVEL && run.left >> M::Geometry::shift(run.level) != run.count as u64 {
                    // What is there then takes another look.
                    return self.split_off(CutLeaves::Block).and(Err(Other));
                }
                if self.leaves == Leaves::Divisible
                    && cuts_groups
                    && (found.any | beyond(mmu, run)) & bits::CONTIGUOUS != 0
                {
                    let (table, first, last, level) = (run.table, run.first, run.first + run.count - 1, run.level);
                    // In one group, that is it that has the bit; else it may be one that lies between.
                    if (first ^ last) & !in_group == 0 || cuts_a_group(mmu, table, first, last, level) {
                        self.split_off(CutLeaves::Groups { table, first, last, level })?;
                    }
                }
                if self.change.may_make_code_of(found.all) && !code::is_visible_as_stored(mmu) {
                    return Err(Other);
                }
                mmu.update_run(run.cells(), from.0 ^ to.0);
                let level = if self.leaves == Leaves::Fixed { LevelHint::new(run.level) } else { None };
                self.flush = flush(self.lazy, self.range, &self.change, to, level);
            }
        }
        Ok(Next::Entries(run.count))
    }
}

impl<'t, M: Mmu, S: Fn(&Cut<'t, M>) -> bool> AtOnce<'_, 't, M, S> {
    #[inline(always)]
    fn split_off(&self, leaves: CutLeaves<'t, M>) -> Result<(), Other> {
        let tables = PageTables::new(self.tables.mmu(), self.tables.root());
        if (self.split)(&Cut::new(tables, self.range, leaves)) { Ok(()) } else { Err(Other) }
    }
}

/// The same for any range: table by table, in two walks.
#[inline(never)]
pub(crate) fn update_tables<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    leaves: Leaves,
) -> Result<Flush<M::Geometry>, Error> {
    Ok(apply(tables, lazy, range, change, check(tables, range, change, leaves)?))
}

/// What the first pass has found in a range: it may be changed.
pub(crate) struct Checked(Survey);

/// The second pass alone, over a range that the first has been over.
pub(crate) fn apply<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    Checked(found): Checked,
) -> Flush<M::Geometry> {
    if change.may_make_code_of(found.all) {
        code::make_visible(tables, range, change);
    }
    match Uniform::of(found, change) {
        Uniform::Not => update_each(tables, lazy, range, change),
        Uniform::Unchanged => unchanged(range, change),
        Uniform::Flip { from, to } => {
            let mut flipping = Flipping { flip: from.0 ^ to.0, levels: Levels::NONE };
            let Ok(()) = tables.visit(range, &mut flipping);
            flush(lazy, range, change, to, flipping.levels.sole())
        }
    }
}

/// The first pass alone.
///
/// A range that cuts a divisible leaf need not, if all in it is as it shall be.
pub(crate) fn check<M: Mmu>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    leaves: Leaves,
) -> Result<Checked, Error> {
    let mut check = Check { range, change, leaves, cut: None, found: Survey::NOTHING };
    tables.visit(range, &mut check)?;
    let unchanged = || match Uniform::of(check.found, change) {
        Uniform::Unchanged => true,
        Uniform::Flip { .. } => false,
        Uniform::Not => tables.visit(range, &mut Unchanged { change }).is_ok(),
    };
    check.cut.filter(|_| !unchanged()).map_or(Ok(Checked(check.found)), Err)
}

/// Whether every leaf has what the change asks for.
struct Unchanged<'a> {
    change: &'a Change,
}

/// Something is not as it would have to be.
struct Other;

impl<'t, M: Mmu> Visitor<'t, M> for Unchanged<'_> {
    type Error = Other;

    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Other> {
        let leaves = leading_leaves(mmu, run);
        let mut found = run.leading(leaves).iter().map(|cell| mmu.load(cell));
        if found.all(|leaf| self.change.apply(leaf) == leaf) { Ok(Next::Entries(leaves)) } else { Err(Other) }
    }
}

/// What a change does to entries that are alike, in the bits that it touches.
enum Uniform {
    /// They are not alike.
    Not,
    /// They have the new permissions already.
    Unchanged,
    /// Each goes from one to the other.
    Flip { from: Descriptor, to: Descriptor },
}

impl Uniform {
    #[inline(always)]
    fn of(found: Survey, change: &Change) -> Self {
        // What decides how an entry changes, and whether a TLB may hold it.
        let touched = change.set_mask() | change.clear_mask() | bits::VALID;
        match found.common(touched).map(Descriptor) {
            None => Self::Not,
            Some(from) if change.apply(from) == from => Self::Unchanged,
            Some(from) => Self::Flip { from, to: change.apply(from) },
        }
    }
}

/// What is owed where every entry changed: the range holds whole leaves only, so it is what they translate.
#[inline(always)]
fn flush<M: Mmu>(
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    to: Descriptor,
    level: Option<LevelHint>,
) -> Flush<M::Geometry> {
    lazy.wrote(to);
    Flush::new(change.leaves_stale().then_some(Invalidation { range, tables: Tables::Kept, level }))
}

/// What is owed where no entry changed: the invalidation of leaves that are present-invalid already, which whoever made
/// them so may have put off. The caller relies on their being gone from every TLB.
#[inline(always)]
fn unchanged<G: Geometry>(range: PageRange<G>, change: &Change) -> Flush<G> {
    Flush::new(change.makes_invalid().then_some(Invalidation { range, tables: Tables::Kept, level: None }))
}

/// The second pass where entries differ.
#[cold]
fn update_each<M: Mmu>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
) -> Flush<M::Geometry> {
    let mut changing = Changing { lazy, change, stale: Stale::NONE };
    let Ok(()) = tables.visit(range, &mut changing);
    changing.stale.flush()
}

/// The first pass: whether the change may be made, and what the entries have in common.
struct Check<'a, G: Geometry> {
    range: PageRange<G>,
    change: &'a Change,
    leaves: Leaves,
    /// A divisible leaf that the range cuts.
    cut: Option<Error>,
    found: Survey,
}

impl<'t, M: Mmu> Visitor<'t, M> for Check<'_, M::Geometry> {
    type Error = Error;

    #[inline(always)]
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Error> {
        let leaves = leading_leaves(mmu, run);
        let cells = run.leading(leaves);
        let survey = mmu.survey(cells);
        // The common case by what all have: leaves that have what they must. Anything else is looked at one by one: at
        // upper levels a table as well, which a neighbour may have linked where this walk read a hole.
        let must = self.change.required() | self.change.marks();
        if !all_leaves::<M::Geometry>(run.level, survey) || survey.all & must != must {
            if self.leaves == Leaves::Divisible && has_table(mmu, run, leaves) {
                // Split while this walk was looking: what is there now is below.
                return Ok(Next::Again);
            }
            // A copy, so that the run itself can stay in registers.
            each(mmu, &Run { ..*run }, leaves, self.change)?;
        }
        // Pages cannot be cut. Of groups and blocks only the two at the ends can: they are aligned, and so is the
        // table.
        match self.leaves {
            Leaves::Fixed if run.level != LAST_LEVEL || survey.any & bits::CONTIGUOUS != 0 => {
                for index in [0, leaves - 1] {
                    whole_leaf(self.range, mmu.load(run.entry(run.first + index)), run.level, run.address(index))?;
                }
            }
            Leaves::Divisible if run.level != LAST_LEVEL || (survey.any | beyond(mmu, run)) & bits::CONTIGUOUS != 0 => {
                // Anything else that speaks against the change comes first: nothing is split in vain.
                self.cut = self.cut.or(whole_groups(mmu, self.range, &Run { ..*run }, leaves).err());
            }
            _ => {}
        }
        if self.change.makes_executable() && run.inherited & bits::PXNTABLE != 0 {
            return Err(Error::ExecutionForbidden(run.from));
        }
        self.found = self.found.and(survey);
        Ok(Next::Entries(leaves))
    }
}

/// Whether entries of `level` are all valid leaves, or all present-invalid ones.
#[inline(always)]
fn all_leaves<G: Geometry>(level: u8, found: Survey) -> bool {
    let valid = if level == LAST_LEVEL {
        found.all & (bits::VALID | bits::TABLE) == bits::VALID | bits::TABLE
    } else if G::has_leaves(level) {
        found.all & bits::VALID != 0 && found.any & bits::TABLE == 0
    } else {
        return false;
    };
    valid || (found.any & bits::VALID == 0 && found.all & bits::PRESENT_INVALID != 0)
}

/// The last entries of the groups that a run has only a part of, as bits that any of them has.
///
/// The last entry speaks for its group: whoever splits one clears it last ([`crate::split`]).
#[inline(always)]
fn beyond<M: Mmu>(mmu: &M, run: &Run<'_, M>) -> u64 {
    let in_group = M::Geometry::group_entries(run.level) - 1;
    let end = run.first + run.count;
    let mut any = 0;
    if run.first & in_group != 0 {
        any |= mmu.load(run.entry(run.first | in_group)).0;
    }
    if end & in_group != 0 {
        any |= mmu.load(run.entry(end | in_group)).0;
    }
    any
}

/// Checks that the first and the last of the entries belong to the range with all that hangs together with them: a
/// block, a contiguous group, or what is left of one that is being split.
#[cold]
fn whole_groups<M: Mmu>(mmu: &M, range: PageRange<M::Geometry>, run: &Run<'_, M>, leaves: usize) -> Result<(), Error> {
    let entries = M::Geometry::group_entries(run.level);
    let owned = run.first..run.first + leaves;
    for index in [0, leaves - 1] {
        let size = M::Geometry::group_size(run.level);
        let group = run.address(index).align_down(size);
        if range.contains(group) && range.contains(group + (size - 1)) {
            continue;
        }
        let first = (run.first + index) & !(entries - 1);
        let last = first + entries - 1;
        // Each of the caller's own, because a read may be older than that of the last one. None becomes older again.
        let mut asked = (first..last).filter(|entry| owned.contains(entry)).chain([last]);
        if asked.any(|entry| mmu.load(run.entry(entry)).is_contiguous()) {
            return Err(Error::Straddles { leaf: group, size });
        }
        whole_leaf(range, Descriptor::EMPTY, run.level, run.address(index))?;
    }
    Ok(())
}

/// Whether one of the entries is a table, though each was read as something else before.
#[cold]
fn has_table<M: Mmu>(mmu: &M, run: &Run<'_, M>, leaves: usize) -> bool {
    run.level != LAST_LEVEL && run.leading(leaves).iter().any(|cell| mmu.load(cell).is_table())
}

/// The first entry that must not be changed, as an error; none if all are fine, present-invalid ones among them.
#[cold]
fn each<M: Mmu>(mmu: &M, run: &Run<'_, M>, leaves: usize, change: &Change) -> Result<(), Error> {
    let required = change.required();
    for (index, cell) in run.leading(leaves).iter().enumerate() {
        let old = mmu.load(cell);
        let address = run.address(index).max(run.from);
        if old.kind(M::Geometry::level_entries(run.level)) != Kind::Leaf {
            return Err(Error::NotMapped(address));
        }
        if old.0 & change.marks() != change.marks() {
            return Err(Error::NotMarked(address));
        }
        // Present-invalid leaves count too: making them valid later is not checked again.
        if old.0 & required != required {
            return Err(Error::WritableAndExecutable(address));
        }
    }
    Ok(())
}

/// The second pass where all entries change alike.
struct Flipping {
    flip: u64,
    levels: Levels,
}

impl<'t, M: Mmu> Visitor<'t, M> for Flipping {
    type Error = core::convert::Infallible;

    #[inline(always)]
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Self::Error> {
        let leaves = leading_leaves(mmu, run);
        mmu.update_run(run.leading(leaves), self.flip);
        self.levels.note(run.level);
        Ok(Next::Entries(leaves))
    }
}

/// The second pass where they differ: entry by entry.
struct Changing<'a, M: Mmu> {
    lazy: &'a Lazy<'a, M>,
    change: &'a Change,
    stale: Stale<M::Geometry>,
}

impl<'t, M: Mmu> Visitor<'t, M> for Changing<'_, M> {
    type Error = core::convert::Infallible;

    /// Changes the entries, and notes what the TLBs may hold of their old values. Those that have the new permissions
    /// already are left out, so that the invalidation begins and ends with what changed; not so where they are to be
    /// invalid, see [`unchanged`].
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Self::Error> {
        let leaves = leading_leaves(mmu, run);
        let mut hull = None;
        for (index, cell) in run.leading(leaves).iter().enumerate() {
            let old = mmu.load(cell);
            let new = self.change.apply(old);
            if new != old {
                mmu.store(cell, new);
                self.lazy.wrote(new);
            } else if !self.change.makes_invalid() {
                continue;
            }
            if self.change.leaves_stale() {
                hull = Some((hull.map_or(index, |(first, _)| first), index));
            }
        }
        if let Some((first, last)) = hull {
            let size = ((last - first) as u64 + 1) << M::Geometry::shift(run.level);
            self.stale.note(PageRange::trusted(run.address(first), size), run.level);
        }
        Ok(Next::Entries(leaves))
    }
}

/// What TLBs may hold of entries that were valid before: the hull of them, and their level while it is only one.
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

    /// The invalidation that is owed for it.
    #[inline(always)]
    pub(crate) fn flush(self) -> Flush<G> {
        let level = self.levels.sole();
        Flush::new(self.range.map(|range| Invalidation { range, tables: Tables::Kept, level }))
    }
}

/// The levels that leaves were found at, as a set: a bit each.
struct Levels(u8);

impl Levels {
    const NONE: Self = Self(0);

    #[inline(always)]
    fn note(&mut self, level: u8) {
        self.0 |= 1 << level;
    }

    /// The level, where it is only one.
    #[inline(always)]
    fn sole(&self) -> Option<LevelHint> {
        if self.0.is_power_of_two() { LevelHint::new(self.0.trailing_zeros() as u8) } else { None }
    }
}
