//! What waiting is made of: words, a lock that spins, and threads that sleep and are woken.
//!
//! [`WaitQueue`](super::WaitQueue) and [`RwSem`](super::RwSem) are generic over it, so that `kernel/loom` runs them
//! in every order.

use core::ops::DerefMut;
use core::sync::atomic::{AtomicU32, Ordering};

use super::{ThreadRef, current, park};
use crate::sync::{IrqGuard, IrqLock, rank};

/// Locks and threads: the kernel's own, or a checker's.
pub trait Primitives: Sized + 'static {
    /// A word.
    type Word: Word;
    /// A lock for a few instructions.
    type Lock<T>: Lock<T>;
    /// A thread, for its waker.
    type Thread;

    /// Threads that are woken under one hold of a lock.
    const WOKEN_AT_ONCE: usize = 16;

    /// The running thread.
    fn current() -> Self::Thread;
    /// Sleeps until the running thread is woken; returns at once where it was since the last time.
    fn park();
    /// Ends the thread's [`Self::park`], or the next one if it is in none.
    fn unpark(thread: &Self::Thread);
}

/// A word of [`Primitives`]; 0 by default. Each function is as that of [`AtomicU32`].
pub trait Word: Default + Send + Sync {
    /// Reads it.
    fn load(&self, order: Ordering) -> u32;
    /// Writes it.
    fn store(&self, value: u32, order: Ordering);
    /// Adds, wrapping, and returns what it was.
    fn fetch_add(&self, value: u32, order: Ordering) -> u32;
    /// Sets bits, and returns what it was.
    fn fetch_or(&self, bits: u32, order: Ordering) -> u32;
    /// Keeps bits, and returns what it was.
    fn fetch_and(&self, bits: u32, order: Ordering) -> u32;
    /// Writes `new` where it is `current`, or fails for no reason.
    ///
    /// # Errors
    /// What it is.
    fn compare_exchange_weak(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32>;
}

/// A lock of [`Primitives`].
pub trait Lock<T> {
    /// The lock, held.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a,
        T: 'a;

    /// A free lock.
    fn new(value: T) -> Self;
    /// Waits for the lock.
    fn lock(&self) -> Self::Guard<'_>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Native;

impl Primitives for Native {
    type Word = AtomicU32;
    type Lock<T> = IrqLock<T, { rank::WAIT }>;
    type Thread = ThreadRef;

    #[inline(always)]
    fn current() -> ThreadRef {
        current().to_ref()
    }

    #[inline(always)]
    fn park() {
        park();
    }

    #[inline(always)]
    fn unpark(thread: &ThreadRef) {
        thread.unpark();
    }
}

impl Word for AtomicU32 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }

    #[inline(always)]
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }

    #[inline(always)]
    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.fetch_add(value, order)
    }

    #[inline(always)]
    fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        self.fetch_or(bits, order)
    }

    #[inline(always)]
    fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        self.fetch_and(bits, order)
    }

    #[inline(always)]
    fn compare_exchange_weak(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        self.compare_exchange_weak(current, new, success, failure)
    }
}

impl<T> Lock<T> for IrqLock<T, { rank::WAIT }> {
    type Guard<'a>
        = IrqGuard<'a, T, { rank::WAIT }>
    where
        T: 'a;

    fn new(value: T) -> Self {
        Self::new(value)
    }

    #[inline(always)]
    fn lock(&self) -> IrqGuard<'_, T, { rank::WAIT }> {
        self.lock()
    }
}
