//! Write-protection: marks and markers of a range are set, or cleared.
//!
//! The areas are locked for reading, so faults go on. Under the lock of each table its entries are changed and what
//! CPUs and devices may have of them is invalidated, before the lock is released: a store that comes after the call
//! faults, and so does one whose fault was under way ([`super`]). An entry that is not protected any more permits
//! stores at once where no fault would copy its page.
//!
//! | | a leaf | empty | migration entry | marker | guard, poison |
//! |---|---|---|---|---|---|
//! | set | the mark, read-only | a marker, where the area has them | the mark | stays | stays; marked by a scan |
//! | clear | no mark | – | no mark | empty | stays, with its mark |

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Markers, NonPresent, Protection, bits};
use granule_pgtable::{Mmu, PageRange, Stores, Visited};

use super::super::address_space::Space;
use super::super::area::{Area, AreaFlags};
use super::super::cells::{EntryCell, TableCells};
use super::super::entry::{EntryState, is_out_of_reach, replace, state, uffd_wp_marker, unprotected};
use super::super::gather::StaleRange;
use super::super::group::leaf_at;
use super::super::protect::is_alike;
use super::super::range::{is_of_few, pages};
use super::super::table_lock::TableGuard;
use super::super::used::{bits_of, note_all_used};
use super::{Features, Mark, UserfaultError, Userfaultfd};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::relax;
use crate::smp::Cpu;

/// The change of marks of one area.
#[derive(Clone, Copy)]
pub(in super::super) struct Marking<'a> {
    area: &'a Area,
    pub(in super::super) mark: Mark,
    /// Whether empty entries get markers.
    installs: bool,
    /// Whether guards and poison are marked too.
    guards: bool,
}

impl Userfaultfd {
    /// Write-protects the `bytes` bytes from `start` on, or ends that. Wakes nothing. `own` is the space of the
    /// caller, if it has one at hand.
    ///
    /// # Errors
    /// [`UserfaultError::Invalid`] (no range of pages), [`UserfaultError::Changing`], [`UserfaultError::NotRegistered`] (an
    /// area that is not registered for write-protection, or none; as on Linux the areas before it have changed),
    /// [`UserfaultError::OutOfMemory`] (no memory for tables; the same), [`UserfaultError::Ended`].
    pub fn write_protect(
        &self,
        cpu: &Cpu,
        own: Option<&Space>,
        start: VirtAddr,
        bytes: u64,
        mark: Mark,
    ) -> Result<(), UserfaultError> {
        let range = super::range_of_call(start, bytes).ok_or(UserfaultError::Invalid)?;
        let space = self.living_or_own(own)?;
        if is_of_few(range) && self.mark_few(cpu, &space, range, mark)? {
            return Ok(());
        }
        let (mut next, mut done) = (range.start(), Err(UserfaultError::NotRegistered));
        while next < range.end() {
            let areas = space.areas.read(next);
            let end = super::part_end(&areas, range);
            let rest = pages(next, end);
            next = match areas.find(next).or_else(|| areas.touching(rest).next()) {
                None => end,
                Some(area) => {
                    let installs = self.installs(area, mark)?;
                    let part = area.part_in(rest);
                    space.mark_area(cpu, area, part, mark, installs)?;
                    done = Ok(());
                    part.end()
                }
            };
        }
        done
    }

    /// Marks the pages of `range`, which is of few, where they have one area and a table: nothing sleeps then, and nothing
    /// that CPUs share is written for the areas' lock. Returns whether they have.
    #[inline(always)]
    fn mark_few(&self, cpu: &Cpu, space: &Space, range: PageRange, mark: Mark) -> Result<bool, UserfaultError> {
        let areas = space.areas_briefly(cpu, range.start());
        let Some(area) = areas.find(range.start()).filter(|area| range.end() <= area.end()) else { return Ok(false) };
        let Some(found) = space.page_tables().cells(range.start(), range.pages()) else { return Ok(false) };
        let installs = self.installs(area, mark)?;
        let change = Range::new(Event::ProtectionPage, range.start(), range.end());
        // Where a subscriber has just joined, the areas are locked by the count.
        let Some(_change) = space.notifiers.try_start(areas.may_sleep(), change) else { return Ok(false) };
        space.mark_cells(&found, Marking { area, mark, installs, guards: false });
        Ok(true)
    }

