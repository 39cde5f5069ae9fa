//! An atomic whose every access loom takes for a reason to try another order.
//!
//! loom tries orders only for accesses that depend on each other, and for that remembers of each atomic the last access
//! and no more. A CPU that reads an entry and then writes it, as every check before a change does, so hides another
//! CPU's earlier read behind its own: the order in which its write comes first is never tried, and a test passes that
//! must not. So each access here is preceded by a relaxed read-modify-write of a word beside the value. Those all
//! depend on each other, and the last one is enough to remember; being relaxed they order nothing, as the canaries
//! show.
//!
//! A store is a read-modify-write that throws away what it read. Of a plain store loom does not say that it comes
//! behind the bit-clear that took what the storing CPU had read before: the bit-clear could so undo the store, which is
//! what being atomic rules out. Every order of stores is tried all the same, as another order of the CPUs. That the
//! store goes on with what an earlier store of another CPU released is so on Arm, where stores to one cell order the
//! CPUs, and not in C11.

use loom::sync::atomic::{AtomicU64, Ordering};

/// An entry, a walk word, or a word of the notifier chain.
pub struct Cell {
    value: AtomicU64,
    touched: AtomicU64,
}

impl Default for Cell {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Cell {
    /// With `value` in it.
    pub fn new(value: u64) -> Self {
        Self { value: AtomicU64::new(value), touched: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.touched.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn load(&self, order: Ordering) -> u64 {
        self.touch();
        self.value.load(order)
    }

    /// Writes it.
    pub fn store(&self, value: u64, order: Ordering) {
        self.touch();
        self.value.swap(value, order);
    }

    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.touch();
        self.value.compare_exchange(current, new, success, failure)
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.touch();
        self.value.fetch_add(value, order)
    }

    pub(crate) fn fetch_and(&self, mask: u64, order: Ordering) -> u64 {
        self.touch();
        self.value.fetch_and(mask, order)
    }
}
