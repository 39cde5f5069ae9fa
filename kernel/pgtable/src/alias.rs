//! A range of pages and its alias: the same frames at their other addresses, whose writability follows.
//!
//! What is read-only here and writable there is not read-only. So a change of writability goes to both, in four steps:
//!
//! 1. check the range itself;
//! 2. see to it that pages of the alias can change alone: where a run of frames ends inside a block, the block is split.
//!    This takes tables, so here it fails, before anything has changed;
//! 3. change the alias, and then the range;
//! 4. invalidate both, under one pair of barriers.
//!
//! Frames that follow one another are one run: one walk, one invalidation. Runs are not written down, beyond the first
//! few: they are read from the range's own entries each time ([`Runs`]), so their number is bounded by nothing, and no
//! memory is taken. In step 3 a run may still cut a contiguous group. Splitting that takes no table and cannot fail.
//!
//! Two cases are written out for themselves: one run that takes no more than a look, and frames of which none follows
//! another ([`one_by_one`]).

mod one_by_one;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Kind, LevelEntries, bits};

use self::one_by_one::OneByOne;
use crate::Error;
use crate::flush::{Flush, Invalidation, Tables};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::{Mmu, Tlb};
use crate::permission::Change;
use crate::range::PageRange;
use crate::tables::PageTables;
use crate::update::{self, Leaves};
use crate::walk::{Entry, Leaving};

/// Where the frames of a range are mapped a second time: in the same tree, by leaves that may be split at any time.
pub trait Alias<G: Geometry> {
    /// Why the alias cannot be changed, or the range itself.
    type Error: From<Error>;

    /// Whether there is one. Where not, nothing else is ever asked.
    const EXISTS: bool = true;

    /// Where `frame` is mapped. Frames that follow one another are so there, too.
    fn address(&self, frame: PhysAddr) -> VirtAddr;

    /// Splits the leaves that `range` cuts at its ends, as [`PageTables::split`] does.
    ///
    /// # Errors
    /// No table is left. Never where only contiguous groups are cut.
    fn split(&mut self, range: PageRange<G>) -> Result<(), Self::Error>;
}

/// No alias.
pub(crate) struct NoAlias;

impl<G: Geometry> Alias<G> for NoAlias {
    type Error = Error;
    const EXISTS: bool = false;

    fn address(&self, _: PhysAddr) -> VirtAddr {
        VirtAddr(0)
    }

    fn split(&mut self, _: PageRange<G>) -> Result<(), Error> {
        Ok(())
    }
}

/// Entries that are looked at in one turn of a loop.
const TURN: usize = 8;
/// Runs that are written down. More are read from the entries again.
const KEPT: usize = 4;
/// Runs of the alias that are invalidated one by one. Where there are more, everything from the first to the last of
/// them is: as many broadcasts as Linux and KVM think an invalidation may take.
const ONE_BY_ONE: usize = 512;

/// See [`PageTables::update_with_alias`].
///
/// Nearly always the range is in one table, its frames follow one another, and their alias takes one look. That way is
/// written out, as in [`update::update`].
#[inline(always)]
pub(crate) fn update<M: Mmu, A: Alias<M::Geometry>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    alias: &mut A,
) -> Result<(), A::Error> {
    // Nothing that becomes executable may be in a TLB as writable: `update_to_code` takes the two apart.
    debug_assert!(!(change.makes_executable() && change.writability().is_some()));
    if !A::EXISTS {
        let flush = tables.update(lazy, range, *change)?;
        lazy.invalidate(tlb, [flush]);
        return Ok(());
    }
    if let Some(of_alias) = change.writability()
        && let Some(run) = tables.sole_run(range, Leaving::Ignored)
    {
        let checked = update::check_run(tables, range, change, &run)?;
        if let Some(frames) = sole_run_of_frames(tables.mmu(), run.cells())
            && let Some(flush_alias) = tables.update_at_once(lazy, frames.range(alias), of_alias)
        {
            let flush = update::apply_to_run(tables, lazy, range, change, &run, checked);
            lazy.invalidate(tlb, [flush, flush_alias]);
            return Ok(());
        }
        let pages = OneByOne { tables, range, sole: Some(run.cells()) };
        if let Some(table) = pages.find(alias) {
            let changed = pages.change(table, lazy, &of_alias, alias);
            let flush = update::apply_to_run(tables, lazy, range, change, &run, checked);
            pages.invalidate(lazy, tlb, flush, changed, alias);
            return Ok(());
        }
    }
    update_frames(tables, lazy, tlb, range, change, alias)
}

