//! Mappings that move or change their size (`mremap`).
//!
//! The contents move with the entries: the frames stay where they are. All areas are locked for writing, so no fault
//! comes between; what does come is a walk by the reverse map of an object. It meets each page once or twice and never
//! not:
//!
//! ```text
//!     mremap                                           walk by the reverse map
//!       the new area joins after the old one             for each area, in order:
//!       for each table:                                    lock the table
//!         lock it, lock the table of the new place         empty the entries, invalidate
//!         move the entries, invalidate                     unlock
//!         unlock both
//!       the old area leaves; the new one is merged
//! ```
//! A page that the walk has missed at the old area is found at the new one, to which the walk comes later. An
//! area that is merged takes the place of the lower one, so that comes last.

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{CellsOrBlock, Mmu, PageRange, Stores, Visited};

use super::address_space::Space;
use super::area::pools::Spares;
use super::area::tree::{Areas, Held, MOST};
use super::area::{Area, AreaFlags};
use super::calls::{Placement, place_elsewhere};
use super::cells::TableCells;
use super::entry::{EntryState, replace, rest_of_stale, state, unprotected};
use super::error::{Refusal, SpaceError};
use super::gather::Gather;
use super::limits::SpaceLimits;
use super::mlock::Locking;
use super::range::{USER_END, USER_START, pages, user_range};
use super::shmem::Object;
use super::used::note_used;
use super::userfault::events::{MovedRegistration, PendingEvents};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::{enlarge_shortage, relax};
use crate::smp::Cpu;

/// Above all pages that an area may have of an object.
const OBJECT_PAGES: u64 = 1 << 52;

/// Where a mapping moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// It stays.
    Not,
    /// Where it cannot become longer, to addresses that the kernel chooses (`MREMAP_MAYMOVE`).
    IfNeeded,
    /// There if it is free, else to addresses that the kernel chooses.
    Near(VirtAddr),
    /// Exactly there, replacing other mappings (`MREMAP_FIXED`).
    To(VirtAddr),
}

impl Move {
    const fn target(self) -> Option<VirtAddr> {
        match self {
            Self::Not | Self::IfNeeded => None,
            Self::Near(to) | Self::To(to) => Some(to),
        }
    }
}

/// A request for `mremap`, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub struct Remap {
    start: VirtAddr,
    bytes: u64,
    new_bytes: u64,
    to: Move,
    keeps_source: bool,
    /// Bytes that have moved, of a request that moves several areas.
    moved: u64,
    /// The pages by which a locked area has become longer.
    longer: Option<PageRange>,
}

impl Remap {
    /// Of the `bytes` bytes from `start` on, which become `new_bytes`; each is rounded up to pages. With `keeps_source`
    /// the old addresses stay mapped, without contents (`MREMAP_DONTUNMAP`).
    ///
    /// # Errors
    /// [`SpaceError::Invalid`]: an address that is no page's, no new bytes, ranges that no space has or that overlap,
    /// or another size with `keeps_source`.
    pub fn new(start: VirtAddr, bytes: u64, new_bytes: u64, to: Move, keeps_source: bool) -> Result<Self, SpaceError> {
        /// Linux's `TASK_SIZE`.
        const END: u64 = 1 << 48;
        // Both wrap to no bytes, as on Linux.
        let [bytes, new_bytes] = [bytes, new_bytes].map(|bytes| bytes.wrapping_add(PAGE - 1) & !(PAGE - 1));
        if !start.is_aligned(PAGE) || new_bytes == 0 || new_bytes > END {
            return Err(SpaceError::Invalid);
        }
        if let Some(to) = to.target() {
            let overlaps = start.0.wrapping_add(bytes) > to.0 && to.0.saturating_add(new_bytes) > start.0;
            let is_resized = keeps_source && bytes != new_bytes;
            if to.0 > END - new_bytes || !to.is_aligned(PAGE) || is_resized || overlaps {
                return Err(SpaceError::Invalid);
            }
        }
        Ok(Self { start, bytes, new_bytes, to, keeps_source, moved: 0, longer: None })
    }

