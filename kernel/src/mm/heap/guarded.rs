//! The guarded heap: samples of the heap's objects, each at one end of a page of its own, between pages that fault.
//!
//! ```text
//! records │ guard │ guard │ page of object 0 │ guard │ page of object 1 │ guard │ ...
//!                          ├ object ┤ canary           canary ├ object ┤
//! ```
//!
//! An access beyond an object is to a guard page, an access after its free to a page that is invalid by then: both
//! fault, and `report` names the object with the calls that allocated and freed it. A write to the rest of its page
//! changes a canary, which the free compares. It works as Linux's KFENCE does: cheap enough for a kernel that does its
//! work, so that a rare bug is found in time. `kfence.sample_interval` is Linux's boot argument; `kfence.num_objects` is
//! `CONFIG_KFENCE_NUM_OBJECTS` there.
//!
//! **The gate** lets one object in an interval through. The timer's interrupt makes the page of the object that is free
//! longest valid, and puts its number in the gate; the allocation that finds it there has the object. So a freed page
//! stays invalid as long as can be, and what an allocation adds to the heap's is a load and a branch. While an object is
//! in the gate its page is valid, for as long as no allocation fits: a read after its free is not seen there; a write is,
//! by the allocation, which finds the canary damaged before it has the object.
//!
//! **No lock of its own is held where a page changes**, no memory is taken, and nothing sleeps: an object is in one place
//! at a time, the list of free objects, the gate, its user, or the free that is under way, and its page is changed on the
//! way from one to the next. The pool's pages are pages of the linear map from its making on, so no leaf is ever split
//! here. None is made larger either: every other page is a guard, which stays invalid, so the leaves of a contiguous group
//! are never alike.
//!
//! Pointers to guarded objects are addresses of the linear map, whose tag is the match-all tag: no access through them
//! fails a tag check (Arm ARM D10), whatever tags their frames have.
//!
//! `kernel/loom` compiles this file on loom's atomics.

mod canary;
#[cfg(target_os = "none")]
mod global;
#[cfg(target_os = "none")]
mod planted;
#[cfg(any(target_os = "none", test))]
mod report;

use core::alloc::Layout;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use granule_arch::addr::{PAGE, PAGE_SIZE, VirtAddr};
use spin::Once;
use thiserror::Error;

use super::calls::Calls;
use crate::mm::kernel::set_memory::Validity;
use crate::sync::atomic::{AtomicU16, Ordering};
use crate::sync::{IrqLock, rank};

#[cfg(target_os = "none")]
pub(super) use global::{alloc, dealloc};
#[cfg(target_os = "none")]
pub use global::{guarded_heap, init, start, take_memory};
#[cfg(target_os = "none")]
pub(crate) use report::{describe, what_happened};

/// The most objects: their pool has 32 MiB.
pub const MAX_OBJECTS: u16 = 4095;
/// In the gate: no object. Object `n` is there as `n + 1`.
const CLOSED: u16 = 0;
/// Return addresses that are kept of an allocation, and of a free.
const DEPTH: usize = 8;
/// The end of the list of free objects.
const NONE: u16 = u16::MAX;

/// Makes `pages` pages from the address on valid or invalid, on all CPUs. From any context. Returns whether it did; where
/// it did not, each page is as it was.
pub type SetValid = fn(VirtAddr, u64, Validity) -> bool;

/// A pool of guarded objects. It is empty until [`GuardedHeap::init`].
pub struct GuardedHeap {
    gate: AtomicU16,
    pool: Once<Pool>,
    objects: IrqLock<Objects, { rank::GUARDED_HEAP }>,
}

/// Where the pages are.
struct Pool {
    /// Two guards; then a page and a guard for each object.
    pages: VirtAddr,
    objects: u16,
    set_valid: SetValid,
}

/// The data that the lock protects.
struct Objects {
    /// By their numbers.
    all: &'static mut [Object],
    /// The ends of the list of free objects, in the order in which they were freed.
    first: u16,
    last: u16,
    in_use: u16,
    sampled: u64,
    none_free: u64,
}

