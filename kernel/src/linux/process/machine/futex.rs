//! Futexes: threads that sleep while a word of user memory has a value.
//!
//! A sleeper joins its queue first and reads the word then. So no waker that changes the word and then wakes can come
//! in between: either the sleeper reads the new value, or the waker finds the sleeper. The read may fault, and so
//! sleep; a wake-up in the meantime is kept in the sleeper's node.
//!
//! The sleepers of a word are found by its key, in the order in which they came. A waker wakes [`BATCH`] of them under
//! one hold of the lock, with interrupts masked, and continues after the last one. One that moves sleepers to another
//! word holds both queues: at each moment a sleeper is found by one of the words.
//!
//! A node is on its thread's stack, or in frames of its call, and accessed only under the lock of the queue that it is
//! in. A waker finishes with it under one hold, and a thread acquires the lock of each of its nodes once more before it
//! returns.

#![allow(unsafe_code, reason = "sleepers on stacks of their threads, under the lock of their queue")]

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use crate::chip::timer::Deadline;
use crate::linux::errno::Errno;
use crate::mm::paged::PagedList;
use crate::mm::space::{FaultError, Space};
use crate::sched::{ThreadRef, Work, current, is_killed, park, relax, with_timeout};
use crate::smp::this_cpu;
use crate::sync::{IrqGuard, IrqLock, rank};
use crate::uaccess;

/// Queues, by the hash of the key.
const QUEUES: usize = 64;
/// Sleepers that are visited under one hold of a queue's lock.
const BATCH: usize = 16;

static SLEEPERS: [SleeperQueue; QUEUES] =
    [const { IrqLock::new(Sleepers { tree: RBTree::new(Link::NEW), next: 0 }) }; QUEUES];

type SleeperQueue = IrqLock<Sleepers, { rank::WAIT }>;

/// The sleepers of one queue.
struct Sleepers {
    tree: RBTree<Link>,
    /// The number of the next one.
    next: u64,
}

// SAFETY: its nodes are accessed only under the queue's lock, on whichever CPU holds it.
unsafe impl Send for Sleepers {}

/// Identifies a word. A word of shared memory has one key in all spaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct FutexKey {
    kind: KeyKind,
    /// The space, or the shared object.
    owner: usize,
    /// The address, or the offset in the object.
    offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum KeyKind {
    /// A word of a private futex. As on Linux it differs from the same word of a shared futex.
    Private,
    /// A word of private memory.
    Anonymous,
    /// A word of an object.
    Object,
}

/// A thread in a wait for words.
struct Waiter {
    thread: ThreadRef,
    /// Its space, by the address.
    space: usize,
    /// It was woken by one of them.
    woken: AtomicBool,
}

/// Its place among the sleepers of one word.
struct Sleeper {
    link: RBTreeLink,
    /// The word, and its number: sleepers have ascending ones. Both change under the lock of its queue, outside of the
    /// tree.
    place: Cell<(FutexKey, u64)>,
    /// Its queue, by its number. Changed under the locks of the old one and the new one.
    queue: AtomicUsize,
    /// A waker wakes it if its bits meet these.
    bits: u32,
    waiter: NonNull<Waiter>,
}

intrusive_adapter!(Link = UnsafeRef<Sleeper>: Sleeper { link => RBTreeLink });

impl KeyAdapter<'_> for Link {
    type Key = (FutexKey, u64);
    fn get_key(&self, sleeper: &Sleeper) -> (FutexKey, u64) {
        sleeper.place.get()
    }
}

impl Sleepers {
    /// Adds one at the end of those of a word of this queue.
    ///
    /// # Safety
    /// It is in no tree, and stays where it is, like its waiter, until [`Sleeper::leave`].
    unsafe fn add(&mut self, sleeper: *const Sleeper, key: FutexKey) {
        // SAFETY: it stays.
        let sleeper = unsafe { UnsafeRef::from_raw(sleeper) };
        sleeper.place.set((key, self.next));
        sleeper.queue.store(key.queue(), Ordering::Relaxed);
        self.next += 1;
        self.tree.insert(sleeper);
    }

