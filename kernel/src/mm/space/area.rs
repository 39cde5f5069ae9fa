//! Which addresses of a space are mapped, from which memory, and with which protection.
//!
//! Areas are nodes of an intrusive tree by address. A second tree has the same nodes by the free addresses below each,
//! so that a mapping finds the smallest gap that is large enough without visiting the others. Nodes are allocated
//! before a change begins ([`Spares`]); after that nothing here can fail.
//!
//! ```text
//!         window.start        SEARCH_START                                     window.end
//!         │ by request only   │ where the kernel chooses                        │
//!         ├───────┬──────┬────┼──────────────────┬──────┬────────┬─────────┬────┤
//!         │       │ area │    │    gap of B      │  B   │ gap of │   C     │    │
//! ```
//! Two areas that touch and are alike are one: [`Areas::merge`] is called wherever a change may have made them so.
//!
//! Where CPUs change areas in turn, their [part](super::parts) is [divided](divide) between them.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

mod divide;

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ops::Range;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;
use intrusive_collections::rbtree::{Cursor, CursorMut};
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

pub(super) use divide::ARENAS;
use divide::Turns;

use super::PAGE;
use super::calls::STACK_GUARD;
use super::error::{Refusal, SpaceError};
use super::gather::pages;
use super::limits::Grants;
use super::parts::Divisible;
use super::shmem::Object;
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::pool::{CpuPools, Pool, PoolBox};
use crate::sched::relax;
use crate::smp::Cpu;

/// The kernel chooses no address below this one: programs are linked there, and null pointers with an offset point
/// there.
pub(super) const SEARCH_START: VirtAddr = VirtAddr(1 << 32);

/// One area: the pages from `start` to `end`, all alike.
///
/// Readers hold the space's lock for reading. The `Cell`s change only under the lock for writing.
pub struct Area {
    by_address: RBTreeLink,
    by_gap: RBTreeLink,
    start: Cell<VirtAddr>,
    end: Cell<VirtAddr>,
    /// Free bytes below that the kernel may choose. The area is in the tree of gaps unless this is 0.
    gap: Cell<u64>,
    /// Free bytes below that the kernel does not choose: room for a stack to grow, and its guard. 0 for an area that is
    /// no stack.
    guard: Cell<u64>,
    /// Whether it must fit in memory to be writable.
    reserved: bool,
    protection: Cell<Protection>,
    /// The object of a shared area, and the page of it that the area begins with.
    object: Option<Counted<Object>>,
    first_page: Cell<u64>,
}

impl Area {
    /// An area in no space, for tests of code that shows areas.
    #[cfg(test)]
    pub(crate) fn sample(range: PageRange, protection: Protection) -> Self {
        Self::new(range, protection, None)
    }

    /// An area of `range`, in no tree: of `object` from its first page on, or private.
    pub(super) fn new(range: PageRange, protection: Protection, object: Option<Counted<Object>>) -> Self {
        Self::of(range.start(), range.end(), protection, object, 0)
    }

    /// The same with `bytes` free bytes below that the kernel does not choose.
    pub(super) fn guarded(self, bytes: u64) -> Self {
        Self { guard: Cell::new(bytes), ..self }
    }

    /// The same; unless `reserved`, it may be larger than all memory.
    pub(super) fn reserved(self, reserved: bool) -> Self {
        Self { reserved, ..self }
    }

    /// The same area for another space.
    pub(super) fn copy(&self) -> Self {
        self.piece(self.start(), self.end())
    }

    /// A copy of its part from `start` to `end`.
    #[inline(always)]
    fn piece(&self, start: VirtAddr, end: VirtAddr) -> Self {
        Self::of(start, end, self.protection(), self.object.clone(), self.page_at(start))
            .guarded(self.guard.get())
            .reserved(self.reserved)
    }

    fn of(
        start: VirtAddr,
        end: VirtAddr,
        protection: Protection,
        object: Option<Counted<Object>>,
        first_page: u64,
    ) -> Self {
        Self {
            by_address: RBTreeLink::new(),
            by_gap: RBTreeLink::new(),
            start: Cell::new(start),
            end: Cell::new(end),
            gap: Cell::new(0),
            guard: Cell::new(0),
            reserved: true,
            protection: Cell::new(protection),
            object,
            first_page: Cell::new(first_page),
        }
    }

    /// First address.
    #[inline(always)]
    pub fn start(&self) -> VirtAddr {
        self.start.get()
    }

