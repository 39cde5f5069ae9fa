//! The memory calls: `mmap` and `munmap`, which add and remove areas, and the calls that advise or read.
//!
//! Refusals and their errors are Linux's. Each call allocates the nodes that it may need before it changes anything.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;

use super::address_space::Space;
use super::advise::Discard;
use super::area::pools::Spares;
use super::area::tree::{Areas, Held};
use super::area::{Area, AreaFlags, Mapping, SEARCH_START, Sharing};
use super::entry::{EntryState, state};
use super::error::{Refusal, SpaceError};
use super::gather::Gather;
use super::limits::{SpaceLimits, Terms, stack_guard};
use super::mlock::Locking;
use super::parts::Divisible;
use super::range::{STACK_GUARD, USER_END, USER_START, clamped_range, is_of_few, pages, user_range};
use super::shmem::{Object, Seals};
use super::userfault::events::PendingEvents;
use super::zap::ZapFlags;
use crate::mm::counted::Counted;
use crate::mm::notifier::{Event, Range};
use crate::mm::pool::PoolBox;
use crate::sched::{BriefGuard, WriteGuard, note_shortage, relax};
use crate::smp::{Cpu, this_cpu};

/// The address of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// There if it is free, else at an address that the kernel chooses; 0 for no hint.
    Hint(VirtAddr),
    /// Exactly there, replacing other mappings (`MAP_FIXED`).
    Fixed(VirtAddr),
    /// Exactly there, if it is free (`MAP_FIXED_NOREPLACE`).
    FixedNoReplace(VirtAddr),
    /// Exactly there, if it is free: the heap, which stays a page below the next mapping, and below a stack's guard.
    Heap(VirtAddr),
    /// Exactly there, if free: a stack, which grows down. The kernel chooses nothing in the [`STACK_GUARD`] below it.
    Stack(VirtAddr),
}

impl Placement {
    /// The address; 0 where the kernel chooses it.
    const fn start(self) -> VirtAddr {
        match self {
            Self::Hint(start)
            | Self::Fixed(start)
            | Self::FixedNoReplace(start)
            | Self::Heap(start)
            | Self::Stack(start) => start,
        }
    }
}

/// When pages are allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Populate {
    /// At the first access.
    OnDemand,
    /// At once, as far as there is memory (`MAP_POPULATE`).
    Now,
}

/// A request for `mmap`, of anonymous memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// Its address.
    pub placement: Placement,
    /// Its size; rounded up to pages.
    pub bytes: u64,
    /// The accesses that it permits.
    pub protection: Protection,
    /// Which processes see a store.
    pub sharing: Sharing,
    /// When pages are allocated.
    pub populate: Populate,
}

/// Pages that [`Space::madvise_remove`] takes out of their object.
pub(super) struct Removed {
    object: Counted<Object>,
    /// From which byte of it to which.
    of_object: (u64, u64),
    /// Where they are mapped.
    part: PageRange,
}

impl Space {
    /// Maps new memory; returns its address.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (no bytes, an address that is no page's), [`SpaceError::NoMemory`] (no addresses, or no
    /// memory for the records), [`SpaceError::InUse`] (another mapping is there), [`SpaceError::NotPermitted`] (too
    /// near to address 0, or over a sealed area). Nothing was changed.
    pub fn mmap(&self, cpu: &Cpu, request: &MapRequest) -> Result<VirtAddr, SpaceError> {
        self.mmap_within(cpu, request, &Terms::NONE, &|| false)
    }

