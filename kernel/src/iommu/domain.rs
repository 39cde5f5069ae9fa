//! A device's own tables: made like the kernel's, and invalidated in the SMMU alone.
//!
//! Each range has one owner, which has its addresses from the allocator, so mapping and unmapping take no lock: they
//! write cells that are theirs, of tables that others may link concurrently (`granule_pgtable`). Tables stay until
//! the device is detached. Unmapping is strict: when it returns, the SMMU has completed the invalidation and the device
//! does not reach the memory any more.

#![allow(unsafe_code, reason = "vouches for the root of a device's tables, and dismantles them")]

use core::sync::atomic::{AtomicUsize, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor};
use granule_arch::interrupts;
use granule_arch::tlbi::LevelHint;
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::{
    Dismantled, Geometry, Granule4K, Invalidation, Mmu, PageRange, PageTables, Stores, Table, TableSource, Tables, Tlb,
};
use granule_smmuv3::{Scope, Smmu};

use super::Port;
use crate::mm::OutOfMemory;
use crate::mm::frame::FrameAllocator;
use crate::mm::kernel::Machine;
use crate::smp::Cpu;

const PAGE: u64 = Granule4K::PAGE_SIZE;
/// Bytes of an entry.
const CELL: u64 = size_of::<Descriptor>() as u64;
/// Bytes that a last-level table translates.
const TABLE_SPAN: u64 = PAGE << Granule4K::INDEX_BITS;

/// The tables of one device.
pub(super) struct Domain {
    root: Table,
    asid: u16,
    /// Tables below the root.
    tables: AtomicUsize,
    mmu: Machine,
    frames: &'static FrameAllocator,
    smmu: &'static Smmu<Port>,
}

impl Domain {
    /// Tables that translate nothing, under `asid` of `smmu`.
    pub(super) fn new(
        cpu: &Cpu,
        mmu: Machine,
        frames: &'static FrameAllocator,
        smmu: &'static Smmu<Port>,
        asid: u16,
    ) -> Result<Self, OutOfMemory> {
        let root = frames.alloc_zeroed(cpu)?;
        smmu.clean(root, PAGE);
        // SAFETY: a zeroed frame that is used for nothing else until the domain ends.
        let root = unsafe { Table::<Granule4K>::root(root) };
        Ok(Self { root, asid, tables: AtomicUsize::new(0), mmu, frames, smmu })
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
    /// [`OutOfMemory`]; nothing is shown.
    #[inline]
    pub(super) fn map(
        &self,
        cpu: &Cpu,
        range: PageRange,
        physical: PhysAddr,
        attributes: Attributes,
    ) -> Result<(), OutOfMemory> {
        let (tables, mmu) = (self.page_tables(), &self.mmu);
        for chunk in chunks(range) {
            if tables.cell(chunk).is_none() {
                self.make_table(cpu, chunk)?;
            }
        }
        tables.walk_cells(range).for_each(|found| {
            debug_assert!(found.cells.iter().all(|cell| mmu.load(cell) == Descriptor::EMPTY));
            let first = PhysAddr(physical.0 + (found.start - range.start()));
            mmu.fill(found.cells, Descriptor::page(first, attributes), PAGE);
        });
        // Entries that were not valid are in no TLB: walks need only see the new ones.
        mmu.dsb_ishst();
        if !self.smmu.features().coherent {
            self.clean_links(range);
            self.clean_leaves(range);
        }
        Ok(())
    }

    #[cold]
    fn make_table(&self, cpu: &Cpu, address: VirtAddr) -> Result<(), OutOfMemory> {
        self.page_tables().ensure_cell(address, &mut Source { domain: self, cpu }, || Ok(())).map(drop)
    }

    /// Has an SMMU that does not see the caches find the tables of `range`. Each call that maps does so: the CPU that
    /// has linked one of them may not have come to it yet.
    #[cold]
    fn clean_links(&self, range: PageRange) {
        for chunk in chunks(range) {
            for step in self.page_tables().walk(chunk).filter(|step| step.level != LAST_LEVEL) {
                self.smmu.clean(step.table + step.index as u64 * CELL, CELL);
            }
        }
    }

    /// Has it find the entries of `range`.
    #[cold]
    fn clean_leaves(&self, range: PageRange) {
        self.page_tables().walk_cells(range).for_each(|found| {
            let first = Granule4K::index(found.start, LAST_LEVEL) as u64;
            self.smmu.clean(found.table + first * CELL, found.cells.len() as u64 * CELL);
        });
    }

    /// Where `address` leads the device.
    pub(super) fn translate(&self, address: VirtAddr) -> Option<PhysAddr> {
        Some(self.page_tables().translate(address)?.physical)
    }

    /// Ends [`Self::map`]. On return the device does not reach the memory.
    #[inline(always)]
    pub(super) fn unmap(&self, range: PageRange) {
        // The owner of each frame is recorded elsewhere: no entry need keep it while the invalidation is under way.
        self.page_tables().walk_cells(range).for_each(|found| self.mmu.fill(found.cells, Descriptor::EMPTY, 0));
        if !self.smmu.features().coherent {
            self.clean_leaves(range);
        }
        let changed = Invalidation { range, tables: Tables::Kept, level: LevelHint::new(LAST_LEVEL) };
        DomainTlb { smmu: self.smmu, asid: self.asid }.invalidate(&self.mmu, core::iter::once(changed));
    }

    /// Gives back all tables. No stream is translated by them any more.
    pub(super) fn dismantle(&self, cpu: &Cpu) {
        let forget = || with_interrupts_masked(|| self.smmu.invalidate_asid(self.asid));
        // The owner of each frame is recorded elsewhere.
        let out = |out| {
            if let Dismantled::Table(table) = out {
                self.tables.fetch_sub(1, Ordering::Relaxed);
                self.frames.free(cpu, table);
            }
        };
        // SAFETY: no stream is translated by the tree, and its device is gone: nothing maps or unmaps in it any more.
        // The SMMU's entries are invalidated by the ASID.
        unsafe { self.page_tables().dismantle(forget, out) };
        self.frames.free(cpu, self.root());
    }

    #[inline(always)]
    fn page_tables(&self) -> PageTables<'_, Machine> {
        PageTables::new(&self.mmu, self.root)
    }
}

/// An address in each last-level table that translates some of `range`.
#[inline(always)]
fn chunks(range: PageRange) -> impl Iterator<Item = VirtAddr> {
    let first = range.start().align_down(TABLE_SPAN);
    (first.0..=range.last().0).step_by(TABLE_SPAN as usize).map(VirtAddr)
}

/// Runs `work` with interrupts masked, as commands require.
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
        self.domain.smmu.clean(table, PAGE);
        self.domain.tables.fetch_add(1, Ordering::Relaxed);
        Some(table)
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        self.domain.tables.fetch_sub(1, Ordering::Relaxed);
        self.domain.frames.free(self.cpu, table);
    }
}
