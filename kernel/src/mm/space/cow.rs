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

use super::entry::{State, attributes, state};
use super::fault::{Fault, FaultError, Served};
use crate::lab;
use crate::mm::notifier::{Event, Range};
use crate::platform::features::branch;

/// What becomes of a store to a read-only entry.
pub(super) enum Reuse {
    /// It may be written as it is, or was changed by another CPU: what it needs then, the next fault says.
    Done(Result<Served, FaultError>),
    /// Others have the frame that this entry shows.
    Copy(Descriptor),
}

/// What became of the copy of a page.
enum Outcome {
    /// The entry was changed meanwhile: what it needs now, the next fault says.
    Moved,
    /// It has a frame of its own; the one that it had is let go, where it is counted.
    Copied { old: Option<PhysAddr>, source: Served },
}

impl Fault<'_> {
    /// Makes the entry writable as it is, if nobody else has its frame, or all who have it are to see the store.
    #[inline(always)]
    pub(super) fn reuse(&self) -> Reuse {
        let space = self.space;
        let _locked = space.lock_table(self.table);
        let entry = space.mmu().load(self.cell);
        if state(entry) != State::Page {
            return Reuse::Done(self.not_a_page(entry));
        }
        // Under the lock the answer stays: a frame that has no other holder gets none while faults can come.
        let own = || !entry.is_special() && space.common.record(entry.address()).references() == 1;
        if !self.area.is_shared() && !own() {
            return Reuse::Copy(entry);
        }
        Reuse::Done(Ok(self.allow_more(entry, entry.young().writable().dirty())))
    }

    /// Gives the page a frame of its own, with what is in the one of `entry`.
    #[inline(never)]
    pub(super) fn copy_on_write(&self, entry: Descriptor) -> Result<Served, FaultError> {
        let (space, frames) = (self.space, self.space.common.frames);
        let new = if entry.is_special() { frames.alloc_zeroed(self.cpu)? } else { frames.alloc(self.cpu)? };
        let _told = space.notifiers.start(Range::page(Event::Clear, self.page));
        match self.copy(entry, new) {
            Outcome::Copied { old, source } => {
                if let Some(old) = old {
                    space.let_go(self.cpu, old);
                }
                Ok(source)
            }
            Outcome::Moved => {
                frames.free(self.cpu, new);
                Ok(Served::Quietly)
            }
        }
    }

    /// Gives the page `new` for a frame, with what is in the one of `found`.
    #[inline(always)]
    fn copy(&self, found: Descriptor, new: PhysAddr) -> Outcome {
        let (space, mmu) = (self.space, self.space.mmu());
        let written = Descriptor::page(new, attributes(self.area.protection())).dirty();
        let _locked = space.lock_table(self.table);
        let entry = mmu.load(self.cell);
        // The access flag may have been set meanwhile.
        if entry.young() != found.young() {
            return Outcome::Moved;
        }
        // Copying is an access, and of the last level's entries the hardware would have made this one young.
        let source = if entry.is_young() || patched_branch!(branch::ACCESS_FLAG) {
            Served::Quietly
        } else {
            self.allow_more(entry, entry.young())
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
        Outcome::Copied { old: (!entry.is_special()).then(|| entry.address()), source }
    }
}