    /// As [`Self::mmap`], for a program that has limits. [`Populate::Now`] ends early once `is_killed` returns true: a
    /// signal ends the program, which will not read the pages.
    ///
    /// # Errors
    /// As for [`Self::mmap`]; [`SpaceError::NoMemory`] also where the mapping would exceed the limits, or all memory.
    pub fn mmap_within(
        &self,
        cpu: &Cpu,
        request: &MapRequest,
        terms: &Terms<'_>,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<VirtAddr, SpaceError> {
        let bytes = rounded(request.bytes)?;
        let areas = self.areas_for(cpu, request.placement, bytes, &terms.limits);
        let events = Cell::new(None);
        let map = |areas: &mut Areas| {
            if self.minds_unmapping()
                && let Placement::Fixed(start) = request.placement
                && let Some(range) = user_range(start, bytes)
            {
                events.set(Some(self.events_of_unmapping(areas, range)?));
            }
            self.map(cpu, areas, request, bytes, terms)
        };
        let (mut areas, range) = self.change_areas(areas, map)?;
        let is_hot = areas.turns.note(cpu.id, range.start());
        if request.populate == Populate::Now {
            let areas = areas.downgrade();
            self.populate(cpu, &areas, range, is_killed);
        } else {
            if is_hot && request.placement.start().0 != 0 {
                self.divide(&mut areas, &terms.limits);
            }
            drop(areas);
        }
        if let Some(events) = events.into_inner() {
            events.send();
        }
        Ok(range.start())
    }

