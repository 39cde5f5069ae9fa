//! Which addresses of a part of the vmalloc window are taken.
//!
//! Areas lie in an intrusive tree by address, so taking one allocates nothing but its node, and giving one back
//! allocates nothing at all. Each area is followed by a guard page that is never mapped, and the window begins with
//! one, so that running off either end of an area faults and no two areas touch.
//!
//! The tree holds the owners of addresses, the page tables what is mapped there. `set_memory_*`
//! never comes here: it reads the tables without a lock.

#![allow(unsafe_code, reason = "nodes of an intrusive tree")]

use core::cell::Cell;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_pgtable::PageRange;
use intrusive_collections::{
    Bound, KeyAdapter, RBTree, RBTreeLink, SinglyLinkedList, SinglyLinkedListLink, UnsafeRef, intrusive_adapter,
};

/// The use of an area, which decides where its memory is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AreaKind {
    /// Frames of its own, from `vmalloc`; its owner may change its permissions.
    Vmalloc,
    /// Frames that are the caller's, from `vmap`; the owner of the area may change its permissions, but for execution.
    Mapped,
    /// Device registers: nothing to give back. Permissions as for [`Self::Mapped`].
    Device,
    /// A CPU's stack: frames of its own, permissions fixed.
    Stack,
    /// Being unmapped; its addresses are still taken.
    Freeing,
}

/// One area: `pages` mapped pages from `start` on, and the guard page after them.
pub struct AreaNode {
    link: RBTreeLink,
    /// Among those that are unmapped.
    unmapped: SinglyLinkedListLink,
    // Changed only through the tree.
    start: Cell<VirtAddr>,
    pages: Cell<u64>,
    kind: Cell<AreaKind>,
}

impl AreaNode {
    /// An area that is not in a tree and has no address yet.
    pub fn new(kind: AreaKind) -> Self {
        let (start, pages) = (Cell::new(VirtAddr(0)), Cell::new(0));
        let unmapped = SinglyLinkedListLink::new();
        Self { link: RBTreeLink::new(), unmapped, start, pages, kind: Cell::new(kind) }
    }

    /// First address.
    pub fn start(&self) -> VirtAddr {
        self.start.get()
    }

    /// Pages that are mapped, the guard page not counted.
    pub fn pages(&self) -> u64 {
        self.pages.get()
    }

    /// The use of the area.
    pub fn kind(&self) -> AreaKind {
        self.kind.get()
    }

    /// First address after the mapped pages: the guard page.
    pub fn end(&self) -> VirtAddr {
        self.start() + self.pages() * PAGE
    }

    fn guard_end(&self) -> VirtAddr {
        self.end() + PAGE
    }
}

mod adapter {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{AreaNode, RBTreeLink, SinglyLinkedListLink, UnsafeRef, intrusive_adapter};
    intrusive_adapter!(pub AreaAdapter = UnsafeRef<AreaNode>: AreaNode { link => RBTreeLink });
    intrusive_adapter!(pub UnmappedAdapter = UnsafeRef<AreaNode>: AreaNode { unmapped => SinglyLinkedListLink });
}
use adapter::{AreaAdapter, UnmappedAdapter};

impl<'a> KeyAdapter<'a> for AreaAdapter {
    type Key = u64;
    fn get_key(&self, area: &'a AreaNode) -> u64 {
        area.start().0
    }
}

/// An area that only the holder unmaps.
///
/// Having one proves: the area is in the tree, of kind [`AreaKind::Freeing`], and stays there until this is given to
/// [`AreaTree::remove`]. One that is dropped leaves its addresses taken for ever.
#[must_use = "the area's addresses stay taken until it is removed"]
pub struct FreeingArea(UnsafeRef<AreaNode>);

impl FreeingArea {
    /// First address.
    pub fn start(&self) -> VirtAddr {
        self.0.start()
    }

    /// Pages that are mapped, the guard page not counted.
    pub fn pages(&self) -> u64 {
        self.0.pages()
    }
}

