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
use crate::look::{Uniform, beyond, flush, may_change};
use crate::mmu::{Mmu, Stores, Survey, Tlb};
use crate::permission::Change;
use crate::range::PageRange;
use crate::runs::{Run, whole_leaf};
use crate::split::{Cut, CutLeaves, Splitter};
use crate::stale::{Levels, Stale};
use crate::tables::PageTables;

impl<'t, M: Stores> PageTables<'t, M> {
    /// Changes the permissions of every leaf in `range`, and returns the invalidation that is then needed: none where
    /// no entry that was valid changed.
    ///
    /// `splitter` selects whether leaves may be split while they are in use, and splits those that the range cuts. With
    /// one that does not, such a leaf is an error; where leaves may be split at all, it is none if nothing in the range
    /// would change, a group that the range cuts counts as one leaf until *all* its entries are clear of the contiguous
    /// bit, and the invalidation gives no level, because TLBs may hold a larger leaf than there is now.
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
        match self.look(range, &change, &mut splitter) {
            Some(ready) => Ok(ready.commit(lazy)),
            // By reference: it has nine words, and is not moved.
            None => match &self.check(range, &change, &mut splitter) {
                Ok(checked) => Ok(checked.make(lazy)),
                Err(error) => Err(*error),
            },
        }
    }

    /// The first half of [`Self::update`] for any range, which is all that can fail: leaves that the range cuts are split,
    /// and nothing else is stored.
    ///
    /// # Errors
    /// As [`Self::update`].
    #[inline(never)]
    pub fn check<'c, S: Splitter<M>>(
        &self,
        range: PageRange<M::Geometry>,
        change: &'c Change,
        splitter: &mut S,
    ) -> Result<Checked<'t, 'c, M>, Error> {
        let look = || {
            let (found, cut) = survey::<M, S>(self, range, change)?;
            // A leaf that may be split, and that the range cuts, is no error where nothing changes.
            cut.filter(|_| !is_unchanged(self, range, change, found)).map_or(Ok(found), Err)
        };
        let found = match look() {
            Err(cut @ Error::Straddles { .. }) if S::LIVE_SPLITS => {
                splitter.split(&Cut::new(*self, range, CutLeaves::Ends(cut)))?;
                look()?
            }
            found => found?,
        };
        Ok(Checked { tables: *self, range, change, found, live_splits: S::LIVE_SPLITS })
    }

    /// Makes every leaf in `range` read-only and executable at EL1, of those alone that have the software bits `marks`:
    /// read-only first, with an invalidation of its own where anything changed, and executable then. At no moment may
    /// one CPU write what another can execute.
    ///
    /// `read_only` is the first step: [`Self::update`] with the change that it is given, and its invalidation, of the
    /// range and of all else that its frames can be written by.
    ///
    /// # Errors
    /// As [`Self::update`], and those of `read_only`. Every page is as it was; leaves may have been split.
    #[inline(never)]
    pub fn update_to_code<S: Splitter<M>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<M::Geometry>,
        marks: u64,
        splitter: &mut S,
        read_only: impl FnOnce(Change, &mut S) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // Both steps are checked before the first.
        let _ = self.check(range, &Change::READ_ONLY_EXECUTABLE.require_bits(marks), splitter)?;
        read_only(Change::READ_ONLY.require_bits(marks), splitter)?;
        let flush = self.update(lazy, range, Change::EXECUTABLE.require_bits(marks), splitter)?;
        lazy.invalidate(tlb, [flush]);
        Ok(())
    }
}

/// A change that may be made, of any range.
#[must_use = "nothing has changed yet"]
pub struct Checked<'t, 'c, M: Stores> {
    tables: PageTables<'t, M>,
    range: PageRange<M::Geometry>,
    change: &'c Change,
    found: Survey,
    live_splits: bool,
}

impl<M: Stores> Checked<'_, '_, M> {
    /// The second half of [`PageTables::update`]. The owner of the range has changed nothing since the first.
    #[inline(always)]
    pub fn commit(self, lazy: &Lazy<'_, M>) -> Flush<M::Geometry> {
        self.make(lazy)
    }

    /// [`Self::commit`] in place; the caller does not make the change again.
    #[inline(always)]
    fn make(&self, lazy: &Lazy<'_, M>) -> Flush<M::Geometry> {
        // By value, and what is pending is returned by value: so no section lies in memory for this.
        let (flush, pending) = self.apply();
        lazy.add(pending);
        flush
    }

    /// The second pass.
    #[inline(never)]
    fn apply(&self) -> (Flush<M::Geometry>, Pending) {
        let &Self { tables, range, change, found, live_splits } = self;
        let lazy = Lazy::new(tables.mmu());
        if change.may_make_code_of(found.all) {
            code::make_visible(&tables, range, change);
        }
        let flush = match Uniform::of(found, change) {
            Uniform::Not => update_each(&tables, &lazy, range, change),
            Uniform::Unchanged => unchanged(range, change),
            Uniform::Flip { from, to } => {
                let mut levels = Levels::NONE;
                for run in tables.runs(range, Marks::Keep) {
                    tables.mmu().update_run(run.cells(), from.0 ^ to.0);
                    levels.note(run.level);
                }
                lazy.wrote(to);
                flush(range, change.leaves_stale(), levels.sole())
            }
        };
        (if live_splits { flush.without_level() } else { flush }, lazy.into_pending())
    }
}

