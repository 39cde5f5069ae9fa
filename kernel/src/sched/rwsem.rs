//! A lock for many readers or one writer, whose waiters sleep.
//!
//! The word has the holders; the queue has the waiters, in the order in which they came. While there are waiters the
//! lock is not taken past the queue: neither writers starve nor readers. A release with waiters hands the lock on: to
//! the first of them, or to all readers at the front. They own it before they wake, so they need not try again.
//!
//! ```text
//! bit 31   a writer has it        bit 30   the queue may have waiters        bits 29 to 0   readers that have it
//! ```
//!
//! **The rule of `WAITING`**: it is set and cleared under the queue's lock alone, and while it is set the lock is taken
//! under the queue's lock alone. A release is an atomic without it: the setter of `WAITING` looks at the word that this
//! very step replaced, so either it sees that the lock is free, or the last holder sees `WAITING`.

#![allow(unsafe_code, reason = "data that its holders share by the lock")]

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use super::primitives::{Native, Primitives, Word};
use super::{WaitQueue, Waiters};

const WRITER: u32 = 1 << 31;
const WAITING: u32 = 1 << 30;
const READERS: u32 = WAITING - 1;

/// What a waiter wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    Read,
    Write,
}

/// Data that many may read at a time, or one change. Taking it may sleep: not from interrupts, not under a spinning
/// lock.
pub struct RwSem<T: ?Sized, P: Primitives = Native> {
    word: P::Word,
    waiters: WaitQueue<Want, P>,
    value: UnsafeCell<T>,
}

// SAFETY: the value goes with the lock.
unsafe impl<T: ?Sized + Send, P: Primitives> Send for RwSem<T, P> {}
// SAFETY: the lock gives it to one writer, or shared to several readers.
unsafe impl<T: ?Sized + Send + Sync, P: Primitives> Sync for RwSem<T, P> {}

impl<T> RwSem<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), waiters: WaitQueue::new(), value: UnsafeCell::new(value) }
    }
}

impl<T: Default, P: Primitives> Default for RwSem<T, P> {
    fn default() -> Self {
        Self { word: P::Word::default(), waiters: WaitQueue::default(), value: UnsafeCell::default() }
    }
}

impl<T: ?Sized, P: Primitives> RwSem<T, P> {
    /// Waits until the value may be read.
    #[inline(always)]
    pub fn read(&self) -> ReadGuard<'_, T, P> {
        if !self.try_take(Want::Read) {
            self.wait(Want::Read);
        }
        ReadGuard { sem: self, not_send: PhantomData }
    }

    /// Waits until the value may be changed.
    #[inline(always)]
    pub fn write(&self) -> WriteGuard<'_, T, P> {
        if !self.try_take(Want::Write) {
            self.wait(Want::Write);
        }
        WriteGuard { sem: self, not_send: PhantomData }
    }

    /// Reads if no writer has the lock and none waits.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T, P>> {
        self.try_take(Want::Read).then(|| ReadGuard { sem: self, not_send: PhantomData })
    }

    /// Writes if the lock is free.
    pub fn try_write(&self) -> Option<WriteGuard<'_, T, P>> {
        self.try_take(Want::Write).then(|| WriteGuard { sem: self, not_send: PhantomData })
    }

    /// The value, through exclusive access to the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Whether a writer has it now. For assertions: the answer may be old when it arrives.
    pub fn is_write_locked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & WRITER != 0
    }

    /// Whether it is held now. For assertions.
    pub fn is_locked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & (WRITER | READERS) != 0
    }

    /// Takes the lock if it is free for `want` and no thread waits.
    #[inline(always)]
    fn try_take(&self, want: Want) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let taken = match want {
                Want::Read if word & (WRITER | WAITING) == 0 => word + 1,
                Want::Write if word == 0 => WRITER,
                _ => return false,
            };
            match self.word.compare_exchange_weak(word, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, want: Want) {
        let waiters = self.waiters.lock();
        let word = self.word.fetch_or(WAITING, Ordering::Acquire);
        let free = match want {
            Want::Read => word & WRITER == 0,
            Want::Write => word & (WRITER | READERS) == 0,
        };
        if free && waiters.is_empty() {
            // No other thread takes it while WAITING is set; the same step clears it.
            let taken = match want {
                Want::Read => 1,
                Want::Write => WRITER,
            };
            self.word.fetch_add(taken.wrapping_sub(WAITING), Ordering::Acquire);
            return;
        }
        // The thread that hands the lock on has stored this thread's share into the word before the wake-up.
        waiters.wait(want);
        if want == Want::Read && self.word.load(Ordering::Relaxed) & WAITING != 0 {
            self.grant_more();
        }
    }

    /// Goes on where a grant has stopped: a reader has been granted the lock, and more may be at the front.
    fn grant_more(&self) {
        let waiters = self.waiters.lock();
        // This thread is a reader, so that no writer has the lock.
        if waiters.front() == Some(&Want::Read) {
            self.grant(waiters);
        }
    }

    #[inline(always)]
    fn release(&self, held: u32) {
        let word = self.word.fetch_add(held.wrapping_neg(), Ordering::Release).wrapping_sub(held);
        if word == WAITING {
            self.hand_on();
        }
    }

    /// Gives the lock to the longest waiter. Called when the last holder has released it and a thread waits.
    #[cold]
    #[inline(never)]
    fn hand_on(&self) {
        let waiters = self.waiters.lock();
        // A waiter that came in between may have found it free, and taken it.
        if self.word.load(Ordering::Acquire) == WAITING {
            self.grant(waiters);
        }
    }

    /// Hands on a lock that is free, or that readers have: to the readers at the front, or to one writer.
    ///
    /// To so many readers at most as are woken with interrupts masked; the first of them that runs goes on, and where
    /// all have released the lock before, the last of them hands it on.
    fn grant(&self, mut waiters: Waiters<'_, Want, P>) {
        // Into the word before any wake-up: a quick reader must not find its share missing when it releases the lock.
        let mut readers = 0;
        loop {
            match waiters.front() {
                Some(Want::Read) if readers < P::WOKEN_AT_ONCE => {
                    readers += 1;
                    self.word.fetch_add(1, Ordering::Acquire);
                    waiters.wake_front();
                }
                Some(Want::Write) if readers == 0 => {
                    self.word.fetch_or(WRITER, Ordering::Acquire);
                    waiters.wake_front();
                    break;
                }
                _ => break,
            }
        }
        if waiters.is_empty() {
            self.word.fetch_and(!WAITING, Ordering::Relaxed);
        }
    }
}

