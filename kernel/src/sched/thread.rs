//! Threads on the target.

use granule_arch::wait;

/// A thread, for whoever wakes it.
#[derive(Clone, Debug)]
pub struct ThreadRef(());

impl ThreadRef {
    /// Ends the thread's [`park`], or the next one if it is in none.
    pub fn unpark(&self) {}
}

/// The running thread.
pub fn current() -> ThreadRef {
    ThreadRef(())
}

/// Sleeps until somebody calls [`ThreadRef::unpark`]; returns at once where somebody has since the last time.
pub fn park() {
    wait::relax();
}
