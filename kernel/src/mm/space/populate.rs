//! Pages before the first access: `MAP_POPULATE`, and writes of the kernel to a space.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Protection};
use granule_arch::memory::zero_page;
use granule_pgtable::{Mmu, PageRange};

use super::area::{Area, Areas};
use super::entry::{EntryState, attributes, state};
use super::fault::{Access, AllowedFault, FaultError, FaultOutcome, allows, handle_fault};
use super::gather::pages;
use super::shmem::{self, NoPage, Object};
use super::{EntryCell, PAGE, Space, TableCells};
use crate::mm::OutOfMemory;
use crate::sched::relax;
use crate::smp::Cpu;

/// Bytes that are populated under one hold of a table's lock: a part of one table.
pub(super) const CHUNK: u64 = 64 * PAGE;

impl Space {
    /// Installs each page of `range` as the first access would, as far as there is memory; how far is not returned.
    /// Writable pages are installed for writing.
    ///
    /// Between chunks other threads may run, and it ends early where `is_killed`, as Linux's `populate_vma_page_range`
    /// does for a fatal signal.
    pub(super) fn populate(&self, cpu: &Cpu, areas: &Areas, range: PageRange, is_killed: &dyn Fn() -> bool) {
        // A range that cannot fit is not populated at all.
        if range.pages() > self.common.frames.total() {
            return;
        }
        for area in areas.touching(range).filter(|area| area.protection() != Protection::NONE) {
            let part = area.part_in(range);
            let mut from = part.start();
            while from < part.end() {
                let next = VirtAddr(from.0 | (CHUNK - 1)).min(part.last()) + 1;
                let populated = self.populate_chunk(cpu, area, pages(from, next), first_access(area));
                relax();
                if populated.is_err() || is_killed() {
                    return;
                }
                from = next;
            }
        }
    }

    /// Installs what the first access of each page of `range`, entries of one last-level table, would install.
    pub(super) fn populate_chunk(
        &self,
        cpu: &Cpu,
        area: &Area,
        range: PageRange,
        access: Access,
    ) -> Result<(), NoPage> {
        let found = self.ensure_cells(cpu, range)?;
        if let Some(object) = area.object() {
            return self.populate_of_object(cpu, area, object, &found, access);
        }
        match access {
            Access::Write => Ok(self.populate_written(cpu, area.protection(), &found)?),
            _ => Ok(self.populate_read(cpu, area.protection(), &found)?),
        }
    }

