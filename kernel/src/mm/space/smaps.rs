//! The pages that are there of areas, and the properties of areas, as Linux's `smaps` shows them
//! (`fs/proc/task_mmu.c`, `smaps_account`, `show_smap_vma_flags`).
//!
//! Nothing is counted as pages come and go: each entry is visited, as for [`pagemap`](super::pagemap), of a bounded
//! number of tables of one area at a time.

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Markers, Protection};
use granule_pgtable::PageRange;

use super::address_space::Space;
use super::area::{Area, AreaFlags};
use super::entry::{EntryState, state};
use super::migrate::before_migration;
use super::pagemap::Seen;
use super::range::pages;
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::relax;

/// The bits of a byte's fractions in [`Resident::shares`] (Linux: `PSS_SHIFT`).
pub const SHARE_SHIFT: u32 = 12;

/// Pages that are there, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Resident {
    /// Anonymous ones, those of files, those of shared memory.
    pub bytes: [u64; 3],
    /// These, each page divided by how often it is mapped; with [`SHARE_SHIFT`] bits of fractions.
    pub shares: [u64; 3],
    /// Those of written pages, likewise.
    pub dirty_share: u64,
    /// Those of locked areas, likewise.
    pub locked_share: u64,
    /// Mapped more than once, clean and written; mapped once, clean and written.
    pub by_use: [u64; 4],
    /// Used since they were made old.
    pub referenced: u64,
    /// In blocks: anonymous ones, those of shared memory.
    pub in_blocks: [u64; 2],
    /// There are guards.
    pub has_guards: bool,
}

/// The part of an area in `smaps` beside its line and its pages.
pub struct AreaShown {
    /// Bytes.
    pub size: u64,
    /// Whether blocks are wanted, and one has room.
    pub may_have_blocks: bool,
    /// Linux's names of properties, in Linux's order, each with whether the area has it: of guards (`gu`) the
    /// [pages](Resident::has_guards) tell.
    pub properties: [([u8; 2], bool); 29],
}

/// All areas of a space together.
#[derive(Clone, Copy, Default, Debug)]
pub struct Totals {
    /// The first address of the first area, and the end of the last.
    pub start: VirtAddr,
    /// See [`Self::start`].
    pub end: VirtAddr,
    /// Bytes of areas.
    pub size: u64,
    /// Of them private and writable ones, stacks excepted.
    pub data: u64,
    /// Stacks.
    pub stacks: u64,
    /// Those that may be executed and not be written: below the heap, and above its start.
    pub code: [u64; 2],
    /// Locked ones.
    pub locked: u64,
    /// The pages that are there.
    pub resident: Resident,
}

/// Tables and blocks that are looked at under one hold of the areas' lock.
const AT_ONCE: usize = 128;

const ANONYMOUS: usize = 0;
const OF_FILE: usize = 1;
const OF_SHARED_MEMORY: usize = 2;

impl Resident {
    /// Adds `bytes` bytes of a kind that are mapped `mappings` times.
    fn add(&mut self, kind: usize, bytes: u64, mappings: u32, is_dirty: bool, is_locked: bool) {
        let share = (bytes << SHARE_SHIFT) / u64::from(mappings.max(1));
        for (sums, more) in [(&mut self.bytes, bytes), (&mut self.shares, share)] {
            if let Some(sum) = sums.get_mut(kind) {
                *sum += more;
            }
        }
        self.dirty_share += if is_dirty { share } else { 0 };
        self.locked_share += if is_locked { share } else { 0 };
        self.by_use[usize::from(mappings < 2) * 2 + usize::from(is_dirty)] += bytes;
    }
}

impl Area {
    /// Its part of `smaps` beside the line and the pages.
    pub fn shown(&self) -> AreaShown {
        AreaShown { size: self.size(), may_have_blocks: self.may_have_blocks(), properties: self.properties() }
    }

    /// See [`AreaShown::properties`].
    fn properties(&self) -> [([u8; 2], bool); 29] {
        let has = |flags| self.flags().has_any(flags);
        let allows = |access| self.protection().contains(access);
        let (is_device, is_shared) = (self.is_of_device(), self.is_shared());
        [
            (*b"rd", allows(Protection::READ)),
            (*b"wr", allows(Protection::WRITE)),
            (*b"ex", allows(Protection::EXECUTE)),
            (*b"sh", is_shared && self.may_write()),
            (*b"mr", true),
            (*b"mw", self.may_write()),
            (*b"me", !is_device),
            (*b"ms", is_shared),
            (*b"gd", self.grows()),
            (*b"um", has(AreaFlags::UFFD_MISSING)),
            (*b"pf", is_device),
            (*b"gu", false),
            (*b"uw", has(AreaFlags::UFFD_WP)),
            (*b"lo", self.is_locked()),
            (*b"io", is_device),
            (*b"dc", has(AreaFlags::NOT_IN_CHILDREN)),
            (*b"de", is_device),
            (*b"lf", has(AreaFlags::LOCKED_ON_FAULT)),
            (*b"ac", allows(Protection::WRITE) && !is_shared && self.is_reserved()),
            (*b"nr", !self.is_reserved()),
            (*b"bt", allows(Protection::GUARDED)),
            (*b"wf", has(AreaFlags::ZEROS_IN_CHILDREN)),
            (*b"dd", is_device || self.is_droppable()),
            (*b"hg", has(AreaFlags::BLOCKS)),
            (*b"nh", has(AreaFlags::NO_BLOCKS)),
            (*b"mt", allows(Protection::TAGGED)),
            (*b"dp", self.is_droppable()),
            (*b"ui", has(AreaFlags::UFFD_MINOR)),
            (*b"sl", self.is_sealed()),
        ]
    }

