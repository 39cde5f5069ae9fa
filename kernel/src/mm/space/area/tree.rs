//! The areas of a part in two trees: by address, and by the free addresses below each.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

mod divide;

use core::ops::Range;

#[cfg(test)]
use granule_arch::addr::PAGE;
use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;
use intrusive_collections::rbtree::{Cursor, CursorMut};
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use super::grants::Grants;
use super::pools::{AreaPools, Spares};
use super::turns::Turns;
use super::{Area, AreaFlags, SEARCH_START};
use crate::mm::OutOfMemory;
use crate::mm::pool::PoolBox;
use crate::mm::space::address_space::Space;
use crate::mm::space::error::{Refusal, SpaceError};
use crate::mm::space::parts::Divisible;
use crate::mm::space::range::STACK_GUARD;
use crate::sched::relax;
use crate::smp::Cpu;

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
pub(in crate::mm::space) const MOST: usize = 65_530;

/// An area that was found. Valid until the areas change otherwise.
pub(in crate::mm::space) type Held = UnsafeRef<Area>;

/// The areas of one space, or of a part of it.
pub(in crate::mm::space) struct Areas {
    tree: RBTree<ByAddress>,
    gaps: RBTree<ByGap>,
    /// Where areas may be. The page after it is free, if another part follows.
    start: VirtAddr,
    end: VirtAddr,
    /// The addresses that the part owns. All are below `u64::MAX`.
    owned: Range<u64>,
    // For the rest of the space to read: they change with the trees.
    /// How many areas there are.
    pub(in crate::mm::space) count: usize,
    /// Bytes of all areas.
    pub(in crate::mm::space) total: u64,
    /// Bytes that count as data: [`Area::data`].
    pub(in crate::mm::space) data: u64,
    /// It has fewer areas than this.
    room: usize,
    /// The part's share of the limits.
    pub(in crate::mm::space) grants: Grants,
    /// Of the CPUs that change them.
    pub(in crate::mm::space) turns: Turns,
}

// SAFETY: only the trees refer to their nodes, which come from a pool that every CPU may use, so they move together.
unsafe impl Send for Areas {}
// SAFETY: a shared reference changes nothing: each method that sets a `Cell` takes `&mut self`.
unsafe impl Sync for Areas {}

impl Areas {
    /// No areas, in the window from `start` to `end`.
    pub(in crate::mm::space) const fn new(start: VirtAddr, end: VirtAddr) -> Self {
        Self::of(start, end, 0..u64::MAX)
    }

    /// Whether these are all addresses. A request that a part refuses may fit in all of them.
    #[inline(always)]
    pub(in crate::mm::space) const fn is_whole(&self) -> bool {
        self.owned.end.wrapping_sub(self.owned.start) == u64::MAX
    }

