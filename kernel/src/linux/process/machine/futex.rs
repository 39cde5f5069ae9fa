//! Futexes: threads that sleep while a word of user memory has a value.
//!
//! A sleeper joins its queue first and reads the word then. So no waker that changes the word and then wakes can come
//! in between: either the sleeper reads the new value, or the waker finds the sleeper. The read may fault, and so
//! sleep; a wake-up in the meantime is kept in the sleeper's node.
//!
//! The sleepers of a word are found by its key, in the order in which they came. A waker wakes [`BATCH`] of them under
//! one hold of the lock, with interrupts masked, and continues after the last one.
//!
//! A node is on its sleeper's stack, and accessed only under the queue's lock. A waker finishes with it under one hold,
//! and a sleeper acquires the lock once more before it returns.

#![allow(unsafe_code, reason = "sleepers on stacks of their threads, under the lock of their queue")]

use core::sync::atomic::{AtomicBool, Ordering};

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use crate::chip::timer::Deadline;
use crate::linux::errno::Errno;
use crate::mm::space::Space;
use crate::sched::{ThreadRef, Woken, Work, current, park, relax, with_timeout};
use crate::sync::{IrqLock, rank};
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

/// A sleeping thread.
struct Sleeper {
    link: RBTreeLink,
    key: FutexKey,
    /// Sleepers have ascending numbers.
    number: u64,
    /// A waker wakes it if its bits meet these.
    bits: u32,
    thread: ThreadRef,
    woken: AtomicBool,
}

intrusive_adapter!(Link = UnsafeRef<Sleeper>: Sleeper { link => RBTreeLink });

impl KeyAdapter<'_> for Link {
    type Key = (FutexKey, u64);
    fn get_key(&self, sleeper: &Sleeper) -> (FutexKey, u64) {
        (sleeper.key, sleeper.number)
    }
}

/// Which processes may share the word.
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
    fn of(space: &Space, word: VirtAddr, scope: Scope) -> Result<Self, Errno> {
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

    fn queue(self) -> &'static SleeperQueue {
        // Words have four bytes, and neighbours should not share a queue.
        let hash = (self.owner as u64 ^ self.offset >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &SLEEPERS[(hash >> 58) as usize]
    }
}

const _: () = assert!(QUEUES == 1 << (64 - 58));

/// A wait for a word.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Its address.
    pub word: VirtAddr,
    /// The value with which the thread may sleep.
    pub value: u32,
    /// Wakers wake the sleeper if their bits meet these.
    pub bits: u32,
    /// The end of the sleep in any case.
    pub until: Option<Deadline>,
    /// Which processes may share the word.
    pub scope: Scope,
}

/// Sleeps while the word has this value, until it is woken with a set that meets `bits`, or `until`.
///
/// # Errors
/// `EAGAIN` (another value), `EFAULT`, `EINVAL` (not aligned), `ETIMEDOUT`, `EINTR`.
pub fn wait(space: &Space, wait: &Wait) -> Result<(), Errno> {
    let &Wait { word, value, bits, until, scope } = wait;
    // A bad address is refused before a waker could find the thread.
    let key = FutexKey::of(space, word, scope)?;
    if uaccess::get_u32(word)? != value {
        return Err(Errno::EAGAIN);
    }
    let mut changed = Ok(());
    let woken = sleep_unless(key, bits, until, || {
        changed = match uaccess::get_u32(word) {
            Ok(now) if now == value => Ok(()),
            Ok(_) => Err(Errno::EAGAIN),
            Err(error) => Err(error.into()),
        };
        changed.is_err()
    });
    match woken {
        Some(Woken::ByAnother) => Ok(()),
        Some(Woken::TimedOut) => Err(Errno::ETIMEDOUT),
        Some(Woken::Interrupted) => Err(Errno::EINTR),
        None => changed,
    }
}

/// Wakes at most `count` sleepers of the word whose bits meet `bits`; returns how many.
///
/// # Errors
/// `EFAULT`, `EINVAL` (not aligned).
pub fn wake(space: &Space, word: VirtAddr, count: usize, bits: u32, scope: Scope) -> Result<usize, Errno> {
    let key = FutexKey::of(space, word, scope)?;
    Ok(wake_key(key, count, bits))
}

fn wake_key(key: FutexKey, count: usize, bits: u32) -> usize {
    let queue = key.queue();
    // Later sleepers are not woken: else this might never end.
    let end = queue.lock().next;
    let (mut from, mut woken) = ((key, 0), 0);
    loop {
        let mut sleepers = queue.lock();
        let mut cursor = sleepers.tree.lower_bound_mut(Bound::Included(&from));
        for _ in 0..BATCH {
            let Some(sleeper) = cursor.get() else { return woken };
            if woken == count || sleeper.key != key || sleeper.number >= end {
                return woken;
            }
            from = (key, sleeper.number + 1);
            if sleeper.bits & bits == 0 {
                cursor.move_next();
            } else if let Some(sleeper) = cursor.remove() {
                sleeper.woken.store(true, Ordering::Relaxed);
                sleeper.thread.unpark();
                woken += 1;
            }
        }
        drop(sleepers);
        relax();
    }
}

/// Sleeps until it is woken, `until` has come, or a signal is pending. `unless` is called first, when wakers find this
/// thread already; if it returns true the thread does not sleep: `None`. It may sleep itself.
fn sleep_unless(key: FutexKey, bits: u32, until: Option<Deadline>, unless: impl FnOnce() -> bool) -> Option<Woken> {
    let queue = key.queue();
    let (thread, woken) = (current().to_ref(), AtomicBool::new(false));
    let mut sleeper = Sleeper { link: RBTreeLink::new(), key, number: 0, bits, thread, woken };
    {
        let mut sleepers = queue.lock();
        sleeper.number = sleepers.next;
        sleepers.next += 1;
        // SAFETY: the node does not move until it is out of the tree, and a waker that removed it has dropped the lock.
        sleepers.tree.insert(unsafe { UnsafeRef::from_raw(&raw const sleeper) });
    }
    let (mut unless, mut refused) = (Some(unless), false);
    let sleep = |passed: &dyn Fn() -> bool| loop {
        // Relaxed: the queue's lock, below, orders what the waker did.
        if sleeper.woken.load(Ordering::Relaxed) {
            break Woken::ByAnother;
        }
        refused = refused || unless.take().is_some_and(|unless| unless());
        if refused || current().has(Work::SIGNAL) {
            break Woken::Interrupted;
        }
        if passed() {
            break Woken::TimedOut;
        }
        park();
    };
    let outcome = match until {
        None => sleep_without_end(sleep),
        Some(until) => with_timeout(until, sleep),
    };
    let mut sleepers = queue.lock();
    if !sleeper.link.is_linked() {
        // Also after a wake-up in the last moment, which is not lost.
        return Some(Woken::ByAnother);
    }
    // SAFETY: linked, and in this tree alone.
    unsafe { sleepers.tree.cursor_mut_from_ptr(&raw const sleeper) }.remove();
    (!refused).then_some(outcome)
}

fn sleep_without_end(sleep: impl FnOnce(&dyn Fn() -> bool) -> Woken) -> Woken {
    sleep(&|| false)
}