    /// The address behind its last.
    #[inline(always)]
    pub fn end(&self) -> VirtAddr {
        self.end.get()
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.end() - self.start()
    }

    /// The lowest address that the heap may not reach: below the start of a stack by its guard.
    pub(super) fn guarded_start(&self) -> VirtAddr {
        let guard = if self.guard.get() == 0 { 0 } else { STACK_GUARD };
        VirtAddr(self.start().0.saturating_sub(guard))
    }

    /// The highest border below it: what may become part of the area, or must stay free below it, is not divided from it.
    fn highest_border(&self) -> VirtAddr {
        VirtAddr(self.start().0.saturating_sub(self.guard.get())).min(self.guarded_start())
    }

    /// Its pages.
    pub fn range(&self) -> PageRange {
        PageRange::new(self.start(), self.size()).expect("an area is made of whole pages of the lower half")
    }

    /// Its pages in `range`, which it touches.
    #[inline(always)]
    pub(super) fn part_in(&self, range: PageRange) -> PageRange {
        pages(self.start().max(range.start()), self.end().min(range.end()))
    }

    /// How many ends of `range` lie strictly inside it.
    #[inline(always)]
    pub(super) fn cuts(&self, range: PageRange) -> usize {
        usize::from(self.start() < range.start()) + usize::from(range.end() < self.end())
    }

    /// What may be done with its pages.
    #[inline(always)]
    pub fn protection(&self) -> Protection {
        self.protection.get()
    }

    /// The object that its pages belong to. Private pages (zeros at first, copied after a fork) belong to none.
    #[inline(always)]
    pub fn object(&self) -> Option<&Object> {
        self.object.as_deref()
    }

    /// Whether its pages belong to an object.
    #[inline(always)]
    pub fn is_shared(&self) -> bool {
        self.object.is_some()
    }

    /// Whether an access below it extends it.
    pub(super) fn grows(&self) -> bool {
        self.guard.get() != 0
    }

    /// See [`Self::reserved`].
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Bytes of it that count as data: private and writable, stacks excepted.
    #[inline(always)]
    pub(super) fn data(&self) -> u64 {
        if self.protection().contains(Protection::WRITE) && !self.is_shared() && !self.grows() {
            self.size()
        } else {
            0
        }
    }

    /// The page of its object at `address`. Without meaning in a private area.
    #[inline(always)]
    pub fn page_at(&self, address: VirtAddr) -> u64 {
        self.first_page.get() + (address - self.start()) / PAGE
    }

    /// Whether `next` begins where this one ends, and is alike in everything.
    #[inline(always)]
    fn continues_in(&self, next: &Self) -> bool {
        // The most frequent difference first.
        self.protection() == next.protection() && self.end() == next.start() && self.is_like(next)
    }

    /// Whether `next`, which begins where this one ends, continues its object, and differs at most in its protection.
    #[inline(never)]
    fn is_like(&self, next: &Self) -> bool {
        let same_object = match (&self.object, &next.object) {
            (None, None) => true,
            (Some(object), Some(other)) => object.is(other) && self.page_at(self.end()) == next.first_page.get(),
            _ => false,
        };
        self.grows() == next.grows() && self.reserved == next.reserved && same_object
    }
}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{Area, RBTreeLink, UnsafeRef, intrusive_adapter};
    intrusive_adapter!(pub ByAddress = UnsafeRef<Area>: Area { by_address => RBTreeLink });
    intrusive_adapter!(pub ByGap = UnsafeRef<Area>: Area { by_gap => RBTreeLink });
}
use adapters::{ByAddress, ByGap};

impl<'a> KeyAdapter<'a> for ByAddress {
    type Key = u64;
    fn get_key(&self, area: &'a Area) -> u64 {
        area.start().0
    }
}

impl<'a> KeyAdapter<'a> for ByGap {
    /// By size; gaps of one size by address.
    type Key = (u64, u64);
    fn get_key(&self, area: &'a Area) -> (u64, u64) {
        (area.gap.get(), area.start().0)
    }
}

/// The most areas of one space, as on Linux (`vm.max_map_count`).
const MOST: usize = 65_530;

/// Room for nodes that was allocated before a change begins, for the areas that it adds.
pub(super) struct Spares(heapless::Vec<PoolBox<MaybeUninit<Area>>, 2>);

