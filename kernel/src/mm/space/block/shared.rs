//! Blocks in shared areas: all of them have the object's frames, and see each other's stores.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::Stores;

use super::super::address_space::Space;
use super::super::area::Area;
use super::super::cells::BlockCell;
use super::super::entry::first_entry;
use super::super::outcome::FaultOutcome;
use super::super::shmem::Object;
use super::super::shmem::block::BlockPages;
use super::super::shmem::pages::{FoundBlock, order};
use super::{block_of, broken};
use crate::mm::kernel::Machine;
use crate::mm::page_block::BLOCK_SIZE;
use crate::sched::note_shortage;
use crate::smp::Cpu;

impl Space {
    /// Maps a block for `page`, where `area` is of an object; returns `None` where pages serve. If another CPU was
    /// faster, the retry decides.
    #[cold]
    #[inline(never)]
    pub(super) fn map_block_of_object(&self, cpu: &Cpu, area: &Area, page: VirtAddr) -> Option<FaultOutcome> {
        let object = area.object().filter(|_| area.is_shared() && self.takes_block(area, page))?;
        let start = page.align_down(BLOCK_SIZE);
        let first = area.page_at(start);
        let place = || self.place_block(cpu, start);
        let placed = match object.look_for_block(first) {
            BlockPages::Others => return None,
            BlockPages::Migrating => return Some(FaultOutcome::Migrating),
            BlockPages::Block(found) => place().map(|placed| (Some(found), placed)),
            BlockPages::None => object.add_block(cpu, first, place),
        };
        let Ok((found, (table, cell))) = placed else {
            // There is one frame at least now, and a page may serve.
            note_shortage(cpu, 0);
            return None;
        };
        let linked = found.map_or(Linked::Not, |found| self.link_block(area, object, &found, &cell, table));
        if linked != Linked::Here {
            self.free_deposit(cpu, table);
        }
        (linked != Linked::Not).then_some(FaultOutcome::Served)
    }

    /// Puts a block with the frames of `found` where `cell` is, with `table` as its deposit.
    fn link_block(
        &self,
        area: &Area,
        object: &Object,
        found: &FoundBlock<'_, Machine>,
        at: &BlockCell<'_>,
        table: PhysAddr,
    ) -> Linked {
        let mmu = self.mmu();
        // An area of an object with tags has no blocks: nothing waits for tag storage.
        let Some(new) = self.prepared_block(block_of(first_entry(found.block(), area.protection()))) else {
            return Linked::Not;
        };
        let locked = self.lock_table(at.table);
        if mmu.compare_exchange(at.cell, Descriptor::EMPTY, broken(new)).is_err() {
            return Linked::ByAnother;
        }
        // A truncation that finds the entry empty has changed the object before the look below.
        order();
        if !object.has_block(found, area.page_at(at.start)) {
            mmu.store(at.cell, Descriptor::EMPTY);
            return Linked::Not;
        }
        // A truncation that takes the frames from the object waits for the lock now.
        self.common.block(found.block()).share();
        self.common.deposit(locked.frame(), table);
        mmu.store(at.cell, new);
        Linked::Here
    }
}

/// Whether there is an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Linked {
    /// Yes, the caller's.
    Here,
    /// Yes, or a table, that another CPU has linked.
    ByAnother,
    /// No: the object has lost pages concurrently.
    Not,
}
