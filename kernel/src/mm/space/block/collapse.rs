//! Collapse: the pages of 2 MiB become one block (`madvise(MADV_COLLAPSE)`; Linux: `collapse_huge_page`).
//!
//! ```text
//!     scan      may the pages become a block? The areas are locked for reading
//!     allocate  a block, and storage for its tags: no lock is held
//!     lock      the areas, for writing, and scan again: afterwards nothing fails
//!     unlink    the entry above the table is emptied, and all levels invalidated, in CPUs and in devices
//!     copy      in steps; where no page is, zeros
//!     map       the block, which gets the table as its deposit
//!     free      the pages
//! ```
//! A page that a fork has made shared is copied too, and stays the others' page: the entry holds its frame until the
//! copy is complete, so no other holder has it to itself and stores to it.
//!
//! # Why nothing meets half of it
//! - *Faults, calls and walks by frame* read the areas under their lock, and come before the unlink or after the map.
//!   No cell of the table that they found is used afterwards, and the table stays a table of the space.
//! - *A migration* makes entries under that lock too. The areas are [at rest](Space::write_areas_at_rest), so none is a
//!   migration entry.
//! - *Hardware* sets flags in entries of the table, and stores to pages, until the invalidation after the unlink is
//!   complete. The copy begins then, and the entry of the block is stored after it: break-before-make.
//! - *A device* that meets the empty entry has a fault, which waits for the areas.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{CellsOrBlock, Invalidation, Mmu, PageRange, Stores, Tables};

use super::super::address_space::{Settings, Space};
use super::super::area::tree::Areas;
use super::super::area::{Area, AreaFlags};
use super::super::cells::{BlockCell, TableCells};
use super::super::entry::{EntryState, first_entry, rest_of_stale, state};
use super::super::error::SpaceError;
use super::super::gather::Gather;
use super::super::parts::Divisible as _;
use super::super::range::{clamped_range, pages};
use super::{block_of, is_block};
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::sched::relax;
use crate::smp::Cpu;

/// Why a call makes no block of 2 MiB.
enum Obstacle {
    /// They are one.
    IsBlock,
    /// No page is there, or one is write-protected for a userfaultfd: the call goes on above, and fails at its end.
    Unfit,
    /// No area that permits it has them any more: the call looks again at what is there.
    Changed,
    /// The call ends.
    Refused(SpaceError),
}

impl From<SpaceError> for Obstacle {
    fn from(error: SpaceError) -> Self {
        Self::Refused(error)
    }
}

/// Pages that may become a block, as long as the areas stay locked.
struct Candidate<'s> {
    /// The entry above them.
    link: BlockCell<'s>,
    entries: TableCells<'s>,
    protection: Protection,
    /// Whether the block needs tags: the area or a page has some.
    has_tags: bool,
}

