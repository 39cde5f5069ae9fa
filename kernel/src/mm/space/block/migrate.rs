//! Migration of a block: its contents go to another page block, while programs and devices use it.
//!
//! ```text
//!     protect   in each space of the family that has it: read-only, and invalidated in CPUs and in devices
//!     count     what else holds it? then it stays
//!     copy      in steps; loads go on, and a store waits until the end
//!     map       in each space, where the entry has that block still: break, invalidate, the new block
//! ```
//! No entry becomes a migration entry, so a call that concerns a part may split the block concurrently, and only a fork
//! and `mremap` wait. A split block keeps its frames: their contents are the same, as nothing has them to itself and
//! may write before the end.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_pgtable::{Mmu, Stores};

use super::super::address_space::Space;
use super::super::family::Origin;
use super::super::migrate::Unmovable;
use super::super::protect::may_be_written;
use super::super::shmem::OF_OBJECT;
use super::super::spaces::Spaces;
use super::{broken, is_block};
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::sched::relax;
use crate::smp::Cpu;

/// A block that is on its way.
struct Moving {
    /// Where the spaces of its family have it.
    start: VirtAddr,
    from: PhysAddr,
    to: PhysAddr,
    /// Whether a hold keeps it where it is, and keeps programs from having it to themselves.
    is_held: Cell<bool>,
    /// Whether an entry permitted stores.
    was_writable: Cell<bool>,
}

impl Spaces {
    /// Moves the page block `from`, which entries of programs have as a whole, or an object in order, to `to`, which
    /// was just allocated by [`alloc_splittable`](crate::mm::frame::FrameAllocator::alloc_splittable), and is the
    /// caller's again where this fails. A block that is split concurrently stays in `from`. Sleeps: no lock is held.
    /// `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`Unmovable`]; what the programs see has not changed.
    pub fn migrate_block(&self, cpu: &Cpu, from: PhysAddr, to: PhysAddr) -> Result<(), Unmovable> {
        let moved = self.migrate_one_block(cpu, from, to);
        relax();
        moved
    }

    fn migrate_one_block(&self, cpu: &Cpu, from: PhysAddr, to: PhysAddr) -> Result<(), Unmovable> {
        let _one = self.migrations.begin();
        if let Some(record) = self.frames.cut_frame(from) {
            // Pages of an object, if anything.
            let is_of_object = record.references() != 0 && record.flags.load(Ordering::Relaxed) & OF_OBJECT != 0;
            let origin = Origin(record.owner.load(Ordering::Relaxed)).parts();
            let is_first = |page: VirtAddr| page.is_aligned(BLOCK_SIZE);
            let origin = origin.filter(|&(_, page)| is_of_object && is_first(page));
            let (family, page) = origin.ok_or(Unmovable::NotFound)?;
            let objects = self.families.objects(family).read();
            let object = objects.find(family).ok_or(Unmovable::NotFound)?;
            return object.migrate(cpu, page.0 / PAGE, BLOCK_FRAMES, from, to);
        }
        // The recorded origin may be that of an earlier owner. The entries decide.
        let origin = Origin(self.frames.block_origin(from));
        let (family, start) = origin.parts().ok_or(Unmovable::NotFound)?;
        let family = self.migrations.mark(family, self.families);
        let moving = Moving { start, from, to, is_held: Cell::new(false), was_writable: Cell::new(false) };
        let found = family.count(&|space| space.protect_to_migrate(&moving));
        if found == 0 {
            return Err(Unmovable::NotFound);
        }
        let mapped = if self.block(from).holders() == found + 1 && self.block(from).copy_to(to).is_ok() {
            self.frames.set_origin(to, origin.0);
            // The contents before the entries.
            self.mmu.dmb_ishst();
            let is_writable = found == 1 && moving.was_writable.get();
            family.count(&|space| space.map_moved_block(&moving, is_writable))
        } else {
            0
        };
        // The holds of the entries that have gone, and this one's.
        (0..=mapped).for_each(|_| _ = self.block(from).put_block(cpu));
        if mapped == 0 {
            return Err(Unmovable::Held);
        }
        self.block(to).put_block(cpu);
        Ok(())
    }
}

impl Space {
    /// Makes the entry read-only, if it has the block that is moving; returns whether it has. The first takes a hold.
    fn protect_to_migrate(&self, moving: &Moving) -> bool {
        let (mmu, start) = (self.mmu(), moving.start);
        let has_block = |entry: Descriptor| is_block(entry) && entry.address() == moving.from;
        let areas = self.areas.read(start);
        let Some(found) = self.block_at(start).filter(|found| has_block(mmu.load(found.cell))) else { return false };
        if areas.find(start).is_none() {
            return false;
        }
        let _change = self.notifiers.start(Range::new(Event::Migrate, start, start + BLOCK_SIZE));
        let _locked = self.lock_table(found.table);
        let entry = mmu.load(found.cell);
        if !has_block(entry) {
            return false;
        }
        if !moving.is_held.replace(true) {
            self.common.block(moving.from).share();
        }
        if entry.may_be_written() {
            moving.was_writable.set(true);
            self.replace_block_entry(&found, entry, Descriptor::write_protected);
        }
        true
    }

    /// Puts the new block, with a hold, in the place of the one that is moving, if the entry has that still; returns
    /// whether it has.
    fn map_moved_block(&self, moving: &Moving, is_writable: bool) -> bool {
        let (mmu, start) = (self.mmu(), moving.start);
        let areas = self.areas.read(start);
        let (Some(area), Some(found)) = (areas.find(start), self.block_at(start)) else { return false };
        let _change = self.notifiers.start(Range::new(Event::Migrate, start, start + BLOCK_SIZE));
        let _locked = self.lock_table(found.table);
        let entry = mmu.load(found.cell);
        if !is_block(entry) || entry.address() != moving.from {
            return false;
        }
        let permits = area.protection().contains(Protection::WRITE);
        let moved = |entry: Descriptor| {
            let new = Descriptor(entry.0 & !bits::ADDRESS | moving.to.0);
            if is_writable && permits { may_be_written(new) } else { new }
        };
        // Checked since, while the copy has no tags: it stays, as what was split does.
        if self.prepared_block(moved(entry)) != Some(moved(entry)) {
            return false;
        }
        self.common.block(moving.to).share();
        let entry = self.replace_block_entry(&found, entry, broken);
        mmu.store(found.cell, moved(entry));
        true
    }
}
