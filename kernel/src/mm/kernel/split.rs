//! Changes of the linear map, whose leaves may have to be split: how two CPUs that split one leaf are kept apart
//! ([`SplitMode`], chosen by `split=`), and where the tables come from. [`granule_pgtable`] splits.
//!
//! The split lock is a lock of its own: changes of pages of vmalloc areas, or of leaves that need no split, never
//! acquire it. It is held with interrupts masked and only while entries change, and its holder waits for nothing. So a
//! handler may wait for it: it is never held on the CPU that the handler runs on.
//!
//! `split=stop-machine` is for CPUs that cannot hold leaves of two sizes. A change that cuts a leaf is refused by the
//! tables; then its walk ends, all other CPUs are parked, and the leaf is replaced break-before-make
//! ([`KernelSpace::split_stopped_or_explain`]); then the change is made as if it had come first. Not everywhere can CPUs be
//! parked: elsewhere the change stays refused.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::wait;
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{
    Change, Cut, Entries, Error, Flush, Geometry, Granule4K, Lazy, Lockless, PageRange, PageTables, Serialise, Splits,
    Splitter,
};

use super::owners::RangeOwnerCheck;
use super::policy::SplitMode;
use super::set_memory::SetMemoryError;
use super::{FrameSource, KernelSpace, Machine, Supply};
use crate::lab;
use crate::mm::layout;
use crate::smp::{self, OthersParked, this_cpu};
use crate::sync::{IrqGuard, IrqLock, rank};

/// The split lock, and counts of splits by size. A split of a group writes only the first cache line.
#[repr(C, align(64))]
pub(super) struct Splitting {
    lock: IrqLock<(), { rank::SPLIT }>,
    locked: AtomicU64,
    contended: AtomicU64,
    groups: [AtomicU64; 4],
    blocks: [AtomicU64; 4],
    retries: AtomicU64,
    /// Of `blocks`, those of areas: the tables go with the areas.
    of_areas: AtomicU64,
    stops: AtomicU64,
    refused: AtomicU64,
    warned: AtomicBool,
}

/// How often what was split since the boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SplitCounts {
    /// Acquisitions of the split lock.
    pub locked: u64,
    /// Of these, those that had to wait for another CPU.
    pub contended: u64,
    /// Splits of one block by two CPUs at once, without the lock: one table was made for nothing.
    pub retries: u64,
    /// Blocks that became tables, by their level: so many tables were linked.
    pub blocks: [u64; 4],
    /// Contiguous groups that were dissolved, by their level.
    pub groups: [u64; 4],
    /// Of the blocks, those of areas: their tables are freed some time after the area is.
    pub of_areas: u64,
    /// Times that all other CPUs were parked, for a split or a collapse.
    pub stops: u64,
    /// Changes that were refused because they would have split a leaf.
    pub refused: u64,
}

impl Splitting {
    pub(super) const fn new() -> Self {
        Self {
            lock: IrqLock::new(()),
            locked: AtomicU64::new(0),
            contended: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            blocks: [const { AtomicU64::new(0) }; 4],
            groups: [const { AtomicU64::new(0) }; 4],
            of_areas: AtomicU64::new(0),
            stops: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        }
    }

    fn count(&self, splits: &Splits, of_area: bool) {
        let add = |counter: &AtomicU64, count: u8| {
            if count != 0 {
                counter.fetch_add(count.into(), Ordering::Relaxed);
            }
        };
        add(&self.retries, splits.retries);
        // The levels that have what can be split: see `Granule4K`.
        for level in [1, 2] {
            add(&self.blocks[level], splits.blocks[level]);
            add(&self.groups[level + 1], splits.groups[level + 1]);
            if of_area {
                add(&self.of_areas, splits.blocks[level]);
            }
        }
    }
}

/// `split=lock`.
struct Locking<'s>(&'s Splitting);

