//! The alias of vmalloc areas in the linear map: what is read-only in an area is read-only there, too.
//!
//! With `rodata=on`, `set_memory_ro`, `rw` and `rox` change both, and `vfree` makes the alias writable again before the
//! frames are anyone's ([`granule_pgtable::Alias`]). Nobody else changes the alias of pages of an area, so its owner is
//! the owner of the area. Leaves of it are split like any of the linear map; where they cannot be, it is made of pages
//! ([`super::policy`]).

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_arch::patched_branch;
use granule_pgtable::{Alias, Change, Error, Granule4K, Lazy, PageRange, PageTables};

use super::owners::{self, Owner};
use super::set_memory::{SetMemoryError, window_range};
use super::{KernelSpace, Machine};
use crate::mm::layout;
use crate::platform::features::branch;

/// A change of who may write, as a type: so that the compiler knows it.
pub(super) trait Writability {
    /// The change.
    const CHANGE: Change;
}

/// `set_memory_ro`.
pub(super) struct ReadOnly;
/// `set_memory_rw`.
pub(super) struct ReadWrite;

impl Writability for ReadOnly {
    const CHANGE: Change = Change::READ_ONLY;
}

impl Writability for ReadWrite {
    const CHANGE: Change = Change::READ_WRITE;
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

    /// Puts `range`, in the vmalloc window, on record as this CPU's to change, with its alias where that goes along.
    #[inline(always)]
    pub(super) fn claim_with_alias(&self, range: PageRange) -> Owner {
        if cfg!(debug_assertions) && patched_branch!(branch::ALIAS) {
            let tables = self.tables();
            owners::claim_with_alias(range, |page| {
                Some(layout::linear(tables.translate(page)?.physical.align_down(PAGE_SIZE as u64)))
            })
        } else {
            owners::claim(range)
        }
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
        let _owner = self.claim_with_alias(range);
        let (lazy, tables) = (Lazy::new(&self.mmu), self.tables());
        let marked = W::CHANGE.only_where(bits::VM_ALLOC);
        match tables.get().update_with_alias(&lazy, &self.tlb, range, marked, &mut self.linear_alias()) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }
}