/// The record of an object.
#[derive(Clone, Copy)]
struct Object {
    state: ObjectState,
    /// Where it begins in its page.
    offset: u16,
    bytes: u16,
    /// The next free object.
    next: u16,
    allocated: Calls<DEPTH>,
    freed: Calls<DEPTH>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ObjectState {
    /// It was never allocated.
    Unused,
    InUse,
    Freed,
}

/// Why a guarded object is not freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadGuardedFree {
    /// No object with this start and size is in use.
    #[error("free of {0}, {1} bytes, which does not match an object in use")]
    NotInUse(VirtAddr, usize),
    /// The canary is damaged at this address.
    #[error("free of an object near which memory was overwritten, at {0}")]
    Overwritten(VirtAddr),
}

/// Why a guarded object is not allocated: its page was written at this address, while it was in the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("use-after-free: the next allocation of a free object finds a write to {0}")]
pub struct WrittenAfterFree(pub VirtAddr);

/// Counts of the guarded heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuardedHeapStats {
    /// Objects of the pool.
    pub objects: u16,
    /// Those that are in use.
    pub in_use: u16,
    /// Allocations that got one.
    pub sampled: u64,
    /// How often no object was free for the gate.
    pub none_free: u64,
}

impl fmt::Display for GuardedHeapStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { objects, in_use, sampled, none_free } = self;
        write!(f, "{in_use} of {objects} objects in use, {sampled} allocations sampled, {none_free} times none free")
    }
}

impl Pool {
    /// The page of an object.
    fn page(&self, number: u16) -> VirtAddr {
        self.pages + (2 * u64::from(number) + 2) * PAGE
    }

    fn page_count(&self) -> u64 {
        2 * (u64::from(self.objects) + 1)
    }

    fn contains(&self, address: VirtAddr) -> bool {
        address.0.wrapping_sub(self.pages.0) < self.page_count() * PAGE
    }

    /// The object whose page `address` is in.
    fn number_of(&self, address: VirtAddr) -> Option<u16> {
        let page = address.0.checked_sub(self.pages.0)? / PAGE;
        let number = u16::try_from(page / 2).ok()?.checked_sub(1)?;
        (page.is_multiple_of(2) && number < self.objects).then_some(number)
    }
}

impl Object {
    const UNUSED: Self = Self {
        state: ObjectState::Unused,
        offset: 0,
        bytes: 0,
        next: NONE,
        allocated: Calls::NONE,
        freed: Calls::NONE,
    };

    /// Where it begins and ends in its page.
    fn range(&self) -> Range<usize> {
        let start = usize::from(self.offset);
        start..start + usize::from(self.bytes)
    }
}

impl Objects {
    /// Takes the object that is free longest.
    fn pop(&mut self) -> Option<u16> {
        let number = self.first;
        let Some(object) = self.all.get(usize::from(number)) else {
            self.none_free += 1;
            return None;
        };
        self.first = object.next;
        if self.first == NONE {
            self.last = NONE;
        }
        Some(number)
    }

    fn push(&mut self, number: u16) {
        let before = self.all.get_mut(usize::from(self.last)).map_or(&mut self.first, |last| &mut last.next);
        *before = number;
        if let Some(object) = self.all.get_mut(usize::from(number)) {
            object.next = NONE;
        }
        self.last = number;
    }
}

impl GuardedHeap {
    /// One without objects, whose gate stays closed.
    #[allow(clippy::new_without_default, reason = "a static's initialiser, which Default cannot be")]
    pub const fn new() -> Self {
        let none = Objects { all: &mut [], first: NONE, last: NONE, in_use: 0, sampled: 0, none_free: 0 };
        Self { gate: AtomicU16::new(CLOSED), pool: Once::new(), objects: IrqLock::new(none) }
    }

