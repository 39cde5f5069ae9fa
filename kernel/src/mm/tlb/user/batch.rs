//! Invalidations that are issued one after the other and completed together.
//!
//! Unmapping from several spaces waits for one DSB. A range is issued when it is added, to the CPUs
//! and to the secondary TLBs of *its* space; only the DSB is left for the end. At the end the spaces are not known
//! any more, and that of the running thread is none of them: a kernel thread has none (`lab=notify-at-batch-flush`).
//!
//! Until the end an entry that was emptied holds [`Markers::STALE`](granule_arch::descriptor::Markers::STALE): a DSB
//! completes what its own CPU has issued and no more, so code that meets the marker on another CPU invalidates the page
//! itself before the entry is filled.

use granule_arch::addr::VirtAddr;
use granule_pgtable::metal::AsidTlb;
use granule_pgtable::{Granule4K, Invalidation, Mmu, Tlb};

use super::{TOKEN, UserTlb, complete};
use crate::{lab, println};

/// Calls its argument with the TLBs of the space of the running thread, if there is one.
type WithRunning = fn(&dyn Fn(Option<UserTlb<'_>>));

/// Invalidations that may not be complete. Dropping it completes them.
#[must_use = "what was unmapped is free behind the flush"]
pub struct TlbBatch<'m, M: Mmu<Geometry = Granule4K>> {
    mmu: &'m M,
    is_issued: bool,
    /// From the first address to the last that the lab has left to the end.
    late: Option<(VirtAddr, VirtAddr)>,
    /// For the lab alone.
    with_running: WithRunning,
}

impl<'m, M: Mmu<Geometry = Granule4K>> TlbBatch<'m, M> {
    /// Without invalidations.
    pub const fn new(mmu: &'m M, with_running: WithRunning) -> Self {
        Self { mmu, is_issued: false, late: None, with_running }
    }

    /// Issues the invalidation of pages whose entries hold the marker, in the TLBs of `tlb`. The lock of their table is
    /// held.
    pub fn add(&mut self, tlb: UserTlb<'_>, what: &Invalidation) {
        let (start, end) = (what.range.start(), what.range.end());
        self.mmu.dsb_ishst();
        AsidTlb(tlb.asid()).issue(self.mmu, what);
        if lab::is_on!(NOTIFY_AT_BATCH_FLUSH) {
            let (first, last) = self.late.unwrap_or((start, end));
            self.late = Some((first.min(start), last.max(end)));
        } else {
            tlb.notifiers.invalidate_replaced(TOKEN, start, end);
        }
        self.is_issued = true;
    }

    /// Completes all that was added. The memory that the entries named may be free then.
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.is_issued) {
            complete(self.mmu);
        }
        if let Some((start, end)) = self.late.take() {
            notify_the_running_space(self.with_running, start, end);
        }
    }
}

impl<M: Mmu<Geometry = Granule4K>> Drop for TlbBatch<'_, M> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The lab's fault: it notifies the space that runs, and not those that the pages were in.
#[cold]
fn notify_the_running_space(with_running: WithRunning, start: VirtAddr, end: VirtAddr) {
    with_running(&|tlb| match tlb {
        None => println!("lab: the end of a batch of pages {start} to {end}: this thread has no space to notify"),
        Some(tlb) => {
            println!("lab: the end of a batch of pages {start} to {end}: this thread's space is notified");
            tlb.notifiers.invalidate_replaced(TOKEN, start, end);
        }
    });
}