    /// The next sleeper of the word of `from` whose number is below `end` and whose bits meet `bits`, from number `from.1`
    /// on, which becomes the one after it. It is taken out. Looks at up to `visits` of them.
    fn take(
        &mut self,
        from: &mut (FutexKey, u64),
        end: u64,
        bits: u32,
        visits: &mut usize,
    ) -> Option<UnsafeRef<Sleeper>> {
        let mut cursor = self.tree.lower_bound_mut(Bound::Included(&*from));
        while *visits != 0 {
            let (key, number) = cursor.get()?.place.get();
            if key != from.0 || number >= end {
                return None;
            }
            *visits -= 1;
            from.1 = number + 1;
            if cursor.get()?.bits & bits != 0 {
                return cursor.remove();
            }
            cursor.move_next();
        }
        None
    }
}

impl Sleeper {
    fn new(key: FutexKey, bits: u32, waiter: &Waiter) -> Self {
        let waiter = NonNull::from(waiter);
        Self { link: RBTreeLink::new(), place: Cell::new((key, 0)), queue: AtomicUsize::new(key.queue()), bits, waiter }
    }

    /// From now on wakers find it.
    ///
    /// # Safety
    /// Neither it nor its waiter moves until [`Self::leave`].
    unsafe fn join(&self) {
        let (key, _) = self.place.get();
        // SAFETY: it is new.
        unsafe { SLEEPERS[key.queue()].lock().add(self, key) };
    }

    /// Takes it out of its queue; whether a waker has. No waker knows it any more, nor its waiter by it.
    fn leave(&self) -> bool {
        loop {
            let number = self.queue.load(Ordering::Relaxed) % QUEUES;
            let mut sleepers = SLEEPERS[number].lock();
            // A waker may have moved it to another word in the meantime.
            if self.queue.load(Ordering::Relaxed) != number {
                continue;
            }
            if !self.link.is_linked() {
                return true;
            }
            // SAFETY: linked, and in this tree alone.
            unsafe { sleepers.tree.cursor_mut_from_ptr(self) }.remove();
            return false;
        }
    }

    /// Its thread's wait. Under the lock of its queue, which it was taken out of.
    fn waiter(&self) -> &Waiter {
        // SAFETY: the thread waits for this lock before it drops its waiter.
        unsafe { self.waiter.as_ref() }
    }

    /// Wakes its thread. As above.
    fn wake(&self) {
        let waiter = self.waiter();
        waiter.woken.store(true, Ordering::Relaxed);
        waiter.thread.unpark();
    }
}

/// A word of user memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// Its address.
    pub at: VirtAddr,
    /// Which processes may share it.
    pub scope: Scope,
}

/// Which processes may share a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The space alone (`FUTEX_PRIVATE_FLAG`).
    Private,
    /// All that map the same memory.
    Any,
}

impl FutexKey {
    /// The key of a word, as by `get_futex_key`.
    ///
    /// # Errors
    /// `EINVAL` (not aligned), `EFAULT`: not an address of EL0; and where the scope is not private, nothing is mapped
    /// there, it may not be accessed, a guard is there, or it is private read-only memory, which would never change.
    fn of(space: &Space, Word { at: word, scope }: Word) -> Result<Self, Errno> {
        if !word.is_aligned(size_of::<u32>() as u64) {
            return Err(Errno::EINVAL);
        }
        if !uaccess::is_user_range(word, size_of::<u32>()) {
            return Err(Errno::EFAULT);
        }
        let owner = core::ptr::from_ref(space).addr();
        if scope == Scope::Private {
            return Ok(Self { kind: KeyKind::Private, owner, offset: word.0 });
        }
        let untagged = word.untagged();
        let key = space.with_area(untagged, |area| {
            let writable = area.protection().contains(Protection::WRITE);
            match area.object().filter(|_| area.is_shared() || !writable) {
                None if writable => Some(Self { kind: KeyKind::Anonymous, owner, offset: word.0 }),
                // As on Linux: it is no memory.
                Some(object) if object.is_registers() || !object.has_inside(area.page_at(untagged)) => None,
                Some(object) if writable || area.protection().contains(Protection::READ) => {
                    let offset = area.page_at(untagged) * PAGE + untagged.0 % PAGE;
                    Some(Self { kind: KeyKind::Object, owner: object.identity(), offset })
                }
                _ => None,
            }
        });
        // As on Linux, where the page is brought first.
        key.flatten().filter(|_| !space.has_guard(untagged.align_down(PAGE))).ok_or(Errno::EFAULT)
    }