/// Areas whose pages no longer translate, but may in TLBs: their frames and addresses stay taken until one invalidation of
/// [`range`](Self::range) is complete.
#[must_use = "frames and addresses stay taken until each area is removed"]
pub struct UnmappedAreas {
    list: SinglyLinkedList<UnmappedAdapter>,
    start: VirtAddr,
    end: VirtAddr,
}

impl UnmappedAreas {
    /// None.
    pub const NONE: Self =
        Self { list: SinglyLinkedList::new(UnmappedAdapter::NEW), start: VirtAddr(u64::MAX), end: VirtAddr(0) };

    /// From the first area to the last; `None` where there is none.
    pub fn range(&self) -> Option<PageRange> {
        PageRange::new(self.start, self.end.0.checked_sub(self.start.0)?).ok()
    }

    /// The next area.
    pub fn pop(&mut self) -> Option<FreeingArea> {
        self.list.pop_front().map(FreeingArea)
    }
}

/// The areas of one window, none overlapping, by address.
pub struct AreaTree {
    tree: RBTree<AreaAdapter>,
    end: VirtAddr,
    /// No area fits below here: the search starts at this address.
    hint: VirtAddr,
    /// No area of each [`Shape`] fits below the gap that its address is in: those that were found last, but for areas at
    /// the hint. The gaps below are too small: those of stacks, which are many, and those between areas of devices.
    noted: [(Shape, VirtAddr); SHAPES],
    /// Where the next shape goes.
    oldest: u8,
    /// How many areas have been removed so far, modulo 2^32.
    removals: u32,
    /// The first address, and the end, of all areas that were taken out since [`Self::take_left`].
    left: (VirtAddr, VirtAddr),
    /// Those among the areas whose invalidation is left for later.
    unmapped: UnmappedAreas,
    unmapped_pages: u32,
    /// Whether areas that were taken from there are still to be removed.
    is_purged: bool,
    /// How often some were, modulo 2^32.
    purges: u32,
}

/// The shape of a gap that an area needs: bytes with the guard page, and alignment.
type Shape = (u64, u64);

/// Shapes of areas that are noted.
const SHAPES: usize = 4;

/// Areas that one search looks at: it holds the tree's lock, with interrupts masked.
const LOOKED_AT: usize = 128;

/// Where a search continues that ended early.
#[derive(Clone, Copy)]
pub struct Resume {
    from: VirtAddr,
    /// Areas that had been removed when it began: since then there may be another gap below.
    removals: u32,
}

/// Nothing was taken out.
const NONE_LEFT: (VirtAddr, VirtAddr) = (VirtAddr(u64::MAX), VirtAddr(0));

// SAFETY: the tree alone reaches its nodes' links, so they go where it goes.
unsafe impl Send for AreaTree {}

impl AreaTree {
    /// The empty tree of the window from `start` to `end`, both page aligned.
    pub const fn new(start: VirtAddr, end: VirtAddr) -> Self {
        Self {
            tree: RBTree::new(AreaAdapter::NEW),
            end,
            hint: VirtAddr(start.0 + PAGE),
            noted: [((0, 0), start); SHAPES],
            oldest: 0,
            removals: 0,
            left: NONE_LEFT,
            unmapped: UnmappedAreas::NONE,
            unmapped_pages: 0,
            is_purged: false,
            purges: 0,
        }
    }

    /// Searches for the lowest free addresses for `pages` pages and a guard page, the first a multiple of `align` (a
    /// power of two of at least a page). A search that takes long ends early; the next call continues at `resume`,
    /// which it returned, and the tree may change in between. [`Self::insert`] takes the addresses.
    ///
    /// # Panics
    /// In debug builds, where `pages` is 0 or `align` is not a power of two.
    pub fn search(&mut self, pages: u64, align: u64, resume: Option<Resume>) -> Gap {
        debug_assert!(pages > 0 && align.is_power_of_two() && align >= PAGE);
        let Some(size) = pages.checked_add(1).and_then(|pages| pages.checked_mul(PAGE)) else { return Gap::None };
        let shape = (size, align);
        let begin = Resume { from: self.first_candidate(shape), removals: self.removals };
        let resume = resume.unwrap_or(begin);
        match self.gap(shape, resume) {
            // An area that was removed during the search may have left a gap below: it begins anew.
            Gap::None if resume.removals != self.removals => Gap::GoOn(begin),
            Gap::At(start) if start != self.hint && resume.removals == self.removals => {
                self.note(shape, start + size);
                Gap::At(start)
            }
            found => found,
        }
    }

