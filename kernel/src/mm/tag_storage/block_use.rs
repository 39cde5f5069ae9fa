//! The use of one block of tag storage: lent as ordinary memory, or reserved for the tags of so many frames.
//!
//! ```text
//!            claim                   reserved(n)
//!  Lendable ───────► Claimed ──────────────────► Reserved(n)  ◄─┐ add, subtract
//!     ▲                │  ▲                         │  └────────┘
//!     └────────────────┘  └─────────────────────────┘ subtract: the last
//!          release
//! ```
//! One word, changed by compare-exchange. A claimed block belongs to one CPU: it takes what lies in the block out before
//! tags are kept there, or gives the memory back after the last of them. So a block whose last user leaves cannot
//! become the next user's half-way: that one finds it claimed, and tries again.
//!
//! `kernel/loom` compiles this file on loom's atomics.

use crate::sync::atomic::{AtomicU32, Ordering};

/// In the word: the block is claimed. The other bits are zero then.
const CLAIMED: u32 = 1 << 31;

/// The use of one block. Zero: it is lendable.
#[derive(Debug, Default)]
pub struct BlockUse(pub(super) AtomicU32);

/// Why frames cannot be added to a block's users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotReserved {
    /// It is lendable: the caller may claim it.
    Lendable,
    /// Another CPU has claimed it, for a moment or while what lies in it moves away.
    Claimed,
}

impl BlockUse {
    /// Frames whose tags are kept in the block; `None` where it is not reserved.
    pub fn users(&self) -> Option<u32> {
        match self.0.load(Ordering::Relaxed) {
            0 | CLAIMED => None,
            users => Some(users),
        }
    }

    /// Whether its memory may be lent. Under the lock of what is lent this stays true until that is dropped, as far as
    /// the lender is concerned: what claims the block looks at what is lent under that lock, afterwards.
    pub fn is_lendable(&self) -> bool {
        // Acquire: what the last claimant did to the memory comes before what the borrower does.
        self.0.load(Ordering::Acquire) == 0
    }

    /// Adds `frames` users to a reserved block.
    ///
    /// # Errors
    /// [`NotReserved`]; nothing was changed.
    pub fn add(&self, frames: u32) -> Result<(), NotReserved> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match word {
                0 => return Err(NotReserved::Lendable),
                CLAIMED => return Err(NotReserved::Claimed),
                _ => {}
            }
            // Acquire: the maintenance of caches by what reserved the block comes before the caller's tags.
            match self.0.compare_exchange_weak(word, word + frames, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Takes `frames` users away; whether they were the last. Then the block is claimed, by the caller.
    pub fn subtract(&self, frames: u32) -> bool {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            debug_assert!(word & CLAIMED == 0 && word >= frames, "{frames} users too many leave a block of {word:#x}");
            let left = if word == frames { CLAIMED } else { word - frames };
            // Release: this user's maintenance of caches; acquire: that of those that left before.
            match self.0.compare_exchange_weak(word, left, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return left == CLAIMED,
                Err(now) => word = now,
            }
        }
    }

    /// Claims a lendable block; whether it was one.
    pub fn claim(&self) -> bool {
        self.0.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Reserves a block that the caller has claimed and emptied, for `frames` users.
    pub fn reserve(&self, frames: u32) {
        debug_assert_eq!(self.0.load(Ordering::Relaxed), CLAIMED);
        // Release: pairs with `add`.
        self.0.store(frames, Ordering::Release);
    }

    /// Ends a claim: the memory is lendable.
    pub fn release(&self) {
        debug_assert_eq!(self.0.load(Ordering::Relaxed), CLAIMED);
        // Release: pairs with `is_lendable` and `claim`.
        self.0.store(0, Ordering::Release);
    }
}
