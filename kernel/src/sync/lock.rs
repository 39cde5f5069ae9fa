//! A ticket lock that masks interrupts and knows its place in the order.

#![allow(unsafe_code, reason = "data that its holders share by the lock")]

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

use granule_arch::interrupts::{self, Daif};
use spin::RelaxStrategy;
use spin::mutex::{TicketMutex, TicketMutexGuard};

use super::rank::Rank;
#[cfg(debug_assertions)]
use crate::smp::cpu::this_cpu;

/// How a waiter waits: it yields, so that an emulator with fewer host CPUs lets the holder run.
pub(super) struct Yield;

impl RelaxStrategy for Yield {
    #[inline(always)]
    fn relax() {
        super::spin();
    }
}

/// A lock that may be taken with interrupts on or off and from handlers: it masks them while it is held.
///
/// `RANK` is its place in [`super::rank`].
pub struct IrqLock<T, const RANK: Rank> {
    inner: TicketMutex<T, Yield>,
}

impl<T, const RANK: Rank> IrqLock<T, RANK> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self { inner: TicketMutex::new(value) }
    }

    /// Waits for the lock with interrupts masked.
    ///
    /// # Panics
    /// In debug builds, where this CPU already holds a lock of the same or a later rank.
    pub fn lock(&self) -> IrqGuard<'_, T, RANK> {
        #[cfg(test)]
        super::meeting::moment();
        let masked = interrupts::mask();
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().check(RANK);
        let guard = self.inner.lock();
        IrqGuard::new(guard, masked)
    }

    /// Waits for a second lock of this rank, that of a value behind the first one's in memory: there is one order of two.
    ///
    /// # Panics
    /// In debug builds, where it is in front of the first, or this CPU holds a lock of a later rank.
    pub fn lock_beside(&self, first: &IrqGuard<'_, T, RANK>) -> IrqGuard<'_, T, RANK> {
        debug_assert!(core::ptr::from_ref(&**first) < self.inner.as_mut_ptr().cast_const(), "two locks of a rank");
        let masked = interrupts::mask();
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().check(RANK + 1);
        let guard = self.inner.lock();
        IrqGuard::new(guard, masked)
    }

    /// Takes the lock if it is free. Not checked against the order, since it cannot wait.
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T, RANK>> {
        let masked = interrupts::mask();
        if let Some(guard) = self.inner.try_lock() {
            Some(IrqGuard::new(guard, masked))
        } else {
            interrupts::restore(masked);
            None
        }
    }

    /// Releases the lock that [`IrqGuard::hand_over`] has left locked. Interrupts stay masked.
    ///
    /// # Safety
    /// This CPU handed it over, and it was not released since.
    pub(crate) unsafe fn release_handed_over(&self) {
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().remove(RANK);
        // SAFETY: it is locked, and the caller is the one to release it.
        unsafe { self.inner.force_unlock() };
    }

    /// The value, whichever CPU holds the lock. For a panic.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.inner.as_mut_ptr()
    }
}

/// The lock, held. Dropping it releases the lock and puts the interrupt masks back as they were.
pub struct IrqGuard<'a, T, const RANK: Rank> {
    guard: ManuallyDrop<TicketMutexGuard<'a, T, Yield>>,
    masked: Daif,
    /// A guard stays on the CPU that took it.
    not_send: PhantomData<*const ()>,
}

impl<'a, T, const RANK: Rank> IrqGuard<'a, T, RANK> {
    fn new(guard: TicketMutexGuard<'a, T, Yield>, masked: Daif) -> Self {
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().add(RANK);
        Self { guard: ManuallyDrop::new(guard), masked, not_send: PhantomData }
    }
}

impl<T, const RANK: Rank> IrqGuard<'_, T, RANK> {
    /// Whether IRQs were on when the lock was acquired.
    pub(crate) const fn irqs_were_enabled(&self) -> bool {
        self.masked.irqs_enabled()
    }

    /// Leaves the lock locked and interrupts masked, for the thread that this CPU runs next.
    pub(crate) fn hand_over(self) {
        core::mem::forget(self);
    }
}

impl<T, const RANK: Rank> Deref for IrqGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, const RANK: Rank> DerefMut for IrqGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T, const RANK: Rank> Drop for IrqGuard<'_, T, RANK> {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        this_cpu().held_ranks().remove(RANK);
        // SAFETY: the guard is dropped here and nowhere else; the value is not used again.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        interrupts::restore(self.masked);
        #[cfg(test)]
        super::meeting::released();
    }
}
