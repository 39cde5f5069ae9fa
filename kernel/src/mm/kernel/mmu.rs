//! The metal: how a CPU of the machine touches its tables.
//!
//! [`granule_pgtable`] is generic over its `Mmu`; above it there is one [`Machine`](super::Machine). On the metal that is a zero-sized
//! type whose methods are single instructions: tables are reached through the linear map, cells are 64-bit atomics, which the
//! architecture makes single-copy atomic (Arm ARM B2.2.1) and orders behind the load of their address (B2.3.3, address dependency).

use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::barrier;
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;
#[cfg(target_os = "none")]
use granule_pgtable::Survey;
use granule_pgtable::{Granule4K, Mmu, Table};

#[cfg(target_os = "none")]
use super::pairs;
#[cfg(target_os = "none")]
use crate::mm::layout;
use crate::mm::maintenance::{Kind, count};

const ENTRIES: usize = 512;

/// Where this CPU finds a table by its physical address.
pub trait View {
    /// The table's cells.
    fn cells(&self, table: PhysAddr) -> *const [AtomicU64; ENTRIES];
}

/// Through the linear map: any table, once the map is up. On the host the "linear map" is wherever a test put its memory.
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

/// This CPU.
#[derive(Clone, Copy, Debug)]
pub struct Metal<V = LinearView>(pub V);

// SAFETY: 1. `table` gives the frame at the address, 512 entries as the geometry says; a `Table` proves that it is one, and
// both views show the same memory for as long as it is a table. 2. Aligned 64-bit atomics are single-copy atomic, and
// accesses through a loaded address are ordered behind the load. 3. `granule_arch::barrier` is those barriers, and its
// assembly is a compiler barrier. 4. `pairs` deals with each entry of a run once, by the operation of the default.
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
        cell.store(descriptor.0, Ordering::Relaxed);
    }

    #[inline(always)]
    fn compare_exchange(&self, cell: &AtomicU64, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        cell.compare_exchange(current.0, new.0, Ordering::Relaxed, Ordering::Relaxed).map(drop).map_err(Descriptor)
    }

    #[inline(always)]
    fn clear_bits(&self, cell: &AtomicU64, mask: u64) -> Descriptor {
        Descriptor(cell.fetch_and(!mask, Ordering::Relaxed))
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn survey(&self, run: &[AtomicU64]) -> Survey {
        pairs::survey(run)
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn update_run(&self, run: &[AtomicU64], flip: u64) {
        pairs::flip(run, flip);
    }

    #[inline(always)]
    fn tlbi(&self, instruction: Instruction) {
        count(Kind::of(instruction));
        instruction.execute();
    }

    #[inline(always)]
    fn dmb_ishst(&self) {
        barrier::dmb_ishst();
    }

    #[inline(always)]
    fn dsb_ishst(&self) {
        count(Kind::Dsb);
        barrier::dsb_ishst();
    }

    #[inline(always)]
    fn dsb_ish(&self) {
        count(Kind::Dsb);
        barrier::dsb_ish();
    }

    #[inline(always)]
    fn isb(&self) {
        count(Kind::Isb);
        barrier::isb();
    }
}
