//! The pages of a space by what they are, and their write-protection in one step (Linux: `PAGEMAP_SCAN`,
//! `fs/proc/task_mmu.c`).
//!
//! A scan goes on in pieces. Each has the areas locked for reading, and looks at a bounded number of tables and blocks
//! of one area. Under the lock of a table pages are looked at and protected: a store comes before both, and is seen, or
//! after both, and ends the protection. One invalidation completes what was protected in a table, before the lock is
//! released. Regions are collected here, and stored by the caller, who has no lock.

use core::slice;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers, NonPresent};
use granule_pgtable::{CellsOrBlock, PageRange};
use thiserror::Error;

use super::address_space::Space;
use super::area::{Area, AreaFlags};
use super::block::{is_block, is_marker, page_of};
use super::cells::TableCells;
use super::entry::{EntryState, rest_of_stale, state};
use super::gather::StaleRange;
use super::look::LockedEntry;
use super::range::pages;
use super::userfault::protect::Marking;
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::sched::relax;
use crate::smp::Cpu;

/// A page of an area in which a store ends the protection of its page, and asks no pager.
pub const WP_ALLOWED: u64 = 1;
/// A page that is not write-protected.
pub const WRITTEN: u64 = 1 << 1;
/// The page is of a file or of shared memory.
pub const OF_FILE: u64 = 1 << 2;
/// A page is there.
pub const PRESENT: u64 = 1 << 3;
/// Something else than a page is remembered: a marker, or a frame on its way.
pub const SWAPPED: u64 = 1 << 4;
/// The page of zeros.
pub const ZEROS: u64 = 1 << 5;
/// The page is of a block.
pub const OF_BLOCK: u64 = 1 << 6;
/// A guard page.
pub const GUARD: u64 = 1 << 8;

/// Tables and blocks that are looked at under one hold of the areas' lock.
const AT_ONCE: usize = 64;

/// Regions that are collected before they are stored.
const REGIONS: usize = 64;

/// The pages that a scan finds, and what it does with them.
#[derive(Clone, Copy, Debug)]
pub struct ScanRequest {
    /// Categories that count where a page lacks them.
    pub inverted: u64,
    /// A page is in a region if it has all of these.
    pub required: u64,
    /// And one of these, if there are any.
    pub any: u64,
    /// Those that regions show.
    pub returned: u64,
    /// Protects the pages of regions that are [`WRITTEN`], where that is [allowed](WP_ALLOWED), and passes other areas.
    pub protects: bool,
    /// Fails at an area where it is not allowed.
    pub is_strict: bool,
    /// There are regions. If there are none, it protects all that has a table.
    pub has_regions: bool,
}

/// Pages that follow one another and have the same categories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First address.
    pub start: VirtAddr,
    /// The address after the last.
    pub end: VirtAddr,
    /// Those of [`ScanRequest::returned`] that they have.
    pub categories: u64,
}

/// Why a scan ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ScanError {
    /// An area in which protection is not allowed.
    #[error("an area is not registered for it")]
    NotPermitted,
    /// No memory for tables.
    #[error("out of memory")]
    OutOfMemory,
}

impl From<OutOfMemory> for ScanError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A scan under way.
#[derive(Debug)]
pub struct Scan {
    request: ScanRequest,
    /// Where it continues.
    next: VirtAddr,
    end: VirtAddr,
    /// Pages that it may find still.
    pages_left: u64,
    /// Regions that the caller has room for, with these.
    room: u64,
    regions: heapless::Vec<Region, REGIONS>,
    /// The page at [`Self::next`] has no room.
    is_full: bool,
}

impl Scan {
    /// A scan from `start`, the address of a page, to `end`, of at most so many pages and regions.
    pub const fn new(request: ScanRequest, start: VirtAddr, end: VirtAddr, most_pages: u64, room: u64) -> Self {
        let regions = heapless::Vec::new();
        Self { request, next: start, end, pages_left: most_pages, room, regions, is_full: false }
    }

    /// Where it continues, or has ended.
    pub const fn next(&self) -> VirtAddr {
        self.next
    }

    /// Whether nothing is left to look at.
    pub fn is_done(&self) -> bool {
        self.next >= self.end
    }

    /// Whether its [regions](Self::regions) have to be stored before it continues.
    pub const fn is_full(&self) -> bool {
        self.is_full
    }

    /// The regions since the last [`Self::stored`].
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The regions are stored; returns whether it may continue.
    pub fn stored(&mut self) -> bool {
        self.room -= self.regions.len() as u64;
        self.regions.clear();
        self.is_full = false;
        self.room != 0 && self.pages_left != 0
    }

