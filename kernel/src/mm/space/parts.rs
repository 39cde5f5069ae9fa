//! A value over all addresses of a space, in parts by address, each under its own lock.
//!
//! There is one part at first. A part that several CPUs change in turn is divided at an address between their work
//! ([`Parts::split`]), and parts that a range reaches over are joined again ([`Parts::write`]): CPUs that work at
//! different addresses then share no line that they write, and a space with one thread never notices.
//!
//! ```text
//!  bounds   0                    0x7f00_0000_0000         0x7f40_0000_0000
//!           ├─ part ─────────────┼─ part ─────────────────┼─ part ───────────────────┤
//! ```
//! Parts own all addresses, without a gap. Which addresses a part owns changes only under its lock for writing, and is
//! known to the part itself: so the index of the parts is a hint. A thread that locks a part by it asks the part
//! whether it owns the address; if not, it waits for the change of the index that is under way, and looks again.
//!
//! # Why this is right
//! - *No part goes away* before the space does: one that was joined owns nothing, and waits to be used again. So a
//!   pointer from an index that is out of date leads to a part, whose answer is no.
//! - *A reader sees a whole part or none*: values move between parts that are both locked for writing.
//! - *The part after a locked one stays*: another part takes its place only by a join into the locked one, or by a
//!   split of it.
//! - *No thread waits in a circle*: what has a part's lock waits at most for the part that follows, which it looks up
//!   under the lock of the index. A part that is used again is locked by what uses it, or for a moment by what came to it
//!   by an old index and has no other.
//!
//! `kernel/loom` compiles this file with a value of its own.

#![allow(unsafe_code, reason = "parts that live as long as their space")]

use core::array;
use core::ops::Deref;
use core::ptr::{self, NonNull};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_pgtable::PageRange;

use super::part_pools::{MOST, PartPools};
use super::range::pages;
use crate::sched::{BriefGuard, ReadGuard, RwSem, WriteGuard};
use crate::smp::{Cpu, CpuId};
use crate::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{IrqLock, rank};

/// A value that can be divided at an address.
pub(super) trait Divisible: Sized {
    /// Owns nothing.
    const NOTHING: Self;

    /// Whether it owns `page`.
    fn owns(&self, page: VirtAddr) -> bool;

    /// Whether a change of `range` concerns nothing but this value. One that owns all addresses has every range.
    fn has(&self, range: PageRange) -> bool;

    /// The first address above its own; `None` where it owns the last one.
    fn next(&self) -> Option<VirtAddr>;

    /// Takes everything of the value above it.
    fn join(&mut self, above: &mut Self);

    /// Gives what is from `at` on to `above`, which owns nothing.
    fn split(&mut self, at: VirtAddr, above: &mut Self);
}

/// A part: what its lock protects lies in lines of its own.
#[repr(align(64))]
pub(super) struct Part<A>(RwSem<A>);

/// The parts by address, then those that are not in use. It is written under [`Parts::order`], and read without it.
pub(super) struct Index<A> {
    /// Which it is in.
    pub(super) frame: PhysAddr,
    /// Parts in use.
    count: AtomicUsize,
    /// Parts that wait to be used again, after those.
    spare: AtomicUsize,
    /// All parts, those included that are about to be used.
    made: AtomicUsize,
    entries: [Entry<A>; MOST],
}

struct Entry<A> {
    /// Its first address.
    bound: AtomicU64,
    part: AtomicPtr<Part<A>>,
    /// For which CPU it was made, that takes addresses from it first: its number and 1; 0 for none.
    home: AtomicUsize,
}

impl<A> Index<A> {
    fn new(frame: PhysAddr, first: &Part<A>) -> Self {
        let index = Self {
            frame,
            count: AtomicUsize::new(1),
            spare: AtomicUsize::new(0),
            made: AtomicUsize::new(1),
            entries: array::from_fn(|_| Entry {
                bound: AtomicU64::new(0),
                part: AtomicPtr::default(),
                home: AtomicUsize::new(0),
            }),
        };
        index.entry(0).part.store(ptr::from_ref(first).cast_mut(), Ordering::Relaxed);
        index
    }

    /// An entry. The remainder is the place itself: no place is as high as [`MOST`].
    fn entry(&self, place: usize) -> &Entry<A> {
        &self.entries[place % MOST]
    }

