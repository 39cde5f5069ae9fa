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

use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::code;
use crate::cursor::Marks;
use crate::error::Error;
use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::{Lazy, Pending};
use crate::look::{Commit, Uniform, beyond, first_look, flush, may_change};
use crate::mmu::{Mmu, Stores, Survey, Tlb};
use crate::permission::Change;
use crate::range::PageRange;
use crate::split::{Cut, CutLeaves, Splitter};
use crate::stale::{Levels, Stale};
use crate::tables::PageTables;
use crate::visit::{Next, Run, Visitor, leading_leaves, whole_leaf};

impl<'t, M: Stores> PageTables<'t, M> {
    /// Changes the permissions of every leaf in `range`, and returns the invalidation that is then needed: none where
    /// no entry that was valid changed.
    ///
    /// `splitter` selects whether leaves may be split while they are in use, and splits those that the range cuts. With
    /// one that does not, such a leaf is an error; where leaves may be split at all, it is none if nothing in the range
    /// would change, a group that the range cuts counts as one leaf until *all* its entries are clear of the contiguous
    /// bit, and the invalidation gives no level, because TLBs may hold a larger leaf than there is now.
    ///
    /// Nearly always one look is enough ([`Self::update_at_once`]), which is inlined, with a change that the compiler
    /// knows. Everything else is done out of line.
    ///
    /// # Errors
    /// [`Error::NotMapped`] (the first hole), [`Error::NotMarked`], [`Error::Straddles`],
    /// [`Error::WritableAndExecutable`], [`Error::ReadOnly`], [`Error::ExecutionForbidden`], and those of the splitter.
    /// Every page is as it was; leaves may have been split.
    #[inline(always)]
    pub fn update(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
        mut splitter: impl Splitter<M>,
    ) -> Result<Flush<M::Geometry>, Error> {
        match first_look(self, range, &change, &mut splitter, Commit(lazy)) {
            Some(flush) => Ok(flush),
            None => self.update_in_steps(lazy, range, change, splitter),
        }
    }

    /// [`Self::update`] without a first look.
    #[inline(always)]
    fn update_in_steps(
        &self,
        lazy: &Lazy<'_, M>,
        range: PageRange<M::Geometry>,
        change: Change,
        splitter: impl Splitter<M>,
    ) -> Result<Flush<M::Geometry>, Error> {
        // By value, and what is pending is returned by value: so no section lies in memory for this.
        let tables = *self;
        let (flush, pending) = update_tables(tables, range, change, splitter)?;
        lazy.add(pending);
        Ok(flush)
    }

    /// Makes every leaf in `range` read-only and executable at EL1, of those alone that have the software bits `marks`:
    /// read-only first, with an invalidation of its own where anything changed, and executable then. At no moment may
    /// one CPU write what another can execute.
    ///
    /// `read_only` is the first step: [`Self::update`] with the change that it is given, and its invalidation, of the
    /// range and of whatever else its frames can be written by.
    ///
    /// # Errors
    /// As [`Self::update`], and those of `read_only`. Every page is as it was; leaves may have been split.
    #[inline(never)]
    pub fn update_to_code_after<S: Splitter<M>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        marks: u64,
        splitter: &mut S,
        read_only: impl FnOnce(Change, &mut S) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // Both steps are checked before the first.
        let _ = self.check(range, Change::READ_ONLY_EXECUTABLE.require_bits(marks), splitter)?;
        read_only(Change::READ_ONLY.require_bits(marks), splitter)?;
        let flush = self.update_in_steps(lazy, range, Change::EXECUTABLE.require_bits(marks), splitter)?;
        lazy.invalidate(tlb, [flush]);
        Ok(())
    }

    /// [`Self::update_to_code_after`] of frames that can be written by the range alone.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub fn update_to_code(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        marks: u64,
        splitter: &mut impl Splitter<M>,
    ) -> Result<(), Error> {
        self.update_to_code_after(lazy, tlb, range, marks, splitter, |change, splitter| {
            lazy.invalidate(tlb, [self.update_in_steps(lazy, range, change, splitter)?]);
            Ok(())
        })
    }

    /// The first pass of [`Self::update`] alone, over a range of any kind: whether the change may be made. Leaves that
    /// the range cuts are split.
    ///
    /// # Errors
    /// As [`Self::update`]. Every page is as it was; leaves may have been split.
    pub fn check<S: Splitter<M>>(
        &self,
        range: PageRange<M::Geometry>,
        change: Change,
        splitter: &mut S,
    ) -> Result<Checked<M::Geometry>, Error> {
        let found = match check::<M, S>(self, range, &change) {
            Err(cut @ Error::Straddles { .. }) if S::LIVE_SPLITS => {
                splitter.split(&Cut::new(*self, range, CutLeaves::Ends(cut)))?;
                check::<M, S>(self, range, &change)?
            }
            found => found?,
        };
        Ok(Checked { range, change, found, live_splits: S::LIVE_SPLITS })
    }

    /// The second pass, which cannot fail. The owner of the range has changed nothing since the first.
    #[inline]
    pub fn apply(&self, lazy: &Lazy<'_, M>, checked: Checked<M::Geometry>) -> Flush<M::Geometry> {
        let flush = apply(self, lazy, checked.range, &checked.change, checked.found);
        if checked.live_splits { flush.without_level() } else { flush }
    }
}

