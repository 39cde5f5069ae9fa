//! Locks of files: of ranges of bytes (`fcntl(2)`), and of a file as a whole (`flock(2)`).
//!
//! A lock has a subject, an owner and a range. The subject is a file, for one of the two calls: the locks of one call are
//! not in the way of the other's. The [owner](LockOwner) is a table of descriptors or an open file. The ranges of an
//! owner's locks on a subject are apart, and those next to each other differ in their mode.
//!
//! All locks are in two orders, under one sleeping lock: by subject, owner and range, and by owner. An owner that is
//! dropped takes its locks along; so no lock stays when its subject ends.
//!
//! A thread that waits has a record too, with the owner that is in its way. A change of that owner's locks clears it where
//! it is in the way no more, and wakes the threads that wait.

#![allow(unsafe_code, reason = "intrusive records")]

use core::cmp::{max, min};
use core::mem::take;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, UnsafeRef};
use spin::Once;

use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::frame::FrameAllocator;
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::sched::{IfNotReady, PollQueue, RwSem, relax};
use crate::sync::rank;

/// The last byte of the longest file.
pub const LAST: u64 = i64::MAX as u64;
/// In a subject, beside the address of a node: its locks by `flock(2)`.
pub const WHOLE: u64 = 1;

static RECORDS: Once<Pool<Record>> = Once::new();
static LOCKS: RwSem<Locks> = RwSem::new(rank::LOCKS, Locks::EMPTY);
/// The threads that wait for locks.
pub static WAITING: PollQueue = PollQueue::new();

/// Locks, and those that threads wait for.
pub fn pool_stats() -> PoolStats {
    RECORDS.get().map_or_else(PoolStats::default, Pool::stats)
}

/// Adds a record to `spares`.
///
/// # Errors
/// [`OutOfMemory`].
pub fn add_spare(spares: &mut Spares, frames: &'static FrameAllocator) -> Result<(), OutOfMemory> {
    let record = RECORDS.call_once(|| Pool::new(frames)).try_new(Record::default())?;
    // Where there is no room, it is dropped.
    let _ = spares.push(record);
    Ok(())
}

/// How much a lock excludes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Exclusive locks of others.
    Shared,
    /// All locks of others.
    Exclusive,
}

/// A lock, or a request for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lock {
    /// The address of a node, and [`WHOLE`].
    pub subject: u64,
    /// The number of a [`LockOwner`].
    pub owner: u64,
    /// The first byte.
    pub first: u64,
    /// The last byte: at most [`LAST`].
    pub last: u64,
    /// `None` in a request to have no lock.
    pub mode: Option<Mode>,
    /// The process for which it was set.
    pub pid: u32,
}

impl Lock {
    const fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether `other` is in the way of this one; of a request for none, whether it is the owner's there.
    fn conflicts(&self, other: &Self) -> bool {
        let excludes = self.mode == Some(Mode::Exclusive) || other.mode == Some(Mode::Exclusive);
        let is_own = self.owner == other.owner;
        self.overlaps(other) && if self.mode.is_none() { is_own } else { excludes && !is_own }
    }

    /// Whether it may need records that its owner has not got.
    pub const fn needs_records(&self) -> bool {
        self.mode.is_some() || self.first != 0 || self.last != LAST
    }
}

/// A lock that is set, or the lock that a thread waits for.
#[derive(Default)]
pub struct Record {
    by_subject: RBTreeAtomicLink,
    by_key: RBTreeAtomicLink,
    lock: Lock,
    /// The owner's number, or the thread that waits.
    key: u64,
    /// The owner that it waits for; 0 for none any more.
    blocker: AtomicU64,
}

/// Records for a change, which takes [`SPARES`] at most, beside one that it replaces.
pub type Spares = heapless::Vec<PoolBox<Record>, { SPARES + 1 }>;
/// One for the new lock, and one for a lock that it divides.
pub const SPARES: usize = 2;

/// An owner of locks. They end with it.
#[derive(Default)]
pub struct LockOwner {
    /// 0 before the first lock; then odd of a table of descriptors, and even of an open file.
    number: AtomicU64,
    /// How many locks. Changed under the lock of all.
    records: AtomicUsize,
}

/// The kind of an owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnerKind {
    /// An open file.
    File,
    /// A table of descriptors.
    Table,
}

