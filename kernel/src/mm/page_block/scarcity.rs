//! How many frames stay free, exactly, although CPUs take frames without a look at each other.
//!
//! While there is plenty a CPU takes its frames with its own lock alone ([`Scarcity::open`]). A CPU that does not find
//! plenty closes that way, acquires each CPU's lock once, and then counts and takes while no other CPU takes any
//! ([`Scarcity::alone`]): one that had found the way open has finished by then, and the next one finds it closed.
//!
//! Plenty is so much that what every CPU may take once, without a look at the others, leaves what is to stay.

use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{IrqGuard, IrqLock, rank};

/// Whether CPUs take frames one after the other.
pub(super) struct Scarcity {
    /// 1 or 0. Written under `alone`.
    is_closed: AtomicU32,
    alone: IrqLock<(), { rank::SCARCE }>,
}

impl Scarcity {
    /// The way is open.
    pub(super) fn new() -> Self {
        Self { is_closed: AtomicU32::new(0), alone: IrqLock::new(()) }
    }

    /// A CPU's `own` lock, if it may take frames with that alone, once.
    #[inline(always)]
    pub(super) fn open<'a, T, const RANK: rank::Rank>(
        &self,
        own: &'a IrqLock<T, RANK>,
        has_plenty: impl FnOnce() -> bool,
    ) -> Option<IrqGuard<'a, T, RANK>> {
        // Relaxed, both: with the lock held what was stored before it was last acquired for `alone` is seen.
        let guard = own.lock();
        (self.is_closed.load(Ordering::Relaxed) == 0 && has_plenty()).then_some(guard)
    }

    /// Runs `work` while no other CPU takes frames. `pass` acquires and releases the lock of every CPU.
    #[cold]
    pub(super) fn alone<R>(
        &self,
        pass: impl FnOnce(),
        work: impl FnOnce() -> R,
        has_plenty: impl FnOnce() -> bool,
    ) -> R {
        let _alone = self.alone.lock();
        if self.is_closed.load(Ordering::Relaxed) == 0 {
            self.is_closed.store(1, Ordering::Relaxed);
            pass();
        }
        let result = work();
        if has_plenty() {
            self.is_closed.store(0, Ordering::Relaxed);
        }
        result
    }
}
