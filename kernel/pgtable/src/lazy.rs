//! The barriers after entries become valid, deferred to the end of a section.
//!
//! Arm ARM B2.3.12 and D8.2.6: a store to a table is seen by this CPU's own walks after a DSB, and a translation fault
//! that was already speculated is thrown away by an ISB. One pair serves any number of stores, so a [`Lazy`] section
//! needs at most one of each, and where an invalidation follows, its barriers serve as well: two DSB and one ISB for a
//! whole call.

use core::cell::Cell;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Descriptor;

use crate::flush::Flush;
use crate::mmu::{Feature, Mmu, Tlb};

/// The barriers that a store to a live table needs before its effect may be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// Nothing.
    None,
    /// DSB ISHST, then ISB.
    Barriers,
}

/// **The barriers that each kind of descriptor write needs** (kernel mappings; user mappings may take a spurious fault
/// instead).
///
/// | written | needs | because |
/// |---|---|---|
/// | an entry that is not valid | nothing here | the invalidation that follows starts with its own DSB ISHST; where none follows, nothing was cached |
/// | a valid leaf | DSB ISHST, ISB | this CPU's next access must not fault: the walker must see the store, and a fault speculated before it must go |
/// | a valid table | the same | the same, one level up; its contents come before it by DMB ISHST |
/// | a split: a table for a block, a leaf less its group | nothing | whichever a walk finds, both translate alike |
/// | a leaf that lets new code run | the same, and cache maintenance *before* it (`code.rs`) | or another CPU could run what was there before |
/// | any of these, with FEAT_ETS2 | no DSB, no ISB | an access takes no translation fault that an earlier store has removed |
///
/// Another CPU may take one spurious translation fault on what became valid; no barrier on this side prevents that.
#[inline(always)]
pub fn pending_after(written: Descriptor, ets2: bool) -> Pending {
    if written.is_valid() && !ets2 { Pending::Barriers } else { Pending::None }
}

/// A section of changes by this CPU, which issues on drop the barriers that they need: at most one DSB ISHST and one
/// ISB.
///
/// Sections nest: the end of an inner one issues the barriers that it and those around it need at that point, so its
/// entries are in use from then on. An interrupt handler has its own section, and does not rely on the interrupted one.
pub struct Lazy<'a, M: Mmu> {
    mmu: &'a M,
    pending: Cell<Pending>,
    outer: Option<&'a Lazy<'a, M>>,
}

impl<'a, M: Mmu> Lazy<'a, M> {
    /// Opens a section.
    #[inline(always)]
    pub const fn new(mmu: &'a M) -> Self {
        Self { mmu, pending: Cell::new(Pending::None), outer: None }
    }

    /// Opens a section inside this one.
    #[inline(always)]
    #[must_use]
    pub const fn nested(&'a self) -> Self {
        Self { mmu: self.mmu, pending: Cell::new(Pending::None), outer: Some(self) }
    }

    /// The CPU that it is for.
    #[inline(always)]
    pub const fn mmu(&self) -> &'a M {
        self.mmu
    }

    /// The barriers that this section and those around it owe.
    pub fn pending(&self) -> Pending {
        match (self.pending.get(), self.outer) {
            (Pending::None, Some(outer)) => outer.pending(),
            (pending, _) => pending,
        }
    }

    /// Notes that `written` was stored to a live table.
    #[inline(always)]
    pub fn wrote(&self, written: Descriptor) {
        if pending_after(written, self.mmu.has(Feature::Ets2)) == Pending::Barriers {
            self.pending.set(Pending::Barriers);
        }
    }

    /// Notes what a section of its own has left.
    #[inline(always)]
    pub(crate) fn add(&self, pending: Pending) {
        if pending == Pending::Barriers {
            self.pending.set(Pending::Barriers);
        }
    }

    /// Ends the section without a barrier: the caller adds what is pending to its own section.
    pub(crate) fn into_pending(self) -> Pending {
        self.pending.replace(Pending::None)
    }

    /// Issues the pending barriers, if any. The section goes on.
    #[inline]
    pub fn flush_barriers(&self) {
        if self.pending() == Pending::Barriers {
            // DSB ISHST: the walkers see the stores. Then ISB: a fault that was speculated before the DSB is thrown
            // away. Neither alone is enough, nor the other order, nor a DMB.
            self.mmu.dsb_ishst();
            self.mmu.isb();
            self.settle();
        }
    }

    /// Invalidates what `flushes` need, under one pair of DSBs. The first of them, and the ISB at the end, serve this
    /// section too. Where none is needed, nothing is issued and the section stays pending.
    #[inline(always)]
    pub fn invalidate<T: Tlb<M>>(&self, tlb: &T, flushes: impl IntoIterator<Item = Flush<M::Geometry>>) {
        let mut owed = flushes.into_iter().filter_map(Flush::invalidation).peekable();
        if owed.peek().is_some() {
            tlb.invalidate(self.mmu, owed);
            self.settle();
        }
    }

    /// As [`Self::invalidate`], for `flushes` and besides for `pages`, of which nothing is known but their addresses.
    #[inline(always)]
    pub fn invalidate_with_pages<T: Tlb<M>>(
        &self,
        tlb: &T,
        flushes: [Flush<M::Geometry>; 2],
        pages: impl Iterator<Item = VirtAddr>,
    ) {
        tlb.invalidate_with_pages(self.mmu, flushes.into_iter().filter_map(Flush::invalidation), pages);
        self.settle();
    }

    /// A barrier covers everything that this CPU stored before it, in whichever section.
    #[inline(always)]
    fn settle(&self) {
        self.pending.set(Pending::None);
        // This section itself is in no loop, so that it need not lie in memory.
        let mut outer = self.outer;
        while let Some(lazy) = outer {
            lazy.pending.set(Pending::None);
            outer = lazy.outer;
        }
    }
}

impl<M: Mmu> Drop for Lazy<'_, M> {
    #[inline(always)]
    fn drop(&mut self) {
        self.flush_barriers();
    }
}