    /// Whether pages of these categories are in regions.
    #[inline(always)]
    const fn wants(&self, categories: u64) -> bool {
        let (request, found) = (&self.request, categories ^ self.request.inverted);
        found & request.required == request.required && (request.any == 0 || found & request.any != 0)
    }

    /// The last region, if it ends at [`Self::next`] and has what regions show of `categories`.
    #[inline(always)]
    fn last(&mut self, categories: u64) -> Option<&mut Region> {
        let (next, shown) = (self.next, categories & self.request.returned);
        self.regions.last_mut().filter(|last| last.end == next && last.categories == shown)
    }

    /// Whether there is room for the page at [`Self::next`]; if there is none, it is [full](Self::is_full).
    #[inline(always)]
    fn has_room(&mut self, categories: u64) -> bool {
        let has_more = !self.regions.is_full() && (self.regions.len() as u64) < self.room;
        let fits = self.pages_left != 0 && (has_more || self.last(categories).is_some());
        let has_room = fits || !self.request.has_regions;
        self.is_full = !has_room;
        has_room
    }

    /// Adds the pages from [`Self::next`] to `end`, as many as there is room for, and passes these.
    #[inline(always)]
    fn add(&mut self, categories: u64, end: VirtAddr) {
        if !self.request.has_regions {
            self.next = end;
            return;
        }
        if !self.has_room(categories) {
            return;
        }
        let asked = (end - self.next) / PAGE;
        let found = asked.min(self.pages_left);
        let (start, end) = (self.next, self.next + found * PAGE);
        self.is_full = found < asked;
        match self.last(categories) {
            Some(last) => last.end = end,
            // There is room.
            None => _ = self.regions.push(Region { start, end, categories: categories & self.request.returned }),
        }
        self.pages_left -= found;
        self.next = end;
    }
}

impl Space {
    /// Does the next piece of a scan. Sleeps; no lock is held on return.
    ///
    /// # Errors
    /// [`ScanError`]; the regions so far are valid.
    pub fn scan(&self, cpu: &Cpu, scan: &mut Scan) -> Result<(), ScanError> {
        let scanned = self.with_next_area(scan.next, |area| {
            if area.start() >= scan.end {
                scan.next = scan.end;
                return Ok(());
            }
            scan.next = scan.next.max(area.start());
            self.scan_area(cpu, area, pages(scan.next, scan.end.min(area.end())), scan)
        });
        scanned.unwrap_or_else(|| {
            scan.next = scan.end;
            Ok(())
        })
    }

    /// Scans the first tables and blocks of `range`, which is of `area`.
    #[inline(never)]
    fn scan_area(&self, cpu: &Cpu, area: &Area, range: PageRange, scan: &mut Scan) -> Result<(), ScanError> {
        let request = scan.request;
        let of_area = categories_of(area);
        let is_allowed = of_area != 0;
        if !is_allowed && request.is_strict {
            return Err(ScanError::NotPermitted);
        }
        let is_wanted = (of_area ^ request.inverted) & request.required & WP_ALLOWED == request.required & WP_ALLOWED;
        if !is_allowed && request.protects || area.is_of_device() || !is_wanted {
            scan.next = range.end();
            return Ok(());
        }
        let change = Range::new(Event::ProtectionPage, range.start(), range.end());
        let _change = request.protects.then(|| self.notifiers.start(change));
        for _ in 0..AT_ONCE {
            if scan.next >= range.end() || scan.is_full {
                break;
            }
            let rest = pages(scan.next, range.end());
            match self.page_tables().walk_cells(rest).next() {
                Some(CellsOrBlock::Cells(found)) if found.start == scan.next => self.scan_cells(area, &found, scan),
                Some(CellsOrBlock::Block(at)) if at == scan.next => self.scan_block(area, rest, scan),
                Some(CellsOrBlock::Cells(found)) => self.scan_hole(cpu, area, found.start, scan)?,
                Some(CellsOrBlock::Block(at)) => self.scan_hole(cpu, area, at, scan)?,
                None => self.scan_hole(cpu, area, range.end(), scan)?,
            }
            relax();
        }
        Ok(())
    }

    /// Scans addresses up to `end` where no table was. One that is to be protected is linked: it is scanned then.
    fn scan_hole(&self, cpu: &Cpu, area: &Area, end: VirtAddr, scan: &mut Scan) -> Result<(), OutOfMemory> {
        let categories = match categories_of(area) {
            0 => 0,
            of_area => of_area | WRITTEN,
        };
        if !scan.wants(categories) {
            scan.next = end;
        } else if scan.request.protects {
            if !scan.has_room(categories) {
                return Ok(());
            }
            let until = VirtAddr(scan.next.0 | (BLOCK_SIZE - 1)) + 1;
            self.ensure_cells(cpu, pages(scan.next, until.min(end)))?;
        } else {
            scan.add(categories, end);
        }
        Ok(())
    }

