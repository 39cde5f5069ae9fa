//! How often a thread had a fault on one page replayed: with no lock held, the access was made again.
//!
//! Counted by thread and page. A fault on another page begins a new count.

use core::cell::Cell;

use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::timer;

/// The count in a thread: the page, with the count in the bits below it, and when it began. Zero: none.
#[derive(Debug, Default)]
pub(super) struct ReplayCount {
    page: Cell<u64>,
    since: Cell<u64>,
}

/// A count that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replays {
    /// Replays, 1 to 4095.
    pub count: u32,
    /// Ticks of the counter from the first one on.
    pub ticks: u64,
}

const COUNT: u64 = PAGE_SIZE as u64 - 1;

impl ReplayCount {
    #[cfg(target_os = "none")]
    pub(super) const fn new() -> Self {
        Self { page: Cell::new(0), since: Cell::new(0) }
    }

    /// Counts one more for `page`; returns how many there were with it.
    pub(super) fn note(&self, page: VirtAddr) -> u32 {
        let count = if self.page.get() & !COUNT == page.0 { self.page.get() & COUNT } else { 0 };
        if count == 0 {
            self.since.set(timer::count_unordered());
        }
        let count = (count + 1).min(COUNT);
        self.page.set(page.0 | count);
        count as u32
    }

    /// Whether there is a count.
    #[inline(always)]
    pub(super) fn is_begun(&self) -> bool {
        self.page.get() != 0
    }

    /// Ends the count, which is that of `page` or is dropped.
    #[cold]
    #[inline(never)]
    pub(super) fn take(&self, page: VirtAddr) -> Option<Replays> {
        let noted = self.page.replace(0);
        if noted & COUNT == 0 || noted & !COUNT != page.0 {
            return None;
        }
        let ticks = timer::count_unordered().wrapping_sub(self.since.get());
        Some(Replays { count: (noted & COUNT) as u32, ticks })
    }
}

#[cfg(test)]
mod tests {
    use granule_arch::addr::VirtAddr;

    use super::ReplayCount;

    #[test]
    fn replays_are_counted_by_page() {
        const PAGES: [VirtAddr; 2] = [VirtAddr(0x1000), VirtAddr(0x7f_ffff_f000)];
        let count = ReplayCount::default();
        assert_eq!(count.take(PAGES[0]), None);
        assert_eq!([count.note(PAGES[0]), count.note(PAGES[0]), count.note(PAGES[1])], [1, 2, 1]);
        assert_eq!(count.take(PAGES[0]), None);
        assert_eq!([count.note(PAGES[1]), count.note(PAGES[1])], [1, 2]);
        assert_eq!(count.take(PAGES[1]).map(|replays| replays.count), Some(2));
        assert_eq!((0..5000).map(|_| count.note(PAGES[0])).last(), Some(4095));
    }
}