    /// The number of its queue.
    const fn queue(self) -> usize {
        // Words have four bytes, and neighbours should not share a queue.
        let hash = (self.owner as u64 ^ self.offset >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 58) as usize
    }
}

const _: () = assert!(QUEUES == 1 << (64 - 58));

/// A wait for a word.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The word.
    pub word: Word,
    /// The value with which the thread may sleep.
    pub value: u32,
    /// Wakers wake the sleeper if their bits meet these.
    pub bits: u32,
    /// The end of the sleep in any case.
    pub until: Option<Deadline>,
}

/// # Errors
/// `EAGAIN`: the word has another value; `EFAULT`.
fn expect(word: Word, value: u32) -> Result<(), Errno> {
    if uaccess::get_u32(word.at)? == value { Ok(()) } else { Err(Errno::EAGAIN) }
}

/// Sleeps while the word has this value, until it is woken with a set that meets `bits`, or `until`.
///
/// # Errors
/// `EAGAIN` (another value), `EFAULT`, `EINVAL` (not aligned, no bits), `ETIMEDOUT`, `EINTR`.
pub fn wait(space: &Space, wait: &Wait) -> Result<(), Errno> {
    if wait.bits == 0 {
        return Err(Errno::EINVAL);
    }
    // A bad address is refused before a waker could find the thread.
    let key = FutexKey::of(space, wait.word)?;
    expect(wait.word, wait.value)?;
    let waiter = Waiter::of_current(space);
    let sleeper = Sleeper::new(key, wait.bits, &waiter);
    // SAFETY: neither moves before it leaves, below.
    unsafe { sleeper.join() };
    let outcome = waiter.sleep(wait.until, || expect(wait.word, wait.value));
    // Also a wake-up in the last moment, which is not lost.
    if sleeper.leave() { Ok(()) } else { outcome }
}

/// Bytes of the lists of a wait for so many words.
pub const fn footprint(words: usize) -> usize {
    2 * PAGE_SIZE + words * (size_of::<(Word, u32)>() + size_of::<Sleeper>())
}

/// Sleeps while each of the words has its value, until one is woken, or `until`; returns which.
///
/// # Errors
/// As [`wait`], of the first word with one; [`OutOfMemory`](crate::mm::OutOfMemory).
pub fn wait_for_any(space: &Space, words: &PagedList<(Word, u32)>, until: Option<Deadline>) -> Result<usize, Errno> {
    let waiter = Waiter::of_current(space);
    let mut sleepers = PagedList::new(words.frames());
    for &(word, _) in words.iter() {
        sleepers.push(Sleeper::new(FutexKey::of(space, word)?, u32::MAX, &waiter))?;
        relax();
    }
    for sleeper in sleepers.iter() {
        // SAFETY: neither moves before all leave, below.
        unsafe { sleeper.join() };
    }
    let outcome = waiter.sleep(until, || words.iter().try_for_each(|&(word, value)| expect(word, value)));
    let mut woken = None;
    for (number, sleeper) in sleepers.iter().enumerate() {
        // As on Linux the last one, where several are.
        woken = sleeper.leave().then_some(number).or(woken);
    }
    woken.map_or_else(|| outcome.and(Err(Errno::EAGAIN)), Ok)
}