    /// Pages of memory that so many objects take, with the records of them.
    pub const fn required_pages(objects: u16) -> usize {
        record_pages(objects) + 2 * (objects as usize + 1)
    }

    /// Gives it [`Self::required_pages`] for `objects` objects, at most [`MAX_OBJECTS`]. Only the first call counts.
    ///
    /// # Safety
    /// The pages from `memory` on are the pool's for ever, and valid; `set_valid` changes them.
    pub unsafe fn init(&self, memory: VirtAddr, objects: u16, set_valid: SetValid) {
        let objects = objects.min(MAX_OBJECTS);
        let pages = memory + (record_pages(objects) * PAGE_SIZE) as u64;
        let mut records = self.objects.lock();
        if !records.all.is_empty() {
            return;
        }
        let first = memory.as_ptr::<Object>();
        for number in 0..usize::from(objects) {
            // SAFETY: in the pages that are for the records, which are the pool's.
            unsafe { first.add(number).write(Object::UNUSED) };
        }
        // SAFETY: each was just written, and nothing else refers to them.
        records.all = unsafe { core::slice::from_raw_parts_mut(first, objects.into()) };
        (0..objects).for_each(|number| records.push(number));
        self.pool.call_once(|| Pool { pages, objects, set_valid });
    }

    /// Whether it has objects.
    pub fn is_on(&self) -> bool {
        self.pool.is_completed()
    }

    /// Makes all pages of the pool invalid, before the first [`Self::open_gate`]. Returns whether there are any, and all
    /// are.
    fn protect(&self) -> bool {
        self.pool.get().is_some_and(|pool| (pool.set_valid)(pool.pages, pool.page_count(), Validity::Invalid))
    }

    /// Lets the next allocation through that fits. From any context, the timer's interrupt above all. Returns whether
    /// the gate is open now; it is not where all objects are in use.
    pub fn open_gate(&self) -> bool {
        if self.gate.load(Ordering::Relaxed) != CLOSED {
            return true;
        }
        let Some(pool) = self.pool.get() else { return false };
        let Some(number) = self.objects.lock().pop() else {
            // The last free one may be in the gate by now, by another CPU.
            return self.gate.load(Ordering::Relaxed) != CLOSED;
        };
        let page = pool.page(number);
        if !(pool.set_valid)(page, 1, Validity::Valid) {
            self.give_back(pool, number);
            return false;
        }
        // SAFETY: the page was just made valid; the object is in no list, so nothing else has it.
        unsafe { &mut *page.as_ptr::<canary::Page>() }.fill(canary::WORD);
        // Release: the allocation that finds the number uses the page as it is here.
        if self.gate.compare_exchange(CLOSED, number + 1, Ordering::Release, Ordering::Relaxed).is_err() {
            // Another CPU has opened it concurrently.
            self.give_back(pool, number);
        }
        true
    }

    /// A guarded object for `layout`, if the gate is open and the object fits in a page; the gate is closed then. Filled
    /// with the canary.
    ///
    /// Not while a lock of the rank `HEAP_GROWTH` or a later one is held, as for the heap.
    ///
    /// # Errors
    /// [`WrittenAfterFree`]: the object in the gate is in no list any more, and what is known of its last use stays.
    #[inline(always)]
    pub fn alloc(&self, layout: Layout) -> Result<Option<NonNull<u8>>, WrittenAfterFree> {
        if self.gate.load(Ordering::Relaxed) == CLOSED {
            return Ok(None);
        }
        self.take(layout)
    }