    /// Whether `mark` gives empty entries of `area` markers.
    ///
    /// # Errors
    /// [`UserfaultError::Changing`], [`UserfaultError::NotRegistered`].
    #[inline(always)]
    fn installs(&self, area: &Area, mark: Mark) -> Result<bool, UserfaultError> {
        self.check_unchanging()?;
        if !area.flags().has_any(AreaFlags::UFFD_WP) {
            return Err(UserfaultError::NotRegistered);
        }
        let has_markers = area.object().is_some() || self.features().has(Features::WP_UNPOPULATED);
        Ok(mark == Mark::Set && has_markers)
    }
}

impl Space {
    /// Marks the pages of `range`, all of `area`, which stays as it is; `installs` has empty entries get markers.
    ///
    /// # Errors
    /// [`OutOfMemory`], only where it `installs`; some are marked.
    pub(super) fn mark_area(
        &self,
        cpu: &Cpu,
        area: &Area,
        range: PageRange,
        mark: Mark,
        installs: bool,
    ) -> Result<(), OutOfMemory> {
        let _change = self.notifiers.start(Range::new(Event::ProtectionPage, range.start(), range.end()));
        let marking = Marking { area, mark, installs, guards: false };
        if !installs {
            let mut walk = self.page_tables().walk_cells(range);
            while let Some(found) = walk.next_cells(|at| {
                relax();
                self.mark_block(cpu, range, at, marking)
            }) {
                self.mark_cells(&found, marking);
                relax();
            }
            return Ok(());
        }
        let mut next = range.start();
        while next < range.end() {
            let until = VirtAddr(next.0 | (BLOCK_SIZE - 1)).min(range.last()) + 1;
            let chunk = pages(next, until);
            let done = match self.page_tables().cells(next, chunk.pages()) {
                Some(found) => {
                    self.mark_cells(&found, marking);
                    Visited::Done
                }
                None if self.is_block_or_marker(next) => self.mark_block(cpu, range, next, marking),
                None => {
                    self.ensure_cells(cpu, chunk)?;
                    Visited::Again
                }
            };
            if done == Visited::Done {
                next = until;
            }
            relax();
        }
        Ok(())
    }

    /// Marks entries of one table, and completes the invalidation.
    pub(in super::super) fn mark_cells(&self, found: &TableCells<'_>, marking: Marking<'_>) {
        let locked = self.lock_table(found.table);
        let stale = self.mark_locked(&locked, found, marking);
        self.flush_marked(stale);
    }

    /// Completes the invalidation of entries that were marked. Their table is locked still.
    #[inline(always)]
    pub(in super::super) fn flush_marked(&self, stale: StaleRange) {
        if let Some(stale) = stale.invalidation(None) {
            self.tlb().flush_freed(self.mmu(), &stale);
        }
    }

    /// Marks entries of one table, which is `locked`; returns what TLBs may have of them.
    #[inline(always)]
    pub(in super::super) fn mark_locked(
        &self,
        locked: &TableGuard<'_>,
        found: &TableCells<'_>,
        marking: Marking<'_>,
    ) -> StaleRange {
        let mmu = self.mmu();
        let survey = mmu.survey(found.cells);
        if survey.any == Descriptor::EMPTY.0 {
            if marking.installs {
                note_all_used(self.common.record(found.table), bits_of(found));
                mmu.fill(found.cells, uffd_wp_marker(), 0);
            }
            return StaleRange::NONE;
        }
        // Nearly always they differ in their addresses only.
        let alike = survey.common(!bits::ADDRESS).map(Descriptor);
        match alike.filter(|&from| is_alike(from) && from.is_valid()) {
            Some(from) => self.mark_alike(found, from, marking),
            None => self.mark_each(locked, found, marking),
        }
    }

