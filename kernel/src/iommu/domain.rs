//! A device's own tables: made like the kernel's, and told to the SMMU alone.
//!
//! Each range has one owner, whoever had its addresses from the allocator, so mapping and unmapping take no lock
//! (`granule_pgtable`). Tables stay until the device is detached. Unmapping is strict: when it returns, the SMMU has
//! completed the invalidation and the device does not reach the memory any more.

use core::sync::atomic::{AtomicUsize, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Attributes;
use granule_arch::interrupts;
use granule_pgtable::{
    Dismantled, Error, Granule4K, Invalidation, Lazy, Mmu, PageRange, PageTables, Shape, Table, TableSource, Tables,
    Tlb,
};
use granule_smmuv3::{Scope, Smmu};

use super::Port;
use crate::mm::OutOfMemory;
use crate::mm::frame::FrameAllocator;
use crate::mm::kernel::Machine;
use crate::smp::Cpu;

/// The tables of one device.
pub(super) struct Domain {
    root: Table,
    asid: u16,
    /// Tables below the root.
    tables: AtomicUsize,
    mmu: Machine,
    frames: &'static FrameAllocator,
}

impl Domain {
    /// Tables that translate nothing, under `asid` of the SMMU.
    pub(super) fn new(
        cpu: &Cpu,
        mmu: Machine,
        frames: &'static FrameAllocator,
        asid: u16,
    ) -> Result<Self, OutOfMemory> {
        let root = frames.alloc_zeroed(cpu)?;
        // SAFETY: a zeroed frame that is used for nothing else until the domain ends.
        let root = unsafe { Table::root::<Granule4K>(root) };
        Ok(Self { root, asid, tables: AtomicUsize::new(0), mmu, frames })
    }

    /// The root table.
    pub(super) fn root(&self) -> PhysAddr {
        self.root.address()
    }

    /// Its number in the SMMU's TLB.
    pub(super) fn asid(&self) -> u16 {
        self.asid
    }

    /// Frames that are its tables, the root counted.
    pub(super) fn table_frames(&self) -> usize {
        self.tables.load(Ordering::Relaxed) + 1
    }

    /// Shows the device the memory from `physical` on at `range`, which shows nothing. On return it finds it.
    ///
    /// # Errors
    /// [`Error`]; nothing is shown.
    #[inline]
    pub(super) fn map(
        &self,
        cpu: &Cpu,
        range: PageRange,
        physical: PhysAddr,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let mut source = Source { domain: self, cpu };
        // What became valid is in no TLB: the barrier at the end of the section is all that is owed.
        let lazy = Lazy::new(&self.mmu);
        self.page_tables().map(&lazy, range, physical, attributes, Shape::PAGES, &mut source)
    }

    /// Ends [`Self::map`]. On return the device does not reach the memory.
    #[inline]
    pub(super) fn unmap(&self, smmu: &Smmu<Port>, range: PageRange) {
        let lazy = Lazy::new(&self.mmu);
        let tlb = DomainTlb { smmu, asid: self.asid };
        let unmapped = self.page_tables().unmap(&lazy, &tlb, range, |_| {});
        debug_assert!(unmapped.is_ok(), "leaves are pages, of which none is cut: {unmapped:?}");
    }

    /// Gives back all tables. No stream is translated by them any more.
    pub(super) fn dismantle(&self, cpu: &Cpu, smmu: &Smmu<Port>) {
        let forget = || with_interrupts_masked(|| smmu.invalidate_asid(self.asid));
        self.page_tables().dismantle(forget, |out| {
            if let Dismantled::Table(table) = out {
                self.tables.fetch_sub(1, Ordering::Relaxed);
                self.frames.free(cpu, table);
            }
        });
        self.frames.free(cpu, self.root());
    }

    #[inline(always)]
    fn page_tables(&self) -> PageTables<'_, Machine> {
        PageTables::new(&self.mmu, self.root)
    }
}

/// Runs `work` as whoever issues commands must.
#[inline(always)]
pub(super) fn with_interrupts_masked<T>(work: impl FnOnce() -> T) -> T {
    let masked = interrupts::mask();
    let result = work();
    interrupts::restore(masked);
    result
}

/// The SMMU's TLB, for the addresses of one device.
struct DomainTlb<'a> {
    smmu: &'a Smmu<Port>,
    asid: u16,
}

impl<M: Mmu<Geometry = Granule4K>> Tlb<M> for DomainTlb<'_> {
    #[inline(always)]
    fn issue(&self, _mmu: &M, what: &Invalidation) {
        let scope = match what.tables {
            Tables::Kept => Scope::Leaves,
            Tables::Unlinked => Scope::Tables,
        };
        let (start, end) = (what.range.start(), VirtAddr(what.range.start().0 + what.range.size()));
        with_interrupts_masked(|| self.smmu.invalidate(self.asid, start, end, scope));
    }

    /// No CPU translates by these tables: the commands, which complete before each call returns, are all there is.
    #[inline(always)]
    fn invalidate(&self, mmu: &M, whats: impl Iterator<Item = Invalidation>) {
        mmu.dsb_ishst();
        for what in whats {
            self.issue(mmu, &what);
        }
    }
}

/// Frames for tables.
struct Source<'a> {
    domain: &'a Domain,
    cpu: &'a Cpu,
}

// SAFETY: the allocator gives each frame to one owner, zeroed here, and every frame is in the linear map.
unsafe impl TableSource for Source<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let table = self.domain.frames.alloc_zeroed(self.cpu).ok()?;
        self.domain.tables.fetch_add(1, Ordering::Relaxed);
        Some(table)
    }

    fn give_back(&mut self, table: PhysAddr) {
        self.domain.tables.fetch_sub(1, Ordering::Relaxed);
        self.domain.frames.free(self.cpu, table);
    }
}