    #[cold]
    #[inline(never)]
    fn take(&self, layout: Layout) -> Result<Option<NonNull<u8>>, WrittenAfterFree> {
        let bytes = layout.size().max(1);
        let Some(pool) = self.pool.get().filter(|_| bytes <= PAGE_SIZE && layout.align() <= PAGE_SIZE) else {
            return Ok(None);
        };
        let Some(number) = self.gate.swap(CLOSED, Ordering::Acquire).checked_sub(1) else { return Ok(None) };
        let page = pool.page(number);
        // Before the record is the next user's: a write up to here is one after the last free.
        // SAFETY: the page of the object in the gate is valid, and nothing else has the object.
        if let Some(damaged) = canary::first_damaged(unsafe { &*page.as_ptr() }, 0..0) {
            return Err(WrittenAfterFree(page + damaged as u64));
        }
        let mut calls = Calls::NONE;
        calls.note();
        let mut objects = self.objects.lock();
        objects.sampled += 1;
        objects.in_use += 1;
        // By turns at either end, so that what is beyond either is found.
        let at_end = objects.sampled % 2 == 1;
        let offset = if at_end { (PAGE_SIZE - bytes) & !(layout.align() - 1) } else { 0 };
        if let Some(object) = objects.all.get_mut(usize::from(number)) {
            object.state = ObjectState::InUse;
            object.offset = offset as u16;
            object.bytes = bytes as u16;
            object.allocated = calls;
            object.freed = Calls::NONE;
        }
        Ok(NonNull::new((page + offset as u64).as_ptr()))
    }

    /// Takes an object back, whose page faults from then on. Not while a lock of the rank `HEAP` or a later one is held;
    /// interrupt handlers may call it.
    ///
    /// # Errors
    /// [`BadGuardedFree`]. Where it is not in use nothing is changed; else it has been freed, and its page stays valid.
    ///
    /// # Safety
    /// If `object` is an object in use, it is not used any more.
    pub unsafe fn dealloc(&self, object: *mut u8, layout: Layout) -> Result<(), BadGuardedFree> {
        let (start, bytes) = (VirtAddr(object.expose_provenance() as u64), layout.size().max(1));
        let not_in_use = BadGuardedFree::NotInUse(start, bytes);
        let pool = self.pool.get().ok_or(not_in_use)?;
        let number = pool.number_of(start).ok_or(not_in_use)?;
        let page = pool.page(number);
        let mut calls = Calls::NONE;
        calls.note();
        let used = {
            let mut objects = self.objects.lock();
            let object = objects.all.get_mut(usize::from(number)).ok_or(not_in_use)?;
            let begins = page + u64::from(object.offset) == start && usize::from(object.bytes) == bytes;
            if object.state != ObjectState::InUse || !begins {
                return Err(not_in_use);
            }
            object.state = ObjectState::Freed;
            object.freed = calls;
            let used = object.range();
            objects.in_use -= 1;
            used
        };
        // SAFETY: the object was in use, so its page is valid; it is not used any more, and in no list yet.
        let contents = unsafe { &*page.as_ptr() };
        if let Some(damaged) = canary::first_damaged(contents, used) {
            return Err(BadGuardedFree::Overwritten(page + damaged as u64));
        }
        self.give_back(pool, number);
        Ok(())
    }

    /// Whether `pointer` is into the pool's pages, guards included.
    pub fn contains(&self, pointer: *const u8) -> bool {
        self.pool.get().is_some_and(|pool| pool.contains(VirtAddr(pointer.addr() as u64)))
    }

    /// The numbers now.
    pub fn stats(&self) -> GuardedHeapStats {
        let objects = self.objects.lock();
        let Objects { in_use, sampled, none_free, .. } = *objects;
        GuardedHeapStats { objects: objects.all.len() as u16, in_use, sampled, none_free }
    }

    /// Makes the page of an object that nothing has invalid, and the object free. Were the page still valid it could be
    /// used again all the same; only accesses until then would not be found.
    #[inline(never)]
    fn give_back(&self, pool: &Pool, number: u16) {
        (pool.set_valid)(pool.page(number), 1, Validity::Invalid);
        self.objects.lock().push(number);
    }
}

/// Pages of the records of so many objects.
const fn record_pages(objects: u16) -> usize {
    (objects as usize * size_of::<Object>()).div_ceil(PAGE_SIZE)
}

#[cfg(test)]
mod tests;