// SAFETY: every split under this policy takes the lock.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Locking<'_> {
    type Section<'a>
        = IrqGuard<'a, (), { rank::SPLIT }>
    where
        Self: 'a;

    #[inline(always)]
    fn entries(&self) -> Entries {
        Entries::Alone
    }

    #[inline]
    fn begin(&self) -> Self::Section<'_> {
        let guard = self.0.lock.try_lock().unwrap_or_else(|| {
            self.0.contended.fetch_add(1, Ordering::Relaxed);
            self.0.lock.lock()
        });
        self.0.locked.fetch_add(1, Ordering::Relaxed);
        guard
    }
}

/// The splits whose speed does not matter, as one type: the code is compiled once.
enum UncommonSplit {
    /// `split=stop-machine`.
    Stopped,
    /// As [`Self::Stopped`], down to pages: a part of them can change with no CPU stopped.
    ToPages,
    /// `lab=plain-split`: loads and stores as under the lock, without the lock. The window between them is held open: an
    /// emulator that runs one CPU at a time continues with another one there. The higher its number, the longer a CPU
    /// stays: two that went in step would both be through before either changes what the other has read.
    Unserialised,
}

// SAFETY: for what is `Stopped` the other CPUs are parked, which they are outside of walks alone.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for UncommonSplit {
    type Section<'a> = Option<OthersParked>;

    fn entries(&self) -> Entries {
        match self {
            Self::Stopped | Self::ToPages => Entries::Stopped,
            Self::Unserialised => Entries::Unguarded,
        }
    }

    fn begin(&self) -> Option<OthersParked> {
        (self.entries() == Entries::Stopped).then(smp::park_others)
    }

    fn groups(&self) -> bool {
        !matches!(self, Self::ToPages)
    }

    fn window(&self) {
        const LONGER: u32 = 64;
        for _ in 0..=LONGER * this_cpu().id.0 {
            wait::relax();
        }
    }
}

/// Splits leaves of the linear map and of areas, by the policy.
#[derive(Clone, Copy)]
pub(super) struct LeafSplitter<'s>(pub(super) &'s KernelSpace);

impl Splitter<Machine> for LeafSplitter<'_> {
    const LIVE_SPLITS: bool = true;

    #[cold]
    #[inline(never)]
    fn split(&mut self, cut: &Cut<'_, Machine>) -> Result<(), Error> {
        let Self(space) = self;
        let mode = space.policy().split;
        if !mode.is_live() {
            // Not inside this walk: see `split_stopped_or_explain`; or not at all.
            let is_not_yet = mode == SplitMode::StopMachine || cut.is_first_look();
            if !is_not_yet {
                space.note_refused(&space.explain(cut.error()));
            }
            return Err(cut.error());
        }
        let mut source = space.split_source();
        let splits = match mode {
            _ if lab::is_on!(PLAIN_SPLIT) => cut.split(&UncommonSplit::Unserialised, &mut source),
            SplitMode::Lockless => cut.split(&Lockless, &mut source),
            _ => cut.split(&Locking(&space.splitting), &mut source),
        };
        space.splitting.count(&splits?, !layout::is_linear(cut.start()));
        Ok(())
    }
}

impl KernelSpace {
    /// Changes the leaves of `range`, splitting those that it cuts, and returns the invalidation that is then needed.
    ///
    /// For the **exclusive owner** of the range, which belongs to **no area** that could be freed: the
    /// linear map, or the image. Acquires no lock but for a split, never sleeps, and may be called from interrupts, which
    /// get only the frames that this CPU has in reserve for tables, and split no leaf with `split=stop-machine`.
    ///
    /// Nothing becomes executable by it, and no read-only page of the linear map writable: its frame may be executable in
    /// an area, or in the image.
    ///
    /// # Errors
    /// [`SetMemoryError`]: every page is as it was.
    ///
    /// # Panics
    /// In debug builds, where two owners change ranges that overlap.
    pub fn update_linear(
        &self,
        lazy: &Lazy<'_, Machine>,
        range: PageRange,
        change: Change,
    ) -> Result<Flush, SetMemoryError> {
        if change.makes_executable() {
            return Err(SetMemoryError::NeverExecutable(range.start()));
        }
        let is_alias = change.makes_writable() && layout::is_linear(range.start());
        let _owner = RangeOwnerCheck::new(range);
        self.update_in_steps(lazy, range, if is_alias { change.of_writable() } else { change })
    }

