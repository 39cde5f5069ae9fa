//! Frames that lie one by one: no two pages that follow one another have frames that do.
//!
//! There are no runs to be found then, so each step goes over the entries as they stand: one load gives the alias
//! of a page. Frames that do not follow one another mostly lie near one another, so the last-level table of the
//! alias that was looked at last stays at hand. Blocks of the alias are left to [`super::update`], which splits them.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Flush, Geometry, LastTable, Lazy, PageRange, PageTables, PageUpdate, Stores, Tlb};

use super::Writability;
use super::update::{Alias, ONE_BY_ONE, change_run, flush_of, pages};

/// The alias of a range of pages of which no two neighbours have frames that are.
pub(super) struct ScatteredAlias<'t, M: Stores> {
    tables: PageTables<'t, M>,
    range: PageRange<M::Geometry>,
    /// Its entries, where they lie in one table.
    sole: Option<&'t [M::Cell]>,
}

impl<'t, M: Stores> ScatteredAlias<'t, M> {
    pub(super) fn new(tables: PageTables<'t, M>, range: PageRange<M::Geometry>, sole: Option<&'t [M::Cell]>) -> Self {
        Self { tables, range, sole }
    }

    /// Calls `visit` with the entries of each table; `None` where it returns that, or a leaf is no page.
    #[inline(always)]
    fn each_table(&self, mut visit: impl FnMut(&'t [M::Cell]) -> Option<()>) -> Option<()> {
        let (mut from, mut left) = (self.range.start(), self.range.pages());
        loop {
            let cells = match self.sole {
                Some(cells) => cells,
                None => {
                    let entry = self.tables.entry(from);
                    let cells = &entry.table[entry.index..];
                    if entry.level != LAST_LEVEL {
                        return None;
                    }
                    &cells[..cells.len().min(left)]
                }
            };
            visit(cells)?;
            left -= cells.len();
            if left == 0 {
                return Some(());
            }
            from = VirtAddr(from.0 + ((cells.len() as u64) << M::Geometry::PAGE_SHIFT));
        }
    }

    /// Whether it is such a range, and all of its alias is pages: then the table of the alias that was looked at last.
    #[inline(always)]
    pub(super) fn find(&self, alias: &impl Alias<M>) -> Option<LastTable<'t, M>> {
        let mut table = LastTable::none(self.tables.mmu());
        // No frame follows on this.
        let mut next = 1;
        self.each_table(|cells| {
            for cell in cells {
                let frame = self.tables.mmu().load(cell).address();
                if frame.0 == next {
                    return None;
                }
                next = frame.0 + M::Geometry::PAGE_SIZE;
                if !table.find(self.tables, alias.address(frame)) {
                    return None;
                }
            }
            Some(())
        })?;
        Some(table)
    }

    /// Changes the alias of each page; whether any has changed.
    #[inline(never)]
    pub(super) fn change<W: Writability, A: Alias<M>>(
        &self,
        found: &LastTable<'t, M>,
        lazy: &Lazy<'_, M>,
        alias: &mut A,
    ) -> bool {
        // A copy, which can stay in registers.
        let mut table = *found;
        let mut changed = false;
        let visited = self.each_table(|cells| {
            for cell in cells {
                let address = alias.address(self.tables.mmu().load(cell).address());
                if !table.find(self.tables, address) {
                    return None;
                }
                match table.update_page(address, &W::CHANGE) {
                    PageUpdate::Unchanged => {}
                    PageUpdate::Changed => changed = true,
                    PageUpdate::TakesMore => {
                        let page = pages(address, M::Geometry::PAGE_SIZE);
                        changed |= !change_run(self.tables, lazy, page, W::CHANGE, alias).is_none();
                    }
                }
            }
            Some(())
        });
        // As it was found before.
        debug_assert!(visited.is_some());
        if changed {
            lazy.wrote(Descriptor(bits::VALID));
        }
        changed
    }

    #[inline(always)]
    pub(super) fn invalidate(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        flush: Flush<M::Geometry>,
        changed: bool,
        alias: &impl Alias<M>,
    ) {
        if !changed {
            return lazy.invalidate(tlb, [flush]);
        }
        let mmu = self.tables.mmu();
        let page = |cell: &M::Cell| alias.address(mmu.load(cell).address());
        // As few pages as are invalidated one by one lie in two tables at most, in any geometry but the tiny one.
        let (mut parts, mut count): ([&[M::Cell]; 2], usize) = ([&[]; 2], 0);
        let mut hull: Option<(VirtAddr, VirtAddr)> = None;
        let few = self.range.pages() <= ONE_BY_ONE;
        let _ = self.each_table(|cells| {
            if let (true, Some(part)) = (few, parts.get_mut(count)) {
                *part = cells;
            } else {
                for cell in cells {
                    let page = page(cell);
                    hull = Some(hull.map_or((page, page), |(first, last)| (first.min(page), last.max(page))));
                }
            }
            count += 1;
            Some(())
        });
        let hull =
            hull.map_or(Flush::NONE, |(first, last)| flush_of(pages(first, last - first + M::Geometry::PAGE_SIZE)));
        let [first, second] = parts;
        lazy.invalidate_with_pages(tlb, [flush, hull], first.iter().chain(second).map(page));
    }
}
