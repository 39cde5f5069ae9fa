//! The alias of vmalloc areas in the linear map: what is read-only in an area is read-only there, too.
//!
//! With `rodata=on`, `set_memory_ro`, `rw` and `rox` change both, and `vfree` makes the alias writable again before the
//! frames are given to another owner ([`update`]). Only its owner changes the alias of pages of an area. Leaves of it
//! are split like any of the linear map; where they cannot be split, the linear map is made of pages
//! ([`super::policy`]).

mod scattered;
pub mod update;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::bits;
use granule_arch::patched_branch;
use granule_pgtable::{Change, PageRange};

pub use self::update::Alias;
use super::owners::RangeOwnerCheck;
use super::set_memory::{SetMemoryError, window_range};
use super::split::LeafSplitter;
use super::{KernelSpace, Machine};
use crate::mm::layout;
use crate::platform::features::branch;

/// A change of writability, as a type: so that the compiler knows it.
pub trait Writability {
    /// The change.
    const CHANGE: Change;
}

/// `set_memory_ro`.
pub struct ReadOnly;
/// `set_memory_rw`.
pub struct ReadWrite;

impl Writability for ReadOnly {
    const CHANGE: Change = Change::READ_ONLY;
}

impl Writability for ReadWrite {
    const CHANGE: Change = Change::READ_WRITE;
}

// Where this does not split (`split=stop-machine`, `split=refuse`) the alias is made of pages, without groups.
impl Alias<Machine> for LeafSplitter<'_> {
    #[inline(always)]
    fn address(&self, frame: PhysAddr) -> VirtAddr {
        layout::linear(frame)
    }
}

impl KernelSpace {
    /// Puts `range`, in the vmalloc window, on record as this CPU's to change, with its alias where that goes along.
    #[inline(always)]
    pub(super) fn check_owner_with_alias(&self, range: PageRange) -> RangeOwnerCheck {
        if cfg!(debug_assertions) && patched_branch!(branch::ALIAS) {
            let tables = self.tables();
            RangeOwnerCheck::with_alias(range, |page| {
                Some(layout::linear(tables.translate(page)?.physical.align_down(PAGE)))
            })
        } else {
            RangeOwnerCheck::new(range)
        }
    }

    /// Changes the writability of `pages` pages from `address` on, in the vmalloc window, here and by their alias.
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
        let owner = self.check_owner_with_alias(range);
        let tables = self.tables();
        let changed =
            update::update::<W, _, _>(tables.get(), &self.tlb, range, bits::VM_ALLOC, &mut LeafSplitter(self));
        drop((tables, owner));
        changed.or_else(|error| self.retry_or_explain(error, range, &W::CHANGE, Self::set_memory_and_alias::<W>))
    }
}