    /// [`Self::update_linear`] of any range, which its owner has on record.
    #[inline(never)]
    pub(super) fn update_in_steps(
        &self,
        lazy: &Lazy<'_, Machine>,
        range: PageRange,
        change: Change,
    ) -> Result<Flush, SetMemoryError> {
        loop {
            // The first look again, where there was one: it may have split the leaf above the one that is cut now.
            let changed = self.tables().get().update(lazy, range, change, &mut LeafSplitter(self));
            match changed {
                Ok(flush) => return Ok(flush),
                Err(error) => self.split_stopped_or_explain(error, range)?,
            }
        }
    }

    /// Does a change of `range` again, which the tables have refused by `error`: in an area that does not own its frames by
    /// [`Self::change_mapped`], or by `again`, once what it cuts is split with all other CPUs parked. Its walk has ended.
    ///
    /// # Errors
    /// [`SetMemoryError`]: that of [`Self::split_stopped_or_explain`], or of the second time.
    #[cold]
    #[inline(never)]
    pub(super) fn retry_or_explain(
        &self,
        error: Error,
        range: PageRange,
        change: &Change,
        again: fn(&Self, VirtAddr, u64) -> Result<(), SetMemoryError>,
    ) -> Result<(), SetMemoryError> {
        if let Error::NotMarked(page) = error {
            let _owner = RangeOwnerCheck::new(range);
            return self.change_mapped(page, range, change);
        }
        self.split_stopped_or_explain(error, range)?;
        again(self, range.start(), range.pages() as u64)
    }

    /// With `split=stop-machine`, splits what `range` cuts with all other CPUs parked, where a change of the range was refused
    /// for that: by `error`.
    ///
    /// # Errors
    /// [`SetMemoryError`]: what `error` means to the caller, or why nothing was split. Every page is as it was.
    #[cold]
    #[inline(never)]
    pub(super) fn split_stopped_or_explain(&self, error: Error, range: PageRange) -> Result<(), SetMemoryError> {
        let Error::Straddles { leaf, size } = error else { return Err(self.explain(error)) };
        // One of the alias is none of these: where leaves are split so, that is made of pages.
        let is_of_range = leaf <= range.last() && range.start() <= leaf + (size - 1);
        if self.policy().split != SplitMode::StopMachine || !is_of_range {
            return Err(self.explain(error));
        }
        if !smp::may_park_others(this_cpu()) {
            let error = SetMemoryError::CannotStop { leaf, size };
            self.note_refused(&error);
            return Err(error);
        }
        self.split_with_others_parked(range, size, &UncommonSplit::Stopped)
    }

    /// Splits what `range` cuts, a leaf of `size` bytes and maybe another one, from where other CPUs may be parked.
    fn split_with_others_parked(&self, range: PageRange, size: u64, how: &UncommonSplit) -> Result<(), SetMemoryError> {
        let (tables, mut source) = (PageTables::new(&self.mmu, self.root), self.table_source(this_cpu()));
        // One for each level below it.
        let mut count = [1, 2].into_iter().filter(|&level| Granule4K::entry_size(level) <= size).count();
        loop {
            let split = tables.split_stopped(range, count, how, &mut source);
            let (splits, is_all) = split.map_err(|error| self.explain(error))?;
            self.note_stop();
            self.splitting.count(&splits, !layout::is_linear(range.start()));
            if is_all {
                return Ok(());
            }
            // At the other end it may be one more level, a table at a time.
            count = 1;
        }
    }

