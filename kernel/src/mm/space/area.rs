//! Which addresses of a space are taken, by what, and with which protection.
//!
//! Areas lie in an intrusive tree by address. A second tree holds the same nodes by the free addresses below each, so
//! that a mapping finds the smallest gap that is large enough without looking at the others. Nodes come from a pool and
//! are taken before anything changes ([`Spares`]); from then on nothing here can fail.
//!
//! ```text
//!         window.start        SEARCH_START                                     window.end
//!         │ by request only   │ where the kernel chooses                        │
//!         ├───────┬──────┬────┼──────────────────┬──────┬────────┬─────────┬────┤
//!         │       │ area │    │    gap of B      │  B   │ gap of │   C     │    │
//! ```
//! Two areas that touch and are alike are one: [`Areas::merge`] is called wherever a change may have made them so.

use core::cell::Cell;
use core::ptr::NonNull;

use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use super::shmem::ObjectRef;
use crate::mm::OutOfMemory;
use crate::mm::pool::{Pool, PoolBox};

const PAGE: u64 = PAGE_SIZE as u64;

/// Addresses below are handed out only to those who ask for them: programs are linked there, and a null pointer with an
/// offset points there.
pub const SEARCH_START: VirtAddr = VirtAddr(1 << 32);

/// Where an area's pages come from.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Zeros, of this space alone; after a fork, copies.
    Private,
    /// An object that several areas, of several spaces, may show.
    Shared {
        /// The object.
        object: ObjectRef,
        /// Which page of it the area begins with.
        first_page: u64,
    },
}

impl Backing {
    /// The same for an area that begins `bytes` further on.
    fn after(&self, bytes: u64) -> Self {
        match self {
            Self::Private => Self::Private,
            Self::Shared { object, first_page } => {
                Self::Shared { object: object.clone(), first_page: first_page + bytes / PAGE }
            }
        }
    }

    /// Whether an area of `bytes` bytes with this one goes on with `next`.
    fn continues(&self, bytes: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Private, Self::Private) => true,
            (Self::Shared { object, first_page }, Self::Shared { object: next_object, first_page: next_page }) => {
                object.is(next_object) && first_page + bytes / PAGE == *next_page
            }
            _ => false,
        }
    }
}

/// One area: the pages from `start` to `end`, all alike.
///
/// Readers hold the space's lock shared; what is in the cells changes only under the lock held alone.
pub struct Area {
    by_address: RBTreeLink,
    by_gap: RBTreeLink,
    start: Cell<VirtAddr>,
    end: Cell<VirtAddr>,
    /// Free bytes below, as far as the kernel may choose them; in the tree of gaps where it is not 0.
    gap: Cell<u64>,
    protection: Cell<Protection>,
    backing: Backing,
}

impl Area {
    /// The area of `range`, in no tree.
    pub fn new(range: PageRange, protection: Protection, backing: Backing) -> Self {
        Self {
            by_address: RBTreeLink::new(),
            by_gap: RBTreeLink::new(),
            start: Cell::new(range.start()),
            end: Cell::new(range.end()),
            gap: Cell::new(0),
            protection: Cell::new(protection),
            backing,
        }
    }