/// See [`PageTables::update_to_code_with_alias`].
///
/// Two completed steps: what was writable is read-only for every CPU, here and by the alias, before anything of it can
/// be executed. Under one invalidation for both, one CPU could write through what its TLB holds while another runs it.
#[inline(never)]
pub(crate) fn update_to_code<M: Mmu, A: Alias<M::Geometry>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    marks: u64,
    alias: &mut A,
) -> Result<(), A::Error> {
    // Whatever speaks against the second step is found before the first.
    update::check(tables, range, &Change::READ_ONLY_EXECUTABLE.only_where(marks), Leaves::Fixed)?;
    update(tables, lazy, tlb, range, &Change::READ_ONLY.only_where(marks), alias)?;
    let flush = tables.update(lazy, range, Change::EXECUTABLE.only_where(marks))?;
    lazy.invalidate(tlb, [flush]);
    Ok(())
}

/// The frames of these pages, where they are one run.
#[inline(always)]
fn sole_run_of_frames<M: Mmu>(mmu: &M, cells: &[M::Cell]) -> Option<Run> {
    let start = mmu.load(cells.first()?).address().0;
    // Where the second does not follow, the others need not be asked.
    if let Some(second) = cells.get(1)
        && mmu.load(second).address().0 != start + M::Geometry::PAGE_SIZE
    {
        return None;
    }
    let (mut end, mut other) = (start, 0);
    let mut take = |cell: &M::Cell| {
        other |= mmu.load(cell).0 ^ end;
        end += M::Geometry::PAGE_SIZE;
    };
    let (turns, rest) = cells.as_chunks::<TURN>();
    for turn in turns {
        turn.iter().for_each(&mut take);
    }
    rest.iter().for_each(&mut take);
    (other & bits::ADDRESS == 0).then_some(Run { start, end })
}

/// The same for any range.
#[inline(never)]
fn update_frames<M: Mmu, A: Alias<M::Geometry>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    alias: &mut A,
) -> Result<(), A::Error> {
    if let Some(of_alias) = change.writability() {
        let pages = OneByOne { tables, range, sole: None };
        let checked = update::check(tables, range, change, Leaves::Fixed)?;
        if let Some(table) = pages.find(alias) {
            let changed = pages.change(table, lazy, &of_alias, alias);
            let flush = update::apply(tables, lazy, range, change, checked);
            pages.invalidate(lazy, tlb, flush, changed, alias);
            return Ok(());
        }
    }
    update_runs(tables, lazy, tlb, range, change, alias)
}

/// The same where frames follow one another here and there, or blocks have to be split.
#[inline(never)]
fn update_runs<M: Mmu, A: Alias<M::Geometry>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    alias: &mut A,
) -> Result<(), A::Error> {
    let Some(of_alias) = change.writability() else {
        let flush = tables.update(lazy, range, *change)?;
        lazy.invalidate(tlb, [flush]);
        return Ok(());
    };
    let checked = update::check(tables, range, change, Leaves::Fixed)?;
    let runs = || Runs::<M, EVERY_PAGE>::new(tables, range);
    let found = prepare(tables, runs(), alias)?;
    let stale = found.change(tables, lazy, runs(), &of_alias, alias);
    let flush = update::apply(tables, lazy, range, change, checked);
    found.invalidate(lazy, tlb, flush, runs(), &stale, alias);
    Ok(())
}

/// The alias of those pages of a range that are read-only, where each run of it can change alone.
pub(crate) struct ReadOnly<G: Geometry>(Found<G>);