/// The common part of the entries, where the change may be made; and the error of the first leaf that may be split and that
/// the range cuts. Out of line: its frame is gone when [`is_unchanged`] looks.
///
/// A cold function has the run by value, so that the run itself is in registers.
#[inline(never)]
fn survey<M: Stores, S: Splitter<M>>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
) -> Result<(Survey, Option<Error>), Error> {
    let (mmu, mut found, mut cut) = (tables.mmu(), Survey::NOTHING, None);
    // The second pass stores to what is found here.
    let mut runs = tables.runs(range, Marks::Clear);
    while let Some(run) = runs.next() {
        let survey = mmu.survey(run.cells());
        // Where not all are fine they are looked at one by one: at upper levels a table as well, which a neighbour may
        // have linked where this walk read a hole.
        if !may_change::<M::Geometry>(change, run.level, survey, 0) {
            let refused = each(mmu, run, change);
            if S::LIVE_SPLITS && has_table(mmu, run) {
                // Split while this walk was looking, before each entry was read or after that: what is there now is
                // below.
                runs.again(&run);
                continue;
            }
            refused?;
        }
        // Pages cannot be cut. Of groups and blocks only the two at the ends can: they are aligned, and so is the
        // table.
        if S::LIVE_SPLITS {
            if run.level != LAST_LEVEL || (survey.any | beyond(mmu, &run)) & bits::CONTIGUOUS != 0 {
                // All other checks come first: nothing is split for a change that is refused.
                cut = cut.or(whole_groups(mmu, range, run).err());
            }
        } else if run.level != LAST_LEVEL || survey.any & bits::CONTIGUOUS != 0 {
            for index in [0, run.count - 1] {
                whole_leaf(range, mmu.load(run.entry(run.first + index)), run.level, run.address(index))?;
            }
        }
        if change.makes_executable() && run.inherited & bits::PXNTABLE != 0 {
            return Err(Error::ExecutionForbidden(run.from));
        }
        found = found.and(survey);
    }
    Ok((found, cut))
}

/// Whether every leaf has what the change asks for.
fn is_unchanged<M: Mmu>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    found: Survey,
) -> bool {
    let is_as_asked = |cell| {
        let leaf = tables.mmu().load(cell);
        change.apply(leaf) == leaf
    };
    match Uniform::of(found, change) {
        Uniform::Unchanged => true,
        Uniform::Flip { .. } => false,
        Uniform::Not => tables.runs(range, Marks::Keep).all(|run| run.cells().iter().all(is_as_asked)),
    }
}

/// The invalidation where no entry changed: that of leaves which are present-invalid already, and whose invalidation
/// may have been deferred. The caller relies on their being gone from every TLB.
#[inline(always)]
fn unchanged<G: Geometry>(range: PageRange<G>, change: &Change) -> Flush<G> {
    Flush::new(change.makes_invalid().then_some(Invalidation { range, tables: Tables::Kept, level: None }))
}

/// The second pass where entries differ: entry by entry, with what the TLBs may hold of their old values.
#[cold]
fn update_each<M: Stores>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
) -> Flush<M::Geometry> {
    let (mmu, mut stale) = (tables.mmu(), Stale::NONE);
    // Entries that have the new permissions already are left out, so that the invalidation begins and ends with what
    // changed; not so where they are to be invalid, see [`unchanged`].
    for run in tables.runs(range, Marks::Keep) {
        stale.note_each(&run, |cell| {
            let old = mmu.load(cell);
            let new = change.apply(old);
            if new != old {
                mmu.store(cell, new);
                lazy.wrote(new);
            }
            change.leaves_stale() && (new != old || change.makes_invalid())
        });
    }
    stale.flush()
}

/// Checks that the first and the last of the entries belong to the range with all that hangs together with them: a
/// block, a contiguous group, or what is left of one that is being split.
#[cold]
fn whole_groups<M: Mmu>(mmu: &M, range: PageRange<M::Geometry>, run: Run<'_, M>) -> Result<(), Error> {
    let entries = M::Geometry::group_entries(run.level);
    let owned = run.first..run.first + run.count;
    for index in [0, run.count - 1] {
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
fn has_table<M: Mmu>(mmu: &M, run: Run<'_, M>) -> bool {
    run.level != LAST_LEVEL && run.cells().iter().any(|cell| mmu.load(cell).is_table())
}

/// The first entry that must not be changed, as an error; none if all are fine, present-invalid ones among them.
#[cold]
fn each<M: Mmu>(mmu: &M, run: Run<'_, M>, change: &Change) -> Result<(), Error> {
    let required = change.required();
    for (index, cell) in run.cells().iter().enumerate() {
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