    /// A node for [`Spares`].
    fn spare() -> Self {
        Self {
            by_address: RBTreeLink::new(),
            by_gap: RBTreeLink::new(),
            start: Cell::new(VirtAddr(0)),
            end: Cell::new(VirtAddr(0)),
            gap: Cell::new(0),
            protection: Cell::new(Protection::NONE),
            backing: Backing::Private,
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

    /// Its pages.
    pub fn range(&self) -> PageRange {
        PageRange::new(self.start(), self.size()).expect("an area is made of whole pages of the lower half")
    }

    /// What may be done with its pages.
    #[inline(always)]
    pub fn protection(&self) -> Protection {
        self.protection.get()
    }

    /// Where its pages come from.
    #[inline(always)]
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Whether it shows an object.
    #[inline(always)]
    pub fn is_shared(&self) -> bool {
        matches!(self.backing, Backing::Shared { .. })
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
    /// The size first; of gaps of one size, the lowest.
    type Key = (u64, u64);
    fn get_key(&self, area: &'a Area) -> (u64, u64) {
        (area.gap.get(), area.start().0)
    }
}

/// Nodes that were taken before a change begins, for the areas that it will add.
pub struct Spares(heapless::Vec<PoolBox<Area>, 3>);

impl Spares {
    /// Takes `count` nodes, at most three.
    ///
    /// # Errors
    /// [`OutOfMemory`]; none is kept.
    pub fn take(pool: &'static Pool<Area>, count: usize) -> Result<Self, OutOfMemory> {
        let mut nodes = heapless::Vec::new();
        for _ in 0..count {
            nodes.push(pool.try_new(Area::spare())?).map_err(|_| OutOfMemory)?;
        }
        Ok(Self(nodes))
    }

    fn pop(&mut self) -> PoolBox<Area> {
        self.0.pop().expect("as many nodes were taken as the change adds areas")
    }

    /// A node for an area of its own.
    pub fn make(&mut self, area: Area) -> PoolBox<Area> {
        let mut node = self.pop();
        *node = area;
        node
    }
}

/// The areas of one space.
pub struct Areas {
    tree: RBTree<ByAddress>,
    gaps: RBTree<ByGap>,
    start: VirtAddr,
    end: VirtAddr,
    count: usize,
}

// SAFETY: the trees alone reach their nodes, which come from a pool that every CPU may use; so they go where they go.
unsafe impl Send for Areas {}
// SAFETY: what changes through a shared reference is nothing: each method that sets a cell takes `&mut self`.
unsafe impl Sync for Areas {}

impl Areas {
    /// No areas, in the window from `start` to `end`.
    pub const fn new(start: VirtAddr, end: VirtAddr) -> Self {
        Self { tree: RBTree::new(ByAddress::NEW), gaps: RBTree::new(ByGap::NEW), start, end, count: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Area> {
        self.tree.iter()
    }

    /// The area that holds `address`.
    #[inline]
    pub fn find(&self, address: VirtAddr) -> Option<&Area> {
        let area = self.tree.upper_bound(Bound::Included(&address.0)).get()?;
        (address < area.end()).then_some(area)
    }

    /// Those that hold an address of `range`, by address.
    pub fn touching(&self, range: PageRange) -> impl Iterator<Item = &Area> {
        let mut cursor = self.tree.upper_bound(Bound::Included(&range.start().0));
        if cursor.get().is_none_or(|area| area.end() <= range.start()) {
            cursor.move_next();
        }
        core::iter::from_fn(move || {
            let area = cursor.get().filter(|area| area.start() <= range.last())?;
            cursor.move_next();
            Some(area)
        })
    }

    /// Whether every page of `range` is in some area.
    pub fn covers(&self, range: PageRange) -> bool {
        let mut from = range.start();
        for area in self.touching(range) {
            if area.start() > from {
                return false;
            }
            from = area.end();
        }
        from > range.last()
    }

    /// Whether `range` lies in the window.
    pub fn in_window(&self, range: PageRange) -> bool {
        range.start() >= self.start && range.last() < self.end
    }

    /// Where `bytes` free bytes are that the kernel may choose: at the top of the smallest gap that has them.
    pub fn gap(&self, bytes: u64) -> Option<VirtAddr> {
        if let Some(above) = self.gaps.lower_bound(Bound::Included(&(bytes, 0))).get() {
            return Some(above.start() - bytes);
        }
        let last = self.tree.back().get().map_or(self.start, Area::end);
        let top = self.end.0.checked_sub(last.max(SEARCH_START).0)?;
        (top >= bytes).then(|| self.end - bytes)
    }

    /// The gap below `start` where the area in front ends at `end`.
    fn gap_between(&self, end: VirtAddr, start: VirtAddr) -> u64 {
        start.0.saturating_sub(end.max(SEARCH_START).0)
    }

    /// How many areas [`Self::isolate`] adds for `range`.
    pub fn cuts(&self, range: PageRange) -> usize {
        let cuts = |at: VirtAddr| self.find(at).is_some_and(|area| area.start() < at);
        usize::from(cuts(range.start())) + usize::from(cuts(range.end()))
    }

    /// Cuts areas at both ends of `range`, so that each lies wholly inside or outside. Takes [`Self::cuts`] spares.
    pub fn isolate(&mut self, range: PageRange, spares: &mut Spares) {
        for at in [range.start(), range.end()] {
            let Some(area) = self.find(at).filter(|area| area.start() < at) else { continue };
            let backing = area.backing.after(at - area.start());
            let node = spares.make(Area {
                start: Cell::new(at),
                end: Cell::new(area.end()),
                protection: Cell::new(area.protection()),
                backing,
                ..Area::spare()
            });
            area.end.set(at);
            // The two touch, so that no gap changes.
            self.tree.insert(into_ref(node));
            self.count += 1;
        }
    }

    /// Takes `area` in. Its addresses are free.
    pub fn insert(&mut self, area: PoolBox<Area>) {
        debug_assert!(self.in_window(area.range()) && self.touching(area.range()).next().is_none());
        let node = into_ref(area);
        let below = self.tree.upper_bound(Bound::Excluded(&node.start().0)).get().map_or(self.start, Area::end);
        let gap = self.gap_between(below, node.start());
        if let Some(next) = self.tree.lower_bound(Bound::Included(&node.start().0)).clone_pointer() {
            let above = self.gap_between(node.end(), next.start());
            self.set_gap(&next, above);
        }
        self.tree.insert(node.clone());
        self.count += 1;
        self.set_gap(&node, gap);
    }

    /// Takes all areas out that lie in `range`, each of which then goes to `removed`. None straddles an end.
    pub fn remove(&mut self, range: PageRange, mut removed: impl FnMut(PoolBox<Area>)) {
        let mut cursor = self.tree.lower_bound_mut(Bound::Included(&range.start().0));
        let mut any = false;
        while cursor.get().is_some_and(|area| area.start() <= range.last()) {
            let Some(node) = cursor.remove() else { break };
            if node.gap.get() != 0 {
                // SAFETY: a node with a gap is in the tree of gaps.
                unsafe { self.gaps.cursor_mut_from_ptr(&raw const *node) }.remove();
            }
            self.count -= 1;
            any = true;
            removed(into_box(node));
        }
        if any && let Some(next) = cursor.as_cursor().clone_pointer() {
            let below = self.tree.upper_bound(Bound::Excluded(&next.start().0)).get().map_or(self.start, Area::end);
            let gap = self.gap_between(below, next.start());
            self.set_gap(&next, gap);
        }
    }

    /// The end of the area in front of `range` and the start of the one behind it, or those of the window. None is in it.
    pub fn around(&self, range: PageRange) -> (VirtAddr, VirtAddr) {
        let above = self.tree.lower_bound(Bound::Included(&range.start().0));
        let below = if above.is_null() { self.tree.back() } else { above.peek_prev() };
        (below.get().map_or(self.start, Area::end), above.get().map_or(self.end, Area::start))
    }

    /// Gives the areas that lie in `range` another protection. None straddles an end.
    pub fn protect(&mut self, range: PageRange, protection: Protection) {
        self.touching(range).for_each(|area| area.protection.set(protection));
    }

    /// Makes one area of those that touch and are alike, from the one in front of `range` to the one behind it.
    pub fn merge(&mut self, range: PageRange, mut removed: impl FnMut(PoolBox<Area>)) {
        let mut cursor = self.tree.upper_bound_mut(Bound::Excluded(&range.start().0));
        if cursor.is_null() {
            cursor.move_next();
        }
        while let Some(area) = cursor.get() {
            let next = cursor.peek_next();
            let Some(next) = next.get().filter(|next| next.start() <= range.end()) else { break };
            if area.end() == next.start()
                && area.protection() == next.protection()
                && area.backing.continues(area.size(), &next.backing)
            {
                area.end.set(next.end());
                cursor.move_next();
                let node = cursor.remove().expect("the next area, which was just looked at");
                // They touched: it had no gap.
                debug_assert_eq!(node.gap.get(), 0);
                self.count -= 1;
                removed(into_box(node));
                cursor.move_prev();
            } else {
                cursor.move_next();
            }
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

impl Drop for Areas {
    fn drop(&mut self) {
        self.gaps.fast_clear();
        while let Some(node) = self.tree.front_mut().remove() {
            drop(into_box(node));
        }
    }
}

fn into_ref(node: PoolBox<Area>) -> UnsafeRef<Area> {
    // SAFETY: a pool box is at a fixed address; what refers to it are the trees, which take and lose it together.
    unsafe { UnsafeRef::from_raw(node.into_raw().as_ptr()) }
}

fn into_box(node: UnsafeRef<Area>) -> PoolBox<Area> {
    let node = NonNull::new(UnsafeRef::into_raw(node)).expect("a reference is not null");
    // SAFETY: `into_ref` made it from a box, and it is out of both trees.
    unsafe { PoolBox::from_raw(node) }
}
