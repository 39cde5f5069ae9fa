//! Changes of a range and its alias: the same frames at their other addresses, whose writability follows.
//!
//! What is read-only here and writable there is not read-only. So a change of writability goes to both, in four steps:
//!
//! 1. check the range itself;
//! 2. split the blocks of the alias in which a run of frames ends. This takes tables, so here it fails, before anything
//!    has changed;
//! 3. change the alias, and then the range;
//! 4. invalidate both, under one pair of barriers.
//!
//! Frames that follow one another are one run: one walk, one invalidation. FrameRuns are not written down, beyond the first
//! few: they are read from the range's own entries each time ([`FrameRuns`]), so their number is bounded by nothing, and no
//! memory is taken. In step 3 a run may still cut a contiguous group. Splitting that takes no table and cannot fail.
//!
//! Two cases are written out for themselves: one run that takes no more than a look ([`update_at_once`]), and frames of
//! which none follows another ([`ScatteredAlias`]).

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{
    Change, Cut, Entry, Error, Flush, Geometry, Invalidation, LastTable, Lazy, Leaf, Mmu, PageRange, PageTables,
    PageUpdate, Ready, Splitter, Tables, Tlb,
};

use super::scattered::ScatteredAlias;

/// Where the frames of a range are mapped a second time: in the same tree, by leaves that it may split while they are in
/// use. It never fails to split a contiguous group.
pub trait Alias<M: Mmu>: Splitter<M> {
    /// Where `frame` is mapped. Frames that follow one another are so there, too.
    fn address(&self, frame: PhysAddr) -> VirtAddr;
}

/// Entries that are looked at in one turn of a loop.
const TURN: usize = 8;
/// FrameRuns that are written down. More are read from the entries again.
const KEPT: usize = 4;
/// FrameRuns of the alias that are invalidated one by one. Where there are more, everything from the first to the last of
/// them is: as many broadcasts as Linux and KVM think an invalidation may take.
pub(super) const ONE_BY_ONE: usize = 512;

/// What one look at a range, and one at the alias of its frames, has come to.
pub(super) enum AtOnce<'t, M: Mmu> {
    /// Both are changed, and owe this.
    Done([Flush<M::Geometry>; 2]),
    /// Nothing is: the range took one look, and its frames are no one run. See [`update_scattered`].
    Scattered(Ready<'t, M>),
    /// Nothing is: it takes [`update_in_steps`].
    TakesMore,
}

/// [`update`] where that takes one look at the range and one at the alias of its frames, which are one run: nearly
/// always. What the caller knows of the change, the compiler knows here.
#[inline(always)]
pub(super) fn update_at_once<'t, M: Mmu, A: Alias<M>>(
    tables: &PageTables<'t, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: &Change,
    alias: &mut A,
) -> AtOnce<'t, M> {
    let Some(of_alias) = change.writability() else { return AtOnce::TakesMore };
    let Some(ready) = tables.look(range, change) else { return AtOnce::TakesMore };
    let Some(frames) = ready.physical() else { return AtOnce::Scattered(ready) };
    let frames = pages(alias.address(frames), range.size());
    // The alias first: at no moment is it writable where the range is executable.
    match tables.update_at_once(lazy, frames, &of_alias, alias) {
        Some(flush) => AtOnce::Done([ready.commit(lazy), flush]),
        None => AtOnce::TakesMore,
    }
}

/// [`PageTables::update`] of a range whose frames are mapped a second time, by `alias`, with its invalidation: where the
/// change is about writing, the alias becomes read-only or writable too, and one invalidation serves both.
///
/// # Errors
/// As [`PageTables::update`], and those of the alias's splits. Every page is as it was; leaves of the alias may have been
/// split.
///
/// # Panics
/// Where a frame of the range is not mapped by the alias, or executable there.
pub fn update<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: Change,
    alias: &mut A,
) -> Result<(), Error> {
    // Nothing that becomes executable may be in a TLB as writable: `update_to_code` takes the two apart.
    debug_assert!(!(change.makes_executable() && change.writability().is_some()));
    match update_at_once(tables, lazy, range, &change, alias) {
        AtOnce::Done(flushes) => {
            lazy.invalidate(tlb, flushes);
            Ok(())
        }
        AtOnce::Scattered(ready) => update_scattered(tables, lazy, tlb, range, change, ready, alias),
        AtOnce::TakesMore => update_in_steps(tables, lazy, tlb, range, change, alias),
    }
}

