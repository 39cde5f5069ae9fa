//! Migration: the contents of a page go to another frame, while programs and devices use it.
//!
//! ```text
//!     find      by the reverse map (`family`): every space that may have the page
//!     unmap     in each: the entry becomes a migration entry, and is invalidated in CPUs and in devices
//!     count     what else holds the frame? then everything is undone
//!     copy      nothing can write to the frame any more
//!     map       in each, where the migration entry still is: the new frame
//! ```
//! A fault that finds a migration entry waits until the page has moved.
//!
//! The page of an object is marked in the object, which finds the entries that map it ([`Object::migrate`]); they are
//! emptied. A fault that finds the mark waits. The flags of an entry, young or dirty, mean nothing for memory
//! alone.
//!
//! # Locks
//! [`MIGRATION`](crate::sync::rank::MIGRATION) is held throughout. `mremap` would move a migration entry to where the
//! walk does not look, and `fork` would copy it: they wait for their family's page, and look again with all areas
//! locked, while which no entry becomes one ([`Space::write_areas_at_rest`]).

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Migration, MigrationAccess, NonPresent, Protection};
use granule_pgtable::{Mmu, Stores};
use thiserror::Error;

use super::address_space::Space;
use super::area::tree::Areas;
use super::entry::{EntryState, attributes, replace, state};
use super::family::Origin;
use super::shmem::OF_OBJECT;
#[cfg(doc)]
use super::shmem::Object;
use super::spaces::Spaces;
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::tag_storage::Unreserved;
use crate::mm::tlb::user::Leaf;
use crate::sched::{WriteGuard, relax};
use crate::smp::Cpu;

/// Why a frame stays where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unmovable {
    /// It is free.
    #[error("the frame is free")]
    Free,
    /// It is none of a program's pages, or none that the reverse map finds.
    #[error("the frame is no page that can be found by its reverse map")]
    NotFound,
    /// Something besides the entries that were found holds it.
    #[error("the frame is held by something else")]
    Held,
    /// At that address no frame is mapped.
    #[error("no page is mapped there")]
    NotMapped,
    /// There is none that it could move to.
    #[error("out of memory")]
    OutOfMemory,
    /// It has tags, and storage for them cannot be reserved where it could move to.
    #[error("no tag storage for the frame that it could move to: {0}")]
    NoTagStorage(#[from] Unreserved),
}

impl From<OutOfMemory> for Unmovable {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A page or block that has moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Where it was.
    pub from: PhysAddr,
    /// Where it is.
    pub to: PhysAddr,
    /// A page or a block.
    pub bytes: u64,
}

/// A page with more entries stays: each of them is invalidated while the others wait.
const MOST_ENTRIES: u32 = 64;

impl Spaces {
    /// Waits until the page that is on its way has arrived. Sleeps; no lock is held.
    #[cold]
    #[inline(never)]
    pub(super) fn wait_for_migration(&self) {
        self.migrations.wait();
    }

    /// Moves the page or block that `space` has at `address` to other frames. Sleeps: no lock is held. `cpu` is the CPU
    /// that this runs on.
    ///
    /// # Errors
    /// [`Unmovable`]; what the programs see has not changed.
    pub fn migrate_at(&self, cpu: &Cpu, space: &Space, address: VirtAddr) -> Result<Moved, Unmovable> {
        let frames = self.frames;
        let (block, entry) = {
            let _areas = space.areas.read(address);
            // The block first: beside this a block may become a table, and no table becomes a block.
            let block = space.block_entry(address);
            let entry = space.page_tables().cell(address).filter(|_| block.is_none()).map(|(table, cell)| {
                let locked = space.lock_table(table);
                locked.entry(&self.mmu, cell).descriptor()
            });
            (block, entry)
        };
        if let Some(entry) = block {
            let (from, to) = (entry.address(), frames.alloc_splittable(cpu)?);
            self.migrate_block(cpu, from, to).inspect_err(|_| frames.free_splittable(cpu, to))?;
            return Ok(Moved { from, to, bytes: BLOCK_SIZE });
        }
        let is_frame = |entry: &Descriptor| entry.is_present() && !entry.is_special();
        let from = entry.filter(is_frame).ok_or(Unmovable::NotMapped)?.address();
        let to = frames.alloc_movable(cpu)?;
        self.migrate_page(cpu, from, to).inspect_err(|_| frames.free(cpu, to))?;
        Ok(Moved { from, to, bytes: PAGE })
    }

    /// Moves what `frame` holds to `to`, if `frame` is one page of anonymous memory or of an object. `to` was just
    /// allocated, and is the caller's again where this fails; `frame` is given back. Sleeps: no lock is held. `cpu` is
    /// the CPU that this runs on.
    ///
    /// # Errors
    /// [`Unmovable`]; what the programs see has not changed.
    pub fn migrate_page(&self, cpu: &Cpu, frame: PhysAddr, to: PhysAddr) -> Result<(), Unmovable> {
        self.migrate_shared_page(cpu, frame, to, MOST_ENTRIES)
    }

    /// As [`Self::migrate_page`], for a page that at most `most` entries have.
    pub(super) fn migrate_shared_page(
        &self,
        cpu: &Cpu,
        frame: PhysAddr,
        to: PhysAddr,
        most: u32,
    ) -> Result<(), Unmovable> {
        let moved = self.migrate_one(cpu, frame, to, most);
        relax();
        moved
    }

