//! The pages that are there of areas, and the properties of areas, as Linux's `smaps` shows them
//! (`fs/proc/task_mmu.c`, `smaps_account`, `show_smap_vma_flags`).
//!
//! Nothing is counted as pages come and go: each entry is visited, as for [`pagemap`](super::pagemap), one area at a time.

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Markers, Protection};

use super::address_space::Space;
use super::area::{Area, AreaFlags};
use super::entry::{EntryState, state};
use super::range::{USER_END, pages};
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
    /// Linux's names of properties, in Linux's order, each with whether the area has it. `has_guards` is
    /// [`Resident::has_guards`].
    pub fn properties(&self, has_guards: bool) -> [(&'static str, bool); 26] {
        let has = |flags| self.flags().has_any(flags);
        let allows = |access| self.protection().contains(access);
        let (is_device, is_shared) = (self.is_of_device(), self.is_shared());
        [
            ("rd", allows(Protection::READ)),
            ("wr", allows(Protection::WRITE)),
            ("ex", allows(Protection::EXECUTE)),
            ("sh", is_shared && self.may_write()),
            ("mr", true),
            ("mw", self.may_write()),
            ("me", !is_device),
            ("ms", is_shared),
            ("gd", self.grows()),
            ("um", has(AreaFlags::UFFD_MISSING)),
            ("pf", is_device),
            ("gu", has_guards),
            ("uw", has(AreaFlags::UFFD_WP)),
            ("lo", has(AreaFlags::LOCKED)),
            ("io", is_device),
            ("dc", has(AreaFlags::NOT_IN_CHILDREN)),
            ("de", is_device),
            ("lf", has(AreaFlags::LOCKED_ON_FAULT)),
            ("ac", allows(Protection::WRITE) && !is_shared && self.is_reserved()),
            ("nr", !self.is_reserved()),
            ("wf", has(AreaFlags::ZEROS_IN_CHILDREN)),
            ("dd", is_device),
            ("hg", has(AreaFlags::BLOCKS)),
            ("nh", has(AreaFlags::NO_BLOCKS)),
            ("mt", allows(Protection::TAGGED)),
            ("sl", self.is_sealed()),
        ]
    }

    /// Whether blocks are wanted, and one has room.
    pub fn may_have_blocks(&self) -> bool {
        let first = self.start().align_up(BLOCK_SIZE);
        self.flags().has_any(AreaFlags::BLOCKS) && first.is_some_and(|first| first + BLOCK_SIZE <= self.end())
    }

    /// How many of its bytes from `from` on are locked.
    fn locked(&self, bytes: u64) -> u64 {
        if self.flags().has_any(AreaFlags::LOCKED) { bytes } else { 0 }
    }
}

impl Space {
    /// Adds the pages of `area` from `from` on that are there.
    pub fn add_resident(&self, area: &Area, from: VirtAddr, sum: &mut Resident) {
        let of_object = match area.object() {
            Some(object) if object.can_be_had_again() => OF_FILE,
            _ => OF_SHARED_MEMORY,
        };
        let is_locked = area.flags().has_any(AreaFlags::LOCKED);
        self.look_at_each(area.part_in(pages(from, USER_END)), |seen| {
            let entry = seen.entry;
            match state(entry) {
                EntryState::Page | EntryState::Inaccessible if !entry.is_special() => {
                    let (is_of_object, holders) = self.holders(seen, || area.object().is_some());
                    let kind = if is_of_object { of_object } else { ANONYMOUS };
                    let bytes = seen.pages as u64 * PAGE;
                    let is_dirty = entry.is_dirty() || !is_of_object;
                    sum.add(kind, bytes, holders.saturating_sub(is_of_object.into()), is_dirty, is_locked);
                    sum.referenced += if entry.is_young() { bytes } else { 0 };
                    sum.in_blocks[usize::from(is_of_object)] += if seen.is_block { bytes } else { 0 };
                }
                EntryState::Marker(markers) => sum.has_guards |= markers.contains(Markers::GUARD),
                _ => {}
            }
        });
    }

    /// All its areas and pages together, until `is_killed`. Visits each entry, one area after the other, and sleeps: areas
    /// and pages change concurrently.
    pub fn totals(&self, is_killed: impl Fn() -> bool) -> Totals {
        let (mut totals, heap) = (Totals::default(), *self.heap().read());
        while !is_killed() {
            let from = totals.end;
            let found = self.with_next_area(from, |area| {
                // It may have become one with areas before.
                let start = area.start().max(from);
                let bytes = area.end() - start;
                let is_code = |protection: Protection| {
                    protection.contains(Protection::EXECUTE) && !protection.contains(Protection::WRITE)
                };
                totals.size += bytes;
                totals.data += area.data().min(bytes);
                totals.locked += area.locked(bytes);
                if area.grows() {
                    totals.stacks += bytes;
                } else if is_code(area.protection()) {
                    totals.code[usize::from(start.0 >= heap.start)] += bytes;
                }
                self.add_resident(area, start, &mut totals.resident);
                (start, area.end())
            });
            let Some((start, end)) = found else { break };
            totals.start = if from.0 == 0 { start } else { totals.start };
            totals.end = end;
            relax();
        }
        totals
    }
}