impl Spares {
    /// Takes `count` nodes, at most two.
    ///
    /// # Errors
    /// [`OutOfMemory`]; no node stays allocated.
    #[inline]
    pub(super) fn take(cpu: &Cpu, source: &CpuPools<Area>, count: usize) -> Result<Self, OutOfMemory> {
        if count == 0 { Ok(Self(heapless::Vec::new())) } else { Self::take_some(source.of(cpu), count) }
    }

    #[inline(never)]
    fn take_some(pool: &'static Pool<Area>, count: usize) -> Result<Self, OutOfMemory> {
        let mut nodes = heapless::Vec::new();
        for _ in 0..count {
            nodes.push(pool.try_new_uninit()?).map_err(|_| OutOfMemory)?;
        }
        Ok(Self(nodes))
    }

    /// A node that holds `area`.
    pub(super) fn make(&mut self, area: Area) -> PoolBox<Area> {
        self.0.pop().expect("as many nodes were taken as the change adds areas").write(area)
    }
}

/// An area that was found. Valid until the areas change otherwise.
pub(super) type Held = UnsafeRef<Area>;

/// The areas of one space, or of a part of it.
pub(super) struct Areas {
    tree: RBTree<ByAddress>,
    gaps: RBTree<ByGap>,
    /// Where areas may be. The page behind it is free, if another part follows.
    start: VirtAddr,
    end: VirtAddr,
    /// The addresses that the part owns. All are below `u64::MAX`.
    owned: Range<u64>,
    /// Whether these are all addresses. What a part refuses, all may permit.
    pub(super) is_whole: bool,
    // For the rest of the space to read: they change with the trees.
    /// How many areas there are.
    pub(super) count: usize,
    /// Bytes of all areas.
    pub(super) total: u64,
    /// Bytes that count as data: [`Area::data`].
    pub(super) data: u64,
    /// It has fewer areas than this.
    room: usize,
    /// What the part may have of the limits.
    pub(super) grants: Grants,
    turns: Turns,
}

// SAFETY: only the trees refer to their nodes, which come from a pool that every CPU may use, so they move together.
unsafe impl Send for Areas {}
// SAFETY: a shared reference changes nothing: each method that sets a `Cell` takes `&mut self`.
unsafe impl Sync for Areas {}

impl Areas {
    /// No areas, in the window from `start` to `end`.
    pub(super) const fn new(start: VirtAddr, end: VirtAddr) -> Self {
        Self::of(start, end, 0..u64::MAX)
    }

    const fn of(start: VirtAddr, end: VirtAddr, owned: Range<u64>) -> Self {
        Self {
            tree: RBTree::new(ByAddress::NEW),
            gaps: RBTree::new(ByGap::NEW),
            start,
            end,
            is_whole: owned.start == 0 && owned.end == u64::MAX,
            owned,
            count: 0,
            total: 0,
            data: 0,
            room: MOST + 1,
            grants: Grants::ALL,
            turns: Turns::none(start),
        }
    }

    /// Fails if `more` areas by cuts would be too many.
    ///
    /// # Errors
    /// [`Refusal`], as for a shortage of nodes.
    #[inline]
    pub(super) fn room_for_cuts(&self, more: usize) -> Result<(), Refusal> {
        if more == 0 || self.count + more < self.room { Ok(()) } else { Err(self.refusal()) }
    }

    /// Fails if a mapping would be one area too many: as on Linux one more than by cuts, even if it replaces or joins
    /// others.
    ///
    /// # Errors
    /// [`Refusal`].
    #[inline]
    pub(super) fn room_for_mapping(&self) -> Result<(), Refusal> {
        if self.count < self.room { Ok(()) } else { Err(self.refusal()) }
    }

    /// The error where something is too much for these areas.
    #[cold]
    pub(super) fn refusal(&self) -> Refusal {
        if self.is_whole { Refusal::Final(SpaceError::NoMemory) } else { Refusal::ByPart }
    }

