//! The alias of vmalloc areas in the linear map: what is read-only in an area is read-only there, too.
//!
//! With `rodata=on`, `set_memory_ro`, `rw` and `rox` change both, and `vfree` makes the alias writable again before the
//! frames are anyone's ([`granule_pgtable::Alias`]). Nobody else changes the alias of pages of an area, so its owner is
//! the owner of the area. Leaves of it are split like any of the linear map; where they cannot be, it is made of pages
//! ([`super::policy`]).

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_pgtable::{Alias, Change, Error, Granule4K, Lazy, PageRange, PageTables};

use super::set_memory::{SetMemoryError, window_range};
use super::{KernelSpace, Machine, owners};
use crate::mm::layout;

/// A change of who may write, as a type: so that the compiler knows it.
pub(super) trait Writability {
    /// The change.
    const CHANGE: Change;
}

/// `set_memory_ro`.
pub(super) struct ReadOnly;
/// `set_memory_rw`.
pub(super) struct ReadWrite;
/// `set_memory_rox`.
pub(super) struct ReadOnlyExecutable;

impl Writability for ReadOnly {
    const CHANGE: Change = Change::READ_ONLY;
}

impl Writability for ReadWrite {
    const CHANGE: Change = Change::READ_WRITE;
}

impl Writability for ReadOnlyExecutable {
    const CHANGE: Change = Change::READ_ONLY_EXECUTABLE;
}

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

    /// Changes who may write `pages` pages from `address` on, in the vmalloc window, here and by their alias.
    #[inline(never)]
    pub(super) fn set_memory_and_alias<W: Writability>(
        &self,
        address: VirtAddr,
        pages: u64,
    ) -> Result<(), SetMemoryError> {
        let range = window_range(address, pages)?;
        if pages == 0 {
            return self.check_owned(address);
        }
        let _owner = owners::claim(range);
        let (lazy, tables) = (Lazy::new(&self.mmu), self.tables());
        let marked = W::CHANGE.only_where(bits::VM_ALLOC);
        match tables.update_with_alias(&lazy, &self.tlb, range, marked, &mut self.linear_alias()) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }
}
