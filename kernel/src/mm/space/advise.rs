//! Advice about areas and their pages (`madvise`): what a child has of them, pages before the first access, guard
//! pages.
//!
//! As on Linux (mm/madvise.c) an address that is not mapped does not end a call: the rest of the range is done, and
//! then the call fails. Only [`Space::madvise_populate`] ends there.

use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{CellsOrBlock, Mmu, PageRange, Stores, Visited};

use super::access::Access;
use super::address_space::{
    GROUPS, LOCKED_AREAS, NOT_ALL_AREAS, REGISTERS, SHARED_GUARDS, Space, SpaceRef, USERFAULTFDS,
};
use super::area::pools::Spares;
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::cells::{EntryCell, TableCells};
use super::entry::{EntryState, marker, state, uffd_wp_marker};
use super::error::{FaultError, Refusal, SpaceError};
use super::gather::Gather;
use super::guard::{is_guard, replace_by_guards, set_guards};
use super::parts::Divisible as _;
use super::populate::CHUNK;
use super::range::{USER_END, USER_START, clamped_range, pages};
use super::used::{bits_of, note_all_used};
use super::userfault::fault::FaultMode;
use super::zap::ZapFlags;
use crate::lab;
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::{ReadGuard, relax};
use crate::smp::Cpu;

/// The change of an area's flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AreaAdvice {
    /// A child has nothing of it (`MADV_DONTFORK`).
    DontFork,
    /// A child has it again (`MADV_DOFORK`).
    DoFork,
    /// A child has pages of zeros (`MADV_WIPEONFORK`): of anonymous private memory alone.
    WipeOnFork,
    /// A child has its pages again (`MADV_KEEPONFORK`).
    KeepOnFork,
    /// 2 MiB are brought as a block where they can be (`MADV_HUGEPAGE`).
    HugePage,
    /// They are not (`MADV_NOHUGEPAGE`).
    NoHugePage,
    /// Its pages are in a dump (`MADV_DODUMP`): of memory alone. There are no dumps.
    DoDump,
}

/// Pages that are discarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discard {
    /// All (`MADV_DONTNEED_LOCKED`).
    All,
    /// Those that are not locked (`MADV_DONTNEED`).
    Unlocked,
    /// Those of private memory without an object, which are not locked (`MADV_FREE`: Linux may do so at any time).
    Anonymous,
}

/// Pages that are not needed soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unneeded {
    /// Later perhaps (`MADV_COLD`).
    Cold,
    /// They should leave memory (`MADV_PAGEOUT`), as only droppable ones can here.
    Out,
}

impl AreaAdvice {
    /// The flags of `area` by this advice.
    fn applied(self, area: &Area) -> Result<AreaFlags, SpaceError> {
        let flags = area.flags();
        if matches!(self, Self::DontFork | Self::WipeOnFork) {
            area.check_discard()?;
        }
        match self {
            Self::DontFork => Ok(flags.with(AreaFlags::NOT_IN_CHILDREN)),
            Self::DoFork if area.is_of_device() => Err(SpaceError::Invalid),
            Self::DoFork => Ok(flags.without(AreaFlags::NOT_IN_CHILDREN)),
            Self::WipeOnFork if area.object().is_some() => Err(SpaceError::Invalid),
            Self::WipeOnFork => Ok(flags.with(AreaFlags::ZEROS_IN_CHILDREN)),
            // The kernel may lose them at any time.
            Self::KeepOnFork | Self::DoDump if area.is_droppable() => Err(SpaceError::Invalid),
            Self::KeepOnFork => Ok(flags.without(AreaFlags::ZEROS_IN_CHILDREN)),
            Self::HugePage => Ok(flags.without(AreaFlags::NO_BLOCKS).with(AreaFlags::BLOCKS)),
            Self::DoDump if area.is_of_device() => Err(SpaceError::Invalid),
            Self::DoDump => Ok(flags),
            Self::NoHugePage => Ok(flags.without(AreaFlags::BLOCKS).with(AreaFlags::NO_BLOCKS)),
        }
    }
}

