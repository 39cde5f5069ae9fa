//! The metal: how a CPU of the machine touches its tables.
//!
//! [`granule_pgtable`] is generic over its `Mmu`; above it there is one [`Machine`](super::Machine). On the metal that
//! is a zero-sized type whose methods are single instructions: tables are reached through the linear map, cells are
//! 64-bit atomics, which the architecture makes single-copy atomic (Arm ARM B2.2.1) and orders behind the load of their
//! address (B2.3.3, address dependency).

use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::cache;
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_arch::{barrier, patched_branch};
#[cfg(target_os = "none")]
use granule_pgtable::Survey;
#[cfg(not(target_os = "none"))]
use granule_pgtable::host::{CacheOperation, Operation};
use granule_pgtable::{Granule4K, Mmu, Table};

#[cfg(target_os = "none")]
use super::bulk;
#[cfg(not(target_os = "none"))]
use super::record;
use crate::lab;
#[cfg(target_os = "none")]
use crate::mm::layout;
use crate::mm::maintenance::{MaintenanceOp, count};
use crate::platform::features::branch;

const ENTRIES: usize = 512;

/// Where this CPU finds a table by its physical address.
pub trait View {
    /// The table's cells.
    fn cells(&self, table: PhysAddr) -> *const [AtomicU64; ENTRIES];

    /// Where a cell is that [`Self::cells`] has shown.
    #[cfg(not(target_os = "none"))]
    fn physical(&self, cell: *const AtomicU64) -> PhysAddr;
}

/// Through the linear map: any table, once the map is up. On the host the "linear map" is wherever a test put its
/// memory.
#[derive(Clone, Copy, Debug)]
pub struct LinearView {
    #[cfg(not(target_os = "none"))]
    /// What to add to a physical address, wrapping.
    pub offset: u64,
}

impl View for LinearView {
    #[inline(always)]
    fn cells(&self, table: PhysAddr) -> *const [AtomicU64; ENTRIES] {
        #[cfg(target_os = "none")]
        return layout::linear(table).as_ptr();
        #[cfg(not(target_os = "none"))]
        return VirtAddr(table.0.wrapping_add(self.offset)).as_ptr();
    }

    #[cfg(not(target_os = "none"))]
    fn physical(&self, cell: *const AtomicU64) -> PhysAddr {
        PhysAddr(VirtAddr::from_ptr(cell).0.wrapping_sub(self.offset))
    }
}

/// Through the image's own mapping: only tables that lie in the image. For building the linear map.
#[cfg(target_os = "none")]
#[derive(Clone, Copy, Debug)]
pub struct ImageView {
    /// What to add to a physical address of the image, wrapping, for its virtual one.
    pub offset: u64,
}

#[cfg(target_os = "none")]
impl View for ImageView {
    fn cells(&self, table: PhysAddr) -> *const [AtomicU64; ENTRIES] {
        let address = VirtAddr(table.0.wrapping_add(self.offset));
        assert!(super::image::contains(address), "an early table lies outside the image");
        address.as_ptr()
    }
}

/// Adds to the host's record what the metal would do now.
macro_rules! note {
    ($operation:expr) => {
        #[cfg(not(target_os = "none"))]
        record::note($operation);
    };
}

/// This CPU.
#[derive(Clone, Copy, Debug)]
pub struct Metal<V = LinearView>(pub V);

#[cfg(not(target_os = "none"))]
impl<V: View> Metal<V> {
    /// A write, for the record.
    fn write(&self, cell: &AtomicU64, old: Descriptor, new: Descriptor) -> Operation {
        Operation::Write { cell: self.0.physical(cell), old, new }
    }
}

/// Bytes in the shortest cache lines of all CPUs: one CPU's register speaks for that CPU alone.
struct CacheLines {
    data: u64,
    instruction: u64,
}

impl CacheLines {
    /// As all CPUs say; before they have, this CPU, which is then the only one.
    fn of_all_cpus() -> Self {
        match crate::try_kernel().and_then(|kernel| kernel.features.get()) {
            Some(features) => Self { data: features.cpus.data_line(), instruction: features.cpus.instruction_line() },
            #[cfg(target_os = "none")]
            None => Self { data: cache::data_line(), instruction: cache::instruction_line() },
            #[cfg(not(target_os = "none"))]
            None => Self { data: 64, instruction: 64 },
        }
    }
}