impl LockOwner {
    /// Without locks.
    pub const fn new() -> Self {
        Self { number: AtomicU64::new(0), records: AtomicUsize::new(0) }
    }

    /// The number, which no other owner has. An owner that comes later has a larger one.
    pub fn number(&self, kind: OwnerKind) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(2);
        let number = self.number.load(Ordering::Relaxed);
        if number != 0 {
            return number;
        }
        let new = NEXT.fetch_add(2, Ordering::Relaxed) + u64::from(kind == OwnerKind::Table);
        self.number.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|before| before, |_| new)
    }

    /// How many locks it has.
    pub fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes of their records.
    pub fn footprint(&self) -> usize {
        self.records() * size_of::<Record>()
    }

    /// Gives all to `other`, which has none. No thread uses either concurrently.
    pub fn move_to(&self, other: &Self) {
        other.number.store(self.number.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        other.records.store(self.records.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Takes away what it has of a subject.
    pub fn release(&self, subject: u64) {
        if self.records() != 0 {
            change(|locks| locks.release(self, subject));
        }
    }
}

impl Drop for LockOwner {
    fn drop(&mut self) {
        if self.records() != 0 {
            change(|locks| locks.release_all(self));
        }
    }
}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{RBTreeAtomicLink, Record, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) BySubject = UnsafeRef<Record>: Record { by_subject => RBTreeAtomicLink });
    intrusive_adapter!(pub(super) ByKey = UnsafeRef<Record>: Record { by_key => RBTreeAtomicLink });
}
use adapters::{ByKey, BySubject};

impl KeyAdapter<'_> for BySubject {
    type Key = (u64, u64, u64);
    fn get_key(&self, record: &Record) -> Self::Key {
        (record.lock.subject, record.lock.owner, record.lock.first)
    }
}

impl KeyAdapter<'_> for ByKey {
    type Key = u64;
    fn get_key(&self, record: &Record) -> u64 {
        record.key
    }
}

/// All locks, and the threads that wait for some.
pub struct Locks {
    by_subject: RBTree<BySubject>,
    by_owner: RBTree<ByKey>,
    waits: RBTree<ByKey>,
    /// A thread waits for an owner that is in its way no more.
    is_news: bool,
}

// SAFETY: records are reached through the lock only, on whichever CPU holds it.
unsafe impl Send for Locks {}
// SAFETY: as above; readers change nothing.
unsafe impl Sync for Locks {}

/// Has `change` change the locks, and wakes the threads that this concerns.
pub fn change<R>(change: impl FnOnce(&mut Locks) -> R) -> R {
    let (result, is_news) = {
        let mut locks = LOCKS.write();
        (change(&mut locks), take(&mut locks.is_news))
    };
    if is_news {
        WAITING.wake(0);
    }
    result
}

/// The first lock that is in the way of `request`.
pub fn find(request: &Lock) -> Option<Lock> {
    LOCKS.read().conflict(request)
}

impl Locks {
    const EMPTY: Self = Self {
        by_subject: RBTree::new(BySubject::NEW),
        by_owner: RBTree::new(ByKey::NEW),
        waits: RBTree::new(ByKey::NEW),
        is_news: false,
    };

    /// The first lock of a subject from this owner and byte on that `is_it`, while `goes_on`.
    fn search(&self, from: &Lock, goes_on: impl Fn(&Lock) -> bool, is_it: impl Fn(&Lock) -> bool) -> Option<Lock> {
        let mut cursor = self.by_subject.lower_bound(Bound::Included(&(from.subject, from.owner, from.first)));
        while let Some(Record { lock, .. }) = cursor.get()
            && lock.subject == from.subject
            && goes_on(lock)
        {
            if is_it(lock) {
                return Some(*lock);
            }
            relax();
            cursor.move_next();
        }
        None
    }

    fn conflict(&self, request: &Lock) -> Option<Lock> {
        let from = Lock { owner: 0, first: 0, ..*request };
        self.search(&from, |_| true, |lock| request.conflicts(lock))
    }

