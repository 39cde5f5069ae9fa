//! Changes of a range and its alias: the same frames at their other addresses, whose writability follows.
//!
//! Memory that is read-only at one address and writable at another is not read-only. So a change of writability goes to
//! both, in four steps:
//!
//! 1. check the range itself;
//! 2. split the blocks of the alias in which a run of frames ends. This takes tables, so here it fails, before anything
//!    has changed;
//! 3. change the alias, and then the range;
//! 4. invalidate both, under one pair of barriers.
//!
//! Frames that follow one another are one run: one walk, one invalidation. Only the first few runs are kept; the others
//! are read from the range's own entries each time ([`FrameRuns`]), so that their number has no bound and they take no
//! memory. In step 3 a run may still cut a contiguous group. Splitting that takes no table and cannot fail.
//!
//! Two cases have code of their own: one run for which one look is enough ([`update`]), and frames of which none
//! follows another ([`ScatteredAlias`]).

use core::ops::Range;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{
    Change, Checked, Cut, Entry, Error, Flush, Geometry, Invalidation, LastTable, Lazy, Leaf, PageRange, PageTables,
    PageUpdate, Ready, Splitter, Stores, Tables, Tlb,
};

use super::scattered::ScatteredAlias;
use super::{ReadWrite, Writability};

/// Where the frames of a range are mapped a second time: in the same tree, by leaves that it may split while they are
/// in use. It never fails to split a contiguous group.
pub trait Alias<M: Stores>: Splitter<M> {
    /// Where `frame` is mapped. Frames that follow one another are so there, too.
    fn address(&self, frame: PhysAddr) -> VirtAddr;
}

/// Runs that are kept. More are read from the entries again.
const KEPT: usize = 4;
/// Runs of the alias that are invalidated one by one. Where there are more, everything from the first to the last of
/// them is: as many broadcasts as Linux and KVM allow for one invalidation.
pub(super) const ONE_BY_ONE: usize = 512;

/// [`PageTables::update`] of a range whose frames are mapped a second time, by `alias`, with its invalidation: the
/// alias becomes read-only or writable too, and one invalidation serves both. Leaves of the range without the software
/// bits `required` are refused.
///
/// Nearly always the frames are one run, and one look at the range and one at the alias are enough: that is inlined,
/// with a change that the compiler knows.
///
/// # Errors
/// As [`PageTables::update`], and those of the alias's splits. Every page is as it was; leaves of the alias may have
/// been split.
///
/// # Panics
/// Where a frame of the range is not mapped by the alias, or executable there.
#[inline(always)]
pub fn update<W: Writability, M: Stores, A: Alias<M>>(
    tables: PageTables<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    required: u64,
    alias: &mut A,
) -> Result<(), Error> {
    let change = W::CHANGE.require_bits(required);
    let Some(ready) = tables.look(range, &change, alias) else {
        return update_in_steps::<W, M, A>(tables, tlb, range, change, alias);
    };
    if let Some(frames) = ready.physical() {
        let lazy = Lazy::new(tables.mmu());
        let frames = pages(alias.address(frames), range.size());
        // The alias first: at no moment is it writable where the range is executable.
        if let Some(of_alias) = tables.look(frames, &W::CHANGE, alias) {
            let flush = of_alias.commit(&lazy);
            lazy.invalidate(tlb, [ready.commit(&lazy), flush]);
            return Ok(());
        }
    }
    update_runs::<W, M, A>(tables, tlb, range, Permitted::Looked(ready), alias)
}

/// [`update`] of any range.
#[inline(never)]
fn update_in_steps<W: Writability, M: Stores, A: Alias<M>>(
    tables: PageTables<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    change: Change,
    alias: &mut A,
) -> Result<(), Error> {
    let checked = tables.check(range, &change, alias)?;
    update_runs::<W, M, A>(tables, tlb, range, Permitted::Checked(checked), alias)
}

