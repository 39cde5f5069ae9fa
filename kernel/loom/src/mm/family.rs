//! A family of spaces, of which a page migrates: the kernel's own lists and its mark, with spaces of one page.

#![allow(unsafe_code, reason = "spaces that are ended where nothing refers to them")]

#[allow(
    dead_code,
    clippy::modulo_one,
    reason = "objects, and the numbers of pages, are not here; nor is a second list"
)]
#[path = "../../../src/mm/space/family.rs"]
mod shipped;

#[allow(unreachable_pub, reason = "the kernel's other modules alone use it")]
#[allow(dead_code, reason = "what waits for a page alone is not here")]
#[path = "../../../src/mm/space/migrations.rs"]
mod migrations;

use intrusive_collections::LinkedListAtomicLink;
use loom::sync::Mutex;

use migrations::Migrations;
use shipped::{Families, FamilyId, ObjectList, SpaceList};

/// As the kernel's files call it.
#[allow(clippy::module_inception, reason = "the name by which the kernel's file has it")]
mod family {
    pub(super) use super::shipped::{Families, FamilyId, SpaceList};
}

use crate::Watched;
use crate::mm::frame::Frame;
use crate::sched::{ReadGuard, RwSem, WriteGuard};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::rank;

mod spaces {
    /// Lists of families.
    pub(super) const LISTS: usize = 1;
}
use spaces::LISTS;

mod address_space {
    pub(super) use super::Space;
}

/// A replacement for objects: there are none.
mod shmem {
    use intrusive_collections::LinkedListAtomicLink;

    pub(super) struct Object {
        pub(super) in_family: LinkedListAtomicLink,
        pub(super) family: super::FamilyId,
    }
}

/// The values of the entry of a space.
const EMPTY: u32 = 0;
const OLD: u32 = 1;
const MIGRATION: u32 = 2;
const NEW: u32 = 3;

/// A step that is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// None.
    Nothing,
    /// A fork looks at the mark with the areas locked.
    LookAtMark,
    /// A space that ends leaves its family first.
    Leave,
}

/// A space, with a page or without.
struct Space {
    in_family: LinkedListAtomicLink,
    family: FamilyId,
    areas: RwSem<()>,
    /// The lock of the table, in the place of the invalidation too.
    table: Mutex<()>,
    entry: AtomicU32,
    /// Written by its end.
    is_there: Watched<bool>,
}

impl Space {
    fn new(family: FamilyId, entry: u32) -> Box<Self> {
        Box::new(Self {
            in_family: LinkedListAtomicLink::new(),
            family,
            areas: RwSem::new(rank::AREAS, ()),
            table: Mutex::new(()),
            entry: AtomicU32::new(entry),
            is_there: Watched::default(),
        })
    }

    fn read_areas(&self) -> ReadGuard<'_, ()> {
        self.is_there.read();
        self.areas.read()
    }

    /// Replaces the entry where it is `old`; whether it was.
    fn replace(&self, old: u32, new: u32) -> bool {
        let _areas = self.read_areas();
        let _locked = self.table.lock().unwrap();
        let is_old = self.entry.load(Ordering::Relaxed) == old;
        if is_old {
            self.entry.store(new, Ordering::Relaxed);
        }
        is_old
    }
}

impl Families {
    fn new() -> Self {
        let lists = std::array::from_fn::<_, LISTS, _>(|_| RwSem::new(rank::SPACES, SpaceList::EMPTY));
        let objects = std::array::from_fn(|_| RwSem::new(rank::OBJECTS, ObjectList::EMPTY));
        Self { next: AtomicU32::new(0), lists, objects }
    }
}

/// The family: a parent that has a page, and a child that gets it.
pub struct Family {
    families: Box<Families>,
    migrations: Migrations,
    parent: Box<Space>,
    child: Box<Space>,
    /// The record of the old frame, and what is in it.
    record: Frame,
    contents: Watched<u32>,
    without: Without,
}

impl Family {
    /// The parent is there and has the page.
    pub fn new(without: Without) -> Self {
        let families = Box::new(Families::new());
        let family = families.new_id();
        let record = Frame::default();
        record.hand_out();
        let (parent, child) = (Space::new(family, OLD), Space::new(family, EMPTY));
        families.join(&parent);
        let migrations = Migrations::new();
        Self { families, migrations, parent, child, record, contents: Watched::default(), without }
    }

    fn lock_parent(&self) -> WriteGuard<'_, ()> {
        if self.without == Without::LookAtMark {
            return self.parent.areas.write();
        }
        self.migrations.lock_at_rest(self.parent.family, || self.parent.areas.write())
    }

    /// The parent forks. As `Space::copy_to_child`.
    ///
    /// # Panics
    /// A migration entry is copied.
    pub fn fork(&self) {
        self.families.join(&self.child);
        let _areas = self.lock_parent();
        let entry = self.parent.entry.load(Ordering::Relaxed);
        assert_ne!(entry, MIGRATION, "a migration entry was copied");
        if entry == OLD {
            self.record.share();
        }
        let _childs = self.child.areas.write();
        self.child.entry.store(entry, Ordering::Relaxed);
    }

    /// The child ends. As `Space::release`.
    pub fn end_child(&self) {
        if self.without != Without::Leave {
            self.families.leave(&self.child);
        }
        self.child.is_there.write(false);
        if self.child.entry.load(Ordering::Relaxed) == OLD {
            self.record.put();
        }
        self.child.entry.store(EMPTY, Ordering::Relaxed);
    }

    /// The page migrates, if the entries that are found are all that hold it. As `Spaces::migrate_one`.
    ///
    /// # Panics
    /// An entry was lost.
    pub fn migrate(&self) -> bool {
        let _one = self.migrations.begin();
        let family = self.migrations.mark(self.parent.family, &self.families);
        let unmapped = family.count(&|space| space.replace(OLD, MIGRATION));
        let is_alone = unmapped != 0 && unmapped == self.record.references();
        let target = if is_alone { NEW } else { OLD };
        let mapped = family.count(&|space| space.replace(MIGRATION, target));
        assert_eq!(mapped, unmapped, "a migration entry was lost");
        if is_alone {
            // The next owner of the frame.
            (0..unmapped).for_each(|_| _ = self.record.put());
            self.contents.write(1);
        }
        is_alone
    }

    /// A program reads the page of the child.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn read_in_child(&self) {
        let _areas = self.child.areas.read();
        let _locked = self.child.table.lock().unwrap();
        if self.child.entry.load(Ordering::Relaxed) == OLD {
            self.contents.read();
        }
    }

    /// The end of a test: no entry is a migration entry, and none has a frame that was given back.
    ///
    /// # Panics
    /// One has.
    pub fn assert_at_rest(&self, has_moved: bool) {
        for space in [&self.parent, &self.child] {
            let entry = space.entry.load(Ordering::Relaxed);
            assert_ne!(entry, MIGRATION, "a migration entry is left");
            assert!(!(has_moved && entry == OLD), "an entry has the frame that was given back");
            self.families.leave(space);
        }
    }
}