    /// The pages that a locked area has become longer by, which the caller [populates](Space::populate_again).
    pub const fn longer(&self) -> Option<PageRange> {
        self.longer
    }

    /// Where it begins, how many bytes it has, and whether what moves goes from there.
    pub(super) const fn source(&self) -> (VirtAddr, u64, bool) {
        (self.start, self.bytes, !self.keeps_source)
    }

    /// The part of it that is in `part`, at the same distance from the target.
    fn piece(&self, part: PageRange, to: VirtAddr) -> Self {
        let bytes = part.end() - part.start();
        Self { start: part.start(), bytes, new_bytes: bytes, to: Move::To(to + (part.start() - self.start)), ..*self }
    }
}

/// A shared mapping of a file or of anonymous memory, all of which may be written.
pub struct SharedMapping {
    /// Its pages.
    pub object: Counted<Object>,
    /// Its protection.
    pub protection: Protection,
    /// Whether it is locked.
    pub is_locked: bool,
}

impl Space {
    /// The shared mapping that the `bytes` bytes from `start` on are of, if areas that are alike cover them. It may be another
    /// one by now.
    pub fn shared_mapping(&self, start: VirtAddr, bytes: u64) -> Option<SharedMapping> {
        let range = user_range(start, bytes)?;
        let areas = self.areas.read(start);
        let first = areas.find(start).filter(|area| area.is_shared() && area.may_write() && !area.is_of_device())?;
        let object = first.counted_object()?;
        let is_alike = |area: &Area| {
            let is_same = area.object().is_some_and(|other| core::ptr::eq(other, &raw const *object));
            is_same && area.flags() == first.flags() && area.protection() == first.protection()
        };
        if areas.covered_until(range) < range.end() || !areas.walk(range).all(is_alike) {
            return None;
        }
        let is_locked = first.flags().has_any(AreaFlags::LOCKED);
        Some(SharedMapping { protection: first.protection(), is_locked, object })
    }

    /// Moves mappings, or changes the size of one; returns the new address. A call that failed for want of memory may
    /// be repeated with the same `request`.
    ///
    /// # Errors
    /// [`SpaceError::NoArea`] (nothing is mapped at the start, or the range is not of one area),
    /// [`SpaceError::Invalid`] (no bytes of memory that is not shared), [`SpaceError::NoMemory`] (a limit, no
    /// addresses, too many areas, or no memory), [`SpaceError::NotPermitted`] (too near to address 0, or a sealed area). As on Linux,
    /// what was at the target is unmapped by then, and what is beyond the new size; of several areas those before have
    /// moved.
    pub fn mremap(&self, cpu: &Cpu, request: &mut Remap, limits: &SpaceLimits) -> Result<VirtAddr, SpaceError> {
        let mut events = PendingEvents::NONE;
        let moved = self.mremap_areas(cpu, request, limits, &mut events);
        // Of several areas some may have moved.
        events.send();
        moved
    }

    fn mremap_areas(
        &self,
        cpu: &Cpu,
        request: &mut Remap,
        limits: &SpaceLimits,
        events: &mut PendingEvents,
    ) -> Result<VirtAddr, SpaceError> {
        let mut areas = self.write_areas_at_rest();
        // Before all else, as on Linux: what two cuts of the source and two of the target would add.
        if areas.count + 4 + usize::from(request.keeps_source) > MOST {
            return Err(SpaceError::NoMemory);
        }
        match request.to {
            Move::To(to) if request.bytes == request.new_bytes => {
                self.move_each(cpu, &mut areas, request, to, limits, events)
            }
            _ => Ok(self.remap_one(cpu, &mut areas, request, limits, events)?),
        }
    }