/// A change of the range that may be made.
enum Permitted<'t, 'c, M: Stores> {
    Looked(Ready<'t, M>),
    Checked(Checked<'t, 'c, M>),
}

impl<M: Stores> Permitted<'_, '_, M> {
    fn commit(self, lazy: &Lazy<'_, M>) -> Flush<M::Geometry> {
        match self {
            Self::Looked(ready) => ready.commit(lazy),
            Self::Checked(checked) => checked.commit(lazy),
        }
    }
}

/// Steps 2 to 4 of [`update`], for any frames.
#[inline(never)]
fn update_runs<'t, W: Writability, M: Stores, A: Alias<M>>(
    tables: PageTables<'t, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    permitted: Permitted<'t, '_, M>,
    alias: &mut A,
) -> Result<(), Error> {
    let lazy = &Lazy::new(tables.mmu());
    let sole = if let Permitted::Looked(ready) = &permitted { ready.pages() } else { None };
    let pages = ScatteredAlias::new(tables, range, sole);
    if let Some(table) = pages.find(alias) {
        let changed = pages.change::<W, A>(&table, lazy, alias);
        pages.invalidate(lazy, tlb, permitted.commit(lazy), changed, alias);
        return Ok(());
    }
    let runs = AliasRuns::<M, EVERY_PAGE>::prepare(tables, range, alias)?;
    let stale = runs.change(lazy, W::CHANGE, alias);
    runs.invalidate(lazy, tlb, permitted.commit(lazy), &stale, alias);
    Ok(())
}

/// [`PageTables::unmap`] of a range whose frames are mapped a second time, by `alias`: that of pages that are read-only
/// becomes writable again, before their leaves are handed out: in the same invalidation, or where a page is executable
/// in one of its own, when that of the range is complete. At no moment may one CPU write what another can execute.
///
/// # Errors
/// As [`PageTables::unmap`], and those of the alias's splits: never where the alias was changed by [`update`] alone,
/// because then each read-only run ends where leaves end. Nothing is unmapped.
#[inline]
pub fn unmap<M: Stores, A: Alias<M>>(
    tables: PageTables<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    alias: &mut A,
    mut released: impl FnMut(Leaf),
) -> Result<(), Error> {
    if tables.unmap_at_once(&Lazy::new(tables.mmu()), tlb, range, bits::RDONLY, alias, &mut released) {
        return Ok(());
    }
    unmap_in_steps(tables, tlb, range, alias, released)
}

/// [`unmap`] of any range.
#[inline(never)]
#[allow(unsafe_code, reason = "releases what it has invalidated")]
fn unmap_in_steps<M: Stores, A: Alias<M>>(
    tables: PageTables<'_, M>,
    tlb: &impl Tlb<M>,
    range: PageRange<M::Geometry>,
    alias: &mut A,
    released: impl FnMut(Leaf),
) -> Result<(), Error> {
    let lazy = &Lazy::new(tables.mmu());
    let unmapping = tables.begin_unmap(range)?;
    // Frames are handed out writable. The alias is split for that now, while nothing has changed.
    let runs = unmapping.may_be_read_only().then(|| AliasRuns::<M, READ_ONLY_PAGES>::prepare(tables, range, alias));
    let runs = runs.transpose()?;
    let mut flush = unmapping.break_leaves(&tables, alias);
    match runs {
        None => lazy.invalidate(tlb, [flush]),
        Some(runs) => {
            // No CPU may write what another may still execute: first the range is removed from every TLB.
            if unmapping.may_be_executable() {
                lazy.invalidate(tlb, [core::mem::replace(&mut flush, Flush::NONE)]);
            }
            // The entries are present-invalid now, and still have RDONLY.
            let stale = runs.change(lazy, ReadWrite::CHANGE, alias);
            runs.invalidate(lazy, tlb, flush, &stale, alias);
        }
    }
    // SAFETY: its leaves are broken, and `flush` was invalidated in one of the two ways.
    unsafe { unmapping.release(&tables, released) };
    Ok(())
}

