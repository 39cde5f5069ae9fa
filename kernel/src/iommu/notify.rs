//! How changes of a bound space's tables invalidate the SMMU's TLB: two complete ways, of which one is chosen at boot
//! (`smmu.notify=`).
//!
//! - `tlb`: with the CPUs. [`Subscriber::invalidate_secondary_tlbs`], where their TLBs are invalidated, before frames are
//!   freed.
//! - `events`: by the events around each change. [`Subscriber::invalidate_range`] for replaced and freed pages, at once
//!   and perhaps under the page-table lock; the end of each section for the rest; upgrades by their event alone.
//!
//! Each call is the fewest commands that cover its range, and one CMD_SYNC that is waited for. It may come under a
//! page-table lock: nothing here sleeps, allocates or looks into tables.

use granule_arch::addr::VirtAddr;
use granule_smmuv3::Scope;
use linkme::distributed_slice;

use super::Iommu;
use super::domain::with_interrupts_masked;
use crate::bootargs;
use crate::bootargs::{PARAMETERS, Parameter, Refused};
use crate::lab;
use crate::mm::notifier::{Event, EventSet, Range, Subscriber};

/// The trigger that invalidates the SMMU's TLB when a space changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotifyMode {
    /// With the CPUs' TLBs.
    Tlb,
    /// By the events around each change.
    Events,
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static NOTIFY: Parameter = Parameter {
    name: "smmu.notify",
    help: "tlb: the SMMU is invalidated with the CPUs' TLBs; events: by the events around each change",
    check: |value| NotifyMode::parse(value).map(drop),
};

impl NotifyMode {
    /// From the boot arguments.
    pub(super) fn from_bootargs() -> Self {
        // An argument that makes no sense was warned of.
        bootargs::get(NOTIFY.name).and_then(|value| Self::parse(value).ok()).unwrap_or(Self::Tlb)
    }

    fn parse(value: &str) -> Result<Self, Refused> {
        match value {
            "tlb" => Ok(Self::Tlb),
            "events" => Ok(Self::Events),
            _ => Err(Refused::because("tlb or events")),
        }
    }
}

/// Invalidates the SMMU's TLB for changes in the space that a stream is bound to.
pub(super) struct Notify {
    pub(super) iommu: &'static Iommu,
    pub(super) stream: u32,
    /// The binding's number in the SMMU's TLB.
    pub(super) asid: u16,
    pub(super) notify_mode: NotifyMode,
}

impl Notify {
    #[inline(always)]
    fn forget(&self, start: VirtAddr, end: VirtAddr) {
        let asid = if lab::is_on!(WRONG_ASID) { self.asid ^ 1 } else { self.asid };
        // Tables may have gone with the pages: the caller does not pass that on.
        with_interrupts_masked(|| self.iommu.smmu.invalidate(asid, start, end, Scope::Tables));
    }
}

impl Subscriber for Notify {
    fn events(&self) -> EventSet {
        match self.notify_mode {
            NotifyMode::Tlb => EventSet::NONE,
            NotifyMode::Events => EventSet::ALL.without(Event::Release),
        }
    }

    fn invalidate_range_end(&self, range: &Range) {
        self.forget(range.start, range.end);
    }

    fn invalidate_range(&self, start: VirtAddr, end: VirtAddr) {
        if self.notify_mode == NotifyMode::Events && !lab::is_on!(START_END_ONLY) {
            self.forget(start, end);
        }
    }

    #[inline]
    fn invalidate_secondary_tlbs(&self, start: VirtAddr, end: VirtAddr) {
        if self.notify_mode == NotifyMode::Tlb && !lab::is_on!(NO_SECONDARY_TLB) {
            self.forget(start, end);
        }
    }

    /// First the stream is cut off, then its cached entries of the space are invalidated. In this order: a transaction
    /// under way would only be walked again; and without records, because no driver is left to report them to.
    fn release(&self) {
        self.iommu.cut_off(self.stream, self.asid);
    }
}