/// [`update`] where the range, which is `ready`, took one look, and its frames are no one run.
#[inline]
pub(super) fn update_scattered<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: Change,
    ready: Ready<'_, M>,
    alias: &mut A,
) -> Result<(), Error> {
    let pages = ScatteredAlias::new(tables, range, Some(ready.cells()));
    if let (Some(of_alias), Some(table)) = (change.writability(), pages.find(alias)) {
        let changed = pages.change(table, lazy, of_alias, alias);
        let flush = ready.commit(lazy);
        pages.invalidate(lazy, tlb, flush, changed, alias);
        return Ok(());
    }
    update_in_steps(tables, lazy, tlb, range, change, alias)
}

/// [`update`] of any range.
#[inline(never)]
pub(super) fn update_in_steps<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: Change,
    alias: &mut A,
) -> Result<(), Error> {
    let checked = tables.check(range, change)?;
    let Some(of_alias) = change.writability() else {
        lazy.invalidate(tlb, [tables.apply(lazy, checked)]);
        return Ok(());
    };
    let pages = ScatteredAlias::new(tables, range, None);
    if let Some(table) = pages.find(alias) {
        let changed = pages.change(table, lazy, of_alias, alias);
        let flush = tables.apply(lazy, checked);
        pages.invalidate(lazy, tlb, flush, changed, alias);
        return Ok(());
    }
    let runs = || FrameRuns::<M, EVERY_PAGE>::new(tables, range);
    let found = prepare(tables, runs(), alias)?;
    let stale = found.change(tables, lazy, runs(), &of_alias, alias);
    let flush = tables.apply(lazy, checked);
    found.invalidate(lazy, tlb, flush, runs(), &stale, alias);
    Ok(())
}

/// [`PageTables::update_to_code`] of a range whose frames are mapped a second time, by `alias`, which becomes read-only
/// in the first step.
///
/// Two completed steps: what was writable is read-only for every CPU, here and by the alias, before anything of it can
/// be executed. Under one invalidation for both, one CPU could write through what its TLB holds while another runs it.
///
/// # Errors
/// As [`update`].
///
/// # Panics
/// As [`update`].
pub fn update_to_code<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    marks: u64,
    alias: &mut A,
) -> Result<(), Error> {
    tables.update_to_code_after(lazy, tlb, range, marks, |change| update(tables, lazy, tlb, range, change, alias))
}

/// [`PageTables::unmap`] of a range whose frames are mapped a second time, by `alias`: that of pages that are read-only
/// becomes writable again, before their leaves are handed out: in the same invalidation, or where a page is executable
/// in one of its own, when that of the range is complete. At no moment may one CPU write what another can execute.
///
/// # Errors
/// As [`PageTables::unmap`], and those of the alias's splits: never where the alias was changed by [`update`] alone,
/// because then each read-only run ends where leaves end. Nothing is unmapped.
#[inline]
pub fn unmap<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    alias: &mut A,
    mut released: impl FnMut(Leaf),
) -> Result<(), Error> {
    if tables.unmap_at_once(lazy, tlb, range, bits::RDONLY, &mut released) {
        return Ok(());
    }
    unmap_in_steps(tables, lazy, tlb, range, alias, released)
}

/// [`unmap`] of any range.
#[inline(never)]
fn unmap_in_steps<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    alias: &mut A,
    released: impl FnMut(Leaf),
) -> Result<(), Error> {
    let unmapping = tables.begin_unmap(range)?;
    // Also once the range is present-invalid: that still gives which of its pages were read-only.
    let runs = || FrameRuns::<M, READ_ONLY_PAGES>::new(tables, range);
    // Frames are handed out writable. What their alias takes for that is split now, while nothing has changed.
    let found = if unmapping.may_be_read_only() { Some(prepare(tables, runs(), alias)?) } else { None };
    let mut flush = unmapping.break_leaves(tables);
    match found {
        None => lazy.invalidate(tlb, [flush]),
        Some(found) => {
            // Nothing of what some CPU may still execute may be written by another: the range is gone from every TLB
            // first.
            if unmapping.may_be_executable() {
                lazy.invalidate(tlb, [core::mem::replace(&mut flush, Flush::NONE)]);
            }
            let stale = found.change(tables, lazy, runs(), &Change::READ_WRITE, alias);
            found.invalidate(lazy, tlb, flush, runs(), &stale, alias);
        }
    }
    unmapping.release(tables, released);
    Ok(())
}