    /// Takes in `node`, which is in no tree, as `pages` pages from `start` on: addresses that [`Self::search`] has just
    /// found.
    pub fn insert(&mut self, node: UnsafeRef<AreaNode>, start: VirtAddr, pages: u64) {
        node.start.set(start);
        node.pages.set(pages);
        if start == self.hint {
            self.hint = node.guard_end();
        }
        self.tree.insert(node);
    }

    /// The area that holds `address`, guard page not counted.
    pub fn find(&self, address: VirtAddr) -> Option<&AreaNode> {
        let area = self.tree.upper_bound(Bound::Included(&address.0)).get()?;
        (address < area.end()).then_some(area)
    }

    /// Gives the caller alone the right to unmap the area at exactly `start`, if it is of
    /// `kind`. The caller then [`Self::remove`]s it.
    ///
    /// # Errors
    /// The kind of another area that is there instead; `None` where there is no area.
    pub fn begin_free(&mut self, start: VirtAddr, kind: AreaKind) -> Result<FreeingArea, Option<AreaKind>> {
        let area = self.tree.find(&start.0).clone_pointer().ok_or(None)?;
        if area.kind.get() != kind {
            return Err(Some(area.kind.get()));
        }
        area.kind.set(AreaKind::Freeing);
        Ok(FreeingArea(area))
    }

    /// Takes out an area whose freeing has begun. It is not searched for again: the areas of devices, which stay, make the
    /// tree deep.
    ///
    /// # Safety
    /// `freeing` is of this tree.
    pub unsafe fn remove(&mut self, freeing: FreeingArea) -> UnsafeRef<AreaNode> {
        // SAFETY: in this tree, as the caller guarantees; the area's one `FreeingArea` is consumed.
        let mut cursor = unsafe { self.tree.cursor_mut_from_ptr(UnsafeRef::into_raw(freeing.0)) };
        let node = cursor.remove().expect("it stands on an area");
        self.hint = self.hint.min(node.start());
        for (_, below) in &mut self.noted {
            *below = (*below).min(node.start());
        }
        self.removals = self.removals.wrapping_add(1);
        self.left = (self.left.0.min(node.start()), self.left.1.max(node.end()));
        node
    }

    /// Leaves an area for later whose pages no longer translate, and whose invalidation is owed. Returns how many pages
    /// wait for that now.
    pub fn add_unmapped(&mut self, freeing: FreeingArea) -> u32 {
        let FreeingArea(area) = freeing;
        let unmapped = &mut self.unmapped;
        (unmapped.start, unmapped.end) = (unmapped.start.min(area.start()), unmapped.end.max(area.end()));
        self.unmapped_pages = self.unmapped_pages.saturating_add(area.pages() as u32);
        unmapped.list.push_front(area);
        self.unmapped_pages
    }

    /// Those that wait, for the caller to invalidate and then to [`Self::remove`]: they are still in the tree. If there are
    /// any, that ends with [`Self::end_purge`]; `None` while another caller is in between.
    pub fn begin_purge(&mut self) -> Option<UnmappedAreas> {
        if self.is_purged {
            return None;
        }
        self.is_purged = self.unmapped_pages != 0;
        self.purges = self.purges.wrapping_add(self.is_purged.into());
        self.unmapped_pages = 0;
        Some(core::mem::replace(&mut self.unmapped, UnmappedAreas::NONE))
    }

    /// All that [`Self::begin_purge`] has returned is removed.
    pub fn end_purge(&mut self) {
        self.is_purged = false;
    }

    /// Times that areas were purged.
    pub fn purges(&self) -> u32 {
        self.purges
    }

