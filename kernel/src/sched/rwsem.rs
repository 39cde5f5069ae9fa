//! A lock for many readers or one writer, whose waiters sleep.
//!
//! The word has the holders; the queue has the waiters, in the order in which they came. While there are waiters the
//! lock is not taken past the queue: neither writers starve nor readers. A release with waiters hands the lock on: to
//! the first of them, or to all readers at the front. They own it before they wake, so they need not try again. If the
//! writer runs, a waiter spins briefly before it sleeps.
//!
//! ```text
//! bit 63       bit 62                       bits 61 to 46                          bits 45 to 0
//! a writer     the queue may have waiters   CPUs that may be reading for a moment  readers that have it
//! ```
//!
//! **The rule of `WAITING`**: it is set and cleared under the queue's lock alone, and while it is set the lock is taken
//! under the queue's lock alone. A release is an atomic without it: the setter of `WAITING` looks at the word that this
//! very step replaced, so either it sees that the lock is free, or the last holder sees `WAITING`.
//!
//! # Readers for a moment write nothing that they share
//! A reader that does not sleep ([`RwSem::read_briefly`]) stores the lock's address into a slot of its CPU and looks at the
//! word again: no writer, and this CPU's bit still set, so it is a reader. The bit is set by its CPU's first such reader
//! after a writer of another. A writer takes the word, with it the bits of the others, and waits for the CPUs of these
//! bits to leave its lock.
//!
//! ```text
//! reader   store slot (release)   load word (acquire)        writer   exchange word (release)   load slots (acquire)
//! ```
//! Of the two at least one sees the other: a load-acquire is not before a store-release that precedes it in the program
//! (Arm ARM B2.3.7). Both are Rust's `SeqCst`, as `Acquire` may be a load that is not held back (LDAPR).
//!
//! `kernel/loom` compiles this file on loom's atomics and threads.

#![allow(unsafe_code, reason = "data that its holders share by the lock")]

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

use super::machine::running;
use super::order;
use super::wait::{WaitQueue, Waiters};
use crate::smp::{self, Cpu, CpuId, this_cpu};
use crate::sync::WOKEN_AT_ONCE;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(debug_assertions)]
use crate::sync::rank;
use crate::sync::rank::Sleeping;
use crate::sync::spin;

pub(super) const WRITER: u64 = 1 << 63;
const WAITING: u64 = 1 << 62;
pub(super) const BRIEF_SHIFT: u32 = 46;
pub(super) const BRIEF: u64 = 0xffff << BRIEF_SHIFT;
const READERS: u64 = (1 << BRIEF_SHIFT) - 1;
const _: () = assert!(smp::MAX_CPUS <= 16);
/// Looks at a lock before its waiter sleeps, of some thirty instructions each: most changes of areas have ended by then.
const LOOKS: usize = 500;

/// The access that a waiter wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    Read,
    Write,
}

/// Data that many may read at a time, or one change. Taking it may sleep: not from interrupts, not under a spinning
/// lock.
///
/// Debug builds check its place in the order of locks ([`rank`]).
pub struct RwSem<T: ?Sized> {
    pub(super) rank: Sleeping,
    pub(super) word: AtomicU64,
    pub(super) waiters: WaitQueue<Want>,
    pub(super) value: UnsafeCell<T>,
}

/// The lock that a CPU reads under for a moment. Part of its [`Cpu`].
#[derive(Debug)]
#[allow(unreachable_pub, reason = "part of the kernel's `Cpu`, which is public; `kernel/loom` has its own")]
pub struct BriefSlot {
    /// The lock, by its address; 0 for none.
    pub(super) lock: AtomicUsize,
    /// The CPU's bit in the words of locks.
    pub(super) bit: u64,
}

// SAFETY: the value goes with the lock.
unsafe impl<T: ?Sized + Send> Send for RwSem<T> {}
// SAFETY: the lock gives it to one writer, or shared to several readers.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwSem<T> {}