    /// Whether there is memory for the tables that [`Self::split_linear_to_pages`] takes, and as much again.
    pub fn can_split_linear_to_pages(&self) -> bool {
        let stats = self.frames.stats();
        // One for each 512 frames; and once more, for memory that is not the allocator's, and tables above.
        let needed = 2 * (stats.total / Granule4K::entries(LAST_LEVEL));
        stats.free / 2 >= needed
    }

    /// Makes all leaves of the linear map of `memory` pages, where CPUs have come that cannot hold two sizes of one: as if
    /// it had been made of pages. Each stop splits one block. Before anything else may change there, and from where other
    /// CPUs may be parked.
    ///
    /// # Errors
    /// No memory for tables, which is not so after [`Self::can_split_linear_to_pages`]: what is pages by then stays so.
    pub fn split_linear_to_pages(&self, memory: impl Iterator<Item = PhysRange>) -> Result<(), SetMemoryError> {
        for bank in memory {
            // The map ends there.
            let end = bank.end().min(PhysAddr(layout::LINEAR_SIZE));
            let (mut at, end) = (layout::LINEAR_BASE + bank.start().0, layout::LINEAR_BASE + end.0);
            while at < end {
                let size = self.tables().translate(at).map_or(Granule4K::PAGE_SIZE, |found| found.leaf_size);
                if size > Granule4K::PAGE_SIZE {
                    let page = PageRange::from_pages(at, 1).map_err(SetMemoryError::Range)?;
                    self.split_with_others_parked(page, size, &UncommonSplit::ToPages)?;
                }
                at = at + size.min(Granule4K::entry_size(2));
            }
        }
        Ok(())
    }

    /// Frames for tables: in a handler what its CPU has in reserve, nothing that it would have to wait for.
    #[inline]
    fn split_source(&self) -> FrameSource<'_> {
        let cpu = this_cpu();
        let supply = if cpu.trap().is_in_handler() { Supply::Reserve } else { Supply::Any };
        FrameSource { supply, ..self.table_source(cpu) }
    }

    /// Counts a change that is refused because it would have split a leaf, and warns of the first.
    #[cold]
    fn note_refused(&self, error: &SetMemoryError) {
        self.splitting.refused.fetch_add(1, Ordering::Relaxed);
        if !self.splitting.warned.swap(true, Ordering::Relaxed) {
            crate::log::warn!("{error}: refused, this time and others");
        }
    }

    /// Counts a stop.
    pub(super) fn note_stop(&self) {
        self.splitting.stops.fetch_add(1, Ordering::Relaxed);
    }

    /// How often what was split.
    pub fn split_counts(&self) -> SplitCounts {
        let Splitting { locked, contended, retries, blocks, groups, of_areas, stops, refused, .. } = &self.splitting;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SplitCounts {
            locked: read(locked),
            contended: read(contended),
            retries: read(retries),
            blocks: blocks.each_ref().map(read),
            groups: groups.each_ref().map(read),
            of_areas: read(of_areas),
            stops: read(stops),
            refused: read(refused),
        }
    }
}

impl SplitCounts {
    /// Leaves that were split, of all sizes.
    pub fn all(&self) -> u64 {
        self.blocks.iter().chain(&self.groups).sum()
    }
}

impl fmt::Display for SplitCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { locked, contended, retries, of_areas, stops, refused, .. } = self;
        let ([_, gib, mib, _], [_, _, of_blocks, of_pages]) = (self.blocks, self.groups);
        write!(
            f,
            "{gib} of 1 GiB, {mib} of 2 MiB ({of_areas} of areas), {of_blocks} groups of 2 MiB, {of_pages} groups of 4 KiB; \
             split lock taken {locked} times, {contended} of them after another CPU; {retries} retries; {stops} with all other \
             CPUs parked; {refused} refused"
        )
    }
}