    /// All areas, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Area> {
        self.tree.iter()
    }

    /// The area that holds `address`.
    #[inline]
    pub(super) fn find(&self, address: VirtAddr) -> Option<&Area> {
        let area = self.tree.upper_bound(Bound::Included(&address.0)).get()?;
        (address < area.end()).then_some(area)
    }

    /// The areas with an address of `range`, by address.
    pub(super) fn touching(&self, range: PageRange) -> impl Iterator<Item = &Area> {
        let mut cursor = self.ending_above(range.start());
        core::iter::from_fn(move || {
            let area = cursor.get().filter(|area| area.start() <= range.last())?;
            cursor.move_next();
            Some(area)
        })
    }

    /// The same for a walk over any number of them: others may run in between, but not among the first 64, which the caller
    /// may read [for a moment](crate::sched::BriefGuard).
    pub(super) fn walk(&self, range: PageRange) -> impl Iterator<Item = &Area> {
        #[cold]
        #[inline(never)]
        fn pause() {
            relax();
        }
        self.touching(range).zip(1_u32..).map(|(area, count)| {
            if count.is_multiple_of(64) {
                pause();
            }
            area
        })
    }

    /// The first of those.
    #[inline]
    pub(super) fn first_touching(&self, range: PageRange) -> Option<Held> {
        self.ending_above(range.start()).clone_pointer().filter(|area| area.start() <= range.last())
    }

    /// The area that holds all of `range`.
    #[inline]
    pub(super) fn holding(&self, range: PageRange) -> Option<Held> {
        let cursor = self.tree.upper_bound(Bound::Included(&range.start().0));
        let holds = cursor.get().is_some_and(|area| range.last() < area.end());
        cursor.clone_pointer().filter(|_| holds)
    }

    /// The first area that ends above `address`.
    #[inline]
    fn ending_above(&self, address: VirtAddr) -> Cursor<'_, ByAddress> {
        let mut cursor = self.tree.upper_bound(Bound::Included(&address.0));
        if cursor.get().is_none_or(|area| area.end() <= address) {
            cursor.move_next();
        }
        cursor
    }

    /// Whether areas cover `range` without a hole.
    #[inline]
    pub(super) fn covers(&self, range: PageRange) -> bool {
        self.holding(range).is_some() || self.covered_until(range) == range.end()
    }

    /// Where the first hole in `range` begins; its end where there is none.
    #[inline(never)]
    pub(super) fn covered_until(&self, range: PageRange) -> VirtAddr {
        let mut until = range.start();
        for area in self.walk(range) {
            if area.start() > until {
                break;
            }
            until = area.end();
        }
        until.min(range.end())
    }

    /// Whether `range` lies in the window.
    pub(super) fn in_window(&self, range: PageRange) -> bool {
        range.start() >= self.start && range.last() < self.end
    }

    /// The address of `bytes` free bytes that the kernel may choose: at the top of the smallest gap that is large
    /// enough.
    pub(super) fn gap(&self, bytes: u64) -> Option<VirtAddr> {
        if let Some(above) = self.gaps.lower_bound(Bound::Included(&(bytes, 0))).get() {
            return Some(above.start() - above.guard.get() - bytes);
        }
        let last = self.tree.back().get().map_or(self.start, Area::end);
        let top = self.end.0.checked_sub(last.max(SEARCH_START).0)?;
        (top >= bytes).then(|| self.end - bytes)
    }

    /// Splits `area` at `at`; returns the upper part.
    fn cut(&mut self, area: &UnsafeRef<Area>, at: VirtAddr, spares: &mut Spares) -> UnsafeRef<Area> {
        let upper = spares.make(area.piece(at, area.end())).into_ref();
        area.end.set(at);
        // The parts touch, so no gap changes.
        self.cursor(area).insert_after(upper.clone());
        self.count += 1;
        upper
    }

    /// Inserts `area`, whose addresses are free.
    pub(super) fn insert(&mut self, area: PoolBox<Area>) -> Held {
        debug_assert!(self.in_window(area.range()) && self.touching(area.range()).next().is_none());
        let node = area.into_ref();
        self.tree.insert(node.clone());
        self.count += 1;
        self.total += node.size();
        self.data += node.data();
        self.gap_changed(&node);
        self.gap_above_changed(&node);
        node
    }

    /// Inserts copies of all areas of another space into this one, which is empty, and calls `copied` for each.
    ///
    /// # Errors
    /// [`OutOfMemory`], also that of `copied`. Some areas are missing then, and the caller drops the space.
    #[inline]
    pub(super) fn copy_all(
        &mut self,
        other: &Self,
        pool: &'static Pool<Area>,
        mut copied: impl FnMut(&Area) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        // The totals are those of the other space.
        (self.count, self.total, self.data) = (other.count, other.total, other.data);
        let mut last: Option<UnsafeRef<Area>> = None;
        for area in other.iter() {
            let node = pool.try_new_with(|| area.copy())?.into_ref();
            match last {
                Some(last) => self.cursor(&last).insert_after(node.clone()),
                None => self.tree.front_mut().insert_before(node.clone()),
            }
            // The gap below it is the same.
            if area.gap.get() != 0 {
                self.set_gap(&node, area.gap.get());
            }
            last = Some(node);
            copied(area)?;
        }
        Ok(())
    }

    /// Removes `range` from the areas that it touches, the first of which is `first`. Takes a spare where an area is
    /// cut in two.
    #[inline(never)]
    pub(super) fn remove(&mut self, first: Held, range: PageRange, spares: &mut Spares) {
        let mut next = Some(first);
        while let Some(area) = next {
            let part = area.part_in(range);
            next = None;
            if part.end() != range.end() {
                let above = self.cursor(&area).peek_next().clone_pointer();
                next = above.filter(|above| above.start() <= range.last());
            }
            drop(self.remove_part(&area, part, spares));
            if next.is_some() {
                // Areas are many, and one may be the last user of an object with many frames.
                relax();
            }
        }
    }

    /// Removes `range` from the area that holds all of it. Returns that area where nothing of it is left.
    #[inline(always)]
    pub(super) fn remove_part(&mut self, area: &Held, range: PageRange, spares: &mut Spares) -> Option<PoolBox<Area>> {
        let begins_inside = area.start() < range.start();
        if range.end() == area.end() {
            if !begins_inside {
                return Some(self.take(area));
            }
        } else if begins_inside {
            self.cut(area, range.end(), spares);
        }
        let gone = range.end() - range.start();
        self.total -= gone;
        if area.data() != 0 {
            self.data -= gone;
        }
        if begins_inside {
            area.end.set(range.start());
            self.gap_above_changed(area);
        } else {
            area.first_page.set(area.page_at(range.end()));
            area.start.set(range.end());
            self.gap_changed(area);
        }
        None
    }

    /// Removes all areas, and passes each to `removed`.
    pub(super) fn clear(&mut self, mut removed: impl FnMut(PoolBox<Area>)) {
        self.gaps.fast_clear();
        (self.count, self.total, self.data) = (0, 0, 0);
        while let Some(node) = self.tree.front_mut().remove() {
            removed(into_box(node));
        }
    }

    /// Removes one area.
    fn take(&mut self, area: &UnsafeRef<Area>) -> PoolBox<Area> {
        self.set_gap(area, 0);
        let mut cursor = self.cursor(area);
        cursor.remove();
        let next = cursor.as_cursor().clone_pointer();
        self.count -= 1;
        self.total -= area.size();
        self.data -= area.data();
        if let Some(next) = next {
            self.gap_changed(&next);
        }
        into_box(area.clone())
    }

    /// The end of the last area below `range` and the start of the first above it, or the ends of the window, or of the
    /// part. No area is in `range`.
    pub(super) fn around(&self, range: PageRange) -> (VirtAddr, VirtAddr) {
        let above = self.tree.lower_bound(Bound::Included(&range.start().0));
        let below = if above.is_null() { self.tree.back() } else { above.peek_prev() };
        (below.get().map_or(self.start, Area::end), above.get().map_or(self.next().unwrap_or(self.end), Area::start))
    }

    /// Changes the protection of an area.
    #[inline]
    pub(super) fn protect(&mut self, held: &Held, protection: Protection) {
        let before = held.data();
        held.protection.set(protection);
        self.data = self.data - before + held.data();
    }

    /// Makes `range`, which the area holds, an area of its own. Takes a spare for each end at which the area is cut.
    pub(super) fn cut_out(&mut self, mut area: Held, range: PageRange, spares: &mut Spares) -> Held {
        if area.start() < range.start() {
            area = self.cut(&area, range.start(), spares);
        }
        if range.end() < area.end() {
            self.cut(&area, range.end(), spares);
        }
        area
    }

    /// Joins `area` with the areas below and above it, where they touch and are alike.
    pub(super) fn merge(&mut self, mut area: Held) {
        let below = self.cursor(&area).peek_prev().clone_pointer();
        if let Some(below) = below
            && below.continues_in(&area)
        {
            drop(self.join(&below, area));
            area = below;
        }
        let next = self.cursor(&area).peek_next().clone_pointer();
        if let Some(next) = next
            && area.continues_in(&next)
        {
            drop(self.join(&area, next));
        }
    }

    /// Joins two areas that touch and are alike; returns the upper one's node.
    #[inline(never)]
    fn join(&mut self, below: &Area, above: UnsafeRef<Area>) -> PoolBox<Area> {
        below.end.set(above.end());
        // They touched: the upper one had no gap, and the gap above it does not change.
        debug_assert_eq!(above.gap.get(), 0);
        self.cursor(&above).remove();
        self.count -= 1;
        into_box(above)
    }

    /// The first area that begins at `address` or above.
    pub(super) fn first_from(&self, address: VirtAddr) -> Option<Held> {
        self.tree.lower_bound(Bound::Included(&address.0)).clone_pointer()
    }

    /// The last area that begins below `address`.
    pub(super) fn last_below(&self, address: VirtAddr) -> Option<&Area> {
        self.tree.upper_bound(Bound::Excluded(&address.0)).get()
    }

    /// Extends a stack down to `start`. The addresses in between are free.
    pub(super) fn extend_down(&mut self, stack: &Held, start: VirtAddr) {
        let more = stack.start() - start;
        stack.start.set(start);
        stack.guard.set(stack.guard.get().saturating_sub(more).max(PAGE));
        self.total += more;
        self.gap_changed(stack);
    }

    fn cursor(&mut self, area: &UnsafeRef<Area>) -> CursorMut<'_, ByAddress> {
        // SAFETY: references to areas come from the tree, and none is kept after the removal.
        unsafe { self.tree.cursor_mut_from_ptr(&raw const **area) }
    }

    /// Updates the gap below `area`.
    fn gap_changed(&mut self, area: &UnsafeRef<Area>) {
        let below = self.cursor(area).peek_prev().get().map(Area::end);
        let gap = area.start().0.saturating_sub(below.unwrap_or(self.start).max(SEARCH_START).0);
        self.set_gap(area, gap.saturating_sub(area.guard.get()));
    }

    /// Updates the gap above `area`.
    fn gap_above_changed(&mut self, area: &UnsafeRef<Area>) {
        let next = self.cursor(area).peek_next().clone_pointer();
        if let Some(next) = next {
            self.gap_changed(&next);
        }
    }

    fn set_gap(&mut self, area: &UnsafeRef<Area>, gap: u64) {
        if area.gap.get() != 0 {
            // SAFETY: a node with a gap is in the tree of gaps.
            unsafe { self.gaps.cursor_mut_from_ptr(&raw const **area) }.remove();
        }
        area.gap.set(gap);
        if gap != 0 {
            self.gaps.insert(area.clone());
        }
    }
}