    /// Pages of areas that wait.
    pub fn unmapped_pages(&self) -> u32 {
        self.unmapped_pages
    }

    /// Where areas were taken out since the last call, from the first of them to the last: there may be empty tables.
    pub fn take_left(&mut self) -> Option<PageRange> {
        let (start, end) = core::mem::replace(&mut self.left, NONE_LEFT);
        PageRange::new(start, end.0.checked_sub(start.0)?).ok()
    }

    /// All areas by address.
    pub fn iter(&self) -> impl Iterator<Item = &AreaNode> {
        self.tree.iter()
    }

    /// Where the search for a gap begins.
    fn first_candidate(&self, shape: Shape) -> VirtAddr {
        self.noted.iter().find(|(of, _)| *of == shape).map_or(self.hint, |(_, below)| self.hint.max(*below))
    }

    /// Notes that no area of `shape` fits below the gap that `address` is in, in the place of the same shape or of the one
    /// noted longest ago.
    fn note(&mut self, shape: Shape, address: VirtAddr) {
        let place = self.noted.iter().position(|(of, _)| *of == shape).unwrap_or_else(|| {
            self.oldest = (self.oldest + 1) % SHAPES as u8;
            self.oldest.into()
        });
        if let Some(noted) = self.noted.get_mut(place) {
            *noted = (shape, address);
        }
    }

    /// The lowest aligned address with `size` free bytes after it, from the gap on that `resume` is in.
    fn gap(&self, (size, align): Shape, resume: Resume) -> Gap {
        let mut area = self.tree.upper_bound(Bound::Included(&resume.from.0));
        // Where there is none, no area lies below the hint either.
        let mut begin = area.get().map_or(self.hint, AreaNode::guard_end);
        for _ in 0..LOOKED_AT {
            let Some(candidate) = begin.align_up(align) else { return Gap::None };
            let Some(end) = candidate.checked_add(size).filter(|end| *end <= self.end) else { return Gap::None };
            area.move_next();
            match area.get() {
                Some(next) if next.start() < end => begin = next.guard_end(),
                _ => return Gap::At(candidate),
            }
        }
        Gap::GoOn(Resume { from: begin, ..resume })
    }
}

/// The result of a search.
pub enum Gap {
    /// Free addresses.
    At(VirtAddr),
    /// None: no gap is large enough.
    None,
    /// None up to an address; the search continues there.
    GoOn(Resume),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    use proptest::prelude::*;

    const START: VirtAddr = VirtAddr(0xffff_8001_0000_0000);

    /// Takes a new area in, as callers do.
    fn insert(tree: &mut AreaTree, pages: u64, align: u64) -> Option<VirtAddr> {
        finish(tree, pages, align, None)
    }

    fn finish(tree: &mut AreaTree, pages: u64, align: u64, mut resume: Option<Resume>) -> Option<VirtAddr> {
        loop {
            match tree.search(pages, align, resume) {
                Gap::At(start) => {
                    tree.insert(UnsafeRef::from_box(Box::new(AreaNode::new(AreaKind::Vmalloc))), start, pages);
                    return Some(start);
                }
                Gap::None => return None,
                Gap::GoOn(next) => resume = Some(next),
            }
        }
    }

    /// Takes the area at `start` out and frees its node.
    fn remove(tree: &mut AreaTree, start: VirtAddr) {
        let freeing = tree.begin_free(start, AreaKind::Vmalloc).unwrap();
        take_out(tree, freeing);
    }

    fn take_out(tree: &mut AreaTree, freeing: FreeingArea) {
        // SAFETY: each test has one tree; the node was made by `from_box`, and is out of every tree.
        drop(unsafe { UnsafeRef::into_box(tree.remove(freeing)) });
    }

    #[test]
    fn an_area_is_found_up_to_its_guard_page() {
        let mut tree = AreaTree::new(START, START + 64 * PAGE);
        let start = insert(&mut tree, 3, PAGE).unwrap();
        assert_eq!(start, START + PAGE);
        assert!(tree.find(start + 3 * PAGE - 1).is_some());
        assert!(tree.find(start + 3 * PAGE).is_none());
        assert!(tree.find(start - 1).is_none());
        remove(&mut tree, start);
    }