// SAFETY: 1. `table` gives the frame at the address, 512 entries as the geometry says; a `Table` proves that it is one,
// and both views show the same memory for as long as it is a table. 2. Aligned 64-bit atomics are single-copy atomic,
// and accesses through a loaded address are ordered behind the load. 3. `granule_arch::barrier` is those barriers, and
// its assembly is a compiler barrier. 4. `bulk` deals with each entry of a run once, by the operation of the default.
#[allow(unsafe_code, reason = "the one place where page tables meet raw memory")]
unsafe impl<V: View> Mmu for Metal<V> {
    type Geometry = Granule4K;
    type Cell = AtomicU64;

    #[inline(always)]
    fn table(&self, table: Table) -> &[AtomicU64] {
        // SAFETY: a `Table` is a whole frame that is a table, mapped by the view; it is only accessed as atomics.
        unsafe { &*self.0.cells(table.address()) }
    }

    #[inline(always)]
    fn load(&self, cell: &AtomicU64) -> Descriptor {
        Descriptor(cell.load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn store(&self, cell: &AtomicU64, descriptor: Descriptor) {
        note!(self.write(cell, self.load(cell), descriptor));
        cell.store(descriptor.0, Ordering::Relaxed);
    }

    #[inline(always)]
    fn compare_exchange(&self, cell: &AtomicU64, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        cell.compare_exchange(current.0, new.0, Ordering::Relaxed, Ordering::Relaxed).map_err(Descriptor)?;
        note!(self.write(cell, current, new));
        Ok(())
    }

    #[inline(always)]
    fn clear_bits(&self, cell: &AtomicU64, mask: u64) -> Descriptor {
        let old = Descriptor(cell.fetch_and(!mask, Ordering::Relaxed));
        note!(self.write(cell, old, Descriptor(old.0 & !mask)));
        old
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn survey(&self, run: &[AtomicU64]) -> Survey {
        bulk::survey(run)
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn update_run(&self, run: &[AtomicU64], flip: u64) {
        bulk::flip(run, flip);
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn fill(&self, table: &[AtomicU64], first: Descriptor, step: u64) {
        bulk::fill(table, first.0, step);
    }

    #[inline(always)]
    fn tlbi(&self, instruction: Instruction) {
        count(MaintenanceOp::of(instruction));
        note!(Operation::Tlbi(instruction));
        instruction.execute();
    }

    #[inline(always)]
    fn dmb_ishst(&self) {
        note!(Operation::DmbIshst);
        barrier::dmb_ishst();
    }

    #[inline(always)]
    fn dsb_ishst(&self) {
        count(MaintenanceOp::Dsb);
        note!(Operation::DsbIshst);
        barrier::dsb_ishst();
    }

    #[inline(always)]
    fn dsb_ish(&self) {
        count(MaintenanceOp::Dsb);
        note!(Operation::DsbIsh);
        barrier::dsb_ish();
    }

    #[inline(always)]
    fn dsb_nsh(&self) {
        count(MaintenanceOp::Dsb);
        note!(Operation::DsbNsh);
        barrier::dsb_nsh();
    }

    #[inline(always)]
    fn isb(&self) {
        count(MaintenanceOp::Isb);
        note!(Operation::Isb);
        barrier::isb();
    }

    #[inline(always)]
    fn complete_tlbi(&self) {
        self.dsb_ish();
        if patched_branch!(branch::REPEAT_TLBI) {
            // What it names does not matter: that it completes says that the first ones have.
            self.tlbi(Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None)));
            self.dsb_ish();
        }
    }

    fn clean_code(&self, start: VirtAddr, bytes: u64) {
        if lab::is_on!(SKIP_ICACHE) {
            return;
        }
        note!(Operation::Cache(CacheOperation::Clean { start, bytes }));
        // SAFETY: valid leaves of the caller's map all of it.
        unsafe { cache::clean_to_unification(start, bytes, CacheLines::of_all_cpus().data) };
    }

    fn invalidate_code(&self, start: VirtAddr, bytes: u64) {
        if lab::is_on!(SKIP_ICACHE) {
            return;
        }
        note!(Operation::Cache(CacheOperation::Invalidate { start, bytes }));
        // SAFETY: valid leaves of the caller's map all of it.
        unsafe { cache::invalidate_instructions(start, bytes, CacheLines::of_all_cpus().instruction) };
    }

    fn invalidate_all_code(&self) {
        if lab::is_on!(SKIP_ICACHE) {
            return;
        }
        note!(Operation::Cache(CacheOperation::InvalidateAll));
        cache::invalidate_all_instructions();
    }

    #[inline(always)]
    fn has_idc(&self) -> bool {
        patched_branch!(branch::IDC)
    }

    #[inline(always)]
    fn has_dic(&self) -> bool {
        patched_branch!(branch::DIC)
    }
}