/// The right to read. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub struct ReadGuard<'a, T: ?Sized, P: Primitives = Native> {
    sem: &'a RwSem<T, P>,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

/// The right to change. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub struct WriteGuard<'a, T: ?Sized, P: Primitives = Native> {
    sem: &'a RwSem<T, P>,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized, P: Primitives> WriteGuard<'a, T, P> {
    /// Goes on as a reader: no writer changes the value in between, and other readers come in.
    pub fn downgrade(self) -> ReadGuard<'a, T, P> {
        let guard = ManuallyDrop::new(self);
        let sem = guard.sem;
        let word = sem.word.fetch_add((WRITER - 1).wrapping_neg(), Ordering::Release) - (WRITER - 1);
        if word & WAITING != 0 {
            let waiters = sem.waiters.lock();
            // A writer at the front goes on waiting, for this reader.
            if waiters.front() == Some(&Want::Read) {
                sem.grant(waiters);
            }
        }
        ReadGuard { sem, not_send: PhantomData }
    }
}

impl<T: ?Sized, P: Primitives> Deref for ReadGuard<'_, T, P> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: there is no writer while a reader has the lock.
        unsafe { &*self.sem.value.get() }
    }
}

impl<T: ?Sized, P: Primitives> Deref for WriteGuard<'_, T, P> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: no other thread has the lock.
        unsafe { &*self.sem.value.get() }
    }
}

impl<T: ?Sized, P: Primitives> DerefMut for WriteGuard<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: no other thread has the lock.
        unsafe { &mut *self.sem.value.get() }
    }
}

impl<T: ?Sized, P: Primitives> Drop for ReadGuard<'_, T, P> {
    #[inline(always)]
    fn drop(&mut self) {
        self.sem.release(1);
    }
}

impl<T: ?Sized, P: Primitives> Drop for WriteGuard<'_, T, P> {
    #[inline(always)]
    fn drop(&mut self) {
        self.sem.release(WRITER);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::RwSem;

    #[test]
    fn readers_share_and_a_writer_does_not() {
        let sem = RwSem::new(7);
        {
            let (first, second) = (sem.read(), sem.read());
            assert_eq!((*first, *second), (7, 7));
            assert!(sem.try_write().is_none() && sem.is_locked() && !sem.is_write_locked());
        }
        {
            *sem.write() = 8;
            let writer = sem.write();
            assert!(sem.try_read().is_none() && sem.try_write().is_none() && sem.is_write_locked());
            let reader = writer.downgrade();
            assert_eq!(*reader, 8);
            assert!(sem.try_read().is_some() && sem.try_write().is_none());
        }
        assert!(!sem.is_locked() && sem.try_write().is_some());
    }

    /// Two words that only writers change, always together.
    #[test]
    fn writers_and_readers_in_any_order_see_whole_values() {
        const ROUNDS: u64 = 2000;
        let sem = RwSem::new((0u64, 0u64));
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for number in 0..3 {
                let (sem, inside) = (&sem, &inside);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mut writer = sem.write();
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two inside");
                        writer.0 += 1;
                        if round % 3 == number {
                            std::thread::yield_now();
                        }
                        writer.1 += 1;
                        inside.fetch_sub(1, Ordering::Relaxed);
                        if round % 5 == 0 {
                            let reader = writer.downgrade();
                            assert_eq!(reader.0, reader.1);
                        }
                    }
                });
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let reader = sem.read();
                        assert_eq!(reader.0, reader.1);
                        if reader.0 % 7 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        assert_eq!(*sem.read(), (3 * ROUNDS, 3 * ROUNDS));
        assert!(sem.try_write().is_some(), "nothing is left of those that waited");
    }

    #[test]
    fn a_reader_does_not_pass_a_writer_that_waits() {
        let sem = RwSem::new(());
        let order = AtomicU32::new(0);
        let first = sem.read();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let _writer = sem.write();
                order.fetch_add(1, Ordering::Relaxed)
            });
            while sem.try_read().is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let reader = scope.spawn(|| {
                let _reader = sem.read();
                order.fetch_add(1, Ordering::Relaxed)
            });
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(order.load(Ordering::Relaxed), 0, "neither has it while the first reader does");
            drop(first);
            assert_eq!((writer.join().unwrap(), reader.join().unwrap()), (0, 1));
        });
    }
}