    #[test]
    fn an_area_leaves_once() {
        let mut tree = AreaTree::new(START, START + 64 * PAGE);
        let start = insert(&mut tree, 3, PAGE).unwrap();
        assert_eq!(tree.begin_free(start, AreaKind::Stack).err(), Some(Some(AreaKind::Vmalloc)));
        assert_eq!(tree.begin_free(start + PAGE, AreaKind::Vmalloc).err(), Some(None));
        let freeing = tree.begin_free(start, AreaKind::Vmalloc).unwrap();
        assert_eq!((freeing.start(), freeing.pages()), (start, 3));
        assert_eq!(tree.begin_free(start, AreaKind::Vmalloc).err(), Some(Some(AreaKind::Freeing)));
        let second = insert(&mut tree, 3, PAGE).unwrap();
        assert!(second > start + 3 * PAGE, "its addresses are still taken");
        take_out(&mut tree, freeing);
        remove(&mut tree, second);
    }

    /// The gap begins below the area that leaves, where an aligned area did not fit.
    #[test]
    fn a_gap_that_grows_upwards_is_found() {
        let page = |number: u64| START + number * PAGE;
        let mut tree = AreaTree::new(START, page(64));
        assert_eq!([insert(&mut tree, 15, PAGE), insert(&mut tree, 1, PAGE)], [page(1), page(17)].map(Some));
        remove(&mut tree, page(1));
        assert_eq!(insert(&mut tree, 14, PAGE), Some(page(1)), "page 16 is free alone");
        assert_eq!(insert(&mut tree, 1, 8 * PAGE), Some(page(24)));
        remove(&mut tree, page(17));
        assert_eq!(insert(&mut tree, 1, 8 * PAGE), Some(page(16)));
        [1, 16, 24].into_iter().for_each(|number| remove(&mut tree, page(number)));
    }

    /// Gaps that are too small for stacks, more of them than one search looks at.
    #[test]
    fn a_long_search_is_made_in_pieces() {
        let mut tree = AreaTree::new(START, START + 64 * LOOKED_AT as u64 * PAGE);
        let mut areas = Vec::new();
        for _ in 0..4 * LOOKED_AT {
            areas.push(insert(&mut tree, 4, 8 * PAGE).unwrap());
        }
        let (first, last) = (areas[1], areas.pop().unwrap());
        assert_eq!(last, START + (4 * LOOKED_AT as u64) * 8 * PAGE);
        // The lowest comes back at once; then the search goes past all others.
        remove(&mut tree, first);
        assert_eq!(insert(&mut tree, 4, 8 * PAGE), Some(first));
        remove(&mut tree, last);
        let Gap::GoOn(Resume { from, .. }) = tree.search(5, 4 * PAGE, None) else {
            panic!("a search as long as that is made in pieces")
        };
        assert!(from > first && from < last);
        assert_eq!(insert(&mut tree, 5, 4 * PAGE), Some(last - 8 * PAGE + 4 * PAGE + 4 * PAGE));
        remove(&mut tree, last);
        areas.into_iter().for_each(|start| remove(&mut tree, start));
    }

    /// The gap begins below the area that leaves, at the start of the window, and ends where the next area begins.
    #[test]
    fn a_gap_between_neighbours_is_found() {
        let page = |number: u64| START + number * PAGE;
        let mut tree = AreaTree::new(START, page(64));
        [1, 3, 5].into_iter().for_each(|number| assert_eq!(insert(&mut tree, 1, PAGE), Some(page(number))));
        remove(&mut tree, page(1));
        assert_eq!(insert(&mut tree, 3, PAGE), Some(page(7)), "beyond a gap of two pages");
        remove(&mut tree, page(3));
        assert_eq!(insert(&mut tree, 3, PAGE), Some(page(1)));
        [1, 5, 7].into_iter().for_each(|number| remove(&mut tree, page(number)));
    }