    /// Moves all areas of the range, which keep their distances; what is between them at the target stays.
    fn move_each(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &mut Remap,
        to: VirtAddr,
        limits: &SpaceLimits,
        events: &mut PendingEvents,
    ) -> Result<VirtAddr, SpaceError> {
        let end = request.start.0.checked_add(request.bytes).ok_or(SpaceError::NoArea)?.min(USER_END.0);
        let mut next = request.start + request.moved;
        while next.0 < end {
            let rest = pages(next, VirtAddr(end));
            let found = areas.first_touching(rest).filter(|area| request.moved != 0 || area.start() <= next);
            let Some(area) = found else { break };
            let part = area.part_in(rest);
            self.remap_one(cpu, areas, &mut request.piece(part, to), limits, events)?;
            next = part.end();
            request.moved = next - request.start;
            relax();
        }
        if request.moved == 0 { Err(SpaceError::NoArea) } else { Ok(to) }
    }

    /// Moves an area or a part of one, or changes its size.
    fn remap_one(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &mut Remap,
        limits: &SpaceLimits,
        events: &mut PendingEvents,
    ) -> Result<VirtAddr, Refusal> {
        let Remap { start, bytes, new_bytes, to, .. } = *request;
        let area = held_at(areas, start)?;
        if area.is_sealed() {
            return Err(SpaceError::NotPermitted.into());
        }
        if new_bytes <= bytes && to.target().is_none() {
            self.cut_end(cpu, areas, request, events)?;
            return Ok(start);
        }
        if bytes == 0 && !area.is_shared() {
            return Err(SpaceError::Invalid.into());
        }
        if request.keeps_source && area.is_of_device() {
            return Err(SpaceError::Invalid.into());
        }
        let kept = bytes.min(new_bytes);
        if kept > area.end() - start {
            return Err(SpaceError::NoArea.into());
        }
        let more = new_bytes - kept;
        if more != 0 {
            if area.page_at(start).saturating_add(new_bytes / PAGE) >= OBJECT_PAGES {
                return Err(SpaceError::Invalid.into());
            }
            if area.is_of_device() {
                return Err(SpaceError::NoArea.into());
            }
            check_growth(areas, &area, more, limits)?;
        }
        let address = match to.target() {
            Some(_) => self.remap_to(cpu, areas, request, limits, events)?,
            None => self.enlarge(cpu, areas, request, area, events)?,
        };
        let area = held_at(areas, address)?;
        if more != 0 && area.locking() == Locking::Now {
            request.longer = Some(pages(address + kept, address + new_bytes));
        }
        Ok(address)
    }

    /// Unmaps what is beyond the new size.
    fn cut_end(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &mut Remap,
        events: &mut PendingEvents,
    ) -> Result<(), Refusal> {
        let Remap { start, bytes, new_bytes, .. } = *request;
        if new_bytes < bytes {
            let gone = user_range(start + new_bytes, bytes - new_bytes).ok_or(SpaceError::Invalid)?;
            events.add_unmapping(self, areas, gone)?;
            self.munmap_several(cpu, areas, gone)?;
            request.bytes = new_bytes;
        }
        Ok(())
    }

    /// Fails where memory for `more` bytes like those of `area` cannot be.
    fn check_charge(&self, area: &Area, more: u64) -> Result<(), Refusal> {
        let is_private_data = !area.is_shared() && area.protection().contains(Protection::WRITE);
        let is_too_much = area.is_reserved() && is_private_data && more > self.memory();
        if is_too_much { Err(SpaceError::NoMemory.into()) } else { Ok(()) }
    }

    /// Makes `area`, or its end, longer: in place where there is room, or elsewhere where that is permitted.
    fn enlarge(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &Remap,
        area: Held,
        events: &mut PendingEvents,
    ) -> Result<VirtAddr, Refusal> {
        let Remap { start, bytes, new_bytes, to, .. } = *request;
        let more = new_bytes - bytes;
        let is_end = area.end() - start == bytes;
        if is_end && areas.is_free(area.end(), more) {
            self.check_charge(&area, more)?;
            areas.extend_up(&area, more);
            areas.merge(area);
            return Ok(start);
        }
        if to == Move::Not {
            return Err(SpaceError::NoMemory.into());
        }
        let target = place_elsewhere(areas, Placement::Hint(VirtAddr(0)), new_bytes)?;
        self.move_area(cpu, areas, request, area, target, events)
    }

