//! A replacement for the kernel's `sync`.

#![allow(unsafe_code, reason = "data that its holders share by the lock")]

use std::cell::{OnceCell, UnsafeCell};
use std::ops::{Deref, DerefMut};

use loom::sync::{Mutex, MutexGuard};

pub use granule::sync::rank;

use crate::sched::has_waited;
use atomic::{Omitted, omits};

pub mod atomic;
pub mod interrupts;
pub(crate) mod wait;

/// Fences in place of barriers.
pub(crate) mod barrier {
    use super::atomic::{Ordering, fence};

    pub(crate) fn dsb_ishst() {
        fence(Ordering::Release);
    }

    pub(crate) fn dsb_sy() {
        fence(Ordering::SeqCst);
    }
}

/// Threads that are woken under one hold of a lock: so that a grant continues in the readers that were granted, as with
/// many of them.
pub(crate) const WOKEN_AT_ONCE: usize = 1;

/// Another thread's turn.
pub(crate) fn spin() {
    loom::thread::yield_now();
}

/// A lock. It becomes one of loom's where it is first acquired, so that a constant can have one.
pub struct IrqLock<T, const RANK: rank::Rank>(OnceCell<Mutex<()>>, UnsafeCell<T>);

// SAFETY: the value is reached by the lock's holder, or, where a test has it so, by one thread after the other.
unsafe impl<T: Send, const RANK: rank::Rank> Sync for IrqLock<T, RANK> {}

/// The lock, held; or not, where that is left out.
pub struct IrqGuard<'a, T, const RANK: rank::Rank> {
    _guard: Option<MutexGuard<'a, ()>>,
    value: *mut T,
}

impl<T, const RANK: rank::Rank> IrqLock<T, RANK> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self(OnceCell::new(), UnsafeCell::new(value))
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn lock(&self) -> IrqGuard<'_, T, RANK> {
        let without = has_waited() && omits(Omitted::LastLock) || omits(Omitted::Lock(RANK));
        let guard = (!without).then(|| self.0.get_or_init(Mutex::default).lock().expect("no thread has panicked"));
        IrqGuard { _guard: guard, value: self.1.get() }
    }

    /// The lock, if it is free.
    ///
    /// # Panics
    /// As [`Self::lock`].
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T, RANK>> {
        let guard = self.0.get_or_init(Mutex::default).try_lock().ok()?;
        Some(IrqGuard { _guard: Some(guard), value: self.1.get() })
    }
}

impl<T, const RANK: rank::Rank> Deref for IrqGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held; without it loom's threads still run one at a time, and change in its functions
        // alone.
        unsafe { &*self.value }
    }
}

impl<T, const RANK: rank::Rank> DerefMut for IrqGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`.
        unsafe { &mut *self.value }
    }
}

/// Stands in the place of the ranks of a CPU's locks.
pub(crate) struct NoRanks;

impl NoRanks {
    pub(crate) fn bits(&self) -> u32 {
        0
    }

    pub(crate) fn check(&self, _rank: rank::Rank) {}

    pub(crate) fn add(&self, _rank: rank::Rank) {}

    pub(crate) fn remove(&self, _rank: rank::Rank) {}
}

/// Moments of the tests on the host, of which loom has its own.
#[cfg(test)]
pub mod meeting {
    /// Nothing more than loom does at each access.
    pub fn moment() {}

    /// As [`moment`].
    pub fn released() {}
}
