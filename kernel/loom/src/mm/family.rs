//! A family of spaces, of which a page migrates: the kernel's own lists and mark, with spaces of one page.

#![allow(unsafe_code, reason = "spaces that are ended where nothing refers to them")]

#[allow(
    dead_code,
    clippy::modulo_one,
    reason = "objects have no pages here, and pages no numbers; nor is there a second list"
)]
#[path = "../../../src/mm/space/family.rs"]
mod shipped;

#[allow(unreachable_pub, reason = "the kernel's other modules alone use it")]
#[allow(dead_code, reason = "what waits for a page alone is not here")]
#[path = "../../../src/mm/space/migrations.rs"]
mod migrations;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, Migration, MigrationAccess, Protection};
use granule_pgtable::{Mmu, Stores};
use intrusive_collections::LinkedListAtomicLink;

use migrations::Migrations;
use shipped::{Families, FamilyId, ObjectList, SpaceList};

/// As the kernel's files call it.
#[allow(clippy::module_inception, reason = "the name by which the kernel's file has it")]
mod family {
    pub(super) use super::shipped::{Families, FamilyId, SpaceList};
}

use crate::mm::entry::{EntryState, attributes, replace, state};
use crate::mm::frame::Frame;
use crate::mm::table::copy_entry;
use crate::mm::table_lock::TableGuard;
use crate::sched::{ReadGuard, RwSem, WriteGuard};
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::sync::rank;
use crate::{Cpu, Machine, Watched};

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

/// The frame that the page has, and the one that it moves to.
const OLD: PhysAddr = PhysAddr(0x4000_0000);
const NEW: PhysAddr = PhysAddr(0x4000_1000);

fn page_in(frame: PhysAddr) -> Descriptor {
    Descriptor::page(frame, attributes(Protection::READ))
}

/// Of the page on its way.
fn migration_entry() -> Descriptor {
    let access = MigrationAccess::Read;
    Migration { from: OLD, access, young: false, dirty: false, uffd_wp: false }.into()
}

fn is_migrating(entry: Descriptor) -> bool {
    state(entry) == EntryState::Migration
}

fn has_old(entry: Descriptor) -> bool {
    state(entry) == EntryState::Page && entry.address() == OLD
}

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
    /// The record of the table, with its lock.
    table: Frame,
    cell: AtomicU64,
    /// Written by its end.
    is_there: Watched<bool>,
}

impl Space {
    fn new(family: FamilyId, entry: Descriptor) -> Box<Self> {
        Box::new(Self {
            in_family: LinkedListAtomicLink::new(),
            family,
            areas: RwSem::new(rank::AREAS, ()),
            table: Frame::default(),
            cell: AtomicU64::new(entry.0),
            is_there: Watched::default(),
        })
    }

    fn read_areas(&self) -> ReadGuard<'_, ()> {
        self.is_there.read();
        self.areas.read()
    }

    fn lock_table(&self) -> TableGuard<'_> {
        TableGuard::lock(&self.table)
    }

    /// As `Space::unmap_to_migrate`.
    fn unmap_to_migrate(&self, mmu: &Cpu<'_>) -> bool {
        let _areas = self.read_areas();
        let locked = self.lock_table();
        let entry = locked.entry(mmu, &self.cell).descriptor();
        if has_old(entry) {
            replace(mmu, &self.cell, entry, |_| migration_entry());
        }
        has_old(entry)
    }

    /// As `Space::map_migrated`.
    fn map_migrated(&self, mmu: &Cpu<'_>, to: PhysAddr) -> bool {
        let _areas = self.read_areas();
        let locked = self.lock_table();
        let is_migrating = is_migrating(locked.entry(mmu, &self.cell).descriptor());
        if is_migrating {
            mmu.store(&self.cell, page_in(to));
        }
        is_migrating
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
    machine: Machine,
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
        let (parent, child) = (Space::new(family, page_in(OLD)), Space::new(family, Descriptor::EMPTY));
        families.join(&parent);
        let migrations = Migrations::new();
        let machine = Machine::new(0, crate::Without::Nothing);
        Self { machine, families, migrations, parent, child, record, contents: Watched::default(), without }
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
        let _childs = self.child.areas.write();
        let (mmu, mut protected) = (self.machine.cpu(0), false);
        let _locked = self.parent.lock_table();
        copy_entry(&mmu, &self.parent.cell, &self.child.cell, |_| &self.record, &mut protected);
        assert!(!is_migrating(mmu.load(&self.child.cell)), "a migration entry was copied");
    }

    /// The child ends. As `Space::release`.
    pub fn end_child(&self) {
        if self.without != Without::Leave {
            self.families.leave(&self.child);
        }
        self.child.is_there.write(false);
        let mmu = self.machine.cpu(0);
        if has_old(mmu.load(&self.child.cell)) {
            self.record.put();
        }
        mmu.store(&self.child.cell, Descriptor::EMPTY);
    }

    /// The page migrates, if the entries that are found are all that hold it. As `Spaces::migrate_one`.
    ///
    /// # Panics
    /// An entry was lost.
    pub fn migrate(&self) -> bool {
        let _one = self.migrations.begin();
        let family = self.migrations.mark(self.parent.family, &self.families);
        let mmu = self.machine.cpu(1);
        let unmapped = family.count(&|space| space.unmap_to_migrate(&mmu));
        let is_alone = unmapped != 0 && unmapped == self.record.references();
        let target = if is_alone { NEW } else { OLD };
        let mapped = family.count(&|space| space.map_migrated(&mmu, target));
        assert_eq!(mapped, unmapped, "a migration entry was lost");
        if is_alone {
            // The next owner of the frame.
            (0..unmapped).for_each(|_| _ = self.record.put());
            self.contents.write(1);
        }
        is_alone
    }

    /// A program reads the page of the child.
    pub fn read_in_child(&self) {
        let _areas = self.child.areas.read();
        let locked = self.child.lock_table();
        if has_old(locked.entry(&self.machine.cpu(0), &self.child.cell).descriptor()) {
            self.contents.read();
        }
    }

    /// The end of a test: no entry is a migration entry, and none has a frame that was given back.
    ///
    /// # Panics
    /// One has.
    pub fn assert_at_rest(&self, has_moved: bool) {
        for space in [&self.parent, &self.child] {
            let entry = self.machine.cpu(0).load(&space.cell);
            assert!(!is_migrating(entry), "a migration entry is left");
            assert!(!(has_moved && has_old(entry)), "an entry has the frame that was given back");
            self.families.leave(space);
        }
    }
}