    /// Moves what is requested to its target, which is made free where it is exact.
    fn remap_to(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &mut Remap,
        limits: &SpaceLimits,
        events: &mut PendingEvents,
    ) -> Result<VirtAddr, Refusal> {
        let placement = match request.to {
            Move::To(to) => Placement::Fixed(to),
            Move::Near(to) => Placement::Hint(to),
            Move::Not | Move::IfNeeded => Placement::Hint(VirtAddr(0)),
        };
        if let Placement::Fixed(_) = placement {
            let target = place_elsewhere(areas, placement, request.new_bytes)?;
            events.add_unmapping(self, areas, target)?;
            self.munmap_several(cpu, areas, target)?;
        }
        self.cut_end(cpu, areas, request, events)?;
        let area = held_at(areas, request.start)?;
        if request.keeps_source {
            check_growth(areas, &area, request.bytes, limits)?;
        }
        let target = place_elsewhere(areas, placement, request.new_bytes)?;
        self.move_area(cpu, areas, request, area, target, events)
    }

    /// Moves what is requested of `area` to `target`, which is free; returns its start.
    fn move_area(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &Remap,
        area: Held,
        target: PageRange,
        events: &mut PendingEvents,
    ) -> Result<VirtAddr, Refusal> {
        let Remap { start, bytes, new_bytes, keeps_source, .. } = *request;
        let unlocks = keeps_source && area.flags().has_any(AreaFlags::LOCKED);
        if areas.count + 2 + usize::from(unlocks) > MOST {
            return Err(SpaceError::NoMemory.into());
        }
        self.check_charge(&area, if keeps_source { new_bytes } else { new_bytes - bytes })?;
        let (source, of_object) = ((bytes != 0).then(|| pages(start, start + bytes)), area.object().is_some());
        let cuts = source.filter(|_| !keeps_source || unlocks).map_or(0, |source| area.cuts(source));
        let mut spares = Spares::take(cpu, &self.common.areas, cuts, of_object)?;
        let mut copy = areas.copy_at(&area, start, target, &mut Spares::take(cpu, &self.common.areas, 1, of_object)?);
        let before = events.count();
        let registered = self.move_registration(&area, &mut copy, request, target.start(), events)?;
        let prepared = source.map_or(Ok(()), |source| self.prepare_move(cpu, source, target.start(), of_object));
        // Before the gather, so that it ends after it.
        let _change = source.map(|source| self.notifiers.start(Range::new(Event::Unmap, source.start(), source.end())));
        let mut gather = Gather::without_faults(self, cpu, areas);
        if let Err(error) = prepared {
            events.undo_from(before);
            // With one more frame than there was it would fail again.
            enlarge_shortage(cpu, self.free_tables(&mut gather, areas, target));
            return Err(error.into());
        }
        let moved = areas.insert_elsewhere(copy);
        if let Some(source) = source {
            self.move_entries(&mut gather, source, target.start(), registered);
            if unlocks {
                let unlocked = areas.cut_out(area, source, &mut spares);
                areas.set_flags(&unlocked, unlocked.flags().without(AreaFlags::LOCKING));
                areas.merge(unlocked);
            } else if !keeps_source {
                drop(areas.remove_part(&area, source, &mut spares));
                self.free_tables(&mut gather, areas, source);
            }
        }
        areas.merge(moved);
        Ok(target.start())
    }

    /// Links the tables for the entries of `source` at `to`. A block that cannot be moved as a whole is split.
    fn prepare_move(&self, cpu: &Cpu, source: PageRange, to: VirtAddr, of_object: bool) -> Result<(), OutOfMemory> {
        let mut walk = self.page_tables().walk_cells(source);
        while let Some(met) = walk.next() {
            let found = match met {
                CellsOrBlock::Cells(found) => found,
                CellsOrBlock::Block(at) => {
                    let to = to + (at - source.start());
                    walk.go_on(at, self.prepare_block_move(cpu, source, at, to, of_object)?);
                    continue;
                }
            };
            let (first, last) = (found.start, found.address(found.cells.len() - 1));
            for page in [first, last] {
                let page = to + (page - source.start());
                if self.page_tables().cell(page).is_none() {
                    self.ensure_table(cpu, page)?;
                }
            }
            relax();
        }
        Ok(())
    }

