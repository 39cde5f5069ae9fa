//! A block of tag storage: the kernel's own state of its use, and the one frame of it, which may be lent.

#[allow(unreachable_pub, reason = "the kernel's other modules alone use it")]
#[path = "../../../src/mm/tag_storage/block_use.rs"]
mod block_use;

use std::sync::atomic::{AtomicBool, AtomicUsize};

use block_use::{BlockUse, NotReserved};

use crate::Watched;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{IrqGuard, IrqLock, rank};

/// A step that is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// None.
    Nothing,
    /// The last user's claim lasts until it has done with the memory.
    LastClaim,
    /// The CPU that claims the block takes the lock of what is lent.
    Lock,
    /// The CPU that claims the block looks at what is lent after the claim.
    LookBehindClaim,
    /// A lender looks at the use of the block.
    LookOfLender,
}

/// The block.
pub struct Block {
    usage: BlockUse,
    /// Whether its frame is not lent, and the block is not reserved; under the lock.
    unused: (IrqLock<(), { rank::TAG_STORAGE }>, AtomicU32),
    /// The contents of the frame: a borrower's data, or tags.
    contents: Watched<u32>,
    /// Whether a CPU has claimed it, whether its frame is lent, how often it was reserved, and given back. None is loom's:
    /// they order nothing.
    is_claimed: AtomicBool,
    is_lent: AtomicBool,
    reserved: AtomicUsize,
    returned: AtomicUsize,
    without: Without,
}

impl Block {
    /// It is lendable, and not lent.
    pub fn new(without: Without) -> Self {
        Self {
            usage: BlockUse::default(),
            unused: (IrqLock::new(()), AtomicU32::new(1)),
            contents: Watched::default(),
            is_claimed: AtomicBool::new(false),
            is_lent: AtomicBool::new(false),
            reserved: AtomicUsize::new(0),
            returned: AtomicUsize::new(0),
            without,
        }
    }

    /// `TagStorage::try_add` of one frame, whose tags are looked at then; whether it has storage.
    pub fn reserve(&self) -> bool {
        let has_storage = match self.usage.add(1) {
            Ok(()) => true,
            Err(NotReserved::Claimed) => false,
            Err(NotReserved::Lendable) => self.claim_unused(),
        };
        if has_storage {
            self.contents.read();
        }
        has_storage
    }

    /// `TagStorage::claim_unused`.
    fn claim_unused(&self) -> bool {
        let is_unused_before = self.without == Without::LookBehindClaim && self.is_unused();
        if !self.claim() {
            return false;
        }
        self.take_and_reserve(is_unused_before)
    }

    /// `TagStorage::claim_occupied`, of a block whose frame is lent: what lies there moves away.
    pub fn reserve_occupied(&self) -> bool {
        if !self.claim() {
            return false;
        }
        self.take_back();
        self.take_and_reserve(false)
    }

    fn claim(&self) -> bool {
        let is_claimed = self.usage.claim();
        if is_claimed {
            self.note_claim();
        }
        is_claimed
    }

    /// `Region::take_unused` and what follows it. `is_unused_before`: it was not lent, by an earlier look.
    fn take_and_reserve(&self, is_unused_before: bool) -> bool {
        let guard = (self.without != Without::Lock).then(|| self.lock());
        let is_unused = is_unused_before || self.is_unused();
        if is_unused {
            self.unused.1.store(0, Ordering::Relaxed);
        } else {
            assert!(self.is_lent.load(Ordering::Relaxed), "claimed while it was reserved");
        }
        drop(guard);
        if is_unused {
            // The maintenance of caches.
            self.contents.write(1);
            self.reserved.fetch_add(1, Ordering::Relaxed);
        }
        self.is_claimed.store(false, Ordering::Relaxed);
        if is_unused {
            self.usage.reserve(1)
        } else {
            self.usage.release()
        }
        is_unused
    }

    /// `TagStorage::leave` of one frame, whose tags are looked at before.
    pub fn leave(&self) {
        self.contents.read();
        if !self.usage.subtract(1) {
            return;
        }
        self.note_claim();
        let give_back = || {
            self.is_claimed.store(false, Ordering::Relaxed);
            self.take_back();
            self.usage.release();
        };
        if self.without == Without::LastClaim {
            give_back();
        }
        // The check of the pattern, and the maintenance of caches.
        self.contents.write(0);
        self.returned.fetch_add(1, Ordering::Relaxed);
        if self.without != Without::LastClaim {
            give_back();
        }
    }

    /// `Region::lend`; whether the caller has the frame.
    pub fn lend(&self) -> bool {
        let _guard = self.lock();
        let looks = self.without != Without::LookOfLender;
        let is_lent = self.is_unused() && (!looks || self.usage.is_lendable());
        if is_lent {
            self.is_lent.store(true, Ordering::Relaxed);
            self.unused.1.store(0, Ordering::Relaxed);
        }
        is_lent
    }

    /// The borrower's store to the frame.
    pub fn borrow(&self) {
        self.contents.write(2);
    }

    /// `Region::take_back`.
    pub fn take_back(&self) {
        let _guard = self.lock();
        self.is_lent.store(false, Ordering::Relaxed);
        self.unused.1.store(1, Ordering::Relaxed);
    }

    /// Frames whose tags it holds, how often it was reserved, and given back.
    pub fn counts(&self) -> (Option<u32>, usize, usize) {
        (self.usage.users(), self.reserved.load(Ordering::Relaxed), self.returned.load(Ordering::Relaxed))
    }

    fn note_claim(&self) {
        assert!(!self.is_claimed.swap(true, Ordering::Relaxed), "two CPUs have claimed the block");
    }

    fn is_unused(&self) -> bool {
        self.unused.1.load(Ordering::Relaxed) != 0
    }

    fn lock(&self) -> IrqGuard<'_, (), { rank::TAG_STORAGE }> {
        self.unused.0.lock()
    }
}