impl<G: Geometry> ReadOnly<G> {
    /// Finds it, and splits what has to be: before the range is unmapped.
    ///
    /// # Errors
    /// Those of a split: never where the alias was changed by [`PageTables::update_with_alias`] alone, because then each
    /// read-only run ends where leaves end.
    #[cold]
    pub(crate) fn find<M: Mmu<Geometry = G>, A: Alias<G>>(
        tables: &PageTables<'_, M>,
        range: PageRange<G>,
        alias: &mut A,
    ) -> Result<Self, A::Error> {
        prepare(tables, Runs::<M, READ_ONLY_PAGES>::new(tables, range), alias).map(Self)
    }

    /// Makes it writable, and invalidates it with what `flush` owes for the range itself. That is present-invalid by
    /// now, and still says which of its pages were read-only.
    #[cold]
    pub(crate) fn make_writable<M: Mmu<Geometry = G>, A: Alias<G>>(
        &self,
        tables: &PageTables<'_, M>,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        range: PageRange<G>,
        flush: Flush<G>,
        alias: &mut A,
    ) {
        let runs = || Runs::<M, READ_ONLY_PAGES>::new(tables, range);
        let stale = self.0.change(tables, lazy, runs(), &Change::READ_WRITE, alias);
        self.0.invalidate(lazy, tlb, flush, runs(), &stale, alias);
    }
}

/// Frames one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    start: u64,
    end: u64,
}

impl Run {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// Their addresses in `alias`.
    #[inline(always)]
    fn range<G: Geometry>(self, alias: &impl Alias<G>) -> PageRange<G> {
        PageRange::trusted(alias.address(PhysAddr(self.start)), self.end - self.start)
    }
}

/// [`Runs`] of every page.
const EVERY_PAGE: u64 = 0;
/// [`Runs`] of read-only pages.
const READ_ONLY_PAGES: u64 = bits::RDONLY;

/// The frames of a range in runs, by what its entries say; of pages only that have all bits of `MARKS`.
struct Runs<'a, 't, M: Mmu, const MARKS: u64> {
    tables: &'a PageTables<'t, M>,
    /// What is left of the entries of one last-level table.
    cells: core::slice::Iter<'t, M::Cell>,
    /// Where the range goes on behind these, and for how many bytes.
    from: VirtAddr,
    left: u64,
    /// The run that has begun.
    run: Run,
}

impl<'a, 't, M: Mmu, const MARKS: u64> Runs<'a, 't, M, MARKS> {
    fn new(tables: &'a PageTables<'t, M>, range: PageRange<M::Geometry>) -> Self {
        Self { tables, cells: [].iter(), from: range.start(), left: range.size(), run: Run::EMPTY }
    }

    /// Goes on to the next table, or to a block, whose frames in the range it returns.
    #[inline(never)]
    fn next_table(&mut self) -> Option<Run> {
        let Entry { table, index, descriptor, level, .. } = self.tables.entry(self.from);
        let size = M::Geometry::entry_size(level);
        let bytes = if level == LAST_LEVEL {
            let count = ((self.left >> M::Geometry::PAGE_SHIFT) as usize).min(table.len() - index);
            self.cells = table[index..index + count].iter();
            (count as u64) << M::Geometry::PAGE_SHIFT
        } else {
            self.left.min(size - (self.from.0 & (size - 1)))
        };
        let start = descriptor.address().0 + (self.from.0 & (size - 1));
        self.from = VirtAddr(self.from.0.wrapping_add(bytes));
        self.left -= bytes;
        let is_block = level != LAST_LEVEL && descriptor.0 & MARKS == MARKS;
        is_block.then_some(Run { start, end: start + bytes })
    }

    /// Takes entries in whole turns, as long as they go on with the run.
    #[inline(always)]
    fn take_turns(&mut self) {
        while self.cells.len().is_multiple_of(TURN)
            && let Some(turn) = self.cells.as_slice().first_chunk::<TURN>()
        {
            let (mut end, mut other, mut all) = (self.run.end, 0, MARKS);
            for cell in turn {
                let entry = self.tables.mmu().load(cell).0;
                other |= entry ^ end;
                all &= entry;
                end += M::Geometry::PAGE_SIZE;
            }
            if other & bits::ADDRESS != 0 || all != MARKS {
                return;
            }
            self.run.end = end;
            self.cells = self.cells.as_slice()[TURN..].iter();
        }
    }
}