/// Wakes at most `count` sleepers of the word whose bits meet `bits`; returns how many.
///
/// # Errors
/// `EFAULT`, `EINVAL` (not aligned, no bits).
pub fn wake(space: &Space, word: Word, count: usize, bits: u32) -> Result<usize, Errno> {
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Wakes::new(FutexKey::of(space, word)?, count, bits).finish())
}

/// The wake-up of sleepers of a word, a batch at a time.
struct Wakes {
    /// The word, and the number of the first sleeper that was not looked at.
    next: (FutexKey, u64),
    /// Sleepers from this number on came later and are not woken: else this might never end.
    end: Option<u64>,
    /// How many are left to be woken; 0 where there are no more.
    left: usize,
    woken: usize,
    bits: u32,
}

impl Wakes {
    const fn new(key: FutexKey, count: usize, bits: u32) -> Self {
        Self { next: (key, 0), end: None, left: count, woken: 0, bits }
    }

    /// Wakes those of the next batch in the word's queue.
    fn wake_some(&mut self, sleepers: &mut Sleepers) {
        let (end, mut visits) = (*self.end.get_or_insert(sleepers.next), BATCH);
        while self.left != 0
            && let Some(sleeper) = sleepers.take(&mut self.next, end, self.bits, &mut visits)
        {
            sleeper.wake();
            (self.left, self.woken) = (self.left - 1, self.woken + 1);
        }
        if visits != 0 {
            self.left = 0;
        }
    }

    /// Wakes the others; returns how many were woken in all.
    fn finish(mut self) -> usize {
        let queue = &SLEEPERS[self.next.0.queue()];
        while self.left != 0 {
            self.wake_some(&mut queue.lock());
            if self.left != 0 {
                relax();
            }
        }
        self.woken
    }
}

/// The queues of two words, locked; one, where both are in it.
struct Pair {
    // Dropped first, as it was taken last.
    second: Option<SleepersGuard>,
    first: SleepersGuard,
    /// `first` is that of the second word.
    is_swapped: bool,
}

type SleepersGuard = IrqGuard<'static, Sleepers, { rank::WAIT }>;

impl Pair {
    fn lock(words: [FutexKey; 2]) -> Self {
        let [one, other] = words.map(FutexKey::queue);
        let first = SLEEPERS[one.min(other)].lock();
        let second = (one != other).then(|| SLEEPERS[one.max(other)].lock_beside(&first));
        Self { second, first, is_swapped: other < one }
    }

    /// Those of the first word.
    fn from(&mut self) -> &mut Sleepers {
        match &mut self.second {
            Some(second) if self.is_swapped => second,
            _ => &mut self.first,
        }
    }

    /// Those of the second word.
    fn to(&mut self) -> &mut Sleepers {
        match &mut self.second {
            Some(second) if !self.is_swapped => second,
            _ => &mut self.first,
        }
    }
}

/// Wakes `wakes` sleepers of the first word, and has up to `moves` others sleep for the second one, where the first has the
/// value, if there is one; returns how many were woken or moved. One of another space is woken where the second word is
/// this space's alone: it would be found there by a later space at the same address.
///
/// # Errors
/// `EAGAIN` (another value), `EFAULT`, `EINVAL` (not aligned), `EINTR`: a signal ends the process.
pub fn requeue(
    space: &Space,
    words: [Word; 2],
    value: Option<u32>,
    [wakes, moves]: [usize; 2],
) -> Result<usize, Errno> {
    let [from, to] = words;
    let keys @ [from_key, to_key] = [FutexKey::of(space, from)?, FutexKey::of(space, to)?];
    let (mut place, mut end, mut done) = ((from_key, 0), None, 0);
    loop {
        let (mut pair, mut visits) = (Pair::lock(keys), BATCH);
        // Nothing is resolved with interrupts masked.
        let is = value.filter(|_| end.is_none()).map_or(Ok(()), |value| expect(from, value));
        if is == Err(Errno::EFAULT) {
            drop(pair);
            uaccess::get_u32(from.at)?;
        } else {
            is?;
            // Later sleepers are left: else this might never end.
            let end = *end.get_or_insert(pair.from().next);
            while done != wakes + moves
                && let Some(sleeper) = pair.from().take(&mut place, end, u32::MAX, &mut visits)
            {
                let is_foreign = to_key.kind != KeyKind::Object && sleeper.waiter().space != to_key.owner;
                if done < wakes || is_foreign {
                    sleeper.wake();
                } else {
                    // SAFETY: it was taken out, and its thread waits for the lock of one of these queues before it ends.
                    unsafe { pair.to().add(UnsafeRef::into_raw(sleeper), to_key) };
                }
                done += 1;
            }
            drop(pair);
            if done == wakes + moves || visits != 0 {
                return Ok(done);
            }
        }
        relax();
        if is_killed() {
            return Err(Errno::EINTR);
        }
    }
}