    /// How many parts own an address up to `page`: the last of these owns it.
    fn up_to(&self, page: VirtAddr) -> usize {
        // Acquire: the entries below the count are filled.
        let (mut low, mut high) = (1, self.count.load(Ordering::Acquire));
        while low < high {
            let middle = (low + high) / 2;
            if self.entry(middle).bound.load(Ordering::Relaxed) <= page.0 {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The part in a place. Acquire: it was made before it came there.
    fn part(&self, place: usize) -> Option<NonNull<Part<A>>> {
        NonNull::new(self.entry(place).part.load(Ordering::Acquire))
    }

    /// Moves what is in one place to another.
    fn copy(&self, from: usize, to: usize) {
        self.entry(to).bound.store(self.entry(from).bound.load(Ordering::Relaxed), Ordering::Relaxed);
        self.entry(to).home.store(self.entry(from).home.load(Ordering::Relaxed), Ordering::Relaxed);
        self.entry(to).part.store(self.entry(from).part.load(Ordering::Relaxed), Ordering::Release);
    }

    /// Adds a part that owns the addresses from `at` on. The index is locked, and a place was [reserved](Parts::reserve).
    fn insert(&self, at: VirtAddr, part: NonNull<Part<A>>) {
        let (count, spare) = (self.count.load(Ordering::Relaxed), self.spare.load(Ordering::Relaxed));
        if spare != 0 {
            self.copy(count, count + spare);
        }
        let place = self.up_to(at);
        (place..count).rev().for_each(|from| self.copy(from, from + 1));
        self.entry(place).bound.store(at.0, Ordering::Relaxed);
        self.entry(place).home.store(0, Ordering::Relaxed);
        self.entry(place).part.store(part.as_ptr(), Ordering::Release);
        self.count.store(count + 1, Ordering::Release);
    }

    /// Takes out the part that begins at `at`. The index is locked.
    fn remove(&self, at: VirtAddr) {
        let count = self.count.load(Ordering::Relaxed);
        let place = self.up_to(at) - 1;
        let part = self.entry(place).part.load(Ordering::Relaxed);
        (place + 1..count).for_each(|from| self.copy(from, from - 1));
        self.count.store(count - 1, Ordering::Release);
        self.entry(count - 1).part.store(part, Ordering::Release);
        self.spare.store(self.spare.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// A value in parts.
pub(super) struct Parts<A> {
    /// The part that owns address 0.
    first: Part<A>,
    /// All parts, once there were several.
    index: AtomicPtr<Index<A>>,
    /// Locked by what changes the index. No other lock is taken under it.
    order: IrqLock<(), { rank::PARTS }>,
}

impl<A: Divisible> Parts<A> {
    /// One part.
    pub(super) fn new(value: A) -> Self {
        Self { first: Part(RwSem::new(rank::AREAS, value)), index: AtomicPtr::default(), order: IrqLock::new(()) }
    }

    /// The index, if there ever were several parts.
    #[inline(always)]
    fn index(&self) -> Option<&Index<A>> {
        // SAFETY: it was made before it was stored (acquire), and lives until `self` ends.
        unsafe { self.index.load(Ordering::Acquire).as_ref() }
    }

    /// The part that owned `page` a moment ago, or any other.
    #[inline(always)]
    fn at(&self, page: VirtAddr) -> &RwSem<A> {
        match self.index() {
            None => &self.first.0,
            Some(index) => self.find(index, page),
        }
    }

    #[inline(never)]
    fn find(&self, index: &Index<A>, page: VirtAddr) -> &RwSem<A> {
        match index.part(index.up_to(page) - 1) {
            // SAFETY: parts live until `self` ends.
            Some(part) => unsafe { &part.as_ref().0 },
            None => &self.first.0,
        }
    }

    /// Locks by `lock` the part that owns `page`.
    #[inline(always)]
    fn locked<'a, G: Deref<Target = A>>(&'a self, page: VirtAddr, lock: impl Fn(&'a RwSem<A>) -> G) -> G {
        loop {
            let guard = lock(self.at(page));
            if guard.owns(page) {
                return guard;
            }
            drop(guard);
            self.wait_for_index();
        }
    }

    /// Waits for a change of the index that is under way: it was out of date.
    #[cold]
    #[inline(never)]
    pub(super) fn wait_for_index(&self) {
        drop(self.order.lock());
    }

    /// The part that owns `page`, for reading.
    #[inline(always)]
    pub(super) fn read(&self, page: VirtAddr) -> ReadGuard<'_, A> {
        self.locked(page, RwSem::read)
    }

    /// The part that owns `page`, with a guard as [`Self::look_briefly`]'s, for a reader that is counted.
    #[cold]
    pub(super) fn read_counted(&self, page: VirtAddr) -> BriefGuard<'_, A> {
        self.locked(page, RwSem::read_counted)
    }

    /// The part that owned `page` a moment ago, for reading for a moment. A caller that does not find there what it
    /// looks for asks whether the part [owns](Divisible::owns) the page, and [waits](Self::wait_for_index) if not.
    ///
    /// # Safety
    /// As for [`RwSem::read_briefly`].
    #[inline(always)]
    pub(super) unsafe fn look_briefly<'a>(&'a self, cpu: &'a Cpu, page: VirtAddr) -> BriefGuard<'a, A> {
        // SAFETY: as the caller guarantees.
        unsafe { self.at(page).read_briefly(cpu) }
    }

    /// Calls `read` for each part with an address of `range` and its piece of the range, by address, until it returns
    /// `false`, with the part locked for reading. Between two parts neither is locked: the next one may be joined with
    /// those before it.
    pub(super) fn for_each(&self, range: PageRange, read: &mut dyn FnMut(&A, PageRange) -> bool) {
        let mut start = range.start();
        loop {
            let part = self.read(start);
            let next = part.next().filter(|&next| next < range.end());
            let goes_on = read(&part, pages(start, next.unwrap_or(range.end())));
            match next {
                Some(next) if goes_on => start = next,
                _ => return,
            }
        }
    }

    /// The part that has `range`, for a change. Parts over which the range reaches are joined; `joined` is called for each
    /// border that this removes.
    #[inline(always)]
    pub(super) fn write(&self, range: PageRange, joined: impl Fn(&mut A, VirtAddr)) -> WriteGuard<'_, A> {
        let guard = self.at(range.start()).write();
        if guard.has(range) {
            return guard;
        }
        drop(guard);
        // Moved, so that neither lies in memory where there is one part.
        self.write_joined(range.start(), &move |part| part.has(range), &move |part, border| joined(part, border))
    }

    /// All of it as one part, for reading; as [`Self::write`].
    pub(super) fn read_all(&self, joined: impl Fn(&mut A, VirtAddr)) -> ReadGuard<'_, A> {
        let guard = self.first.0.read();
        if guard.next().is_none() {
            return guard;
        }
        drop(guard);
        self.write_all(joined).downgrade()
    }

    /// All of it as one part, for a change; as [`Self::write`].
    pub(super) fn write_all(&self, joined: impl Fn(&mut A, VirtAddr)) -> WriteGuard<'_, A> {
        let guard = self.first.0.write();
        if guard.next().is_none() {
            return guard;
        }
        drop(guard);
        self.write_joined(VirtAddr(0), &|_| false, &joined)
    }

    /// The part that owns `page`, joined with those above it until it `is_enough`.
    #[cold]
    #[inline(never)]
    fn write_joined(
        &self,
        page: VirtAddr,
        is_enough: &dyn Fn(&A) -> bool,
        joined: &dyn Fn(&mut A, VirtAddr),
    ) -> WriteGuard<'_, A> {
        let mut part = self.locked(page, RwSem::write);
        while let Some(next) = part.next()
            && !is_enough(&part)
        {
            // Not by the index alone, which may be changing: it might lead to a part below, or to this one. The part
            // that it has for this address under its lock stays there while this part is locked.
            let above = {
                let _order = self.order.lock();
                self.at(next)
            };
            let mut above = above.write();
            part.join(&mut above);
            if let Some(index) = self.index() {
                let _order = self.order.lock();
                index.remove(next);
            }
            joined(&mut part, next);
        }
        part
    }