/// Frames one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FrameRun {
    start: u64,
    end: u64,
}

impl FrameRun {
    const EMPTY: Self = Self { start: 0, end: 0 };

    /// Their addresses in `alias`.
    #[inline(always)]
    fn range<M: Mmu>(self, alias: &impl Alias<M>) -> PageRange<M::Geometry> {
        pages(alias.address(PhysAddr(self.start)), self.end - self.start)
    }
}

/// The alias of frames.
///
/// # Panics
/// Where it is not whole pages of one half of the address space.
#[inline(always)]
pub(super) fn pages<G: Geometry>(start: VirtAddr, size: u64) -> PageRange<G> {
    PageRange::new(start, size).expect("frames are whole pages, and so is their alias")
}

/// [`FrameRuns`] of every page.
const EVERY_PAGE: u64 = 0;
/// [`FrameRuns`] of read-only pages.
const READ_ONLY_PAGES: u64 = bits::RDONLY;

/// The frames of a range in runs, by what its entries say; of pages only that have all bits of `MARKS`.
struct FrameRuns<'a, 't, M: Mmu, const MARKS: u64> {
    tables: &'a PageTables<'t, M>,
    /// What is left of the entries of one last-level table.
    cells: core::slice::Iter<'t, M::Cell>,
    /// Where the range goes on behind these, and for how many bytes.
    from: VirtAddr,
    left: u64,
    /// The run that has begun.
    run: FrameRun,
}

impl<'a, 't, M: Mmu, const MARKS: u64> FrameRuns<'a, 't, M, MARKS> {
    fn new(tables: &'a PageTables<'t, M>, range: PageRange<M::Geometry>) -> Self {
        Self { tables, cells: [].iter(), from: range.start(), left: range.size(), run: FrameRun::EMPTY }
    }

