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
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "data that its holders share by the lock")]

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

use super::{WOKEN_AT_ONCE, WaitQueue, Waiters};
use crate::sync::atomic::{AtomicU32, Ordering};

pub(super) const WRITER: u32 = 1 << 31;
const WAITING: u32 = 1 << 30;
const READERS: u32 = WAITING - 1;

/// What a waiter wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    Read,
    Write,
}

/// Data that many may read at a time, or one change. Taking it may sleep: not from interrupts, not under a spinning
/// lock.
#[derive(Default)]
pub struct RwSem<T: ?Sized> {
    pub(super) word: AtomicU32,
    pub(super) waiters: WaitQueue<Want>,
    pub(super) value: UnsafeCell<T>,
}

// SAFETY: the value goes with the lock.
unsafe impl<T: ?Sized + Send> Send for RwSem<T> {}
// SAFETY: the lock gives it to one writer, or shared to several readers.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwSem<T> {}

impl<T: ?Sized> RwSem<T> {
    /// Waits until the value may be read.
    #[inline(always)]
    pub fn read(&self) -> ReadGuard<'_, T> {
        if !self.try_take(Want::Read) {
            self.wait(Want::Read);
        }
        ReadGuard { sem: self, not_send: PhantomData }
    }

    /// Waits until the value may be changed.
    #[inline(always)]
    pub fn write(&self) -> WriteGuard<'_, T> {
        if !self.try_take(Want::Write) {
            self.wait(Want::Write);
        }
        WriteGuard { sem: self, not_send: PhantomData }
    }

    /// Takes the lock if it is free for `want` and no thread waits.
    #[inline(always)]
    pub(super) fn try_take(&self, want: Want) -> bool {
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
    pub(super) fn release(&self, held: u32) {
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
        // A waiter that came in between may have found it free, and taken it. If it has released it again, the steps of
        // `grant` acquire that.
        if self.word.load(Ordering::Relaxed) == WAITING {
            self.grant(waiters);
        }
    }

    /// Hands on a lock that is free, or that readers have: to the readers at the front, or to one writer.
    ///
    /// To so many readers at most as are woken with interrupts masked; the first of them that runs goes on, and where
    /// all have released the lock before, the last of them hands it on.
    fn grant(&self, mut waiters: Waiters<'_, Want>) {
        // Into the word before any wake-up: a quick reader must not find its share missing when it releases the lock.
        let mut readers = 0;
        loop {
            match waiters.front() {
                Some(Want::Read) if readers < WOKEN_AT_ONCE => {
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
pub struct ReadGuard<'a, T: ?Sized> {
    sem: &'a RwSem<T>,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

/// The right to change. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub struct WriteGuard<'a, T: ?Sized> {
    sem: &'a RwSem<T>,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized> WriteGuard<'a, T> {
    /// Goes on as a reader: no writer changes the value in between, and other readers come in.
    pub fn downgrade(self) -> ReadGuard<'a, T> {
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

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: there is no writer while a reader has the lock.
        unsafe { &*self.sem.value.get() }
    }
}

impl<T: ?Sized> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: no other thread has the lock.
        unsafe { &*self.sem.value.get() }
    }
}

impl<T: ?Sized> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: no other thread has the lock.
        unsafe { &mut *self.sem.value.get() }
    }
}

impl<T: ?Sized> Drop for ReadGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.sem.release(1);
    }
}

impl<T: ?Sized> Drop for WriteGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.sem.release(WRITER);
    }
}