/// [`PageTables::update`] of any range: table by table, in two walks.
#[inline(never)]
fn update_tables<M: Stores, S: Splitter<M>>(
    tables: PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    change: Change,
    mut splitter: S,
) -> Result<(Flush<M::Geometry>, Pending), Error> {
    let checked = tables.check(range, change, &mut splitter)?;
    let lazy = Lazy::new(tables.mmu());
    let flush = tables.apply(&lazy, checked);
    Ok((flush, lazy.into_pending()))
}

/// A range that has passed the first pass: it may be changed.
#[must_use = "nothing has changed yet"]
pub struct Checked<G: Geometry> {
    range: PageRange<G>,
    change: Change,
    found: Survey,
    live_splits: bool,
}

/// The second pass, over a range that the first has been over.
fn apply<M: Stores>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    found: Survey,
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
            lazy.wrote(to);
            flush(range, change.leaves_stale(), flipping.levels.sole())
        }
    }
}

/// The first pass: what the entries have in common, where the change may be made.
///
/// A range that cuts a leaf that may be split is no error if every leaf in it has the new permissions already.
fn check<M: Stores, S: Splitter<M>>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
) -> Result<Survey, Error> {
    let mut check = PermissionCheck { range, change, live_splits: S::LIVE_SPLITS, cut: None, found: Survey::NOTHING };
    tables.visit(range, &mut check)?;
    let unchanged = || match Uniform::of(check.found, change) {
        Uniform::Unchanged => true,
        Uniform::Flip { .. } => false,
        Uniform::Not => tables.visit(range, &mut Unchanged { change }).is_ok(),
    };
    check.cut.filter(|_| !unchanged()).map_or(Ok(check.found), Err)
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

/// The invalidation where no entry changed: that of leaves which are present-invalid already, and whose invalidation
/// may have been deferred. The caller relies on their being gone from every TLB.
#[inline(always)]
fn unchanged<G: Geometry>(range: PageRange<G>, change: &Change) -> Flush<G> {
    Flush::new(change.makes_invalid().then_some(Invalidation { range, tables: Tables::Kept, level: None }))
}

/// The second pass where entries differ.
#[cold]
fn update_each<M: Stores>(
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
struct PermissionCheck<'a, G: Geometry> {
    range: PageRange<G>,
    change: &'a Change,
    /// See [`Splitter::LIVE_SPLITS`].
    live_splits: bool,
    /// A leaf that may be split, and that the range cuts.
    cut: Option<Error>,
    found: Survey,
}

impl<'t, M: Mmu> Visitor<'t, M> for PermissionCheck<'_, M::Geometry> {
    type Error = Error;

    /// The second pass stores to what is found here.
    const MARKS: Marks = Marks::Clear;

    #[inline(always)]
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Error> {
        let leaves = leading_leaves(mmu, run);
        let survey = mmu.survey(run.leading(leaves));
        // Where not all are fine they are looked at one by one: at upper levels a table as well, which a neighbour may
        // have linked where this walk read a hole.
        if !may_change::<M::Geometry>(self.change, run.level, survey, 0) {
            let refused = each(mmu, run, leaves, self.change);
            if self.live_splits && has_table(mmu, run, leaves) {
                // Split while this walk was looking, before each entry was read or after that: what is there now is
                // below.
                return Ok(Next::Again);
            }
            refused?;
        }
        // Pages cannot be cut. Of groups and blocks only the two at the ends can: they are aligned, and so is the
        // table.
        if self.live_splits {
            if run.level != LAST_LEVEL || (survey.any | beyond(mmu, run)) & bits::CONTIGUOUS != 0 {
                // All other checks come first: nothing is split for a change that is refused.
                self.cut = self.cut.or(whole_groups(mmu, self.range, run, leaves).err());
            }
        } else if run.level != LAST_LEVEL || survey.any & bits::CONTIGUOUS != 0 {
            for index in [0, leaves - 1] {
                whole_leaf(self.range, mmu.load(run.entry(run.first + index)), run.level, run.address(index))?;
            }
        }
        if self.change.makes_executable() && run.inherited & bits::PXNTABLE != 0 {
            return Err(Error::ExecutionForbidden(run.from));
        }
        self.found = self.found.and(survey);
        Ok(Next::Entries(leaves))
    }
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
        if old.0 & change.required_bits() != change.required_bits() {
            return Err(Error::NotMarked(address));
        }
        // Present-invalid leaves count too: making them valid later is not checked again.
        match required & !old.0 {
            0 => {}
            bits::WRITE => return Err(Error::ReadOnly(address)),
            _ => return Err(Error::WritableAndExecutable(address)),
        }
    }
    Ok(())
}

/// The second pass where all entries change alike.
struct Flipping {
    flip: u64,
    levels: Levels,
}

impl<'t, M: Stores> Visitor<'t, M> for Flipping {
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
struct Changing<'a, M: Stores> {
    lazy: &'a Lazy<'a, M>,
    change: &'a Change,
    stale: Stale<M::Geometry>,
}

impl<'t, M: Stores> Visitor<'t, M> for Changing<'_, M> {
    type Error = core::convert::Infallible;

    /// Changes the entries, and notes what the TLBs may hold of their old values. Those that have the new permissions
    /// already are left out, so that the invalidation begins and ends with what changed; not so where they are to be
    /// invalid, see [`unchanged`].
    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Self::Error> {
        let leaves = leading_leaves(mmu, run);
        self.stale.note_each(run, leaves, |cell| {
            let old = mmu.load(cell);
            let new = self.change.apply(old);
            if new != old {
                mmu.store(cell, new);
                self.lazy.wrote(new);
            }
            self.change.leaves_stale() && (new != old || self.change.makes_invalid())
        });
        Ok(Next::Entries(leaves))
    }
}
