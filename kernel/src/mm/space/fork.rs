//! `fork`: a second space with the same pages, which both may only read until one of them writes.
//!
//! First everything that can run out is taken: the child's areas, and a table for each of the parent's that has private
//! pages. Then the entries are copied, which cannot fail. The parent's lock is held alone: no fault comes between a
//! page becoming read-only and the invalidation that makes every CPU see it.

use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Cells, Mmu, PageRange};

use super::area::Areas;
use super::entry::{State, replace, state, unwritable};
use super::used::{for_each_used, note_all_used};
use super::{Cell, Machine, Space, SpaceRef};
use crate::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::sched::relax;
use crate::smp::Cpu;

impl Space {
    /// A second space with the same areas and pages: shared ones are shared, private ones are copied by whoever writes
    /// first.
    ///
    /// # Errors
    /// `ENOMEM`; nothing stays taken.
    pub fn fork(&self, cpu: &Cpu) -> Result<SpaceRef, Errno> {
        let child = self.common.create(cpu)?;
        let areas = self.areas.write();
        // As on Linux: areas that were made one by merging may be larger together than all memory.
        if areas.iter().any(|area| area.is_data_beyond(self.memory())) {
            return Err(Errno::ENOMEM);
        }
        {
            let mut copies = child.areas.write();
            let mut last = None;
            for area in areas.iter() {
                last = Some(copies.append_copy(last.as_ref(), area, self.common.areas.try_new(area.copy())?));
                relax();
            }
        }
        let mut whole: Option<PageRange> = None;
        for range in private(&areas) {
            self.prepare_tables(cpu, &child, range)?;
            whole = Some(whole.map_or(range, |whole| whole.hull(range)));
        }
        let Some(range) = whole else { return Ok(child) };
        let _told = self.notifiers.start(Range::new(Event::ProtectionPage, range.start(), range.end()));
        let mut protected = false;
        for range in private(&areas) {
            self.page_tables().for_each_cells(range, |found| {
                protected |= self.copy_entries(&child, &found);
                relax();
            });
        }
        if protected {
            // Most of the space: one operation, and not one for each page.
            self.tlb().flush_space(self.mmu());
        }
        Ok(child)
    }

    /// Links a table in `child` for each of this space's for `range`: it is there because it was used.
    fn prepare_tables(&self, cpu: &Cpu, child: &Space, range: PageRange) -> Result<(), OutOfMemory> {
        let mut result = Ok(());
        self.page_tables().for_each_cells(range, |found| {
            if result.is_ok() && child.page_tables().cell(found.start).is_none() {
                result = child.ensure_table(cpu, found.start);
                relax();
            }
        });
        result
    }

    /// Copies the entries of `found` to the same place in `child`; whether one of this space's that was writable is not
    /// any more.
    fn copy_entries(&self, child: &Space, found: &Cells<'_, Machine>) -> bool {
        let mut protected = false;
        let locked = self.lock_table(found.table);
        let used = locked.used(self.mmu(), found);
        let copies = child.page_tables().cells(found.start, found.cells.len()).expect("a table that was linked before");
        // Nobody else knows the child's tables yet: they need no lock.
        note_all_used(self.common.record(copies.table), used);
        for_each_used(found, used, |places| {
            for (cell, copy) in found.cells[places.clone()].iter().zip(&copies.cells[places]) {
                protected |= self.copy_entry(cell, copy);
            }
        });
        protected
    }

    /// Copies the entry in `cell`; whether it was writable and is not any more.
    #[inline(always)]
    fn copy_entry(&self, cell: &Cell, copy: &Cell) -> bool {
        let mmu = self.mmu();
        let mut entry = mmu.load(cell);
        match state(entry) {
            State::Page | State::Inaccessible => {}
            State::Empty => return false,
            // What is remembered of a page that is not there holds no frame.
            State::Marker(_) | State::Migration(_) | State::Damaged => {
                let unwritable = unwritable(entry, false);
                if unwritable != entry {
                    mmu.store(cell, unwritable);
                }
                mmu.store(copy, unwritable);
                return false;
            }
        }
        let protected = entry.may_be_written();
        if protected {
            entry = replace(mmu, cell, entry, Descriptor::write_protected).write_protected();
        }
        if !entry.is_special() {
            self.common.record(entry.address()).share();
        }
        mmu.store(copy, entry.old());
        protected
    }
}

/// The areas whose pages a child gets copies of, neighbours together: they have tables in common. The pages of others
/// it finds in their objects.
fn private(areas: &Areas) -> impl Iterator<Item = PageRange> {
    let mut rest = areas.iter().filter(|area| !area.is_shared());
    let mut next = rest.next();
    core::iter::from_fn(move || {
        let first = next?;
        let mut end = first.end();
        loop {
            next = rest.next();
            match next {
                Some(area) if area.start() == end => end = area.end(),
                _ => break,
            }
        }
        Some(
            PageRange::new(first.start(), end - first.start())
                .expect("areas are made of whole pages of the lower half"),
        )
    })
}
