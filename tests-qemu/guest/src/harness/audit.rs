//! Looks the kernel over after each test: what a test leaves behind fails it.
//!
//! A test that passes and leaves an interrupt masked or a frame taken has broken every test behind it, which would
//! then fail far from the cause. What can be put right is, so that the next test starts sound.

use core::sync::atomic::Ordering;

use granule::smp::this_cpu;
use granule_arch::interrupts;

/// What must be the same before a test and after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Snapshot {
    irqs_enabled: bool,
    /// A bit for each rank of which a lock is held (debug builds).
    held_ranks: u32,
    interrupt_depth: u32,
    /// Inside a lockless walk.
    walking: bool,
}

impl Snapshot {
    /// The kernel as it is now.
    pub(crate) fn take() -> Self {
        let cpu = this_cpu();
        Self {
            irqs_enabled: interrupts::state().irqs_enabled(),
            held_ranks: cpu.held_ranks.load(Ordering::Relaxed),
            interrupt_depth: cpu.interrupt_depth.load(Ordering::Relaxed),
            walking: cpu.walk.load(Ordering::Relaxed) % 2 != 0,
        }
    }

    /// Prints what is not as it was, and returns how many things that are.
    pub(crate) fn compare(&self, before: &Self) -> u32 {
        let mut findings = 0;
        let mut find = |what: &str, wrong: bool| {
            if wrong {
                findings += 1;
                granule::println!("audit: the test left {what}");
            }
        };
        find("interrupts masked", !self.irqs_enabled);
        find("a lock held", self.held_ranks != 0);
        find("an interrupt unfinished", self.interrupt_depth != 0);
        find("a lockless walk open", self.walking);
        let _ = before;
        if !self.irqs_enabled {
            interrupts::enable();
        }
        findings
    }
}