    fn insert(&mut self, lock: Lock, owner: &LockOwner, spares: &mut Spares) {
        let Some(mut record) = spares.pop() else { return };
        (record.lock, record.key) = (lock, lock.owner);
        let record = record.into_ref();
        self.by_subject.insert(record.clone());
        self.by_owner.insert(record);
        owner.records.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a lock that there is.
    fn take(&mut self, lock: &Lock, owner: &LockOwner) -> Option<PoolBox<Record>> {
        let record = self.by_subject.find_mut(&(lock.subject, lock.owner, lock.first)).remove()?;
        // SAFETY: what is in one tree is in the other.
        let _ = unsafe { self.by_owner.cursor_mut_from_ptr(&raw const *record) }.remove();
        owner.records.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: no tree has it any more, and the lock is held for writing.
        Some(unsafe { PoolBox::from_ref(record) })
    }

    /// Has the owner have this lock in its range, or none, whatever it had there, and whatever others have. There are
    /// [`SPARES`], unless [no records are needed](Lock::needs_records).
    fn set(&mut self, lock: Lock, owner: &LockOwner, spares: &mut Spares) {
        let (mut new, mut from) = (lock, Lock { first: 0, ..lock });
        let is_behind = |old: &Lock| old.owner != lock.owner || old.first > lock.last + 1;
        // A lock of the same mode next to it is joined.
        let is_touched = |old: &Lock| {
            lock.overlaps(old) || old.mode == lock.mode && old.first <= lock.last + 1 && lock.first <= old.last + 1
        };
        while let Some(old) = self.search(&from, |old| !is_behind(old), is_touched) {
            from.first = old.first + 1;
            // Where there is no room, it is dropped.
            let _ = self.take(&old, owner).map(|record| spares.push(record));
            if old.mode == lock.mode {
                (new.first, new.last) = (min(new.first, old.first), max(new.last, old.last));
                continue;
            }
            if old.first < lock.first {
                self.insert(Lock { last: lock.first - 1, ..old }, owner, spares);
            }
            if old.last > lock.last {
                self.insert(Lock { first: lock.last + 1, ..old }, owner, spares);
            }
        }
        if lock.mode.is_some() {
            self.insert(new, owner, spares);
        }
        self.unblock(lock.subject, lock.owner);
    }

    /// Clears the owner from the waits for locks of this subject that it is not in the way of.
    fn unblock(&mut self, subject: u64, owner: u64) {
        for wait in &self.waits {
            let waits_for_it = wait.lock.subject == subject && wait.blocker.load(Ordering::Relaxed) == owner;
            if waits_for_it && self.conflict(&wait.lock).is_none_or(|found| found.owner != owner) {
                wait.blocker.store(0, Ordering::Relaxed);
                self.is_news = true;
            }
            relax();
        }
    }

    fn release(&mut self, owner: &LockOwner, subject: u64) {
        let number = owner.number.load(Ordering::Relaxed);
        let from = Lock { subject, owner: number, ..Lock::default() };
        while let Some(lock) = self.search(&from, |lock| lock.owner == number, |_| true) {
            drop(self.take(&lock, owner));
            relax();
        }
        self.unblock(subject, number);
    }

    fn release_all(&mut self, owner: &LockOwner) {
        let number = owner.number.load(Ordering::Relaxed);
        while let Some(subject) = self.by_owner.find(&number).get().map(|record| record.lock.subject) {
            self.release(owner, subject);
        }
    }

    /// Sets a lock, or has `thread` wait for it: whether it is set. A thread that waits already does so on.
    ///
    /// # Errors
    /// `EAGAIN`, `EDEADLK`; the thread does not wait.
    pub fn attempt(
        &mut self,
        lock: &Lock,
        owner: &LockOwner,
        thread: u64,
        spares: &mut Spares,
        if_not_ready: IfNotReady,
    ) -> Result<bool, Errno> {
        if self.waits.find(&thread).get().is_some_and(|wait| wait.blocker.load(Ordering::Relaxed) != 0) {
            return Ok(false);
        }
        self.end_wait(thread, spares);
        if lock.subject & WHOLE != 0 {
            // As on Linux, the lock that there was is lost also where the new one is not set.
            self.set(Lock { mode: None, ..*lock }, owner, spares);
        }
        let blocker = match lock.mode.and_then(|_| self.conflict(lock)) {
            None => {
                self.set(*lock, owner, spares);
                return Ok(true);
            }
            Some(_) if if_not_ready == IfNotReady::Fail => return Err(Errno::EAGAIN),
            Some(found) => found.owner,
        };
        if is_table(lock.owner) && self.is_circle(lock.owner, blocker) {
            return Err(Errno::EDEADLK);
        }
        let mut wait = spares.pop().ok_or(Errno::ENOLCK)?;
        (wait.lock, wait.key, wait.blocker) = (*lock, thread, AtomicU64::new(blocker));
        self.waits.insert(wait.into_ref());
        Ok(false)
    }

    /// The thread does not wait any more.
    pub fn end_wait(&mut self, thread: u64, spares: &mut Spares) {
        if let Some(wait) = self.waits.find_mut(&thread).remove() {
            // SAFETY: no tree has it any more, and the lock is held for writing.
            let _ = spares.push(unsafe { PoolBox::from_ref(wait) });
        }
    }

    /// Whether an owner that waited for `blocker` would wait for itself. As Linux's search (`posix_locks_deadlock`), it
    /// follows one wait of an owner, if that is for a table of descriptors, and ends somewhere.
    fn is_circle(&self, owner: u64, mut blocker: u64) -> bool {
        const STEPS: usize = 11;
        for _ in 0..STEPS {
            let waits = self.waits.iter().filter(|wait| wait.lock.owner == blocker);
            let mut followed = waits.map(|wait| wait.blocker.load(Ordering::Relaxed));
            match followed.find(|&next| is_table(next)) {
                Some(next) if next == owner => return true,
                Some(next) => blocker = next,
                None => return false,
            }
            relax();
        }
        false
    }
}

/// Whether an owner's number is that of a table of descriptors.
const fn is_table(owner: u64) -> bool {
    owner & 1 != 0
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the host has memory")]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::mm::frame::tests::leaked;

    const OWNERS: usize = 3;
    const BYTES: usize = 16;
    const SUBJECT: u64 = 64;

    struct Scene {
        pool: &'static Pool<Record>,
        locks: Locks,
        owners: [LockOwner; OWNERS],
    }

    impl Scene {
        fn new() -> Self {
            let pool = Box::leak(Box::new(Pool::new(leaked(2))));
            Self { pool, locks: Locks::EMPTY, owners: [const { LockOwner::new() }; OWNERS] }
        }

        /// A request of an owner, which is the thread with that number too.
        fn attempt(
            &mut self,
            owner: usize,
            range: (u64, u64),
            mode: Option<Mode>,
            or: IfNotReady,
        ) -> Result<bool, Errno> {
            let number = self.owners[owner].number(OwnerKind::Table);
            let lock = Lock { subject: SUBJECT, owner: number, first: range.0, last: range.1, mode, pid: 0 };
            let mut spares = Spares::new();
            while lock.needs_records() && spares.len() < SPARES {
                assert!(spares.push(self.pool.try_new(Record::default()).unwrap()).is_ok());
            }
            self.locks.attempt(&lock, &self.owners[owner], owner as u64, &mut spares, or)
        }

        fn end_wait(&mut self, thread: u64) {
            self.locks.end_wait(thread, &mut Spares::new());
        }

        /// The locks of an owner.
        fn of(&self, owner: usize) -> Vec<(u64, u64, Mode)> {
            let number = self.owners[owner].number(OwnerKind::Table);
            let own = self.locks.by_subject.iter().filter(|record| record.lock.owner == number);
            own.map(|Record { lock, .. }| (lock.first, lock.last, lock.mode.unwrap())).collect()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            for owner in &self.owners {
                self.locks.release_all(owner);
                assert_eq!(owner.records(), 0);
            }
            assert!(self.locks.by_subject.is_empty() && self.locks.by_owner.is_empty() && self.locks.waits.is_empty());
            assert_eq!(self.pool.stats().objects, 0);
        }
    }

    /// The locks that the modes of bytes are, the last of which stands for all after it.
    fn runs(bytes: &[Option<Mode>; BYTES]) -> Vec<(u64, u64, Mode)> {
        let mut runs = Vec::<(u64, u64, Mode)>::new();
        for (at, mode) in (0..).zip(bytes) {
            let Some(mode) = *mode else { continue };
            let end = if at == BYTES as u64 - 1 { LAST } else { at };
            match runs.last_mut() {
                Some((_, last, of)) if *last + 1 == at && *of == mode => *last = end,
                _ => runs.push((at, end, mode)),
            }
        }
        runs
    }

    #[test]
    fn a_circle_of_waits_is_refused_and_a_release_ends_waits() {
        let mut scene = Scene::new();
        let byte = |owner: usize| (owner as u64, owner as u64);
        let exclusive = Some(Mode::Exclusive);
        for owner in 0..OWNERS {
            assert_eq!(scene.attempt(owner, byte(owner), exclusive, IfNotReady::Fail), Ok(true));
        }
        assert_eq!(scene.attempt(0, byte(1), exclusive, IfNotReady::Wait), Ok(false));
        assert_eq!(scene.attempt(1, byte(2), exclusive, IfNotReady::Wait), Ok(false));
        assert_eq!(scene.attempt(2, byte(0), exclusive, IfNotReady::Wait), Err(Errno::EDEADLK));
        // Not one's own byte.
        assert_eq!(scene.attempt(2, byte(7), None, IfNotReady::Wait), Ok(true));
        assert!(!scene.locks.is_news);
        scene.end_wait(1);
        assert_eq!(scene.attempt(1, byte(1), None, IfNotReady::Wait), Ok(true));
        assert!(scene.locks.is_news);
        assert_eq!(scene.attempt(0, byte(1), exclusive, IfNotReady::Wait), Ok(true));
        assert_eq!(scene.of(0), [(0, 1, Mode::Exclusive)]);
    }

    #[test]
    fn a_lock_of_the_whole_is_lost_by_a_request_that_fails() {
        let mut scene = Scene::new();
        let request = |scene: &mut Scene, owner: usize, mode| {
            let number = scene.owners[owner].number(OwnerKind::File);
            let lock = Lock { subject: SUBJECT | WHOLE, owner: number, first: 0, last: LAST, mode: Some(mode), pid: 0 };
            let mut spares = Spares::new();
            while spares.len() < SPARES {
                assert!(spares.push(scene.pool.try_new(Record::default()).unwrap()).is_ok());
            }
            scene.locks.attempt(&lock, &scene.owners[owner], owner as u64, &mut spares, IfNotReady::Fail)
        };
        assert_eq!(request(&mut scene, 0, Mode::Shared), Ok(true));
        assert_eq!(request(&mut scene, 1, Mode::Shared), Ok(true));
        assert_eq!(request(&mut scene, 0, Mode::Exclusive), Err(Errno::EAGAIN));
        assert_eq!(scene.owners[0].records(), 0);
        assert_eq!(request(&mut scene, 1, Mode::Exclusive), Ok(true));
        assert_eq!(scene.attempt(0, (0, LAST), Some(Mode::Exclusive), IfNotReady::Fail), Ok(true));
    }

    fn step() -> impl Strategy<Value = (usize, usize, usize, Option<Mode>)> {
        let mode = prop_oneof![Just(None), Just(Some(Mode::Shared)), Just(Some(Mode::Exclusive))];
        (0..OWNERS, 0..BYTES, 0..BYTES, mode)
    }

    proptest! {
        #[test]
        fn ranges_are_those_of_bytes(steps in prop::collection::vec(step(), 1..60)) {
            let mut scene = Scene::new();
            let mut model = [[None; BYTES]; OWNERS];
            for (owner, one, other, mode) in steps {
                let (first, last) = (min(one, other), max(one, other));
                let excludes = |byte: &Option<Mode>| byte.is_some() && (mode == Some(Mode::Exclusive) || *byte == Some(Mode::Exclusive));
                let is_free = mode.is_none()
                    || (0..OWNERS).all(|of| of == owner || !model[of][first..=last].iter().any(excludes));
                let end = if last == BYTES - 1 { LAST } else { last as u64 };
                let outcome = scene.attempt(owner, (first as u64, end), mode, IfNotReady::Fail);
                prop_assert_eq!(outcome, if is_free { Ok(true) } else { Err(Errno::EAGAIN) });
                if is_free {
                    model[owner][first..=last].fill(mode);
                }
                for (owner, bytes) in model.iter().enumerate() {
                    prop_assert_eq!(scene.of(owner), runs(bytes));
                    prop_assert_eq!(scene.owners[owner].records(), runs(bytes).len());
                }
            }
        }
    }
}
