//! How often a thread had a fault on one page replayed: with no lock held, the access was made again.
//!
//! Counted by thread and page. A fault on another page begins a new count.

use core::cell::Cell;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::timer;

use crate::chip::timer::instructions;
use crate::smp::cpu::CpuId;

/// The count in a thread: the page, with the count in the bits below it, and when and where it began. Zero: none.
#[derive(Debug, Default)]
pub(super) struct ReplayCount {
    page: Cell<u64>,
    since: Cell<u64>,
    /// Instructions of that CPU then, if its PMU counts them.
    since_instructions: Cell<Option<(CpuId, u32)>>,
}

/// A count that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replays {
    /// Replays, 1 to 4095; 4095 also stands for more.
    pub count: u32,
    /// Ticks of CNTVCT_EL0 from the first one on.
    pub ticks: u64,
    /// Instructions that the CPU has retired since, this thread's and those of others; `None` where its PMU does not count
    /// them, or the thread has moved to another CPU.
    pub instructions: Option<u32>,
}

const COUNT: u64 = PAGE - 1;

impl ReplayCount {
    pub(super) const fn new() -> Self {
        Self { page: Cell::new(0), since: Cell::new(0), since_instructions: Cell::new(None) }
    }

    /// Counts one more for `page`; returns how many there were with it. `cpu` is the CPU that this runs on.
    pub(super) fn note(&self, cpu: CpuId, page: VirtAddr) -> u32 {
        let count = if self.page.get() & !COUNT == page.0 { self.page.get() & COUNT } else { 0 };
        if count == 0 {
            self.since.set(timer::count_unordered());
            self.since_instructions.set(retired(cpu));
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
    pub(super) fn take(&self, cpu: CpuId, page: VirtAddr) -> Option<Replays> {
        let noted = self.page.replace(0);
        if noted & COUNT == 0 || noted & !COUNT != page.0 {
            return None;
        }
        let ticks = timer::count_unordered().wrapping_sub(self.since.get());
        let instructions = self.since_instructions.get().zip(retired(cpu)).and_then(|((then, since), (now, count))| {
            // Of a thread that was elsewhere in between, other CPUs' are missing.
            (then == now).then(|| count.wrapping_sub(since))
        });
        Some(Replays { count: (noted & COUNT) as u32, ticks, instructions })
    }
}

/// The instructions that `cpu`, which this runs on, has retired, modulo 2³², if its PMU counts them.
fn retired(cpu: CpuId) -> Option<(CpuId, u32)> {
    instructions().map(|count| (cpu, count as u32))
}

#[cfg(test)]
mod tests {
    use granule_arch::addr::VirtAddr;

    use super::ReplayCount;
    use crate::smp::cpu::CpuId;

    #[test]
    fn replays_are_counted_by_page() {
        const PAGES: [VirtAddr; 2] = [VirtAddr(0x1000), VirtAddr(0x7f_ffff_f000)];
        let (count, cpu) = (ReplayCount::default(), CpuId(0));
        assert_eq!(count.take(cpu, PAGES[0]), None);
        assert_eq!([count.note(cpu, PAGES[0]), count.note(cpu, PAGES[0]), count.note(cpu, PAGES[1])], [1, 2, 1]);
        assert_eq!(count.take(cpu, PAGES[0]), None);
        assert_eq!([count.note(cpu, PAGES[1]), count.note(cpu, PAGES[1])], [1, 2]);
        assert_eq!(count.take(cpu, PAGES[1]).map(|replays| replays.count), Some(2));
        assert_eq!((0..5000).map(|_| count.note(cpu, PAGES[0])).last(), Some(4095));
    }
}