    /// The part of the areas for a mapping: of the addresses that are requested, or of those that this CPU has for its
    /// own.
    #[inline(always)]
    fn part_for(&self, cpu: &Cpu, placement: Placement, bytes: u64) -> WriteGuard<'_, Areas> {
        let start = placement.start().align_down(PAGE);
        if start.0 == 0 {
            return self.areas.write_for(cpu.id, SEARCH_START);
        }
        // A range that cannot be is refused by any part.
        self.write_areas(user_range(start, bytes).unwrap_or_else(|| pages(USER_START, USER_START + PAGE)))
    }

    /// As [`Self::part_for`], with an arena for a CPU that has none.
    #[inline(always)]
    fn areas_for(&self, cpu: &Cpu, placement: Placement, bytes: u64, limits: &SpaceLimits) -> WriteGuard<'_, Areas> {
        let areas = self.part_for(cpu, placement, bytes);
        let is_chosen = placement.start().align_down(PAGE).0 == 0;
        if is_chosen && areas.turns.is_contended(cpu.id) { self.own_arena(cpu, areas, limits) } else { areas }
    }

    /// Divides a part that CPUs change in turn, between where they work.
    #[cold]
    #[inline(never)]
    pub(super) fn divide(&self, areas: &mut Areas, limits: &SpaceLimits) {
        if self.users.load(Ordering::Relaxed) > 1
            && let Some(border) = areas.border()
        {
            areas.grant(limits);
            drop(self.split(areas, border));
        }
        areas.turns.cool();
    }

    /// Divides `areas` at `at`; the part above. One that cannot be allocated is no shortage of the call's.
    fn split(&self, areas: &mut Areas, at: VirtAddr) -> Option<WriteGuard<'_, Areas>> {
        let above = self.areas.split(areas, at, &self.common.parts);
        if above.is_none() {
            note_shortage(this_cpu(), 0);
        }
        above
    }

    /// A part in the largest gap of `areas`, for the mappings of this CPU; `areas` where there is none.
    #[cold]
    #[inline(never)]
    fn own_arena<'a>(
        &'a self,
        cpu: &Cpu,
        mut areas: WriteGuard<'a, Areas>,
        limits: &SpaceLimits,
    ) -> WriteGuard<'a, Areas> {
        areas.turns.cool();
        if self.users.load(Ordering::Relaxed) <= 1 {
            return areas;
        }
        let Some((start, end)) = areas.arena() else { return areas };
        areas.grant(limits);
        let mut split = |at| self.split(&mut areas, at);
        if end.is_some_and(|end| split(end).is_none()) {
            return areas;
        }
        let Some(arena) = split(start) else { return areas };
        self.areas.make_home(start, cpu.id);
        arena
    }

    /// The part of `mmap` before the pages are populated; returns them.
    #[inline(always)]
    fn map(
        &self,
        cpu: &Cpu,
        areas: &mut Areas,
        request: &MapRequest,
        bytes: u64,
        terms: &Terms<'_>,
    ) -> Result<PageRange, Refusal> {
        areas.room_for_mapping()?;
        let range = place(areas, request.placement, bytes)?;
        if !self.may_map(request.protection) {
            return Err(SpaceError::NotAllowed.into());
        }
        let guard = match request.placement {
            Placement::Stack(_) => stack_guard(bytes, terms.limits.stack),
            _ if terms.grows => STACK_GUARD,
            _ => 0,
        };
        let is_shared = request.sharing == Sharing::Shared;
        let is_written = request.protection.contains(Protection::WRITE) && !is_shared;
        let is_filled = is_written || is_shared && terms.file.is_none();
        if terms.commitment.is_within_memory() && is_filled && bytes > self.memory() {
            return Err(SpaceError::NoMemory.into());
        }
        // The guard of a stack is not divided from it.
        if !areas.may_add(range, is_written && guard == 0, &terms.limits) || guard != 0 && !areas.is_whole() {
            return Err(areas.refusal());
        }
        let replaced = areas.first_touching(range);
        let cut = replaced.as_ref().filter(|area| area.cuts(range) == 2);
        let (split, of_object) = (usize::from(cut.is_some()), cut.is_some_and(|area| area.object().is_some()));
        areas.room_for_cuts(split)?;
        let mapping = self.mapping(cpu, areas, request.sharing, bytes, terms)?;
        let mut spares = Spares::take(cpu, &self.common.areas, split + 1, of_object)?;
        if let Some(first) = replaced {
            self.replace(cpu, areas, range, first, &mut spares);
        }
        let mut area = Area::new(range, request.protection, mapping).guarded(guard).committed(terms.commitment);
        if area.object().is_some_and(Object::is_registers) {
            self.begin_registers(&mut area);
        } else if terms.locking != Locking::None && !area.is_droppable() {
            self.note_locking(terms.locking);
            area.add_flags(terms.locking.flags());
        }
        let area = areas.insert(spares.make(area));
        areas.merge(area);
        Ok(range)
    }

    /// The mapping of the file of its `terms`, or, where it is shared, of a new object; `None` for anonymous memory.
    #[inline(always)]
    fn mapping(
        &self,
        cpu: &Cpu,
        areas: &Areas,
        sharing: Sharing,
        bytes: u64,
        terms: &Terms<'_>,
    ) -> Result<Option<PoolBox<Mapping>>, Refusal> {
        if sharing == Sharing::Private && terms.file.is_none() {
            return Ok(None);
        }
        self.mapping_of_object(cpu, areas, sharing, bytes, terms).map(Some)
    }

    #[inline(never)]
    fn mapping_of_object(
        &self,
        cpu: &Cpu,
        areas: &Areas,
        sharing: Sharing,
        bytes: u64,
        terms: &Terms<'_>,
    ) -> Result<PoolBox<Mapping>, Refusal> {
        let (object, first_page, may_write) = match terms.file {
            Some(file) => {
                if file.object.is_registers() {
                    self.check_registers(areas)?;
                }
                (file.object.clone(), file.first_page, file.may_write)
            }
            None => (self.common.create_object(cpu, bytes, None, Seals(0))?, 0, true),
        };
        let mapping = Mapping::new(object, first_page, self, sharing, may_write).ok_or(SpaceError::NotPermitted)?;
        Ok(self.common.areas.new_mapping(mapping)?)
    }

    /// Fails as [`Self::mmap`] would for `placement` and `bytes`, and changes nothing. For a caller that refuses the
    /// request itself, after that.
    ///
    /// # Errors
    /// As for [`Self::mmap`].
    pub fn check_placement(&self, cpu: &Cpu, placement: Placement, bytes: u64) -> Result<(), SpaceError> {
        let bytes = rounded(bytes)?;
        self.change_areas(self.part_for(cpu, placement, bytes), |areas| {
            areas.room_for_mapping()?;
            place_elsewhere(areas, placement, bytes)
        })
        .map(drop)
    }

    /// Whether something is mapped in the `bytes` bytes from `start` on; `false` for a range that is not in the space.
    pub fn is_mapped_within(&self, start: VirtAddr, bytes: u64) -> bool {
        let mut is_mapped = false;
        if let Some(range) = user_range(start, bytes) {
            self.areas.for_each(range, &mut |areas, piece| {
                is_mapped = areas.touching(piece).next().is_some();
                !is_mapped
            });
        }
        is_mapped
    }

    /// Unmaps the `bytes` bytes from `start` on. Holes are skipped.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (no bytes, an address that is no page's, beyond the end of all addresses),
    /// [`SpaceError::NoMemory`] (an area would be cut in two, and there is no memory for the second),
    /// [`SpaceError::NotPermitted`] (a sealed area). Nothing was changed.
    #[inline(always)]
    pub fn munmap(&self, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Result<(), SpaceError> {
        let events = Cell::new(None);
        self.munmap_unannounced(cpu, start, bytes, &events)?;
        if let Some(events) = events.into_inner() {
            events.send();
        }
        Ok(())
    }

    /// As [`Self::munmap`], for a caller with a lock: it sends the `events` once it has released that.
    ///
    /// # Errors
    /// As [`Self::munmap`].
    #[inline(never)]
    pub fn munmap_unannounced(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        events: &Cell<Option<PendingEvents>>,
    ) -> Result<(), SpaceError> {
        let Some(range) = user_range(start, bytes) else { return self.munmap_to_the_end(cpu, start, bytes, events) };
        let (areas, ()) = self.change_areas(self.write_areas(range), |areas| {
            areas.turns.note(cpu.id, start);
            if areas.would_bare_guard(range) {
                return Err(Refusal::ByPart);
            }
            if self.minds_unmapping() {
                events.set(Some(self.events_of_unmapping(areas, range)?));
            }
            let Some(area) = areas.holding(range) else { return self.munmap_several(cpu, areas, range) };
            let split = usize::from(area.cuts(range) == 2);
            areas.room_for_cuts(split)?;
            let of_object = area.object().is_some();
            let mut spares = Spares::take(cpu, &self.common.areas, split, of_object)?;
            self.unmap(cpu, areas, range, of_object, |areas| drop(areas.remove_part(&area, range, &mut spares)));
            Ok(())
        })?;
        drop(areas);
        Ok(())
    }

    /// As [`Self::munmap_unannounced`], for bytes that are no range of the space: above its end nothing is mapped.
    #[cold]
    fn munmap_to_the_end(
        &self,
        cpu: &Cpu,
        start: VirtAddr,
        bytes: u64,
        events: &Cell<Option<PendingEvents>>,
    ) -> Result<(), SpaceError> {
        let end = bytes.checked_next_multiple_of(PAGE).and_then(|bytes| start.checked_add(bytes));
        let _range: PageRange = end.and_then(|end| PageRange::lower(start, end)).ok_or(SpaceError::Invalid)?;
        match USER_END.0.checked_sub(start.0) {
            Some(inside @ 1..) => self.munmap_unannounced(cpu, start, inside, events),
            _ => Ok(()),
        }
    }

    /// Unmaps `range` of the areas that have it, however many are there.
    #[inline(never)]
    pub(super) fn munmap_several(&self, cpu: &Cpu, areas: &mut Areas, range: PageRange) -> Result<(), Refusal> {
        let Some(first) = areas.first_touching(range) else { return Ok(()) };
        // Several areas are cut at one end each, which adds none.
        let split = usize::from(first.cuts(range) == 2);
        areas.room_for_cuts(split)?;
        let mut spares = Spares::take(cpu, &self.common.areas, split, first.object().is_some())?;
        self.replace(cpu, areas, range, first, &mut spares);
        Ok(())
    }

    /// Unmaps `range`, of which `first` is the first area. Takes a spare where that is cut in two.
    #[inline(never)]
    fn replace(&self, cpu: &Cpu, areas: &mut Areas, range: PageRange, first: Held, spares: &mut Spares) {
        let of_objects = areas.has_objects(range);
        self.unmap(cpu, areas, range, of_objects, |areas| areas.remove(first, range, spares));
    }

    /// The part of `munmap` that cannot fail; `remove` removes the areas.
    /// `of_objects`: whether areas of objects go.
    #[inline(always)]
    fn unmap(&self, cpu: &Cpu, areas: &mut Areas, range: PageRange, of_objects: bool, remove: impl FnOnce(&mut Areas)) {
        // Before the gather, so that it ends after it: the end event follows the freeing of the frames.
        let _change = self.notifiers.start(Range::new(Event::Unmap, range.start(), range.end()));
        let mut gather = Gather::without_faults(self, cpu, areas);
        self.zap(&mut gather, range, ZapFlags::UNMAP);
        if of_objects {
            // After the last area that may be written a seal promises that nothing is: not through a TLB either.
            gather.invalidate();
        }
        // An object that ends with its area drops its references to frames that are still in the gather, which then
        // frees them.
        remove(areas);
        self.free_tables(&mut gather, areas, range);
    }

    /// Discards the pages of the `bytes` bytes from `start` on: private pages read as zeros again (`MADV_DONTNEED`).
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range, locked pages), [`SpaceError::NotPermitted`]
    /// (a [sealed area](super::seal)), [`SpaceError::NoMemory`] (a part is not mapped; as on Linux the rest was discarded).
    pub fn madvise_dontneed(&self, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Result<(), SpaceError> {
        if self.minds_discards() {
            if self.keeps_pages() {
                return self.madvise_discard(cpu, start, bytes, Discard::Unlocked);
            }
            if let Some((range, _)) = clamped_range(start, bytes, SpaceError::Invalid)? {
                self.announce_remove(range);
            }
        }
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        let (areas, _change) = loop {
            let Some(areas) = self.areas_for_discard(cpu, range) else {
                return self.madvise_discard(cpu, start, bytes, Discard::Unlocked);
            };
            if !areas.is_whole() {
                drop(areas);
                return self.discard_in_parts(cpu, range, in_space);
            }
            let change = Range::new(Event::Clear, range.start(), range.end());
            // Where a subscriber has just joined, it is found the next time.
            if let Some(change) = self.notifiers.try_start(areas.may_sleep(), change) {
                break (areas, change);
            }
        };
        let mut gather = Gather::among_faults(self, cpu, &areas);
        self.zap(&mut gather, range, ZapFlags::DISCARD);
        if in_space && areas.covers(range) { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// The areas; `None` where one of them may be locked or sealed by now: under the lock that is no guess.
    #[inline(always)]
    fn areas_for_discard<'a>(&'a self, cpu: &'a Cpu, range: PageRange) -> Option<BriefGuard<'a, Areas>> {
        let page = range.start();
        let areas = if is_of_few(range) { self.areas_briefly(cpu, page) } else { self.areas.read_counted(page) };
        (!self.keeps_pages()).then_some(areas)
    }

    #[cold]
    #[inline(never)]
    fn discard_in_parts(&self, cpu: &Cpu, range: PageRange, in_space: bool) -> Result<(), SpaceError> {
        let (mut rest, mut is_covered) = (range, in_space);
        loop {
            match self.discard(cpu, rest)? {
                (is_all, None) => return if is_covered && is_all { Ok(()) } else { Err(SpaceError::NoMemory) },
                (_, Some(next)) => {
                    rest = pages(next, range.end());
                    // The page below a part is not mapped.
                    is_covered = false;
                }
            }
        }
    }

    /// Discards the pages of `range` in the part that owns its first one; returns whether it covers them, and where the
    /// next part begins, if that is in `range`.
    fn discard(&self, cpu: &Cpu, range: PageRange) -> Result<(bool, Option<VirtAddr>), SpaceError> {
        let page = range.start();
        let (areas, part, next, _change) = loop {
            let Some(areas) = self.areas_for_discard(cpu, range) else {
                let left = range.end() - page;
                return self.madvise_discard(cpu, page, left, Discard::Unlocked).map(|()| (true, None));
            };
            if !areas.owns(page) {
                drop(areas);
                self.areas.wait_for_index();
                continue;
            }
            let next = areas.next().filter(|&next| next < range.end());
            let part = next.map_or(range, |next| pages(page, next));
            // Where a subscriber has just joined, it is found the next time.
            if let Some(change) =
                self.notifiers.try_start(areas.may_sleep(), Range::new(Event::Clear, page, part.end()))
            {
                break (areas, part, next, change);
            }
        };
        let mut gather = Gather::among_faults(self, cpu, &areas);
        self.zap(&mut gather, part, ZapFlags::DISCARD);
        Ok((areas.covers(part), next))
    }

    /// Takes the pages of the `bytes` bytes from `start` on out of their objects, which must be shared and writable
    /// (`MADV_REMOVE`). Everyone reads them as zeros then.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's, a wrapping range, anonymous private memory),
    /// [`SpaceError::NotAllowed`] (not shared, or never writable), [`SpaceError::NotPermitted`] (a sealed file or area),
    /// [`SpaceError::NoMemoryFile`] (registers),
    /// [`SpaceError::NoMemory`] (a part is not mapped). As on Linux the pages before that are gone, and where a part is not
    /// mapped those after it too.
    pub fn madvise_remove(&self, cpu: &Cpu, start: VirtAddr, bytes: u64) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        let (mut next, mut is_mapped) = (range.start(), in_space);
        while next < range.end() {
            // The areas' lock is dropped before the object's is taken.
            let (removed, until) = self.find_removed(pages(next, range.end()))?;
            is_mapped &= removed.as_ref().is_some_and(|removed| removed.part.start() == next);
            if let Some(removed) = removed {
                self.remove(cpu, &removed)?;
            }
            next = until;
            relax();
        }
        if is_mapped { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// The first pages of `range` that are mapped, if it may lose them, and where the next may be. Errors are those of
    /// [`Self::madvise_remove`].
    pub(super) fn find_removed(&self, range: PageRange) -> Result<(Option<Removed>, VirtAddr), SpaceError> {
        let areas = self.areas.read(range.start());
        let end = areas.next().map_or(range.end(), |next| next.min(range.end()));
        let range = pages(range.start(), end);
        let Some(area) = areas.first_touching(range) else { return Ok((None, end)) };
        let part = area.part_in(range);
        area.check_discard()?;
        if area.flags().has_any(AreaFlags::LOCKED) {
            return Err(SpaceError::Invalid);
        }
        let object = area.counted_object().ok_or(SpaceError::Invalid)?;
        if !area.is_shared() || !area.may_write() {
            return Err(SpaceError::NotAllowed);
        }
        if area.is_of_device() {
            return Err(SpaceError::NoMemoryFile);
        }
        let of_object = (area.page_at(part.start()) * PAGE, area.page_at(part.end()) * PAGE);
        Ok((Some(Removed { object, of_object, part }), part.end()))
    }

    /// Takes the pages out of their object.
    pub(super) fn remove(&self, cpu: &Cpu, removed: &Removed) -> Result<(), SpaceError> {
        if self.has_userfaultfds() {
            self.announce_remove(removed.part);
        }
        let (first, end) = removed.of_object;
        removed.object.punch_hole(cpu, first, end).map_err(|_| SpaceError::NotPermitted)
    }

    /// Advice without effect here (`MADV_NORMAL`, `MADV_WILLNEED`, ...): fails unless the `bytes` bytes from `start` on
    /// are mapped.
    ///
    /// # Errors
    /// As [`Self::madvise_dontneed`].
    pub fn madvise_nothing(&self, start: VirtAddr, bytes: u64) -> Result<(), SpaceError> {
        let Some((range, in_space)) = clamped_range(start, bytes, SpaceError::Invalid)? else { return Ok(()) };
        if in_space && self.areas.read(range.start()).covers(range) { Ok(()) } else { Err(SpaceError::NoMemory) }
    }

    /// Which pages are present: stores 1 or 0 for each, from `start` on up to the first hole; returns how many.
    ///
    /// # Errors
    /// [`SpaceError::Invalid`] (an address that is no page's), [`SpaceError::NoMemory`] (nothing is mapped at `start`).
    pub fn mincore(&self, start: VirtAddr, present: &mut [u8]) -> Result<usize, SpaceError> {
        if !start.is_aligned(PAGE) {
            return Err(SpaceError::Invalid);
        }
        if present.is_empty() {
            return Ok(0);
        }
        let bytes = (present.len() as u64 * PAGE).min(USER_END.0.saturating_sub(start.0));
        let whole = user_range(start, bytes).ok_or(SpaceError::NoMemory)?;
        let areas = self.areas.read(start);
        let until = areas.covered_until(whole);
        if until == start {
            return Err(SpaceError::NoMemory);
        }
        let range = pages(start, until);
        let present = present.get_mut(..range.pages()).ok_or(SpaceError::NoMemory)?;
        present.fill(0);
        let index = |address: VirtAddr| ((address - range.start()) / PAGE) as usize;
        for area in areas.touching(range) {
            let part = area.part_in(range);
            note_pages_of_object(area, part, present.get_mut(index(part.start())..).unwrap_or_default());
        }
        self.look_at_each(range, |seen| {
            let is_present = match state(seen.descriptor()) {
                EntryState::Page | EntryState::Inaccessible | EntryState::Migration => 1,
                // The object has answered for these.
                EntryState::Empty | EntryState::Stale | EntryState::Marker(_) | EntryState::Damaged => 0,
            };
            present.iter_mut().skip(index(seen.at)).take(seen.pages).for_each(|place| *place |= is_present);
        });
        // Registers are in no memory, whatever is mapped.
        for part in areas.touching(range).filter(|area| area.is_of_device()).map(|area| area.part_in(range)) {
            present.iter_mut().skip(index(part.start())).take(part.pages()).for_each(|place| *place = 0);
        }
        Ok(range.pages())
    }
}

/// Stores in `present` which pages the object of an area has for `part` of it; nothing where it has no object.
fn note_pages_of_object(area: &Area, part: PageRange, present: &mut [u8]) {
    let Some(object) = area.object() else { return };
    for (place, page) in present.iter_mut().zip(area.page_at(part.start())..area.page_at(part.end())) {
        *place = object.has(page).into();
    }
}

/// `bytes` rounded up to pages.
fn rounded(bytes: u64) -> Result<u64, SpaceError> {
    if bytes == 0 {
        return Err(SpaceError::Invalid);
    }
    bytes.checked_next_multiple_of(PAGE).ok_or(SpaceError::NoMemory)
}

/// [`place`], for calls that are not hot.
#[inline(never)]
pub(super) fn place_elsewhere(areas: &Areas, placement: Placement, bytes: u64) -> Result<PageRange, Refusal> {
    place(areas, placement, bytes)
}

/// Chooses the addresses of a mapping of `bytes` bytes.
#[inline(always)]
fn place(areas: &Areas, placement: Placement, bytes: u64) -> Result<PageRange, Refusal> {
    let at = |start: VirtAddr| PageRange::new(start, bytes).ok().filter(|range| range.last() < USER_END);
    match placement {
        Placement::Hint(wish) => {
            let wished = wish.align_down(PAGE);
            let free = |range: &PageRange| {
                let is_guarded = |above: Held| above.guarded_start() < range.end();
                let is_free = areas.in_window(*range) && areas.touching(*range).next().is_none();
                is_free && !areas.first_from(range.end()).is_some_and(is_guarded)
            };
            if wished.0 != 0
                && let Some(range) = at(wished).filter(free)
            {
                return Ok(range);
            }
            areas.gap(bytes).and_then(at).ok_or_else(|| areas.refusal())
        }
        Placement::Fixed(start)
        | Placement::FixedNoReplace(start)
        | Placement::Heap(start)
        | Placement::Stack(start) => {
            // The end is checked first, as on Linux.
            if USER_END.0.checked_sub(bytes).is_none_or(|last| start.0 > last) {
                return Err(SpaceError::NoMemory.into());
            }
            let range = at(start).ok_or(SpaceError::Invalid)?;
            if start < USER_START {
                return Err(SpaceError::NotPermitted.into());
            }
            if !matches!(placement, Placement::Fixed(_)) && areas.touching(range).next().is_some() {
                return Err(SpaceError::InUse.into());
            }
            let is_near = |above: Held| above.guarded_start() < range.end() + PAGE;
            if matches!(placement, Placement::Heap(_)) && areas.first_from(range.end()).is_some_and(is_near) {
                return Err(SpaceError::InUse.into());
            }
            Ok(range)
        }
    }
}
