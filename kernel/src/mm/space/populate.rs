//! Pages before the first access: `MAP_POPULATE`, and writes of the kernel to a space.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{EnsureError, Mmu, PageRange, Stores};

use super::access::Access;
use super::address_space::Space;
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::cells::{EntryCell, TableCells};
use super::entry::{EntryState, state};
use super::error::FaultError;
use super::outcome::{AllowedFault, FaultOutcome};
use super::range::pages;
use super::shmem::pages::order;
use super::shmem::{NoPage, Object};
use super::userfault::fault::FaultMode;
use crate::mm::OutOfMemory;
use crate::mm::page_block::Mobility;
use crate::sched::relax;
use crate::smp::Cpu;

/// Bytes that are populated under one hold of a table's lock: a part of one table.
pub(super) const CHUNK: u64 = 64 * PAGE;

/// How long an access of the kernel's waits for a page: at most until the function returns true.
#[derive(Clone, Copy)]
pub enum Patience<'p> {
    /// Also for a pager that has to serve it.
    WithPager(&'p dyn Fn() -> bool),
    /// No pager serves it.
    WithoutPager(&'p dyn Fn() -> bool),
}

impl Patience<'_> {
    /// Whether it waits no more.
    pub fn is_over(self) -> bool {
        match self {
            Self::WithPager(is_killed) | Self::WithoutPager(is_killed) => is_killed(),
        }
    }
}

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
        // A page that a pager serves comes by its first access.
        let is_brought = |area: &&Area| !area.is_of_device() && !area.flags().has_any(AreaFlags::UFFD_MISSING);
        for area in areas.touching(range).filter(|area| !area.protection().is_none()).filter(is_brought) {
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
        let found = match self.page_tables().cells(range.start(), range.pages()) {
            Some(found) => found,
            None if self.bring_block(cpu, area, range.start()) => return Ok(()),
            None => match self.ensure_cells(cpu, range)? {
                Some(found) => found,
                // Another CPU has just mapped it.
                None => return Ok(()),
            },
        };
        if let Some(object) = area.object() {
            return self.populate_of_object(cpu, area, object, &found, access);
        }
        match access {
            Access::Write => Ok(self.populate_written(cpu, area.protection(), &found)?),
            _ => Ok(self.populate_read(cpu, area.protection(), &found)?),
        }
    }

    /// The entries of `range`, of one last-level table, which is linked if it is missing; `None` where a block is. The
    /// areas are read: no table is unlinked.
    pub(super) fn ensure_cells(&self, cpu: &Cpu, range: PageRange) -> Result<Option<TableCells<'_>>, OutOfMemory> {
        loop {
            if let Some(found) = self.page_tables().cells(range.start(), range.pages()) {
                return Ok(Some(found));
            }
            if self.block_entry(range.start()).is_some() {
                return Ok(None);
            }
            match self.try_ensure_table(cpu, range.start()) {
                Ok(()) => {}
                // A block is there, or was; or it has left a marker.
                Err(EnsureError::Block) => _ = self.split_block_marker(range.start()),
                Err(EnsureError::OutOfTables) => return Err(OutOfMemory),
            }
            // As for a fault that links a table: before a look at what an object has.
            order();
        }
    }

    fn populate_written(&self, cpu: &Cpu, protection: Protection, found: &TableCells<'_>) -> Result<(), OutOfMemory> {
        let (frames, mmu) = (self.common.frames, self.mmu());
        let missing = found.cells.iter().filter(|cell| self.is_empty(cell)).count();
        let mut list = frames.alloc_list_of(cpu, Mobility::Movable, missing)?;
        {
            let locked = self.lock_table(found.table);
            for (index, cell) in found.cells.iter().enumerate().filter(|(_, cell)| self.is_empty(cell)) {
                // Entries that were cleared concurrently are left to faults.
                let Some(frame) = list.pop() else { break };
                let new = self.new_written(frame, found.address(index), protection);
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
            let new = self.new_page(cpu, page, protection, Access::Read)?;
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
            let fault = AllowedFault { space: self, cpu, area, page, table: found.table, cell, access };
            // Where nothing was, nothing is upgraded.
            if let FaultOutcome::Failed(denied) = fault.object_page(object) {
                return Err(match denied.error() {
                    FaultError::OutOfMemory => NoPage::OutOfMemory,
                    _ => NoPage::BehindTheEnd,
                });
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
        self.write_bytes_within(cpu, address, bytes, Patience::WithPager(&|| false))
    }

    /// As [`Self::write_bytes`], with `patience` while a page is unavailable.
    ///
    /// # Errors
    /// As [`Self::write_bytes`]; [`FaultError::Unusable`] where it ends, or has no pager and needs one.
    pub fn write_bytes_within(
        &self,
        cpu: &Cpu,
        address: VirtAddr,
        bytes: &[u8],
        patience: Patience<'_>,
    ) -> Result<(), FaultError> {
        // SAFETY: the bytes are only read.
        unsafe { self.copy_bytes(cpu, address, bytes.as_ptr().cast_mut(), bytes.len(), Access::Write, patience) }
    }

    /// Reads `bytes.len()` bytes from `address` on, with the program's permissions, whatever space the CPU has now: of
    /// memory that may be read, also where CPUs load from other memory.
    ///
    /// # Errors
    /// [`FaultError`]; the bytes before the page that faults are read.
    pub fn read_bytes(&self, cpu: &Cpu, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        self.read_bytes_within(cpu, address, bytes, Patience::WithPager(&|| false))
    }

    /// As [`Self::read_bytes`], with `patience` while a page is unavailable.
    ///
    /// # Errors
    /// As [`Self::read_bytes`]; those of [`Self::write_bytes_within`].
    pub fn read_bytes_within(
        &self,
        cpu: &Cpu,
        address: VirtAddr,
        bytes: &mut [u8],
        patience: Patience<'_>,
    ) -> Result<(), FaultError> {
        // SAFETY: the bytes are the caller's to write.
        unsafe { self.copy_bytes(cpu, address, bytes.as_mut_ptr(), bytes.len(), Access::Read, patience) }
    }

    /// Stores `new` in the word at `address`, a multiple of its size, if that is `old`, in one step, with the program's
    /// permissions; returns what it was.
    ///
    /// # Errors
    /// [`FaultError`].
    pub fn exchange_word(&self, cpu: &Cpu, address: VirtAddr, old: u32, new: u32) -> Result<u32, FaultError> {
        debug_assert!(address.is_aligned(size_of::<u32>() as u64));
        let mut found = old;
        let mut exchange = |page: VirtAddr| {
            // SAFETY: as in `copy_bytes`; the word is aligned, and so in one page.
            let word = unsafe { AtomicU32::from_ptr((page + (address.0 & (PAGE - 1))).as_ptr()) };
            let exchanged = word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire);
            found = exchanged.unwrap_or_else(|other| other);
        };
        while !self.with_page(address.align_down(PAGE), Access::Write, &mut exchange)? {
            self.fault_in_kernel(cpu, address, Access::Write, FaultMode::Kernel)?;
        }
        Ok(found)
    }

    /// Copies the `count` bytes at `bytes` to `address` for a write, and those at `address` to `bytes` for a read.
    ///
    /// # Safety
    /// `bytes` are the caller's, to read for a write and to write for a read.
    #[inline(never)]
    unsafe fn copy_bytes(
        &self,
        cpu: &Cpu,
        address: VirtAddr,
        bytes: *mut u8,
        count: usize,
        access: Access,
        patience: Patience<'_>,
    ) -> Result<(), FaultError> {
        let mut done = 0;
        while done < count {
            let at = address.checked_add(done as u64).ok_or(FaultError::NotMapped)?;
            let offset = at.0 & (PAGE - 1);
            let end = count.min(done + (PAGE - offset) as usize);
            let copy = |page: VirtAddr| {
                let there = (page + offset).as_ptr::<u8>();
                // SAFETY: the page's entry permits the access and stays, as `with_page` guarantees; the program may
                // change the page concurrently, as it may change all its memory. The rest is inside `bytes`.
                unsafe {
                    let here = bytes.add(done);
                    let (from, to) = if access == Access::Write { (here, there) } else { (there, here) };
                    to.copy_from_nonoverlapping(from, end - done);
                }
            };
            if self.with_page(at.align_down(PAGE), access, copy)? {
                done = end;
                relax();
            } else {
                let mode = match patience {
                    Patience::WithPager(_) => FaultMode::Kernel,
                    Patience::WithoutPager(_) => FaultMode::WithoutPager,
                };
                self.fault_in_kernel(cpu, at, access, mode)?;
                // A page may have to wait for tag storage, or for a pager, again and again.
                if patience.is_over() {
                    return Err(FaultError::Unusable);
                }
            }
        }
        Ok(())
    }

    /// Calls `work` with the linear address of `page`, if its entry permits `access`; returns whether it does.
    ///
    /// # Errors
    /// [`FaultError::NotAllowed`] (the area is not [for such an access](Access::needed)), [`FaultError::Unusable`] (the
    /// page is registers, which are in no linear map).
    fn with_page(&self, page: VirtAddr, access: Access, work: impl FnOnce(VirtAddr)) -> Result<bool, FaultError> {
        let areas = self.areas.read(page);
        let Some(area) = areas.find(page) else { return Ok(false) };
        if !area.protection().contains(access.needed()) {
            return Err(FaultError::NotAllowed);
        }
        if area.is_of_device() {
            return Err(FaultError::Unusable);
        }
        let Some((table, cell)) = self.page_tables().cell(page) else {
            let found = self.page_of_block(page, access);
            return Ok(found.map(|(_locked, page)| work(page)).is_some());
        };
        let _locked = self.lock_table(table);
        if !self.permits(cell, access) {
            return Ok(false);
        }
        work(self.common.frames.linear().address(self.mmu().load(cell).address()));
        Ok(true)
    }

    /// Whether the entry in `cell` permits `access`, and has all that an access would set.
    pub(super) fn permits(&self, cell: &EntryCell, access: Access) -> bool {
        let entry = self.mmu().load(cell);
        state(entry) == EntryState::Page && Self::permits_entry(entry, access)
    }

    /// As [`Self::permits`], for the entry of a page, or of a block.
    pub(super) fn permits_entry(entry: Descriptor, access: Access) -> bool {
        // An access by the linear map sets neither the access flag nor dirt, so the entry must have both already.
        let is_written = || entry.may_be_written() && entry.is_dirty();
        entry.is_valid() && entry.is_young() && (access != Access::Write || is_written())
    }
}

/// The access that `MAP_POPULATE` and `mlock` make: a store where that takes a page of the area's own, else one that
/// the area permits.
#[inline(always)]
pub(super) fn first_access(area: &Area) -> Access {
    let has = |needed| area.protection().contains(needed);
    match (has(Protection::WRITE), has(Protection::READ), has(Protection::EXECUTE)) {
        (true, ..) if !area.is_shared() => Access::Write,
        (true, false, false) => Access::Write,
        (_, false, true) => Access::Execute,
        _ => Access::Read,
    }
}
