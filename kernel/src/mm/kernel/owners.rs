//! The ranges that each CPU changes without a lock, recorded in debug builds, so that two owners of one page are found.
//!
//! A lockless change has nothing to keep a second one out but that its caller owns the range. So each CPU writes down
//! what it is changing and then looks what the others are:
//!
//! ```text
//!     CPU 0: its range ← a; DMB ISH; reads CPU 1's        CPU 1: its range ← b; DMB ISH; reads CPU 0's
//! ```
//! At least one of them reads the other's (Arm ARM B2.3, store buffering). A release build keeps no record.

use granule_arch::addr::VirtAddr;
use granule_pgtable::PageRange;

/// A range is on record as this CPU's while this lives. It is dropped where it was made.
#[must_use = "the range is on record only while this lives"]
pub(super) struct RangeOwnerCheck {
    #[cfg(debug_assertions)]
    ranges: &'static record::OwnedRanges,
    not_send: core::marker::PhantomData<*const ()>,
}

impl RangeOwnerCheck {
    /// Puts `range` on record as what this CPU is changing.
    ///
    /// # Panics
    /// In debug builds, where a page of it is on record already: another CPU's, or what this handler has interrupted.
    #[inline(always)]
    pub(super) fn new(range: PageRange) -> Self {
        Self::with_alias(range, |_| None)
    }

    /// As [`Self::new`] for `range` and its alias: `alias` maps a page of the range to its other address. The first
    /// runs of the alias are recorded; the others are only compared with the records of other CPUs.
    ///
    /// # Panics
    /// As [`Self::new`], for each page of the alias too.
    #[inline(always)]
    pub(super) fn with_alias(range: PageRange, alias: impl Fn(VirtAddr) -> Option<VirtAddr>) -> Self {
        let _ = (range, &alias);
        Self {
            #[cfg(debug_assertions)]
            ranges: record::add(crate::smp::this_cpu(), range, alias),
            not_send: core::marker::PhantomData,
        }
    }

    /// Removes the record of `check`, if it is still there. Nothing in a release build, which has no records.
    #[inline(always)]
    pub(super) fn end(check: &mut Option<Self>) {
        if cfg!(debug_assertions) {
            *check = None;
        }
    }
}

#[cfg(debug_assertions)]
impl Drop for RangeOwnerCheck {
    fn drop(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(debug_assertions)]
pub use record::Owners;

#[cfg(debug_assertions)]
mod record {
    use core::sync::atomic::{AtomicU64, Ordering, fence};

    use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
    use granule_pgtable::PageRange;

    use crate::smp::{self, Cpu, CpuId, MAX_CPUS};

    /// How deep a CPU can be in changes: handlers nest.
    const DEPTH: usize = 4;
    /// Ranges of one change: its own, and so many runs of its alias.
    const RANGES: usize = 5;

    /// The changes that one CPU makes, each handler's after the one that it has interrupted.
    #[derive(Debug)]
    pub struct Owners([OwnedRanges; DEPTH]);

    impl Owners {
        /// Nothing.
        #[expect(clippy::new_without_default, reason = "a static's initialiser, which Default cannot be")]
        pub const fn new() -> Self {
            Self([const { OwnedRanges([const { AtomicU64::new(0) }; RANGES]) }; DEPTH])
        }
    }

    /// The ranges of one change, or 0; none where the first is 0. Only their CPU writes them, and others read them
    /// at any time: so both ends are in one word, the number of the first page above [`COUNT_BITS`] bits with the
    /// number of pages, which is never 0.
    #[derive(Debug)]
    pub(super) struct OwnedRanges([AtomicU64; RANGES]);

    /// A terabyte of pages; the first so many of a longer range are on record.
    const COUNT_BITS: u32 = 28;
    const MOST_PAGES: u64 = (1 << COUNT_BITS) - 1;
    /// The upper half's bits above a page number that fits.
    const UPPER_HALF: u64 = !0 << (64 - COUNT_BITS + PAGE_SIZE.trailing_zeros());

    impl OwnedRanges {
        pub(super) fn clear(&self) {
            // Release: the change that they were for comes before. The first last: until then no handler takes the
            // place.
            self.0.iter().rev().for_each(|slot| slot.store(0, Ordering::Release));
        }

        /// The first and the last address of each.
        fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
            self.0.iter().map(|slot| slot.load(Ordering::Acquire)).filter(|&word| word != 0).map(|word| {
                let start = word >> COUNT_BITS << PAGE_SIZE.trailing_zeros() | UPPER_HALF;
                (start, start + (word & MOST_PAGES) * PAGE - 1)
            })
        }
    }

    fn set(slot: &AtomicU64, range: PageRange) {
        let pages = (range.pages() as u64).min(MOST_PAGES);
        slot.store((range.start().0 / PAGE) << COUNT_BITS | pages, Ordering::Relaxed);
    }

    pub(super) fn add(
        cpu: &'static Cpu,
        range: PageRange,
        alias: impl Fn(VirtAddr) -> Option<VirtAddr>,
    ) -> &'static OwnedRanges {
        refuse_overlap(cpu, range);
        let change =
            cpu.owners().0.iter().find(|change| change.ranges().next().is_none()).expect("handlers nest less deep");
        set(&change.0[0], range);
        let mut slots = change.0[1..].iter();
        for_each_run(range, &alias, |run| {
            refuse_overlap(cpu, run);
            if let Some(slot) = slots.next() {
                set(slot, run);
            }
        });
        fence(Ordering::SeqCst);
        refuse_others(cpu, range);
        for_each_run(range, &alias, |run| refuse_others(cpu, run));
        change
    }

    /// Calls `each` with the pages that `alias` gives for those of `range`, in runs.
    fn for_each_run(range: PageRange, alias: impl Fn(VirtAddr) -> Option<VirtAddr>, mut each: impl FnMut(PageRange)) {
        let mut run: Option<(VirtAddr, usize)> = None;
        let mut end_of = |(start, pages)| PageRange::from_pages(start, pages).into_iter().for_each(&mut each);
        for page in 0..range.pages() as u64 {
            let Some(next) = alias(range.start() + page * PAGE) else { continue };
            run = match run {
                Some((start, pages)) if start + (pages * PAGE_SIZE) as u64 == next => Some((start, pages + 1)),
                before => {
                    before.into_iter().for_each(&mut end_of);
                    Some((next, 1))
                }
            };
        }
        run.into_iter().for_each(end_of);
    }

    fn refuse_others(cpu: &Cpu, range: PageRange) {
        for number in 0..MAX_CPUS as u32 {
            if let Some(other) = smp::cpu(CpuId(number)).filter(|other| !core::ptr::eq(*other, cpu)) {
                refuse_overlap(other, range);
            }
        }
    }

    fn refuse_overlap(cpu: &Cpu, range: PageRange) {
        for (start, last) in cpu.owners().0.iter().flat_map(OwnedRanges::ranges) {
            assert!(
                last < range.start().0 || range.last().0 < start,
                "{range:?} is to be changed without a lock, while CPU {} is changing {} to {}: one of them is not its \
                 exclusive owner",
                cpu.id.0,
                VirtAddr(start),
                VirtAddr(last),
            );
        }
    }
}