/// Frames one after the other, by their addresses.
type FrameRun = Range<u64>;

/// The addresses of `run` in `alias`.
#[inline(always)]
fn range_of<M: Stores>(run: &FrameRun, alias: &impl Alias<M>) -> PageRange<M::Geometry> {
    pages(alias.address(PhysAddr(run.start)), run.end - run.start)
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

/// The frames of a range in runs, read from its entries; of pages only that have all bits of `MARKS`.
struct FrameRuns<'t, M: Stores, const MARKS: u64> {
    tables: PageTables<'t, M>,
    /// The entries of one last-level table that are not read yet.
    cells: &'t [M::Cell],
    /// The address that follows these entries in the range, and the bytes from there to its end.
    from: VirtAddr,
    left: u64,
    /// The run that has begun.
    run: FrameRun,
}

impl<'t, M: Stores, const MARKS: u64> FrameRuns<'t, M, MARKS> {
    fn new(tables: PageTables<'t, M>, range: PageRange<M::Geometry>) -> Self {
        Self { tables, cells: &[], from: range.start(), left: range.size(), run: 0..0 }
    }

    /// Advances to the next table, or to a block, whose frames in the range it returns.
    #[inline(never)]
    fn next_table(&mut self) -> Option<FrameRun> {
        let Entry { table, index, descriptor, level, .. } = self.tables.entry(self.from);
        let size = M::Geometry::entry_size(level);
        let bytes = if level == LAST_LEVEL {
            let count = ((self.left >> M::Geometry::PAGE_SHIFT) as usize).min(table.len() - index);
            self.cells = &table[index..index + count];
            (count as u64) << M::Geometry::PAGE_SHIFT
        } else {
            self.left.min(size - (self.from.0 & (size - 1)))
        };
        let start = descriptor.address().0 + (self.from.0 & (size - 1));
        self.from = VirtAddr(self.from.0.wrapping_add(bytes));
        self.left -= bytes;
        let is_block = level != LAST_LEVEL && descriptor.0 & MARKS == MARKS;
        is_block.then_some(start..start + bytes)
    }
}

impl<M: Stores, const MARKS: u64> Iterator for FrameRuns<'_, M, MARKS> {
    type Item = FrameRun;

    #[inline(always)]
    fn next(&mut self) -> Option<FrameRun> {
        loop {
            let next = if let Some(cell) = self.cells.first() {
                let mmu = self.tables.mmu();
                let entry = mmu.load(cell);
                let start = entry.address().0;
                // Where one continues the run, further ones mostly do.
                let goes_on = start == self.run.end;
                let count = if goes_on { mmu.filled(self.cells, entry, M::Geometry::PAGE_SIZE) } else { 1 };
                self.cells = self.cells.get(count..).unwrap_or_default();
                if entry.0 & MARKS != MARKS {
                    continue;
                }
                start..start + ((count as u64) << M::Geometry::PAGE_SHIFT)
            } else if self.left != 0 {
                let Some(block) = self.next_table() else { continue };
                block
            } else {
                let last = core::mem::replace(&mut self.run, 0..0);
                return (!last.is_empty()).then_some(last);
            };
            if next.start == self.run.end {
                self.run.end = next.end;
            } else {
                let run = core::mem::replace(&mut self.run, next);
                if !run.is_empty() {
                    return Some(run);
                }
            }
        }
    }
}

/// The runs of a range, once the alias of each can change alone.
struct AliasRuns<'t, M: Stores, const MARKS: u64> {
    tables: PageTables<'t, M>,
    range: PageRange<M::Geometry>,
    count: usize,
    kept: [FrameRun; KEPT],
}

/// The translations of the alias that TLBs may still hold from before the change.
enum StaleAlias<G: Geometry> {
    /// Of the runs that are kept: this.
    Kept([Flush<G>; KEPT]),
    /// Something in this range.
    Some(PageRange<G>),
    /// Nothing.
    Nothing,
}