    /// Whether blocks are wanted, and one has room.
    fn may_have_blocks(&self) -> bool {
        let first = self.start().align_up(BLOCK_SIZE);
        self.flags().has_any(AreaFlags::BLOCKS) && first.is_some_and(|first| first + BLOCK_SIZE <= self.end())
    }

    fn is_locked(&self) -> bool {
        self.flags().has_any(AreaFlags::LOCKED)
    }
}

impl Space {
    /// Finds the first area that ends after `from`, calls `look` with it, and adds the pages that are there of the
    /// range of it that `look` returns, which is returned. The areas are locked for a bounded number of tables at once:
    /// the rest of a large range is counted as it is later, and no further once `is_killed`, or once the space has
    /// ended.
    pub fn add_resident(
        &self,
        from: VirtAddr,
        sum: &mut Resident,
        is_killed: impl Fn() -> bool,
        mut look: impl FnMut(&Area) -> PageRange,
    ) -> Option<PageRange> {
        let (range, mut rest) = self.with_next_area(from, |area| {
            let range = look(area);
            (range, self.add_part(area, range, sum))
        })?;
        while let Some(start) = rest.filter(|_| !is_killed() && !self.notifiers().is_released()) {
            relax();
            let found = self.with_next_area(start, |area| {
                if area.start() >= range.end() {
                    return None;
                }
                // Other areas may be there by now.
                let part = area.part_in(pages(start, range.end()));
                self.add_part(area, part, sum).or((part.end() < range.end()).then_some(part.end()))
            });
            rest = found.flatten();
        }
        Some(range)
    }

    /// Adds the pages of `range` of `area` that are there, of the first tables and blocks; returns where it continues.
    #[inline(never)]
    fn add_part(&self, area: &Area, range: PageRange, sum: &mut Resident) -> Option<VirtAddr> {
        let mut walk = self.page_tables().walk_cells(range);
        for _ in 0..AT_ONCE {
            if !self.look_at_next(&mut walk, range, |seen| self.add_entry(area, seen, sum)) {
                return None;
            }
        }
        walk.continues_at()
    }

    /// Adds the pages of an entry of `area`.
    #[inline(always)]
    fn add_entry(&self, area: &Area, seen: Seen<'_>, sum: &mut Resident) {
        // A page that is migrated is there, as on Linux.
        let seen = Seen { entry: seen.entry.formed(before_migration), ..seen };
        let entry = seen.descriptor();
        match state(entry) {
            EntryState::Page | EntryState::Inaccessible if !entry.is_special() => {
                let (is_of_object, holders) = self.holders(seen, || area.object().is_some());
                let kind = match area.object() {
                    _ if !is_of_object => ANONYMOUS,
                    Some(object) if object.can_be_had_again() => OF_FILE,
                    _ => OF_SHARED_MEMORY,
                };
                let bytes = seen.pages as u64 * PAGE;
                let (is_dirty, is_locked) = (entry.is_dirty() || !is_of_object, area.is_locked());
                let mut add = |bytes, holders: u32| {
                    sum.add(kind, bytes, holders.saturating_sub(is_of_object.into()), is_dirty, is_locked);
                };
                if seen.is_block && holders == 0 {
                    // Divided, and it stays so while the entry holds the frames: each has holders of its own.
                    let frames = (0..seen.pages as u64).map(|index| seen.frame() + index * PAGE);
                    frames.for_each(|frame| add(PAGE, self.common.record(frame).references()));
                } else {
                    add(bytes, holders);
                }
                sum.referenced += if entry.is_young() { bytes } else { 0 };
                sum.in_blocks[usize::from(is_of_object)] += if seen.is_block { bytes } else { 0 };
            }
            EntryState::Marker(markers) => sum.has_guards |= markers.contains(Markers::GUARD),
            _ => {}
        }
    }

    /// All its areas and pages together, until `is_killed`. Visits each entry, one area after the other, and sleeps: areas
    /// and pages change concurrently.
    pub fn totals(&self, is_killed: impl Fn() -> bool) -> Totals {
        let (mut totals, heap) = (Totals::default(), *self.heap().read());
        while !is_killed() {
            let from = totals.end;
            let found = self.add_resident(from, &mut totals.resident, &is_killed, |area| {
                // It may have become one with areas before.
                let start = area.start().max(from);
                let bytes = area.end() - start;
                let is_code = |protection: Protection| {
                    protection.contains(Protection::EXECUTE) && !protection.contains(Protection::WRITE)
                };
                totals.size += bytes;
                totals.data += area.data().min(bytes);
                totals.locked += if area.is_locked() { bytes } else { 0 };
                if area.grows() {
                    totals.stacks += bytes;
                } else if is_code(area.protection()) {
                    totals.code[usize::from(start.0 >= heap.start)] += bytes;
                }
                pages(start, area.end())
            });
            let Some(range) = found else { break };
            totals.start = if from.0 == 0 { range.start() } else { totals.start };
            totals.end = range.end();
            relax();
        }
        totals
    }
}