    /// Marks entries that are as `from` but for their addresses; returns what TLBs may have of them.
    #[inline(always)]
    fn mark_alike(&self, found: &TableCells<'_>, from: Descriptor, marking: Marking<'_>) -> StaleRange {
        let mut stale = StaleRange::NONE;
        if from.is_uffd_wp() == (marking.mark == Mark::Set) {
            return stale;
        }
        match marking.mark {
            Mark::Set => self.mmu().update_run(found.cells, from.0 ^ from.uffd_wp().0),
            Mark::Clear => {
                let to = from.without_uffd_wp();
                let to_own = if marking.permits_stores() { to.writable() } else { to };
                if marking.area.is_shared() || to == to_own {
                    self.mmu().update_run(found.cells, from.0 ^ to_own.0);
                } else {
                    self.flip_own(found, from, [to, to_own]);
                }
            }
        }
        stale.note(found.start, found.address(found.cells.len()));
        stale
    }

    /// As [`Self::mark_alike`], where entries differ, or some are empty.
    #[inline(never)]
    fn mark_each(&self, locked: &TableGuard<'_>, found: &TableCells<'_>, marking: Marking<'_>) -> StaleRange {
        let mmu = self.mmu();
        let mut stale = StaleRange::NONE;
        self.unfold_ends(found);
        for (index, cell) in found.cells.iter().enumerate() {
            let (old, page) = (mmu.load(cell), found.address(index));
            let is_page = matches!(state(old), EntryState::Page | EntryState::Inaccessible);
            if !is_page {
                let new = match marking.mark {
                    Mark::Set => marking.protected(old),
                    Mark::Clear if is_out_of_reach(old) => old,
                    Mark::Clear => unprotected(old),
                };
                if new != old {
                    locked.note_used(page);
                    mmu.store(cell, new);
                }
                continue;
            }
            let Some(cells) = leaf_at(found, index, old) else { continue };
            if self.mark_leaf(cells, old, cells.len(), marking) {
                stale.note(page, found.address(index + cells.len()));
            }
        }
        stale
    }

    /// Marks a page, a group or a block of `frames` frames, whose entries are `cells`, the first of them `first`; returns
    /// whether a TLB may have what it was. Without its mark it permits stores where no fault would copy it. The table's
    /// lock is held.
    #[inline(always)]
    pub(in super::super) fn mark_leaf(
        &self,
        cells: &[EntryCell],
        first: Descriptor,
        frames: usize,
        marking: Marking<'_>,
    ) -> bool {
        if first.is_uffd_wp() == (marking.mark == Mark::Set) {
            return false;
        }
        let mmu = self.mmu();
        let is_sole = || self.common.folio(first.address(), frames).is_sole();
        let is_own = || !first.is_special() && (marking.area.is_shared() || is_sole());
        let permits = marking.mark == Mark::Clear && first.is_valid() && marking.permits_stores() && is_own();
        let change = |entry: Descriptor| match marking.mark {
            Mark::Set => entry.uffd_wp(),
            Mark::Clear if permits => entry.without_uffd_wp().writable(),
            Mark::Clear => entry.without_uffd_wp(),
        };
        cells.iter().fold(false, |was_valid, cell| was_valid | replace(mmu, cell, mmu.load(cell), change).is_valid())
    }
}

impl<'a> Marking<'a> {
    /// A scan protects all that it has seen, also guards.
    pub(in super::super) const fn of_scan(area: &'a Area) -> Self {
        Self { area, mark: Mark::Set, installs: true, guards: true }
    }

    /// Whether the area permits stores.
    fn permits_stores(self) -> bool {
        self.area.protection().contains(Protection::WRITE)
    }

    /// The write-protected form of an entry without a page.
    fn protected(self, entry: Descriptor) -> Descriptor {
        let has_marker = |markers: Markers| markers.contains(Markers::UFFD_WP);
        match state(entry) {
            EntryState::Migration => entry.uffd_wp(),
            EntryState::Empty if self.installs => uffd_wp_marker(),
            EntryState::Marker(markers) if self.guards => Descriptor::from(markers.and(Markers::UFFD_WP)),
            EntryState::Stale if self.installs && !has_marker(stale_markers(entry)) => {
                Descriptor::from(stale_markers(entry).and(Markers::UFFD_WP))
            }
            _ => entry,
        }
    }
}

fn stale_markers(entry: Descriptor) -> Markers {
    match entry.non_present() {
        NonPresent::Marker(markers) => markers,
        _ => Markers::STALE,
    }
}
