//! Blocks that `mremap` moves as a whole.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{EnsureError, Mmu, PageRange, Stores, Visited};

use super::super::address_space::Space;
use super::super::userfault::events::MovedRegistration;
use super::broken;
use crate::mm::OutOfMemory;
use crate::mm::page_block::BLOCK_SIZE;
use crate::smp::Cpu;

impl Space {
    /// Makes a place at `to` for the block at `address`, if all of that is in `range`, an area of anonymous private
    /// memory, and `to` is aligned; splits it where it cannot be moved as a whole. The areas are locked for writing.
    ///
    /// With `of_object` the block is an object's: a walk by the reverse map may take it away or split it at any time.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn prepare_block_move(
        &self,
        cpu: &Cpu,
        range: PageRange,
        address: VirtAddr,
        to: VirtAddr,
        of_object: bool,
    ) -> Result<Visited, OutOfMemory> {
        let Some(found) = self.block_at(address) else { return Ok(Visited::Done) };
        if !of_object && found.is_in(range) && to.is_aligned(BLOCK_SIZE) {
            match self.page_tables().ensure_block_cell(to, &mut self.table_source(cpu)) {
                Ok(place) if self.mmu().load(place.cell) == Descriptor::EMPTY => return Ok(Visited::Done),
                Err(EnsureError::OutOfTables) => return Err(OutOfMemory),
                // A table is there, for pages beside that are gone.
                Ok(_) | Err(EnsureError::Block) => {}
            }
        }
        Ok(self.split_block(&found, range))
    }

    /// Moves the block at `address`, with the table that was deposited for it, to the place that was
    /// [prepared](Self::prepare_block_move) at `to`. The areas are locked for writing.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn move_block(&self, address: VirtAddr, to: VirtAddr, registered: MovedRegistration) {
        let (mmu, common) = (self.mmu(), self.common);
        let (Some(found), Some(place)) = (self.block_at(address), self.block_at(to)) else { return };
        let entry = {
            let locked = self.lock_table(found.table);
            let beside = (found.table != place.table).then(|| self.lock_table_beside(place.table));
            let record = beside.as_ref().map_or(locked.frame(), |beside| beside.frame());
            let entry = self.replace_block_entry(&found, mmu.load(found.cell), broken);
            mmu.store(found.cell, Descriptor::EMPTY);
            let table = common.take_deposit(locked.frame());
            common.deposit(record, table);
            let kept = registered == MovedRegistration::Kept;
            mmu.store(place.cell, if kept { entry } else { entry.without_uffd_wp() });
            entry
        };
        let folio = common.block(entry.address());
        let _locked = folio.lock();
        self.note_block_origin(entry.address(), to);
        if !folio.is_one() {
            folio.records().zip(0..).for_each(|((_, record), index)| self.note_move(record, to + index * super::PAGE));
        }
    }
}
