//! The alias of vmalloc areas in the linear map: what is read-only in an area is read-only there, too.
//!
//! With `rodata=on`, `set_memory_ro`, `rw` and `rox` change both, and `vfree` makes the alias writable again before the
//! frames are given to another owner ([`update`]). Only its owner changes the alias of pages of an area. Leaves of it
//! are split like any of the linear map; where they cannot be split, the linear map is made of pages
//! ([`super::policy`]).

mod scattered;
pub mod update;

use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_arch::patched_branch;
use granule_pgtable::{Change, Cut, Error, Lazy, PageRange, PageTables, Ready, Splitter};

pub use self::update::Alias;
use self::update::AtOnce;
use super::owners::RangeOwnerCheck;
use super::set_memory::{SetMemoryError, window_range};
use super::split::LinearSplitter;
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
pub(super) struct LinearAlias<'s>(LinearSplitter<'s>);

impl Splitter<Machine> for LinearAlias<'_> {
    const LIVE_SPLITS: bool = true;

    #[inline(always)]
    fn split(&mut self, cut: &Cut<'_, Machine>) -> Result<(), Error> {
        self.0.split(cut)
    }
}

impl Alias<Machine> for LinearAlias<'_> {
    #[inline(always)]
    fn address(&self, frame: PhysAddr) -> VirtAddr {
        layout::linear(frame)
    }
}

impl KernelSpace {
    /// The alias of any area.
    pub(super) const fn linear_alias(&self) -> LinearAlias<'_> {
        LinearAlias(LinearSplitter(self))
    }

    /// Puts `range`, in the vmalloc window, on record as this CPU's to change, with its alias where that goes along.
    #[inline(always)]
    pub(super) fn check_owner_with_alias(&self, range: PageRange) -> RangeOwnerCheck {
        if cfg!(debug_assertions) && patched_branch!(branch::ALIAS) {
            let tables = self.tables();
            RangeOwnerCheck::with_alias(range, |page| {
                Some(layout::linear(tables.translate(page)?.physical.align_down(PAGE_SIZE as u64)))
            })
        } else {
            RangeOwnerCheck::new(range)
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
        let _owner = self.check_owner_with_alias(range);
        let (lazy, tables) = (Lazy::new(&self.mmu), self.tables());
        let change = W::CHANGE.require_bits(bits::VM_ALLOC);
        match update::update_at_once(&tables.get(), &lazy, range, &change, &mut self.linear_alias()) {
            AtOnce::Done(flushes) => {
                // The pages are there, and keep their tables.
                drop(tables);
                lazy.invalidate(&self.tlb, flushes);
                Ok(())
            }
            AtOnce::Scattered(ready) => self.set_memory_and_scattered_alias(range, change, ready),
            AtOnce::TakesMore => self.set_memory_and_alias_in_steps(range, change),
        }
    }

    /// The same of pages whose frames are no one run, in the walk that has found `ready`.
    #[inline(never)]
    fn set_memory_and_scattered_alias(
        &self,
        range: PageRange,
        change: Change,
        ready: Ready<'_, Machine>,
    ) -> Result<(), SetMemoryError> {
        let (lazy, tables, alias) =
            (Lazy::new(&self.mmu), PageTables::new(&self.mmu, self.root), &mut self.linear_alias());
        update::update_scattered(&tables, &lazy, &self.tlb, range, change, ready, alias)
            .map_err(|error| self.explain(error))
    }

    /// With a section and a walk of its own, so that those above need not lie in memory.
    #[inline(never)]
    fn set_memory_and_alias_in_steps(&self, range: PageRange, change: Change) -> Result<(), SetMemoryError> {
        let (lazy, tables, alias) = (Lazy::new(&self.mmu), self.tables(), &mut self.linear_alias());
        update::update_in_steps(&tables.get(), &lazy, &self.tlb, range, change, alias)
            .map_err(|error| self.explain(error))
    }
}