    /// The part from which `cpu` takes addresses, for a change: one that was made for it, or the one that owns `page`.
    #[inline(always)]
    pub(super) fn write_for(&self, cpu: CpuId, page: VirtAddr) -> WriteGuard<'_, A> {
        self.index().and_then(|index| self.write_home(index, cpu)).unwrap_or_else(|| self.locked(page, RwSem::write))
    }

    #[inline(never)]
    fn write_home(&self, index: &Index<A>, cpu: CpuId) -> Option<WriteGuard<'_, A>> {
        let is_home = |&place: &usize| index.entry(place).home.load(Ordering::Relaxed) == home(cpu);
        let place = (1..index.count.load(Ordering::Acquire)).find(is_home)?;
        let bound = VirtAddr(index.entry(place).bound.load(Ordering::Relaxed));
        Some(self.locked(bound, RwSem::write))
    }

    /// Divides `part`, which is locked for a change, at `at`, an address that it owns and does not begin with; returns
    /// the new part above, locked. `None`, and nothing is changed, where there are too many parts, or no memory for one.
    #[cold]
    #[inline(never)]
    pub(super) fn split<'a>(
        &'a self,
        part: &mut A,
        at: VirtAddr,
        memory: &'static PartPools<A>,
    ) -> Option<WriteGuard<'a, A>> {
        let index = self.index_for_split(memory)?;
        let new = self.reserve(index, memory)?;
        // SAFETY: parts live until `self` ends.
        let mut above = unsafe { &new.as_ref().0 }.write();
        part.split(at, &mut above);
        let _order = self.order.lock();
        index.insert(at, new);
        Some(above)
    }

    /// How many parts there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.index().map_or(1, |index| index.count.load(Ordering::Relaxed))
    }

    /// Makes the part that owns `at` the one from which `cpu` takes addresses.
    pub(super) fn make_home(&self, at: VirtAddr, cpu: CpuId) {
        let _order = self.order.lock();
        if let Some(index) = self.index() {
            let own = index.up_to(at) - 1;
            // It has one.
            for (place, Entry { home: of, .. }) in index.entries.iter().enumerate() {
                if place == own {
                    of.store(home(cpu), Ordering::Relaxed);
                } else if of.load(Ordering::Relaxed) == home(cpu) {
                    of.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// The index, or a new one.
    fn index_for_split(&self, memory: &'static PartPools<A>) -> Option<&Index<A>> {
        if let Some(index) = self.index() {
            return Some(index);
        }
        let new = memory.new_index(|frame| Index::new(frame, &self.first))?;
        let other = {
            let _order = self.order.lock();
            let other = self.index();
            if other.is_none() {
                self.index.store(new.as_ptr(), Ordering::Release);
            }
            other
        };
        if other.is_some() {
            // SAFETY: nothing refers to it.
            unsafe { memory.free_index(new) };
        }
        self.index()
    }

    /// A part that owns nothing, and a place in the index for it.
    fn reserve(&self, index: &Index<A>, memory: &'static PartPools<A>) -> Option<NonNull<Part<A>>> {
        {
            let _order = self.order.lock();
            let (spare, made) = (index.spare.load(Ordering::Relaxed), index.made.load(Ordering::Relaxed));
            if spare != 0 {
                index.spare.store(spare - 1, Ordering::Relaxed);
                return index.part(index.count.load(Ordering::Relaxed) + spare - 1);
            }
            if made == MOST {
                return None;
            }
            index.made.store(made + 1, Ordering::Relaxed);
        }
        let new = memory.new_part(Part(RwSem::new(rank::AREAS, A::NOTHING)));
        if new.is_none() {
            let _order = self.order.lock();
            index.made.store(index.made.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        }
        new
    }
}

/// The value of [`Entry::home`] for a CPU.
const fn home(cpu: CpuId) -> usize {
    cpu.0 as usize + 1
}

impl<A> Parts<A> {
    /// Frees all parts but the first. The value was given up, and nothing refers to it any more.
    pub(super) fn end(&mut self, memory: &'static PartPools<A>) {
        let Some(index) = NonNull::new(self.index.load(Ordering::Relaxed)) else { return };
        self.index.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: it was made by the pools, and the last reference to it ends here.
        let parts = unsafe { index.as_ref() };
        let made = parts.count.load(Ordering::Relaxed) + parts.spare.load(Ordering::Relaxed);
        for part in (1..made).filter_map(|place| parts.part(place)) {
            // SAFETY: as above. Each part is in one place, and the first, which the pools did not make, in place 0.
            unsafe { memory.free_part(part) };
        }
        // SAFETY: as above.
        unsafe { memory.free_index(index) };
    }
}