impl<'t, M: Stores, const MARKS: u64> AliasRuns<'t, M, MARKS> {
    /// Step 2.
    fn prepare(
        tables: PageTables<'t, M>,
        range: PageRange<M::Geometry>,
        alias: &mut impl Alias<M>,
    ) -> Result<Self, Error> {
        let mut found = Self { tables, range, count: 0, kept: [const { 0..0 }; KEPT] };
        let mut table = LastTable::none(tables.mmu());
        for run in found.runs() {
            let range = range_of(&run, alias);
            if let Some(kept) = found.kept.get_mut(found.count) {
                *kept = run;
            }
            found.count += 1;
            // Where there is a last-level table, each of its pages can change alone.
            if !find(tables, &mut table, range)
                && let Some(cut) = Cut::blocks_at_ends(tables, range)
            {
                alias.split(&cut)?;
            }
        }
        Ok(found)
    }

    /// The runs, read from the entries.
    fn runs(&self) -> FrameRuns<'t, M, MARKS> {
        FrameRuns::new(self.tables, self.range)
    }

    /// Step 3, for the alias.
    fn change(&self, lazy: &Lazy<'_, M>, change: Change, alias: &mut impl Alias<M>) -> StaleAlias<M::Geometry> {
        if let Some(kept) = self.kept.get(..self.count) {
            let mut flushes = [Flush::NONE; KEPT];
            for (run, flush) in kept.iter().zip(&mut flushes) {
                *flush = change_run(self.tables, lazy, range_of(run, alias), change, alias);
            }
            return StaleAlias::Kept(flushes);
        }
        let mut hull: Option<PageRange<M::Geometry>> = None;
        let mut table = LastTable::none(self.tables.mmu());
        for run in self.runs() {
            let range = range_of(&run, alias);
            let single = range.pages() == 1 && find(self.tables, &mut table, range);
            let stale = match if single { table.update_page(range.start(), &change) } else { PageUpdate::TakesMore } {
                PageUpdate::Unchanged => false,
                PageUpdate::Changed => {
                    lazy.wrote(Descriptor(bits::VALID));
                    true
                }
                PageUpdate::TakesMore => !change_run(self.tables, lazy, range, change, alias).is_none(),
            };
            if stale {
                hull = Some(hull.map_or(range, |hull| hull.hull(range)));
            }
        }
        hull.map_or(StaleAlias::Nothing, StaleAlias::Some)
    }

    /// Step 4: `flush` is that of the range itself.
    fn invalidate(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        flush: Flush<M::Geometry>,
        stale: &StaleAlias<M::Geometry>,
        alias: &impl Alias<M>,
    ) {
        match *stale {
            StaleAlias::Nothing => lazy.invalidate(tlb, [flush]),
            StaleAlias::Kept(flushes) => lazy.invalidate(tlb, core::iter::once(flush).chain(flushes)),
            StaleAlias::Some(hull) if self.count > ONE_BY_ONE => lazy.invalidate(tlb, [flush, flush_of(hull)]),
            StaleAlias::Some(_) => {
                let of_runs = self.runs().map(|run| flush_of(range_of(&run, alias)));
                lazy.invalidate(tlb, core::iter::once(flush).chain(of_runs));
            }
        }
    }
}

/// Whether all of `range` is in one last-level table, which `table` is then.
#[inline(always)]
fn find<'t, M: Stores>(tables: PageTables<'t, M>, table: &mut LastTable<'t, M>, range: PageRange<M::Geometry>) -> bool {
    table.find(tables, range.start()) && table.translates(range.last())
}

/// No level: TLBs may hold larger leaves of the alias than there are.
#[inline(always)]
pub(super) fn flush_of<G: Geometry>(range: PageRange<G>) -> Flush<G> {
    Invalidation { range, tables: Tables::Kept, level: None }.into()
}

/// Changes one run of the alias.
#[inline(never)]
pub(super) fn change_run<M: Stores, A: Alias<M>>(
    tables: PageTables<'_, M>,
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
