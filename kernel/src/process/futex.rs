//! Futexes: threads that sleep while a word of theirs has a value.
//!
//! A sleeper joins its queue first and looks at the word then. So a waker who changes the word and then wakes cannot
//! come in between: either the sleeper sees the new value, or the waker sees the sleeper. The look may fault, and so
//! sleep; a wake-up that comes meanwhile is kept in the sleeper's node.

use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;

use crate::drivers::timer::Deadline;
use crate::errno::Errno;
use crate::mm::space::{Backing, Space};
use crate::sched::{WaitQueue, Woken};
use crate::uaccess;

/// Queues, by the hash of what they wait for.
const QUEUES: usize = 64;

static SLEEPERS: [WaitQueue<Sleeper>; QUEUES] = [const { WaitQueue::new() }; QUEUES];

/// Which word it is. The same word of shared memory has the same key in every space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    kind: Kind,
    /// The space, or the object that is shared.
    owner: usize,
    /// The address, or the byte of the object.
    offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A word that was called private. It is another than the same word called shared, as on Linux.
    Private,
    /// A word of private memory.
    Anonymous,
    /// A word of an object.
    Object,
}

#[derive(Clone, Copy, Debug)]
struct Sleeper {
    key: Key,
    /// Wakers wake the sleeper if their set meets this.
    bits: u32,
}

/// Who may share the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The space alone (`FUTEX_PRIVATE_FLAG`).
    Private,
    /// Whoever maps the same memory.
    Any,
}

impl Key {
    /// The key of a word, as `get_futex_key` finds it.
    ///
    /// # Errors
    /// `EINVAL` (not aligned), `EFAULT`: not an address of EL0; and where the scope is not private, nothing is mapped
    /// there, it may not be accessed, or it is private memory that may not be written, which nothing would ever change.
    fn of(space: &Space, word: VirtAddr, scope: Scope) -> Result<Self, Errno> {
        if !word.is_aligned(size_of::<u32>() as u64) {
            return Err(Errno::EINVAL);
        }
        if !uaccess::is_user_range(word, size_of::<u32>()) {
            return Err(Errno::EFAULT);
        }
        let owner = core::ptr::from_ref(space).addr();
        if scope == Scope::Private {
            return Ok(Self { kind: Kind::Private, owner, offset: word.0 });
        }
        let untagged = word.untagged();
        let key = space.with_area(untagged, |area| {
            let writable = area.protection().contains(Protection::WRITE);
            match area.backing() {
                Backing::Private if writable => Some(Self { kind: Kind::Anonymous, owner, offset: word.0 }),
                Backing::Shared { object, first_page } if writable || area.protection().contains(Protection::READ) => {
                    let offset = first_page * PAGE_SIZE as u64 + (untagged.0 - area.start().0);
                    Some(Self { kind: Kind::Object, owner: object.identity(), offset })
                }
                _ => None,
            }
        });
        key.flatten().ok_or(Errno::EFAULT)
    }

    fn queue(self) -> &'static WaitQueue<Sleeper> {
        // Words are four bytes, and neighbours are not to share a queue.
        let hash = (self.owner as u64 ^ self.offset >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &SLEEPERS[(hash >> 58) as usize]
    }
}

const _: () = assert!(QUEUES == 1 << (64 - 58));

/// A wait for a word.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Where it is.
    pub word: VirtAddr,
    /// What it has as long as the thread may sleep.
    pub value: u32,
    /// Wakers wake the sleeper if their set meets this.
    pub bits: u32,
    /// When the sleep ends in any case.
    pub until: Option<Deadline>,
    /// Who may share the word.
    pub scope: Scope,
}

/// Sleeps while the word has this value, until it is woken with a set that meets `bits`, or `until`.
///
/// # Errors
/// `EAGAIN` (another value), `EFAULT`, `EINVAL` (not aligned), `ETIMEDOUT`, `EINTR`.
pub fn wait(space: &Space, wait: &Wait) -> Result<(), Errno> {
    let &Wait { word, value, bits, until, scope } = wait;
    // Bad addresses are refused before anybody could be woken for one.
    let key = Key::of(space, word, scope)?;
    if uaccess::get_u32(word)? != value {
        return Err(Errno::EAGAIN);
    }
    let mut changed = Ok(());
    let woken = key.queue().lock().wait_unless(Sleeper { key, bits }, until, || {
        changed = uaccess::get_u32(word).and_then(|now| if now == value { Ok(()) } else { Err(Errno::EAGAIN) });
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
    let key = Key::of(space, word, scope)?;
    Ok(key.queue().lock().wake_where(count, |sleeper| sleeper.key == key && sleeper.bits & bits != 0))
}