    /// Goes on to the next table, or to a block, whose frames in the range it returns.
    #[inline(never)]
    fn next_table(&mut self) -> Option<FrameRun> {
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
        is_block.then_some(FrameRun { start, end: start + bytes })
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

impl<M: Mmu, const MARKS: u64> Iterator for FrameRuns<'_, '_, M, MARKS> {
    type Item = FrameRun;

    #[inline(always)]
    fn next(&mut self) -> Option<FrameRun> {
        loop {
            let next = if let Some(cell) = self.cells.next() {
                let entry = self.tables.mmu().load(cell);
                if entry.0 & MARKS != MARKS {
                    continue;
                }
                FrameRun { start: entry.address().0, end: entry.address().0 + M::Geometry::PAGE_SIZE }
            } else if self.left != 0 {
                let Some(block) = self.next_table() else { continue };
                block
            } else {
                let last = core::mem::replace(&mut self.run, FrameRun::EMPTY);
                return (last != FrameRun::EMPTY).then_some(last);
            };
            if next.start == self.run.end {
                self.run.end = next.end;
                self.take_turns();
            } else {
                let run = core::mem::replace(&mut self.run, next);
                if run != FrameRun::EMPTY {
                    return Some(run);
                }
            }
        }
    }
}

/// The runs of a range, once the alias of each can change alone.
struct AliasRuns<G: Geometry> {
    count: usize,
    kept: [FrameRun; KEPT],
    geometry: core::marker::PhantomData<G>,
}

/// What TLBs may hold of the alias that is no longer true.
enum StaleAlias<G: Geometry> {
    /// That of the runs that were written down: this.
    Kept([Flush<G>; KEPT]),
    /// Something in this range.
    Some(PageRange<G>),
    /// Nothing.
    Nothing,
}

/// Step 2.
fn prepare<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    runs: impl Iterator<Item = FrameRun>,
    alias: &mut A,
) -> Result<AliasRuns<M::Geometry>, Error> {
    let mut found = AliasRuns { count: 0, kept: [FrameRun::EMPTY; KEPT], geometry: core::marker::PhantomData };
    let mut table = tables.no_last_table();
    for run in runs {
        if let Some(kept) = found.kept.get_mut(found.count) {
            *kept = run;
        }
        found.count += 1;
        let range = run.range(alias);
        // Where there is a last-level table, all in it can change alone.
        if !find(tables, &mut table, range) && cuts_a_block(tables, range) {
            alias.split(&Cut::at_ends(PageTables::new(tables.mmu(), tables.root()), range))?;
        }
    }
    Ok(found)
}

/// Whether all of `range` is in one last-level table, which `table` is then.
#[inline(always)]
fn find<'t, M: Mmu>(tables: &PageTables<'t, M>, table: &mut LastTable<'t, M>, range: PageRange<M::Geometry>) -> bool {
    if !table.translates(range.start()) {
        let Some(found) = tables.last_table_of(range.start()) else { return false };
        *table = found;
    }
    table.translates(range.last())
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

impl<G: Geometry> AliasRuns<G> {
    /// Step 3, for the alias.
    fn change<M: Mmu<Geometry = G>, A: Alias<M>>(
        &self,
        tables: &PageTables<'_, M>,
        lazy: &Lazy<'_, M>,
        runs: impl Iterator<Item = FrameRun>,
        change: &Change,
        alias: &mut A,
    ) -> StaleAlias<G> {
        if let Some(kept) = self.kept.get(..self.count) {
            let mut flushes = [Flush::NONE; KEPT];
            for (run, flush) in kept.iter().zip(&mut flushes) {
                *flush = change_run(tables, lazy, run.range(alias), *change, alias);
            }
            return StaleAlias::Kept(flushes);
        }
        let mut hull: Option<PageRange<G>> = None;
        let mut table = tables.no_last_table();
        for run in runs {
            let range = run.range(alias);
            let single = range.pages() == 1 && find(tables, &mut table, range);
            let stale = match if single { table.update_page(range.start(), change) } else { PageUpdate::TakesMore } {
                PageUpdate::Unchanged => false,
                PageUpdate::Changed => {
                    lazy.wrote(Descriptor(bits::VALID));
                    true
                }
                PageUpdate::TakesMore => !change_run(tables, lazy, range, *change, alias).is_none(),
            };
            if stale {
                hull = Some(hull.map_or(range, |hull| hull.hull(range)));
            }
        }
        hull.map_or(StaleAlias::Nothing, StaleAlias::Some)
    }

    /// Step 4: `flush` is what the range itself owes.
    fn invalidate<M: Mmu<Geometry = G>>(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        flush: Flush<G>,
        runs: impl Iterator<Item = FrameRun>,
        stale: &StaleAlias<G>,
        alias: &impl Alias<M>,
    ) {
        match *stale {
            StaleAlias::Nothing => lazy.invalidate(tlb, [flush]),
            StaleAlias::Kept(flushes) => lazy.invalidate(tlb, core::iter::once(flush).chain(flushes)),
            StaleAlias::Some(hull) if self.count > ONE_BY_ONE => lazy.invalidate(tlb, [flush, owed(hull)]),
            StaleAlias::Some(_) => {
                lazy.invalidate(tlb, core::iter::once(flush).chain(runs.map(|run| owed(run.range(alias)))));
            }
        }
    }
}

/// No level: TLBs may hold larger leaves of the alias than there are.
#[inline(always)]
pub(super) fn owed<G: Geometry>(range: PageRange<G>) -> Flush<G> {
    Invalidation { range, tables: Tables::Kept, level: None }.into()
}

/// Changes one run of the alias.
#[inline(never)]
pub(super) fn change_run<M: Mmu, A: Alias<M>>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: Change,
    alias: &mut A,
) -> Flush<M::Geometry> {
    // Blocks were split before, and groups can be; frames that are mapped have an alias, never executable.
    tables
        .update(lazy, range, change, alias)
        .unwrap_or_else(|error| unreachable!("the alias {range:?} was looked at before: {error}"))
}