impl<M: Mmu, const MARKS: u64> Iterator for Runs<'_, '_, M, MARKS> {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        loop {
            let next = if let Some(cell) = self.cells.next() {
                let entry = self.tables.mmu().load(cell);
                if entry.0 & MARKS != MARKS {
                    continue;
                }
                Run { start: entry.address().0, end: entry.address().0 + M::Geometry::PAGE_SIZE }
            } else if self.left != 0 {
                let Some(block) = self.next_table() else { continue };
                block
            } else {
                let last = core::mem::replace(&mut self.run, Run::EMPTY);
                return (last != Run::EMPTY).then_some(last);
            };
            if next.start == self.run.end {
                self.run.end = next.end;
                self.take_turns();
            } else {
                let run = core::mem::replace(&mut self.run, next);
                if run != Run::EMPTY {
                    return Some(run);
                }
            }
        }
    }
}

/// The runs of a range, once the alias of each can change alone.
struct Found<G: Geometry> {
    count: usize,
    kept: [Run; KEPT],
    geometry: core::marker::PhantomData<G>,
}

/// What TLBs may hold of the alias that is no longer true.
enum Stale<G: Geometry> {
    /// That of the runs that were written down: this.
    Kept([Flush<G>; KEPT]),
    /// Something in this range.
    Some(PageRange<G>),
    /// Nothing.
    Nothing,
}

/// Step 2.
fn prepare<M: Mmu, A: Alias<M::Geometry>>(
    tables: &PageTables<'_, M>,
    runs: impl Iterator<Item = Run>,
    alias: &mut A,
) -> Result<Found<M::Geometry>, A::Error> {
    let mut found = Found { count: 0, kept: [Run::EMPTY; KEPT], geometry: core::marker::PhantomData };
    let mut last = LastTable::new(tables);
    for run in runs {
        if let Some(kept) = found.kept.get_mut(found.count) {
            *kept = run;
        }
        found.count += 1;
        let range = run.range(alias);
        // Where there is a last-level table, all in it can change alone.
        if !last.has(range) && !last.find(range) && cuts_a_block(tables, range) {
            alias.split(range)?;
        }
    }
    Ok(found)
}

/// Whether an end of `range` is inside a block.
#[cold]
fn cuts_a_block<M: Mmu>(tables: &PageTables<'_, M>, range: PageRange<M::Geometry>) -> bool {
    let cut = |page: VirtAddr, boundary: VirtAddr| {
        let level = tables.entry(page).level;
        level != LAST_LEVEL && !boundary.is_aligned(M::Geometry::entry_size(level))
    };
    cut(range.start(), range.start()) || cut(range.last(), range.end())
}

impl<G: Geometry> Found<G> {
    /// Step 3, for the alias.
    fn change<M: Mmu<Geometry = G>, A: Alias<G>>(
        &self,
        tables: &PageTables<'_, M>,
        lazy: &Lazy<'_, M>,
        runs: impl Iterator<Item = Run>,
        change: &Change,
        alias: &mut A,
    ) -> Stale<G> {
        if let Some(kept) = self.kept.get(..self.count) {
            let mut flushes = [Flush::NONE; KEPT];
            for (run, flush) in kept.iter().zip(&mut flushes) {
                *flush = change_run(tables, lazy, run.range(alias), change, alias);
            }
            return Stale::Kept(flushes);
        }
        let mut hull: Option<PageRange<G>> = None;
        let mut last = LastTable::new(tables);
        for run in runs {
            let range = run.range(alias);
            let stale = match last.change_page(lazy, range, change) {
                Some(stale) => stale,
                None => !change_run(tables, lazy, range, change, alias).is_none(),
            };
            if stale {
                hull = Some(hull.map_or(range, |hull| hull.hull(range)));
            }
        }
        hull.map_or(Stale::Nothing, Stale::Some)
    }