/// Changes the second word by `change`, wakes up to `counts` sleepers of the first and, where `is_met` by the value before,
/// of the second; returns how many.
///
/// # Errors
/// `EFAULT`, `EINVAL` (not aligned), `EINTR`: a signal ends the process.
pub fn wake_after(
    space: &Space,
    words: [Word; 2],
    counts: [usize; 2],
    change: impl Fn(u32) -> u32,
    is_met: impl FnOnce(u32) -> Result<bool, Errno>,
) -> Result<usize, Errno> {
    let [first, second] = words;
    let [first_key, second_key] = [FutexKey::of(space, first)?, FutexKey::of(space, second)?];
    let mut found = uaccess::get_u32(second.at)?;
    loop {
        let exchanged = space.exchange_word(this_cpu(), second.at.untagged(), found, change(found));
        let now = exchanged.map_err(|error| match error {
            FaultError::OutOfMemory => Errno::ENOMEM,
            _ => Errno::EFAULT,
        })?;
        if now == found {
            break;
        }
        found = now;
        relax();
        if is_killed() {
            return Err(Errno::EINTR);
        }
    }
    let is_met = is_met(found)?;
    let mut first = Wakes::new(first_key, counts[0], u32::MAX);
    let mut second = Wakes::new(second_key, if is_met { counts[1] } else { 0 }, u32::MAX);
    {
        // One that moves from a word to the other is found by one of them.
        let mut pair = Pair::lock([first_key, second_key]);
        first.wake_some(pair.from());
        second.wake_some(pair.to());
    }
    Ok(first.finish() + second.finish())
}

impl Waiter {
    fn of_current(space: &Space) -> Self {
        let space = core::ptr::from_ref(space).addr();
        Self { thread: current().to_ref(), space, woken: AtomicBool::new(false) }
    }

    /// Sleeps until it is woken, `until` has come, or a signal is pending. `unless` is called first, when wakers find this
    /// thread already; if it fails the thread does not sleep. It may sleep itself.
    ///
    /// # Errors
    /// `ETIMEDOUT`, `EINTR`; those of `unless`.
    fn sleep(&self, until: Option<Deadline>, unless: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let mut unless = Some(unless);
        let sleep = |passed: &dyn Fn() -> bool| loop {
            // Relaxed: the lock of a sleeper's queue, which it leaves, orders what the waker did.
            if self.woken.load(Ordering::Relaxed) {
                return Ok(());
            }
            if let Some(unless) = unless.take() {
                unless()?;
            }
            if current().has(Work::SIGNAL) {
                return Err(Errno::EINTR);
            }
            if passed() {
                return Err(Errno::ETIMEDOUT);
            }
            park();
        };
        match until {
            None => sleep_without_end(sleep),
            Some(until) => with_timeout(until, sleep),
        }
    }
}

fn sleep_without_end<R>(sleep: impl FnOnce(&dyn Fn() -> bool) -> R) -> R {
    sleep(&|| false)
}
