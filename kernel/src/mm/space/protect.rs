//! `mprotect`: changes the protection of areas, and of every entry in them.
//!
//! Where pages become writable, unshared ones become writable at once: the next store takes no fault. Shared ones and
//! the page of zeros stay read-only until a fault copies them.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Attributes, Descriptor, Protection, bits};
use granule_arch::patched_branch;
use granule_pgtable::{CellsOrBlock, Mmu, PageRange, Stores, Survey, Tables, Tlb};

use super::address_space::Space;
use super::area::pools::Spares;
use super::area::tree::{Areas, Held};
use super::area::{Area, AreaFlags};
use super::cells::{EntryCell, TableCells};
use super::code::{is_checked, needs_frame};
use super::entry::{EntryState, is_settled, read_only_attributes, replace, rest_of_stale, state, unwritable};
use super::error::{Refusal, SpaceError};
use super::gather::StaleRange;
use super::group::leaf_at;
use super::limits::SpaceLimits;
use super::range::{clamped_range, pages, user_range};
use crate::lab;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::tag_storage::TagStorage;
use crate::platform::features::branch;
use crate::sched::{WriteGuard, relax};
use crate::smp::{Cpu, this_cpu};

/// The new permissions of a range.
#[derive(Clone, Copy)]
pub(super) struct Allowed {
    protection: Protection,
    /// Of their area.
    flags: AreaFlags,
}

impl Allowed {
    #[inline(always)]
    pub(super) fn is_writable(self) -> bool {
        self.protection.contains(Protection::WRITE)
    }

    /// Whether all see the stores to its pages, of which none has to be announced: those to registers are, by a fault.
    #[inline(always)]
    pub(super) fn has_one_copy(self) -> bool {
        self.flags.has_any(AreaFlags::SHARED) && !self.flags.has_any(AreaFlags::REGISTERS)
    }

    /// The attributes of a page that others use too.
    #[inline(always)]
    pub(super) fn for_sharers(self) -> Attributes {
        self.flags.attributes(read_only_attributes(self.protection))
    }
}