    const fn of(start: VirtAddr, end: VirtAddr, owned: Range<u64>) -> Self {
        Self {
            tree: RBTree::new(ByAddress::NEW),
            gaps: RBTree::new(ByGap::NEW),
            start,
            end,
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
    pub(in crate::mm::space) fn room_for_cuts(&self, more: usize) -> Result<(), Refusal> {
        if more == 0 || self.count + more < self.room { Ok(()) } else { Err(self.refusal()) }
    }

    /// Fails if a mapping would be one area too many: as on Linux one more than by cuts, even if it replaces or joins
    /// others.
    ///
    /// # Errors
    /// [`Refusal`].
    #[inline]
    pub(in crate::mm::space) fn room_for_mapping(&self) -> Result<(), Refusal> {
        if self.count < self.room { Ok(()) } else { Err(self.refusal()) }
    }

    /// The error where something is too much for these areas.
    #[cold]
    pub(in crate::mm::space) fn refusal(&self) -> Refusal {
        if self.is_whole() { Refusal::Final(SpaceError::NoMemory) } else { Refusal::ByPart }
    }

    /// All areas, by address.
    pub(in crate::mm::space) fn iter(&self) -> impl Iterator<Item = &Area> {
        self.tree.iter()
    }

    /// The area that holds `address`.
    #[inline]
    pub(in crate::mm::space) fn find(&self, address: VirtAddr) -> Option<&Area> {
        let area = self.tree.upper_bound(Bound::Included(&address.0)).get()?;
        (address < area.end()).then_some(area)
    }

    /// The areas with an address of `range`, by address.
    pub(in crate::mm::space) fn touching(&self, range: PageRange) -> impl Iterator<Item = &Area> {
        let mut cursor = self.ending_above(range.start());
        core::iter::from_fn(move || {
            let area = cursor.get().filter(|area| area.start() <= range.last())?;
            cursor.move_next();
            Some(area)
        })
    }

    /// As [`Self::touching`], for a walk over any number of areas: other threads may run in between, but not among the
    /// first 64, which the caller may read [for a moment](crate::sched::BriefGuard).
    pub(in crate::mm::space) fn walk(&self, range: PageRange) -> impl Iterator<Item = &Area> {
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

    /// Whether one of those has an object.
    #[inline(never)]
    pub(in crate::mm::space) fn has_objects(&self, range: PageRange) -> bool {
        self.walk(range).any(|area| area.object().is_some())
    }

    /// The first of those.
    #[inline]
    pub(in crate::mm::space) fn first_touching(&self, range: PageRange) -> Option<Held> {
        self.ending_above(range.start()).clone_pointer().filter(|area| area.start() <= range.last())
    }

    /// The area that holds all of `range`.
    #[inline]
    pub(in crate::mm::space) fn holding(&self, range: PageRange) -> Option<Held> {
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
    pub(in crate::mm::space) fn covers(&self, range: PageRange) -> bool {
        self.holding(range).is_some() || self.covered_until(range) == range.end()
    }

    /// Where the first hole in `range` begins; its end where there is none.
    #[inline(never)]
    pub(in crate::mm::space) fn covered_until(&self, range: PageRange) -> VirtAddr {
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
    pub(in crate::mm::space) fn in_window(&self, range: PageRange) -> bool {
        range.start() >= self.start && range.last() < self.end
    }

    /// The address of `bytes` free bytes that the kernel may choose: at the top of the smallest gap that is large
    /// enough.
    pub(in crate::mm::space) fn gap(&self, bytes: u64) -> Option<VirtAddr> {
        if let Some(above) = self.gaps.lower_bound(Bound::Included(&(bytes, 0))).get() {
            return Some(above.start() - above.guard.get() - bytes);
        }
        let last = self.tree.back().get().map_or(self.start, Area::end);
        let top = self.end.0.checked_sub(last.max(SEARCH_START).0)?;
        (top >= bytes).then(|| self.end - bytes)
    }

    /// Splits `area` at `at`; returns the upper part.
    fn cut(&mut self, area: &UnsafeRef<Area>, at: VirtAddr, spares: &mut Spares) -> UnsafeRef<Area> {
        let mapping = area.mapping.as_ref().map(|mapping| spares.make_mapping(mapping, area.page_at(at)));
        let upper = spares.make(area.piece(at, area.end(), mapping)).into_ref();
        area.change_place(|mapped| {
            area.end.set(at);
            if let (Some((mappers, _)), Some(mapping)) = (mapped, &upper.mapping) {
                mappers.insert(mapping, &upper);
            }
        });
        // The parts touch, so no gap changes.
        self.cursor(area).insert_after(upper.clone());
        self.count += 1;
        upper
    }

    /// [`Self::insert`], for calls that are not hot.
    #[inline(never)]
    pub(in crate::mm::space) fn insert_elsewhere(&mut self, area: PoolBox<Area>) -> Held {
        self.insert(area)
    }

    /// Inserts `area`, whose addresses are free.
    #[inline(always)]
    pub(in crate::mm::space) fn insert(&mut self, area: PoolBox<Area>) -> Held {
        debug_assert!(self.in_window(area.range()) && self.touching(area.range()).next().is_none());
        let node = area.into_ref();
        self.tree.insert(node.clone());
        self.count += 1;
        self.total += node.size();
        self.data += node.data();
        self.gap_changed(&node);
        self.gap_above_changed(&node);
        join_reverse_map(&node);
        node
    }

    /// A copy of `area` from `from` on, for `range`. Takes a spare.
    pub(in crate::mm::space) fn copy_at(
        &self,
        area: &Held,
        from: VirtAddr,
        range: PageRange,
        spares: &mut Spares,
    ) -> PoolBox<Area> {
        let mapping = area.mapping.as_ref().map(|mapping| spares.make_mapping(mapping, area.page_at(from)));
        let guard = if area.grows() { STACK_GUARD } else { 0 };
        spares.make(area.piece(range.start(), range.end(), mapping).guarded(guard))
    }

    /// Whether the `bytes` bytes from `start` on are free, and in the window.
    pub(in crate::mm::space) fn is_free(&self, start: VirtAddr, bytes: u64) -> bool {
        PageRange::new(start, bytes).is_ok_and(|range| self.in_window(range) && self.touching(range).next().is_none())
    }

    /// Inserts copies of all areas of another space into these, those of `space`, which is empty, and calls `copied` for
    /// each.
    ///
    /// # Errors
    /// [`OutOfMemory`], also that of `copied`. Some areas are missing then, and the caller drops the space.
    #[inline]
    pub(in crate::mm::space) fn copy_all(
        &mut self,
        other: &Self,
        cpu: &Cpu,
        space: &Space,
        pools: &'static AreaPools,
        mut copied: impl FnMut(&Area) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let pool = pools.of(cpu);
        // The totals are those of the other space.
        (self.count, self.total, self.data) = (other.count, other.total, other.data);
        let mut last: Option<UnsafeRef<Area>> = None;
        for area in other.iter() {
            let mapping = match &area.mapping {
                None => None,
                Some(mapping) => Some(pools.new_mapping(mapping.copy(mapping.first_page(), space.into()))?),
            };
            let node = pool.try_new_with(|| area.piece(area.start(), area.end(), mapping))?.into_ref();
            match last {
                Some(last) => self.cursor(&last).insert_after(node.clone()),
                None => self.tree.front_mut().insert_before(node.clone()),
            }
            // The gap below it is the same.
            if area.gap.get() != 0 {
                self.set_gap(&node, area.gap.get());
            }
            join_reverse_map(&node);
            last = Some(node);
            copied(area)?;
        }
        Ok(())
    }

    /// Removes the areas that are not for children, and unlocks the others.
    pub(in crate::mm::space) fn become_a_childs(&mut self) {
        let mut next = self.tree.front().clone_pointer();
        while let Some(area) = next {
            next = self.cursor(&area).peek_next().clone_pointer();
            if area.flags().has_any(AreaFlags::NOT_IN_CHILDREN) {
                drop(self.take(&area));
            } else {
                let flags = area.flags().without(AreaFlags::LOCKING);
                self.set_flags(&area, flags);
            }
            relax();
        }
    }

    /// Removes `range` from the areas that it touches, the first of which is `first`. Takes a spare where an area is
    /// cut in two.
    #[inline(never)]
    pub(in crate::mm::space) fn remove(&mut self, first: Held, range: PageRange, spares: &mut Spares) {
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
    pub(in crate::mm::space) fn remove_part(
        &mut self,
        area: &Held,
        range: PageRange,
        spares: &mut Spares,
    ) -> Option<PoolBox<Area>> {
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
            area.change_place(|_| area.end.set(range.start()));
            self.gap_above_changed(area);
        } else {
            area.change_place(|mapped| {
                area.guard.set(area.guard_from(range.end()));
                let Some((mappers, mapping)) = mapped else { return area.start.set(range.end()) };
                mappers.remove(mapping);
                mapping.first_page.set(area.page_at(range.end()));
                area.start.set(range.end());
                mappers.insert(mapping, area);
            });
            self.gap_changed(area);
        }
        None
    }

    /// Takes all areas out of the reverse maps of their objects, before their tables go.
    pub(in crate::mm::space) fn leave_reverse_maps(&self) {
        for area in self.iter() {
            leave_reverse_map(area);
            relax();
        }
    }

    /// Removes all areas, which are in no reverse map, and passes each to `removed`.
    pub(in crate::mm::space) fn clear(&mut self, mut removed: impl FnMut(PoolBox<Area>)) {
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
        leave_reverse_map(area);
        if let Some(next) = next {
            self.gap_changed(&next);
        }
        into_box(area.clone())
    }

    /// The end of the last area below `range` and the start of the first above it, or the ends of the window, or of the
    /// part. No area is in `range`.
    pub(in crate::mm::space) fn around(&self, range: PageRange) -> (VirtAddr, VirtAddr) {
        let above = self.tree.lower_bound(Bound::Included(&range.start().0));
        let below = if above.is_null() { self.tree.back() } else { above.peek_prev() };
        (below.get().map_or(self.start, Area::end), above.get().map_or(self.next().unwrap_or(self.end), Area::start))
    }

    /// Changes the protection of an area.
    #[inline]
    pub(in crate::mm::space) fn protect(&mut self, held: &Held, protection: Protection) {
        let was_written = held.protection.replace(protection).contains(Protection::WRITE);
        match (was_written, protection.contains(Protection::WRITE)) {
            (false, true) => self.data += held.data_if_written(),
            (true, false) => self.data -= held.data_if_written(),
            _ => {}
        }
    }

    /// Sets an area apart from others, or no more.
    pub(in crate::mm::space) fn set_flags(&mut self, held: &Held, flags: AreaFlags) {
        // A walk by the reverse map reads them.
        held.change_place(|_| held.flags.set(flags));
    }

    /// Makes `range`, which the area holds, an area of its own. Takes a spare for each end at which the area is cut.
    pub(in crate::mm::space) fn cut_out(&mut self, mut area: Held, range: PageRange, spares: &mut Spares) -> Held {
        if area.start() < range.start() {
            area = self.cut(&area, range.start(), spares);
        }
        if range.end() < area.end() {
            self.cut(&area, range.end(), spares);
        }
        area
    }

    /// Joins `area` with the areas below and above it, where they touch and are alike.
    #[inline(always)]
    pub(in crate::mm::space) fn merge(&mut self, mut area: Held) {
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
        below.change_place(|mapped| {
            below.end.set(above.end());
            if let (Some((mappers, _)), Some(mapping)) = (mapped, &above.mapping) {
                mappers.remove(mapping);
                mappers.note_length(below);
            }
        });
        // They touched: the upper one had no gap, and the gap above it does not change.
        debug_assert_eq!(above.gap.get(), 0);
        self.cursor(&above).remove();
        self.count -= 1;
        into_box(above)
    }

    /// The first area that begins at `address` or above.
    pub(in crate::mm::space) fn first_from(&self, address: VirtAddr) -> Option<Held> {
        self.tree.lower_bound(Bound::Included(&address.0)).clone_pointer()
    }

    /// The last area that begins below `address`.
    pub(in crate::mm::space) fn last_below(&self, address: VirtAddr) -> Option<&Area> {
        self.tree.upper_bound(Bound::Excluded(&address.0)).get()
    }

    /// Extends a stack down to `start`. The addresses in between are free.
    pub(in crate::mm::space) fn extend_down(&mut self, stack: &Held, start: VirtAddr) {
        let more = stack.start() - start;
        stack.guard.set(stack.guard.get().saturating_sub(more).max(STACK_GUARD));
        stack.start.set(start);
        self.total += more;
        self.gap_changed(stack);
    }

    /// Leaves `more` bytes below a stack that the kernel does not choose.
    pub(in crate::mm::space) fn widen_guard(&mut self, stack: &Held, more: u64) {
        stack.guard.set(stack.guard.get() + more);
        self.gap_changed(stack);
    }

    /// Extends an area by `more` bytes. The addresses after it are free.
    pub(in crate::mm::space) fn extend_up(&mut self, area: &Held, more: u64) {
        area.change_place(|mapped| {
            area.end.set(area.end() + more);
            if let Some((mappers, _)) = mapped {
                mappers.note_length(area);
            }
        });
        self.total += more;
        if area.data() != 0 {
            self.data += more;
        }
        self.gap_above_changed(area);
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
    pub(in crate::mm::space) fn may_begin_at(&self, at: VirtAddr) -> bool {
        let is_guarded = |above: Held| above.highest_border() < at;
        self.owned.start < at.0 && self.find(at - PAGE).is_none() && !self.first_from(at - PAGE).is_some_and(is_guarded)
    }

    /// Checks what changes with the areas, and that they lie where the part may have them.
    pub(in crate::mm::space) fn check(&self) {
        assert_eq!(self.count, self.iter().count());
        assert!(self.count <= self.room && (!self.is_whole() || self.room == MOST + 1));
        assert_eq!(self.total, self.iter().map(Area::size).sum());
        assert_eq!(self.data, self.iter().map(Area::data).sum());
        assert!(self.iter().all(|area| self.start <= area.start() && area.end() <= self.end));
        let mut below = self.start.max(SEARCH_START);
        for area in self.iter() {
            let gap = area.start().0.saturating_sub(below.0).saturating_sub(area.guard.get());
            assert_eq!((area.gap.get(), area.by_gap.is_linked()), (gap, gap != 0), "below {}", area.start());
            below = below.max(area.end());
        }
        if !self.is_whole() {
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

/// Has the object of an area know that the area maps it.
#[inline(always)]
fn join_reverse_map(area: &UnsafeRef<Area>) {
    if let Some(mapping) = &area.mapping {
        mapping.object.change_mappers(|mappers| mappers.insert(mapping, area));
    }
}

/// Has the object of an area forget it: a walk that has found it is over when this returns.
#[inline(always)]
fn leave_reverse_map(area: &Area) {
    if let Some(mapping) = &area.mapping {
        mapping.object.change_mappers(|mappers| mappers.remove(mapping));
    }
}

fn into_box(node: UnsafeRef<Area>) -> PoolBox<Area> {
    // SAFETY: all nodes were boxes, only the trees refer to them, and it is in neither.
    unsafe { PoolBox::from_ref(node) }
}
