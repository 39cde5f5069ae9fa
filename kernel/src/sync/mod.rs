//! Locks that interrupts may take, in one order. The lock whose waiters sleep is `crate::sched::RwSem`.

mod lock;
#[cfg(test)]
pub(crate) mod meeting;
pub mod rank;

/// The CPU's atomics. `kernel/loom` compiles the modules that take theirs from here on loom's.
pub use core::sync::atomic;
/// Ways to wait for another CPU, replaced there likewise.
pub(crate) use granule_arch::wait;
/// Barriers and this CPU's interrupt masks, replaced there likewise.
pub use granule_arch::{barrier, interrupts};
pub use lock::{IrqGuard, IrqLock};

/// Threads that are woken under one hold of a lock.
pub(crate) const WOKEN_AT_ONCE: usize = 16;

/// Waits a moment for another CPU.
#[inline(always)]
pub(crate) fn spin() {
    #[cfg(target_os = "none")]
    wait::relax();
    #[cfg(test)]
    if meeting::waits() {
        return;
    }
    #[cfg(not(target_os = "none"))]
    std::thread::yield_now();
}
