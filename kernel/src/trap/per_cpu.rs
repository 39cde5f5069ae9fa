//! The state of one CPU's exceptions.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A CPU's stacks and counts: part of its [`Cpu`](crate::smp::Cpu). Written by that CPU alone once it has started.
#[repr(C)]
#[derive(Debug)]
pub struct PerCpu {
    /// Top of the stack that overflow reports and other last resorts run on. The vectors read it.
    pub(super) overflow_stack_top: AtomicU64,
    /// Top of the ordinary stack.
    stack_top: AtomicU64,
    /// How deep in interrupt handlers the CPU is.
    depth: AtomicU32,
    interrupts: AtomicU64,
    probe_faults: AtomicU64,
    spurious_faults: AtomicU64,
}

impl PerCpu {
    pub(crate) const fn new() -> Self {
        Self {
            overflow_stack_top: AtomicU64::new(0),
            stack_top: AtomicU64::new(0),
            depth: AtomicU32::new(0),
            interrupts: AtomicU64::new(0),
            probe_faults: AtomicU64::new(0),
            spurious_faults: AtomicU64::new(0),
        }
    }

    /// Top of the stack of what runs.
    pub fn stack_top(&self) -> u64 {
        self.stack_top.load(Ordering::Relaxed)
    }

    /// Notes that the CPU runs on another stack from now on.
    pub(crate) fn set_stack_top(&self, top: u64) {
        self.stack_top.store(top, Ordering::Relaxed);
    }

    /// Sets both stacks, before the CPU takes exceptions.
    pub(crate) fn set_stacks(&self, top: u64, overflow_top: u64) {
        self.set_stack_top(top);
        self.overflow_stack_top.store(overflow_top, Ordering::Relaxed);
    }

    /// Top of the stack for overflow reports.
    pub(super) fn overflow_stack_top(&self) -> u64 {
        self.overflow_stack_top.load(Ordering::Relaxed)
    }

    /// Runs an interrupt handler, every exception masked.
    #[inline(always)]
    pub fn handler(&self, handler: impl FnOnce()) {
        count(&self.interrupts);
        // Only this CPU writes it, and every nested interrupt restores it: no read-modify-write is needed.
        let depth = self.depth.load(Ordering::Relaxed);
        self.depth.store(depth + 1, Ordering::Relaxed);
        handler();
        self.depth.store(depth, Ordering::Relaxed);
    }

    /// How many interrupt handlers are running.
    pub fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// Whether an interrupt handler is running.
    #[inline(always)]
    pub fn is_in_handler(&self) -> bool {
        self.depth() != 0
    }

    /// Interrupts taken.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Faults of probing accesses, which became values.
    pub fn probe_faults(&self) -> u64 {
        self.probe_faults.load(Ordering::Relaxed)
    }

    /// Translation faults that were gone when they were looked at, and so were retried.
    pub fn spurious_faults(&self) -> u64 {
        self.spurious_faults.load(Ordering::Relaxed)
    }

    pub(super) fn count_probe_fault(&self) {
        count(&self.probe_faults);
    }

    pub(super) fn count_spurious_fault(&self) {
        count(&self.spurious_faults);
    }
}

/// Adds one to a counter that only this CPU writes, with every exception masked.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
