//! The alias of vmalloc areas in the linear map: what is read-only in an area is read-only there, too.
//!
//! With `rodata=on`, `set_memory_ro`, `rw` and `rox` change both, and `vfree` makes the alias writable again before the
//! frames are anyone's ([`granule_pgtable::Alias`]). Nobody else changes the alias of pages of an area, so its owner is
//! the owner of the area. Leaves of it are split like any of the linear map; where they cannot be, it is made of pages
//! ([`super::policy`]).

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_pgtable::{Alias, Change, Error, Granule4K, Lazy, PageRange, PageTables};

use super::set_memory::SetMemoryError;
use super::{KernelSpace, Machine, owners};
use crate::mm::layout;

/// The linear map, for frames of areas.
pub(super) struct LinearAlias<'s> {
    space: &'s KernelSpace,
    tables: PageTables<'s, Machine>,
}

impl Alias<Granule4K> for LinearAlias<'_> {
    type Error = Error;

    #[inline(always)]
    fn address(&self, frame: PhysAddr) -> VirtAddr {
        layout::linear(frame)
    }

    #[cold]
    fn split(&mut self, range: PageRange) -> Result<(), Error> {
        let cut = Error::Straddles { leaf: range.start(), size: range.size() };
        self.space.split_at_ends(&self.tables, range, cut)
    }
}

impl KernelSpace {
    /// The alias of any area. Its tables stay, so that no walk need be announced.
    pub(super) fn linear_alias(&self) -> LinearAlias<'_> {
        LinearAlias { space: self, tables: PageTables::new(&self.mmu, self.root) }
    }

    /// Changes who may write `range`, which is in the vmalloc window, here and by its alias.
    pub(super) fn set_memory_and_alias(&self, range: PageRange, change: Change) -> Result<(), SetMemoryError> {
        let _owner = owners::claim(range);
        let lazy = Lazy::new(&self.mmu);
        self.tables()
            .update_with_alias(&lazy, &self.tlb, range, change.only_where(bits::VM_ALLOC), &mut self.linear_alias())
            .map_err(|error| self.explain(error))
    }
}
