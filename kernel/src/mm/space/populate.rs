//! Pages before they are asked for: `MAP_POPULATE`, and what the kernel itself writes into a space.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;
use granule_pgtable::{Mmu, PageRange};

use super::area::Areas;
use super::fault::{Access, FaultError, handle_fault};
use super::{PAGE, Space};
use crate::smp::Cpu;

impl Space {
    /// Gives each page of `range` a frame, as far as memory goes. Nobody is told how far that was.
    pub(super) fn populate(&self, cpu: &Cpu, areas: &Areas, range: PageRange) {
        let _ = (cpu, areas, range);
    }

    /// Writes `bytes` at `address`, as the program could, whichever space this CPU has now.
    ///
    /// # Errors
    /// [`FaultError`]; what came before the page that cannot be written is written.
    pub fn write_bytes(&self, cpu: &Cpu, address: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        self.access_bytes(cpu, address, bytes.len(), Access::Write, |at, range| {
            // SAFETY: the page is writable in this space and stays, as `access_bytes` says; the program may change it
            // meanwhile, as it may change all its memory.
            unsafe { at.as_ptr::<u8>().copy_from_nonoverlapping(bytes[range.clone()].as_ptr(), range.len()) };
        })
    }

    /// Reads `bytes.len()` bytes from `address` on, as the program could, whichever space this CPU has now.
    ///
    /// # Errors
    /// [`FaultError`]; what came before the page that cannot be read is read.
    pub fn read_bytes(&self, cpu: &Cpu, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        let target = bytes.as_mut_ptr();
        self.access_bytes(cpu, address, bytes.len(), Access::Read, |at, range| {
            // SAFETY: the page is mapped in this space and stays, as `access_bytes` says; the range is inside `bytes`.
            unsafe { target.add(range.start).copy_from_nonoverlapping(at.as_ptr::<u8>(), range.len()) };
        })
    }

    /// Calls `copy` page by page, with where the linear map shows the bytes and which of them they are. The page's
    /// entry allows the access and does not change meanwhile.
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
            } else {
                handle_fault(self, cpu, at, access)?;
            }
        }
        Ok(())
    }

    /// Calls `work` with where the linear map shows `page`, if its entry allows `access`; whether it does.
    fn with_page(&self, page: VirtAddr, access: Access, work: impl FnOnce(VirtAddr)) -> bool {
        let areas = self.areas.read();
        let allowed = areas.find(page).is_some_and(|area| match access {
            Access::Write => area.protection().contains(Protection::WRITE),
            Access::Read | Access::Execute => area.protection() != Protection::NONE,
        });
        let Some((table, cell)) = self.page_tables().cell(page).filter(|_| allowed) else { return false };
        let _locked = self.lock_table(table);
        let entry = self.mmu().load(cell);
        // The linear map asks no entry, so that it is dirty and young already is for the program's own good.
        if !entry.is_valid() || access == Access::Write && !(entry.may_be_written() && entry.is_dirty()) {
            return false;
        }
        work(self.common.frames.linear().address(entry.address()));
        true
    }
}
