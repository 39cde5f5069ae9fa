//! A store to a page that is not to be written: copied, or reused.
//!
//! A frame with one holder is this page's alone: a fork, and nothing else, adds holders, and a fork keeps faults out.
//! Then the entry becomes writable as it is. Otherwise the page gets a frame of its own. The entry then changes its
//! address, which takes break-before-make (Arm ARM D8.17.1): empty, invalidate, new entry. So no CPU and no device ever
//! reads the old frame after another has written to the new one.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_arch::patched_branch;
use granule_pgtable::Mmu;

use super::entry::{EntryState, set_access_flags, state, written};
use super::fault::{AllowedFault, FaultError, FaultOutcome};
use crate::lab;
use crate::mm::notifier::{Event, Range};
use crate::platform::features::branch;

/// What becomes of a store to a read-only entry.
pub(super) enum Reuse {
    /// It may be written as it is, or was changed by another CPU: the next fault decides what it needs then.
    Done(FaultOutcome),
    /// Others have the frame that this entry shows.
    Copy(Descriptor),
}

impl AllowedFault<'_> {
    /// Makes the entry writable as it is, if its frame is not shared, or all its users must see the store.
    #[inline(always)]
    pub(super) fn reuse(&self) -> Reuse {
        let space = self.space;
        let _locked = space.lock_table(self.table);
        let entry = space.mmu().load(self.cell);
        if state(entry) != EntryState::Page {
            return Reuse::Done(self.not_a_page(entry));
        }
        // Under the lock the answer stays: a frame that has no other holder gets none while faults can come.
        let own = || !entry.is_special() && space.common.record(entry.address()).references() == 1;
        if !self.area.is_shared() && !own() {
            return Reuse::Copy(entry);
        }
        Reuse::Done(self.allow_more(entry, entry.young().writable().dirty()))
    }

    /// Gives the page a frame of its own, with what is in the one of `entry`.
    #[inline(never)]
    pub(super) fn copy_on_write(self, entry: Descriptor) -> FaultOutcome {
        let (space, frames) = (self.space, self.space.common.frames);
        let new = if entry.is_special() { frames.alloc_zeroed(self.cpu) } else { frames.alloc(self.cpu) };
        let new = match new {
            Ok(new) => new,
            Err(error) => return FaultOutcome::Failed(FaultError::from(error)),
        };
        let _change = space.notifiers.start(Range::page(Event::Clear, self.page));
        let (unused, outcome) = self.copy(entry, new);
        if let Some(frame) = unused {
            space.let_go(self.cpu, frame);
        }
        outcome
    }

    /// Gives the page `new` for a frame, with what is in the one of `found`; returns the frame that the page does not
    /// have then, if it is counted.
    #[inline(always)]
    fn copy(&self, found: Descriptor, new: PhysAddr) -> (Option<PhysAddr>, FaultOutcome) {
        let (space, mmu) = (self.space, self.space.mmu());
        let written = written(new, self.area.protection());
        let _locked = space.lock_table(self.table);
        let entry = mmu.load(self.cell);
        // The access flag may have been set meanwhile. After any other change the next fault decides what is needed.
        if entry.young() != found.young() {
            return (Some(new), FaultOutcome::Served);
        }
        // Copying is an access, and of the last level's entries the hardware would have made this one young. Its
        // invalidation is the one below: the lock is held until then. No subscriber is notified of it before, as in
        // Linux's `__wp_page_copy_user`, whose `ptep_set_access_flags` without dirt invalidates nothing.
        let outcome = if entry.is_young() || patched_branch!(branch::ACCESS_FLAG) {
            FaultOutcome::Served
        } else {
            set_access_flags(mmu, self.cell, entry, entry.young());
            FaultOutcome::Upgraded
        };
        if !entry.is_special() {
            // Read-only everywhere, and held by this entry: it stays as it is while the lock is held.
            space.copy_frame(entry.address(), new);
        }
        if written.is_user_executable() {
            space.make_code_visible(written);
        }
        mmu.store(self.cell, Descriptor::EMPTY);
        // Also orders what is in the page before the entry that shows it.
        if !lab::is_on!(STALE_COW) {
            space.tlb().flush_replaced(mmu, self.page);
        }
        mmu.store(self.cell, written);
        ((!entry.is_special()).then(|| entry.address()), outcome)
    }
}
