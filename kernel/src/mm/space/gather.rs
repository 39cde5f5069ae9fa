//! Frames that were removed from entries, until no TLB can reach them.
//!
//! Arm ARM D8.17.1: a valid entry may be in a TLB until it is invalidated. So the frame of a cleared entry goes into a
//! [`Gather`], with its addresses, and is freed after their invalidation: all frames at the end, or some earlier where
//! the list is full. The obligation is a value: dropping it invalidates and frees.
//!
//! # When an entry may be filled again
//! Between a valid entry and the next one in its place, the invalidation completes, in CPUs and in secondary TLBs. A
//! caller with the areas' lock for writing excludes faults, and completes the invalidation before it drops that lock.
//! Under the lock for reading, and without it in a walk by a reverse map, a fault may fill an entry as soon as the lock
//! of its table is dropped, and a second caller that finds the entry empty may return. There the invalidation completes
//! before the table's lock is dropped ([`Gather::before_unlock`]). A migration does the same. The constructors
//! distinguish the cases by the lock that the caller holds. `mprotect` and `fork`, which change valid entries, hold the
//! areas' lock for writing; copy on write invalidates under the table's lock.
//!
//! Frames are listed as runs of neighbours, which the frames of one area mostly are, so the list needs no memory. It
//! cannot be in the frames themselves: another CPU may still write to them.

use core::ops::Range;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::LevelHint;
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{Invalidation, PageRange, Tables};

use super::address_space::Space;
use super::area::tree::Areas;
use super::range::pages;
use super::shmem::mappers::Mappers;
use crate::mm::frame::FEW;
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::relax;
use crate::smp::Cpu;

/// Runs in a gather: 512 bytes of stack.
const RUNS: usize = 32;

/// Blocks in a gather.
const BLOCKS: usize = 8;

/// Last-level tables whose frames are freed together: runs may be long.
const TABLES_GATHERED: usize = 4;

/// Addresses to invalidate: from the first to the last address whose valid entry was changed.
#[derive(Clone, Copy)]
pub(super) struct StaleRange {
    start: VirtAddr,
    end: VirtAddr,
}

impl StaleRange {
    /// Nothing to invalidate.
    pub(super) const NONE: Self = Self { start: VirtAddr(u64::MAX), end: VirtAddr(0) };

    /// Adds the addresses from `start` to `end`.
    #[inline(always)]
    pub(super) fn note(&mut self, start: VirtAddr, end: VirtAddr) {
        self.start = self.start.min(start);
        self.end = self.end.max(end);
    }

    /// Adds `other`.
    #[inline(always)]
    pub(super) fn join(&mut self, other: Self) {
        self.note(other.start, other.end);
    }

    /// The range to invalidate, if any.
    #[inline(always)]
    pub(super) fn range(self) -> Option<PageRange> {
        (self.start < self.end).then(|| pages(self.start, self.end))
    }

    /// The invalidation that is due, if any: of the last level, or of all where entries above it were changed; `above`
    /// is what became of tables then.
    #[inline(always)]
    pub(super) fn invalidation(self, above: Option<Tables>) -> Option<Invalidation> {
        let level = if above.is_none() { LevelHint::new(LAST_LEVEL) } else { None };
        self.range().map(|range| Invalidation { range, tables: above.unwrap_or(Tables::Kept), level })
    }
}

/// Whether a fault may fill an entry before its gather ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Faults {
    /// The areas are locked for writing.
    Excluded,
    /// They are locked for reading.
    Possible,
    /// They are not locked: faults, and calls that have made entries invalid and not invalidated them yet.
    AndCalls,
}

/// Frames that were removed from the tables of a space and are not free yet.
#[must_use = "dropping it invalidates and frees"]
pub(super) struct Gather<'s> {
    space: &'s Space,
    cpu: &'s Cpu,
    /// The areas whose entries are removed, if they are locked for reading.
    areas: Option<&'s Areas>,
    /// Up to where [`Self::left`] holds.
    pub(super) left_until: VirtAddr,
    /// The rest that a zap leaves of entries that are write-protected ([`Self::left_of`]): a marker, or empty.
    pub(super) left: Descriptor,
    runs: heapless::Vec<Range<PhysAddr>, RUNS>,
    /// The entries that were cleared since the last invalidation.
    stale: StaleRange,
    /// The fate of tables, if entries above the last level are among them.
    above: Option<Tables>,
    /// Blocks among what was removed.
    blocks: heapless::Vec<PhysAddr, BLOCKS>,
    faults: Faults,
    /// Last-level tables that were visited.
    tables_seen: usize,
}

impl<'s> Gather<'s> {
    /// An empty gather. `cpu` is the current CPU. The areas are locked for writing until the gather is dropped.
    pub(super) const fn without_faults(space: &'s Space, cpu: &'s Cpu, _areas: &mut Areas) -> Self {
        Self::new(space, cpu, None, Faults::Excluded)
    }

    /// An empty gather for areas that are locked for reading.
    pub(super) const fn among_faults(space: &'s Space, cpu: &'s Cpu, areas: &'s Areas) -> Self {
        Self::new(space, cpu, Some(areas), Faults::Possible)
    }

    /// An empty gather for a walk by the reverse map of an object, which is locked for reading; the areas are not.
    pub(super) const fn by_reverse_map(space: &'s Space, cpu: &'s Cpu, _mappers: &'s Mappers) -> Self {
        Self::new(space, cpu, None, Faults::AndCalls)
    }