    /// Moves the entries of `source` to `to`, where there are tables for those that are not empty.
    fn move_entries(&self, gather: &mut Gather<'_>, source: PageRange, to: VirtAddr, registered: MovedRegistration) {
        let mut walk = self.page_tables().walk_cells(source);
        while let Some(mut found) = walk.next_cells(|at| {
            relax();
            self.move_block(at, to + (at - source.start()), registered);
            Visited::Done
        }) {
            while let Some(end) = found.cells.len().checked_sub(1) {
                let at = to + (found.start - source.start());
                // As far as the target is in one table.
                let count = (end + 1).min(((BLOCK_SIZE - at.0 % BLOCK_SIZE) / PAGE) as usize);
                let (cells, rest) = found.cells.split_at_checked(count).unwrap_or((found.cells, &[]));
                let target = self.page_tables().cells(at, count);
                // Where one table has a part of both, it may have been linked for the target, and is empty at the
                // source.
                let is_empty = |cell| self.mmu().load(cell) == Descriptor::EMPTY;
                debug_assert!(
                    target.is_some() || cells.iter().all(is_empty),
                    "pages without a table at their new place"
                );
                if let Some(target) = target {
                    self.move_cells(gather, &TableCells { cells, ..found }, &target, registered);
                }
                found = TableCells { cells: rest, start: found.start + count as u64 * PAGE, ..found };
            }
            relax();
        }
    }

    /// Moves the entries of `found` to `target`.
    fn move_cells(
        &self,
        gather: &mut Gather<'_>,
        found: &TableCells<'_>,
        target: &TableCells<'_>,
        registered: MovedRegistration,
    ) {
        let mmu = self.mmu();
        let locked = self.lock_table(found.table);
        let beside = (found.table != target.table).then(|| self.lock_table_beside(target.table));
        let table = beside.as_ref().map_or(locked.frame(), |beside| beside.frame());
        let records = self.common.records();
        for (index, (cell, place)) in found.cells.iter().zip(target.cells).enumerate() {
            let mut entry = mmu.load(cell);
            if entry.is_contiguous() {
                entry = self.unfold_moved(*found, found.address(index), cell, target.start);
            }
            let moved = match state(entry) {
                EntryState::Empty => continue,
                EntryState::Page => {
                    gather.stale(found.address(index), found.address(index + 1));
                    replace(mmu, cell, entry, |_| Descriptor::EMPTY)
                }
                EntryState::Stale => {
                    mmu.store(cell, Descriptor::EMPTY);
                    gather.stale(found.address(index), found.address(index + 1));
                    rest_of_stale(entry)
                }
                EntryState::Inaccessible | EntryState::Marker(_) | EntryState::Migration | EntryState::Damaged => {
                    mmu.store(cell, Descriptor::EMPTY);
                    entry
                }
            };
            let moved = if registered == MovedRegistration::Lost { unprotected(moved) } else { moved };
            if moved == Descriptor::EMPTY {
                continue;
            }
            if moved.is_present() && !moved.is_special() {
                self.note_move(records.of(moved.address()), target.address(index));
            }
            note_used(table, target.address(index));
            mmu.store(place, moved);
        }
        // A walk that empties an entry at the new place frees its frame: no TLB has the old place then.
        gather.invalidate();
    }
}

/// The area that has `address`.
fn held_at(areas: &Areas, address: VirtAddr) -> Result<Held, SpaceError> {
    let page = (USER_START..USER_END).contains(&address).then(|| pages(address, address + PAGE));
    page.and_then(|page| areas.first_touching(page)).ok_or(SpaceError::NoArea)
}

/// Fails where the limits do not permit `more` bytes like those of `area`.
fn check_growth(areas: &Areas, area: &Area, more: u64, limits: &SpaceLimits) -> Result<(), Refusal> {
    if areas.fits(more, area.data() != 0, limits) { Ok(()) } else { Err(SpaceError::NoMemory.into()) }
}
