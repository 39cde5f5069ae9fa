//! The metal: what of it is this kernel's own.
//!
//! [`granule_pgtable`] is generic over its `Mmu`; above it there is one [`Machine`](super::Machine). On the metal that
//! is a zero-sized type whose methods are single instructions ([`granule_pgtable::metal`]): tables are reached through
//! the linear map, what the CPUs have is a patched branch, and what is issued is counted.

#![allow(unsafe_code, reason = "vouches for where tables are seen")]

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::cache::CodeCaches;
#[cfg(test)]
use granule_arch::descriptor::Descriptor;
use granule_arch::patched_branch;
use granule_pgtable::metal::Cell;
pub use granule_pgtable::metal::Metal;
use granule_pgtable::metal::{Platform, Trusted};
use granule_pgtable::{Feature, Granule4K, Operation};
use spin::Once;

use super::fixmap;
#[cfg(test)]
use super::record;
use crate::lab;
use crate::mm::layout;
use crate::mm::maintenance::{MaintenanceOp, count};
use crate::platform::features::branch;

/// The caches of all CPUs.
static CODE_CACHES: Once<CodeCaches> = Once::new();

/// From now on caches are maintained as all CPUs need it. Once, before the other CPUs run.
pub(crate) fn note_code_caches(of_all: CodeCaches) {
    CODE_CACHES.call_once(|| of_all);
}

/// Through the linear map: any table, once the map is up. On the host the "linear map" is wherever a test put its
/// memory.
#[derive(Clone, Copy, Debug)]
pub struct LinearView {
    #[cfg(not(target_os = "none"))]
    /// Added to a physical address, wrapping, gives the address where the test has that memory.
    pub offset: u64,
}

// SAFETY: the linear map shows all memory; the branches are patched by what all CPUs have.
unsafe impl Platform for LinearView {
    type Geometry = Granule4K;

    #[inline(always)]
    fn address(&self, table: PhysAddr) -> VirtAddr {
        #[cfg(target_os = "none")]
        return layout::linear(table);
        #[cfg(not(target_os = "none"))]
        return VirtAddr(table.0.wrapping_add(self.offset));
    }

    fn second_mapping(&self, run: &[Cell], work: impl FnOnce(*mut u64)) {
        let entries = VirtAddr::from_ptr(run.as_ptr());
        fixmap::with_entries(PhysAddr(entries - layout::linear(PhysAddr(0))), work);
    }

    #[inline(always)]
    fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::TlbRange => patched_branch!(branch::TLB_RANGE),
            Feature::Ttl => patched_branch!(branch::TLB_LEVEL),
            Feature::Idc => patched_branch!(branch::IDC),
            Feature::Dic => patched_branch!(branch::DIC),
            // Never relied upon: QEMU and the CPUs that are tested do not promise it.
            Feature::Ets2 => false,
        }
    }

    #[inline(always)]
    fn repeats_tlbi(&self) -> bool {
        patched_branch!(branch::REPEAT_TLBI)
    }

    /// Of all CPUs, one CPU's register speaks for that CPU alone; before they run, of this one, which is then the only
    /// one.
    fn code_caches(&self) -> CodeCaches {
        CODE_CACHES.get().copied().unwrap_or_else(CodeCaches::of_this_cpu)
    }

    #[inline(always)]
    fn issues(&self, operation: Operation) -> bool {
        match operation {
            Operation::Tlbi(instruction) => count(MaintenanceOp::of(instruction)),
            Operation::DsbIshst | Operation::DsbIsh | Operation::DsbNsh => count(MaintenanceOp::Dsb),
            Operation::Isb => count(MaintenanceOp::Isb),
            Operation::Cache(_) if lab::is_on!(SKIP_ICACHE) => return false,
            _ => {}
        }
        #[cfg(test)]
        record::note(operation);
        true
    }

    #[cfg(test)]
    fn has_read(&self, cell: &Cell) {
        record::note_read(cell);
    }

    #[cfg(test)]
    fn wrote(&self, cell: &Cell, old: Descriptor, new: Descriptor) {
        let cell = PhysAddr(VirtAddr::from_ptr(cell).0.wrapping_sub(self.offset));
        record::note(Operation::Write { cell, old, new });
    }
}

// SAFETY: `mm`, `iommu` and the tests have the machine and cells alone: each changes what it owns, or under its lock.
unsafe impl Trusted for LinearView {}