#[cfg(test)]
impl Areas {
    /// Whether another part may begin at `at`: the page below is free, and no guard reaches down to it.
    pub(super) fn may_begin_at(&self, at: VirtAddr) -> bool {
        let is_guarded = |above: Held| above.highest_border() < at;
        self.owned.start < at.0 && self.find(at - PAGE).is_none() && !self.first_from(at - PAGE).is_some_and(is_guarded)
    }

    /// Checks what changes with the areas, and that they lie where the part may have them.
    pub(super) fn check(&self) {
        assert_eq!(self.count, self.iter().count());
        assert!(self.count <= self.room && (!self.is_whole || self.room == MOST + 1));
        assert_eq!(self.total, self.iter().map(Area::size).sum());
        assert_eq!(self.data, self.iter().map(Area::data).sum());
        assert!(self.iter().all(|area| self.start <= area.start() && area.end() <= self.end));
        let mut below = self.start.max(SEARCH_START);
        for area in self.iter() {
            let gap = area.start().0.saturating_sub(below.0).saturating_sub(area.guard.get());
            assert_eq!((area.gap.get(), area.by_gap.is_linked()), (gap, gap != 0), "below {}", area.start());
            below = below.max(area.end());
        }
        if !self.is_whole {
            assert!(self.next().is_none_or(|next| self.end + PAGE == next));
            assert!(self.grants.most().0 == 0 || self.total <= self.grants.most().0);
            assert!(self.iter().next().is_none_or(|area| self.owned.start <= area.highest_border().0));
        }
    }
}

impl Drop for Areas {
    fn drop(&mut self) {
        self.clear(drop);
    }
}

fn into_box(node: UnsafeRef<Area>) -> PoolBox<Area> {
    // SAFETY: all nodes were boxes, only the trees refer to them, and it is in neither.
    unsafe { PoolBox::from_ref(node) }
}
