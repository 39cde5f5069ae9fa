//! The reverse map of an object: the areas that map its pages.
//!
//! An area joins where it is mapped, or copied by a fork, and leaves before its tables are freed. Nothing is allocated, and
//! nothing is kept for each page.
//!
//! The tree is by the first page that an area maps; what reaches a page begins at most as many pages before it as the
//! longest area has. Areas with the same first page are in the order in which they joined. So a walk visits what a fork
//! copies before the copy, and what it has not met in the one it meets in the other.
//!
//! `kernel/loom` compiles this file, with [areas](super::super::area), on loom's locks.

#![allow(unsafe_code, reason = "intrusive nodes")]

use core::ops::Range;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_pgtable::PageRange;
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use super::super::address_space::Space;
use super::super::area::{Area, AreaFlags, Mapping};
use super::super::range::pages;
use crate::sched::{RwSem, WriteGuard, relax};

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{Mapping, RBTreeLink, UnsafeRef, intrusive_adapter};
    intrusive_adapter!(pub(super) ByPage = UnsafeRef<Mapping>: Mapping { by_page => RBTreeLink });
}
use adapters::ByPage;

impl<'a> KeyAdapter<'a> for ByPage {
    type Key = u64;
    fn get_key(&self, mapping: &'a Mapping) -> u64 {
        mapping.first_page()
    }
}

/// The areas of an object.
pub(in super::super) struct Mappers {
    tree: RBTree<ByPage>,
    /// No area has more pages.
    longest: u64,
}

// SAFETY: the areas are in pools that every CPU may use, and the tree is reached under its lock only.
unsafe impl Send for Mappers {}
// SAFETY: as above; a shared reference changes nothing.
unsafe impl Sync for Mappers {}

/// The part of an area that maps some pages of its object.
pub(super) struct Mapped<'m> {
    mapping: &'m Mapping,
    start: VirtAddr,
    end: VirtAddr,
    /// Whether its pages stay.
    pub(super) is_locked: bool,
}

impl Mapped<'_> {
    /// The space that the area is in.
    pub(super) fn space(&self) -> &Space {
        // SAFETY: an area leaves the reverse map, which is locked, before its tables are freed and before its space ends.
        unsafe { self.mapping.space().as_ref() }
    }

    /// The addresses.
    pub(super) fn range(&self) -> PageRange {
        pages(self.start, self.end)
    }
}

impl Mappers {
    pub(super) const NONE: Self = Self { tree: RBTree::new(ByPage::NEW), longest: 0 };

    /// Has `change` change those of an object, with their lock held for writing: no walk by them is open.
    #[inline(always)]
    pub(super) fn change(mappers: &RwSem<Self>, change: impl FnOnce(&mut Self)) {
        // Out of line: this is called for each kind of change.
        #[inline(never)]
        fn lock(mappers: &RwSem<Mappers>) -> WriteGuard<'_, Mappers> {
            mappers.write()
        }
        #[inline(never)]
        fn unlock(mappers: WriteGuard<'_, Mappers>) {
            drop(mappers);
        }
        let mut mappers = lock(mappers);
        change(&mut mappers);
        unlock(mappers);
    }

    /// Adds an area, with what it has of the object. It leaves before it is dropped.
    #[inline(never)]
    pub(in super::super) fn insert(&mut self, mapping: &Mapping, area: &UnsafeRef<Area>) {
        self.note_length(area);
        mapping.area.set(&raw const **area);
        // SAFETY: a part of the area, which stays where it is and leaves the tree before it is dropped.
        self.tree.insert(unsafe { UnsafeRef::from_raw(mapping) });
    }

    /// Removes an area, if it is there.
    #[inline(never)]
    pub(in super::super) fn remove(&mut self, mapping: &Mapping) {
        if mapping.by_page.is_linked() {
            // SAFETY: an area joins the tree of its own object, and no other.
            unsafe { self.tree.cursor_mut_from_ptr(mapping) }.remove();
        }
        if self.tree.is_empty() {
            self.longest = 0;
        }
    }

    /// An area of the tree has become longer at its end.
    pub(in super::super) fn note_length(&mut self, area: &Area) {
        self.longest = self.longest.max(area.pages());
    }

    /// Where `pages` are mapped.
    pub(super) fn of(&self, pages: Range<u64>) -> impl Iterator<Item = Mapped<'_>> {
        let first = (pages.start + 1).saturating_sub(self.longest);
        let mut cursor = self.tree.lower_bound(Bound::Included(&first));
        let mut visited = 0_u32;
        core::iter::from_fn(move || {
            loop {
                visited += 1;
                if visited.is_multiple_of(64) {
                    // Those that end before the pages may be many.
                    relax();
                }
                let mapping = cursor.get().filter(|mapping| mapping.first_page() < pages.end)?;
                cursor.move_next();
                // SAFETY: the area is in the tree, so it is there, and its place does not change while this is locked.
                let area = unsafe { &*mapping.area.get() };
                let first = mapping.first_page();
                let (from, to) = (first.max(pages.start), (first + area.pages()).min(pages.end));
                if from < to {
                    let at = |page: u64| area.start() + (page - first) * PAGE;
                    let is_locked = area.flags().has_any(AreaFlags::LOCKED);
                    return Some(Mapped { mapping, start: at(from), end: at(to), is_locked });
                }
            }
        })
    }
}
