//! Notifiers: the calls that a space makes to what else translates through its tables, or mirrors them.
//!
//! Linux's `mmu_notifier`, with the secondary-TLB calls inside the TLB functions as they are there since 2023, and with
//! the event for upgrades. A [`Subscriber`] joins the [`NotifierChain`] of one space. It receives two kinds of calls:
//!
//! - **Events**, by a pair of calls around a change: [`Subscriber::invalidate_range_start`] while the pages are still
//!   mapped, [`Subscriber::invalidate_range_end`] when they may be freed. No page-table lock is held, so it may sleep;
//!   but a lock of the space's areas is, so it must not take one. Between the two it must make no new translation in the
//!   range.
//! - **Invalidations**, where the CPUs' TLBs are invalidated: [`Subscriber::invalidate_secondary_tlbs`], between the
//!   TLBI and the DSB that completes it. Often under the page-table lock, so it must not sleep, allocate or look into
//!   tables. A subscriber that shares the CPUs' tables needs no more than this.
//!
//! # Upgrades
//! A CPU that has cached a read-only entry faults and drops the entry when the page becomes writable; a device may only
//! repeat its access, and fail for ever. So where an entry becomes writable or young the chain makes two calls:
//! [`Subscriber::invalidate_secondary_tlbs`] at once, and [`Event::ProtectionUpgrade`] after the page-table lock is
//! dropped ([`NotifierChain::upgraded`]). The event comes late: the page may have been protected, unmapped, its space
//! be gone by then. **A subscriber must never install or upgrade an entry from it**, only forget what it has.

mod chain;
#[cfg(test)]
pub(in crate::mm) mod recording;
pub mod trace;

use core::fmt;

use granule_arch::addr::{PAGE, VirtAddr};

pub use chain::{NotifierChain, Section, SubscribeError, Subscription};

/// Why a range is about to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Event {
    /// Its areas go: `munmap`, `exec`.
    Unmap,
    /// Its pages go, or are replaced, and its areas stay: `madvise`, copy on write.
    Clear,
    /// The permissions of its areas change: `mprotect`.
    ProtectionVma,
    /// Those of single pages do: by their entries. `fork`.
    ProtectionPage,
    /// A read-only or old entry has become writable or young.
    ProtectionUpgrade,
    /// Its pages move to other frames.
    Migrate,
    /// The space ends.
    Release,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unmap => "unmap",
            Self::Clear => "clear",
            Self::ProtectionVma => "protection of areas",
            Self::ProtectionPage => "protection of pages",
            Self::ProtectionUpgrade => "upgrade",
            Self::Migrate => "migrate",
            Self::Release => "release",
        })
    }
}

/// Some of the events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventSet(u8);

impl EventSet {
    /// None.
    pub const NONE: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(u8::MAX);

    /// These but not `event`.
    #[must_use]
    pub const fn without(self, event: Event) -> Self {
        Self(self.0 & !(1 << event as u8))
    }

    /// Whether `event` is one of them.
    pub const fn contains(self, event: Event) -> bool {
        self.0 & 1 << event as u8 != 0
    }
}

/// The range of an event, and its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Why.
    pub event: Event,
    /// The first address.
    pub start: VirtAddr,
    /// The first address after it.
    pub end: VirtAddr,
}

impl Range {
    /// `start..end`.
    pub const fn new(event: Event, start: VirtAddr, end: VirtAddr) -> Self {
        Self { event, start, end }
    }

    /// The page at `page`.
    pub const fn page(event: Event, page: VirtAddr) -> Self {
        Self::new(event, page, VirtAddr(page.0 + PAGE))
    }
}

/// A subscriber of a chain. Each call may come on any CPU, and several at once.
pub trait Subscriber: Send + Sync + 'static {
    /// The events that it subscribes to; the invalidations and the release come in any case.
    fn events(&self) -> EventSet {
        EventSet::ALL
    }

    /// `range` is about to change. May sleep.
    fn invalidate_range_start(&self, _range: &Range) {}

    /// `range` has changed, or what its start announced was given up. May sleep.
    fn invalidate_range_end(&self, _range: &Range) {}

    /// Entries in `start..end` are empty, and will name other frames or their frames will be free when this returns:
    /// under the page-table lock, or not.
    fn invalidate_range(&self, _start: VirtAddr, _end: VirtAddr) {}

    /// The CPUs' TLBs are invalidated for `start..end`: under the page-table lock, or not. `0..u64::MAX` is everything.
    fn invalidate_secondary_tlbs(&self, _start: VirtAddr, _end: VirtAddr) {}

    /// The space ends: on return nothing uses its tables any more. Other calls may be running, and but for the end of
    /// [`Event::Release`], which is called around this one, none comes after.
    fn release(&self) {}
}

#[cfg(test)]
mod tests;