impl<T: ?Sized> RwSem<T> {
    /// Waits until the value may be read.
    #[inline(never)]
    pub fn read(&self) -> ReadGuard<'_, T> {
        let rank = order::acquire(self.rank);
        if self.try_take(Want::Read, 0).is_none() {
            self.wait(Want::Read);
        }
        ReadGuard { sem: self, rank, not_send: PhantomData }
    }

    /// The value, if it may be read at once. Sleeps never: under spinning locks before the rank `WAIT` as well.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        self.try_take(Want::Read, 0).map(|_| {
            order::note(self.rank);
            ReadGuard { sem: self, rank: self.rank, not_send: PhantomData }
        })
    }

    /// Waits until the value may be read for a moment, in which the thread does not sleep. While no writer comes, nothing
    /// that CPUs share is written.
    ///
    /// Sleeps while a writer has the lock or threads wait: not from interrupts, and under no spinning lock.
    ///
    /// # Safety
    /// `cpu` is the CPU that this runs on. While the thread has the guard it does not sleep, unless the guard
    /// [says](BriefGuard::may_sleep) that it may, and takes no other such guard.
    #[inline(always)]
    pub unsafe fn read_briefly<'a>(&'a self, cpu: &'a Cpu) -> BriefGuard<'a, T> {
        if !smp::ARE_FOUND_BY_NUMBER {
            return self.read_counted();
        }
        self.try_read_briefly(cpu).unwrap_or_else(|| self.read_announced(cpu))
    }

    /// Reads by the slot, if no writer comes and this CPU's bit is set.
    #[inline(always)]
    fn try_read_briefly<'a>(&'a self, cpu: &'a Cpu) -> Option<BriefGuard<'a, T>> {
        let rank = order::acquire(self.rank);
        #[cfg(debug_assertions)]
        cpu.held_ranks().add(rank::BRIEF);
        let BriefSlot { lock, bit } = cpu.brief();
        lock.store(self.name(), Ordering::SeqCst);
        let guard = BriefGuard { sem: self, cpu: Some(cpu), rank, not_send: PhantomData };
        (self.word.load(Ordering::SeqCst) & (WRITER | WAITING | bit) == *bit).then_some(guard)
    }

    /// As [`Self::try_read_briefly`], if this CPU's bit may be missing; by the count of readers where a writer comes.
    #[cold]
    #[inline(never)]
    fn read_announced<'a>(&'a self, cpu: &'a Cpu) -> BriefGuard<'a, T> {
        let free = |word: u64| (word & (WRITER | WAITING) == 0).then_some(word | cpu.brief().bit);
        let is_announced = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).is_ok();
        is_announced.then(|| self.try_read_briefly(cpu)).flatten().unwrap_or_else(|| self.read_counted())
    }

    /// The guard of [`Self::read_briefly`] for a reader that is counted: the thread may sleep while it has it.
    #[cold]
    pub fn read_counted(&self) -> BriefGuard<'_, T> {
        let rank = ManuallyDrop::new(self.read()).rank;
        BriefGuard { sem: self, cpu: None, rank, not_send: PhantomData }
    }

    /// The value that slots have for this lock: its address.
    fn name(&self) -> usize {
        core::ptr::from_ref(&self.word).addr()
    }

    /// Waits until the CPUs that were announced in `word`, which this writer has replaced, have left the lock.
    #[cold]
    fn wait_for_brief(&self, word: u64) {
        let mut left = (word & BRIEF) >> BRIEF_SHIFT;
        while left != 0 {
            let number = left.trailing_zeros();
            left &= left - 1;
            let Some(cpu) = smp::cpu(CpuId(number)) else { continue };
            // The CPU's reads come before this writer's changes.
            while cpu.brief().lock.load(Ordering::SeqCst) == self.name() {
                spin();
            }
        }
    }

    /// Waits until the value may be changed.
    #[inline(always)]
    pub fn write(&self) -> WriteGuard<'_, T> {
        let rank = order::acquire(self.rank);
        let own = this_cpu().brief().bit;
        match self.try_take(Want::Write, own) {
            // On this CPU a reader for a moment has ended before this thread went on: its bit stays.
            Some(word) if word & BRIEF & !own == 0 => {}
            Some(word) => self.wait_for_brief(word),
            None => self.wait(Want::Write),
        }
        WriteGuard { sem: self, rank, not_send: PhantomData }
    }

    /// Takes the lock if it is free for `want` and no thread waits; the word that this replaced. A writer's CPU leaves its
    /// `own` bit.
    #[inline(always)]
    pub(super) fn try_take(&self, want: Want, own: u64) -> Option<u64> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let taken = match want {
                Want::Read if word & (WRITER | WAITING) == 0 => word + 1,
                Want::Write if word & !BRIEF == 0 => WRITER | own,
                _ => return None,
            };
            let order = if want == Want::Write { Ordering::SeqCst } else { Ordering::Acquire };
            match self.word.compare_exchange_weak(word, taken, order, Ordering::Relaxed) {
                Ok(_) => return Some(word),
                Err(found) => word = found,
            }
        }
    }

    /// Takes the lock from a writer that runs, if it releases it soon. By the steps of one that comes only then.
    fn try_take_awake(&self, want: Want) -> bool {
        let mut holder = None;
        for _ in 0..LOOKS {
            let word = self.word.load(Ordering::Relaxed);
            if word & WRITER == 0 {
                let taken = self.try_take(want, this_cpu().brief().bit);
                if let (Want::Write, Some(word)) = (want, taken) {
                    self.wait_for_brief(word);
                }
                return taken.is_some();
            }
            // A writer leaves the bit of its own CPU, if any: there it runs, or sleeps.
            let number = (word & BRIEF) >> BRIEF_SHIFT;
            let cpu = CpuId(number.trailing_zeros());
            let runs = smp::cpu(cpu).filter(|_| cpu != this_cpu().id).and_then(running);
            if word & WAITING != 0 || runs.is_none() || holder.is_some_and(|holder| Some(holder) != runs) {
                return false;
            }
            holder = runs;
            spin();
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, want: Want) {
        if self.try_take_awake(want) {
            return;
        }
        let waiters = self.waiters.lock();
        // Relaxed: what takes the lock is the next step, or what hands it on.
        let word = self.word.fetch_or(WAITING, Ordering::Relaxed);
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
            drop(waiters);
            return self.wait_behind_word(want);
        }
        // The thread that hands the lock on has stored this thread's share into the word before the wake-up.
        waiters.wait(want);
        if want == Want::Read && self.word.load(Ordering::Relaxed) & WAITING != 0 {
            self.grant_more();
        }
        self.wait_behind_word(want);
    }

    /// Takes the other CPUs' bits, as a writer that has the word, and leaves its own, as in [`Self::try_take`].
    fn wait_behind_word(&self, want: Want) {
        if want == Want::Write {
            let own = this_cpu().brief().bit;
            let word = self.word.fetch_and(!BRIEF | own, Ordering::SeqCst);
            self.wait_for_brief(word);
            if word & own == 0 {
                self.word.fetch_or(own, Ordering::Relaxed);
            }
        }
    }

    /// Continues where a grant has stopped: a reader has been granted the lock, and more may be at the front.
    fn grant_more(&self) {
        let waiters = self.waiters.lock();
        // This thread is a reader, so that no writer has the lock.
        if waiters.front() == Some(&Want::Read) {
            self.grant(waiters);
        }
    }

    #[inline(always)]
    pub(super) fn release(&self, held: u64) {
        let word = self.word.fetch_add(held.wrapping_neg(), Ordering::Release).wrapping_sub(held);
        if word & !BRIEF == WAITING {
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
        if self.word.load(Ordering::Relaxed) & !BRIEF == WAITING {
            self.grant(waiters);
        }
    }

    /// Hands on a lock that is free, or that readers have: to the readers at the front, or to one writer.
    ///
    /// To so many readers at most as are woken with interrupts masked; the first of them that runs continues, and where
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
    rank: Sleeping,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

/// The right to read for a moment, in which the thread does not sleep. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub struct BriefGuard<'a, T: ?Sized> {
    sem: &'a RwSem<T>,
    /// The CPU in whose slot it is; none where it is one of the readers that are counted.
    cpu: Option<&'a Cpu>,
    rank: Sleeping,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

/// The right to change. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub struct WriteGuard<'a, T: ?Sized> {
    sem: &'a RwSem<T>,
    rank: Sleeping,
    /// Held by the thread that took it.
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized> WriteGuard<'a, T> {
    /// Continues as a reader: no writer changes the value in between, and other readers come in.
    #[inline]
    pub fn downgrade(self) -> ReadGuard<'a, T> {
        let guard = ManuallyDrop::new(self);
        let sem = guard.sem;
        let word = sem.word.fetch_add((WRITER - 1).wrapping_neg(), Ordering::Release) - (WRITER - 1);
        if word & WAITING != 0 {
            let waiters = sem.waiters.lock();
            // A writer at the front keeps waiting, for this reader.
            if waiters.front() == Some(&Want::Read) {
                sem.grant(waiters);
            }
        }
        ReadGuard { sem, rank: guard.rank, not_send: PhantomData }
    }
}

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: there is no writer while a reader has the lock.
        unsafe { &*self.sem.value.get() }
    }
}

impl<T: ?Sized> BriefGuard<'_, T> {
    /// Whether the thread may sleep all the same: it is one of the readers that are counted.
    pub fn may_sleep(&self) -> bool {
        self.cpu.is_none()
    }
}

impl<T: ?Sized> Deref for BriefGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: a writer waits for the slot, which has this lock until the guard is dropped (`read_briefly`), or for
        // the readers that are counted.
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
    /// Out of line: most that read sleep, and few are measured.
    #[inline(never)]
    fn drop(&mut self) {
        self.sem.release(1);
        order::release(self.rank);
    }
}

impl<T: ?Sized> Drop for BriefGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        order::release(self.rank);
        let Some(cpu) = self.cpu else { return self.sem.release(1) };
        cpu.brief().lock.store(0, Ordering::Release);
        #[cfg(debug_assertions)]
        cpu.held_ranks().remove(rank::BRIEF);
    }
}

impl<T: ?Sized> Drop for WriteGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.sem.release(WRITER);
        order::release(self.rank);
    }
}
