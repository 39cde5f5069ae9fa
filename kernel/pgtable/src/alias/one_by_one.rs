//! Frames that lie one by one: no two pages that follow one another have frames that do.
//!
//! There are no runs to be found then, so each step goes over the entries as they stand: one load says where the alias
//! of a page is. Frames that do not follow one another mostly lie near one another, so the last-level table of the alias
//! that was looked at last stays at hand. Blocks of the alias are left to [`super::update_runs`], which splits them.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, bits};

use super::{Alias, ONE_BY_ONE, change_run, owed};
use crate::flush::Flush;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::lazy::Lazy;
use crate::mmu::{Mmu, Tlb};
use crate::permission::Change;
use crate::range::PageRange;
use crate::tables::PageTables;
use crate::walk::Leaving;

/// A range of pages of which no two neighbours have frames that are.
pub(super) struct OneByOne<'a, 't, M: Mmu> {
    pub(super) tables: &'a PageTables<'t, M>,
    pub(super) range: PageRange<M::Geometry>,
    /// Its entries, where they lie in one table.
    pub(super) sole: Option<&'t [M::Cell]>,
}

/// A last-level table of the alias.
pub(super) struct AliasTable<'t, M: Mmu> {
    /// The first address that it translates.
    start: u64,
    cells: &'t [M::Cell],
}

impl<'t, M: Mmu> AliasTable<'t, M> {
    /// Whether it translates `address`.
    #[inline(always)]
    fn has(start: u64, address: VirtAddr) -> bool {
        address.0.wrapping_sub(start) >> M::Geometry::shift(LAST_LEVEL - 1) == 0
    }

    /// The one that translates `address`.
    #[inline(never)]
    fn of(tables: &PageTables<'t, M>, address: VirtAddr) -> Option<Self> {
        let page = PageRange::trusted(address, M::Geometry::PAGE_SIZE);
        let cells = tables.sole_run(page, Leaving::Ignored)?.table;
        Some(Self { start: address.align_down(M::Geometry::entry_size(LAST_LEVEL - 1)).0, cells })
    }
}

impl<'t, M: Mmu> OneByOne<'_, 't, M> {
    /// Calls `visit` with the entries of each table; `None` where it says so, or a leaf is no page.
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
    #[inline(never)]
    pub(super) fn find(&self, alias: &impl Alias<M::Geometry>) -> Option<AliasTable<'t, M>> {
        // In neither half of the address space, and farther from both than a table reaches.
        let (mut start, mut table): (u64, &[M::Cell]) = (1 << 62, &[]);
        // No frame follows on this.
        let mut next = 1;
        self.each_table(|cells| {
            for cell in cells {
                let frame = self.tables.mmu().load(cell).address();
                if frame.0 == next {
                    return None;
                }
                next = frame.0 + M::Geometry::PAGE_SIZE;
                let address = alias.address(frame);
                if !AliasTable::<M>::has(start, address) {
                    AliasTable { start, cells: table } = AliasTable::of(self.tables, address)?;
                }
            }
            Some(())
        })?;
        Some(AliasTable { start, cells: table })
    }

    /// Changes the alias of each page; whether any was not so before.
    #[inline(always)]
    pub(super) fn change<A: Alias<M::Geometry>>(
        &self,
        table: AliasTable<'t, M>,
        lazy: &Lazy<'_, M>,
        change: &Change,
        alias: &mut A,
    ) -> bool {
        // One of two, each with masks that the compiler knows.
        if *change == Change::READ_ONLY {
            self.change_to::<A, true>(table, lazy, alias)
        } else {
            self.change_to::<A, false>(table, lazy, alias)
        }
    }

    #[inline(never)]
    fn change_to<A: Alias<M::Geometry>, const READ_ONLY: bool>(
        &self,
        AliasTable { mut start, cells: mut table }: AliasTable<'t, M>,
        lazy: &Lazy<'_, M>,
        alias: &mut A,
    ) -> bool {
        let mmu = self.tables.mmu();
        let change = if READ_ONLY { Change::READ_ONLY } else { Change::READ_WRITE };
        // Valid pages that the change may be made of, each in no contiguous group.
        let must = bits::VALID | bits::TABLE | change.required();
        let mut changed = false;
        let visited = self.each_table(|cells| {
            for cell in cells {
                let address = alias.address(mmu.load(cell).address());
                if !AliasTable::<M>::has(start, address) {
                    AliasTable { start, cells: table } = AliasTable::of(self.tables, address)?;
                }
                let index = M::Geometry::index(address, LAST_LEVEL);
                let old = mmu.load(&table[index]);
                // That the last entry of the group is clear of the bit says that all are (`crate::split`).
                let last = mmu.load(&table[index | (M::Geometry::group_entries(LAST_LEVEL) - 1)]);
                if (old.0 | last.0 & bits::CONTIGUOUS) & (must | bits::CONTIGUOUS) == must {
                    let new = change.apply(old);
                    if new != old {
                        mmu.store(&table[index], new);
                        changed = true;
                    }
                } else {
                    let page = PageRange::trusted(address, M::Geometry::PAGE_SIZE);
                    changed |= !change_run(self.tables, lazy, page, &change, alias).is_none();
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

    #[inline(never)]
    pub(super) fn invalidate(
        &self,
        lazy: &Lazy<'_, M>,
        tlb: &impl Tlb<M>,
        flush: Flush<M::Geometry>,
        changed: bool,
        alias: &impl Alias<M::Geometry>,
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
        let hull = hull.map_or(Flush::NONE, |(first, last)| {
            owed(PageRange::trusted(first, last - first + M::Geometry::PAGE_SIZE))
        });
        let [first, second] = parts;
        lazy.invalidate_with_pages(tlb, [flush, hull], first.iter().chain(second).map(page));
    }
}