    fn migrate_one(&self, cpu: &Cpu, frame: PhysAddr, to: PhysAddr, most: u32) -> Result<(), Unmovable> {
        let _one = self.migrations.begin();
        // The frame is not held: what its record says may be of its next owner before long. The entries decide.
        let record = self.frames.cut_frame(frame).filter(|record| record.references() != 0).ok_or(Unmovable::Free)?;
        let origin = Origin(self.frames.origin(record, frame));
        let (family, page) = origin.parts().ok_or(Unmovable::NotFound)?;
        if record.flags.load(Ordering::Relaxed) & OF_OBJECT != 0 {
            let objects = self.families.objects(family).read();
            let object = objects.find(family).ok_or(Unmovable::NotFound)?;
            return object.migrate(cpu, page.0 / PAGE, 1, frame, to);
        }
        if record.references() > most {
            return Err(Unmovable::Held);
        }
        let family = self.migrations.mark(family, self.families);
        // Each entry leaves its hold to this.
        let unmapped = family.count(&|space| space.unmap_to_migrate(page, frame));
        // No entry has the frame any more, and none will: what holds it besides is something else.
        let moved = match (unmapped, record.references()) {
            (0, _) => return Err(Unmovable::NotFound),
            (unmapped, held) if unmapped == held => self.page(frame).copy_to(to).map_err(Unmovable::from),
            _ => Err(Unmovable::Held),
        };
        let target = if moved.is_ok() { to } else { frame };
        if moved.is_ok() {
            let new = self.record(to);
            new.owner.store(origin.0, Ordering::Relaxed);
            // One for each entry; the caller's own is one of them.
            (1..unmapped).for_each(|_| new.share());
        }
        // The contents before the entries.
        self.mmu.dmb_ishst();
        let mapped = family.count(&|space| space.map_migrated(page, frame, target));
        // One reference for each entry that was unmapped concurrently.
        (mapped..unmapped).for_each(|_| self.drop_frame(cpu, target));
        if moved.is_ok() {
            (0..unmapped).for_each(|_| self.drop_frame(cpu, frame));
        }
        moved
    }
}

impl Space {
    /// All areas, for a change that moves or copies entries: none of them is a migration entry, or becomes one.
    #[inline(always)]
    pub(super) fn write_areas_at_rest(&self) -> WriteGuard<'_, Areas> {
        self.common.migrations.lock_at_rest(self.family, || self.write_all_areas())
    }

    /// Whether a migration entry of this space may exist. The lock of its table is held, or all areas are.
    #[inline(always)]
    pub(super) fn is_migrating(&self) -> bool {
        self.common.migrations.are_of(self.family)
    }

    /// Makes the entry of `page` a migration entry, if it has `frame`, whose hold is the caller's then; returns whether
    /// it has.
    fn unmap_to_migrate(&self, page: VirtAddr, frame: PhysAddr) -> bool {
        let mmu = self.mmu();
        let areas = self.areas.read(page);
        let Some((table, cell)) = self.page_tables().cell(page) else { return false };
        let has_frame = |entry: Descriptor| {
            let is_page = matches!(state(entry), EntryState::Page | EntryState::Inaccessible);
            is_page && !entry.is_special() && entry.address() == frame
        };
        if areas.find(page).is_none() || !has_frame(mmu.load(cell)) {
            return false;
        }
        let _change = self.notifiers.start(Range::page(Event::Migrate, page));
        let _locked = self.lock_table(table);
        let entry = mmu.load(cell);
        if !has_frame(entry) || self.is_of_object(entry) {
            return false;
        }
        if entry.is_contiguous() {
            self.unfold(page);
        }
        let entry = replace(mmu, cell, mmu.load(cell), migration_entry);
        if entry.is_valid() {
            self.tlb().flush_replaced(mmu, Leaf::page(page));
        }
        true
    }

    /// Puts `to` in the place of the migration entry for `frame`, with a hold of the caller's, if it is at `page`
    /// still; returns whether it is.
    fn map_migrated(&self, page: VirtAddr, frame: PhysAddr, to: PhysAddr) -> bool {
        let mmu = self.mmu();
        let areas = self.areas.read(page);
        let Some((table, cell)) = self.page_tables().cell(page) else { return false };
        let Some(area) = areas.find(page) else { return false };
        let _locked = self.lock_table(table);
        let NonPresent::Migration(migration) = mmu.load(cell).non_present() else { return false };
        if migration.from != frame {
            return false;
        }
        let new = migrated_entry(migration, to, area.protection());
        let new = self.prepared(new);
        mmu.store(cell, new);
        true
    }
}

/// The entry that remembers the page of `entry` while it is on its way.
fn migration_entry(entry: Descriptor) -> Descriptor {
    let access = if entry.may_be_written() { MigrationAccess::Write } else { MigrationAccess::Read };
    let (young, dirty) = (entry.is_young(), entry.is_dirty());
    Migration { from: entry.address(), access, young, dirty, uffd_wp: entry.is_uffd_wp() }.into()
}

/// The entry that the page of `entry` had, for looks: without the protection of its area. Of a migration entry alone it
/// differs from `entry`.
pub(super) fn before_migration(entry: Descriptor) -> Descriptor {
    match (state(entry), entry.non_present()) {
        (EntryState::Migration, NonPresent::Migration(migration)) => {
            migrated_entry(migration, migration.from, Protection::READ)
        }
        _ => entry,
    }
}

/// The entry of the page in its new frame, in an area with `protection`.
fn migrated_entry(migration: Migration, to: PhysAddr, protection: Protection) -> Descriptor {
    let is_writable = migration.access == MigrationAccess::Write;
    let wanted = attributes(if is_writable { protection } else { protection.read_only() });
    let new = Descriptor::page(to, attributes(Protection::READ)).modified(wanted);
    let new = if migration.young { new } else { new.old() };
    // Written before, whether it may be written now or not.
    let new = if migration.dirty { new.dirty() } else { new };
    if migration.uffd_wp { new.uffd_wp() } else { new }
}