    /// Step 4: `flush` is what the range itself owes.
    fn invalidate<M: Mmu<Geometry = G>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        flush: Flush<G>,
        runs: impl Iterator<Item = Run>,
        stale: &Stale<G>,
        alias: &impl Alias<G>,
    ) {
        match *stale {
            Stale::Nothing => lazy.invalidate(tlb, [flush]),
            Stale::Kept(flushes) => lazy.invalidate(tlb, core::iter::once(flush).chain(flushes)),
            Stale::Some(hull) if self.count > ONE_BY_ONE => lazy.invalidate(tlb, [flush, owed(hull)]),
            Stale::Some(_) => {
                lazy.invalidate(tlb, core::iter::once(flush).chain(runs.map(|run| owed(run.range(alias)))));
            }
        }
    }
}

/// No level: TLBs may hold larger leaves of the alias than there are.
#[inline(always)]
fn owed<G: Geometry>(range: PageRange<G>) -> Flush<G> {
    Flush::new(Some(Invalidation { range, tables: Tables::Kept, level: None }))
}

/// Changes one run of the alias.
#[inline(never)]
fn change_run<M: Mmu, A: Alias<M::Geometry>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    alias: &mut A,
) -> Flush<M::Geometry> {
    loop {
        match tables.update_divisible(lazy, range, *change) {
            Ok(flush) => return flush,
            Err(Error::Straddles { .. }) if alias.split(range).is_ok() => {}
            // Blocks were split before, and groups can be; frames that are mapped have an alias, never executable.
            Err(error) => unreachable!("the alias {range:?} was looked at before: {error}"),
        }
    }
}

/// The last-level table of the alias that was looked at last.
struct LastTable<'a, 't, M: Mmu> {
    tables: &'a PageTables<'t, M>,
    /// The first address that it translates.
    start: u64,
    cells: &'t [M::Cell],
}

impl<'a, 't, M: Mmu> LastTable<'a, 't, M> {
    /// None yet.
    fn new(tables: &'a PageTables<'t, M>) -> Self {
        // In neither half of the address space, and farther from both than a table reaches.
        Self { tables, start: 1 << 62, cells: &[] }
    }

    fn span() -> u64 {
        M::Geometry::entry_size(LAST_LEVEL - 1)
    }

    /// Whether it translates all of `range`.
    #[inline(always)]
    fn has(&self, range: PageRange<M::Geometry>) -> bool {
        range.start().0.wrapping_sub(self.start) < Self::span()
            && range.last().0.wrapping_sub(self.start) < Self::span()
    }

    /// Looks for the one that translates all of `range`; whether there is one.
    #[inline(never)]
    fn find(&mut self, range: PageRange<M::Geometry>) -> bool {
        let entry = self.tables.entry(range.start());
        if entry.level == LAST_LEVEL {
            self.start = range.start().align_down(Self::span()).0;
            self.cells = entry.table;
        }
        self.has(range)
    }

    /// Changes the alias of a single page, and says whether a TLB may hold what it was. `None`, and nothing is changed,
    /// where that takes more.
    #[inline(always)]
    fn change_page(&mut self, lazy: &Lazy<'_, M>, range: PageRange<M::Geometry>, change: &Change) -> Option<bool> {
        if range.size() != M::Geometry::PAGE_SIZE || (!self.has(range) && !self.find(range)) {
            return None;
        }
        let mmu = self.tables.mmu();
        let index = M::Geometry::index(range.start(), LAST_LEVEL);
        let cell_at = |index: usize| &self.cells[index];
        let cell = cell_at(index);
        let old = mmu.load(cell);
        // That the last entry of the group is clear of the bit says that all are (`crate::split`).
        let last = mmu.load(cell_at(index | (M::Geometry::group_entries(LAST_LEVEL) - 1)));
        let required = change.required();
        if (old.0 | last.0) & bits::CONTIGUOUS != 0
            || old.kind(LevelEntries::Pages) != Kind::Leaf
            || old.0 & required != required
        {
            return None;
        }
        let new = change.apply(old);
        if new == old {
            return Some(false);
        }
        mmu.store(cell, new);
        lazy.wrote(new);
        Some(change.leaves_stale())
    }
}
