//! Families of spaces: the reverse map of anonymous memory. An object is a family of its own, with its reverse map.
//!
//! A program and what it forks are a family. A fork copies a page to the same address, so where a page is mapped
//! follows from two numbers, which the record of its frame has as its [`Origin`]: the family, and the page's number.
//! Nothing is kept for a page or an area, and `mmap` and faults take no lock for it: a space joins its family when it
//! is created, and leaves before its areas go.
//!
//! An origin is a hint. Only entries map a frame, and a walk counts them: a page that `mremap` has moved in
//! one of several spaces has more references than the walk finds, and is left where it is.
//!
//! `kernel/loom` compiles this file on loom's atomics and locks.

#![allow(unsafe_code, reason = "intrusive nodes")]

use granule_arch::addr::{PAGE, VirtAddr};
use intrusive_collections::{LinkedList, LinkedListAtomicLink, UnsafeRef, intrusive_adapter};

use super::address_space::Space;
use super::shmem::Object;
use super::spaces::LISTS;
use crate::sched::RwSem;
use crate::sync::atomic::{AtomicU32, Ordering};

/// Bits of a page's number, in 2⁴⁸ bytes.
const PAGE_BITS: u32 = 36;
/// Families before a number comes again. Two that have the same are one to a walk, which finds no entry in the other.
const FAMILIES: u32 = 1 << (u64::BITS - PAGE_BITS);

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{LinkedListAtomicLink, Object, Space, UnsafeRef, intrusive_adapter};
    intrusive_adapter!(pub(super) InFamily = UnsafeRef<Space>: Space { in_family => LinkedListAtomicLink });
    intrusive_adapter!(pub(super) OfNumber = UnsafeRef<Object>: Object { in_family => LinkedListAtomicLink });
}
use adapters::{InFamily, OfNumber};

/// The number of a family, below [`FAMILIES`]; not 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FamilyId(u32);

impl FamilyId {
    /// The number.
    #[inline(always)]
    pub(super) const fn number(self) -> u32 {
        self.0
    }
}

/// The family and the page that a frame was allocated for, as a frame's record has it
/// ([`Frame::owner`](crate::mm::frame::Frame)); 0 is none. The page of a space, or of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Origin(pub(super) u64);

impl Origin {
    /// The origin of the page at `page`, of a space or an object of `family`.
    #[inline(always)]
    pub(super) const fn new(family: FamilyId, page: VirtAddr) -> Self {
        Self(((family.0 as u64) << PAGE_BITS) | (page.0 / PAGE))
    }

    /// The family, and the first address of the page; `None` for what no family has.
    pub(super) const fn parts(self) -> Option<(FamilyId, VirtAddr)> {
        let family = (self.0 >> PAGE_BITS) as u32;
        let page = VirtAddr((self.0 & ((1 << PAGE_BITS) - 1)) * PAGE);
        if family == 0 { None } else { Some((FamilyId(family), page)) }
    }
}

/// Some of all spaces, by their families' numbers.
pub(super) struct SpaceList(LinkedList<InFamily>);

impl SpaceList {
    pub(super) const EMPTY: Self = Self(LinkedList::new(InFamily::NEW));

    /// The spaces. They are there while the list is locked.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Space> {
        self.0.iter()
    }
}

/// Some of all objects, by their families' numbers.
pub(super) struct ObjectList(LinkedList<OfNumber>);

impl ObjectList {
    pub(super) const EMPTY: Self = Self(LinkedList::new(OfNumber::NEW));

    /// The object that is the family. It is there while the list is locked.
    pub(super) fn find(&self, family: FamilyId) -> Option<&Object> {
        self.0.iter().find(|object| object.family == family)
    }
}

/// Spaces and objects by their families.
pub(super) struct Families {
    pub(super) next: AtomicU32,
    pub(super) lists: [RwSem<SpaceList>; LISTS],
    pub(super) objects: [RwSem<ObjectList>; LISTS],
}

impl Families {
    /// A number for a new family.
    pub(super) fn new_id(&self) -> FamilyId {
        // Relaxed: nothing is published by it.
        FamilyId(1 + self.next.fetch_add(1, Ordering::Relaxed) % (FAMILIES - 1))
    }

    /// The list that the spaces of `family` are in. Its lock comes before those of areas.
    pub(super) fn list(&self, family: FamilyId) -> &RwSem<SpaceList> {
        &self.lists[family.0 as usize % LISTS]
    }

    /// Adds `space`, which stays where it is and leaves before it ends. No lock of areas is held.
    pub(super) fn join(&self, space: &Space) {
        // SAFETY: it is in its pool, and leaves the list before it is dropped.
        self.list(space.family).write().0.push_back(unsafe { UnsafeRef::from_raw(space) });
    }

    /// Removes `space`, if it is there. No lock of areas is held.
    pub(super) fn leave(&self, space: &Space) {
        let mut list = self.list(space.family).write();
        if space.in_family.is_linked() {
            // SAFETY: it joins the list of its family, and no other.
            unsafe { list.0.cursor_mut_from_ptr(space) }.remove();
        }
    }

    /// The list that the object of `family` is in. A thread that holds its lock takes no areas, as an object is created
    /// and dropped with areas locked.
    pub(super) fn objects(&self, family: FamilyId) -> &RwSem<ObjectList> {
        &self.objects[family.0 as usize % LISTS]
    }

    /// Adds `object`, which stays where it is and leaves before it ends.
    pub(super) fn add_object(&self, object: &Object) {
        // SAFETY: it is in its pool, and leaves the list before it is dropped.
        self.objects(object.family).write().0.push_back(unsafe { UnsafeRef::from_raw(object) });
    }

    /// Removes `object`, if it is there.
    pub(super) fn remove_object(&self, object: &Object) {
        let mut list = self.objects(object.family).write();
        if object.in_family.is_linked() {
            // SAFETY: it joins the list of its family, and no other.
            unsafe { list.0.cursor_mut_from_ptr(object) }.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FAMILIES, Families, FamilyId, Origin};
    use granule_arch::addr::VirtAddr;

    #[test]
    fn an_origin_has_a_family_and_a_page() {
        for family in [1, 2, FAMILIES - 1] {
            for page in [0, 0x1000, 0x7fff_f000, (1 << 48) - 0x1000] {
                let (family, page) = (FamilyId(family), VirtAddr(page));
                assert_eq!(Origin::new(family, page).parts(), Some((family, page)));
            }
        }
        assert_eq!(Origin(0).parts(), None);
        assert_eq!(Origin(0xf_ffff_ffff).parts(), None);
    }

    #[test]
    fn numbers_come_again_and_are_never_0() {
        let families = Families::new();
        families.next.store(FAMILIES - 3, core::sync::atomic::Ordering::Relaxed);
        let next = [(); 4].map(|()| families.new_id().0);
        assert_eq!(next, [FAMILIES - 2, FAMILIES - 1, 1, 2]);
    }
}