    /// The entries of `range`, of one last-level table, which is linked if it is missing. The areas are read: no table is
    /// unlinked.
    pub(super) fn ensure_cells(&self, cpu: &Cpu, range: PageRange) -> Result<TableCells<'_>, OutOfMemory> {
        loop {
            if let Some(found) = self.page_tables().cells(range.start(), range.pages()) {
                return Ok(found);
            }
            self.ensure_table(cpu, range.start())?;
            // As for a fault that links a table: before a look at what an object has.
            shmem::order();
        }
    }

    fn populate_written(&self, cpu: &Cpu, protection: Protection, found: &TableCells<'_>) -> Result<(), OutOfMemory> {
        let (frames, mmu) = (self.common.frames, self.mmu());
        let missing = found.cells.iter().filter(|cell| self.is_empty(cell)).count();
        let mut list = frames.alloc_list(cpu, missing)?;
        let attributes = attributes(protection);
        {
            let locked = self.lock_table(found.table);
            for (index, cell) in found.cells.iter().enumerate().filter(|(_, cell)| self.is_empty(cell)) {
                // Entries that were cleared meanwhile are left to faults.
                let Some(frame) = list.pop() else { break };
                // SAFETY: the linear map has the frame, writable, and the frame has no other user.
                unsafe { zero_page(frames.linear().address(frame)) };
                let new = Descriptor::page(frame, attributes).dirty();
                if new.is_user_executable() {
                    self.make_code_visible(new);
                }
                // The zeros before their entry.
                mmu.dmb_ishst();
                locked.note_used(found.address(index));
                mmu.store(cell, new);
            }
        }
        frames.free_list(cpu, list);
        Ok(())
    }

    /// Installs what the first read would.
    fn populate_read(&self, cpu: &Cpu, protection: Protection, found: &TableCells<'_>) -> Result<(), OutOfMemory> {
        for (index, cell) in found.cells.iter().enumerate().filter(|(_, cell)| self.is_empty(cell)) {
            let page = found.address(index);
            let new = self.new_page(cpu, protection, Access::Read)?;
            self.install_or_drop(cpu, found.table, page, cell, new);
        }
        Ok(())
    }

    /// Serves the first access of each page of `object`, which is the area's.
    fn populate_of_object(
        &self,
        cpu: &Cpu,
        area: &Area,
        object: &Object,
        found: &TableCells<'_>,
        access: Access,
    ) -> Result<(), NoPage> {
        for (index, cell) in found.cells.iter().enumerate().filter(|(_, cell)| self.is_empty(cell)) {
            let page = found.address(index);
            match (AllowedFault { space: self, cpu, area, page, table: found.table, cell, access }).object_page(object)
            {
                FaultOutcome::Served | FaultOutcome::Upgraded => {}
                FaultOutcome::Failed(FaultError::OutOfMemory) => return Err(NoPage::OutOfMemory),
                FaultOutcome::Failed(_) => return Err(NoPage::BehindTheEnd),
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn is_empty(&self, cell: &EntryCell) -> bool {
        let entry = self.mmu().load(cell);
        // The most frequent case takes one comparison.
        entry == Descriptor::EMPTY || state(entry) == EntryState::Empty
    }

    /// Writes `bytes` at `address`, with the program's permissions, whatever space the CPU has now.
    ///
    /// # Errors
    /// [`FaultError`]; the bytes before the page that faults are written.
    pub fn write_bytes(&self, cpu: &Cpu, address: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        self.access_bytes(cpu, address, bytes.len(), Access::Write, |at, range| {
            // SAFETY: the page is writable in this space and stays, as `access_bytes` guarantees; the program may
            // change it meanwhile, as it may change all its memory.
            unsafe { at.as_ptr::<u8>().copy_from_nonoverlapping(bytes[range.clone()].as_ptr(), range.len()) };
        })
    }

    /// Reads `bytes.len()` bytes from `address` on, with the program's permissions, whatever space the CPU has now.
    ///
    /// # Errors
    /// [`FaultError`]; the bytes before the page that faults are read.
    pub fn read_bytes(&self, cpu: &Cpu, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        let target = bytes.as_mut_ptr();
        self.access_bytes(cpu, address, bytes.len(), Access::Read, |at, range| {
            // SAFETY: the page is mapped in this space and stays, as `access_bytes` guarantees; the range is inside
            // `bytes`.
            unsafe { target.add(range.start).copy_from_nonoverlapping(at.as_ptr::<u8>(), range.len()) };
        })
    }

    /// Calls `copy` for each page, with the linear address of the bytes and their range. The page's entry permits the
    /// access and does not change meanwhile.
    fn access_bytes(
        &self,
        cpu: &Cpu,
        address: VirtAddr,
        count: usize,
        access: Access,
        mut copy: impl FnMut(VirtAddr, core::ops::Range<usize>),
    ) -> Result<(), FaultError> {
        let mut done = 0;
        while done < count {
            let at = address.checked_add(done as u64).ok_or(FaultError::NotMapped)?;
            let offset = at.0 & (PAGE - 1);
            let end = count.min(done + (PAGE - offset) as usize);
            if self.with_page(at.align_down(PAGE), access, |page| copy(page + offset, done..end)) {
                done = end;
                relax();
            } else {
                handle_fault(self, cpu, at, access)?;
            }
        }
        Ok(())
    }

    /// Calls `work` with the linear address of `page`, if its entry permits `access`; returns whether it does.
    fn with_page(&self, page: VirtAddr, access: Access, work: impl FnOnce(VirtAddr)) -> bool {
        let areas = self.areas.read(page);
        let allowed = areas.find(page).is_some_and(|area| allows(area.protection(), access));
        let Some((table, cell)) = self.page_tables().cell(page).filter(|_| allowed) else { return false };
        let _locked = self.lock_table(table);
        if !self.permits(cell, access) {
            return false;
        }
        work(self.common.frames.linear().address(self.mmu().load(cell).address()));
        true
    }

    /// Whether the entry in `cell` permits `access`, and has all that an access would set.
    pub(super) fn permits(&self, cell: &EntryCell, access: Access) -> bool {
        let entry = self.mmu().load(cell);
        // An access by the linear map sets neither the access flag nor dirt, so the entry must have both already.
        state(entry) == EntryState::Page && (access != Access::Write || entry.may_be_written() && entry.is_dirty())
    }
}

/// The access that `MAP_POPULATE` makes: a store where that takes a page of the area's own.
#[inline(always)]
pub(super) fn first_access(area: &Area) -> Access {
    let is_written = !area.is_shared() && area.protection().contains(Protection::WRITE);
    if is_written { Access::Write } else { Access::Read }
}