    const fn new(space: &'s Space, cpu: &'s Cpu, areas: Option<&'s Areas>, faults: Faults) -> Self {
        Self {
            space,
            cpu,
            areas,
            left_until: VirtAddr(0),
            left: Descriptor::EMPTY,
            runs: heapless::Vec::new(),
            stale: StaleRange::NONE,
            above: None,
            blocks: heapless::Vec::new(),
            faults,
            tables_seen: 0,
        }
    }

    /// Notes that valid entries from `start` to `end` were cleared.
    #[inline(always)]
    pub(super) fn stale(&mut self, start: VirtAddr, end: VirtAddr) {
        self.stale.note(start, end);
    }

    /// Adds `frame`, one reference to which is dropped later. Its entry is clear, and noted or about to be noted. Where
    /// the list is full, the addresses of `emptied`, whose entries are clear and not noted yet, are noted and
    /// invalidated with the rest; the caller does not note them again.
    #[inline(always)]
    pub(super) fn add(&mut self, frame: PhysAddr, emptied: impl FnOnce() -> Option<(VirtAddr, VirtAddr)>) {
        if let Some(last) = self.runs.last_mut()
            && last.end == frame
        {
            last.end = frame + PAGE;
            return;
        }
        if self.runs.is_full() {
            if let Some((start, end)) = emptied() {
                self.stale(start, end);
            }
            self.finish();
        }
        let pushed = self.runs.push(frame..frame + PAGE);
        debug_assert!(pushed.is_ok());
    }

    /// Notes that the valid entry of the block at `start` was cleared.
    pub(super) fn stale_block(&mut self, start: VirtAddr) {
        self.stale_tables(pages(start, start + BLOCK_SIZE));
    }

    /// Notes that entries above the last level that translated addresses of `span` were cleared.
    fn stale_tables(&mut self, span: PageRange) {
        self.above = Some(Tables::Unlinked);
        self.stale(span.start(), span.end());
    }

    /// Adds the frames of `block`, whose entry is clear, and noted or invalidated.
    pub(super) fn add_block(&mut self, block: PhysAddr) {
        if self.blocks.is_full() {
            self.finish();
        }
        let pushed = self.blocks.push(block);
        debug_assert!(pushed.is_ok());
    }

    /// The areas whose entries are removed; `None` where they are locked for writing, or all are of one object.
    pub(super) const fn areas(&self) -> Option<&'s Areas> {
        self.areas
    }

    /// The current CPU.
    pub(super) const fn cpu(&self) -> &'s Cpu {
        self.cpu
    }

    /// A scheduling point between two tables of a long change, without a table's lock. A large gather is invalidated
    /// and freed first, so that neither this nor the end takes long.
    #[inline]
    pub(super) fn rest(&mut self) {
        self.tables_seen += 1;
        if self.tables_seen.is_multiple_of(TABLES_GATHERED) {
            self.finish();
        }
        relax();
    }

    /// Adds a table, freed later, that was unlinked and translated addresses of `span` only.
    pub(super) fn add_table(&mut self, table: PhysAddr, span: PageRange) {
        self.stale_tables(span);
        self.add(table, || None);
    }

    /// Whether the frames are few.
    #[inline(always)]
    fn is_short(&self) -> bool {
        let bytes: u64 = self.runs.iter().map(|run| run.end.0 - run.start.0).sum();
        bytes <= FEW as u64 * PAGE
    }

    /// Called before the lock of a table with cleared entries is dropped: completes their invalidation where a fault
    /// could fill them.
    #[inline(always)]
    pub(super) fn before_unlock(&mut self) {
        if self.faults != Faults::Excluded {
            self.invalidate();
        }
    }

    /// Whether no fault may fill an entry before the gather ends.
    pub(super) fn excludes_faults(&self) -> bool {
        self.faults == Faults::Excluded
    }

    /// Whether a TLB may have an entry that is invalid by now: a call made it so, and still runs.
    #[inline(always)]
    pub(super) fn may_be_stale(&self) -> bool {
        self.faults == Faults::AndCalls
    }

    /// Invalidates what was noted.
    #[inline(always)]
    pub(super) fn invalidate(&mut self) {
        if let Some(stale) = self.stale.invalidation(self.above) {
            (self.stale, self.above) = (StaleRange::NONE, None);
            self.space.tlb().flush_freed(self.space.mmu(), &stale);
        }
    }

    /// Drops the references of blocks that were removed.
    #[cold]
    #[inline(never)]
    fn put_blocks(&mut self) {
        while let Some(block) = self.blocks.pop() {
            self.space.common.block(block).put_block(self.cpu);
        }
    }

    /// Invalidates what was noted, then frees the frames.
    pub(super) fn finish(&mut self) {
        self.invalidate();
        if !self.blocks.is_empty() {
            self.put_blocks();
        }
        if self.runs.is_empty() {
            return;
        }
        let common = self.space.common;
        // A single frame needs no list.
        if let [run] = &self.runs[..]
            && run.start + PAGE == run.end
        {
            self.space.common.drop_frame(self.cpu, run.start);
        } else if self.is_short() {
            let numbers = |run: &Range<PhysAddr>| run.start.frame_number()..run.end.frame_number();
            common.frames.put_runs(self.cpu, self.runs.iter().map(numbers));
        } else {
            let mut freeing = common.frames.freeing(self.cpu);
            for run in &self.runs {
                let mut frame = run.start;
                while frame != run.end {
                    // A frame is freed with its last reference.
                    if common.record(frame).put() {
                        freeing.add(frame);
                    }
                    frame = frame + PAGE;
                }
            }
        }
        self.runs.clear();
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}
