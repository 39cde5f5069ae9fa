//! Write-protection fault: copy the page, or reuse it.
//!
//! A frame with one reference belongs to this page alone: only a fork and a migration add entries, neither to a frame
//! that a present entry has while faults are possible. Then the entry becomes writable in place. (A frame of an object
//! has the object's reference besides, until no entry maps it.) Otherwise the page gets a frame of its own. The new
//! entry has another output address, which takes break-before-make (Arm ARM D8.17.1): clear, invalidate, store. So no
//! CPU and no device reads the old frame after another has written to the new one.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_arch::patched_branch;
use granule_pgtable::Mmu;

use super::denied::Denied;
use super::entry::{is_page, set_access_flags, written};
use super::error::FaultError;
use super::look::replace_frame;
use super::outcome::{AllowedFault, FaultOutcome};
use crate::lab;
use crate::mm::notifier::{Event, Range};
use crate::mm::tlb::user::Leaf;
use crate::platform::features::branch;

/// The result of [`AllowedFault::reuse`], for a store to a read-only entry.
pub(super) enum Reuse {
    /// Nothing more: the entry is writable in place now, or another CPU has changed it and the retry decides.
    Done(FaultOutcome),
    /// A copy: others use the frame of this entry.
    Copy(Descriptor),
}

impl AllowedFault<'_> {
    /// Makes the entry writable in place, if its frame is not shared, or if the area is shared and all its users see
    /// the store.
    #[inline(always)]
    pub(super) fn reuse(&self) -> Reuse {
        let space = self.space;
        let locked = space.lock_table(self.table);
        let seen = locked.entry(space.mmu(), self.cell);
        let entry = seen.descriptor();
        if !is_page(entry) {
            return Reuse::Done(self.fault_on_nonpresent(seen));
        }
        if entry.is_uffd_wp() {
            // Before all else: the pager sees the page as it was, and what it has others use stays theirs.
            return Reuse::Done(self.write_protected(entry));
        }
        if entry.is_contiguous() {
            return Reuse::Done(self.of_group(entry));
        }
        // Stable under the lock: a frame with one reference gets no other while faults are possible.
        let own = || !entry.is_special() && space.common.record(entry.address()).references() == 1;
        if !self.area.is_shared() && !own() {
            return Reuse::Copy(entry);
        }
        Reuse::Done(self.allow_more(entry, entry.young().writable().dirty()))
    }

    /// Gives the page a frame of its own, with the contents of the frame of `entry`. A caller that must not sleep has
    /// the fault repeated where a subscriber has just joined: the next one finds it.
    #[inline(never)]
    pub(super) fn copy_on_write(self, entry: Descriptor, may_sleep: bool) -> FaultOutcome {
        let frames = self.space.common.frames;
        let new = match frames.alloc_movable(self.cpu) {
            Ok(new) => new,
            Err(error) => return self.not_copied(entry, error.into()),
        };
        self.copy_to(entry, new, may_sleep)
    }

    /// The outcome where `found` cannot be copied, because of `error`: served, where another CPU has changed it.
    #[cold]
    #[inline(never)]
    fn not_copied(self, found: Descriptor, error: FaultError) -> FaultOutcome {
        let locked = self.space.lock_table(self.table);
        let seen = locked.entry(self.space.mmu(), self.cell);
        if seen.descriptor().young() != found.young() {
            return FaultOutcome::Served;
        }
        FaultOutcome::Failed(Denied::by_entry(seen, error))
    }

    /// As [`Self::copy_on_write`], with a frame of the caller's.
    #[inline(always)]
    pub(super) fn copy_to(self, entry: Descriptor, new: PhysAddr, may_sleep: bool) -> FaultOutcome {
        let (space, frames) = (self.space, self.space.common.frames);
        if entry.is_special() {
            // Whether it has to wait is found again below.
            let _ = space.zero_new(frames, new, self.area.protection());
        }
        space.note_origin(new, self.page);
        let Some(_change) = space.notifiers.try_start(may_sleep, Range::page(Event::Clear, self.page)) else {
            frames.free(self.cpu, new);
            return FaultOutcome::Served;
        };
        let (unused, outcome) = self.copy(entry, new);
        if let Some(frame) = unused {
            space.common.drop_frame(self.cpu, frame);
        }
        outcome
    }

    /// Replaces the frame of `found` by `new`, with the same contents. Returns the frame that the page does not use
    /// afterwards, if it is counted.
    #[inline(always)]
    fn copy(&self, found: Descriptor, new: PhysAddr) -> (Option<PhysAddr>, FaultOutcome) {
        let (space, mmu) = (self.space, self.space.mmu());
        let written = written(new, self.area.protection());
        let _locked = space.lock_table(self.table);
        let entry = mmu.load(self.cell);
        // The access flag may have been set concurrently. After any other change the retry decides.
        if entry.young() != found.young() {
            return (Some(new), FaultOutcome::Served);
        }
        // Read-only in every TLB and held by this entry: the contents do not change under the lock.
        if !entry.is_special() && space.common.page(entry.address()).copy_to(new).is_err() {
            return (Some(new), FaultOutcome::TagStorage);
        }
        // The copy is an access, for which the hardware would have set the access flag of a last-level entry. The
        // invalidation for that is the one below, under the same lock. As in Linux's `__wp_page_copy_user`, where
        // `ptep_set_access_flags` without dirt invalidates nothing, no subscriber is notified before it.
        let outcome = if entry.is_young() || patched_branch!(branch::ACCESS_FLAG) {
            FaultOutcome::Served
        } else {
            set_access_flags(mmu, self.cell, entry, entry.young());
            FaultOutcome::Upgraded
        };
        let written = space.prepared(written);
        replace_frame(mmu, self.cell, written, || {
            // It also orders the contents of the page before the entry.
            if !lab::is_on!(STALE_COW) {
                space.tlb().flush_replaced(mmu, Leaf::page(self.page));
            }
        });
        ((!entry.is_special()).then(|| entry.address()), outcome)
    }
}
