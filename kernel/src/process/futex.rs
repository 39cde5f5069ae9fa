//! Futexes: threads that sleep while a word of theirs has a value.
//!
//! A sleeper joins its queue first and looks at the word then. So a waker who changes the word and then wakes cannot
//! come in between: either the sleeper sees the new value, or the waker sees the sleeper. The look may fault, and so
//! sleep; a wake-up that comes meanwhile is kept in the sleeper's node.

use granule_arch::addr::{PAGE_SIZE, VirtAddr};

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
    /// The space, or the object that is shared.
    owner: usize,
    /// The address, or the byte of the object.
    offset: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sleeper {
    key: Key,
    /// The sleeper hears wakers whose set meets this.
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
    fn of(space: &Space, word: VirtAddr, scope: Scope) -> Self {
        let mut key = Self { owner: core::ptr::from_ref(space).addr(), offset: word.0 };
        if scope == Scope::Any {
            space.for_each_area(|area| {
                if let Backing::Shared { object, first_page } = area.backing()
                    && (area.start()..area.end()).contains(&word)
                {
                    let offset = first_page * PAGE_SIZE as u64 + (word.0 - area.start().0);
                    key = Self { owner: object.identity(), offset };
                }
            });
        }
        key
    }

    fn queue(self) -> &'static WaitQueue<Sleeper> {
        // Words are four bytes, and neighbours are not to share a queue.
        let hash = (self.owner as u64 ^ self.offset >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &SLEEPERS[(hash >> 58) as usize]
    }
}

const _: () = assert!(QUEUES == 1 << (64 - 58));

/// Sleeps while the word has this value, until it is woken with a set that meets `bits`, or `until`.
///
/// # Errors
/// `EAGAIN` (another value), `EFAULT`, `EINVAL` (not aligned), `ETIMEDOUT`, `EINTR`.
pub fn wait(
    space: &Space,
    word: VirtAddr,
    value: u32,
    bits: u32,
    until: Option<Deadline>,
    scope: Scope,
) -> Result<(), Errno> {
    // Bad addresses are refused before anybody could be woken for one.
    if uaccess::get_u32(word)? != value {
        return Err(Errno::EAGAIN);
    }
    let key = Key::of(space, word, scope);
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
pub fn wake(space: &Space, word: VirtAddr, count: usize, bits: u32, scope: Scope) -> usize {
    let key = Key::of(space, word, scope);
    key.queue().lock().wake_where(count, |sleeper| sleeper.key == key && sleeper.bits & bits != 0)
}