    /// An area that is taken again and again passes the gaps below that are too small for it once, however many they are.
    #[test]
    fn gaps_that_are_too_small_are_passed_once() {
        const PAGES: u64 = 8 * LOOKED_AT as u64;
        let mut tree = AreaTree::new(START, START + 4 * PAGES * PAGE);
        let mut areas: Vec<_> = (0..2 * LOOKED_AT).map(|_| insert(&mut tree, 1, 4 * PAGE).unwrap()).collect();
        let last = insert(&mut tree, PAGES, PAGE).unwrap();
        assert_eq!(last, areas[areas.len() - 1] + 2 * PAGE);
        remove(&mut tree, last);
        assert!(matches!(tree.search(PAGES, PAGE, None), Gap::At(start) if start == last));
        assert_eq!(insert(&mut tree, 5, PAGE), Some(last));
        remove(&mut tree, areas.remove(1));
        assert_eq!(insert(&mut tree, 5, PAGE), Some(areas[0] + 2 * PAGE), "the gap that has grown");
        areas.extend([areas[0] + 2 * PAGE, last]);
        areas.into_iter().for_each(|start| remove(&mut tree, start));
    }

    /// An area is removed between two pieces of a search, below the address that it has reached.
    #[test]
    fn addresses_that_a_search_has_passed_are_found_when_they_are_free() {
        let mut tree = AreaTree::new(START, START + 64 * LOOKED_AT as u64 * PAGE);
        let mut areas: Vec<_> = (0..4 * LOOKED_AT).map(|_| insert(&mut tree, 4, 8 * PAGE).unwrap()).collect();
        let low = areas[0];
        remove(&mut tree, areas[1]);
        assert_eq!(insert(&mut tree, 4, 8 * PAGE), Some(areas[1]));
        let Gap::GoOn(resume) = tree.search(4, 8 * PAGE, None) else { panic!("it goes past all the others") };
        remove(&mut tree, low);
        areas.push(finish(&mut tree, 4, 8 * PAGE, Some(resume)).unwrap());
        assert_eq!(insert(&mut tree, 4, 8 * PAGE), Some(low));
        areas.into_iter().for_each(|start| remove(&mut tree, start));
    }

    proptest! {
        #[test]
        fn areas_never_touch_and_freed_addresses_come_back(
            steps in proptest::collection::vec((any::<bool>(), 1u64..9, 0u32..4), 1..200)
        ) {
            let end = START + 256 * PAGE;
            let mut tree = AreaTree::new(START, end);
            let mut model: Vec<(u64, u64)> = Vec::new();
            for (take, pages, shift) in steps {
                let align = PAGE << shift;
                if take || model.is_empty() {
                    match insert(&mut tree, pages, align) {
                        Some(start) => {
                            prop_assert!(start.is_aligned(align));
                            prop_assert!(start >= START + PAGE && start + (pages + 1) * PAGE <= end);
                            for &(other, n) in &model {
                                prop_assert!(start.0 >= other + (n + 1) * PAGE || other >= start.0 + (pages + 1) * PAGE);
                            }
                            model.push((start.0, pages));
                        }
                        None => {
                            // Only right if no aligned gap exists anywhere.
                            let mut at = START.0 + PAGE;
                            while at + (pages + 1) * PAGE <= end.0 {
                                let clear = at.is_multiple_of(align) && model.iter().all(
                                    |&(other, n)| at >= other + (n + 1) * PAGE || other >= at + (pages + 1) * PAGE);
                                prop_assert!(!clear, "{at:#x} was free");
                                at += PAGE;
                            }
                        }
                    }
                } else {
                    let (start, n) = model.swap_remove(pages as usize % model.len());
                    prop_assert_eq!(tree.find(VirtAddr(start)).unwrap().pages(), n);
                    remove(&mut tree, VirtAddr(start));
                    prop_assert!(tree.find(VirtAddr(start)).is_none());
                }
            }
            prop_assert_eq!(tree.iter().count(), model.len());
            for (start, _) in model {
                remove(&mut tree, VirtAddr(start));
            }
            prop_assert_eq!(tree.hint, START + PAGE);
        }
    }
}