impl Space {
    /// Changes the protection of the `bytes` bytes from `start` on.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's), [`SpaceError::NoMemory`] (there is no memory to cut
    /// areas; nothing was changed), [`SpaceError::NoMemory`] (a part is not mapped; as on Linux everything before the
    /// first hole was changed), [`SpaceError::NotPermitted`] (a sealed area; the same), [`SpaceError::NotAllowed`] (a file that may not be written; the same. Or execution alone,
    /// in a space with registers of a device; nothing was changed).
    pub fn mprotect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), SpaceError> {
        self.mprotect_within(start, bytes, protection, || SpaceLimits::NONE)
    }

    /// As [`Self::mprotect`], for a program that has `limits`, which are read where a change depends on them.
    ///
    /// # Errors
    /// As for [`Self::mprotect`]; [`SpaceError::NoMemory`] also at the first area that would exceed the limits of data,
    /// or all memory.
    pub fn mprotect_within(
        &self,
        start: VirtAddr,
        bytes: u64,
        protection: Protection,
        limits: impl Fn() -> SpaceLimits,
    ) -> Result<(), SpaceError> {
        let Some(range) = user_range(start, bytes) else {
            return self.mprotect_finish(start, bytes, protection, limits);
        };
        let is_written = protection.contains(Protection::WRITE);
        let is_limited = || limits().data != u64::MAX || range.end() - range.start() > self.memory();
        let mut areas = self.write_areas(range);
        // Limits apply only to what becomes writable, and registers only forbid what is neither written nor read.
        let becomes_written = |area: &Held| is_written && !area.protection().contains(Protection::WRITE);
        let is_within = |area: &Held| {
            if is_written {
                !becomes_written(area) || areas.is_whole() && !is_limited()
            } else {
                protection.accesses() != Protection::EXECUTE
            }
        };
        let is_simple =
            |area: &Held| area.cuts(range) == 0 && !area.is_sealed() && area.may_have(protection) && is_within(area);
        let is_simple = |area: &Held| !patched_branch!(branch::BREAK_CODE) && is_simple(area);
        let is_denied = |area: &Held| {
            protection.contains(Protection::EXECUTE) && self.settings().deny(area.protection(), protection)
        };
        let is_simple = |area: &Held| is_simple(area) && !is_denied(area);
        let Some(area) = areas.holding(range).filter(is_simple) else {
            return self.mprotect_slow(areas, range, protection, &limits(), is_written && is_limited());
        };
        let protection = area.changed_to(protection);
        if area.protection() != protection {
            let becomes_written = becomes_written(&area);
            self.protect_pages(range, &area, protection);
            areas.protect(&area, protection);
            areas.merge(area);
            // The limits are not known otherwise.
            if becomes_written && areas.turns.note(this_cpu().id, range.start()) {
                self.divide(&mut areas, &limits());
            }
        }
        Ok(())
    }

    /// As [`Self::mprotect_within`], where areas are cut, several, or in parts, a limit may be met, or code has to be
    /// broken.
    #[inline(never)]
    fn mprotect_slow<'a>(
        &'a self,
        areas: WriteGuard<'a, Areas>,
        range: PageRange,
        protection: Protection,
        limits: &SpaceLimits,
        is_limited: bool,
    ) -> Result<(), SpaceError> {
        let cpu = this_cpu();
        self.change_areas(areas, |areas| {
            // Each time: where a part has not the room the areas were given up, and registers may be mapped now.
            if !self.may_have(protection) {
                return Err(SpaceError::NotAllowed.into());
            }
            let is_written = protection.contains(Protection::WRITE);
            if is_written && !areas.may_add_data(range.end() - range.start(), limits) {
                return Err(Refusal::ByPart);
            }
            let may_have_it = |area: &Held| {
                !is_limited
                    && !area.is_sealed()
                    && area.may_have(protection)
                    && !self.settings().deny(area.protection(), protection)
            };
            let Some(area) = areas.holding(range).filter(may_have_it) else {
                return self.mprotect_areas(cpu, areas, range, protection, limits);
            };
            let protection = area.changed_to(protection);
            if area.protection() == protection {
                return Ok(());
            }
            self.protect_part(cpu, areas, area, range, protection)?;
            if is_written && areas.turns.note(cpu.id, range.start()) {
                self.divide(areas, limits);
            }
            Ok(())
        })
        .map(drop)
    }

    /// Changes the protection of `range`, which `area` holds.
    #[inline(never)]
    fn protect_part(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        area: Held,
        range: PageRange,
        protection: Protection,
    ) -> Result<(), Refusal> {
        let cuts = area.cuts(range);
        areas.room_for_cuts(cuts)?;
        let mut spares = Spares::take(cpu, &self.common.areas, cuts, area.object().is_some())?;
        self.protect_cut(areas, area, range, protection, &mut spares);
        Ok(())
    }

    /// Makes `range`, which `area` holds, an area of its own with `protection`.
    #[inline(always)]
    fn protect_cut(
        &self,
        areas: &mut Areas,
        area: Held,
        range: PageRange,
        protection: Protection,
        spares: &mut Spares,
    ) {
        if patched_branch!(branch::BREAK_CODE) {
            self.break_code(range, &area, protection);
        }
        self.protect_pages(range, &area, protection);
        let area = areas.cut_out(area, range, spares);
        areas.protect(&area, protection);
        areas.merge(area);
    }

    /// As [`Self::mprotect_within`], for a range without bytes, or beyond the space: the addresses beyond are a hole.
    #[cold]
    fn mprotect_finish(
        &self,
        start: VirtAddr,
        bytes: u64,
        protection: Protection,
        limits: impl Fn() -> SpaceLimits,
    ) -> Result<(), SpaceError> {
        let Some((range, _)) = clamped_range(start, bytes, SpaceError::NoMemory)? else { return Ok(()) };
        self.mprotect_within(start, range.end() - start, protection, limits)?;
        Err(SpaceError::NoMemory)
    }

    /// Changes the protection of several areas, or under a limit: up to the first hole, or the first area refused.
    #[inline(never)]
    fn mprotect_areas(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        whole: PageRange,
        protection: Protection,
        limits: &SpaceLimits,
    ) -> Result<(), Refusal> {
        let (mut until, mut refused) = (areas.covered_until(whole), SpaceError::NoMemory);
        if whole.start() < until {
            let covered = pages(whole.start(), until);
            (until, refused) = areas.may_protect_until(covered, protection, limits, self);
        }
        if until == whole.start() {
            return Err(refused.into());
        }
        let range = pages(whole.start(), until);
        // Only the areas at the two ends can be cut.
        let is_cut = |at: VirtAddr, cuts: fn(&Area, PageRange) -> bool| {
            areas.find(at).is_some_and(|area| area.protection() != area.changed_to(protection) && cuts(area, range))
        };
        let cuts = usize::from(is_cut(range.start(), |area, range| area.start() < range.start()))
            + usize::from(is_cut(range.last(), |area, range| range.end() < area.end()));
        areas.room_for_cuts(cuts)?;
        let of_object = |at| areas.find(at).is_some_and(|area| area.object().is_some());
        let have_objects = of_object(range.start()) || of_object(range.last());
        let mut spares = Spares::take(cpu, &self.common.areas, cuts, have_objects)?;
        let mut next = range.start();
        while next < until {
            let area = areas.first_touching(pages(next, until)).ok_or(SpaceError::NoMemory)?;
            let part = area.part_in(range);
            next = part.end();
            let protection = area.changed_to(protection);
            if area.protection() != protection {
                self.protect_cut(areas, area, part, protection, &mut spares);
            }
            // Also after an area that has the protection: there may be any number of them.
            relax();
        }
        if range == whole { Ok(()) } else { Err(refused.into()) }
    }

    /// Changes the entries of `range`, which lies in `area`, to `protection`, and invalidates and notifies. The areas are
    /// locked for writing.
    #[inline]
    fn protect_pages(&self, range: PageRange, area: &Area, protection: Protection) {
        let allowed = Allowed { protection, flags: area.flags() };
        let _change = self.notifiers.start(Range::new(Event::ProtectionVma, range.start(), range.end()));
        let (mut stale, mut above) = (StaleRange::NONE, false);
        let mut walk = self.page_tables().walk_cells(range);
        while let Some(met) = walk.next() {
            let found = match met {
                CellsOrBlock::Cells(found) => found,
                CellsOrBlock::Block(at) => {
                    let (visited, is_stale) = self.protect_block(range, at, allowed);
                    if is_stale {
                        stale.note(at, at + BLOCK_SIZE);
                        above = true;
                    }
                    walk.go_on(at, visited);
                    continue;
                }
            };
            if found.start > range.start() {
                relax();
            }
            let _locked = self.lock_table(found.table);
            stale = self.protect_cells(&found, allowed, stale);
        }
        if let Some(changed) = stale.invalidation(above.then_some(Tables::Kept)) {
            self.tlb().invalidate(self.mmu(), core::iter::once(changed));
        }
    }

    /// Makes the entries of code in `range` invalid, completely, before they become those of data: on CPUs that would
    /// misreport aborts on it ([`crate::platform::errata`]). A concurrent fault waits for the lock of the areas.
    #[cold]
    #[inline(never)]
    fn break_code(&self, range: PageRange, area: &Area, protection: Protection) {
        let accesses = protection.accesses();
        let becomes_data = area.protection().contains(Protection::EXECUTE) && !accesses.contains(Protection::EXECUTE);
        if becomes_data && !protection.is_none() {
            // Tagged memory stays so.
            self.protect_pages(range, area, protection.common(Protection::TAGGED));
        }
    }

    /// Changes entries of one table, whose lock is held; returns those that the caller invalidates.
    #[inline(always)]
    fn protect_cells(&self, found: &TableCells<'_>, allowed: Allowed, mut stale: StaleRange) -> StaleRange {
        let survey = self.mmu().survey(found.cells);
        // Nearly always they differ in their addresses only.
        let alike = survey.common(!bits::ADDRESS).map(Descriptor).filter(|&from| is_alike(from));
        let Some(from) = alike else { return self.protect_each(found, allowed, stale) };
        let to = from.modified(allowed.for_sharers());
        if needs_frame(to) && self.missing_tag_storage(found, survey, from, to) {
            self.mmu().update_run(found.cells, from.0 ^ to.read_only_fault_on_access().0);
        } else if needs_frame(to) && self.prepare_all(found, from, to, allowed) {
            // Changed one by one.
        } else if allowed.is_writable() && !allowed.flags.has_any(AreaFlags::SHARED) {
            self.flip_own(found, from, [to, may_be_written(to)]);
        } else {
            let to = if allowed.is_writable() { may_be_written(to) } else { to };
            if from == to {
                return stale;
            }
            self.mmu().update_run(found.cells, from.0 ^ to.0);
        }
        if allowed.flags.has_any(AreaFlags::BLOCKS) {
            self.fold(*found);
        }
        if from.is_valid() {
            stale.note(found.start, found.address(found.cells.len()));
        }
        stale
    }

    /// As [`Self::protect_cells`], where entries differ, or some are empty.
    #[cold]
    #[inline(never)]
    fn protect_each(&self, found: &TableCells<'_>, allowed: Allowed, mut stale: StaleRange) -> StaleRange {
        let mmu = self.mmu();
        self.unfold_ends(found);
        for (index, cell) in found.cells.iter().enumerate() {
            let old = mmu.load(cell);
            match state(old) {
                EntryState::Page | EntryState::Inaccessible => {}
                EntryState::Stale => {
                    // A TLB that has the page still permits what it did.
                    mmu.store(cell, rest_of_stale(old));
                    stale.note(found.address(index), found.address(index + 1));
                    continue;
                }
                EntryState::Empty | EntryState::Marker(_) | EntryState::Damaged => continue,
                EntryState::Migration => {
                    if !allowed.is_writable() {
                        mmu.store(cell, unwritable(old, true));
                    }
                    continue;
                }
            }
            let Some(cells) = leaf_at(found, index, old) else { continue };
            if self.protect_leaf(cells, old, cells.len(), allowed) == Some(true) {
                stale.note(found.address(index), found.address(index + cells.len()));
            }
        }
        if allowed.flags.has_any(AreaFlags::BLOCKS) {
            self.fold(*found);
        }
        stale
    }

    /// Changes the protection of a page, a group or a block of `frames` frames, whose entries are `cells`, the first of
    /// them `first`; returns whether a TLB may have what it was, or `None`, with nothing changed, for a block that has to
    /// be split. The table's lock is held.
    #[inline(always)]
    pub(super) fn protect_leaf(
        &self,
        cells: &[EntryCell],
        first: Descriptor,
        frames: usize,
        allowed: Allowed,
    ) -> Option<bool> {
        let mmu = self.mmu();
        let is_own = || !first.is_special() && self.common.folio(first.address(), frames).is_sole();
        let own = allowed.is_writable() && (allowed.has_one_copy() || is_own());
        let (flags, attributes) = (self.flags(cells), allowed.for_sharers());
        let changed = |entry: Descriptor| {
            let entry = flags.added(entry).modified(attributes);
            if own { may_be_written(entry) } else { entry }
        };
        // As a whole: if one lacks storage for its tags, all wait.
        let mut waits = false;
        if needs_frame(Descriptor(attributes.bits())) {
            for cell in cells {
                let new = changed(mmu.load(cell));
                waits |= self.prepared_leaf(new, frames)? != new;
            }
        }
        let change = |entry| if waits { changed(entry).fault_on_access() } else { changed(entry) };
        let mut was_valid = false;
        for cell in cells {
            let old = mmu.load(cell);
            let new = change(old);
            // Most entries change at the first attempt.
            let change = |entry| if entry == old { new } else { change(entry) };
            was_valid |= new != old && replace(mmu, cell, old, change).is_valid();
        }
        Some(was_valid)
    }

    /// Changes entries that are alike: to `to[1]` where the frame is not shared, to `to[0]` where it is.
    #[inline(always)]
    pub(super) fn flip_own(&self, found: &TableCells<'_>, from: Descriptor, to: [Descriptor; 2]) {
        let mmu = self.mmu();
        let flips = to.map(|to| from.0 ^ to.0);
        let records = self.common.records();
        for cell in found.cells {
            let entry = mmu.load(cell);
            let own = records.of(entry.address()).references() == 1;
            mmu.store(cell, Descriptor(entry.0 ^ flips[usize::from(own)]));
        }
    }

    /// Whether `to` checks tags, `from` does not, and none of the frames has storage for them, so that all entries wait
    /// for it.
    #[inline(always)]
    fn missing_tag_storage(&self, found: &TableCells<'_>, survey: Survey, from: Descriptor, to: Descriptor) -> bool {
        let may_wait = is_checked(to) && !to.is_user_executable();
        if !may_wait || is_checked(from) || lab::is_on!(RESERVE_AT_MPROTECT) {
            return false;
        }
        // No frame is below what all addresses have in common, or above what they have together.
        let [lowest, highest] = [survey.all, survey.any].map(|bits| Descriptor(bits).address());
        let has_all = |storage: &TagStorage| storage.coverage().has_all(lowest, highest);
        if !self.common.frames.tag_storage().is_some_and(has_all) {
            return false;
        }
        let (mmu, records) = (self.mmu(), self.common.records());
        let has = |cell: &EntryCell| records.of(mmu.load(cell).address()).may_have_tag_storage();
        // Nearly always none has: no branch for each, and four a turn.
        let (fours, rest) = found.cells.as_chunks::<4>();
        let mut some = rest.iter().fold(false, |some, cell| some | has(cell));
        for [first, second, third, fourth] in fours {
            some |= has(first) | has(second) | has(third) | has(fourth);
        }
        !some
    }

    /// Prepares the frames of entries that are alike, and to change from what `from` is to what `to` is; returns whether
    /// it has changed the entries too, because some may have to wait for tag storage.
    #[cold]
    fn prepare_all(&self, found: &TableCells<'_>, from: Descriptor, to: Descriptor, allowed: Allowed) -> bool {
        let becomes_code = to.is_user_executable() && !from.is_user_executable();
        let becomes_checked = is_checked(to) && !is_checked(from);
        let flips = from.0 ^ to.0;
        if becomes_checked && let Some(storage) = self.common.frames.tag_storage() {
            self.wait_for_reservation(found, from, [to, may_be_written(to)], allowed, storage);
            return true;
        }
        if becomes_code || becomes_checked {
            for cell in found.cells {
                let _ = self.prepared(Descriptor(self.mmu().load(cell).0 ^ flips));
            }
        }
        false
    }

    /// Changes entries that are alike to check tags: to `to[1]` where the frame is not shared, or all see the stores, and
    /// to `to[0]` where it is; those whose tags have no storage wait. Nothing is reserved, and no tag written, but those
    /// of frames that need no storage, or have some and no tags.
    #[inline(never)]
    fn wait_for_reservation(
        &self,
        found: &TableCells<'_>,
        from: Descriptor,
        to: [Descriptor; 2],
        allowed: Allowed,
        storage: &TagStorage,
    ) {
        let (mmu, records, coverage) = (self.mmu(), self.common.records(), storage.coverage());
        let waiting = from.0 ^ to[0].read_only_fault_on_access().0;
        for cell in found.cells {
            let entry = mmu.load(cell);
            let record = records.of(entry.address());
            if lab::is_on!(RESERVE_AT_MPROTECT) {
                // An entry whose storage cannot be reserved at once still waits.
                _ = storage.try_reserve(entry.address(), record);
            }
            if !record.has_tag_storage() && coverage.has(entry.address()) && !to[0].is_user_executable() {
                mmu.store(cell, Descriptor(entry.0 ^ waiting));
                continue;
            }
            let own = allowed.is_writable() && (allowed.has_one_copy() || record.references() == 1);
            let new = Descriptor(entry.0 ^ from.0 ^ to[usize::from(own)].0);
            mmu.store(cell, self.prepared(new));
        }
    }
}

/// Whether entries with these bits may be changed together: settled pages with counted frames, in no group.
pub(super) const fn is_alike(entry: Descriptor) -> bool {
    entry.is_present() && is_settled(entry) && !entry.is_special() && !entry.is_contiguous()
}

/// `entry`, writable. With a userfaultfd mark it stays read-only, so that the first store faults.
#[inline(always)]
pub(super) const fn may_be_written(entry: Descriptor) -> Descriptor {
    if entry.is_uffd_wp() { entry } else { entry.writable() }
}