impl Space {
    /// Makes each aligned 2 MiB of the `bytes` bytes from `start` on that lie in one area a block, whether blocks are
    /// wanted there or not (`MADV_COLLAPSE`). Sleeps; no lock is held. `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range; an area of an object, one that blocks
    /// are not for, that has no room for one, or no page yet; 2 MiB without a page, or with one that is write-protected
    /// for a userfaultfd, a guard or poisoned), [`SpaceError::Missing`] (a page that a userfaultfd is asked for),
    /// [`SpaceError::NoMemory`] (a part is not mapped; or no block is free, and none becomes so),
    /// [`SpaceError::Interrupted`] (by `is_killed`). Others of the 2 MiB may be blocks by then; the contents of no page
    /// have changed.
    pub fn madvise_collapse(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        let (mut next, mut is_covered) = (range.start(), in_space);
        while next < range.end() {
            let (part, end) = self.collapsible_part(pages(next, range.end()), is_killed)?;
            is_covered &= part.is_some_and(|part| part.start() == next);
            next = match part {
                Some(part) => self.collapse_part(cpu, part, is_killed)?,
                None => end,
            };
            relax();
        }
        if is_covered { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// The part of `rest` that is in its first area, which may have blocks, and the address after it; `None` where
    /// there is no area up to that.
    fn collapsible_part(
        &self,
        rest: PageRange,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(Option<PageRange>, VirtAddr), SpaceError> {
        let areas = self.areas.read(rest.start());
        let end = areas.next().map_or(rest.end(), |next| next.min(rest.end()));
        let rest = pages(rest.start(), end);
        let Some(area) = areas.touching(rest).next() else { return Ok((None, end)) };
        if !self.may_collapse(area) || !self.has_been_used(area, is_killed) {
            return Err(if is_killed() { SpaceError::Interrupted } else { SpaceError::Invalid });
        }
        let part = area.part_in(rest);
        Ok((Some(part), part.end()))
    }

    /// Whether pages of an area may become blocks.
    fn may_collapse(&self, area: &Area) -> bool {
        let first = area.start().0.next_multiple_of(BLOCK_SIZE);
        let is_refused = area.flags().has_any(AreaFlags::NO_BLOCKS) || self.settings().has(Settings::NO_BLOCKS);
        area.object().is_none() && !is_refused && first + BLOCK_SIZE <= area.end().0
    }

    /// Whether an area has a page, the page of zeros excepted, or a marker (Linux: `anon_vma`, which stays when they
    /// go). None is found once `is_killed`.
    fn has_been_used(&self, area: &Area, is_killed: &dyn Fn() -> bool) -> bool {
        let mut walk = self.page_tables().walk_cells(area.range());
        while let Some(met) = walk.next() {
            let CellsOrBlock::Cells(found) = met else { return true };
            {
                let locked = self.lock_table(found.table);
                let mut entries = found.cells.iter().map(|cell| locked.entry(self.mmu(), cell).descriptor());
                if entries.any(|entry| !is_zero(entry)) {
                    return true;
                }
            }
            if is_killed() {
                break;
            }
            relax();
        }
        false
    }

    /// Collapses what `part` of an area has whole; returns where the call goes on.
    fn collapse_part(&self, cpu: &Cpu, part: PageRange, is_killed: &dyn Fn() -> bool) -> Result<VirtAddr, SpaceError> {
        let mut next = VirtAddr(part.start().0.next_multiple_of(BLOCK_SIZE));
        let mut are_blocks = true;
        while next + BLOCK_SIZE <= part.end() {
            if is_killed() {
                return Err(SpaceError::Interrupted);
            }
            match self.collapse_block(cpu, next, is_killed) {
                Ok(()) | Err(Obstacle::IsBlock) => {}
                Err(Obstacle::Unfit) => are_blocks = false,
                Err(Obstacle::Changed) if are_blocks => return Ok(next),
                Err(Obstacle::Changed) => return Err(SpaceError::Invalid),
                Err(Obstacle::Refused(error)) => return Err(error),
            }
            next = next + BLOCK_SIZE;
            relax();
        }
        if are_blocks { Ok(part.end()) } else { Err(SpaceError::Invalid) }
    }

    fn collapse_block(&self, cpu: &Cpu, start: VirtAddr, is_killed: &dyn Fn() -> bool) -> Result<(), Obstacle> {
        let made = self.try_collapse_block(cpu, start, is_killed);
        if let Err(Obstacle::Refused(SpaceError::Missing)) = made {
            // The area's last page may have gone since the call looked at it.
            let areas = self.areas.read(start);
            if areas.find(start).is_some_and(|area| !self.has_been_used(area, is_killed)) {
                return Err(SpaceError::Invalid.into());
            }
        }
        made
    }

    fn try_collapse_block(&self, cpu: &Cpu, start: VirtAddr, is_killed: &dyn Fn() -> bool) -> Result<(), Obstacle> {
        let has_tags = {
            let areas = self.areas.read(start);
            self.scan_to_collapse(&areas, start)?.has_tags
        };
        let new = self.block_to_fill(cpu, has_tags, is_killed)?;
        self.collapse_into(cpu, start, new).inspect_err(|_| self.common.frames.free_splittable(cpu, new))
    }

    /// The 2 MiB at `start`, if they may become a block. The areas are locked.
    fn scan_to_collapse(&self, areas: &Areas, start: VirtAddr) -> Result<Candidate<'_>, Obstacle> {
        let end = start + BLOCK_SIZE;
        let is_possible = |area: &&Area| end <= area.end() && self.may_collapse(area);
        let area = areas.find(start).filter(is_possible).ok_or(Obstacle::Changed)?;
        let link = self.block_at(start).ok_or(Obstacle::Unfit)?;
        if is_block(self.mmu().load(link.cell)) {
            return Err(Obstacle::IsBlock);
        }
        // None at the marker of a block that was zapped.
        let entries = self.page_tables().cells(start, BLOCK_FRAMES).ok_or(Obstacle::Unfit)?;
        let has_tags = self.scan_entries_to_collapse(area, &entries)?;
        Ok(Candidate { link, entries, protection: area.protection(), has_tags })
    }

    /// Whether pages of `area` need tags in a block, if their entries permit that there is one.
    fn scan_entries_to_collapse(&self, area: &Area, found: &TableCells<'_>) -> Result<bool, Obstacle> {
        let asks_for_missing = area.flags().has_any(AreaFlags::REGISTERED);
        let (mut is_empty, mut is_refused) = (true, false);
        let mut has_tags = area.protection().contains(Protection::TAGGED);
        let locked = self.lock_table(found.table);
        for cell in found.cells {
            let entry = locked.entry(self.mmu(), cell).descriptor();
            let entry = if state(entry) == EntryState::Stale { rest_of_stale(entry) } else { entry };
            is_empty &= entry == Descriptor::EMPTY;
            if is_zero(entry) {
                if asks_for_missing {
                    return Err(SpaceError::Missing.into());
                }
                continue;
            }
            if entry.is_uffd_wp_in_any_form() {
                return Err(Obstacle::Unfit);
            }
            match state(entry) {
                EntryState::Page | EntryState::Inaccessible => {
                    has_tags |= self.common.record(entry.address()).has_tags();
                }
                // It has arrived when the areas are at rest.
                EntryState::Migration => {}
                // Another page may still be one that ends the scan in another way.
                _ => is_refused = true,
            }
        }
        match (is_empty, is_refused) {
            (true, _) => Err(Obstacle::Unfit),
            (_, true) => Err(SpaceError::Invalid.into()),
            _ => Ok(has_tags),
        }
    }

    /// A new block, with storage for tags if it gets some. Sleeps; no lock is held.
    fn block_to_fill(&self, cpu: &Cpu, has_tags: bool, is_killed: &dyn Fn() -> bool) -> Result<PhysAddr, SpaceError> {
        let (common, frames) = (self.common, self.common.frames);
        let block = frames.alloc_splittable(cpu).or_else(|_| {
            common.compact(cpu, 1, is_killed);
            frames.alloc_splittable(cpu)
        })?;
        if let Some(storage) = frames.tag_storage()
            && has_tags
        {
            let record = common.record(block);
            if storage.reserve_block(common, cpu, block, &|| record.note_tag_storage()).is_err() {
                frames.free_splittable(cpu, block);
                return Err(SpaceError::NoMemory);
            }
        }
        Ok(block)
    }

    /// Makes the pages of the 2 MiB at `start` the block `new`, if they may become one still. Sleeps; no lock is held.
    fn collapse_into(&self, cpu: &Cpu, start: VirtAddr, new: PhysAddr) -> Result<(), Obstacle> {
        let (mmu, common, end) = (self.mmu(), self.common, start + BLOCK_SIZE);
        let range = pages(start, end);
        let mut areas = common.migrations.lock_at_rest(self.family, || self.write_areas(range));
        let Candidate { link, entries, protection, has_tags } = self.scan_to_collapse(&areas, start)?;
        let folio = common.block(new);
        if has_tags {
            // At hand already, unless the area or a page got tags concurrently.
            folio.reserve_now().map_err(|_| SpaceError::NoMemory)?;
        }
        self.note_block_origin(new, start);
        let _change = self.notifiers.start(Range::new(Event::Clear, start, end));
        {
            let _locked = self.lock_table(link.table);
            mmu.store(link.cell, Descriptor::EMPTY);
        }
        self.tlb().flush_freed(mmu, &Invalidation { range, tables: Tables::Unlinked, level: None });
        // From here on the entries stay as they are.
        let old = || entries.cells.iter().map(|cell| mmu.load(cell)).map(frame_of);
        folio.fill_from(old(), has_tags);
        let block = block_of(first_entry(new, protection));
        if block.is_user_executable() {
            self.make_block_visible(new);
        }
        // The contents before their entry.
        mmu.dmb_ishst();
        {
            let locked = self.lock_table(link.table);
            mmu.store(link.cell, block);
            common.deposit(locked.frame(), entries.table);
        }
        let mut gather = Gather::without_faults(self, cpu, &mut areas);
        old().flatten().for_each(|frame| gather.add(frame, || None));
        Ok(())
    }
}

/// Whether an entry has no page, or the page of zeros.
fn is_zero(entry: Descriptor) -> bool {
    entry == Descriptor::EMPTY || entry.is_present() && entry.is_special()
}

/// The frame that an entry holds.
fn frame_of(entry: Descriptor) -> Option<PhysAddr> {
    (entry.is_present() && !entry.is_special()).then(|| entry.address())
}