impl Space {
    /// Takes advice about the areas in the `bytes` bytes from `start` on.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range, zeros of an object's pages),
    /// [`SpaceError::NoMemory`] (a part is not mapped, or no memory for records), [`SpaceError::NoRecords`] (too many
    /// areas), [`SpaceError::NotPermitted`] (a [sealed area](super::seal)). Areas below the one that was refused have changed.
    pub fn madvise_areas(&self, cpu: &Cpu, start: VirtAddr, bytes: u64, advice: AreaAdvice) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        if advice == AreaAdvice::DontFork {
            self.hints.fetch_or(NOT_ALL_AREAS, Ordering::Relaxed);
        }
        let change = |areas: &mut Areas| self.change_flags(cpu, areas, range, |area| advice.applied(area));
        let (_, is_covered) = self.change_areas(self.write_areas(range), change)?;
        if in_space && is_covered { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// Gives each area in `range` the flags that `new` has for it, up to the first error; returns whether areas cover
    /// the range. A repeated call with the same change is harmless.
    pub(super) fn change_flags(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        range: PageRange,
        new: impl Fn(&Area) -> Result<AreaFlags, SpaceError>,
    ) -> Result<bool, Refusal> {
        let (mut is_covered, mut next) = (true, range.start());
        while next < range.end() {
            let Some(area) = areas.first_touching(pages(next, range.end())) else { return Ok(false) };
            is_covered &= area.start() <= next;
            let part = area.part_in(range);
            next = part.end();
            relax();
            let flags = new(&area)?;
            if flags == area.flags() {
                continue;
            }
            let cuts = area.cuts(part);
            areas.room_for_cuts(cuts).map_err(no_records)?;
            let mut spares = Spares::take(cpu, &self.common.areas, cuts, area.object().is_some())?;
            let area = areas.cut_out(area, part, &mut spares);
            areas.set_flags(&area, flags);
            areas.merge(area);
        }
        Ok(is_covered)
    }

    /// Serves the first access, of the kind `access`, of each page of the `bytes` bytes from `start` on
    /// (`MADV_POPULATE_READ`, `MADV_POPULATE_WRITE`).
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range, an area that does not permit `access`),
    /// [`SpaceError::NoMemory`] (a part is not mapped, or memory ran out), [`SpaceError::Unusable`] (a page that an
    /// access would find unusable: a guard, or after the end of a file), [`SpaceError::Interrupted`] (by `is_killed`).
    /// The pages before that are populated.
    pub fn madvise_populate(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        access: Access,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        self.populate_as(cpu, range, &|_| access, is_killed).map_err(|(_, error)| error)?;
        if in_space { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// As [`Self::madvise_populate`], with the access that `wanted` has for each area: it is asked under the lock under
    /// which the pages are brought, since the area may change between them. On an error also returns where.
    pub(super) fn populate_as(
        &self,
        cpu: &Cpu,
        range: PageRange,
        wanted: &dyn Fn(&Area) -> Access,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), (VirtAddr, SpaceError)> {
        let mut next = range.start();
        while next < range.end() {
            let failed = |error| (next, error);
            if is_killed() {
                return Err(failed(SpaceError::Interrupted));
            }
            let until = VirtAddr(next.0 | (CHUNK - 1)).min(range.last()) + 1;
            next = match self.populate_piece(cpu, pages(next, until), wanted).map_err(failed)? {
                (until, None) => until,
                (_, Some((page, access))) => {
                    let result = match self.fault_in_kernel(cpu, page, access, FaultMode::Kernel) {
                        // Both are looked at again: a fault may need two steps, and an area may have changed since.
                        Ok(()) | Err(FaultError::NotMapped | FaultError::NotAllowed) => Ok(page),
                        Err(FaultError::OutOfMemory) => Err(SpaceError::NoMemory),
                        Err(FaultError::Guard | FaultError::Unusable | FaultError::Userfault) => {
                            Err(SpaceError::Unusable)
                        }
                        Err(FaultError::Poisoned) => Err(SpaceError::Poisoned),
                    };
                    result.map_err(|error| (page, error))?
                }
            };
            relax();
        }
        Ok(())
    }

    /// Populates the pages of `range`, entries of one table, in the area that has its first page, up to the first page
    /// that takes a fault; returns where that ends, and that page with the access.
    fn populate_piece(
        &self,
        cpu: &Cpu,
        range: PageRange,
        wanted: &dyn Fn(&Area) -> Access,
    ) -> Result<(VirtAddr, Option<(VirtAddr, Access)>), SpaceError> {
        let areas = self.areas.read(range.start());
        let area = areas.find(range.start()).ok_or(SpaceError::NoMemory)?;
        let access = wanted(area);
        if !area.protection().contains(access.needed()) || area.is_of_device() {
            return Err(SpaceError::Invalid);
        }
        let part = area.part_in(range);
        if let Some(entry) = self.block_entry(part.start()) {
            let end = part.end();
            return Ok((end, (!Self::permits_entry(entry, access)).then_some((part.start(), access))));
        }
        // Where no table is, no entry is anything.
        let first = |is_such: &dyn Fn(&EntryCell) -> bool, where_no_table| {
            let Some(found) = self.page_tables().cells(part.start(), part.pages()) else { return where_no_table };
            found.cells.iter().position(is_such).map_or(part.end(), |index| found.address(index))
        };
        let is_other = |cell: &EntryCell| !self.permits(cell, access) && !self.is_empty(cell);
        // A pager serves first accesses, page by page.
        let is_asked = area.flags().has_any(AreaFlags::UFFD_FIRST);
        let end = if is_asked { part.start() } else { first(&is_other, part.end()) };
        if end > part.start() {
            // Its errors come of looks without a lock. The page is left to a fault, which looks again before it fails.
            let _ = self.populate_chunk(cpu, area, pages(part.start(), end), access);
        }
        // Also of those: another thread may have brought one that does not permit as much.
        let left = first(&|cell| !self.permits(cell, access), part.start());
        Ok((part.end(), (left < part.end()).then_some((left, access))))
    }

    /// Makes the pages of the `bytes` bytes from `start` on guards: their contents go, and an access is SIGSEGV
    /// (`MADV_GUARD_INSTALL`).
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range), [`SpaceError::NoMemory`] (a part is
    /// not mapped; or no memory for tables), [`SpaceError::NotPermitted`] (a sealed area), [`SpaceError::Interrupted`] (by `is_killed`). Pages below have changed.
    pub fn madvise_guard(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), SpaceError> {
        // An area is locked for all of its part, as on Linux: a fork, or a lock of its pages, comes before all of the
        // guards or after them.
        self.for_each_part(start, bytes, |areas, area, part| {
            area.check_discard()?;
            if area.flags().has_any(AreaFlags::KEPT) {
                return Err(SpaceError::Invalid);
            }
            if area.is_shared() {
                self.hints.fetch_or(SHARED_GUARDS, Ordering::Relaxed);
            }
            let mut next = part.start();
            while next < part.end() {
                if is_killed() {
                    return Err(SpaceError::Interrupted);
                }
                let until = VirtAddr(next.0 | (BLOCK_SIZE - 1)).min(part.last()) + 1;
                let range = pages(next, until);
                if let Some(found) = self.ensure_cells(cpu, range)? {
                    let are_set = {
                        let locked = self.lock_table(found.table);
                        set_guards(self.mmu(), &locked, found.cells, |index| locked.note_used(found.address(index)))
                    };
                    if !are_set {
                        let _change = self.notifiers.start(Range::new(Event::Clear, range.start(), range.end()));
                        let mut gather = Gather::among_faults(self, cpu, areas);
                        if lab::is_on!(GUARD_IN_TWO) {
                            self.zap(&mut gather, range, ZapFlags::DISCARD);
                            // The caller drops the lock of the areas, and comes back.
                            return Ok(range.start());
                        }
                        let locked = self.lock_table(found.table);
                        replace_by_guards(self.mmu(), locked, found.cells, |locked| {
                            self.zap_cells(&mut gather, locked, &found, ZapFlags::DISCARD);
                            note_all_used(locked.frame(), bits_of(&found));
                        });
                    }
                    next = until;
                } else {
                    self.split_block_at(next);
                }
                relax();
            }
            Ok(part.end())
        })
    }

    /// Discards the pages of the `bytes` bytes from `start` on, area by area (`MADV_DONTNEED`, `MADV_DONTNEED_LOCKED`,
    /// `MADV_FREE`).
    ///
    /// # Errors
    /// As [`Self::madvise_dontneed`]; [`SpaceError::Invalid`] also for an area that `what` leaves out. The pages below
    /// have been discarded.
    pub fn madvise_discard(&self, cpu: &Cpu, start: VirtAddr, bytes: u64, what: Discard) -> Result<(), SpaceError> {
        let check = |area: &Area| {
            area.check_discard()?;
            let is_kept = area.flags().has_any(AreaFlags::KEPT);
            let is_left_out = match what {
                Discard::All => area.is_of_device(),
                Discard::Unlocked => is_kept,
                Discard::Anonymous => is_kept || area.object().is_some(),
            };
            if is_left_out { Err(SpaceError::Invalid) } else { Ok(()) }
        };
        if self.has_userfaultfds()
            && let Some((range, _)) = clamped_range(start, bytes, SpaceError::Invalid)?
        {
            let mut end = range.end();
            // The discard ends before the first area that it refuses.
            let _ = self.for_each_part(start, bytes, |_, area, part| {
                check(area).inspect_err(|_| end = part.start())?;
                Ok(part.end())
            });
            if range.start() < end {
                self.announce_remove(pages(range.start(), end));
            }
        }
        self.for_each_part(start, bytes, |areas, area, part| {
            check(area)?;
            self.discard_part(cpu, areas, part);
            Ok(part.end())
        })
    }

    /// Discards the pages of `part` of an area.
    pub(super) fn discard_part(&self, cpu: &Cpu, areas: &Areas, part: PageRange) {
        let _change = self.notifiers.start(Range::new(Event::Clear, part.start(), part.end()));
        self.zap(&mut Gather::among_faults(self, cpu, areas), part, ZapFlags::DISCARD);
    }

    /// Takes the pages of droppable areas away where `unneeded` says so. All others stay in memory, but this is advice for
    /// pages that are not locked.
    ///
    /// # Errors
    /// As [`Self::madvise_dontneed`].
    pub fn madvise_unneeded(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        unneeded: Unneeded,
    ) -> Result<(), SpaceError> {
        self.for_each_part(start, bytes, |areas, area, part| {
            if area.flags().has_any(AreaFlags::KEPT) {
                return Err(SpaceError::Invalid);
            }
            if unneeded == Unneeded::Out && area.is_droppable() {
                self.discard_part(cpu, areas, part);
            }
            Ok(part.end())
        })
    }

    /// Checks that the pages of the `bytes` bytes from `start` on are in memory alone, as all memory is (`msync`): with
    /// `discards` that none is locked (`MS_INVALIDATE`), with `writes` that none is registers that may be written
    /// (`MS_SYNC`).
    ///
    /// # Errors
    /// As [`Self::madvise_dontneed`]; [`SpaceError::Locked`], and [`SpaceError::Invalid`] for registers.
    pub fn msync(&self, start: VirtAddr, bytes: u64, discards: bool, writes: bool) -> Result<(), SpaceError> {
        self.for_each_part(start, bytes, |_, area, part| {
            if discards && area.flags().has_any(AreaFlags::LOCKED) {
                return Err(SpaceError::Locked);
            }
            if writes && area.is_of_device() && area.may_write() { Err(SpaceError::Invalid) } else { Ok(part.end()) }
        })
    }

    /// Whether the page at `page` is a guard. It may be one no more.
    pub fn has_guard(&self, page: VirtAddr) -> bool {
        let _areas = self.areas.read(page);
        let Some((table, cell)) = self.page_tables().cell(page) else { return false };
        is_guard(self.lock_table(table).entry(self.mmu(), cell).descriptor())
    }

    /// Makes the guards in the `bytes` bytes from `start` on pages again, empty ones (`MADV_GUARD_REMOVE`).
    ///
    /// # Errors
    /// As [`Self::madvise_dontneed`].
    pub fn madvise_unguard(&self, start: VirtAddr, bytes: u64) -> Result<(), SpaceError> {
        let mmu = self.mmu();
        self.for_each_part(start, bytes, |_, area, part| {
            if area.is_of_device() {
                return Err(SpaceError::Invalid);
            }
            let mut walk = self.page_tables().walk_cells(part);
            // No block has guards.
            while let Some(found) = walk.next_cells(|_| Visited::Done) {
                relax();
                let locked = self.lock_table(found.table);
                let guards = found.cells.iter().filter(|cell| is_guard(locked.entry(mmu, cell).descriptor()));
                guards.for_each(|cell| mmu.store(cell, Descriptor::EMPTY));
            }
            Ok(part.end())
        })
    }

    /// Calls `work` for the part of each area that is in the range, with the areas read, again from the address that it
    /// returns; with a scheduling point in between.
    pub(super) fn for_each_part(
        &self,
        start: VirtAddr,
        bytes: u64,
        mut work: impl FnMut(&ReadGuard<'_, Areas>, &Area, PageRange) -> Result<VirtAddr, SpaceError>,
    ) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        let (mut next, mut is_covered) = (range.start(), in_space);
        while next < range.end() {
            let areas = self.areas.read(next);
            let end = areas.next().map_or(range.end(), |next| next.min(range.end()));
            let rest = pages(next, end);
            next = match areas.touching(rest).next() {
                None => {
                    is_covered = false;
                    end
                }
                Some(area) => {
                    let part = area.part_in(rest);
                    is_covered &= part.start() == next;
                    work(&areas, area, part)?
                }
            };
            relax();
        }
        if is_covered { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// Whether a child may have less than all areas, areas that are not locked, or guards in shared ones; or groups may
    /// be cut. The areas are locked for writing.
    #[inline(always)]
    pub(super) fn is_advised(&self) -> bool {
        self.hints.load(Ordering::Relaxed) != 0
    }

    /// Whether areas may be registered with a userfaultfd.
    #[inline(always)]
    pub(super) fn has_userfaultfds(&self) -> bool {
        self.hints.load(Ordering::Relaxed) & USERFAULTFDS != 0
    }

    /// Called before the first of its areas is registered.
    pub(super) fn note_userfaultfds(&self) {
        self.hints.fetch_or(USERFAULTFDS, Ordering::Relaxed);
    }

    /// Removes from `child`, which has copies of all areas and no pages yet, what is not for children, unlocks the
    /// rest, and copies the markers in shared areas: their pages are found in their objects. Groups that areas cut are
    /// unfolded.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the caller drops the child.
    #[cold]
    #[inline(never)]
    pub(super) fn advise_child(&self, cpu: &Cpu, areas: &Areas, child: &SpaceRef) -> Result<(), OutOfMemory> {
        let advice = self.hints.load(Ordering::Relaxed);
        if advice & GROUPS != 0 {
            self.unfold_at_borders(areas);
        }
        // Nothing of a child's is locked.
        child.hints.store(advice & !(LOCKED_AREAS | REGISTERS), Ordering::Relaxed);
        let mut childs = child.write_all_areas();
        childs.become_a_childs();
        if advice & USERFAULTFDS != 0 {
            self.register_childs(child, &mut childs)?;
        }
        drop(childs);
        if advice & (SHARED_GUARDS | USERFAULTFDS) == 0 {
            return Ok(());
        }
        let is_shared = |area: &&Area| area.is_shared() && !area.flags().has_any(AreaFlags::NOT_IN_CHILDREN);
        areas.walk(pages(USER_START, USER_END)).filter(is_shared).try_for_each(|area| {
            let is_protected = child.with_area(area.start(), |area| area.flags().has_any(AreaFlags::UFFD_WP));
            let rule = ChildMarkers { is_protected: is_protected == Some(true) };
            if advice & SHARED_GUARDS == 0 && !rule.is_protected {
                return Ok(());
            }
            let mut walk = self.page_tables().walk_cells(area.range());
            while let Some(met) = walk.next() {
                relax();
                match met {
                    CellsOrBlock::Cells(found) => self.copy_markers(cpu, child, &found, rule)?,
                    // No block has guards. The child has no block for the mark: each of its pages gets the marker.
                    CellsOrBlock::Block(at) if rule.is_protected => {
                        let part = area.part_in(pages(at, VirtAddr(at.0 | (BLOCK_SIZE - 1)) + 1));
                        child.ensure_table(cpu, at)?;
                        let Some(copies) = child.page_tables().cells(at, part.pages()) else { continue };
                        // Until the markers are there it stays so: a walk to the child's entries comes after it.
                        let copied = self.look_at_block(at, |seen| {
                            if seen.descriptor().is_uffd_wp_in_any_form() {
                                note_all_used(self.common.record(copies.table), bits_of(&copies));
                                self.mmu().fill(copies.cells, uffd_wp_marker(), 0);
                            }
                        });
                        walk.go_on(at, copied);
                    }
                    CellsOrBlock::Block(_) => {}
                }
            }
            Ok(())
        })
    }

    /// Copies the markers in `found`, and what is write-protected as markers, to the same place in `child`.
    fn copy_markers(
        &self,
        cpu: &Cpu,
        child: &Space,
        found: &TableCells<'_>,
        rule: ChildMarkers,
    ) -> Result<(), OutOfMemory> {
        let mmu = self.mmu();
        // None is made while the areas are locked for writing; a walk by a reverse map may leave one of an entry that is
        // copied as one.
        if found.cells.iter().all(|cell| rule.marker_of(mmu.load(cell)).is_empty()) {
            return Ok(());
        }
        child.ensure_table(cpu, found.start)?;
        let Some(copies) = child.page_tables().cells(found.start, found.cells.len()) else { return Ok(()) };
        // As for other entries: a walk by a reverse map that has been here finds the same there, and needs no lock for
        // it.
        let _locked = self.lock_table(found.table);
        note_all_used(self.common.record(copies.table), bits_of(&copies));
        for (cell, copy) in found.cells.iter().zip(copies.cells) {
            mmu.store(copy, marker(rule.marker_of(mmu.load(cell))));
        }
        Ok(())
    }
}

/// Which markers a child has for entries of a shared area, whose pages it finds in their object.
#[derive(Clone, Copy)]
struct ChildMarkers {
    /// Whether the child's area is registered for write-protection.
    is_protected: bool,
}

impl ChildMarkers {
    fn marker_of(self, entry: Descriptor) -> Markers {
        const NONE: Markers = Markers::UFFD_WP.without(Markers::UFFD_WP);
        let of_page = if let EntryState::Marker(markers) = state(entry) { markers } else { NONE };
        let others = of_page.without(Markers::UFFD_WP);
        // As for entries that are copied: no child has the mark of a page that is out of reach.
        let is_marked = self.is_protected && others.is_empty() && entry.is_uffd_wp_in_any_form();
        if is_marked { Markers::UFFD_WP } else { others }
    }
}

/// Of a call that is no advice: too many areas are too little memory.
pub(super) fn too_little_memory(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Final(SpaceError::NoRecords) => SpaceError::NoMemory.into(),
        other => other,
    }
}

/// Of a call that only gives advice, with too many areas.
fn no_records(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::ByPart => Refusal::ByPart,
        Refusal::Final(_) => Refusal::Final(SpaceError::NoRecords),
    }
}