    /// Scans entries of one table, and protects what was written of them.
    fn scan_cells(&self, area: &Area, found: &TableCells<'_>, scan: &mut Scan) {
        let (mmu, protects) = (self.mmu(), scan.request.protects);
        if protects && !scan.request.has_regions {
            self.mark_cells(found, Marking::of_scan(area));
            scan.next = found.address(found.cells.len());
            return;
        }
        let locked = self.lock_table(found.table);
        let (mut stale, mut run) = (StaleRange::NONE, 0..0);
        let mut protect = |run: core::ops::Range<usize>| {
            if let Some(cells) = found.cells.get(run.clone()).filter(|cells| !cells.is_empty()) {
                let part = TableCells { cells, start: found.address(run.start), ..*found };
                stale.join(self.mark_locked(&locked, &part, Marking::of_scan(area)));
            }
        };
        for (index, cell) in found.cells.iter().enumerate() {
            let categories = self.categories(area, locked.entry(mmu, cell));
            let next = found.address(index + 1);
            if !scan.wants(categories) {
                scan.next = next;
                continue;
            }
            scan.add(categories, next);
            if scan.is_full {
                break;
            }
            if protects && categories & WRITTEN != 0 {
                if run.end != index {
                    protect(core::mem::replace(&mut run, index..index));
                }
                run.end = index + 1;
            }
        }
        protect(run);
        self.flush_marked(stale);
    }

    /// Scans the block at the next address, or its marker, and protects it if it was written; splits it where only a part
    /// is to be protected.
    #[cold]
    fn scan_block(&self, area: &Area, rest: PageRange, scan: &mut Scan) {
        let Some(found) = self.block_at(scan.next) else { return };
        let locked = self.lock_table(found.table);
        let seen = locked.entry(self.mmu(), found.cell);
        let entry = seen.descriptor();
        let is_block = is_block(entry);
        if !is_block && !is_marker(entry) {
            // A table by now, or nothing: it is looked at again.
            return;
        }
        let of_block = match (is_block, area.object()) {
            (true, Some(_)) => OF_BLOCK | OF_FILE,
            (true, None) => OF_BLOCK,
            (false, _) => 0,
        };
        let categories =
            of_block | self.categories(area, seen.formed(|entry| if is_block { page_of(entry) } else { entry }));
        let end = (found.start + BLOCK_SIZE).min(rest.end());
        if !scan.wants(categories) {
            scan.next = end;
            return;
        }
        if !scan.has_room(categories) {
            return;
        }
        let protects = scan.request.protects && categories & WRITTEN != 0;
        let fits = !scan.request.has_regions || scan.pages_left >= BLOCK_FRAMES as u64;
        if protects && !(found.is_in(rest) && fits) {
            drop(locked);
            self.split_block_at(scan.next);
            return;
        }
        scan.add(categories, end);
        if protects && !scan.is_full {
            let marking = Marking::of_scan(area);
            if self.mark_leaf(slice::from_ref(found.cell), entry, BLOCK_FRAMES, marking) {
                self.flush_block(found.start);
            }
        }
    }

    /// The categories of a page with this entry, of the form that a page has.
    #[inline(always)]
    fn categories(&self, area: &Area, seen: LockedEntry<'_>) -> u64 {
        let entry = seen.descriptor();
        let written = if entry.is_uffd_wp_in_any_form() { 0 } else { WRITTEN };
        let found = match state(entry) {
            EntryState::Page | EntryState::Inaccessible if entry.is_special() => PRESENT | ZEROS,
            EntryState::Page | EntryState::Inaccessible => {
                PRESENT | if area.object().is_some() && self.is_of_object(entry) { OF_FILE } else { 0 }
            }
            EntryState::Marker(_) | EntryState::Migration => non_present(entry),
            EntryState::Stale => non_present(rest_of_stale(entry)),
            EntryState::Empty | EntryState::Damaged => 0,
        };
        categories_of(area) | written | found
    }
}

/// The categories that all pages of an area have.
#[inline(always)]
fn categories_of(area: &Area) -> u64 {
    if area.flags().has_any(AreaFlags::UFFD_WP_ASYNC) { WP_ALLOWED } else { 0 }
}

/// The categories of an entry without a page.
fn non_present(entry: Descriptor) -> u64 {
    match entry.non_present() {
        NonPresent::Marker(markers) if markers.contains(Markers::GUARD) => SWAPPED | GUARD,
        NonPresent::Marker(_) | NonPresent::Migration(_) => SWAPPED,
        NonPresent::Empty | NonPresent::Unknown => 0,
    }
}
